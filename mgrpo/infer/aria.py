"""Project Aria: folders of machine perception services (MPS), and Aria Digital Twin sequences (facts: section I).

Own readers of the CSV files. The pose of the central pupil frame in the device's comes from the recording's calibration
(in its vrs file, read by the package projectaria-tools), from the user, or from the device's construction.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mgrpo.data.adt.files import find_adt, read_trajectory
from mgrpo.data.adt.sequence import floor_height
from mgrpo.data.csv_columns import read_columns
from mgrpo.data.point_cloud import read_points
from mgrpo.data.pose_track import sample_poses, turned_poses
from mgrpo.data.upright import up_rotation
from mgrpo.errors import InputError
from mgrpo.geometry import quat_apply, quat_to_rotmat, se3_multiply
from mgrpo.infer.cleaning import clean_poses, rising
from mgrpo.infer.devices import DEVICES, pose7
from mgrpo.infer.trajectory import SIDES, Floor, HeadTrajectory, WristTrack

POINTS = ("semidense_points.csv.gz", "semidense_points.csv", "global_points.csv.gz", "global_points.csv")
"""Names of point clouds, the better one first."""

EXTRA = "aria"
"""The extra of this package that brings projectaria-tools."""


class AriaFiles(NamedTuple):
    """What there is of one recording."""

    folder: Path
    trajectory: Path
    """``closed_loop_trajectory.csv``."""
    points: Path | None
    wrists: Path | None
    """``wrist_and_palm_poses.csv``."""
    hamer: Path | None
    """HaMeR's hands as npz, or the original's pickle."""
    vrs: Path | None


def is_adt(folder: Path) -> bool:
    """Whether a folder has an Aria Digital Twin trajectory and none of MPS."""
    return any(folder.rglob("*aria_trajectory.csv")) and not any(folder.rglob("closed_loop_trajectory.csv"))


def find_aria(folder: Path) -> AriaFiles:
    """The files of the recording in ``folder``, wherever they are below it; ``folder`` may also be the trajectory.

    Raises:
        InputError: no trajectory, or several of a kind.
    """
    if folder.is_file():
        trajectory, folder = folder, folder.parent
    else:
        found = _all(folder, "closed_loop_trajectory.csv")
        if not found:
            opened = _all(folder, "open_loop_trajectory.csv")
            hint = "; the open-loop trajectory drifts and is not used" if opened else ""
            raise InputError(
                f"{folder}: no closed_loop_trajectory.csv below it{hint}. Give the folder with the recording's MPS "
                "output (mps_..._vrs/slam), or of another device the file of head poses itself"
            )
        trajectory = _only(folder, found, "trajectories")
    points = next((beside for name in POINTS if (beside := trajectory.parent / name).is_file()), None)
    if points is None:
        clouds = [path for name in POINTS for path in _all(folder, name)]
        points = clouds[0] if clouds else None
    wrists, vrs = _all(folder, "wrist_and_palm_poses.csv"), _all(folder, "*.vrs")
    hamer = [path for name in ("hamer_outputs.npz", "hamer_outputs.pkl") for path in _all(folder, name)]
    return AriaFiles(
        folder,
        trajectory,
        points,
        _only(folder, wrists, "wrist and palm tracks") if wrists else None,
        hamer[0] if hamer else None,
        vrs[0] if len(vrs) == 1 else None,
    )


def _all(folder: Path, name: str) -> list[Path]:
    return sorted(path for path in folder.rglob(name) if path.is_file())


def _only(folder: Path, found: list[Path], what: str) -> Path:
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found[:4])
        raise InputError(f"{folder}: {len(found)} {what} ({names} ...); give the folder of one recording")
    return found[0]


def vrs_device_cpf(vrs: Path) -> np.ndarray:
    """``T_device_cpf (7,)`` from a recording's own calibration, by the package projectaria-tools.

    Raises:
        InputError: the package is not installed, or the file has no calibration.
    """
    try:
        from projectaria_tools.core import data_provider
    except ImportError as error:
        raise InputError(
            f"{vrs}: its calibration is read by the package projectaria-tools, which can't be imported ({error}). "
            f"Install it (pip install 'mgrpo[{EXTRA}]'), or give the pose by --device-cpf x,y,z or a JSON file"
        ) from error
    if not vrs.is_file():
        raise InputError(f"{vrs}: no such file; expected a recording (vrs)")
    try:
        provider = data_provider.create_vrs_data_provider(str(vrs))
        calibration = None if provider is None else provider.get_device_calibration()
        matrix = None if calibration is None else np.asarray(calibration.get_transform_device_cpf().to_matrix())
    except (RuntimeError, ValueError, AttributeError) as error:
        raise InputError(f"{vrs}: its calibration can't be read ({error})") from error
    if matrix is None or matrix.shape not in ((3, 4), (4, 4)):
        raise InputError(f"{vrs}: it has no calibration of the central pupil frame; give --device-cpf")
    return pose7(matrix[:3, :3], matrix[:3, 3])


def read_aria(files: AriaFiles, T_device_cpf: np.ndarray | None = None) -> HeadTrajectory:
    """The head's trajectory of an MPS folder, with floor and wrists where there are such files.

    Args:
        files: from :func:`find_aria`.
        T_device_cpf: pose of the central pupil frame ``(7,)``; None: the nominal one, which is noted.
    Raises:
        InputError: damaged files.
    """
    where, axes = str(files.trajectory), "xyz"
    wanted = [("tracking_timestamp_us",), *((f"q{axis}_world_device",) for axis in "wxyz")]
    wanted += [(f"t{axis}_world_device",) for axis in axes]
    wanted += [(f"gravity_{axis}_world", f"gravity_{axis}") for axis in axes]
    rows = read_columns(files.trajectory, "device trajectory", wanted)
    clean = clean_poses(np.rint(rows[:, 0]).astype(np.int64) * 1000, rows[:, 1:5], rows[:, 5:8], where)
    turn = up_rotation(_gravity(rows[:, 8:], where))
    del rows  # the largest array of an hour at 1 kHz
    device = turned_poses(np.concatenate((clean.quats, clean.positions), axis=1), turn)
    notes = list(clean.notes)
    nominal = T_device_cpf is None
    if T_device_cpf is None:
        T_device_cpf = DEVICES["aria"].T_device_cpf
        notes.append(
            "eyes by the device's nominal construction (up to a centimetre off); --device-cpf vrs reads the "
            "recording's own calibration"
        )
    floor = None
    if files.points is not None:
        height = read_points(files.points).floor(turn)
        floor = None if height is None else Floor(height, "points")
        if floor is None:
            notes.append(f"{files.points.name} was not used for the floor: too few certain points")
    left, right = (None, None) if files.wrists is None else _wrists(files.wrists, clean.times_ns, device, notes)
    return HeadTrajectory(
        name=recording_name(files.folder),
        times_ns=clean.times_ns,
        T_world_cpf=se3_multiply(torch.from_numpy(device), torch.from_numpy(T_device_cpf)).numpy(),
        floor=floor,
        wrists=(left, right),
        R_world_file=turn,
        facts={
            "format": "Project Aria MPS",
            "trajectory": str(files.trajectory),
            "points": None if files.points is None else str(files.points),
            "T_device_cpf": [float(number) for number in T_device_cpf],
            "T_device_cpf_nominal": nominal,
        },
        notes=tuple(notes),
    )


def recording_name(path: Path) -> str:
    """A name for the recording at ``path``."""
    resolved = path.resolve()
    name = resolved.with_suffix("") if resolved.suffix == ".gz" else resolved  # a.csv.gz is a
    return (name.stem if resolved.is_file() else resolved.name) or "recording"


def _gravity(rows: np.ndarray, where: str) -> np.ndarray:
    gravity = np.median(rows, axis=0) if len(rows) else np.zeros(3)
    size = float(np.linalg.norm(gravity))
    if not 9 < size < 10.5:
        raise InputError(f"{where}: gravity has length {size:.3g} m/s², expected 9.8; the up axis can't be known")
    return gravity / size


def _wrists(
    path: Path, times: np.ndarray, T_world_device: np.ndarray, notes: list[str]
) -> tuple[WristTrack | None, WristTrack | None]:
    """Wrists of ``wrist_and_palm_poses.csv``; a hand that was not seen has confidence -1."""
    what = "table of wrists and palms"
    groups = [
        [(f"{side}_tracking_confidence",)]
        + [(f"t{axis}_{side}_{part}_device",) for part in ("wrist", "palm") for axis in "xyz"]
        + [(f"n{axis}_{side}_palm_device",) for axis in "xyz"]
        for side in SIDES
    ]
    rows = read_columns(path, what, [("tracking_timestamp_us",), *groups[0], *groups[1]])
    stamps = np.rint(rows[:, 0]).astype(np.int64) * 1000
    tracks: list[WristTrack | None] = []
    for index, side in enumerate(SIDES):
        values = rows[:, 1 + 10 * index : 11 + 10 * index]
        seen = (values[:, 0] > 0) & (stamps >= times[0]) & (stamps <= times[-1])
        keep, more = rising(stamps[seen], f"{path}: {side}")
        notes += more
        values, when = values[seen][keep], stamps[seen][keep]
        if not len(when):
            tracks.append(None)
            continue
        poses = torch.from_numpy(sample_poses(times, T_world_device, when))
        place, palm = (torch.from_numpy(values[:, a : a + 3].copy()) for a in (1, 4))
        wrist = quat_apply(poses[:, :4], place) + poses[:, 4:]
        R_device = _wrist_rotation(place.numpy(), palm.numpy(), values[:, 7:10], right=side == "right")
        R_world = quat_to_rotmat(poses[:, :4]).numpy() @ R_device
        tracks.append(WristTrack(when, wrist.numpy(), np.clip(values[:, 0], 0, 1), "Aria", R_world_wrist=R_world))
    return tracks[0], tracks[1]


def _wrist_rotation(wrist: np.ndarray, palm: np.ndarray, normal: np.ndarray, *, right: bool) -> np.ndarray:
    """Orientation of the wrist joint ``(M, 3, 3)``: columns along the hand (against it for the right one), against the
    palm's normal, and across (facts: section H)."""

    def unit(vectors: np.ndarray) -> np.ndarray:
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

    n = unit(normal)
    forward = unit(palm - wrist) * (-1.0 if right else 1.0)
    forward = unit(forward - n * (forward * n).sum(axis=1, keepdims=True))
    return np.stack((forward, -n, np.cross(n, forward)), axis=2)


def read_adt_head(folder: Path, T_device_cpf: np.ndarray | None = None) -> HeadTrajectory:
    """The head's trajectory of an Aria Digital Twin sequence, from its ground truth with y up. Raises InputError."""
    files = find_adt(folder, "none")
    recorded = read_trajectory(files.trajectory)
    turn = up_rotation(recorded.gravity)
    device = turned_poses(recorded.T_world_device, turn)
    notes: list[str] = []
    nominal = T_device_cpf is None
    if T_device_cpf is None:
        T_device_cpf = DEVICES["aria"].T_device_cpf
        notes.append("eyes by the device's nominal construction (up to a centimetre off); see --device-cpf")
    height, source = floor_height(files, "auto", recorded, turn, None, notes)
    return HeadTrajectory(
        name=recording_name(folder),
        times_ns=recorded.times_ns,
        T_world_cpf=se3_multiply(torch.from_numpy(device), torch.from_numpy(T_device_cpf)).numpy(),
        floor=Floor(height, source),
        R_world_file=turn,
        facts={
            "format": "Aria Digital Twin",
            "trajectory": str(files.trajectory),
            "T_device_cpf": [float(number) for number in T_device_cpf],
            "T_device_cpf_nominal": nominal,
        },
        notes=tuple(notes),
    )
