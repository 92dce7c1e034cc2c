"""Sequences of HDF5 files in EgoAllo's layout as windows: read in blocks as needed, kept in a cache of bounded size."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mgrpo.body.model import NUM_BETAS, BodyModel
from mgrpo.body.placement import cpf_of, place_on_root
from mgrpo.data.amass.names import subset_of
from mgrpo.data.augment import turned_root
from mgrpo.data.clip import MIN_FRAMES, MotionClip
from mgrpo.data.hdf5.cache import BlockCache, CacheCounts
from mgrpo.data.hdf5.file import SUFFIXES, Hdf5File, SequenceInfo, is_hdf5, read_file_list
from mgrpo.data.hdf5.layout import FIELDS, HANDS, columns, fields_of, row_width
from mgrpo.data.indexing import ItemIndex, Slice
from mgrpo.data.windows import MotionWindows
from mgrpo.errors import InputError, in_file
from mgrpo.geometry import quat_to_rotmat

FPS = 30.0
"""Frames per second of the layout."""

BLOCK_FRAMES = 128
"""Frames that are read and kept together, four of EgoAllo's chunks. With longer blocks a cache that holds a part of the
data only is slower (a miss reads more than its window), with shorter ones a full cache is."""

CACHE_MB = 1024
"""Default size of the cache, MiB."""

MAX_CLIP_BYTES = 1 << 30
"""Most that :func:`load_hdf5_clips` puts into memory."""

BODY_TOLERANCE_M = 0.01
"""How far the eyes of the body may be from those that the file was made with, metres."""


class StoredSequence(NamedTuple):
    """A sequence and the file that it is in."""

    file: int
    info: SequenceInfo

    @property
    def name(self) -> str:
        """Name of its group."""
        return self.info.name

    @property
    def frames(self) -> int:
        """Its length."""
        return self.info.frames

    @property
    def subset(self) -> str:
        """AMASS's subset, or the first folder of the name."""
        return subset_of(self.info.name)


class Hdf5Motion:
    """Sequences of one or more files. Several may share files and cache, as the parts of a split do.

    Everything may be used from several threads and after a fork; a pickled one opens its files anew and starts with an
    empty cache.
    """

    def __init__(self, files: Sequence[Hdf5File], sequences: Sequence[StoredSequence], cache_bytes: int) -> None:
        """See :func:`open_hdf5`. ``sequences`` give the order that numbers slices and items."""
        self.files, self.sequences = tuple(files), tuple(sequences)
        self._cache_bytes = cache_bytes
        # 64 bytes a sequence: kept beside the cache, which would otherwise read them for every window.
        self._betas: dict[tuple[int, str], np.ndarray] = {}
        self._cache, self._pid = BlockCache(cache_bytes), os.getpid()

    def __getstate__(self) -> dict[str, object]:
        return {"files": self.files, "sequences": self.sequences, "_cache_bytes": self._cache_bytes, "_betas": {}}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._cache, self._pid = BlockCache(self._cache_bytes), os.getpid()

    def __len__(self) -> int:
        return len(self.sequences)

    def __repr__(self) -> str:
        return f"Hdf5Motion({len(self)} sequences, {sum(self.frames)} frames, {len(self.files)} file(s))"

    @property
    def frames(self) -> list[int]:
        """Frames of each sequence."""
        return [sequence.frames for sequence in self.sequences]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sequences, in order."""
        return tuple(sequence.name for sequence in self.sequences)

    @property
    def hands(self) -> bool:
        """Whether any sequence has fingers."""
        return any(sequence.info.hands for sequence in self.sequences)

    @property
    def cache_counts(self) -> CacheCounts:
        """What the cache has done in this process, for all parts that share it."""
        return self._memory().counts

    def part(self, keep: Callable[[StoredSequence], bool]) -> Hdf5Motion:
        """The sequences for which ``keep`` holds, in the same order, with the same files and cache."""
        chosen = Hdf5Motion(self.files, [sequence for sequence in self.sequences if keep(sequence)], self._cache_bytes)
        chosen._cache, chosen._pid, chosen._betas = self._memory(), self._pid, self._betas
        return chosen

    def check(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Check shape, type and storage of every dataset that will be read, so that nothing is found wrong hours later
        but values. Raises InputError for the first that is wrong."""
        for done, sequence in enumerate(self.sequences, start=1):
            self.files[sequence.file].check(sequence.info)
            if progress is not None:
                progress(done, len(self))

    def _memory(self) -> BlockCache:
        if self._pid != os.getpid():
            # After a fork the lock of the parent's cache may be held by a thread that is not here.
            self._cache, self._pid = BlockCache(self._cache_bytes), os.getpid()
        return self._cache

    # Reading

    def rows(self, sequence: int, start: int, stop: int) -> np.ndarray:
        """Frames ``start`` to ``stop`` of a sequence, ``(stop - start, C)`` float32; :func:`columns` says what is
        where. Not to be written to. Raises InputError for damage and for values that are no motion."""
        entry = self.sequences[sequence]
        cache, file = self._memory(), self.files[entry.file]
        if not cache.limit:
            return file.rows(entry.info, start, stop)
        parts = []
        for block in range(start // BLOCK_FRAMES, (stop - 1) // BLOCK_FRAMES + 1):
            first = block * BLOCK_FRAMES
            rows = cache.get(
                (entry.file, entry.name, block),
                lambda first=first: file.rows(entry.info, first, min(first + BLOCK_FRAMES, entry.frames)),
            )
            parts.append(rows[max(start - first, 0) : stop - first])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def betas(self, sequence: int) -> np.ndarray:
        """Shape numbers ``(16,)`` of a sequence. Raises InputError as :meth:`rows`."""
        entry = self.sequences[sequence]
        key = (entry.file, entry.name)
        if key not in self._betas:
            self._betas[key] = self.files[entry.file].betas(entry.info)
        return self._betas[key]

    def item(self, chosen: Slice, length: int) -> dict[str, np.ndarray]:
        """A slice as EgoAllo's reader gives it: arrays of ``length`` frames under the names of the layout, filled up
        with the last frame, ``betas (length, 16)`` repeated on every frame, and ``mask (length,)`` bool, True on real
        frames (facts: section E). Fields that follow from the others are left out."""
        rows = self._padded(chosen, length)
        hands = self.sequences[chosen.sequence].info.hands
        item = {field: rows[:, columns(field)].reshape(length, *shape) for field, shape in fields_of(hands)}
        item["betas"] = np.repeat(self.betas(chosen.sequence)[None], length, 0)
        item["mask"] = np.arange(length) < chosen.frames
        return item

    def _padded(self, chosen: Slice, length: int) -> np.ndarray:
        rows = self.rows(chosen.sequence, chosen.start, chosen.start + chosen.frames)
        return rows if chosen.frames == length else rows[np.minimum(np.arange(length), chosen.frames - 1)]

    def windows(
        self, slices: Sequence[Slice], length: int, body: BodyModel, *, yaw: Tensor | None = None
    ) -> MotionWindows:
        """Windows of ``length`` frames with the stored poses of head and pelvis, joints by forward kinematics.

        Args:
            slices: one for each window; frames that are missing to ``length`` repeat the last and are masked out.
            length: frames per window, ``T``.
            body: the body that the file was made with; see :meth:`check_body`.
            yaw: turn each window about the world's up axis, radians ``(B,)``.
        Raises:
            InputError: no slices; damage, or values that are no motion.
        """
        if not slices:
            raise InputError("Hdf5Motion.windows(): no slices to make windows of")
        hands = self.hands
        arrays = {
            name: np.empty((len(slices), length, math.prod(shape)), np.float32) for name, shape in fields_of(hands)
        }
        betas = np.empty((len(slices), NUM_BETAS), np.float32)
        for row, chosen in enumerate(slices):
            frames = self._padded(chosen, length)
            known = self.sequences[chosen.sequence].info.hands
            for name, array in arrays.items():
                if known or name != HANDS:
                    array[row] = frames[:, columns(name)]
                else:  # straight
                    array[row], array[row, :, ::4] = 0.0, 1.0
            betas[row] = self.betas(chosen.sequence)
        field = {name: torch.from_numpy(array) for name, array in arrays.items()}
        T_world_root, T_world_cpf = field["T_world_root"], field["T_world_cpf"]
        if yaw is not None:
            T_world_root, T_world_cpf = turned_root(T_world_root, yaw), turned_root(T_world_cpf, yaw)
        small, shape = body.body_only(), torch.from_numpy(betas)
        body_rotmats = quat_to_rotmat(field["body_quats"].unflatten(-1, FIELDS["body_quats"]))
        placed = place_on_root(small, body_rotmats, shape[:, None], T_world_root)
        real = torch.tensor([chosen.frames for chosen in slices])
        return MotionWindows(
            T_world_cpf=T_world_cpf,
            T_cpf_tm1_cpf_t=field["T_cpf_tm1_cpf_t"],
            T_world_root=placed.T_world_root,
            body_rotmats=body_rotmats,
            betas=shape,
            contacts=field["contacts"],
            joints=placed.joints,
            R_world_joint=placed.R_world_joint,
            mask=torch.arange(length) < real[:, None],
            names=tuple(self.sequences[chosen.sequence].name for chosen in slices),
            hand_rotmats=quat_to_rotmat(field[HANDS].unflatten(-1, FIELDS[HANDS])) if hands else None,
            padded=any(chosen.frames < length for chosen in slices),
        )

    def clip(self, sequence: int) -> MotionClip:
        """A whole sequence as a clip. Its first frame loses what the head did just before, which a clip doesn't hold.
        Raises InputError as :meth:`rows`, and for fewer than two frames."""
        entry = self.sequences[sequence]
        path = self.files[entry.file].path
        if entry.frames < MIN_FRAMES:
            raise InputError(
                f"{path}: sequence {entry.name} has {entry.frames} frame(s); a clip needs at least {MIN_FRAMES}"
            )
        item = self.item(Slice(sequence, 0, entry.frames), entry.frames)
        fields = ("T_world_root", "body_quats", "contacts", *(("hand_quats",) if entry.info.hands else ()))
        tensors = {field: torch.from_numpy(np.array(item[field])) for field in fields}
        with in_file(path):
            return MotionClip(name=entry.name, fps=FPS, betas=torch.from_numpy(item["betas"][0].copy()), **tensors)

    def check_body(self, body: BodyModel, sequences: int = 8) -> None:
        """Refuse a body that is not the one that the files were made with: on another skeleton the joints would not
        fit the stored pose of the head.

        Looks at the first frame of up to ``sequences`` sequences, spread over all. Raises InputError where the eyes are
        more than 1 cm from the stored ones.
        """
        rows = sorted({round(row) for row in np.linspace(0, len(self) - 1, min(sequences, len(self)))})
        windows = self.windows([Slice(row, 0, 1) for row in rows], 1, body)
        small = body.body_only()
        placed = place_on_root(small, windows.body_rotmats, windows.betas[:, None], windows.T_world_root)
        distance = (cpf_of(small, placed, windows.betas[:, None])[..., 4:] - windows.T_world_cpf[..., 4:]).norm(dim=-1)
        worst = int(distance.argmax())
        if float(distance.max()) > BODY_TOLERANCE_M:
            raise InputError(
                f"{self.files[self.sequences[rows[worst]].file].path}: made with another body than '{body.name}': the "
                f"eyes of {windows.names[worst]} differ by {100 * float(distance[worst]):.1f} cm. Name its SMPL-H "
                "model as body (EgoAllo's is SMPL-H neutral)"
            )


def deterministic_slices(motion: Hdf5Motion, length: int) -> list[Slice]:
    """Windows of ``length`` frames as EgoAllo's evaluation takes them: the ``deterministic`` slices of one frame more,
    the first of which only says where the head was before (facts: section G, Setting). Raises InputError where no
    sequence has ``length + 1`` frames."""
    index = ItemIndex(motion.frames, length + 1)
    items = (index.deterministic(item) for item in range(len(index)))
    return [Slice(item.sequence, item.start + 1, length) for item in items]


def strided_slices(motion: Hdf5Motion, length: int, stride: int) -> list[Slice]:
    """All windows of ``length`` frames that start at multiples of ``stride``, sequence after sequence; shorter
    sequences give none. Raises InputError where none has ``length`` frames."""
    if length < 1 or stride < 1:
        raise InputError(f"strided_slices(): length and stride must be at least 1 frame, got {length} and {stride}")
    index = ItemIndex(motion.frames, length)
    return [
        Slice(int(row), start, length)
        for row, frames in zip(index.sequences, index.frames)
        for start in range(0, int(frames) - length + 1, stride)
    ]


def hdf5_files(path: str | Path) -> list[Path]:
    """The HDF5 files that a path means: itself, or all in a folder that has some (at its top, sorted); none for
    anything else. Raises InputError for a folder of HDF5 and npz files: one kind would be passed over."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return [path] if is_hdf5(path) else []
    files = sorted(file for file in path.iterdir() if is_hdf5(file) and file.is_file())
    if files and next(path.rglob("*.npz"), None) is not None:
        raise InputError(f"{path}: the folder holds both HDF5 and npz files; name the HDF5 file {files[0].name} itself")
    return files


def default_file_list(path: Path) -> Path | None:
    """The list that belongs to a file, as EgoAllo names them: ``x.hdf5`` and ``x_files.txt``; None: there is none."""
    candidate = path.with_name(f"{path.stem}_files.txt")
    return candidate if candidate.is_file() else None


def open_hdf5(
    files: str | Path | Sequence[str | Path],
    *,
    file_list: str | Path | None = None,
    sort: bool = True,
    cache_mb: float = CACHE_MB,
    progress: Callable[[int, int], None] | None = None,
) -> Hdf5Motion:
    """Open HDF5 files in EgoAllo's layout.

    Args:
        files: one or more files, or a folder of them.
        file_list: text file with the names of the sequences to use, each in one of the files; None: the list beside
            each file (:func:`default_file_list`) where there is one, otherwise all groups; ``"none"``: all groups.
        sort: sort the names. A list is written in an order that changes from run to run; False keeps it, which gives
            the items that EgoAllo has with the same list.
        cache_mb: memory for what was read, MiB; 0: none.
        progress: told how many of how many sequences are known.
    Raises:
        InputError: a file or list that can't be used, a name that is missing or stands in two files, no sequences.
    """
    if isinstance(files, (str, Path)):
        paths = hdf5_files(files) or [Path(files)]
    else:
        paths = [Path(file) for file in files]
    if not paths:
        raise InputError(f"no HDF5 files to open; give files ending in {' or '.join(SUFFIXES)}")
    if cache_mb < 0:
        raise InputError(f"the cache must have at least 0 MiB, got {cache_mb}")
    opened = [Hdf5File(path) for path in paths]
    listed: list[tuple[int, str]] = []
    if file_list is not None and str(file_list) != "none":
        present = [set(file.sequence_names()) for file in opened] if len(opened) > 1 else [None]
        for name in read_file_list(file_list):
            # With one file, looking a name up in it says best what is wrong.
            homes = [number for number, names in enumerate(present) if names is None or name in names]
            if not homes:
                raise InputError(f"{file_list}: {name} is in none of the files {', '.join(map(str, paths))}")
            listed += [(number, name) for number in homes]
    else:
        for number, file in enumerate(opened):
            beside = default_file_list(file.path) if file_list is None else None
            names = file.sequence_names() if beside is None else read_file_list(beside)
            listed += [(number, name) for name in names]
    if not listed:
        raise InputError(
            f"{', '.join(map(str, paths))}: no sequence (a group with T_world_root); expected EgoAllo's layout"
        )
    home: dict[str, int] = {}
    for number, name in listed:
        if name in home:
            raise InputError(f"sequence {name} is in both {paths[home[name]]} and {paths[number]}; names must differ")
        home[name] = number
    sequences = []
    for done, (number, name) in enumerate(sorted(listed, key=lambda entry: entry[1]) if sort else listed, start=1):
        sequences.append(StoredSequence(number, opened[number].describe(name)))
        if progress is not None:
            progress(done, len(listed))
    return Hdf5Motion(opened, sequences, int(cache_mb * (1 << 20)))


def load_hdf5_clips(path: str | Path, body: BodyModel) -> list[MotionClip]:
    """All sequences of a small file (or of those in a folder) as clips, for what wants whole clips in memory.

    Raises:
        InputError: more than 1 GiB, another body than the file's, whatever :func:`open_hdf5` refuses.
    """
    motion = open_hdf5(path, cache_mb=0)
    wanted = 4 * sum(entry.frames * row_width(entry.info.hands) for entry in motion.sequences)
    if wanted > MAX_CLIP_BYTES:
        raise InputError(
            f"{path}: {len(motion)} sequences would take {wanted / 2**30:.1f} GiB as clips; this reads files of up to "
            f"{MAX_CLIP_BYTES / 2**30:.0f} GiB. Training and evaluation read a file of any size piece by piece; "
            "elsewhere choose sequences with a shorter list of files"
        )
    motion.check_body(body)
    return [motion.clip(row) for row in range(len(motion))]
