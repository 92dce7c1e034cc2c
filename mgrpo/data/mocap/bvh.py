"""BVH: any hierarchy, channels in any order, positions on any joint, end sites.

Read strictly: a file that is cut off, has values too many or too few, or declares other frames than it holds is refused
with the line where that shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mgrpo.data.mocap.source import AXES, SourceMotion, rotation_sequence
from mgrpo.data.mocap.text import MAX_FRAMES, MAX_JOINTS, TextFile
from mgrpo.errors import InputError

_CHANNELS = {f"{axis}{kind}": (axis, kind) for axis in AXES for kind in ("position", "rotation")}
_USUAL_RATES = (24, 25, 30, 48, 50, 60, 72, 75, 80, 90, 100, 120, 144, 150, 180, 200, 240, 250, 300, 480, 500, 1000)
END = ".End"
"""Added to a joint's name for its end site."""


@dataclass
class _Joint:
    name: str
    parent: int
    line: int
    offset: list[float] | None = None
    channels: list[tuple[str, str]] | None = field(default=None)


def read_bvh(path: str | Path) -> SourceMotion:
    """The motion of a BVH file: orientations and positions of every joint and end site.

    Position channels replace the joint's OFFSET on their axes, on the root and elsewhere, as all common writers mean
    it. Angles are degrees. The frame rate is the usual rate that rounds to the declared frame time, else its inverse.

    Raises:
        InputError: not a BVH file, or one that is damaged; with the line.
    """
    file = TextFile(path, "BVH file")
    joints, position = _read_hierarchy(file)
    frames, frame_time, decimals, line = _read_motion_header(file, position)
    values = _read_frames(file, joints, frames, line)
    return _pose(joints, values, _frame_rate(frame_time, decimals))


def _read_hierarchy(file: TextFile) -> tuple[list[_Joint], int]:
    """Joints in file order, and the index of the line after MOTION."""
    joints: list[_Joint] = []
    open_joints: list[int] = []
    names: dict[str, int] = {}
    waiting: int | None = None  # a joint that has its name but not yet its brace
    begun = False
    for index, line in enumerate(file.lines):
        number = index + 1
        words = line.replace("{", " { ").replace("}", " } ").split()
        if not words:
            continue
        if not begun:
            if words != ["HIERARCHY"]:
                file.fail(number, f"a BVH file begins with HIERARCHY, got {line.strip()[:40]!r}")
            begun = True
            continue
        if words == ["MOTION"]:
            if open_joints or waiting is not None:
                name = joints[open_joints[-1] if open_joints else -1].name
                file.fail(number, f"MOTION comes before the closing brace of joint '{name}'")
            if not joints:
                file.fail(number, "there is no ROOT before MOTION")
            _check_complete(file, joints)
            return joints, index + 1
        while words:
            word = words.pop(0)
            if word == "{":
                if waiting is None:
                    file.fail(number, "a brace opens without a joint before it")
                open_joints.append(waiting)
                waiting = None
            elif waiting is not None:
                file.fail(number, f"expected {{ after the name of joint '{joints[waiting].name}', got {word[:40]!r}")
            elif word == "}":
                if not open_joints:
                    file.fail(number, "a brace closes that was not opened")
                open_joints.pop()
            elif word in ("ROOT", "JOINT", "End"):
                name_words = words[: words.index("{")] if "{" in words else words
                words = words[len(name_words) :]
                if word == "ROOT" and joints:
                    file.fail(number, f"a second ROOT; the first is '{joints[0].name}'. One skeleton per file is read")
                if word != "ROOT" and not open_joints:
                    file.fail(number, f"{word} outside of any joint")
                parent = open_joints[-1] if open_joints else -1
                name = joints[parent].name + END if word == "End" else " ".join(name_words)
                if not name:
                    file.fail(number, f"{word} without a name")
                if parent >= 0 and joints[parent].name.endswith(END) and joints[parent].channels == []:
                    file.fail(number, f"'{joints[parent].name}' is an end site and can't have joints below it")
                if name in names:
                    file.fail(number, f"joint '{name}' was already defined in line {names[name]}; names must differ")
                if len(joints) >= MAX_JOINTS:
                    file.fail(number, f"more than {MAX_JOINTS} joints")
                names[name] = number
                joints.append(_Joint(name, parent, number, channels=[] if word == "End" else None))
                waiting = len(joints) - 1
            elif word in ("OFFSET", "CHANNELS"):
                if not open_joints:
                    file.fail(number, f"{word} outside of any joint")
                joint = joints[open_joints[-1]]
                if word == "OFFSET":
                    if joint.offset is not None:
                        file.fail(number, f"a second OFFSET of joint '{joint.name}'")
                    if len(words) < 3:
                        file.fail(number, f"OFFSET of joint '{joint.name}' needs 3 numbers, got {len(words)}")
                    joint.offset = file.numbers(number, words[:3], "OFFSET")
                    words = words[3:]
                else:
                    words = _read_channels(file, number, joint, words)
            else:
                file.fail(
                    number, f"expected ROOT, JOINT, End Site, OFFSET, CHANNELS, a brace or MOTION, got {word[:40]!r}"
                )
    file.fail(len(file.lines), "the file ends before MOTION: it is cut off, get it again")


def _read_channels(file: TextFile, number: int, joint: _Joint, words: list[str]) -> list[str]:
    if joint.channels is not None:
        file.fail(number, f"joint '{joint.name}' can't have these CHANNELS: it has some, or is an end site")
    count = file.whole(number, words[0] if words else "", "the number of CHANNELS", 6)
    if len(words) - 1 < count:
        file.fail(number, f"CHANNELS of joint '{joint.name}' declares {count} but names {len(words) - 1}")
    joint.channels = []
    for word in words[1 : count + 1]:
        channel = _CHANNELS.get(word.lower())
        if channel is None:
            file.fail(number, f"unknown channel {word[:40]!r} of joint '{joint.name}'; known: Xposition to Zrotation")
        if channel in joint.channels:
            file.fail(number, f"channel {word} of joint '{joint.name}' is named twice")
        joint.channels.append(channel)
    return words[count + 1 :]


def _check_complete(file: TextFile, joints: list[_Joint]) -> None:
    for joint in joints:
        if joint.offset is None:
            file.fail(joint.line, f"joint '{joint.name}' has no OFFSET")
        if joint.channels is None:
            file.fail(joint.line, f"joint '{joint.name}' has no CHANNELS (a joint without motion has CHANNELS 0)")


def _read_motion_header(file: TextFile, index: int) -> tuple[int, float, int, int]:
    """Declared frames, frame time in seconds, its digits after the point, and the index of the next line."""
    found: list[tuple[int, str]] = []
    for label in ("frames:", "frame time:"):
        while index < len(file.lines) and not file.lines[index].strip():
            index += 1
        line = " ".join(file.lines[index].split()) if index < len(file.lines) else ""
        if not line.lower().startswith(label):
            file.fail(
                min(index + 1, len(file.lines)), f"expected '{label.capitalize()}' after MOTION, got {line[:40]!r}"
            )
        found.append((index + 1, line[len(label) :].strip()))
        index += 1
    frames = file.whole(found[0][0], found[0][1], "the number of frames", MAX_FRAMES)
    seconds = file.number(found[1][0], found[1][1], "the frame time")
    if frames < 1:
        file.fail(found[0][0], "the file declares no frames")
    if not 1e-4 <= seconds <= 10:
        file.fail(found[1][0], f"the frame time must be between 0.0001 and 10 seconds, got {found[1][1]}")
    mantissa = found[1][1].lower().partition("e")[0]
    exponent = int(found[1][1].lower().partition("e")[2] or 0) if "e" in found[1][1].lower() else 0
    return frames, seconds, len(mantissa.partition(".")[2]) - exponent, index


def _read_frames(file: TextFile, joints: list[_Joint], frames: int, index: int) -> np.ndarray:
    count = sum(len(joint.channels or ()) for joint in joints)
    if count == 0:
        raise InputError(f"{file.path}: no joint has channels, so nothing moves")
    held = sum(1 for line in file.lines[index:] if line.strip())
    if held != frames:
        problem = f"{frames} frames are declared, but there are {held} lines of values"
        file.fail(len(file.lines), problem + (": the file is cut off, get it again" if held < frames else ""))
    file.check_size(index, frames, len(joints))
    values = np.empty((frames, count))
    row = 0
    for number in range(index + 1, len(file.lines) + 1):
        words = file.lines[number - 1].split()
        if not words:
            continue
        if len(words) != count:
            file.fail(number, f"frame {row} has {len(words)} values; the {len(joints)} joints need {count}")
        values[row] = file.numbers(number, words, f"a value of frame {row}")
        row += 1
    return values


def _frame_rate(seconds: float, decimals: int) -> float:
    """Frames per second; a usual rate where the frame time is that rate's, rounded to the digits in the file."""
    rounding = 0.5000001 * 10.0 ** -min(max(decimals, 0), 12)
    near = [rate for rate in _USUAL_RATES if abs(1 / rate - seconds) <= min(rounding, 0.01 / rate)]
    return float(min(near, key=lambda rate: abs(1 / rate - seconds))) if near else 1.0 / seconds


def _pose(joints: list[_Joint], values: np.ndarray, fps: float) -> SourceMotion:
    frames = len(values)
    R_world_joint = np.empty((frames, len(joints), 3, 3))
    positions = np.empty((frames, len(joints), 3))
    zero = np.zeros((len(joints), 3))
    column = 0
    for index, joint in enumerate(joints):
        channels = joint.channels or []
        block = values[:, column : column + len(channels)]
        column += len(channels)
        offset = np.array(joint.offset)
        local = np.tile(offset, (frames, 1))
        turning = [k for k, (_, kind) in enumerate(channels) if kind == "rotation"]
        for k, (axis, kind) in enumerate(channels):
            if kind == "position":
                local[:, AXES.index(axis)] = block[:, k]
        R_local = rotation_sequence("".join(channels[k][0] for k in turning), np.radians(block[:, turning]))
        if joint.parent < 0:
            R_world_joint[:, index], positions[:, index], zero[index] = R_local, local, offset
            continue
        R_parent = R_world_joint[:, joint.parent]
        R_world_joint[:, index] = R_parent @ R_local
        positions[:, index] = positions[:, joint.parent] + (R_parent @ local[..., None])[..., 0]
        # bones keep the length they have in motion, which is not always that of OFFSET
        zero[index] = zero[joint.parent] + local.mean(0)
    return SourceMotion(
        names=tuple(joint.name for joint in joints),
        parents=tuple(joint.parent for joint in joints),
        times=np.arange(frames) / fps,
        fps=fps,
        R_world_joint=R_world_joint,
        positions=positions,
        zero_positions=zero,
        metres=None,
    )
