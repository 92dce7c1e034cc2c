"""The base model's training file: HDF5 with one group a clip, and a list of the groups (facts, section E.1).

Both depend on the clips alone: names are written in sorted order and no times are stored, so the same clips give the
same bytes.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from mgrpo.errors import InputError

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


def write_hdf5(out: Path, clips: Iterable[tuple[str, Mapping[str, np.ndarray]]], *, temporary: Path) -> list[str]:
    """Write the HDF5 file atomically and return the names of its groups.

    Args:
        out: the file; an older one is replaced when the new one is complete.
        temporary: where it grows, on the same disk.
        clips: group names in sorted order, with the arrays of :data:`DATASETS`, float32.
    Raises:
        InputError: an array that is missing or has another shape, names out of order.
        OSError: the disk refused; an older file is untouched and nothing is left behind.
    """
    names: list[str] = []
    try:
        with _disk_errors(), _closed(h5py.File(temporary, "w", libver=_FORMATS)) as file:
            for name, arrays in clips:
                if names and name <= names[-1]:
                    raise InputError(f"groups must come in sorted order, got {names[-1]!r} before {name!r}")
                _write_group(file, name, arrays)
                names.append(name)
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, out)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return names


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """HDF5 writes late and reports a full disk as a RuntimeError that names the error number in its text."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = re.search(r"errno = (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


@contextlib.contextmanager
def _closed(file: h5py.File) -> Iterator[h5py.File]:
    """Close a file; where writing failed, closing fails again, and the first error is the one to show."""
    try:
        yield file
    except BaseException:
        with contextlib.suppress(OSError, RuntimeError):
            file.close()
        raise
    file.close()


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
