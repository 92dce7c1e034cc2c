"""Motion for the prior, for post-training alone, for validation, and held out: whole clips, chosen by name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import combinations
from typing import NamedTuple

from mgrpo.data.clip import MotionClip, check_unique_names
from mgrpo.errors import InputError

DEMO_VALIDATION: tuple[str, ...] = ("punch", "spin")
"""Clips of the demo motion on which settings may be chosen."""

DEMO_HELD_OUT: tuple[str, ...] = ("run", "kick", "dance_b")
"""Clips of the demo motion that are only ever evaluated."""


DEMO_POST_TRAINING: tuple[str, ...] = ("dance_a", "jump", "spinkick")
"""Clips of the demo motion that the prior never sees and GRPO trains on."""


class ClipSplit(NamedTuple):
    """Four disjoint lists of whole clips, each in the order given."""

    train: list[MotionClip]
    """For fitting."""
    post_training: list[MotionClip]
    """For post-training alone: where a prior is new to the motion, its errors are those of unknown motion. May be
    empty: then post-training uses ``train``."""
    validation: list[MotionClip]
    """For choosing settings and checkpoints."""
    held_out: list[MotionClip]
    """For reporting."""


class NameSplit(NamedTuple):
    """The same four sets by name."""

    train: set[str]
    post_training: set[str]
    validation: set[str]
    held_out: set[str]


def split_clips(
    clips: Sequence[MotionClip],
    *,
    post_training: Sequence[str] = (),
    validation: Sequence[str] = DEMO_VALIDATION,
    held_out: Sequence[str] = DEMO_HELD_OUT,
) -> ClipSplit:
    """Split by clip name, never by window, so that no frame of a held-out clip is ever seen in training.

    Args:
        clips: clips with different names.
        post_training: names, or shell patterns such as ``"walk_*"``, of the clips for post-training; may be empty.
        validation: the same for the validation clips.
        held_out: the same for the held-out clips; a name in two sets is an error.
    Raises:
        InputError: a name or pattern that fits no clip (the known names are listed), one clip in two sets, nothing
            left to train on.
    """
    check_unique_names(clips)
    names = split_names(
        [clip.name for clip in clips], post_training=post_training, validation=validation, held_out=held_out
    )
    return _clips_of(clips, names)


def split_names(
    names: Sequence[str],
    *,
    post_training: Sequence[str] = (),
    validation: Sequence[str] = (),
    held_out: Sequence[str] = (),
) -> NameSplit:
    """:func:`split_clips` for names alone, which must differ: where the motion itself stays in its file."""
    chosen: dict[str, set[str]] = {}
    for label, patterns in (("post_training", post_training), ("validation", validation), ("held_out", held_out)):
        chosen[label] = set()
        for pattern in patterns:
            found = {name for name in names if name == pattern or fnmatchcase(name, pattern)}
            if not found:
                raise InputError(f"{label}: no clip is called '{pattern}'. Known clips: {_listed(names)}")
            chosen[label] |= found
    for one, other in combinations(chosen, 2):
        both = sorted(chosen[one] & chosen[other])
        if both:
            raise InputError(f"clips in both {one} and {other}: {_listed(both)}; each clip may be in one set only")
    train = set(names).difference(*chosen.values())
    if not train:
        sets = " and ".join(label for label, members in chosen.items() if members)
        raise InputError(f"{sets} take all {len(names)} clips; leave some for training")
    return NameSplit(train, **chosen)


def _clips_of(clips: Sequence[MotionClip], names: NameSplit) -> ClipSplit:
    return ClipSplit(*([clip for clip in clips if clip.name in part] for part in names))


def split_by_fraction(
    clips: Sequence[MotionClip], *, validation: float = 0.1, held_out: float = 0.1, seed: int = 0
) -> ClipSplit:
    """Split motion whose names say nothing: a stable hash of each name decides, so adding clips moves no other clip to
    another set.

    Copies that preprocessing mirrored (names ending in ``_reflect``) stay with their original. Where chance leaves a
    set with a positive fraction empty, it gets the clip whose hash is nearest to it.

    Args:
        clips: clips with different names.
        validation: share of the clips, in [0, 1).
        held_out: share of the clips, in [0, 1).
        seed: another seed, another split.
    Raises:
        InputError: shares out of range or fewer clips than sets.
    """
    check_unique_names(clips)
    return _clips_of(
        clips,
        split_names_by_fraction([clip.name for clip in clips], validation=validation, held_out=held_out, seed=seed),
    )


def split_names_by_fraction(
    names: Sequence[str], *, validation: float = 0.1, held_out: float = 0.1, seed: int = 0
) -> NameSplit:
    """:func:`split_by_fraction` for names alone, which must differ."""
    if not (0 <= validation < 1 and 0 <= held_out < 1 and validation + held_out < 1):
        raise InputError(
            f"split_by_fraction(): shares must be in [0, 1) and add up to less than 1, got {validation} and {held_out}"
        )
    keyed = sorted((_fraction(name, seed), name) for name in {recording_of(name) for name in names})
    count = len(keyed)
    places = {
        name: ("held_out" if key < held_out else "validation" if key < held_out + validation else "train")
        for key, name in keyed
    }
    wanted = [
        label for label, share in (("held_out", held_out), ("validation", validation), ("train", 1.0)) if share > 0
    ]
    if count < len(wanted):
        raise InputError(
            f"{count} clip(s) can't be split into {', '.join(wanted)}; give more clips or name the sets yourself"
        )
    if set(places.values()) != set(wanted):
        places = {name: "train" for _, name in keyed}
        for index, label in enumerate(wanted[:-1]):
            places[keyed[index][1]] = label
    result = {
        label: {name for name in names if places[recording_of(name)] == label}
        for label in ("train", "validation", "held_out")
    }
    return NameSplit(result["train"], set(), result["validation"], result["held_out"])


def recording_of(name: str) -> str:
    """The recording that a clip is from: copies that preprocessing mirrored (names with ``_reflect``) share the name of
    their original."""
    return name.replace("_reflect", "")


def _fraction(name: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _listed(names: Sequence[str], limit: int = 40) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown}, ... ({len(names)} in all)"
