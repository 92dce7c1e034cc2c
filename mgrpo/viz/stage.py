"""What the viewer shows: motions by name on one time line, each with its samples, contacts, surface and errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mgrpo.errors import InputError
from mgrpo.viz.camera import Framing, frame_joints
from mgrpo.viz.comparison import BODY_PARENTS, PARENTS
from mgrpo.viz.palette import DARK, LIGHT, Palette
from mgrpo.viz.surface import Surface

JOINTS = len(BODY_PARENTS)
"""Joints of a body without fingers, root first."""

WRISTS = tuple(20 + (joint - JOINTS) // 15 for joint in range(JOINTS, len(PARENTS)))
"""The wrist of each finger joint."""

_MORE_COLORS = (("#8b3f9e", "#cf93df"), ("#7d7a10", "#cfcb58"), ("#a23b4f", "#f08ca0"), ("#3c5a14", "#a9cf78"))

CONTACT = ("#00a88f", "#2fe0c4")
"""Colour of what touches, on light and on dark: apart from every body's own."""


def color_of(number: int, dark: bool) -> str:
    """Colour of an actor, ``#rrggbb``: number 0 is the truth's, 1 the prior's, 2 that of the post-trained model, as in
    all of mgrpo's pictures; from 8 on they begin again at 1."""
    palette = DARK if dark else LIGHT
    own = (palette.ground_truth, palette.prior, palette.post_trained, palette.accent)
    every = (*own, *(pair[dark] for pair in _MORE_COLORS))
    return every[number if number < len(every) else 1 + (number - 1) % (len(every) - 1)]


def palette_of(dark: bool) -> Palette:
    """The colours of a scheme."""
    return DARK if dark else LIGHT


def printable(text: str) -> str:
    """A text that can be written as UTF-8: names of files may hold bytes that are none, which become ``?``."""
    return text.encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True, eq=False)
class Actor:
    """S motions under one name over the T frames of a stage, of J joints: 22, or 52 where fingers are posed. The first
    sample is the one shown, the others are its ghosts. Raises InputError for arrays that don't fit together."""

    name: str
    joints: np.ndarray
    """Joint positions (S, T, J, 3) float32, metres, z up, root first; NaN in frames that it doesn't have."""
    color: int
    """Number of its colour, see :func:`color_of`."""
    quats: np.ndarray | None = None
    """Orientations of the joints in the world (S, T, J, 4), unit, wxyz; None: not known, so there is no surface."""
    contacts: np.ndarray | None = None
    """Contact of each body joint below the root (S, T, 21), 0 to 1; None: not known."""
    surfaces: tuple[Surface, ...] = ()
    """Surface of each sample, over the same J joints; S or none."""
    error_mm: np.ndarray | None = None
    """Mean distance of the 22 body joints from the truth's (S, T), millimetres, NaN where either has no frame; None:
    this is the truth, or there is none."""
    T_world_cpf: np.ndarray | None = None
    """Pose of the head (central pupil frame) in each frame (T, 7) float32, wxyz + xyz: x left, y up, z forward; NaN
    where not known. Actors of one recording share one array."""
    numbers: tuple[int, ...] = ()
    """Number of each sample in its file, from 0; empty: they are counted here."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", printable(self.name))
        samples, frames, joints = self.joints.shape[:3]
        if joints not in (JOINTS, len(PARENTS)):
            raise InputError(f"Actor '{self.name}': joints must be {JOINTS} or {len(PARENTS)}, got {joints}")
        if not self.numbers:
            object.__setattr__(self, "numbers", tuple(range(samples)))
        if len(self.numbers) != samples:
            raise InputError(f"Actor '{self.name}': {samples} samples need as many numbers, got {self.numbers}")
        expected = {
            "joints": (samples, frames, joints, 3),
            "quats": (samples, frames, joints, 4),
            "contacts": (samples, frames, JOINTS - 1),
            "error_mm": (samples, frames),
            "T_world_cpf": (frames, 7),
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise InputError(f"Actor '{self.name}': {name} must have shape {shape}, got {value.shape}")
        if self.surfaces and (self.quats is None or len(self.surfaces) != samples):
            raise InputError(f"Actor '{self.name}': surfaces need orientations and one for each of {samples} samples")
        if any(len(surface.rest_joints) != joints for surface in self.surfaces):
            raise InputError(f"Actor '{self.name}': surfaces must follow its {joints} joints")

    @property
    def samples(self) -> int:
        """Number S of motions."""
        return int(self.joints.shape[0])

    @property
    def parents(self) -> tuple[int, ...]:
        """Parent of each joint, root first (-1)."""
        return PARENTS[: self.joints.shape[2]]

    @cached_property
    def present(self) -> np.ndarray:
        """Whether it is there in each frame (T,) bool."""
        return np.isfinite(self.joints[0, :, 0, 0])

    def vertices(self, sample: int, frame: int) -> np.ndarray | None:
        """Vertices (V, 3) of a sample in a frame, skinned now; None where it has no surface or isn't there."""
        if not self.surfaces or self.quats is None or not self.present[frame]:
            return None
        return self.surfaces[sample].vertices(self.joints[sample, frame], self.quats[sample, frame])

    def gaze(self, frame: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Pose of the head in a frame as quaternion (4,) wxyz and position (3,); None where not known."""
        if self.T_world_cpf is None or not np.isfinite(self.T_world_cpf[frame]).all():
            return None
        return self.T_world_cpf[frame, :4], self.T_world_cpf[frame, 4:]

    def touching(self, sample: int, frame: int) -> np.ndarray:
        """Contact of the 22 body joints in a frame, (22,) from 0 to 1; the root's is 0, as are those not known."""
        found = np.zeros(JOINTS, np.float32)
        if self.contacts is not None and self.present[frame]:
            found[1:] = np.clip(np.nan_to_num(self.contacts[sample, frame]), 0, 1)
        return found

    def marks(self, sample: int, frame: int) -> np.ndarray:
        """The same for all joints of its surface (J,): a hand is marked as a whole, by what its wrist touches."""
        found = self.touching(sample, frame)
        return np.concatenate((found, found[list(WRISTS)])) if len(self.parents) > JOINTS else found

    @cached_property
    def mean_errors_mm(self) -> np.ndarray:
        """Mean error of each sample (S,), millimetres; NaN where there is none."""
        errors = np.full((self.samples, 1), np.nan) if self.error_mm is None else self.error_mm.astype(np.float64)
        good = np.isfinite(errors)
        counts = good.sum(axis=1)
        return np.where(counts > 0, np.where(good, errors, 0.0).sum(axis=1) / np.maximum(counts, 1), np.nan)

    @property
    def mean_error_mm(self) -> float:
        """Mean error of the first sample, millimetres; NaN where there is none."""
        return float(self.mean_errors_mm[0])


@dataclass(frozen=True, eq=False)
class Stage:
    """Actors over the same T frames. Raises InputError where their frames differ."""

    title: str
    fps: float
    """Frames per second."""
    actors: tuple[Actor, ...]
    """At least one; the truth, if there is one, comes first and has colour 0."""
    start: float = 0.0
    """Time of the first frame in the recording, seconds."""
    notes: tuple[str, ...] = ()
    """What was assumed about the files."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", printable(self.title))
        object.__setattr__(self, "notes", tuple(printable(note) for note in self.notes))
        if not self.actors:
            raise InputError("Stage: at least one actor is needed")
        for actor in self.actors:
            if actor.joints.shape[1] != self.frames:
                raise InputError(
                    f"Stage: '{actor.name}' has {actor.joints.shape[1]} frames, '{self.actors[0].name}' {self.frames}"
                )

    @property
    def frames(self) -> int:
        """Number of frames T."""
        return int(self.actors[0].joints.shape[1])

    @property
    def truth(self) -> Actor | None:
        """The recorded motion, if there is one."""
        return self.actors[0] if self.actors[0].color == 0 else None

    @property
    def sample_numbers(self) -> tuple[int, ...]:
        """Numbers of the samples among which one can choose, rising: those of all actors that have several."""
        return tuple(sorted({number for actor in self.actors if actor.samples > 1 for number in actor.numbers}))

    @property
    def compared(self) -> tuple[Actor, ...]:
        """The actors that have errors."""
        return tuple(actor for actor in self.actors if actor.error_mm is not None)

    def seconds(self, frame: int) -> float:
        """Time of a frame in the recording."""
        return self.start + frame / self.fps

    def frame_at(self, seconds: float) -> int:
        """The frame nearest to a time in the recording, within the stage."""
        return int(np.clip(round((seconds - self.start) * self.fps), 0, self.frames - 1))

    def heads(self, actors: Sequence[Actor]) -> list[Actor]:
        """Those of some actors whose heads are to be drawn: one of all that share a head's path."""
        seen: dict[int, Actor] = {}
        for actor in actors:
            if actor.T_world_cpf is not None:
                seen.setdefault(id(actor.T_world_cpf), actor)
        return list(seen.values())

    @cached_property
    def framing(self) -> Framing:
        """Where a camera looks that glides along with the first actor (where it is not there, with the next), from so
        far that each actor fits when its own view is in the middle."""
        path = self.actors[0].joints[0, :, :JOINTS].copy()
        for actor in self.actors[1:]:
            gone = ~np.isfinite(path).all(axis=(1, 2))
            path[gone] = actor.joints[0, gone, :JOINTS]
        first = frame_joints(path)
        every = [first, *(frame_joints(actor.joints[0]) for actor in self.actors)]
        height = max(one.height for one in every)
        return replace(
            first,
            height=height,
            reach_across=max(one.reach_across for one in every),
            reach_up=max(one.height + one.reach_up for one in every) - height,
        )

    @cached_property
    def own_centers(self) -> tuple[np.ndarray, ...]:
        """Where the camera keeps to in a view of one actor alone (T, 2), for each: by the truth, from which it may
        stray; without one by itself, because it may be anywhere."""
        if self.truth is not None:
            return (self.framing.centers,) * len(self.actors)
        return tuple(frame_joints(actor.joints[0]).centers for actor in self.actors)


def thinned(count: int, most: int) -> np.ndarray:
    """At most ``most`` indices of ``count`` things, evenly spread, both ends among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def error_curve(values: np.ndarray, most: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """A curve of at most ``most`` points for errors (T,): frames and values, the mean over each stretch of frames; NaN
    where a stretch has no number."""
    edges = np.linspace(0, len(values), min(len(values), most) + 1).round().astype(np.int64)
    good = np.isfinite(values)
    sums = np.add.reduceat(np.where(good, values, 0.0), edges[:-1])
    counts = np.add.reduceat(good.astype(np.int64), edges[:-1])
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return (edges[:-1] + edges[1:] - 1) / 2, means
