"""What a sequence in EgoAllo's HDF5 layout must look like, and how its numbers lie in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from mgrpo.body.model import NUM_BETAS
from mgrpo.body.skeleton import BODY_JOINT_NAMES, HAND_JOINT_NAMES
from mgrpo.data.clip import QUATERNION_TOLERANCE
from mgrpo.errors import InputError

FIELDS: dict[str, tuple[int, ...]] = {
    "T_world_root": (7,),
    "T_world_cpf": (7,),
    "T_cpf_tm1_cpf_t": (7,),
    "body_quats": (len(BODY_JOINT_NAMES), 4),
    "contacts": (len(BODY_JOINT_NAMES),),
    "hand_quats": (len(HAND_JOINT_NAMES), 4),
}
"""Datasets that are read, with the shape of one frame (facts: section E.1). ``hand_quats`` is absent in old files. The
others of the layout (``height_from_floor``, ``joints_wrt_cpf``, ``joints_wrt_world``) follow from these and are left
alone."""

HANDS = "hand_quats"
BETAS = "betas"

MAX_FRAMES = 10_000_000
"""Longest sequence that is believed: 92 hours."""

MAX_CHUNK_BYTES = 16 << 20
"""Largest chunk that is read (EgoAllo's hold 32 frames, at most 15 kB): reading one number costs a whole chunk."""

_COLUMNS = {
    field: (start, start + math.prod(shape))
    for (field, shape), start in zip(
        FIELDS.items(), np.cumsum([0, *(math.prod(shape) for shape in FIELDS.values())]).tolist()
    )
}


def row_width(hands: bool) -> int:
    """Numbers of one frame in memory: 246 with fingers, 126 without (the fingers come last)."""
    return _COLUMNS[HANDS][1 if hands else 0]


def columns(field: str) -> slice:
    """Where a field lies in a frame's numbers."""
    return slice(*_COLUMNS[field])


def fields_of(hands: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The per-frame datasets of a sequence and their shapes."""
    return ((field, shape) for field, shape in FIELDS.items() if hands or field != HANDS)


def check_dataset(h5py: ModuleType, where: str, dataset: Any, shape: tuple[int, ...]) -> None:
    """Refuse a dataset that isn't plain numbers of the right shape lying wholly in this file.

    Args:
        h5py: the package, which is optional.
        where: file, sequence and dataset, for messages.
        dataset: h5py's low-level dataset.
        shape: what its shape must be.
    Raises:
        InputError: see above; also chunks of absurd size, filters other than HDF5's own compression, and data that was
            declared but never written.
    """
    if not isinstance(dataset, h5py.h5d.DatasetID):
        raise InputError(f"{where} is not a dataset; write the file again with EgoAllo's layout")
    if tuple(dataset.shape) != shape:
        raise InputError(f"{where} must have shape {shape}, got {tuple(dataset.shape)}")
    kind = dataset.get_type()
    if kind.get_class() != h5py.h5t.FLOAT or kind.get_size() not in (4, 8):
        raise InputError(f"{where} must hold float32 numbers, got {dataset.dtype}")
    creation = dataset.get_create_plist()
    layout = creation.get_layout()
    if layout == h5py.h5d.VIRTUAL or creation.get_external_count():
        raise InputError(f"{where} takes its data from other files, which is not followed; copy the data into one file")
    wanted = math.prod(shape) * kind.get_size()
    if layout != h5py.h5d.CHUNKED:
        complete = dataset.get_storage_size() >= wanted
    else:
        chunk = creation.get_chunk()
        if math.prod(chunk) * kind.get_size() > MAX_CHUNK_BYTES:
            raise InputError(
                f"{where} has chunks of {chunk} numbers; larger ones than {MAX_CHUNK_BYTES >> 20} MiB are not read. "
                f"Write the file again with chunks of 32 frames"
            )
        filters = {creation.get_filter(number)[0] for number in range(creation.get_nfilters())}
        if filters - {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, _LZF}:
            raise InputError(
                f"{where} is compressed by a plug-in, which is not loaded; write the file again with gzip or without "
                "compression"
            )
        if filters:
            complete = dataset.get_num_chunks() == math.prod(-(-size // part) for size, part in zip(shape, chunk))
        else:
            complete = dataset.get_storage_size() >= wanted
    if not complete:
        raise InputError(
            f"{where} declares {wanted:,} bytes of which the file holds {dataset.get_storage_size():,}: it was never "
            "written to its end; write the file again"
        )


_LZF = 32000
"""HDF5's registered number of the filter that h5py brings."""


def check_values(where: str, rows: np.ndarray, first: int, hands: bool) -> None:
    """Refuse frames ``(F, C)`` with numbers that are no motion. ``first`` is the number of the first of them.

    Raises:
        InputError: NaN or infinity, quaternions that are not unit, contacts outside [0, 1]; with the first bad frame.
    """
    finite = np.isfinite(rows)
    if not finite.all():
        frame, column = (int(i) for i in np.argwhere(~finite)[0])
        field = next(name for name, (start, stop) in _COLUMNS.items() if start <= column < stop)
        raise InputError(
            f"{where}: {field} is not finite (NaN or infinity) at frame {first + frame}; leave this sequence out of "
            "the list of files, or prepare it again"
        )
    for field, shape in fields_of(hands):
        part = rows[:, columns(field)].reshape(len(rows), *shape)
        if field == "contacts":
            outside = (part < 0) | (part > 1)
            if outside.any():
                frame = int(np.argwhere(outside)[0][0])
                raise InputError(
                    f"{where}: contacts must lie in [0, 1], got {part.min():.3g} to {part.max():.3g} (first at frame "
                    f"{first + frame})"
                )
            continue
        quats = part[..., :4]
        length = np.sqrt(np.einsum("...i,...i->...", quats, quats))
        off = np.abs(length - 1) > QUATERNION_TOLERANCE
        if off.any():
            place = tuple(int(i) for i in np.argwhere(off)[0])
            joint = f", joint {place[1]}" if len(place) > 1 else ""
            raise InputError(
                f"{where}: {field} must hold unit quaternions (w, x, y, z); at frame {first + place[0]}{joint} the "
                f"length is {length[place]:.4f}. Normalise them, and check the order (wxyz, not xyzw)"
            )


def check_betas(where: str, betas: np.ndarray) -> None:
    """Refuse shape numbers ``(1, 16)`` that are not finite."""
    assert betas.shape == (1, NUM_BETAS)
    if not np.isfinite(betas).all():
        raise InputError(
            f"{where}: betas are not finite (NaN or infinity); leave this sequence out of the list of files"
        )
