"""Results of a long job while it goes on: on the disk, so that memory stays bounded and an interrupted job continues.

Beside the file to be written stands a hidden folder with one array for each of the file's, written chunk by chunk, and
a note of which chunks are whole. A later call with the same work goes on there; one with other work begins anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgrpo.errors import InputError
from mgrpo.infer.output import PER_SAMPLE
from mgrpo.npz import read_npz, write_npz
from mgrpo.storage import FileLock, atomic_write_json, make_folder, read_json, remove_folder, storage_error

_PLAN, _DONE, _CARRY = "plan.json", "done.json", "carry.npz"


def fingerprint(parts: Iterable[Any]) -> str:
    """A hash of everything that determines a result: plain values, arrays, tensors."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.detach().to("cpu").contiguous().numpy()
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()


class DiskArrays(Mapping[str, np.ndarray]):
    """Arrays in a folder, each mapped anew when it is asked for: one that is kept open keeps all that was read or
    written of it in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in PER_SAMPLE:
            raise KeyError(name)
        return np.lib.format.open_memmap(self._folder / f"{name}.npy", mode="r+")

    def __iter__(self) -> Iterator[str]:
        return iter(PER_SAMPLE)

    def __len__(self) -> int:
        return len(PER_SAMPLE)


class PartialResult:
    """The arrays of a file in the making. A context manager; holds a lock against a second process."""

    def __init__(self, out: Path, work: str, samples: int, frames: int) -> None:
        """
        Args:
            out: the file that will be written from it.
            work: :func:`fingerprint` of the work.
            samples, frames: S and T of the arrays.
        Raises:
            InputError: another process is at it.
            StorageError: the disk refuses.
        """
        self.folder = out.parent / f".{out.name}.partial"
        self._shape = (samples, frames)
        self._work = work
        make_folder(out.parent)
        self._lock = FileLock(out.parent / f".{out.name}.lock", str(out), "Wait for it to end, or give another --out.")
        self.chunks: list[tuple[int, int]] = []
        """Stretch and number of the chunks that are whole, in order."""
        self.carry: Tensor | None = None
        """States that the last of them left for the next one."""
        try:
            self._open()
        except BaseException:
            self._leave()
            raise

    def _open(self) -> None:
        plan = {"work": self._work, "samples": self._shape[0], "frames": self._shape[1]}
        if self.folder.exists() and not self._is_ours(plan):
            remove_folder(self.folder)
        if not self.folder.exists():
            make_folder(self.folder)
            self._allocate()
            atomic_write_json(self.folder / _PLAN, plan)
        if (self.folder / _DONE).exists():
            done = read_json(self.folder / _DONE, "unfinished result")
            self.chunks = [(int(stretch), int(number)) for stretch, number in done["chunks"]]
            if done["carry"]:
                carry = self.folder / done["carry"]
                self.carry = torch.from_numpy(read_npz(carry, "unfinished result", ["states"])["states"])

    def _is_ours(self, plan: Mapping[str, Any]) -> bool:
        try:
            return read_json(self.folder / _PLAN, "unfinished result") == plan
        except InputError:
            return False

    def _allocate(self) -> None:
        try:
            for name, tail in PER_SAMPLE.items():
                path = self.folder / f"{name}.npy"
                array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(*self._shape, *tail))
                array.flush()
                del array
                _reserve(path)
        except OSError as error:
            raise storage_error("write", self.folder, error) from error

    def put(self, first: int, arrays: Mapping[str, np.ndarray], chunk: tuple[int, int], carry: Tensor | None) -> None:
        """Store a chunk from frame ``first`` on: on the disk before it counts. Raises StorageError."""
        try:
            for name, stored in self.arrays.items():
                stored[:, first : first + arrays[name].shape[1]] = arrays[name]
                stored.flush()  # type: ignore[attr-defined]
        except OSError as error:
            raise storage_error("write", self.folder, error) from error
        name = ""
        if carry is not None:
            name = f"{chunk[0]}-{chunk[1]}-{_CARRY}"
            write_npz(self.folder / name, {"states": carry.detach().to("cpu").numpy()})
        self.chunks.append(chunk)
        self.carry = carry
        atomic_write_json(self.folder / _DONE, {"chunks": [list(one) for one in self.chunks], "carry": name})
        for old in self.folder.glob(f"*-{_CARRY}"):
            if old.name != name:
                old.unlink(missing_ok=True)

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """The arrays, on the disk."""
        return DiskArrays(self.folder)

    def drop(self) -> None:
        """Delete the folder: the file is written, or nothing was done yet."""
        remove_folder(self.folder)

    def __enter__(self) -> PartialResult:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        """Let go; where nothing was done, leave nothing."""
        if not self.chunks and self.folder.exists():
            self.drop()
        (self.folder.parent / f"{self.folder.name.removesuffix('.partial')}.lock").unlink(missing_ok=True)
        self._lock.release()


def _reserve(path: Path) -> None:
    """Take the file's whole size on the disk: writing to a mapped page that finds no room would end the process without
    a word. Raises OSError where there is no room now."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
