"""The base model's training file: HDF5 with one group a clip, and a list of the groups (facts, section E.1).

Both depend on the clips alone: names are written in sorted order and no times are stored, so the same clips give the
same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mgrpo.errors import InputError
from mgrpo.storage import replacing

DATASETS: Mapping[str, tuple[int, ...]] = {
    "T_world_root": (7,),
    "contacts": (21,),
    "betas": (16,),
    "joints_wrt_cpf": (21, 3),
    "body_quats": (21, 4),
    "hand_quats": (30, 4),
    "T_world_cpf": (7,),
    "height_from_floor": (1,),
    "T_cpf_tm1_cpf_t": (7,),
}
"""Datasets of a group and their shape without the first axis, which is time (for betas: 1)."""

CHUNK_FRAMES = 32
"""Frames in a chunk: what is read together."""

_FORMATS = ("earliest", "v110")
"""The oldest format that can hold it: whatever reads EgoAllo's file reads this one."""


def list_path(out: Path) -> Path:
    """The list of groups that belongs to an HDF5 file: ``x.hdf5`` and ``x_files.txt``."""
    return out.with_name(f"{out.stem}_files.txt")


def write_hdf5(out: Path, clips: Iterable[tuple[str, Mapping[str, np.ndarray]]], *, grow_in: Path) -> list[str]:
    """Write the HDF5 file atomically and return the names of its groups.

    Args:
        out: the file; an older one is replaced when the new one is complete.
        grow_in: folder on the same disk where it grows, see :func:`mgrpo.storage.replacing`.
        clips: group names in sorted order, with the arrays of :data:`DATASETS`, float32.
    Raises:
        InputError: an array that is missing or has another shape, names out of order.
        OSError: the disk refused; an older file is untouched and nothing is left behind.
    """
    names: list[str] = []
    with replacing(out, grow_in=grow_in) as temporary, _Grown(temporary) as stream:
        with h5py.File(stream, "w", libver=_FORMATS) as file:
            for name, arrays in clips:
                if names and name <= names[-1]:
                    raise InputError(f"groups must come in sorted order, got {names[-1]!r} before {name!r}")
                _write_group(file, name, arrays)
                names.append(name)
                stream.check()
        stream.check()
    return names


class _Grown(io.RawIOBase):
    """The file under HDF5, which never learns of a full disk: told about one, it ignores lost data and may end the
    process by a segmentation fault. The first error is kept, and :meth:`check` raises it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = io.FileIO(path, "w+")
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the error of the disk, if there was one."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        try:
            while len(view):
                view = view[self._file.write(view) :]
        except OSError as error:
            self._error = self._error or error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._file.truncate(size)
        except OSError as error:
            self._error = self._error or error
            return self._file.tell() if size is None else size

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer) or 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


def _write_group(file: h5py.File, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    if set(arrays) != set(DATASETS):
        raise InputError(f"{name}: a group has the datasets {', '.join(DATASETS)}, got {', '.join(sorted(arrays))}")
    frames = len(arrays["T_world_root"])
    group = file.create_group(name)
    for key, shape in DATASETS.items():
        array = arrays[key]
        wanted = (1 if key == "betas" else frames, *shape)
        if array.shape != wanted or array.dtype != np.float32 or not frames:
            raise InputError(f"{name}: {key} must be float32 {wanted}, got {array.dtype} {array.shape}")
        group.create_dataset(key, data=array, chunks=(min(CHUNK_FRAMES, wanted[0]), *shape), track_times=False)


def list_text(names: Iterable[str]) -> str:
    """The list of groups: a name a line, sorted, without a newline at its end (as the base model writes it)."""
    return "\n".join(sorted(names))
