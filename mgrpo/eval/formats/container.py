"""What kind of file it is, by its first bytes, and what is in it: the part that all formats share. Sizes are checked
before anything is allocated, and no pickle is run."""

from __future__ import annotations

import math
import pickle
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mgrpo.data.safe_pickle import HEADER_ERRORS, MAX_BYTES, load_object_npy, load_pickle
from mgrpo.errors import InputError
from mgrpo.npz import ZIP_ERRORS, read_npz

Kind = Literal["npz", "npy", "torch", "pickle", "unknown"]

_ZLIB = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
_COMPRESSED = (*_ZLIB, b"\x1f\x8b", b"BZ", b"\xfd7zXZ", b"]\0\0", b'\x04"M\x18')
_TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


@dataclass(frozen=True, eq=False)
class Container:
    """A file, opened as far as needed to say what it holds."""

    path: Path
    """The file."""
    kind: Kind
    """What its first bytes say."""
    keys: tuple[str, ...] = ()
    """Names of the arrays of an npz file."""

    def arrays(self, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        """Arrays of an npz file, after a check that each is as large as its header says and none is absurd."""
        wanted = [key for key in (*required, *optional) if key in self.keys]
        with zipfile.ZipFile(self.path) as archive:
            for key in wanted:
                self._check_member(archive, key)
        return read_npz(self.path, "motion file", required, optional)

    def _check_member(self, archive: zipfile.ZipFile, key: str) -> None:
        info = archive.getinfo(f"{key}.npy")
        if info.file_size > MAX_BYTES:
            raise InputError(f"{self.path}: array '{key}' is {info.file_size / 1e9:.1f} GB; at most 4 GB are read")
        try:
            with archive.open(info) as stream:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(stream)
                header = stream.tell()
        except (*HEADER_ERRORS, *ZIP_ERRORS) as error:
            raise InputError(
                f"{self.path}: array '{key}' can't be read ({error}); get or write the file again"
            ) from error
        if not dtype.hasobject and math.prod(shape) * dtype.itemsize != info.file_size - header:
            raise InputError(
                f"{self.path}: array '{key}' says shape {shape} of {dtype} but has {info.file_size - header} bytes; "
                "the file is damaged, get or write it again"
            )

    @cached_property
    def content(self) -> Any:
        """What an npy, pickle, joblib or torch file holds."""
        if self.kind == "npy":
            return load_object_npy(self.path, "motion file")
        if self.kind == "pickle":
            return load_pickle(self.path, "motion file")
        if self.kind == "torch":
            return _load_torch(self.path)
        return None


def open_container(path: str | Path) -> Container:
    """Look at a file. Raises InputError where there is none, it can't be read, or it is a zip of something else."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: expected a motion file, got a folder")
    try:
        with path.open("rb") as stream:
            head = stream.read(32)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected a motion file") from error
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or error})") from error
    if not head:
        raise InputError(f"{path}: the file is empty")
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _zip_container(path)
    if head.startswith(b"\x93NUMPY"):
        return Container(path, "npy")
    if head.startswith(_TORCH_LEGACY):
        raise InputError(
            f"{path}: a torch file of the old layout, which is a bare pickle. Where you trust it, write it again: "
            "torch.save(torch.load(FILE), NEW_FILE)"
        )
    if head[:1] == b"\x80" or head.startswith(_COMPRESSED):
        return Container(path, "pickle")
    return Container(path, "unknown")


def _zip_container(path: Path) -> Container:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except ZIP_ERRORS as error:
        raise InputError(f"{path}: a damaged archive ({error}); get or write the file again") from error
    names = [member.filename for member in members]
    if any(name.endswith("data.pkl") for name in names):
        total = sum(member.file_size for member in members)
        if total > MAX_BYTES:
            raise InputError(f"{path}: unpacks to {total / 1e9:.1f} GB; at most {MAX_BYTES / 1e9:.0f} GB are read")
        return Container(path, "torch")
    if names and all(name.endswith(".npy") for name in names):
        if len(names) > 10_000 or len(set(names)) != len(names):
            raise InputError(f"{path}: an npz file with {len(names)} arrays, or two of one name; not a motion")
        return Container(path, "npz", tuple(name.removesuffix(".npy") for name in names))
    raise InputError(f"{path}: an archive of {', '.join(names[:4]) or 'nothing'}, not an npz or torch file")


def _load_torch(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"{path}: holds more than tensors, which torch refuses to read because it could run code ({first}). "
            "Where you trust it, keep its tensors: torch.save({'smpl_params_global': {...}}, NEW_FILE)"
        ) from error
    except (RuntimeError, ValueError, EOFError, KeyError, OSError, AttributeError, TypeError, IndexError) as error:
        raise InputError(
            f"{path}: torch can't read it ({str(error).splitlines()[0]}); get or write it again"
        ) from error
