"""Finished work of a preparation, one file a recording, so that a run that was killed goes on where it was.

Parts lie in a folder beside the output. Each is written under a temporary name and renamed, and carries a key made from
the settings, the recording's name and its file's size and time of change: another setting or a newer file makes a part
worthless, and it is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mgrpo.data.amass.process import PreparedClip
from mgrpo.errors import InputError

try:
    import fcntl
except ImportError:  # no file locks of this kind on Windows: two processes with one output are not noticed there
    fcntl = None  # type: ignore[assignment]

_SUFFIX = ".parts"
_TEMPORARY = ".tmp-"


class PartInfo(NamedTuple):
    """What a part says about its recording without its arrays being read."""

    skipped: str | None
    """Why nothing of it is used; None where something is."""
    frames: tuple[int, ...]
    """Frames at 30 fps of the clip and its mirror image; 0 for one that was left out."""
    floor_found: bool
    """Whether there was anything to find the floor from."""


def parts_folder(out: Path) -> Path:
    """The folder beside the output that holds its parts."""
    return out.with_name(out.name + _SUFFIX)


def part_path(folder: Path, name: str) -> Path:
    """The part of a recording; names may have any characters and length."""
    return folder / f"{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:40]}.safetensors"


def part_key(settings: Mapping[str, Any], name: str, stamp: tuple[int, int]) -> str:
    """What a part must have been made from to be used again."""
    return hashlib.sha256(json.dumps([settings, name, stamp], sort_keys=True).encode()).hexdigest()


def write_part(path: Path, key: str, clips: list[PreparedClip | None], skipped: str | None) -> PartInfo:
    """Write what came of a recording. An OSError of the disk is passed on; nothing half-written stays."""
    kept = [clip for clip in clips if clip is not None]
    info = PartInfo(
        skipped,
        tuple(0 if clip is None else clip.frames for clip in clips),
        all(clip.floor_height is not None for clip in kept),
    )
    arrays = {
        f"{index}/{name}": array
        for index, clip in enumerate(clips)
        if clip is not None
        for name, array in clip.arrays.items()
    }
    data = save(arrays, metadata={"key": key, "info": json.dumps(info._asdict())})
    replace_file(path, data, path.parent / f"{_TEMPORARY}{path.name}")
    return info


def read_part_info(path: Path, key: str) -> PartInfo | None:
    """What a part says; None where there is none, or it was made from something else, or is damaged."""
    try:
        with safe_open(path, "numpy") as part:
            metadata = part.metadata() or {}
    except (OSError, SafetensorError):
        return None
    if metadata.get("key") != key:
        return None
    try:
        info = json.loads(metadata["info"])
        return PartInfo(info["skipped"], tuple(int(count) for count in info["frames"]), bool(info["floor_found"]))
    except (KeyError, TypeError, ValueError):
        return None


def read_part(path: Path) -> list[dict[str, np.ndarray]]:
    """The datasets of the clip and of its mirror image; an empty dictionary for one that was left out."""
    result: list[dict[str, np.ndarray]] = [{}, {}]
    try:
        with safe_open(path, "numpy") as part:
            for entry in sorted(part.keys()):
                index, _, name = entry.partition("/")
                result[int(index)][name] = part.get_tensor(entry)
    except (OSError, SafetensorError, ValueError, IndexError) as error:
        raise InputError(f"{path}: this part is damaged ({error}); delete it and run the same command again") from error
    return result


def replace_file(path: Path, data: bytes, temporary: Path) -> None:
    """Write a file in one step: a reader, or the next run, sees the old one or the whole new one. ``temporary`` is
    where it grows, on the same disk."""
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


class PartsFolder:
    """The parts of one output, locked for this process; a context manager."""

    def __init__(self, out: Path) -> None:
        self.path = parts_folder(out)
        """Where the parts lie."""
        self._lock: int | None = None

    def __enter__(self) -> PartsFolder:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        if fcntl is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._close()
                raise InputError(
                    f"{self.path} is in use by another process that prepares the same output; wait for it to end"
                ) from None
            except OSError:
                pass  # some network disks have no locks
        for left in self.path.glob(f"{_TEMPORARY}*"):
            left.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def temporary(self, what: str) -> Path:
        """A path in the folder for something that grows; what a killed run leaves there, the next one removes."""
        return self.path / f"{_TEMPORARY}{what}"

    def remove(self) -> None:
        """Delete the parts: the output is complete. A kill in the middle leaves parts that the next run uses."""
        shutil.rmtree(self.path)
