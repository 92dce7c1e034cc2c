"""From our world and rest axes to those of a file: the one place of export where axes and units change.

Ours: the world is right-handed with z up, in metres; the body's rest pose stands in axes of its own, +x its left, +y
up, +z forward (SMPL's). A file with y up has SMPL's rest axes as they are, and a world that is ours turned by -90
degrees about x: (x, y, z) becomes (x, z, -y). A file with z up has our world, and rest axes turned by +90 degrees:
(x, y, z) becomes (x, -z, y). Either way a skeleton whose rotations are all zero stands upright in the file's world,
which is what rest poses of BVH and glTF are expected to do. Facing: somebody who looks along our +x looks along +x of
every file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mgrpo.geometry import quat_apply, quat_conjugate, quat_multiply

Up = Literal["y", "z"]
Unit = Literal["m", "cm"]

PER_METRE = {"m": 1.0, "cm": 100.0}
"""Units in a metre."""

_HALF = 0.5**0.5
_TO_Y_UP = (_HALF, -_HALF, 0.0, 0.0)
_TO_Z_UP = (_HALF, _HALF, 0.0, 0.0)
_NONE = (1.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class FileFrame:
    """World and rest axes of a file, and its unit of length. All functions take and give float64 tensors."""

    up: Up = "y"
    """Axis of the file's world that points up."""
    unit: Unit = "m"
    """Unit of lengths in the file."""

    @property
    def q_file_world(self) -> Tensor:
        """Rotation of our world into the file's, wxyz ``(4,)``."""
        return torch.tensor(_TO_Y_UP if self.up == "y" else _NONE, dtype=torch.float64)

    @property
    def q_file_rest(self) -> Tensor:
        """Rotation of SMPL's rest axes into the file's, wxyz ``(4,)``."""
        return torch.tensor(_NONE if self.up == "y" else _TO_Z_UP, dtype=torch.float64)

    @property
    def per_metre(self) -> float:
        """The file's units in a metre."""
        return PER_METRE[self.unit]

    def points(self, points: Tensor) -> Tensor:
        """Points of our world in metres ``(…, 3)`` as the file has them."""
        return self.per_metre * quat_apply(self.q_file_world, points)

    def rest(self, offsets: Tensor) -> Tensor:
        """Points or bone offsets of the rest pose in metres ``(…, 3)`` as the file has them."""
        return self.per_metre * quat_apply(self.q_file_rest, offsets)

    def root_quats(self, quats: Tensor) -> Tensor:
        """Rotations of the root in our world, wxyz ``(…, 4)``, as rotations of the file's rest pose in its world."""
        return quat_multiply(quat_multiply(self.q_file_world, quats), quat_conjugate(self.q_file_rest))

    def local_quats(self, quats: Tensor) -> Tensor:
        """Rotations of joints relative to their parents, wxyz ``(…, 4)``, about the file's rest axes."""
        return quat_multiply(quat_multiply(self.q_file_rest, quats), quat_conjugate(self.q_file_rest))
