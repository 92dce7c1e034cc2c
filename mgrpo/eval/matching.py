"""Which prediction belongs to which truth: files or folders, matched by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mgrpo.errors import InputError

from .formats import MotionTracks, ReadOptions, read_tracks

SUFFIXES = (".npz", ".npy", ".pkl", ".pickle", ".pt", ".pth", ".joblib")
"""Endings of the files that are looked at in a folder; what is in them is decided by their contents."""

_ENDINGS = re.compile(r"(_poses|_stageii|_joints|_\d+-\d+(_seed\d+)?)$")

Missing = Literal["error", "skip"]


def motion_files(path: Path) -> dict[str, Path]:
    """The motion files of a folder by their path in it without suffix, or the one file under its name."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; expected motion")
    if path.is_file():
        return {path.stem: path}
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not files:
        raise InputError(f"{path}: the folder has no motion files ({', '.join(SUFFIXES)})")
    found: dict[str, Path] = {}
    for file in files:
        name = file.relative_to(path).with_suffix("").as_posix()
        if name in found:
            raise InputError(f"{path}: two files are called {name}: {found[name].name} and {file.name}; move one away")
        found[name] = file
    return found


def read_all(path: Path, options: ReadOptions) -> dict[str, MotionTracks]:
    """Every motion of a file or folder by name: a file's own name, with that of the motion where it holds several."""
    found: dict[str, MotionTracks] = {}
    folder = path.is_dir()
    for name, file in motion_files(path).items():
        tracks = read_tracks(file, options)
        for one in tracks:
            label = name if len(tracks) == 1 or not one.name else f"{name}/{one.name}" if folder else one.name
            if label in found:
                raise InputError(f"{file}: two motions are called {label!r}")
            found[label] = one
    return found


def match(
    preds: Sequence[str], truths: Sequence[str], *, missing: Missing = "error", what: str = "prediction"
) -> dict[str, str]:
    """The truth of each prediction, by name. One of each belong together whatever they are called.

    Names agree where they are equal, or equal but for the endings of common tools (``_poses``, ``_stageii``,
    ``_joints``, the frames and seed that `mgrpo sample` adds). Several predictions may have one truth.

    Raises:
        InputError: no pair at all; or, unless ``missing`` is "skip", a prediction without truth or a truth without
            prediction.
    """
    if len(preds) == 1 and len(truths) == 1:
        return {preds[0]: truths[0]}
    plain: dict[str, list[str]] = {}
    for truth in truths:
        plain.setdefault(_plain(truth), []).append(truth)
    pairs: dict[str, str] = {}
    for pred in preds:
        candidates = [pred] if pred in truths else plain.get(_plain(pred), [])
        if len(candidates) > 1:
            raise InputError(f"{what} '{pred}' fits several truths: {', '.join(candidates)}; name it like one of them")
        if candidates:
            pairs[pred] = candidates[0]
    lonely = [pred for pred in preds if pred not in pairs]
    unused = [truth for truth in truths if truth not in pairs.values()]
    if not pairs or (missing == "error" and (lonely or unused)):
        said = [f"{what} without truth: {_some(lonely)}"] if lonely else []
        said += [f"truth without {what}: {_some(unused)}"] if unused else []
        advice = "" if not pairs else ", or compare those that match with --missing skip"
        raise InputError(
            f"{'; '.join(said)}. Files are matched by their names without suffix: name them alike{advice}."
        )
    return pairs


def _plain(name: str) -> str:
    while (shorter := _ENDINGS.sub("", name)) != name and shorter:
        name = shorter
    return name


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
