"""Where a head (and perhaps its wrists) was over time, in one form whatever device recorded it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mgrpo.errors import InputError
from mgrpo.infer.detections import HamerDetections

SIDES = ("left", "right")
"""Order of everything that there is once per hand."""

LONGEST_S = 24 * 3600.0
"""Most seconds of one recording; a longer one has a wrong unit of time, or would fill the disk."""


class Floor(NamedTuple):
    """The floor under a recording."""

    height: float
    """Its height in the trajectory's world, metres."""
    source: str
    """How it is known: ``points``, ``world zero``, ``standing``, ``option``."""


@dataclass(frozen=True, eq=False)
class WristTrack:
    """Where one wrist was seen."""

    times_ns: np.ndarray
    """Times ``(M,)`` int64 on the trajectory's clock, rising."""
    positions: np.ndarray
    """The wrist ``(M, 3)``, metres, in the trajectory's world."""
    confidence: np.ndarray
    """How sure each is ``(M,)``, 0 to 1."""
    source: str
    """What saw it: ``controller``, ``Aria``, ``HaMeR``, ``track``."""
    R_world_wrist: np.ndarray | None = None
    """Orientation of the wrist joint ``(M, 3, 3)``, where the source tells it."""
    R_world_device: np.ndarray | None = None
    """Orientation of a controller ``(M, 3, 3)``, which is not the wrist's."""

    def __post_init__(self) -> None:
        count = len(self.times_ns)
        for name, shape in (
            ("positions", (count, 3)),
            ("confidence", (count,)),
            ("R_world_wrist", (count, 3, 3)),
            ("R_world_device", (count, 3, 3)),
        ):
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise InputError(f"WristTrack.{name} must have shape {shape}, got {value.shape}")
            if value is not None and not np.isfinite(value).all():
                raise InputError(f"WristTrack.{name} must be finite; leave out what was not seen")
        if (np.diff(self.times_ns) <= 0).any():
            raise InputError("WristTrack.times_ns must rise")


@dataclass(frozen=True, eq=False)
class HeadTrajectory:
    """Poses of a head's central pupil frame (CPF) at the recording's own times. World: right-handed, z up, metres."""

    name: str
    """Name of the recording, for files."""
    times_ns: np.ndarray
    """Times ``(N,)`` int64 nanoseconds on the recording's clock, rising, at least two."""
    T_world_cpf: np.ndarray
    """Poses ``(N, 7)`` float64, unit quaternion wxyz, then xyz; CPF axes: x left, y up, z forward."""
    floor: Floor | None = None
    """The floor, where the recording tells it."""
    wrists: tuple[WristTrack | None, WristTrack | None] = (None, None)
    """Left and right wrist."""
    hamer: HamerDetections | None = None
    """Hands that HaMeR found in the recording's images."""
    R_world_file: np.ndarray = field(default_factory=lambda: np.eye(3))
    """From axes and units of the file's world to this one ``(3, 3)``: a rotation, mirrored for left-handed files and
    scaled for other units. Positions here are this times those there."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of the source, as plain values for the record: format, files, assumptions."""
    notes: tuple[str, ...] = ()
    """What a person should know: assumptions, repairs, warnings."""

    def __post_init__(self) -> None:
        count = len(self.times_ns)
        if count < 2:
            raise InputError(f"HeadTrajectory: at least 2 poses are needed, got {count}")
        if self.T_world_cpf.shape != (count, 7) or self.times_ns.dtype != np.int64:
            raise InputError(
                f"HeadTrajectory: {count} times ({self.times_ns.dtype}, int64 is needed) don't fit poses of shape "
                f"{self.T_world_cpf.shape}, (N, 7) is needed"
            )
        if not np.isfinite(self.T_world_cpf).all():
            row = int(np.argmin(np.isfinite(self.T_world_cpf).all(axis=1)))
            raise InputError(f"{self.name}: head pose {row} is not finite (NaN or infinity); repair or cut it")
        if (np.diff(self.times_ns) <= 0).any():
            raise InputError("HeadTrajectory.times_ns must rise; see mgrpo.infer.cleaning.clean_poses")
        if self.seconds > LONGEST_S:
            raise InputError(
                f"{self.name}: lasts {self.seconds / 3600:.1f} hours, at most {LONGEST_S / 3600:g} are taken. If it is "
                "shorter in truth, its times have another unit: see --time-unit"
            )

    def __len__(self) -> int:
        return len(self.times_ns)

    @property
    def seconds(self) -> float:
        """From the first pose to the last."""
        return float(self.times_ns[-1] - self.times_ns[0]) / 1e9

    def with_notes(self, *notes: str) -> HeadTrajectory:
        """The same with further notes."""
        return dataclasses.replace(self, notes=(*self.notes, *notes))
