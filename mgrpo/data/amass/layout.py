"""Names in AMASS: subsets under their older and newer names, the base model's splits, and the files of a download.

AMASS renamed several folders, and files of the newer kind end in ``_stageii.npz`` instead of ``_poses.npz``. The HDF5
file uses the older names throughout, because the base model's reader chooses splits by them (facts, section E.1).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from mgrpo.data.amass.names import SPLITS, canonical_subset
from mgrpo.errors import InputError

Split = Literal["train", "val", "test", "test_humor"]

_ENDINGS = ("_poses.npz", "_stageii.npz")
_MIRRORED_ENDING = "_poses_reflect.npz"


def subsets_in(splits: Iterable[Split]) -> tuple[str, ...]:
    """Subsets of some splits by their older names, each once, sorted."""
    return tuple(sorted({name for split in splits for name in SPLITS[split]}))


class SourceFile(NamedTuple):
    """A recording in a download."""

    path: Path
    """Where it is."""
    subset: str
    """Older name of its subset."""
    name: str
    """Name of its group in the HDF5 file: older subset name, folders, and a file name that ends in ``_poses.npz``."""

    @property
    def mirrored_name(self) -> str:
        """Name of the group of its mirror image."""
        return self.name.removesuffix(_ENDINGS[0]) + _MIRRORED_ENDING


class Layout(NamedTuple):
    """What a folder holds."""

    files: tuple[SourceFile, ...]
    """Recordings of the wanted subsets, sorted by name."""
    missing: Mapping[Split, tuple[str, ...]]
    """Subsets of the wanted splits that have no recording here."""
    unused: tuple[str, ...]
    """Folders that belong to no wanted split, by their name in the download."""
    doubles: tuple[SourceFile, ...]
    """Recordings left out because another one has the same name (both endings side by side)."""


def find_recordings(folder: Path, splits: Sequence[Split]) -> Layout:
    """The recordings of some splits below ``folder``, whose folders are subsets of either generation of names.

    Raises:
        InputError: no such folder, no subset in it, a subset under both of its names, or one that can't be listed.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}; give the folder that holds the "
            "unpacked subsets of AMASS (ACCAD, CMU, ...; SMPL+H G)"
        )
    wanted = set(subsets_in(splits))
    places: dict[str, Path] = {}
    unused = []
    for entry in _entries(folder):
        if not entry.is_dir():
            continue
        subset = canonical_subset(entry.name)
        if subset is None or subset not in wanted:
            unused.append(entry.name)
        elif subset in places:
            raise InputError(
                f"{folder}: {places[subset].name} and {entry.name} are two names of the same subset; every clip would "
                "be there twice. Move one of them away"
            )
        else:
            places[subset] = entry
    if not places:
        hint = ""
        if canonical_subset(folder.resolve().name) is not None:
            hint = f" {folder.resolve().name} is a subset itself: give the folder above it."
        raise InputError(
            f"{folder}: none of the subsets of {', '.join(splits)} is here ({', '.join(sorted(wanted))}, or their "
            f"newer names); found: {', '.join(unused[:20]) or 'no folders'}.{hint}"
        )
    chosen: dict[str, SourceFile] = {}
    doubles = []
    for subset, place in sorted(places.items()):
        for path in _walk(place):
            ending = next((ending for ending in _ENDINGS if path.name.endswith(ending)), None)
            if ending is None:
                continue
            inside = path.relative_to(place).as_posix()
            file = SourceFile(path, subset, f"{subset}/{inside.removesuffix(ending)}{_ENDINGS[0]}")
            # "_poses" comes before "_stageii" in the sorted walk, and is what the base model reads
            if file.name in chosen:
                doubles.append(file)
            else:
                chosen[file.name] = file
    filled = {file.subset for file in chosen.values()}
    missing = {split: tuple(name for name in SPLITS[split] if name not in filled) for split in splits}
    files = tuple(chosen[name] for name in sorted(chosen))
    return Layout(files, MappingProxyType(missing), tuple(unused), tuple(doubles))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: can't be listed ({error.strerror or error})") from error


def _walk(folder: Path) -> list[Path]:
    """Files below a folder, sorted; links to folders are not followed, so the walk ends."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: can't be listed ({error.strerror}); mend its permissions") from error

    found = [Path(root, name) for root, _, names in os.walk(folder, onerror=refuse) for name in names]
    return sorted(found)
