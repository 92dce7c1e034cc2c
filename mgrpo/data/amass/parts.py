"""Finished work of a preparation, one file a recording, so that a run that was killed goes on where it was.

Parts lie in a folder beside the output. Each is whole or absent, and carries a key made from
the settings, the recording's name and its file's size and time of change: another setting or a newer file makes a part
worthless, and it is made again.
"""

from __future__ import annotations

import hashlib
import json
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
from mgrpo.storage import FileLock, remove_leftovers, replacing

_SUFFIX = ".parts"


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
    with replacing(path) as temporary:
        temporary.write_bytes(data)
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


class PartsFolder:
    """The parts of one output, locked for this process; a context manager."""

    def __init__(self, out: Path) -> None:
        self.path = parts_folder(out)
        """Where the parts lie."""
        self._lock: FileLock | None = None

    def __enter__(self) -> PartsFolder:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / ".lock", str(self.path), "It prepares the same output; wait for it to end.")
        try:
            remove_leftovers(self.path)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.release()

    def remove(self) -> None:
        """Delete the parts: the output is complete. A kill in the middle leaves parts that the next run uses."""
        shutil.rmtree(self.path)
