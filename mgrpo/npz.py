"""Reading and writing npz files without pickles, with messages for people."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from mgrpo.errors import InputError
from mgrpo.storage import replacing

ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError)
"""What a damaged zip archive raises, depending on the byte that is wrong."""


def npz_keys(path: str | Path, what: str) -> tuple[str, ...]:
    """Names of the arrays in an npz file, without reading them. ``what`` says what the file should be, for the message.

    Raises:
        InputError: no such file, a folder, or not an npz archive (a pickle, for example).
    """
    path = Path(path)
    _check_archive(path, what)
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(name[: -len(".npy")] for name in archive.namelist() if name.endswith(".npy"))
    except ZIP_ERRORS as error:
        raise InputError(f"{path}: a damaged archive ({error}); get or write the {what} again") from error


def read_npz(
    path: str | Path, what: str, required: Iterable[str] | None = None, optional: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """Arrays of an npz file, never unpickling anything.

    Args:
        path: the file.
        what: what the file should be, for messages: "SMPL-H model", "motion pack".
        required: arrays to read that must be there; None reads everything.
        optional: arrays to read if they are there.
    Raises:
        InputError: the file is missing, damaged or not npz; a required array is missing; an array that is read holds
            Python objects.
    """
    path = Path(path)
    keys = npz_keys(path, what)
    wanted = list(keys) if required is None else list(required)
    missing = [key for key in wanted if key not in keys]
    if missing:
        raise InputError(
            f"{path}: a {what} needs the arrays {', '.join(wanted)}; missing: {', '.join(missing)}. "
            f"The file has: {', '.join(keys) or 'nothing'}"
        )
    arrays: dict[str, np.ndarray] = {}
    with np.load(path, allow_pickle=False) as archive:
        for key in wanted + [key for key in optional if key in keys and key not in wanted]:
            try:
                arrays[key] = archive[key]
            except ValueError as error:
                if "pickle" in str(error) or "Object arrays" in str(error):
                    raise InputError(
                        f"{path}: array '{key}' holds pickled Python objects, which are not read because they can "
                        "run code. "
                        f"Save it again as a plain numeric array: np.savez(..., {key}=np.asarray(values, "
                        "dtype=np.float32))"
                    ) from error
                raise InputError(
                    f"{path}: array '{key}' can't be read ({error}); the file is damaged, get or write it again"
                ) from error
            except ZIP_ERRORS as error:
                raise InputError(
                    f"{path}: array '{key}' can't be read ({error}); the file is damaged, get or write it again"
                ) from error
    return arrays


def write_npz(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed npz file atomically: readers see the old file or the whole new one, also after a crash or a
    full disk. Arrays are asked for one at a time, so a mapping that reads them from the disk needs no more memory than
    the largest.

    Raises:
        InputError: an array of Python objects, or the place can't be written to.
    """
    path = Path(path)
    for key in arrays:
        if np.asarray(arrays[key]).dtype.hasobject:
            raise InputError(f"{path}: '{key}' holds Python objects; only numeric and text arrays are written")
    try:
        with replacing(path) as temporary:
            pack_npz(temporary, arrays)
    except OSError as error:
        raise InputError(
            f"{path}: can't be written ({error.strerror or error}); choose another place or free some space"
        ) from error


def pack_npz(temporary: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed npz file at a place that :mod:`mgrpo.storage` gave for it. An `OSError` is passed on."""
    # as numpy.savez_compressed does it, but for one array after the other
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for key in arrays:
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(arrays[key]), allow_pickle=False)


def _check_archive(path: Path, what: str) -> None:
    if path.is_dir():
        raise InputError(f"{path}: expected a {what} (an npz file), got a folder")
    if not path.exists():
        raise InputError(f"{path}: no such file; expected a {what} (an npz file)")
    if not path.is_file():  # opening a pipe would wait for ever
        raise InputError(f"{path}: not a regular file; expected a {what} (an npz file)")
    try:
        archive = zipfile.is_zipfile(path)
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or error})") from error
    if archive:
        return
    if head[:1] == b"\x80" or path.suffix in {".pkl", ".pickle"}:
        raise InputError(
            f"{path}: this is a pickle, not an npz file. Pickles are not read because they can run code; "
            f"use the npz form of the {what}"
        )
    if head.startswith(b"\x93NUMPY"):
        raise InputError(f"{path}: this is a single array (npy); a {what} is an npz file with several named arrays")
    raise InputError(f"{path}: not an npz file (or a damaged one); expected a {what}")
