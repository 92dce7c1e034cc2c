"""Small BVH and ASF/AMC files of a person who sways, written as text, and where their joints are by other formulas."""

from __future__ import annotations

import numpy as np
import torch

# name, parent, offset in cm (T-pose, y up, facing +z), channels
MIXAMO = (
    ("mixamorig:Hips", "", (0, 98, 0), "Xposition Yposition Zposition Zrotation Xrotation Yrotation"),
    ("mixamorig:Spine", "mixamorig:Hips", (0, 10, 0), "Zrotation Xrotation Yrotation"),
    ("mixamorig:Spine1", "mixamorig:Spine", (0, 12, -1), "Xrotation Yrotation Zrotation"),
    ("mixamorig:Spine2", "mixamorig:Spine1", (0, 13, 0), "Yrotation Zrotation Xrotation"),
    ("mixamorig:Neck", "mixamorig:Spine2", (0, 15, 0), "Zrotation Yrotation Xrotation"),
    ("mixamorig:Head", "mixamorig:Neck", (0, 9, 2), "Xrotation Zrotation"),
    ("mixamorig:LeftShoulder", "mixamorig:Spine2", (6, 11, 0), "Zrotation Xrotation Yrotation"),
    ("mixamorig:LeftArm", "mixamorig:LeftShoulder", (11, 0, 0), "Yrotation Xrotation Zrotation"),
    ("mixamorig:LeftForeArm", "mixamorig:LeftArm", (27, 0, 0), "Yrotation"),
    (
        "mixamorig:LeftHand",
        "mixamorig:LeftForeArm",
        (25, 0, 0),
        "Xrotation Yrotation Zrotation Xposition Yposition Zposition",
    ),
    ("mixamorig:RightShoulder", "mixamorig:Spine2", (-6, 11, 0), "Zrotation Xrotation Yrotation"),
    ("mixamorig:RightArm", "mixamorig:RightShoulder", (-11, 0, 0), "Zrotation Xrotation Yrotation"),
    ("mixamorig:RightForeArm", "mixamorig:RightArm", (-27, 0, 0), "Zrotation Xrotation Yrotation"),
    ("mixamorig:RightHand", "mixamorig:RightForeArm", (-25, 0, 0), "Zrotation Xrotation Yrotation"),
    ("mixamorig:LeftUpLeg", "mixamorig:Hips", (9, -5, 0), "Zrotation Xrotation Yrotation"),
    ("mixamorig:LeftLeg", "mixamorig:LeftUpLeg", (0, -42, 1), "Zrotation Xrotation Yrotation"),
    ("mixamorig:LeftFoot", "mixamorig:LeftLeg", (0, -42, -2), "Zrotation Xrotation Yrotation"),
    ("mixamorig:RightUpLeg", "mixamorig:Hips", (-9, -5, 0), "Zrotation Xrotation Yrotation"),
    ("mixamorig:RightLeg", "mixamorig:RightUpLeg", (0, -42, 1), "Zrotation Xrotation Yrotation"),
    ("mixamorig:RightFoot", "mixamorig:RightLeg", (0, -42, -2), "Zrotation Xrotation Yrotation"),
)
ENDS = {"mixamorig:Head": (0, 18, 0), "mixamorig:LeftFoot": (0, -7, 13), "mixamorig:RightFoot": (0, -7, 13)}
ENDS |= {"mixamorig:LeftHand": (9, 0, 0), "mixamorig:RightHand": (-9, 0, 0)}

_OUR_NAMES = """
    pelvis spine1 spine2 spine3 neck head left_collar left_shoulder left_elbow left_wrist right_collar right_shoulder
    right_elbow right_wrist left_hip left_knee left_ankle right_hip right_knee right_ankle
"""
OURS = dict(zip(_OUR_NAMES.split(), [joint[0] for joint in MIXAMO])) | {
    "left_foot": "mixamorig:LeftFoot.End",
    "right_foot": "mixamorig:RightFoot.End",
}
"""Which joint of the file is which of ours."""


def turn(axis: str, degrees: float) -> np.ndarray:
    """A rotation as the exponential of its generator, which shares nothing with the readers' formulas."""
    generator = torch.zeros(3, 3, dtype=torch.float64)
    x, y, z = (float(axis == name) * np.radians(degrees) for name in "xyz")
    generator[0, 1], generator[0, 2], generator[1, 2] = -z, y, -x
    return torch.linalg.matrix_exp(generator - generator.T).numpy()


def bvh_values(frames: int, fps: float, seed: int = 0, still_legs: bool = True) -> dict[str, np.ndarray]:
    """Values ``(frames, channels)`` of each joint: sines of random size; position channels hold the offset, the root's
    a way."""
    generator = np.random.default_rng(seed)
    time = np.arange(frames)[:, None] / fps
    values = {}
    for name, _, offset, channels in MIXAMO:
        words = channels.split()
        size = generator.uniform(-25, 25, len(words)) * (
            0.0 if still_legs and ("Leg" in name or "Foot" in name) else 1.0
        )
        block = size * np.sin(time * generator.uniform(1, 4, len(words)) + generator.uniform(0, 6, len(words)))
        for column, word in enumerate(words):
            if word.endswith("position"):
                block[:, column] = offset["XYZ".index(word[0])]
            elif name == "mixamorig:Hips" and still_legs:
                block[:, column] = 0.0
        if not still_legs and name == "mixamorig:Hips":
            block[:, 0] += 40 * time[:, 0]
        values[name] = block
    return values


def bvh_text(values: dict[str, np.ndarray], frame_time: str, scale: float = 1.0) -> str:
    """A BVH file with these values."""
    lines = ["HIERARCHY"]

    def write(name: str, depth: int) -> None:
        _, parent, offset, channels = next(joint for joint in MIXAMO if joint[0] == name)
        pad = "\t" * depth
        lines.append(f"{pad}{'JOINT' if parent else 'ROOT'} {name}")
        lines.append(f"{pad}{{")
        lines.append(f"{pad}\tOFFSET {' '.join(str(number * scale) for number in offset)}")
        lines.append(f"{pad}\tCHANNELS {len(channels.split())} {channels}")
        for child in MIXAMO:
            if child[1] == name:
                write(child[0], depth + 1)
        if name in ENDS:
            lines.append(f"{pad}\tEnd Site")
            lines.append(f"{pad}\t{{")
            lines.append(f"{pad}\t\tOFFSET {' '.join(str(number * scale) for number in ENDS[name])}")
            lines.append(f"{pad}\t}}")
        lines.append(f"{pad}}}")

    write(MIXAMO[0][0], 0)
    written: list[str] = []
    for line in lines:
        if line.split()[0] in ("ROOT", "JOINT"):
            written.append(line.split()[1])
    rows = []
    for frame in range(len(values[written[0]])):
        row = []
        for name in written:
            channels = next(joint for joint in MIXAMO if joint[0] == name)[3].split()
            for word, value in zip(channels, values[name][frame]):
                row.append(f"{value * (scale if word.endswith('position') else 1.0):.9f}")
        rows.append(" ".join(row))
    return "\n".join([*lines, "MOTION", f"Frames: {len(rows)}", f"Frame Time: {frame_time}", *rows, ""])


def bvh_joints(values: dict[str, np.ndarray], frame: int) -> dict[str, np.ndarray]:
    """Joints and end sites of one frame in cm, by products of 4x4 matrices."""
    placed: dict[str, np.ndarray] = {"": np.eye(4)}
    for name, parent, offset, channels in MIXAMO:
        local = np.eye(4)
        local[:3, 3] = offset
        for word, value in zip(channels.split(), values[name][frame]):
            if word.endswith("position"):
                local["XYZ".index(word[0]), 3] = value
            else:
                step = np.eye(4)
                step[:3, :3] = turn(word[0].lower(), value)
                local = local @ step
        placed[name] = placed[parent] @ local
    joints = {name: matrix[:3, 3] for name, matrix in placed.items() if name}
    return joints | {f"{name}.End": (placed[name] @ [*end, 1])[:3] for name, end in ENDS.items()}


# name, parent, direction, length in file units, axis in degrees, degrees of freedom
_LEG = 0.3420201433, -0.9396926208
ACCLAIM = (
    ("lhipjoint", "root", (0.65, -0.71, 0.25), 2.5, (0, 0, 0), ""),
    ("lfemur", "lhipjoint", (_LEG[0], _LEG[1], 0), 7.6, (0, 0, 20), "rx ry rz"),
    ("ltibia", "lfemur", (_LEG[0], _LEG[1], 0), 7.3, (0, 0, 20), "rx"),
    ("lfoot", "ltibia", (0.09, -0.24, 0.966), 2.2, (-90, 0, 20), "rx rz"),
    ("ltoes", "lfoot", (0, 0, 1), 1.1, (-90, 0, 20), "rx"),
    ("rhipjoint", "root", (-0.65, -0.71, 0.25), 2.5, (0, 0, 0), ""),
    ("rfemur", "rhipjoint", (-_LEG[0], _LEG[1], 0), 7.6, (0, 0, -20), "rz rx"),
    ("rtibia", "rfemur", (-_LEG[0], _LEG[1], 0), 7.3, (0, 0, -20), "rx"),
    ("rfoot", "rtibia", (-0.09, -0.24, 0.966), 2.2, (-90, 0, -20), "rx rz"),
    ("rtoes", "rfoot", (0, 0, 1), 1.1, (-90, 0, -20), "rx"),
    ("lowerback", "root", (0, 1, -0.07), 2.05, (0, 0, 0), "rx ry rz"),
    ("upperback", "lowerback", (0, 1, 0), 2.06, (0, 0, 0), "rx ry rz"),
    ("thorax", "upperback", (0, 1, 0.01), 2.06, (0, 0, 0), "rx ry rz"),
    ("lowerneck", "thorax", (0, 1, 0), 1.6, (0, 0, 0), "rx ry rz"),
    ("upperneck", "lowerneck", (0, 1, 0.1), 1.6, (0, 0, 0), "rx ry rz"),
    ("head", "upperneck", (0, 1, 0), 1.6, (0, 0, 0), "rx ry rz"),
    ("lclavicle", "thorax", (0.93, 0.37, 0), 3.5, (0, 0, 0), "ry rz"),
    ("lhumerus", "lclavicle", (1, 0, 0), 5.0, (180, 30, 90), "rx ry rz"),
    ("lradius", "lhumerus", (1, 0, 0), 3.3, (180, 30, 90), "rx"),
    ("lwrist", "lradius", (1, 0, 0), 1.7, (180, 0, 90), "ry"),
    ("lhand", "lwrist", (1, 0, 0), 0.7, (-90, 0, 90), "rx rz"),
    ("rclavicle", "thorax", (-0.93, 0.37, 0), 3.5, (0, 0, 0), "ry rz"),
    ("rhumerus", "rclavicle", (-1, 0, 0), 5.0, (180, 30, -90), "rx ry rz"),
    ("rradius", "rhumerus", (-1, 0, 0), 3.3, (180, 30, -90), "rx"),
    ("rwrist", "rradius", (-1, 0, 0), 1.7, (180, 0, -90), "ry"),
    ("rhand", "rwrist", (-1, 0, 0), 0.7, (-90, 0, -90), "rx rz"),
)
ROOT_ORDER = "TY TX TZ RX RZ RY"


def asf_text() -> str:
    """An ASF file with CMU's unit and bones; the root's order of channels is unusual."""
    lines = [":version 1.10", ":units", "  length 0.45", "  angle deg", ":root", f"   order {ROOT_ORDER}"]
    lines += ["   axis XYZ", "   position 0 0 0", "   orientation 0 0 0", ":bonedata"]
    for name, _, direction, length, axis, dof in ACCLAIM:
        lines += ["  begin", "     id 1", f"     name {name}", f"     direction {' '.join(map(str, direction))}"]
        lines += [f"     length {length}", f"     axis {' '.join(map(str, axis))} XYZ"]
        lines += [f"    dof {dof}", *("    limits (-10.0 170.0)" for _ in dof.split()[:1])] if dof else []
        lines += ["           (-70.0 70.0)" for _ in dof.split()[1:]] + ["  end"]
    lines += [":hierarchy", "  begin"]
    for parent in dict.fromkeys(bone[1] for bone in ACCLAIM):
        lines.append(f"    {parent} {' '.join(bone[0] for bone in ACCLAIM if bone[1] == parent)}")
    return "\n".join([*lines, "  end", ""])


def amc_values(frames: int, fps: float = 120.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Degrees of each bone's freedoms ``(frames, n)``, and the root's channels in its order."""
    generator = np.random.default_rng(seed)
    time = np.arange(frames)[:, None] / fps
    counts = {"root": 6} | {bone[0]: len(bone[5].split()) for bone in ACCLAIM if bone[5]}
    values = {}
    for name, count in counts.items():
        size = generator.uniform(-20, 20, count)
        values[name] = size * np.sin(time * generator.uniform(1, 4, count) + generator.uniform(0, 6, count))
    values["root"][:, 0] = 17.3
    return values


def amc_text(values: dict[str, np.ndarray], first: int = 1, leave_out: tuple[int, ...] = ()) -> str:
    """An AMC file; frames whose number is in ``leave_out`` are not written."""
    lines = ["#!OML:ASF written for a test", ":FULLY-SPECIFIED", ":DEGREES"]
    for frame in range(len(values["root"])):
        if frame + first in leave_out:
            continue
        lines.append(str(frame + first))
        lines += [f"{name} {' '.join(f'{value:.9f}' for value in block[frame])}" for name, block in values.items()]
    return "\n".join([*lines, ""])


def acclaim_joints(values: dict[str, np.ndarray], frame: int) -> dict[str, np.ndarray]:
    """Start of each bone in one frame in file units, by the definition: parent's turn times C M C^-1."""
    root = dict(zip(ROOT_ORDER.lower().split(), values["root"][frame]))
    turned = {"root": turn("z", root["rz"]) @ turn("y", root["ry"]) @ turn("x", root["rx"])}
    start = {"root": np.array([root["tx"], root["ty"], root["tz"]])}
    end = dict(start)
    for name, parent, direction, length, axis, dof in ACCLAIM:
        C = turn("z", axis[2]) @ turn("y", axis[1]) @ turn("x", axis[0])
        angle = dict.fromkeys("xyz", 0.0)
        for word, value in zip(dof.split(), values[name][frame] if dof else ()):
            angle[word[1]] = value
        M = turn("z", angle["z"]) @ turn("y", angle["y"]) @ turn("x", angle["x"])
        turned[name] = turned[parent] @ C @ M @ C.T
        start[name] = end[parent]
        end[name] = start[name] + turned[name] @ (np.array(direction) / np.linalg.norm(direction) * length)
    return start


ACCLAIM_OURS = {
    "pelvis": "root", "spine1": "lowerback", "spine2": "upperback", "spine3": "thorax", "neck": "lowerneck",
    "head": "upperneck",
} | {
    f"{side}_{ours}": side[0] + theirs
    for side in ("left", "right")
    for ours, theirs in {
        "hip": "femur", "knee": "tibia", "ankle": "foot", "foot": "toes", "collar": "clavicle",
        "shoulder": "humerus", "elbow": "radius", "wrist": "hand",
    }.items()
}  # fmt: skip
