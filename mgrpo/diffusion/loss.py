"""Training loss of the prior: EgoAllo's weighted x0 regression (fact sheet E)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.errors import InputError
from mgrpo.geometry import se3_apply, se3_inverse
from mgrpo.kernels import STREAM_TRAIN, philox_normal, philox_uniform
from mgrpo.models.denoiser import Denoiser
from mgrpo.models.state import NUM_BETAS, StateLayout, pack_windows
from mgrpo.options import option, require

if TYPE_CHECKING:
    from mgrpo.data.windows import MotionWindows

_LEFT_WRIST, _RIGHT_WRIST = 20, 21
"""Wrists among the 22 joints, root first."""
_HAND_MOTION_MIN = 1e-5
_HAND_FRAMES_MIN = 256


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms; the defaults are EgoAllo's."""

    betas: float = 0.1
    """Body shape. Inside the term, coefficient i (from 0) counts 1 / (i + 1)."""
    body_rotmats: float = 1.0
    """Body rotations, compared as raw matrix entries."""
    contacts: float = 0.1
    """Contact flags."""
    hand_rotmats: float = 0.01
    """Hand rotations, of clips whose hands move."""
    level: Literal["egoallo", "constant"] = "egoallo"
    """Weight of a diffusion level: EgoAllo's ``0.99 SNR_t / SNR_1 + 0.01`` (levels below 20 dominate), or 1 for all
    levels."""

    def __post_init__(self) -> None:
        terms = ("betas", "body_rotmats", "contacts", "hand_rotmats")
        require(self, *terms, at_least=0)
        if not any(getattr(self, name) for name in terms):
            raise InputError(
                f"{', '.join(option(self, name) for name in terms)}: every weight is 0; give at least one term a weight"
            )
        if self.level not in ("egoallo", "constant"):
            raise InputError(f"{option(self, 'level')} must be 'egoallo' or 'constant', got {self.level!r}")


class DenoisingLoss(NamedTuple):
    """Loss of one batch."""

    total: Tensor
    """Weighted sum of the terms, a scalar with gradient."""
    terms: dict[str, Tensor]
    """Each modality's term before its weight, scalars with gradient."""
    x0_pred: Tensor
    """The prediction that they are about ``(B, T, D)``, with gradient."""


class FrameCounts(NamedTuple):
    """Frames over which the terms are averaged, before any lower bound; () int64 each. Those of the parts of a batch
    add up to those of the batch."""

    frames: Tensor
    """Real frames."""
    hand_frames: Tensor
    """Real frames of clips whose hands move; 0 for a layout without hands."""


class TrainingDraws(NamedTuple):
    """Random numbers of one training batch."""

    t: Tensor
    """Levels ``(B,)`` int64."""
    noise: Tensor
    """``(B, T, D)`` float32, standard normal."""
    cond_keep: Tensor
    """``(B,)`` bool, False where the condition is dropped."""
    hand_keep: Tensor
    """``(B, T)`` bool, False where the wrists' positions are hidden; each clip has its own rate."""


def draw_training_noise(
    layout: StateLayout,
    *,
    seed: int,
    iteration: int,
    batch: int,
    frames: int,
    max_t: int = 1000,
    cond_dropout: float = 0.0,
    first: int = 0,
    device: torch.device | str = "cpu",
) -> TrainingDraws:
    """The random numbers of training iteration ``iteration``: a pure function of (seed, iteration, position in the
    batch), for the ``batch`` positions from ``first`` on.

    Levels are uniform on 1 … max_t. ``cond_dropout`` is the probability with which an item's condition is zeroed.
    """
    if not 0.0 <= cond_dropout <= 1.0:
        raise InputError(f"draw_training_noise(): cond_dropout must lie in [0, 1], got {cond_dropout}")
    item = torch.arange(first, first + batch, device=device)
    none = torch.zeros_like(item)

    def uniform(shape: tuple[int, ...], step: int) -> Tensor:
        return philox_uniform(
            shape, seed=seed, iteration=iteration, condition=item, member=none, step=step, stream=STREAM_TRAIN
        )

    noise = philox_normal(
        (frames, layout.dim), seed=seed, iteration=iteration, condition=item, member=none, step=0, stream=STREAM_TRAIN
    )
    t = (uniform((), 1).double() * max_t).floor().long().clamp_(max=max_t - 1) + 1
    hidden = uniform((frames + 1,), 3)
    return TrainingDraws(
        t=t,
        noise=noise,
        cond_keep=uniform((), 2) >= cond_dropout,
        # A frame is shown with its clip's own probability.
        hand_keep=hidden[:, 1:] < hidden[:, :1],
    )


def hand_positions(windows: MotionWindows) -> Tensor:
    """Left then right wrist in the CPF frame, metres ``(B, T, 6)``."""
    wrists = windows.joints[..., [_LEFT_WRIST, _RIGHT_WRIST], :]
    return se3_apply(se3_inverse(windows.T_world_cpf)[..., None, :], wrists).flatten(-2)


def _hands_move(hands: Tensor, mask: Tensor) -> Tensor:
    """Clips whose hands move ``(B,)`` bool, from packed hand rotations ``(B, T, 270)``: the summed absolute change from
    the first frame, over real frames, is above 1e-5."""
    return ((hands - hands[:, :1]).abs().sum(dim=-1) * mask).sum(dim=-1) > _HAND_MOTION_MIN


def moving_hands(layout: StateLayout, windows: MotionWindows) -> Tensor:
    """Windows whose hands are trained ``(B,)`` bool: those whose recorded hands move. None of a layout without
    hands."""
    if not layout.include_hands or windows.hand_rotmats is None:
        return torch.zeros(len(windows), dtype=torch.bool, device=windows.mask.device)
    return _hands_move(windows.hand_rotmats.flatten(-3), windows.mask)


def count_frames(layout: StateLayout, windows: MotionWindows) -> FrameCounts:
    """What the terms of these windows are averaged over. For a batch that is worked through in parts (micro-batches,
    several processes): the sum over all parts goes to each call of :func:`denoising_loss`, and the losses of the parts
    then add up to that of the batch."""
    mask = windows.mask
    return FrameCounts(mask.sum(), (mask & moving_hands(layout, windows)[:, None]).sum())


def add_noise(schedule: CosineSchedule, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """``x_t = sqrt(ᾱ) x0 + sqrt(1 - ᾱ) noise`` of clean states ``(B, *, D)`` at levels ``t (B,)``; ``noise`` broadcasts
    to them. The constants are float32, as EgoAllo's."""
    abar = schedule.alpha_bar.to(t.device, torch.float32)[t].view(-1, *(1,) * (x0.ndim - 1))
    signal, spread = abar.sqrt().to(x0.dtype), (1.0 - abar).sqrt().to(x0.dtype)
    return torch.addcmul(x0 * signal, noise.to(x0.dtype), spread)


def level_weights(schedule: CosineSchedule, weights: LossWeights, t: Tensor, dtype: torch.dtype) -> Tensor:
    """Weight ``(B,)`` of each level ``t (B,)`` in the loss; a float32 constant."""
    if weights.level == "egoallo":
        return schedule.training_weight_f32.to(t.device)[t].to(dtype)
    return torch.ones(t.shape, dtype=dtype, device=t.device)


def frame_errors(
    layout: StateLayout, x0_pred: Tensor, x0: Tensor, *, mask: Tensor, level_weight: Tensor, hands_count: Tensor
) -> dict[str, Tensor]:
    """The error of each modality in each frame ``(*b, T)``: the mean of its channels' squared errors (coefficient i of
    the shape, from 0, counts 1 / (i + 1)) times the level's weight; 0 in frames that don't count.

    Args:
        layout: the states'.
        x0_pred, x0: predicted and clean states ``(*b, T, D)``, compared in the wider of their dtypes.
        mask: real frames, broadcasting to ``(*b, T)``, bool.
        level_weight: broadcasting to ``(*b,)``.
        hands_count: broadcasting to ``(*b,)`` bool, False leaves the hands out.
    """
    dtype = torch.promote_types(x0.dtype, x0_pred.dtype)
    error = (x0_pred.to(dtype) - x0.to(dtype)) ** 2
    frame_weight = mask.to(dtype) * level_weight[..., None].to(dtype)
    errors: dict[str, Tensor] = {}
    for name, part in layout.slices.items():
        squared = error[..., part]
        if name == "betas":
            falling = 1.0 / torch.arange(1, NUM_BETAS + 1, dtype=squared.dtype, device=squared.device)
            squared = squared * falling
        weight = frame_weight * (mask & hands_count[..., None]) if name == "hand_rotmats" else frame_weight
        errors[name] = squared.mean(dim=-1) * weight
    return errors


def regression_loss(
    layout: StateLayout,
    x0_pred: Tensor,
    x0: Tensor,
    *,
    mask: Tensor,
    level_weight: Tensor,
    hands_count: Tensor,
    counts: FrameCounts,
    weights: LossWeights,
) -> DenoisingLoss:
    """EgoAllo's loss of predictions ``(B, T, D)`` of clean states: :func:`frame_errors`, summed over a batch and
    divided by its frames (``counts``, of the hands at least 256), weighted and added up."""
    terms = {}
    errors = frame_errors(layout, x0_pred, x0, mask=mask, level_weight=level_weight, hands_count=hands_count)
    for name, error in errors.items():
        frames = counts.hand_frames.clamp_min(_HAND_FRAMES_MIN) if name == "hand_rotmats" else counts.frames
        terms[name] = error.sum() / frames
    total = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
    return DenoisingLoss(total, terms, x0_pred)


def sequence_errors(
    layout: StateLayout,
    x0_pred: Tensor,
    x0: Tensor,
    *,
    mask: Tensor,
    level_weight: Tensor,
    hands_count: Tensor,
    weights: LossWeights,
) -> Tensor:
    """The same loss of each sequence by itself ``(*b,)``: its frames' errors summed, over its number of frames."""
    errors = frame_errors(layout, x0_pred, x0, mask=mask, level_weight=level_weight, hands_count=hands_count)
    frames = mask.sum(-1).clamp_min(1)
    return torch.stack([getattr(weights, name) * error.sum(-1) / frames for name, error in errors.items()]).sum(0)


def denoising_loss(
    denoiser: Denoiser,
    windows: MotionWindows,
    layout: StateLayout,
    schedule: CosineSchedule,
    *,
    t: Tensor,
    noise: Tensor,
    weights: LossWeights | None = None,
    cond_keep: Tensor | None = None,
    hand_keep: Tensor | None = None,
    counts: FrameCounts | None = None,
    network: Callable[..., Tensor] | None = None,
) -> DenoisingLoss:
    """EgoAllo's training loss of one batch.

    ``x_t = sqrt(ᾱ) x0 + sqrt(1 - ᾱ) noise``; each term is
    ``Σ_b w_t(b) Σ_frames mask · mean_channels(error²) / Σ mask``. Hands count only in clips where they move (summed
    absolute change from the first frame above 1e-5), with a denominator of at least 256 frames. Schedule constants are
    float32, as in EgoAllo. The loss has the precision of the windows (or of the network where that is wider): a network
    that computes in half precision is compared in float32.

    Args:
        denoiser: the network.
        windows: the batch, B windows of T frames.
        layout: the state's layout; the denoiser's.
        schedule: noise schedule.
        t: levels ``(B,)`` int64 in 1 … max_t.
        noise: ``(B, T, D)``.
        weights: term weights; default EgoAllo's.
        cond_keep: ``(B,)`` bool, False zeroes that item's condition (condition dropout).
        hand_keep: ``(B, T)`` bool, False hides the wrists in the condition; only for models that have them there.
        counts: frames to average over, where the windows are a part of a larger batch (:func:`count_frames` of all
            parts, summed); default: those of the windows.
        network: what is called in place of ``denoiser``, with the same arguments: its compiled form, or it under
            autocast.

    Raises:
        InputError: shapes or layouts that don't fit.
    """
    weights = LossWeights() if weights is None else weights
    if layout != denoiser.layout:
        raise InputError(f"denoising_loss(): the layout {layout} isn't the denoiser's, {denoiser.layout}")
    if schedule.max_t != denoiser.config.max_t:
        raise InputError(
            f"denoising_loss(): the schedule has {schedule.max_t} levels, the denoiser "
            f"{denoiser.config.max_t}; they must agree"
        )
    x0 = pack_windows(layout, windows)
    if noise.shape != x0.shape or t.shape != x0.shape[:1]:
        raise InputError(
            f"denoising_loss(): noise must have shape {tuple(x0.shape)} and t {tuple(x0.shape[:1])}, "
            f"got {tuple(noise.shape)} and {tuple(t.shape)}"
        )
    mask = windows.mask
    if not bool(mask.any(dim=-1).all()):
        raise InputError("denoising_loss(): every window must have at least one real frame in its mask")

    x_t = add_noise(schedule, x0, t, noise)
    wrists = None
    if denoiser.config.include_hand_positions_cond:
        wrists = hand_positions(windows)
        if hand_keep is not None:
            wrists = torch.where(hand_keep[..., None], wrists, torch.zeros_like(wrists))
    x0_pred = (denoiser if network is None else network)(
        x_t,
        t,
        T_world_cpf=windows.T_world_cpf,
        T_cpf_tm1_cpf_t=windows.T_cpf_tm1_cpf_t,
        hand_positions_wrt_cpf=wrists,
        # Without padding the masked attention gives the same numbers and is slower.
        mask=None if bool(mask.all()) else mask,
        cond_dropout_keep_mask=cond_keep,
    )

    return regression_loss(
        layout,
        x0_pred,
        x0,
        mask=mask,
        level_weight=level_weights(schedule, weights, t, x0.dtype),
        hands_count=moving_hands(layout, windows),
        counts=count_frames(layout, windows) if counts is None else counts,
        weights=weights,
    )
