"""One HDF5 file in EgoAllo's layout: which sequences it holds, and their numbers. Links out of the file are never
followed, and nothing is allocated before its declared size was checked against what the file holds."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from mgrpo.body.model import NUM_BETAS
from mgrpo.data.hdf5.layout import (
    BETAS,
    FIELDS,
    HANDS,
    MAX_FRAMES,
    check_betas,
    check_dataset,
    check_values,
    columns,
    fields_of,
    row_width,
)
from mgrpo.errors import InputError

SUFFIXES = (".hdf5", ".h5")

_MAX_DEPTH, _MAX_LINKS = 24, 4_000_000
_MAX_LIST_BYTES = 64 << 20
_ROOT = "T_world_root"

Progress = Callable[[int, int], None]
"""Told how many of how many sequences are done."""


class SequenceInfo(NamedTuple):
    """A sequence of a file."""

    name: str
    """Path of its group, such as ``ACCAD/s1/walk_poses.npz``."""
    frames: int
    hands: bool
    """Whether the fingers' rotations are known."""


def require_h5py() -> ModuleType:
    """The package h5py, loaded when a file is first opened. Raises InputError where it can't be imported."""
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            f"HDF5 files need the package h5py, which can't be imported ({error}); install it with: pip install h5py"
        ) from error
    return h5py


def is_hdf5(path: str | Path) -> bool:
    """Whether a path is that of an HDF5 file, by its ending."""
    return Path(path).suffix.lower() in SUFFIXES


class Hdf5File:
    """A file that is read from any thread and from any process: each process opens it for itself, at its first read."""

    def __init__(self, path: str | Path) -> None:
        """Opens the file once. Raises InputError where it is missing, no HDF5 file, damaged or cut off."""
        self.path = Path(path).expanduser()
        self._reset()
        with self._guard(), self._reading(""):
            self._root()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._reset()

    def _reset(self) -> None:
        self._handle: Any = None
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._folders: dict[str, Any] = {}
        self._checked: set[str] = set()
        self._values: dict[str, np.ndarray] = {}  # frames whose values were checked, by sequence

    def close(self) -> None:
        """Close the file; reading opens it again."""
        with self._guard():
            self._folders.clear()
            if self._handle is not None:
                self._handle.close()
                self._handle = None

    def _guard(self) -> threading.RLock:
        """The lock of this process. After a fork everything is new: the handle is a copy, and the parent's lock may be
        held by a thread that is not here, so it is not even asked for."""
        if self._pid != os.getpid():
            inherited = self._handle
            self._reset()
            if inherited is not None:
                inherited.close()
        return self._lock

    def _root(self) -> Any:
        """The file's top group, opened in this process."""
        if self._handle is None:
            h5py = require_h5py()
            if not self.path.exists():
                raise InputError(f"{self.path}: no such file; expected an HDF5 file of motion (EgoAllo's layout)")
            if self.path.is_dir():
                raise InputError(f"{self.path}: expected an HDF5 file of motion, got a folder")
            if not h5py.is_hdf5(str(self.path)):
                raise InputError(f"{self.path}: not an HDF5 file, or its beginning is damaged; get or write it again")
            try:
                self._handle = h5py.File(self.path, "r")
            except OSError as error:
                if "lock" not in str(error):
                    raise
                # Many network file systems have no locks, and we only read. Not at once: who has the file open in this
                # process must have said the same about locks.
                self._handle = h5py.File(self.path, "r", locking=False)
        return self._handle.id

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """What HDF5 says about damage, as an InputError with the file's and the sequence's name."""
        where = f"{self.path}: {name}" if name else f"{self.path}"
        try:
            yield
        except InputError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError, UnicodeError) as error:
            text = str(error).strip("'\"")
            kind = "the file is cut off" if "truncated" in text else "the file can't be read or is damaged"
            raise InputError(f"{where}: {kind} ({text}); get or write it again") from error

    # What there is

    def sequence_names(self) -> list[str]:
        """Names of all groups that hold ``T_world_root``, sorted. Links other than those within the file's tree are
        passed over."""
        h5py = require_h5py()
        found: list[str] = []
        with self._guard(), self._reading(""):
            root = self._root()
            waiting: list[tuple[str, Any]] = [("", h5py.h5g.open(root, b"/"))]
            seen, links = {_address(h5py, waiting[0][1])}, 0
            while waiting:
                prefix, group = waiting.pop()
                if prefix and group.links.exists(_ROOT.encode()):
                    found.append(prefix)
                    continue
                for key in group:
                    links += 1
                    name = f"{prefix}/{key.decode()}" if prefix else key.decode()
                    if links > _MAX_LINKS or name.count("/") > _MAX_DEPTH:
                        raise InputError(f"{self.path}: more than {_MAX_LINKS:,} entries, or folders {_MAX_DEPTH} deep")
                    if group.links.get_info(key).type != h5py.h5l.TYPE_HARD:
                        continue
                    child = h5py.h5o.open(group, key)
                    if not isinstance(child, h5py.h5g.GroupID):
                        continue
                    # A group may be its own grandchild.
                    address = _address(h5py, child)
                    if address not in seen:
                        seen.add(address)
                        waiting.append((name, child))
        return sorted(found)

    def describe(self, name: str) -> SequenceInfo:
        """Length of a sequence, and whether it has fingers; nothing else is looked at.

        Raises:
            InputError: no such group, or one that a link leads to; a dataset missing; a length that can't be.
        """
        h5py = require_h5py()
        with self._guard(), self._reading(name):
            group = self._group(name)
            present = set(group)
            missing = [key for key in (*FIELDS, BETAS) if key.encode() not in present and key != HANDS]
            if missing:
                raise InputError(
                    f"{self.path}: sequence {name} has no {', '.join(missing)}; EgoAllo's layout needs "
                    f"{', '.join(key for key in (*FIELDS, BETAS) if key != HANDS)}"
                )
            dataset = self._child(group, _ROOT, name)
            shape = tuple(dataset.shape) if isinstance(dataset, h5py.h5d.DatasetID) else ()
            if len(shape) != 2 or shape[1] != 7 or not 1 <= shape[0] <= MAX_FRAMES:
                raise InputError(
                    f"{self.path}: {name}/{_ROOT} must be a dataset of shape (frames, 7) with 1 to {MAX_FRAMES:,} "
                    f"frames, got {shape or 'something else'}"
                )
            return SequenceInfo(name, int(shape[0]), HANDS.encode() in present)

    def check(self, info: SequenceInfo) -> None:
        """Check shape, type and storage of the datasets of a sequence, without reading them. Raises InputError for the
        first that is wrong (see :func:`mgrpo.data.hdf5.layout.check_dataset`)."""
        h5py = require_h5py()
        with self._guard(), self._reading(info.name):
            if info.name in self._checked:
                return
            group = self._group(info.name)
            for key, shape in (*((k, (info.frames, *s)) for k, s in fields_of(info.hands)), (BETAS, (1, NUM_BETAS))):
                dataset = self._child(group, key, info.name)
                check_dataset(h5py, f"{self.path}: {info.name}/{key}", dataset, shape)
            self._checked.add(info.name)

    def stored_bytes(self, name: str) -> int:
        """Bytes that all datasets of a sequence take in the file, those that are not read included."""
        h5py = require_h5py()
        with self._guard(), self._reading(name):
            group = self._group(name)
            total = 0
            for key in group:
                if group.links.get_info(key).type == h5py.h5l.TYPE_HARD:
                    child = h5py.h5o.open(group, key)
                    total += child.get_storage_size() if isinstance(child, h5py.h5d.DatasetID) else 0
            return total

    # Reading

    def rows(self, info: SequenceInfo, start: int, stop: int) -> np.ndarray:
        """Frames ``start`` to ``stop`` of a sequence, checked: ``(stop - start, C)`` float32, see
        :func:`mgrpo.data.hdf5.layout.columns`. Raises InputError for damage and for values that are no motion."""
        h5py = require_h5py()
        self.check(info)
        rows = np.empty((stop - start, row_width(info.hands)), np.float32)
        with self._guard(), self._reading(info.name):
            group = self._checked_group(info.name)
            for key, shape in fields_of(info.hands):
                part = np.empty((stop - start, *shape), np.float32)
                dataset = h5py.h5d.open(group, key.encode())
                space = dataset.get_space()
                space.select_hyperslab((start, *(0 for _ in shape)), part.shape)
                dataset.read(h5py.h5s.create_simple(part.shape), space, part)
                rows[:, columns(key)] = part.reshape(stop - start, -1)
        # Values are looked at once: what was read before is read again whenever the cache has no room for it.
        seen = self._values.setdefault(info.name, np.zeros(info.frames, bool))
        if not seen[start:stop].all():
            check_values(f"{self.path}: {info.name}", rows, start, info.hands)
            seen[start:stop] = True
        return rows

    def betas(self, info: SequenceInfo) -> np.ndarray:
        """Shape numbers of a sequence ``(16,)`` float32. Raises InputError for damage and for numbers that are not
        finite."""
        h5py = require_h5py()
        self.check(info)
        betas = np.empty((1, NUM_BETAS), np.float32)
        with self._guard(), self._reading(info.name):
            dataset = h5py.h5d.open(self._checked_group(info.name), BETAS.encode())
            dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, betas)
        check_betas(f"{self.path}: {info.name}", betas)
        return betas[0]

    def _checked_group(self, name: str) -> Any:
        """The group of a sequence that :meth:`check` has seen: no step to it, nor a dataset in it, is a link."""
        self._root()
        folder, _, last = name.rpartition("/")
        parent = self._folders.get(folder)
        return self._group(name) if parent is None else require_h5py().h5g.open(parent, last.encode())

    def _group(self, name: str) -> Any:
        """The group of a sequence, every step of its path checked."""
        h5py = require_h5py()
        root = self._root()
        folder, _, last = name.rpartition("/")
        parent = self._folders.get(folder)
        if parent is None:
            parent, walked = h5py.h5g.open(root, b"/"), ""
            for part in folder.split("/") if folder else ():
                walked = f"{walked}/{part}" if walked else part
                parent = self._child(parent, part, name)
                if not isinstance(parent, h5py.h5g.GroupID):
                    raise InputError(f"{self.path}: {walked} is not a group, so there is no sequence {name}")
            self._folders[folder] = parent
        group = self._child(parent, last, name)
        if not isinstance(group, h5py.h5g.GroupID):
            raise InputError(f"{self.path}: {name} is not a group; a sequence is a group of datasets")
        return group

    def _child(self, group: Any, key: str, name: str) -> Any:
        h5py = require_h5py()
        code = key.encode()
        if not group.links.exists(code):
            raise InputError(f"{self.path}: there is no {key} on the way to sequence {name}")
        if group.links.get_info(code).type != h5py.h5l.TYPE_HARD:
            raise InputError(
                f"{self.path}: {key} of sequence {name} is a soft or external link, which is not followed; copy the "
                "data into the file"
            )
        return h5py.h5o.open(group, code)


def _address(h5py: ModuleType, group: Any) -> tuple[int, Any]:
    info = h5py.h5o.get_info(group)
    return info.fileno, info.addr


def read_file_list(path: str | Path) -> list[str]:
    """Names of sequences from a text file, one a line, in its order.

    Raises:
        InputError: missing, too large, not UTF-8 text, no names, a name twice, or one that leads out of the file's
            tree.
    """
    path = Path(path).expanduser()
    try:
        if path.stat().st_size > _MAX_LIST_BYTES:
            raise InputError(f"{path}: a list of sequences is at most {_MAX_LIST_BYTES >> 20} MiB, this is larger")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"{path}: the list of sequences can't be read: {reason}") from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise InputError(f"{path}: the list of sequences is empty; leave it out to use all groups of the file")
    seen: set[str] = set()
    for number, name in enumerate(names, start=1):
        if name in seen:
            raise InputError(f"{path}: {name} is listed twice")
        if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
            raise InputError(f"{path}: entry {number} ({name[:80]!r}) is not the name of a group")
        seen.add(name)
    return names
