"""Acclaim skeletons (ASF) and motions (AMC), as CMU and HDM05 publish them.

A bone turns by ``C M C^-1``, with ``C`` its ``axis`` and ``M`` its degrees of freedom, relative to its parent; it
starts where its parent ends. Lengths are in inches divided by ``:units length``, so a file's unit is
``0.0254 / length`` metres.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mgrpo.data.mocap.source import AXES, SourceMotion, rotation_sequence
from mgrpo.data.mocap.text import MAX_FRAMES, MAX_JOINTS, TextFile
from mgrpo.errors import InputError

INCH = 0.0254
ROOT = "root"
MAX_GAP_S = 0.1
"""Longest time without frames that is bridged by interpolation, seconds."""


@dataclass
class AsfBone:
    """One bone of an ASF file."""

    line: int
    name: str = ""
    direction: np.ndarray | None = None
    """Unit vector in the zero pose ``(3,)``, in the file's axes."""
    length: float | None = None
    axis: np.ndarray = field(default_factory=lambda: np.eye(3))
    """Orientation of the axes that the bone turns about, ``(3, 3)``."""
    order: str = "xyz"
    """Axes in the order in which the turns are applied, about axes that stay."""
    dof: tuple[str, ...] = ()
    """Axes of the values in the AMC, in their order there."""


class AsfSkeleton(NamedTuple):
    """An ASF file; the root comes first, parents before children."""

    bones: tuple[AsfBone, ...]
    """The root has no length."""
    parents: tuple[int, ...]
    root_channels: tuple[str, ...]
    """Such as tx ty tz rx ry rz: the root's values in the AMC."""
    root_position: np.ndarray
    """Where the root is when its values are zero ``(3,)``, file unit."""
    metres: float
    """Metres per unit."""
    path: Path


def _sequence(order: str, radians: np.ndarray) -> np.ndarray:
    """Turns about fixed axes in this order: the first is rightmost in the product."""
    return rotation_sequence(order[::-1], radians[..., ::-1])


def read_asf(path: str | Path) -> AsfSkeleton:
    """Read a skeleton. Raises InputError, with the line, for what is damaged or not understood."""
    file = TextFile(path, "ASF file")
    section, unit_length, degrees = "", 1.0, True
    root: dict[str, tuple[int, list[str]]] = {}
    bones: dict[str, AsfBone] = {}
    links: list[tuple[int, list[str]]] = []
    bone: AsfBone | None = None
    for number, raw in enumerate(file.lines, 1):
        words = raw.partition("#")[0].split()
        if not words:
            continue
        if words[0].startswith(":"):
            if bone is not None:
                file.fail(number, f"the bone that begins in line {bone.line} has no end")
            section = words[0][1:].lower()
            continue
        key, rest = words[0].lower(), words[1:]
        if section == "units":
            if key == "length":
                unit_length = file.number(number, rest[0] if rest else "", "length")
                if not unit_length > 0:
                    file.fail(number, f"the unit of length must be positive, got {unit_length:g}")
            elif key == "angle":
                degrees = not (rest and rest[0].lower().startswith("rad"))
        elif section == "root":
            root[key] = (number, rest)
        elif section == "bonedata":
            bone = _read_bone_line(file, number, key, rest, bone, bones, degrees)
        elif section == "hierarchy" and key not in ("begin", "end"):
            links.append((number, words))
    if bone is not None or not bones:
        file.fail(len(file.lines), "the file ends inside :bonedata: it is cut off, get it again")
    if not links:
        file.fail(len(file.lines), "there is no :hierarchy: the file is cut off, get it again")
    return _assemble(file, root, bones, links, INCH / unit_length, degrees)


def _read_bone_line(
    file: TextFile,
    number: int,
    key: str,
    rest: list[str],
    bone: AsfBone | None,
    bones: dict[str, AsfBone],
    degrees: bool,
) -> AsfBone | None:
    if key == "begin":
        if bone is not None:
            file.fail(number, f"a bone begins inside the one of line {bone.line}")
        return AsfBone(number)
    if bone is None:
        file.fail(number, f"expected begin in :bonedata, got {key[:40]!r}")
    if key == "end":
        if not bone.name or bone.direction is None or bone.length is None:
            file.fail(bone.line, f"bone '{bone.name}' needs a name, a direction and a length")
        if bone.name in bones or bone.name == ROOT:
            file.fail(bone.line, f"bone '{bone.name}' is defined twice; names must differ")
        if len(bones) >= MAX_JOINTS:
            file.fail(number, f"more than {MAX_JOINTS} bones")
        bones[bone.name] = bone
        return None
    if key == "name":
        bone.name = " ".join(rest)
    elif key == "direction":
        direction = np.array(_three(file, number, rest, key))
        norm = float(np.linalg.norm(direction))
        if not norm > 1e-9:
            file.fail(number, "the direction of a bone can't be zero")
        bone.direction = direction / norm
    elif key == "length":
        bone.length = file.number(number, rest[0] if rest else "", "length")
    elif key == "axis":
        bone.order = _axis_order(file, number, rest[3] if len(rest) > 3 else "xyz")
        bone.axis = _axis(file, number, rest, bone.order, degrees)
    elif key == "dof":
        for word in rest:
            if word.lower() not in ("rx", "ry", "rz"):
                file.fail(number, f"degree of freedom {word[:20]!r} is not read; known: rx, ry, rz")
        bone.dof = tuple(word.lower()[1] for word in rest)
        if len(set(bone.dof)) != len(bone.dof):
            file.fail(number, "a degree of freedom is named twice")
    # id, limits (which go on over lines that begin with a bracket), bodymass and the like don't move anything
    return bone


def _three(file: TextFile, number: int, words: list[str], meaning: str) -> list[float]:
    if len(words) < 3:
        file.fail(number, f"{meaning} needs 3 numbers, got {len(words)}")
    return file.numbers(number, words[:3], meaning)


def _axis_order(file: TextFile, number: int, word: str) -> str:
    if sorted(word.lower()) != ["x", "y", "z"]:
        file.fail(number, f"the order of axes must be such as XYZ, got {word[:20]!r}")
    return word.lower()


def _axis(file: TextFile, number: int, words: list[str], order: str, degrees: bool) -> np.ndarray:
    angles = np.array(_three(file, number, words, "axis"))
    angles = np.radians(angles) if degrees else angles
    # the three numbers belong to the axes that the order names, one after another
    return _sequence(order, angles)


def _assemble(
    file: TextFile,
    root: dict[str, tuple[int, list[str]]],
    bones: dict[str, AsfBone],
    links: list[tuple[int, list[str]]],
    metres: float,
    degrees: bool,
) -> AsfSkeleton:
    if "order" not in root:
        file.fail(len(file.lines), "section :root has no order (such as TX TY TZ RX RY RZ)")
    line, words = root["order"]
    channels = tuple(word.lower() for word in words)
    known = {kind + axis for kind in "tr" for axis in AXES}
    if not set(channels) <= known or len(set(channels)) != len(channels):
        file.fail(line, f"the root's order may name each of TX TY TZ RX RY RZ once, got {' '.join(words)[:60]}")
    line, words = root.get("axis", (line, ["xyz"]))
    order = _axis_order(file, line, words[0] if words else "")
    line, words = root.get("orientation", (line, ["0", "0", "0"]))
    axis = _axis(file, line, words, order, degrees)
    line, words = root.get("position", (line, ["0", "0", "0"]))
    position = np.array(_three(file, line, words, "position"))
    parent_of: dict[str, str] = {}
    children: dict[str, list[str]] = {}
    for number, names in links:
        for name in names:
            if name != ROOT and name not in bones:
                file.fail(number, f"the hierarchy names bone '{name}', which :bonedata does not define")
        for child in names[1:]:
            if child in parent_of or child == ROOT:
                file.fail(number, f"bone '{child}' has two places in the hierarchy")
            parent_of[child] = names[0]
            children.setdefault(names[0], []).append(child)
    ordered, todo = [ROOT], [ROOT]
    while todo:
        found = children.get(todo.pop(), [])
        ordered += found
        todo += found
    lost = [name for name in bones if name not in ordered]
    if lost:
        file.fail(links[-1][0], f"bone '{lost[0]}' has no place in the hierarchy below root")
    first = AsfBone(0, ROOT, np.zeros(3), 0.0, axis, order, ())
    return AsfSkeleton(
        (first, *(bones[name] for name in ordered[1:])),
        (-1, *(ordered.index(parent_of[name]) for name in ordered[1:])),
        channels,
        position,
        metres,
        file.path,
    )


def read_amc(path: str | Path, skeleton: AsfSkeleton, fps: float) -> SourceMotion:
    """The motion of an AMC file on its skeleton.

    A joint here is the start of the bone of that name; the end of a bone without children is ``NAME.End``. Frames that
    the file leaves out stay out (``times`` has the gap) up to :data:`MAX_GAP_S`. Bones that the file never mentions
    keep their zero pose.

    Args:
        path: the AMC file; ``:DEGREES`` (also when nothing is said) or ``:RADIANS``.
        skeleton: the ASF it belongs to.
        fps: frames per second, which the format does not hold (120 for CMU and HDM05).
    Raises:
        InputError: damaged, or for another skeleton; with the line.
    """
    file = TextFile(path, "AMC file")
    rows, numbers, degrees = _read_amc_rows(file, skeleton)
    frames = len(numbers)
    file.check_size(len(file.lines), frames, len(skeleton.bones))
    steps = np.diff(numbers)
    notes = []
    if frames > 1 and steps.max() > 1:
        at = int(np.argmax(steps))
        lost = int((steps - 1).sum())
        if (steps[at] - 1) / fps > MAX_GAP_S:
            raise InputError(
                f"{path}: frames {numbers[at] + 1} to {numbers[at + 1] - 1} are missing, {(steps[at] - 1) / fps:.2f} "
                f"s; up to {MAX_GAP_S} s is bridged. Cut the recording there"
            )
        notes.append(f"{lost} missing frame(s) interpolated")
    never = [bone.name for bone in skeleton.bones if bone.dof and bone.name not in rows]
    if never:
        notes.append(f"no values for {', '.join(never[:6])}{' ...' if len(never) > 6 else ''}: left in the zero pose")
    return _pose(skeleton, rows, (np.array(numbers) - numbers[0]) / fps, fps, degrees, tuple(notes))


def _read_amc_rows(file: TextFile, skeleton: AsfSkeleton) -> tuple[dict[str, np.ndarray], list[int], bool]:
    """Values of each bone ``(T, n)``, the frames' numbers, and whether angles are degrees."""
    expected = {bone.name: len(bone.dof) for bone in skeleton.bones} | {ROOT: len(skeleton.root_channels)}
    rows: dict[str, list[list[float]]] = {}
    numbers: list[int] = []
    first_line: dict[str, int] = {}
    degrees = True

    def check_frame(line: int) -> None:
        for name, values in rows.items():
            if len(values) < len(numbers):
                file.fail(
                    line,
                    f"frame {numbers[-1]} has no values for bone '{name}', which other frames have: the file is "
                    "damaged or cut off",
                )

    for number, raw in enumerate(file.lines, 1):
        words = raw.partition("#")[0].split()
        if not words:
            continue
        if words[0].startswith(":"):
            word = words[0].upper()
            if numbers:
                file.fail(number, f"{word[:30]} among the frames")
            if word in (":DEGREES", ":RADIANS"):
                degrees = word == ":DEGREES"
            continue
        if len(words) == 1 and words[0].isascii() and words[0].isdigit():
            if numbers:
                check_frame(number)
            frame = file.whole(number, words[0], "the frame's number", 10**9)
            if numbers and frame <= numbers[-1]:
                file.fail(number, f"frame {frame} comes after frame {numbers[-1]}")
            if len(numbers) >= MAX_FRAMES:
                file.fail(number, f"more than {MAX_FRAMES} frames")
            numbers.append(frame)
            continue
        name = words[0]
        if not numbers:
            file.fail(number, f"expected the number of the first frame, got {name[:40]!r}")
        if name not in expected:
            file.fail(number, f"bone '{name[:40]}' is not in {skeleton.path.name}; is that this motion's skeleton?")
        if len(words) - 1 != expected[name]:
            file.fail(
                number, f"bone '{name}' has {len(words) - 1} values; {skeleton.path.name} gives it {expected[name]}"
            )
        values = rows.setdefault(name, [])
        first_line.setdefault(name, number)
        if len(values) == len(numbers):
            file.fail(number, f"bone '{name}' comes twice in frame {numbers[-1]}")
        if len(values) != len(numbers) - 1:
            file.fail(number, f"bone '{name}' is missing from frames before {numbers[-1]}")
        values.append(file.numbers(number, words[1:], f"a value of bone '{name}'"))
    if not numbers:
        file.fail(len(file.lines), "there are no frames: the file is cut off, or not an AMC file")
    check_frame(len(file.lines))
    if ROOT not in rows:
        file.fail(len(file.lines), "there are no values for root")
    return {name: np.array(values) for name, values in rows.items()}, numbers, degrees


def _pose(
    skeleton: AsfSkeleton,
    rows: dict[str, np.ndarray],
    times: np.ndarray,
    fps: float,
    degrees: bool,
    notes: tuple[str, ...],
) -> SourceMotion:
    frames, bones = len(times), skeleton.bones
    names, parents = [bone.name for bone in bones], list(skeleton.parents)
    R = np.empty((frames, len(bones), 3, 3))
    start, end = np.empty((frames, len(bones), 3)), np.empty((frames, len(bones), 3))
    zero_start, zero_end = np.zeros((len(bones), 3)), np.zeros((len(bones), 3))
    for index, bone in enumerate(bones):
        channels = skeleton.root_channels if index == 0 else tuple("r" + axis for axis in bone.dof)
        values = rows.get(bone.name, np.zeros((frames, len(channels))))
        angles = np.zeros((frames, 3))
        for column, channel in enumerate(channels):
            if channel[0] == "r":
                angles[:, bone.order.index(channel[1])] = values[:, column]
        M = bone.axis @ _sequence(bone.order, np.radians(angles) if degrees else angles) @ bone.axis.T
        if index == 0:
            R[:, 0] = M
            start[:, 0] = skeleton.root_position
            for column, channel in enumerate(channels):
                if channel[0] == "t":
                    start[:, 0, AXES.index(channel[1])] += values[:, column]
            end[:, 0] = start[:, 0]
            continue
        parent = parents[index]
        assert bone.direction is not None and bone.length is not None
        way = bone.direction * bone.length
        R[:, index] = R[:, parent] @ M
        start[:, index] = end[:, parent]
        end[:, index] = start[:, index] + R[:, index] @ way
        zero_start[index] = zero_end[parent]
        zero_end[index] = zero_start[index] + way
    tips = [index for index in range(1, len(bones)) if index not in parents]
    return SourceMotion(
        names=(*names, *(f"{names[index]}.End" for index in tips)),
        parents=(*parents, *tips),
        times=times,
        fps=fps,
        R_world_joint=np.concatenate((R, R[:, tips]), axis=1),
        positions=np.concatenate((start, end[:, tips]), axis=1),
        zero_positions=np.concatenate((zero_start, zero_end[tips])),
        metres=skeleton.metres,
        notes=notes,
    )
