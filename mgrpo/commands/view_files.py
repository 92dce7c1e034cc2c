"""Motion files on one time line, posed and measured, ready to be looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from mgrpo.body import BodyModel
from mgrpo.body.model import HEAD_ROW
from mgrpo.data.motion_files import DEMO, DEMO_ASSET
from mgrpo.errors import InputError, in_file
from mgrpo.eval.formats import MotionTracks, ReadOptions, RotationMotion, read_motions
from mgrpo.geometry import quat_normalize, rotmat_to_quat
from mgrpo.viz.comparison import frame_errors_mm
from mgrpo.viz.stage import JOINTS, Actor, Stage
from mgrpo.viz.surface import Surface, rotation_matrices

FASTEST = 60.0
"""Most frames per second that are shown; faster recordings lose frames evenly."""

MOST_BYTES = 3 << 30
"""Most memory for the motions shown; a sample takes 0.7 kB a frame, 1.5 kB with fingers."""

_CHUNK = 1024
_MOST_POSED = 1 << 19  # joints at once: a quarter of a gigabyte on the way
_SAME_RATE = 1e-3
_GAP = 1.5


@dataclass(frozen=True, eq=False)
class Source:
    """One motion of one file, chosen to be shown."""

    path: str
    """The file as the user named it."""
    name: str
    """Name in the viewer."""
    motion: MotionTracks | RotationMotion
    color: int
    """Number of its colour, see :func:`mgrpo.viz.stage.color_of`; 0 is the truth."""
    which: tuple[int, ...]
    """Numbers of the samples to show, the solid one first."""
    motions: int = 1
    """Motions in the file, of which this is one."""

    def __post_init__(self) -> None:
        for label, numbers in (("frame numbers", self.motion.frame_nums), ("times", self.motion.times)):
            if numbers is not None and len(numbers) > 1 and not bool((np.diff(numbers) > 0).all()):
                raise InputError(f"{self.path}: {label} that don't rise; sort its frames and drop repeated ones")

    @property
    def joints(self) -> int:
        """Number J of joints that are shown: 52 where fingers are posed, else 22."""
        motion = self.motion
        fingers = isinstance(motion, RotationMotion) and motion.finger_quats is not None
        return motion.full_body.num_joints + 1 if isinstance(motion, RotationMotion) and fingers else JOINTS

    @property
    def notes(self) -> list[str]:
        """What was assumed about the file."""
        motion = self.motion
        own = [*motion.shape_notes, *motion.finger_notes] if isinstance(motion, RotationMotion) else []
        return [*motion.notes, *own]


def chosen_samples(path: str, count: int, first: int, most: int) -> tuple[int, ...]:
    """Numbers of at most ``most`` of a file's ``count`` samples: ``first``, then the others in their order. A file of
    one sample has nothing to choose. Raises InputError where there is no sample ``first``."""
    if count == 1:
        return (0,)
    if first >= count:
        raise InputError(f"--sample {first}: {path} holds {count} samples, 0 to {count - 1}")
    return (first, *(number for number in range(count) if number != first))[:most]


def read_source(
    path: str,
    name: str,
    color: int,
    options: ReadOptions,
    *,
    clip: str,
    samples: int,
    say: Callable[[str], None],
    sample: int = 0,
) -> Source:
    """The motion of a file that ``clip`` (a name or a pattern; empty: the first) means; ``demo`` is the pack that ships
    with the package. ``say`` is told when there are others. Raises InputError for files and names that don't exist."""
    if path == DEMO:
        with resources.as_file(resources.files("mgrpo") / "assets" / DEMO_ASSET) as asset:
            motions = read_motions(asset, options)
    else:
        motions = read_motions(path, options)
    chosen = motions[0]
    if len(motions) > 1:
        found = next((one for one in motions if clip in ("", one.name) or fnmatchcase(one.name, clip)), None)
        names = ", ".join(one.name for one in motions[:40]) + (" ..." if len(motions) > 40 else "")
        if found is None:
            raise InputError(f"--clip: {path} has no motion called {clip!r}. It has: {names}")
        chosen = found
        if not clip:
            say(f"{path} has {len(motions)} motions and '{chosen.name}' is shown; --clip chooses: {names}")
    return Source(path, name, chosen, color, chosen_samples(path, chosen.samples, sample, samples), len(motions))


def time_axes(sources: Sequence[Source]) -> tuple[list[np.ndarray], str]:
    """Time of every frame of every source in seconds on one axis, and by what they were brought together.

    By their clocks where all have time stamps that overlap; by frame numbers where one has them and all have one rate
    (who has none counts from 0); otherwise all begin at 0.
    """
    motions = [source.motion for source in sources]
    clocks = [motion.times for motion in motions if motion.times is not None]
    if len(clocks) == len(motions) and max(clock[0] for clock in clocks) <= min(clock[-1] for clock in clocks):
        return [clock - min(clock[0] for clock in clocks) for clock in clocks], "time stamps"
    rates = [motion.fps for motion in motions]
    if any(motion.frame_nums is not None for motion in motions) and max(rates) - min(rates) <= _SAME_RATE * min(rates):
        rate = rates[0]
        axes = [np.arange(len(motion)) if motion.frame_nums is None else motion.frame_nums for motion in motions]
        return [axis / rate for axis in axes], "frame numbers"
    return [np.arange(len(motion)) / motion.fps for motion in motions], "their first frames"


def time_line(
    sources: Sequence[Source], axes: Sequence[np.ndarray], start: float, seconds: float
) -> tuple[np.ndarray, float]:
    """Times of the frames shown (T,) and their rate: the stretch that the predictions (or, alone, the truth) cover, cut
    to ``seconds`` from ``start`` on (0: all of it), at the lowest of the rates, and at most :data:`FASTEST`.

    Raises InputError where nothing is left, a truth and its predictions have no time in common, or so many frames would
    take more than :data:`MOST_BYTES`.
    """
    shown = [axis for source, axis in zip(sources, axes) if source.color != 0] or list(axes)
    first, last = min(axis[0] for axis in shown), max(axis[-1] for axis in shown)
    for source, axis in zip(sources, axes):
        if source.color == 0 and (axis[-1] < first or axis[0] > last):
            raise InputError(
                f"the truth {source.path} has {axis[0]:.2f} to {axis[-1]:.2f} s, the others {first:.2f} to "
                f"{last:.2f} s: no time in common. Are they of one recording? --clip names a pack's clip"
            )
    begin = max(first, first + start)
    if begin > last:
        raise InputError(f"--start {start:g} is after the end: the motion has {last - first:.2f} s")
    end = min(last, begin + seconds) if seconds > 0 else last
    rate = min(source.motion.fps for source in sources)
    rate /= np.ceil(rate / FASTEST - 1e-6)
    # before anything of that length is made: a frame number, or a stamp, that is wrong makes a line of years
    count = int(np.floor((end - begin) * rate + 1e-6)) + 1
    needed = sum(len(source.which) * source.joints for source in sources) * count * 7 * 4
    if needed > MOST_BYTES:
        raise InputError(
            f"{count:,} frames ({end - begin:,.0f} s at {rate:g} per second) of "
            f"{sum(len(source.which) for source in sources)} motion(s) would take {needed / 1e9:.1f} GB; show fewer by "
            "--samples, or a part by --start and --seconds (or are frame numbers, or time stamps, wrong?)"
        )
    return begin + np.arange(count) / rate, float(rate)


def place_on_line(source: Source, axis: np.ndarray, times: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Where each time lies among a source's frames, counted in frames (T,), and whether it is there at all (T,): not
    outside its span, and not in a gap of its frames. ``step`` is the seconds between the frames shown."""
    slack = 0.5 / source.motion.fps
    inside = (times >= axis[0] - 1e-6) & (times <= axis[-1] + min(slack, 0.5 * step))
    positions = np.interp(times, axis, np.arange(len(axis)))
    if len(axis) > 1:
        low = np.clip(np.floor(positions + 1e-6).astype(np.int64), 0, len(axis) - 2)
        gap = np.diff(axis)[low] > _GAP / source.motion.fps
        inside &= ~gap | (np.abs(positions - np.round(positions)) < 1e-3)
    return positions, inside


def pose(
    source: Source, positions: np.ndarray, inside: np.ndarray, progress: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Joints (S, T, J, 3) and orientations (S, T, J, 4; None where there are no rotations), float32, NaN where the
    source isn't there. Posed in pieces; between two frames positions go straight, orientations turn evenly."""
    motion, frames, count = source.motion, len(positions), source.joints
    joints = np.full((len(source.which), frames, count, 3), np.nan, np.float32)
    turned = isinstance(motion, RotationMotion) or motion.R_world_joint is not None
    quats = np.full((len(source.which), frames, count, 4), np.nan, np.float32) if turned else None
    chunk = min(_CHUNK, max(1, _MOST_POSED // (motion.samples * count)))
    for begin in range(0, frames, chunk):
        rows = np.arange(begin, min(begin + chunk, frames))
        rows = rows[inside[rows]]
        progress(min(chunk, frames - begin))
        if not len(rows):
            continue
        low = np.clip(np.floor(positions[rows] + 1e-6).astype(np.int64), 0, len(motion) - 1)
        high = np.minimum(low + 1, len(motion) - 1)
        wanted, back = np.unique(np.concatenate((low, high)), return_inverse=True)
        there, turns = _posed(motion, torch.from_numpy(wanted), source.which)
        share = np.clip(positions[rows] - low, 0.0, 1.0)[:, None, None]
        before, after = back[: len(rows)], back[len(rows) :]
        joints[:, rows] = there[:, before] + share * (there[:, after] - there[:, before])
        if quats is not None and turns is not None:
            a, b = turns[:, before], turns[:, after]
            b = np.where((a * b).sum(-1, keepdims=True) < 0, -b, b)
            mixed = a + share * (b - a)
            quats[:, rows] = mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)
    return joints, quats


def _posed(
    motion: MotionTracks | RotationMotion, rows: torch.Tensor, which: Sequence[int]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Some frames of some samples of a motion: joints (S, n, J, 3), orientations (S, n, J, 4) or None."""
    if isinstance(motion, RotationMotion):
        placed = motion.placed(rows, fingers=True)
        joints, rotmats = placed.joints, placed.R_world_joint
    else:
        joints = motion.joints[:, rows]
        rotmats = None if motion.R_world_joint is None else motion.R_world_joint[:, rows]
    if not bool(torch.isfinite(joints).all()):
        sample, row = (int(index) for index in torch.nonzero(~torch.isfinite(joints))[0, :2])
        raise InputError(
            f"it has values that are not finite (NaN or infinity), first in frame {int(rows[row])} of sample {sample}; "
            "show a part before or after it by --start and --seconds, or repair the file"
        )
    chosen = list(which)
    quats = None if rotmats is None else quat_normalize(rotmat_to_quat(rotmats[chosen])).numpy()
    return joints[chosen].numpy(), quats


def surfaces_of(source: Source) -> tuple[Surface, ...]:
    """The surface of each sample shown, with its mean shape; none where the motion has no rotations or the body no
    mesh."""
    motion = source.motion
    if not isinstance(motion, RotationMotion):
        return ()
    body = motion.body if source.joints == JOINTS else motion.full_body
    mesh = body.mesh
    if mesh is None:
        return ()
    betas = motion.shape()[list(source.which)].mean(dim=1)
    weights, faces = mesh.weights.float().numpy(), mesh.faces.numpy().astype(np.int32)
    directions = mesh.shapedirs[..., : betas.shape[-1]].double()
    rest = mesh.v_template.double() + torch.einsum("vcb,sb->svc", directions, betas)
    joints = body.rest_joints(betas)
    return tuple(
        Surface(vertices.float().numpy(), rest_joints.float().numpy(), weights, faces)
        for vertices, rest_joints in zip(rest, joints)
    )


def given_head(source: Source) -> bool:
    """Whether a file has the head's poses in our world, which one read with another axis or unit has not."""
    motion = source.motion
    if not isinstance(motion, RotationMotion) or motion.T_world_cpf is None:
        return False
    return motion.options.up in ("auto", "z") and motion.options.unit in ("auto", "m")


def head_path(source: Source, actor: Actor, positions: np.ndarray, inside: np.ndarray) -> np.ndarray | None:
    """Head poses (T, 7) float32 on the time line: those of the file, else the eyes of the posed body; None where there
    are no rotations."""
    motion = source.motion
    if not isinstance(motion, RotationMotion) or actor.quats is None:
        return None
    if given_head(source):
        nearest = np.round(positions).astype(np.int64)
        path = motion.T_world_cpf[nearest].astype(np.float32)
        low = np.clip(np.floor(positions).astype(np.int64), 0, len(motion) - 1)
        high = np.minimum(low + 1, len(motion) - 1)
        xyz = motion.T_world_cpf[:, 4:]
        path[:, 4:] = xyz[low] + (positions - low)[:, None] * (xyz[high] - xyz[low])
        length = np.linalg.norm(path[:, :4], axis=1, keepdims=True)
        path[:, :4] /= np.where(length > 1e-6, length, np.nan)
        path[~inside] = np.nan
        return path
    quats = actor.quats[0, :, HEAD_ROW]
    eyes = motion.body.t_head_cpf(motion.shape()[source.which[0]].mean(dim=0)).numpy()
    moved = np.einsum("tij,j->ti", rotation_matrices(quats), eyes)
    return np.concatenate((quats, actor.joints[0, :, HEAD_ROW] + moved), axis=1).astype(np.float32)


def build_stage(
    sources: Sequence[Source],
    *,
    start: float = 0.0,
    seconds: float = 0.0,
    progress: Callable[[int], None] = lambda n: None,
) -> Stage:
    """The sources posed on one time line (the truth, colour 0, first), errors against the truth where there is one.

    Raises InputError where they have nothing in common or would take more than :data:`MOST_BYTES`.
    """
    axes, brought_by = time_axes(sources)
    times, rate = time_line(sources, axes, start, seconds)
    actors: list[Actor] = []
    heads: list[np.ndarray | None] = []
    for source, axis in zip(sources, axes):
        positions, inside = place_on_line(source, axis, times, 1 / rate)
        with in_file(source.path):
            joints, quats = pose(source, positions, inside, progress)
        contacts = getattr(source.motion, "contacts", None)
        if contacts is not None:
            nearest = np.round(positions).astype(np.int64)
            contacts = contacts[np.ix_(source.which, nearest)].astype(np.float32)
        surfaces = surfaces_of(source)
        actor = Actor(source.name, joints, source.color, quats, contacts, surfaces, numbers=source.which)
        if actors and actors[0].color == 0:
            errors = frame_errors_mm(joints[:, :, :JOINTS], actors[0].joints[0, :, :JOINTS])
            actor = replace(actor, error_mm=errors.astype(np.float32))
        actors.append(actor)
        heads.append(head_path(source, actor, positions, inside))
    if sources[0].color == 0:
        # One recording: the head's path that was the input, or the truth's own, is everybody's.
        order = sorted(range(len(sources)), key=lambda index: not given_head(sources[index]))
        heads = [next((heads[index] for index in order if heads[index] is not None), None)] * len(sources)
    actors = [replace(actor, T_world_cpf=head) for actor, head in zip(actors, heads)]
    notes = [f"{source.path}: read as {source.motion.format}" for source in sources]
    notes += [f"{source.path}: {note}" for source in sources for note in source.notes]
    if len(sources) > 1:
        notes.append(f"brought together by {brought_by}, {rate:g} frames per second")
    names = [source.motion.name for source in sources if source.motion.name]
    return Stage(
        title=names[0] if names else " · ".join(source.name for source in sources),
        fps=rate,
        actors=tuple(actors),
        start=float(times[0]),
        notes=tuple(notes),
    )


def default_names(files: Sequence[str]) -> list[str]:
    """A name for each file: without folder and suffix where these differ, with the last folder where that does, else
    the paths."""
    for count in (1, 2):
        names = ["/".join([*Path(file).parts[-count:-1], Path(file).stem]) for file in files]
        if len(set(names)) == len(names):
            return names
    if len(set(files)) < len(files):
        raise InputError("a file was given twice; give each once, or tell them apart by --names")
    return list(files)


def colors_for(names: Sequence[str]) -> list[int]:
    """Numbers of colours: `prior` and names that begin with `post` get those that they have in all pictures, the others
    the next free ones; one motion alone gets the post-trained model's."""
    known = {index: 1 if name.lower() == "prior" else 2 for index, name in enumerate(names) if _role(name)}
    colors, free = [], iter(number for number in range(1, 1000) if number not in known.values())
    for index in range(len(names)):
        colors.append(known[index] if index in known else 2 if len(names) == 1 else next(free))
    return colors


def _role(name: str) -> bool:
    return name.lower() == "prior" or name.lower().startswith("post")


def read_stage(
    files: Sequence[str],
    names: Sequence[str],
    truth: str,
    body: BodyModel,
    *,
    options: ReadOptions,
    truth_options: ReadOptions,
    clip: str,
    samples: int,
    start: float,
    seconds: float,
    say: Callable[[str], None],
    progress: Callable[[int], None] = lambda n: None,
    sample: int = 0,
) -> Stage:
    """The stage of what the user named; see :class:`mgrpo.commands.view.ViewConfig`."""
    options, truth_options = replace(options, body=body), replace(truth_options, body=body)
    names = list(names) or default_names(files)
    sources = []
    if truth:
        found = read_source(truth, "ground truth", 0, truth_options, clip=clip, samples=1, say=say)
        if found.motion.samples > 1:
            raise InputError(f"--truth {truth}: the truth must be one motion, it holds {found.motion.samples} samples")
        sources.append(found)
    sources += [
        read_source(file, name, color, options, clip=clip, samples=samples, say=say, sample=sample)
        for file, name, color in zip(files, names, colors_for(names))
    ]
    if clip and all(source.motions == 1 and not fnmatchcase(source.motion.name, clip) for source in sources):
        raise InputError(f"--clip {clip}: no file shown holds several motions, or one of that name; leave it out")
    if sample and all(source.motion.samples == 1 for source in sources):
        raise InputError(f"--sample {sample}: no file shown holds several samples; leave it out")
    return build_stage(sources, start=start, seconds=seconds, progress=progress)
