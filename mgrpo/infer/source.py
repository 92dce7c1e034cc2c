"""From what a user names to a head trajectory: which reader serves it, and the options that all readers share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mgrpo.errors import InputError
from mgrpo.infer.aria import find_aria, is_adt, read_adt_head, read_aria, recording_name, vrs_device_cpf
from mgrpo.infer.checks import other_readings
from mgrpo.infer.cleaning import clean_poses, nanoseconds, rising
from mgrpo.infer.devices import DEVICES, UNITS, DeviceFrame, device_cpf_option, device_frame, nod
from mgrpo.infer.floor import EYE_HEIGHT_M
from mgrpo.infer.hamer import read_hamer
from mgrpo.infer.poses import PlainPoses, read_poses, read_wrist_file
from mgrpo.infer.poses_json import load_json, poses_from_json
from mgrpo.infer.trajectory import SIDES, Floor, HeadTrajectory, WristTrack
from mgrpo.infer.webxr import RecordedThing, is_webxr, webxr_from_json
from mgrpo.infer.wrists import controller_offset, controller_track, seen_track
from mgrpo.options import option, require


@dataclass(frozen=True)
class SourceConfig:
    """How the recording is read."""

    axes: str = "auto"
    """Axes of the head poses: auto (Aria folders, WebXR recordings and files that hold T_world_cpf say it themselves),
    cpf, aria, openxr, webxr, quest, steamvr, hololens, arkit, or unity; docs/infer.md has them in a table."""
    device_cpf: str = ""
    """From the device to the eyes: x,y,z in metres along the device's axes, a JSON file with a pose (7 numbers wxyz and
    metres, or a 4x4 matrix), or for Aria vrs (the calibration in the recording's vrs file, by the extra aria); empty:
    the device's nominal one."""
    cpf_pitch: float = 0.0
    """Turn of the head poses about their own x axis, radians; positive looks down. For glasses that sit askew."""
    unit: Literal["m", "cm", "mm", "ft", "in"] = "m"
    """Unit of positions in the file."""
    time_unit: Literal["auto", "s", "ms", "us", "ns"] = "auto"
    """Unit of times in the file; auto: as the name of the column or array says, else seconds."""
    quaternion: Literal["auto", "wxyz", "xyzw"] = "auto"
    """Order of quaternions in the file; auto: as names say, else wxyz."""
    floor: str = "auto"
    """Height of the floor in the recording's world (z up), metres; auto (from points, else the world's zero if heads
    are above it as people's are, else standing), points, zero, or standing (--eye-height below the head's usual
    greatest height)."""
    eye_height: float = EYE_HEIGHT_M
    """Height of the wearer's eyes when standing, metres; used where the floor has to be guessed."""
    wrists: Path | None = None
    """File of tracked wrists (csv or npz: t, left_wrist, right_wrist) in the world, unit and clock of the head's."""
    hamer: Path | None = None
    """HaMeR's hands (npz of `mgrpo data hamer`); by default hamer_outputs.npz in an Aria folder."""
    controller_offset: str = "wand"
    """Where the wrist is in a controller's axes: wand, grip (OpenXR's grip pose), none, or x,y,z in metres; x is
    mirrored for the left hand."""
    swap_hands: bool = False
    """Take the left wrist or controller for the right one and the other way round."""

    def __post_init__(self) -> None:
        if self.axes != "auto":
            device_frame(self.axes)
        require(self, "cpf_pitch", at_least=-1.6, at_most=1.6, unit="radians")
        require(self, "eye_height", at_least=0.5, at_most=2.5, unit="metres")
        controller_offset(self.controller_offset, option(self, "controller_offset"))

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        if self.floor in ("auto", "standing"):
            return {}
        return {"eye_height": f"with {option(self, 'floor')} {self.floor}, which says where the floor is"}


def load_trajectory(source: Path, config: SourceConfig) -> HeadTrajectory:
    """The head trajectory of a recording: a Project Aria folder, an Aria Digital Twin sequence, a WebXR recording
    (json), or plain head poses (csv, npz, npy, json).

    Raises:
        InputError: nothing of that kind there, damaged, or an option that doesn't fit it.
    """
    source = source.expanduser()
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; expected a recording of head poses")
    if source.is_dir() or source.name == "closed_loop_trajectory.csv":
        trajectory = _aria(source, config)
    else:
        trajectory = _file(source, config)
    if config.cpf_pitch:
        turned = nod(trajectory.T_world_cpf, config.cpf_pitch)
        trajectory = dataclasses.replace(trajectory, T_world_cpf=turned)
    if config.wrists is not None:
        trajectory = _with_wrists(trajectory, config.wrists, config)
    if config.hamer is not None:
        trajectory = dataclasses.replace(trajectory, hamer=read_hamer(config.hamer))
    if config.swap_hands:
        if trajectory.wrists == (None, None):
            raise InputError(f"--swap-hands: {trajectory.name} has no wrists to swap; leave it out")
        trajectory = dataclasses.replace(trajectory, wrists=trajectory.wrists[::-1])
    return trajectory


def _refuse(config: SourceConfig, names: Mapping[str, object], why: str) -> None:
    """Raise InputError for the first option that is not at its default and means nothing here."""
    for name, default in names.items():
        if getattr(config, name) != default:
            raise InputError(f"--{name.replace('_', '-')} {getattr(config, name)}: {why}; leave it out")


def _aria(source: Path, config: SourceConfig) -> HeadTrajectory:
    tells = "an Aria recording says this itself"
    _refuse(config, {"unit": "m", "time_unit": "auto", "quaternion": "auto", "controller_offset": "wand"}, tells)
    if config.axes not in ("auto", "aria"):
        raise InputError(f"--axes {config.axes}: {source} is a Project Aria recording; leave it out")
    if source.is_dir() and is_adt(source):
        if config.device_cpf == "vrs":
            raise InputError("--device-cpf vrs: give the pose itself for Aria Digital Twin, as x,y,z or a JSON file")
        return read_adt_head(source, device_cpf_option(config.device_cpf, DEVICES["aria"]))
    files = find_aria(source)
    if config.device_cpf == "vrs":
        if files.vrs is None:
            raise InputError(f"--device-cpf vrs: {files.folder} has no vrs file, or several; give the pose itself")
        pose: np.ndarray | None = vrs_device_cpf(files.vrs)
    else:
        pose = device_cpf_option(config.device_cpf, DEVICES["aria"])
    trajectory = read_aria(files, pose)
    if files.hamer is not None and config.hamer is None:
        if files.hamer.suffix == ".npz":
            return dataclasses.replace(trajectory, hamer=read_hamer(files.hamer))
        npz = files.hamer.with_suffix(".npz")
        return trajectory.with_notes(f"{files.hamer.name} is not used as it is: mgrpo data hamer {files.hamer} {npz}")
    return trajectory


def _file(source: Path, config: SourceConfig) -> HeadTrajectory:
    if config.device_cpf == "vrs":
        raise InputError("--device-cpf vrs: only Project Aria folders have a vrs file; give x,y,z or a JSON file")
    content = load_json(source) if source.suffix.lower() == ".json" else None
    if is_webxr(content):
        return _webxr(source, content, config)
    poses = read_poses(source) if content is None else poses_from_json(source, content)
    return _plain(source, poses, config)


def _plain(source: Path, poses: PlainPoses, config: SourceConfig) -> HeadTrajectory:
    if config.axes == "auto" and not poses.is_cpf:
        raise InputError(
            f"{source}: the file doesn't say whose axes its head poses have; name them by --axes: {', '.join(DEVICES)}"
        )
    frame = DEVICES["cpf" if config.axes == "auto" else config.axes]
    if poses.quat_order and config.quaternion not in ("auto", poses.quat_order):
        raise InputError(
            f"--quaternion {config.quaternion}: {source} names its quaternions in the order {poses.quat_order}; leave "
            "it out"
        )
    order = poses.quat_order or ("wxyz" if config.quaternion == "auto" else config.quaternion)
    if not poses.time_unit:
        _refuse(config, {"time_unit": "auto"}, f"{source} has frames per second and no times")
    unit = (poses.time_unit or "s") if config.time_unit == "auto" else config.time_unit
    times = nanoseconds(poses.times, unit, str(source))
    quats = _as_wxyz(poses.quats, order)
    clean = clean_poses(times, quats, poses.positions, str(source))
    notes = list(clean.notes)
    advice = other_readings(
        poses.quats[clean.kept] / np.linalg.norm(poses.quats[clean.kept], axis=1, keepdims=True),
        frame,
        order,
        order_is_told=bool(poses.quat_order) or config.quaternion != "auto",
    )
    if advice is not None:
        notes.append(advice)
    scale = UNITS[config.unit]
    offset = device_cpf_option(config.device_cpf, frame)
    controllers = [
        None if pose is None else _as_wxyz(pose[clean.kept], told or config.quaternion)
        for pose, told in zip(poses.controllers, poses.controller_orders)
    ]
    if all(one is None for one in controllers):
        _refuse(config, {"controller_offset": "wand"}, f"{source} has no controllers")
    wrists: list[WristTrack | None] = []
    for side, (seen, held) in enumerate(zip(poses.wrists, controllers)):
        if seen is not None:
            wrists.append(seen_track(clean.times_ns, scale * (seen[clean.kept] @ frame.R_world_file.T)))
        elif held is not None:
            thing = (clean.times_ns, held[:, :4], held[:, 4:])
            wrists.append(_held(thing, frame, scale, config, side, str(source), notes))
        else:
            wrists.append(None)
    return HeadTrajectory(
        name=recording_name(source),
        times_ns=clean.times_ns,
        T_world_cpf=frame.to_world(clean.quats, clean.positions, scale, offset),
        floor=Floor(0.0, "world zero") if frame.floor_at_zero else None,
        wrists=(wrists[0], wrists[1]),
        R_world_file=scale * frame.R_world_file,
        facts=_facts("head poses", source, frame, offset)
        | {"unit": config.unit, "time_unit": unit, "quaternion": order},
        notes=tuple(notes),
    )


def _as_wxyz(quats: np.ndarray, order: str) -> np.ndarray:
    """Quaternions ``(N, 4)``, or poses that begin with one ``(N, 7)``, with w first."""
    return np.concatenate((quats[:, [3, 0, 1, 2]], quats[:, 4:]), axis=1) if order == "xyzw" else quats


def _facts(what: str, source: Path, frame: DeviceFrame, T_device_cpf: np.ndarray | None) -> dict[str, object]:
    pose = frame.T_device_cpf if T_device_cpf is None else T_device_cpf
    return {
        "format": what,
        "file": str(source),
        "device": frame.name,
        "T_device_cpf": [float(number) for number in pose],
    }


def _held(
    thing: tuple[np.ndarray, np.ndarray, np.ndarray],
    frame: DeviceFrame,
    scale: float,
    config: SourceConfig,
    side: int,
    where: str,
    notes: list[str],
) -> WristTrack | None:
    """The wrist behind a controller: times, quaternions and positions as the file has them."""
    times, quats, positions = thing
    turned = ~(np.abs(np.linalg.norm(quats, axis=1) - 1) > 1e-2)
    broken = int((~turned & (np.linalg.norm(positions, axis=1) > 1e-9)).sum())
    if broken:
        notes.append(
            f"WARNING: {where}, {SIDES[side]} controller: {broken} of {len(quats)} rows were left out, whose "
            "quaternion is not of length 1; was it tracked there, and is the order right (--quaternion)?"
        )
    times, quats, positions = times[turned], quats[turned], positions[turned]
    left = (side == 0) != config.swap_hands  # the hand that holds it
    offset = controller_offset(config.controller_offset) * np.array([-1.0 if left else 1.0, 1.0, 1.0])
    poses = frame.device_to_world(quats, positions, scale)
    track, more = controller_track(times, poses, offset, f"{where}, {SIDES[side]} controller")
    notes += more
    return track


def _webxr(source: Path, content: Mapping[str, object], config: SourceConfig) -> HeadTrajectory:
    tells = "a WebXR recording says this itself"
    _refuse(config, {"unit": "m", "time_unit": "auto", "quaternion": "auto"}, tells)
    if config.axes not in ("auto", "webxr"):
        raise InputError(f"--axes {config.axes}: {source} is a WebXR recording; leave it out")
    frame = DEVICES["webxr"]
    recording = webxr_from_json(source, content)
    if recording.left is None and recording.right is None:
        _refuse(config, {"controller_offset": "wand"}, f"{source} has no controllers")
    offset = device_cpf_option(config.device_cpf, frame)
    head = recording.head
    clean = clean_poses(nanoseconds(head.times_ms, "ms", str(source)), head.quats, head.positions, str(source))
    notes = list(clean.notes)
    wrists = []
    for side, thing in enumerate((recording.left, recording.right)):
        wrists.append(
            None if thing is None else _held(_timed(thing, source), frame, 1.0, config, side, str(source), notes)
        )
    return HeadTrajectory(
        name=recording_name(source),
        times_ns=clean.times_ns,
        T_world_cpf=frame.to_world(clean.quats, clean.positions, 1.0, offset),
        floor=Floor(0.0, "world zero"),
        wrists=(wrists[0], wrists[1]),
        R_world_file=frame.R_world_file,
        facts=_facts("WebXR recording", source, frame, offset),
        notes=tuple(notes),
    )


def _timed(thing: RecordedThing, source: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return nanoseconds(thing.times_ms, "ms", str(source)), thing.quats, thing.positions


def _with_wrists(trajectory: HeadTrajectory, path: Path, config: SourceConfig) -> HeadTrajectory:
    times, unit, wrists = read_wrist_file(path)
    stamps = nanoseconds(times, unit if config.time_unit == "auto" else config.time_unit, str(path))
    keep, notes = rising(stamps, str(path), "wrists")
    tracks = [
        None if seen is None else seen_track(stamps[keep], seen[keep] @ trajectory.R_world_file.T) for seen in wrists
    ]
    inside = (stamps >= trajectory.times_ns[0]) & (stamps <= trajectory.times_ns[-1])
    if not inside.any():
        raise InputError(
            f"{path}: its times ({stamps[0] / 1e9:.3f} to {stamps[-1] / 1e9:.3f} s) don't meet the head's "
            f"({trajectory.times_ns[0] / 1e9:.3f} to {trajectory.times_ns[-1] / 1e9:.3f} s); both need the same clock"
        )
    return dataclasses.replace(trajectory, wrists=(tracks[0], tracks[1])).with_notes(*notes)
