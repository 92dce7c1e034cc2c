"""Which joint of a file is which of our 22: maps for Bandai-Namco, Acclaim (CMU, HDM05), by name patterns, from JSON.

A map names for each of our joints the source joint that it is at, and the one whose orientation it takes (mostly the
same). Points between two joints stand in for what a skeleton lacks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mgrpo.body.skeleton import BODY_JOINT_NAMES, ROOT_NAME
from mgrpo.data.mocap.source import SourceMotion
from mgrpo.errors import InputError

JOINT_NAMES = (ROOT_NAME, *BODY_JOINT_NAMES)
"""Our 22 joints, root first."""

_MAX_MAP_BYTES = 1 << 20


@dataclass(frozen=True)
class JointSource:
    """Where one of our joints comes from."""

    at: str
    """Source joint whose position it has."""
    turns_with: str
    """Source joint whose orientation it has."""
    towards: str | None = None
    """If given, the position lies between ``at`` and this joint,"""
    part: float = 0.0
    """this part of the way along."""


@dataclass(frozen=True)
class JointMap:
    """A map of all 22 joints."""

    name: str
    """For the report."""
    joints: Mapping[str, JointSource]
    """By our names."""
    rest: str | Mapping[str, np.ndarray] = "auto"
    """The pose that counts as a person standing straight: ``zero`` (all rotations zero), ``first`` (the first frame,
    which is then left out), ``auto`` (whichever of the two has legs down and arms to the side), or for each source
    joint its orientation ``(3, 3)`` in that pose, in axes x left, y up, z forward."""
    feet_follow_shins: bool = False
    """Whether feet lie in the plane of shins that the rest pose spreads (Acclaim), rather than flat."""


def _at(name: str) -> JointSource:
    return JointSource(name, name)


def _frame(x: Sequence[float], y: Sequence[float]) -> np.ndarray:
    """Orientation whose first two axes point along x and y."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    return np.stack((x, y, np.cross(x, y)), axis=1)


def _sloping(y: float, z: float) -> np.ndarray:
    return np.array((0.0, y, z)) / np.hypot(y, z)


def bandai_map() -> JointMap:
    """Bandai-Namco Research Motiondataset 1 and 2: bones along x, left and right the opposite ways.

    The feet's slopes are those of a planted foot of the recordings: ankle 11.74 cm and toe 4.25 cm above the floor.
    """
    joints = {"pelvis": _at("Hips"), "spine1": _at("Spine"), "spine3": _at("Chest")}
    joints |= {"neck": _at("Neck"), "head": _at("Head"), "spine2": JointSource("Spine", "Spine", "Chest", 0.5)}
    left, up, forward = np.eye(3)
    foot, toes = _sloping(-0.637, 0.771), _sloping(-0.389, 0.921)
    rest = {"Hips": _frame(up, -left)} | {name: _frame(up, forward) for name in ("Spine", "Chest", "Neck", "Head")}
    parts = {
        "hip": "UpperLeg", "knee": "LowerLeg", "ankle": "Foot", "foot": "Toes",
        "collar": "Shoulder", "shoulder": "UpperArm", "elbow": "LowerArm", "wrist": "Hand",
    }  # fmt: skip
    for side, letter, sign in (("left", "L", 1.0), ("right", "R", -1.0)):
        joints |= {f"{side}_{ours}": _at(f"{theirs}_{letter}") for ours, theirs in parts.items()}
        for name in ("Shoulder", "UpperArm", "LowerArm", "Hand"):
            rest[f"{name}_{letter}"] = _frame(left, sign * up)
        for name in ("UpperLeg", "LowerLeg"):
            rest[f"{name}_{letter}"] = _frame(-sign * up, left)
        rest[f"Foot_{letter}"], rest[f"Toes_{letter}"] = _frame(sign * foot, left), _frame(sign * toes, left)
    return JointMap("bandai", joints, rest)


def acclaim_map() -> JointMap:
    """CMU and HDM05: bones of the Acclaim skeleton; a T-pose with legs spread is zero."""
    joints = {"pelvis": _at("root"), "spine1": _at("lowerback"), "spine2": _at("upperback"), "spine3": _at("thorax")}
    joints |= {"neck": _at("lowerneck"), "head": JointSource("upperneck", "head")}
    parts = {
        "hip": "femur", "knee": "tibia", "ankle": "foot", "foot": "toes",
        "collar": "clavicle", "shoulder": "humerus", "elbow": "radius", "wrist": "hand",
    }  # fmt: skip
    for side in ("left", "right"):
        joints |= {f"{side}_{ours}": _at(side[0] + theirs) for ours, theirs in parts.items()}
    return JointMap("acclaim", joints, "zero", feet_follow_shins=True)


# For each of our joints, plain names in order of preference; a name is used once.
_PATTERNS = {
    "shoulder": ("upperarm", "uparm", "uarm", "arm", "shldr", "humerus", "shoulder"),
    "collar": ("clavicle", "collarbone", "collar", "scapula", "shoulder", "shldr"),
    "elbow": ("forearm", "lowerarm", "lowarm", "farm", "radius", "elbow"),
    "wrist": ("hand", "wrist"),
    "hip": ("upleg", "upperleg", "thigh", "femur", "hip", "hipjoint"),
    "knee": ("lowerleg", "lowleg", "shin", "calf", "tibia", "leg", "knee"),
    "ankle": ("ankle", "foot"),
    "foot": ("toebase", "toes", "toe", "ball", "foot"),
}
_PLAIN = {"neck": ("neck", "neck1", "lowerneck"), "head": ("head",)}


def _plain(name: str) -> tuple[str, str]:
    """Side ("left", "right" or "") and what is left of a joint's name in small letters without signs and prefixes."""
    name = re.split(r"[:|]", name)[-1]
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    small = [word.lower() for word in words]
    for side in ("left", "right"):
        if side in small:
            small.remove(side)
            return side, "".join(small)
        joined = "".join(small)
        if joined.startswith(side) or joined.endswith(side):
            return side, joined.removeprefix(side).removesuffix(side)
        if small and side[0] in (small[0], small[-1]) and len(small) > 1:
            small.pop(0 if small[0] == side[0] else -1)
            return side, "".join(small)
    joined = "".join(small)
    stems = {stem for names in _PATTERNS.values() for stem in names}
    for side in ("left", "right"):
        if joined.startswith(side[0]) and joined[1:] in stems:
            return side, joined[1:]
    return "", joined


def generic_map(source: SourceMotion) -> JointMap:
    """A map by the names that most tools use (Mixamo, MotionBuilder, Blender, 3ds Max, Xsens, CMU's BVH, ours).

    Raises:
        InputError: naming the joints that were not recognised.
    """
    found: dict[str, str] = {}
    plain = {name: _plain(name) for name in source.names if not name.endswith(".End")}
    used: set[str] = set()
    for side in ("left", "right"):
        for ours, stems in _PATTERNS.items():
            for stem in stems:
                fits = [name for name, (of, rest) in plain.items() if of == side and rest == stem and name not in used]
                if fits:
                    found[f"{side}_{ours}"] = fits[0]
                    used.add(fits[0])
                    break
    for ours, stems in _PLAIN.items():
        fits = [name for stem in stems for name, (of, rest) in plain.items() if not of and rest == stem]
        if fits:
            found[ours] = fits[0]
    index = {name: number for number, name in enumerate(source.names)}
    for side in ("left", "right"):
        tips = _below(source, index[found[f"{side}_ankle"]]) if f"{side}_ankle" in found else []
        if f"{side}_foot" not in found and tips:
            found[f"{side}_foot"] = source.names[tips[-1]]
    derived = _trunk(source, found, index)
    for side in ("left", "right"):
        if f"{side}_collar" not in found and {"neck", f"{side}_shoulder", "spine3"} <= {*found, *derived}:
            trunk = derived["spine3"].turns_with
            derived[f"{side}_collar"] = JointSource(found["neck"], trunk, found[f"{side}_shoulder"], 0.3)
    joints = derived | {ours: _at(name) for ours, name in found.items()}
    missing = [name for name in JOINT_NAMES if name not in joints]
    if missing:
        raise InputError(
            f"no joint was recognised for {', '.join(missing)}; the file has: {', '.join(source.names[:80])}. Name "
            'them in a JSON file, {"joints": {"' + missing[0] + '": "THEIR NAME"}}, and give it with --map'
        )
    return JointMap("generic", joints)


def _below(source: SourceMotion, joint: int) -> list[int]:
    """Joints below a joint, first children first, down one line."""
    line = []
    while True:
        children = [index for index, parent in enumerate(source.parents) if parent == joint]
        if not children:
            return line
        joint = children[0]
        line.append(joint)


def _trunk(source: SourceMotion, found: dict[str, str], index: dict[str, int]) -> dict[str, JointSource]:
    """Pelvis and spine by the hierarchy: where the ways up from hips and neck meet, and what lies above it."""
    if not {"left_hip", "right_hip", "neck"} <= found.keys():
        return {}

    def way_up(name: str) -> list[int]:
        way, joint = [], source.parents[index[name]]
        while joint >= 0:
            way.append(joint)
            joint = source.parents[joint]
        return way

    hips = set(way_up(found["left_hip"])) & set(way_up(found["right_hip"]))
    ways = way_up(found["neck"])
    shared = [joint for joint in ways if joint in hips]
    if not shared:
        return {}
    pelvis = shared[0]
    # joints on the pelvis's own spot (a hips joint under a root at the same place) don't bend the spine
    spine = ways[: ways.index(pelvis)][::-1]
    names = [source.names[joint] for joint in spine]
    root = source.names[pelvis]
    derived = {"pelvis": _at(root)}
    if len(names) >= 3:
        derived |= {"spine1": _at(names[0]), "spine2": _at(names[len(names) // 2]), "spine3": _at(names[-1])}
    elif len(names) == 2:
        between = JointSource(names[0], names[0], names[1], 0.5)
        derived |= {"spine1": _at(names[0]), "spine2": between, "spine3": _at(names[1])}
    elif len(names) == 1:
        derived |= {f"spine{k}": JointSource(root, root, names[0], k / 3) for k in (1, 2)}
        derived["spine3"] = _at(names[0])
    return derived


def choose_map(source: SourceMotion, wanted: str = "auto") -> JointMap:
    """The map called ``wanted``: ``auto`` (the first that has all its joints), ``bandai``, ``acclaim``, ``generic``.

    Raises:
        InputError: an unknown name, or joints that the file lacks.
    """
    makers = {"bandai": bandai_map, "acclaim": acclaim_map}
    if wanted == "auto":
        for maker in makers.values():
            chosen = maker()
            if not missing_joints(chosen, source):
                return chosen
        return generic_map(source)
    if wanted == "generic":
        return generic_map(source)
    if wanted not in makers:
        raise InputError(f"unknown joint map '{wanted}': choose auto, {', '.join(makers)}, generic, or a JSON file")
    chosen = makers[wanted]()
    check_map(chosen, source)
    return chosen


def missing_joints(chosen: JointMap, source: SourceMotion) -> list[str]:
    """Source joints that the map names and the file lacks."""
    named = {name for joint in chosen.joints.values() for name in (joint.at, joint.turns_with, joint.towards) if name}
    return sorted(named - set(source.names))


def check_map(chosen: JointMap, source: SourceMotion) -> None:
    """Raise InputError where the file lacks joints of the map."""
    missing = missing_joints(chosen, source)
    if missing:
        raise InputError(
            f"the joint map '{chosen.name}' names {', '.join(missing)}, which the file lacks; it has: "
            f"{', '.join(source.names[:80])}"
        )


def read_map(path: str | Path) -> dict[str, Any]:
    """A map file, checked: ``joints`` (our name to theirs, or to ``{"at", "turns_with", "towards", "part"}``), ``base``
    (map whose entries it overrides; default auto), ``rest`` (zero, first, auto or ``{their name: 3x3 matrix}``) and
    ``feet_follow_shins``. Raises InputError for anything else."""
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_MAP_BYTES:
            raise InputError(f"{path}: too large for a joint map")
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or error}); expected a joint map (JSON)") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); expected a joint map") from error
    known = {"joints", "base", "rest", "feet_follow_shins"}
    if not isinstance(content, dict) or not set(content) <= known:
        raise InputError(f"{path}: a joint map is an object with some of {', '.join(sorted(known))}")
    joints = content.get("joints", {})
    if not isinstance(joints, dict):
        raise InputError(f"{path}: joints must be an object from our joint names to those of the files")
    result: dict[str, Any] = {"base": str(content.get("base", "auto")), "path": path, "joints": {}}
    for ours, value in joints.items():
        if ours not in JOINT_NAMES:
            raise InputError(f"{path}: '{ours}' is none of our joints: {', '.join(JOINT_NAMES)}")
        result["joints"][ours] = _joint_source(path, ours, value)
    if "rest" in content:
        result["rest"] = _rest(path, content["rest"])
    if "feet_follow_shins" in content:
        if not isinstance(content["feet_follow_shins"], bool):
            raise InputError(f"{path}: feet_follow_shins must be true or false")
        result["feet_follow_shins"] = content["feet_follow_shins"]
    return result


def _joint_source(path: Path, ours: str, value: Any) -> JointSource:
    if isinstance(value, str):
        return _at(value)
    if not (isinstance(value, dict) and isinstance(value.get("at"), str)) or not set(value) <= {
        "at",
        "turns_with",
        "towards",
        "part",
    }:
        raise InputError(
            f'{path}: {ours} must be a joint\'s name or {{"at": NAME, "turns_with": NAME, "towards": NAME, '
            '"part": 0.5}'
        )
    part = value.get("part", 0.5 if "towards" in value else 0.0)
    if isinstance(part, bool) or not isinstance(part, (int, float)) or not -10 <= part <= 10:
        raise InputError(f"{path}: part of {ours} must be a number, got {part!r}")
    towards = value.get("towards")
    return JointSource(
        value["at"], str(value.get("turns_with", value["at"])), None if towards is None else str(towards), float(part)
    )


def _rest(path: Path, value: Any) -> str | dict[str, np.ndarray]:
    if value in ("zero", "first", "auto"):
        return str(value)
    if not isinstance(value, dict):
        raise InputError(f"{path}: rest must be zero, first, auto or an object of 3x3 matrices by joint name")
    rest = {}
    for name, rows in value.items():
        try:
            matrix = np.array(rows, float)
        except (TypeError, ValueError):
            matrix = np.zeros(0)
        if matrix.shape != (3, 3) or not np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-3):
            raise InputError(f"{path}: rest of '{name}' must be a 3x3 rotation matrix")
        if np.linalg.det(matrix) < 0:
            raise InputError(f"{path}: rest of '{name}' is a reflection; exchange or negate an axis")
        rest[str(name)] = matrix
    return rest


def apply_map(overrides: dict[str, Any], source: SourceMotion) -> JointMap:
    """The map of a file from :func:`read_map`: its base with the overrides. Raises InputError where joints lack."""
    path = overrides["path"]
    if set(overrides["joints"]) == set(JOINT_NAMES):
        base = JointMap(str(path.name), {})
    else:
        try:
            base = choose_map(source, overrides["base"])
        except InputError:
            base = _partial(source, overrides)
    chosen = JointMap(
        path.name,
        {**base.joints, **overrides["joints"]},
        overrides.get("rest", base.rest),
        overrides.get("feet_follow_shins", base.feet_follow_shins),
    )
    check_map(chosen, source)
    return chosen


def _partial(source: SourceMotion, overrides: dict[str, Any]) -> JointMap:
    """The generic map of a file whose names it doesn't all know: the overrides rename joints first."""
    names = list(source.names)
    for ours, joint in overrides["joints"].items():
        if joint.at in names:
            names[names.index(joint.at)] = _generic_name(ours)
    chosen = generic_map(source._replace(names=tuple(names)))
    back = dict(zip(names, source.names))

    def original(joint: JointSource) -> JointSource:
        return JointSource(
            back[joint.at], back[joint.turns_with], None if joint.towards is None else back[joint.towards], joint.part
        )

    return JointMap("generic", {ours: original(joint) for ours, joint in chosen.joints.items()})


def _generic_name(ours: str) -> str:
    """A name of one of our joints that the patterns recognise."""
    side, _, part = ours.partition("_")
    return f"{side}_{_PATTERNS[part][0]}" if part in _PATTERNS else ours
