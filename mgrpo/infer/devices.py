"""The frames in which devices report a head's pose, and the way from there to ours.

Ours: world right-handed with z up, metres; pose of the central pupil frame (CPF), whose origin is the midpoint of the
eyes and whose axes are x to the wearer's left, y up, z forward. A device's pose differs in three ways: the axes of its
world, the axes of the device, and the point that it stands for. A preset names all three; ``t_device_cpf``, from the
device's point to the eyes, is what is known least well, and can be given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mgrpo.data.aria_device import NOMINAL_DEVICE_CPF, read_device_cpf
from mgrpo.errors import InputError
from mgrpo.geometry import quat_multiply, quat_normalize, rotmat_to_quat, se3_multiply

Y_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
"""From a world with y up to one with z up: (x, y, z) -> (x, -z, y)."""

MIRROR = np.diag([1.0, 1.0, -1.0])
"""From a left-handed world with z forward to a right-handed one with -z forward."""

_VIEWER = np.diag([-1.0, 1.0, -1.0])  # x right, y up, -z forward -> x left, y up, z forward

UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "ft": 0.3048, "in": 0.0254}
"""Metres in a unit of length."""


@dataclass(frozen=True, eq=False)
class DeviceFrame:
    """How one kind of device reports the pose of a head."""

    name: str
    """Name of the preset, as typed after --axes."""
    summary: str
    """What it is, in a line."""
    R_world_file: np.ndarray
    """Axes of the file's world in ours ``(3, 3)``; improper for a left-handed one."""
    R_device_cpf: np.ndarray
    """CPF axes in the device's (right-handed) ``(3, 3)``."""
    t_device_cpf: np.ndarray
    """Eyes' midpoint in the device's axes ``(3,)``, metres."""
    floor_at_zero: bool
    """Whether the world's zero is usually the floor; otherwise it is where tracking began."""

    def to_world(
        self, quats: np.ndarray, positions: np.ndarray, scale: float = 1.0, T_device_cpf: np.ndarray | None = None
    ) -> np.ndarray:
        """``T_world_cpf (N, 7)`` float64 from poses as the file has them.

        Args:
            quats: unit quaternions wxyz ``(N, 4)``, in the file's handedness.
            positions: ``(N, 3)`` in the file's unit.
            scale: metres in that unit.
            T_device_cpf: ``(7,)`` in the device's axes, instead of the preset's.
        """
        device = self.device_to_world(quats, positions, scale)
        offset = self.T_device_cpf if T_device_cpf is None else T_device_cpf
        return se3_multiply(torch.from_numpy(device), torch.from_numpy(offset)).numpy()

    def device_to_world(self, quats: np.ndarray, positions: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """``T_world_device (N, 7)`` in our world, of a head's device or of another in the same world, such as a
        controller; arguments as of :meth:`to_world`. A left-handed device's own axes are mirrored in z."""
        turn = self.R_world_file
        if np.linalg.det(turn) < 0:  # R' = M R M: the vector part of the quaternion turns the other way, mirrored
            quats = quats * np.array([1.0, -1.0, -1.0, 1.0])
            turn = turn @ MIRROR
        quat = rotmat_to_quat(torch.from_numpy(turn))
        turned = quat_normalize(quat_multiply(quat, torch.from_numpy(np.asarray(quats, np.float64)))).numpy()
        return np.concatenate((turned, scale * (positions @ self.R_world_file.T)), axis=1)

    @property
    def T_device_cpf(self) -> np.ndarray:
        """The preset's pose of the CPF in the device's frame ``(7,)``."""
        return pose7(self.R_device_cpf, self.t_device_cpf)


def pose7(R: np.ndarray, t: np.ndarray) -> np.ndarray:
    """``(7,)`` wxyz and xyz from a rotation matrix ``(3, 3)`` and a translation ``(3,)``."""
    quat = quat_normalize(rotmat_to_quat(torch.from_numpy(np.asarray(R, np.float64)))).numpy()
    return np.concatenate((quat, t))


def _nominal_aria() -> np.ndarray:
    U, _, Vt = np.linalg.svd(NOMINAL_DEVICE_CPF[:, :3])
    return U @ Vt


def _y_up(name: str, summary: str, z: float = 0.0, *, floor: bool = True, mirrored: bool = False) -> DeviceFrame:
    world = Y_UP @ MIRROR if mirrored else Y_UP
    return DeviceFrame(name, summary, world, _VIEWER, np.array([0.0, 0.0, z]), floor)


DEVICES: Mapping[str, DeviceFrame] = {
    frame.name: frame
    for frame in (
        DeviceFrame(
            "cpf",
            "central pupil frames (x left, y up, z forward) in a world with z up: nothing is changed",
            np.eye(3),
            np.eye(3),
            np.zeros(3),
            True,
        ),
        DeviceFrame(
            "aria",
            "T_world_device of Project Aria, z up; eyes by the nominal construction of size S",
            np.eye(3),
            _nominal_aria(),
            NOMINAL_DEVICE_CPF[:, 3],
            False,
        ),
        _y_up("openxr", "OpenXR VIEW space in STAGE or LOCAL_FLOOR: y up, x right, -z forward; between the eyes"),
        _y_up("webxr", "WebXR viewer pose in local-floor or bounded-floor: as openxr"),
        _y_up("quest", "Meta's CenterEyeAnchor or head node, native (not Unity), floor-level origin: as openxr"),
        _y_up(
            "steamvr", "OpenVR raw HMD pose, standing universe: as openxr, origin 15 mm in front of the eyes", z=0.015
        ),
        _y_up("hololens", "HoloLens head position and orientation: as openxr, zero where tracking began", floor=False),
        _y_up("arkit", "ARKit camera or device anchor: y up, x right, -z forward; zero at the start", floor=False),
        _y_up("unity", "a head or camera recorded in Unity: left-handed, y up, x right, z forward", mirrored=True),
    )
}
"""The presets, by name."""


def device_frame(name: str, option: str = "--axes") -> DeviceFrame:
    """The preset of that name. Raises InputError listing them."""
    if name not in DEVICES:
        listed = "; ".join(f"{frame.name} ({frame.summary})" for frame in DEVICES.values())
        raise InputError(f"{option}: there is no preset {name!r}. Presets: {listed}")
    return DEVICES[name]


def device_cpf_option(text: str, frame: DeviceFrame, option: str = "--device-cpf") -> np.ndarray | None:
    """The pose of the CPF in the device's frame ``(7,)`` that a user means by ``text``: three numbers ``x,y,z`` (metres
    in the device's axes, orientation as the preset's), or a JSON file of a whole pose; empty: None, the preset's.

    Raises:
        InputError: neither of them, or further than half a metre from the device.
    """
    if not text:
        return None
    cells = text.split(",")
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError:
        numbers = []
    if numbers:
        if len(numbers) != 3:
            raise InputError(f"{option}: expected three numbers x,y,z in metres, got {len(numbers)}: {text}")
        pose = pose7(frame.R_device_cpf, np.array(numbers))
    elif Path(text).suffix.lower() != ".json":
        raise InputError(f"{option}: expected x,y,z in metres, or a JSON file with a pose, got {text!r}")
    else:
        pose = read_device_cpf(Path(text))
    if not np.linalg.norm(pose[4:]) < 0.5:
        raise InputError(
            f"{option}: the eyes would be {np.linalg.norm(pose[4:]):.2f} m from the device; the offset is in metres"
        )
    return pose


def nod(T_world_cpf: np.ndarray, radians: float) -> np.ndarray:
    """Head poses ``(N, 7)`` turned by ``radians`` about their own x axis (up for negative angles), for glasses that sit
    askew."""
    if radians == 0.0:
        return T_world_cpf
    turn = torch.tensor([np.cos(radians / 2), np.sin(radians / 2), 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    return se3_multiply(torch.from_numpy(T_world_cpf), turn).numpy()
