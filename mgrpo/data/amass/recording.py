"""Reading one AMASS recording from a file that may be damaged or hostile.

Nothing is unpickled. The size that an array claims is checked from its header before anything is unpacked, so neither a
small file that unpacks to gigabytes nor a shape of 10^12 frames takes memory.
"""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from mgrpo.body.model import NUM_BETAS
from mgrpo.body.skeleton import PARENTS_FULL
from mgrpo.errors import InputError
from mgrpo.npz import npz_keys

from .gender import GENDERS

MAX_FRAMES = 500_000
"""Longest recording that is read; the longest of AMASS are a tenth of that."""

MAX_FILE_BYTES = 2 * 1024**3
"""Largest file that is opened."""

POSE_NUMBERS = 3 * (len(PARENTS_FULL) + 1)
"""Axis-angle numbers of a frame: 52 joints, root first."""

FPS_RANGE = (5.0, 2000.0)
"""Rates that a recording may have, Hz."""

_WHAT = "AMASS recording (SMPL+H G)"
_RATES = ("mocap_framerate", "mocap_frame_rate")
_FAR_M = 10_000.0
_MANY_TURNS_RAD = 1000.0
_SMPLX_NUMBERS = 165
_ARRAY_BYTES = {"trans": MAX_FRAMES * 3 * 8, "poses": MAX_FRAMES * POSE_NUMBERS * 8}
_SMALL_BYTES = 65_536
_HEADER_BYTES = 10_240


class Recording(NamedTuple):
    """What is used of a file of AMASS."""

    poses: np.ndarray
    """Axis-angle rotations of 52 joints, root first, ``(N, 52, 3)`` float64 radians."""
    trans: np.ndarray
    """SMPL's translation, ``(N, 3)`` float64 metres; the pelvis is at ``trans + J_0(betas)``."""
    betas: np.ndarray
    """Shape numbers for the body of ``gender``, ``(16,)`` float64."""
    gender: str
    """female, male or neutral."""
    fps: float
    """Rate that the file gives, Hz."""


def read_recording(path: Path) -> Recording:
    """Read a recording of the SMPL+H G kind, with either spelling of the frame rate.

    Raises:
        InputError: not readable, not npz, damaged, pickled, too large, arrays missing or of the wrong shape, values
            that are not finite or absurd, a recording for another body.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or error})") from error
    if size > MAX_FILE_BYTES:
        raise InputError(f"{path}: {size / 1e9:.1f} GB; an {_WHAT} has at most {MAX_FILE_BYTES / 1e9:.1f} GB")
    arrays = _arrays(path)
    return _checked(path, arrays, next(key for key in _RATES if key in arrays))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays that are used, the rate under whichever name it has."""
    try:
        keys = npz_keys(path, _WHAT)
        rate = next((key for key in _RATES if key in keys), None)
        missing = [key for key in ("poses", "trans", "betas", "gender") if key not in keys]
        missing += [" or ".join(_RATES)] if rate is None else []
        if rate is None or missing:
            raise InputError(
                f"{path}: an {_WHAT} needs poses, trans, betas, gender and {' or '.join(_RATES)}; missing: "
                f"{', '.join(missing)}. The file has: {', '.join(keys[:20]) or 'nothing'}"
            )
        wanted = {"betas": _SMALL_BYTES, "gender": _SMALL_BYTES, rate: _SMALL_BYTES, **_ARRAY_BYTES}
        with zipfile.ZipFile(path) as archive:
            return {key: _member(path, archive, key, limit) for key, limit in wanted.items()}
    except (InputError, MemoryError):
        raise
    except Exception as error:
        # zipfile and numpy meet damage with a dozen kinds of errors, tokenizer's among them
        raise InputError(f"{path}: the file is damaged ({error or type(error).__name__}); get it again") from error


def _member(path: Path, archive: zipfile.ZipFile, key: str, limit: int) -> np.ndarray:
    """One array, whose header has been found to be what fits into ``limit`` bytes."""
    info = archive.getinfo(f"{key}.npy")
    if info.file_size > limit + _HEADER_BYTES:
        raise InputError(
            f"{path}: array '{key}' would take {info.file_size / 1e6:.0f} MB unpacked; at most {limit / 1e6:.2f} MB "
            f"are read (a recording has at most {MAX_FRAMES} frames)"
        )
    with archive.open(info) as stream:
        shape, dtype = _header(stream)
    if dtype.hasobject:
        raise InputError(
            f"{path}: array '{key}' holds pickled Python objects, which are not read because they can run code"
        )
    if math.prod(shape) * dtype.itemsize > limit or any(axis < 0 for axis in shape):
        raise InputError(
            f"{path}: array '{key}' claims the shape {shape} of {dtype}; at most {limit / 1e6:.2f} MB are read"
        )
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype that an npy stream claims. Raises all kinds of errors where it is damaged."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"npy version {version}")
    return shape, dtype


def _checked(path: Path, arrays: dict[str, np.ndarray], rate: str) -> Recording:
    for key in ("poses", "trans", "betas", rate):
        if arrays[key].dtype.kind not in "fiu":
            raise InputError(f"{path}: {key} must hold numbers, got {arrays[key].dtype}")
    poses, trans, betas = (np.asarray(arrays[key], np.float64) for key in ("poses", "trans", "betas"))
    if poses.ndim == 2 and poses.shape[1] == _SMPLX_NUMBERS:
        raise InputError(
            f"{path}: poses has {_SMPLX_NUMBERS} numbers a frame, so this is AMASS for SMPL-X, whose betas are for "
            "another body; download the SMPL+H G files"
        )
    if poses.ndim != 2 or poses.shape[1] != POSE_NUMBERS or not len(poses):
        raise InputError(f"{path}: poses must have shape (N, {POSE_NUMBERS}), got {poses.shape}")
    if trans.shape != (len(poses), 3):
        raise InputError(f"{path}: trans must have shape ({len(poses)}, 3) like poses, got {trans.shape}")
    if betas.ndim != 1 or len(betas) < NUM_BETAS:
        raise InputError(
            f"{path}: betas must have at least {NUM_BETAS} numbers, got shape {betas.shape}; download the SMPL+H G "
            "files (16 betas)"
        )
    betas = betas[:NUM_BETAS]
    for key, values, limit, unit in (
        ("poses", poses, _MANY_TURNS_RAD, "rad"),
        ("trans", trans, _FAR_M, "m"),
        ("betas", betas[None], 100.0, "(standard deviations)"),
    ):
        bad = np.flatnonzero(~(np.abs(values) <= limit).all(1))  # also where a value is NaN
        if len(bad):
            raise InputError(
                f"{path}: {key} is not finite or beyond {limit:g} {unit} in {len(bad)} row(s), first in row {bad[0]}"
            )
    if arrays[rate].size != 1:
        raise InputError(f"{path}: {rate} must be one number, got shape {arrays[rate].shape}")
    fps = float(arrays[rate].reshape(()))
    if not FPS_RANGE[0] <= fps <= FPS_RANGE[1]:
        raise InputError(f"{path}: {rate} must be {FPS_RANGE[0]:g} to {FPS_RANGE[1]:g} Hz, got {fps}")
    return Recording(poses.reshape(len(poses), -1, 3), trans, betas, _gender(path, arrays["gender"]), fps)


def _gender(path: Path, value: np.ndarray) -> str:
    """Files hold it as text or as bytes."""
    text = value.reshape(-1)[0] if value.size == 1 and value.dtype.kind in "SU" else None
    text = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    if text is None or str(text).strip().lower() not in GENDERS:
        shown = repr(str(text)) if text is not None else f"an array {value.shape} of {value.dtype}"
        raise InputError(f"{path}: gender must be {', '.join(GENDERS)}, got {shown}")
    return str(text).strip().lower()


def file_stamp(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in nanoseconds: what tells a file from its later versions."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns
