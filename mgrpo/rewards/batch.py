"""What a reward sees: predicted groups, the motion that was recorded, and the scales of the exponentials."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from mgrpo.errors import InputError
from mgrpo.options import require

if TYPE_CHECKING:
    from mgrpo.data.windows import MotionWindows
    from mgrpo.models.motion import PredictedMotion
    from mgrpo.models.perceptual import PerceptualModel


@dataclass(frozen=True)
class RewardScales:
    """Slopes of the exponentials: a reward is ``exp(-slope * error)``. Per-reward normalisation cancels them to first
    order (`docs/conventions.md`), so the relative importance of rewards is set by their weights, not here."""

    position: float = 1.0
    """Slope of the joint position reward, per metre."""
    aligned_position: float = 1.0
    """Slope of the Procrustes-aligned position reward, per metre."""
    rotation: float = 1.0
    """Slope of the joint rotation reward, per radian."""
    velocity: float = 0.2
    """Slope of the joint velocity reward, per metre per second."""
    visual: float = 0.2
    """Slope of the perceptual reward, per unit of score: the reward is exp(slope * score)."""
    foot_skate: float = 1.0
    """Slope of the foot-skate reward, per metre slid per contact second."""
    penetration: float = 10.0
    """Slope of the ground-penetration reward, per metre of mean depth."""
    jitter: float = 0.002
    """Slope of the jitter reward, per metre per second cubed."""
    head: float = 10.0
    """Slope of the head position reward, per metre."""

    def __post_init__(self) -> None:
        require(self, *vars(self), above=0)


@dataclass(frozen=True)
class RewardBatch:
    """B conditions with G samples each, and what was really recorded.

    The prediction is placed by the **clean** head trajectory (the policy alone sees the perturbed one), so that no
    sample is charged for the noise that was put on its condition.
    """

    prediction: PredictedMotion
    """Predicted motion with leading axes (B, G, T): joints22 in world metres, local body_rotmats, world rotations."""
    target: MotionWindows
    """Recorded motion with leading axes (B, T) and the frame mask (B, T)."""
    fps: float = 30.0
    """Frames per second of both."""
    scales: RewardScales = field(default_factory=RewardScales)
    rotation_error: Literal["geodesic", "axis_angle", "frobenius"] = "geodesic"
    """Which rotation error the rotation reward uses; `axis_angle` is the paper preset (facts: method, section 3)."""
    alignment: Literal["standard", "egoallo"] = "standard"
    """Which aligned error: `standard` aligns the prediction to the ground truth, `egoallo` is the published defect
    (label to label)."""
    perceptual: PerceptualModel | None = None
    """The trained perceptual model, needed by the visual reward only."""

    def __post_init__(self) -> None:
        predicted, recorded = self.prediction.joints22.shape, self.target.mask.shape
        if len(predicted) != 5 or (predicted[0], predicted[2]) != tuple(recorded):
            raise InputError(
                f"RewardBatch: a target of {recorded[0]} windows of {recorded[1]} frames needs predicted joints22 of "
                f"shape ({recorded[0]}, G, {recorded[1]}, 22, 3), got {tuple(predicted)}"
            )

    @property
    def frame_mask(self) -> Tensor:
        """Valid frames, (B, 1, T) bool, ready to broadcast over the group."""
        return self.target.mask[:, None, :]


def mean_over_frames(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values (B, G, T)`` over the valid frames of ``mask (B, 1 or G, T)``; ``(B, G)``.

    A sequence without any valid frame gives NaN, which means "cannot be scored" to whoever normalises rewards.
    """
    mask = mask.expand_as(values)
    return values.masked_fill(~mask, 0).sum(-1) / mask.sum(-1)
