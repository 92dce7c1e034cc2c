"""The packed motion state of one frame: what the diffusion model denoises.

Order of the channels (EgoAllo's, fact sheet A.1): betas 16, body rotations 21 x 9 (row-major 3x3 of each local
rotation), contacts 21, and, with hands, 30 x 9 more. 226 channels without hands, 496 with. No component is normalised,
and the root is not part of the state: it follows from the head pose (:mod:`mgrpo.body.placement`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mgrpo.errors import InputError
from mgrpo.kernels import project_so3

if TYPE_CHECKING:
    from mgrpo.data.windows import MotionWindows

NUM_BETAS = 16
NUM_BODY_JOINTS = 21
NUM_HAND_JOINTS = 30


class BodyState(NamedTuple):
    """The parts of a packed state; ``*b`` are any leading axes, T frames."""

    betas: Tensor
    """Body shape coefficients ``(*b, T, 16)``."""
    body_rotmats: Tensor
    """Local rotations ``(*b, T, 21, 3, 3)``; raw network output is not exactly orthogonal."""
    contacts: Tensor
    """Contact flags ``(*b, T, 21)``, not squashed into [0, 1]."""
    hand_rotmats: Tensor | None
    """Local hand rotations ``(*b, T, 30, 3, 3)``, left then right; None for a layout without hands."""


@dataclass(frozen=True)
class StateLayout:
    """Where each modality lies in the packed state."""

    include_hands: bool
    """Whether the 30 finger joints are part of the state."""

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Channel range of each modality, in packing order."""
        sizes = {"betas": NUM_BETAS, "body_rotmats": NUM_BODY_JOINTS * 9, "contacts": NUM_BODY_JOINTS}
        if self.include_hands:
            sizes["hand_rotmats"] = NUM_HAND_JOINTS * 9
        result, start = {}, 0
        for name, size in sizes.items():
            result[name] = slice(start, start + size)
            start += size
        return result

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Number of channels of each modality, in packing order."""
        return {name: part.stop - part.start for name, part in self.slices.items()}

    @cached_property
    def dim(self) -> int:
        """Channels per frame: 226, or 496 with hands."""
        return max(part.stop for part in self.slices.values())

    def channel_weights(
        self, *, betas: float = 1.0, body_rotmats: float = 1.0, contacts: float = 0.0, hand_rotmats: float = 0.0
    ) -> Tensor:
        """Weight ``(D,)`` float32 of every channel in a log-probability.

        The defaults leave out what no reward of ours touches: contacts and hands only add noise to the policy gradient
        (fact sheet ``grpo.md`` 3.2). The prototype of the paper weighs every channel by 1.
        """
        given = {"betas": betas, "body_rotmats": body_rotmats, "contacts": contacts, "hand_rotmats": hand_rotmats}
        for name, value in given.items():
            if not 0.0 <= value < float("inf"):
                raise InputError(f"channel_weights(): {name} must be finite and not negative, got {value}")
        weights = torch.empty(self.dim, dtype=torch.float32)
        for name, part in self.slices.items():
            weights[part] = given[name]
        if not bool((weights > 0).any()):
            raise InputError(
                "channel_weights(): every channel has weight 0; give at least one modality a positive weight"
            )
        return weights


def pack_state(
    layout: StateLayout, betas: Tensor, body_rotmats: Tensor, contacts: Tensor, hand_rotmats: Tensor | None = None
) -> Tensor:
    """Pack modalities into one state ``(*b, T, D)``.

    Args:
        layout: which modalities there are.
        betas: ``(*b, T, 16)``, or ``(*b, 16)`` or ``(*b, 1, 16)`` for one shape per clip, which is repeated on every
            frame.
        body_rotmats: ``(*b, T, 21, 3, 3)``.
        contacts: ``(*b, T, 21)``, any dtype (bool becomes 0/1).
        hand_rotmats: ``(*b, T, 30, 3, 3)``; must be given exactly if the layout has hands.

    Raises:
        InputError: wrong shapes, or hands given to a layout without hands, or missing.
    """
    if body_rotmats.shape[-3:] != (NUM_BODY_JOINTS, 3, 3):
        raise InputError(
            f"pack_state(): body_rotmats must have shape (*b, T, 21, 3, 3), got {tuple(body_rotmats.shape)}"
        )
    lead = body_rotmats.shape[:-3]
    if betas.ndim == len(lead):
        betas = betas.unsqueeze(-2)
    parts = [
        _expand("betas", betas, lead, (NUM_BETAS,)),
        body_rotmats.reshape(*lead, NUM_BODY_JOINTS * 9),
        _expand("contacts", contacts, lead, (NUM_BODY_JOINTS,)),
    ]
    if layout.include_hands:
        if hand_rotmats is None:
            raise InputError("pack_state(): the layout includes hands, so hand_rotmats (*b, T, 30, 3, 3) must be given")
        parts.append(_expand("hand_rotmats", hand_rotmats, lead, (NUM_HAND_JOINTS, 3, 3)).flatten(-3))
    elif hand_rotmats is not None:
        raise InputError("pack_state(): hand_rotmats were given, but the layout has no hands; pass None")
    return torch.cat([part.to(body_rotmats.dtype) for part in parts], dim=-1)


def _expand(name: str, value: Tensor, lead: torch.Size, tail: tuple[int, ...]) -> Tensor:
    """Broadcast ``value`` to ``lead + tail``, with an error that names the argument."""
    try:
        return value.expand(*lead, *tail)
    except RuntimeError as error:
        raise InputError(
            f"pack_state(): {name} must have shape {(*lead, *tail)} (or broadcast to it), got {tuple(value.shape)}"
        ) from error


def unpack_state(layout: StateLayout, x: Tensor) -> BodyState:
    """Split packed states ``(*b, T, D)`` into their modalities. The results are views of ``x`` where its strides allow
    it.

    Raises:
        InputError: the last axis isn't the layout's ``dim``.
    """
    if x.shape[-1] != layout.dim:
        hands = "with" if layout.include_hands else "without"
        raise InputError(
            f"unpack_state(): a state {hands} hands has {layout.dim} channels, got shape {tuple(x.shape)}; "
            "check include_hands"
        )
    parts = {name: x[..., part] for name, part in layout.slices.items()}
    hands_flat = parts.get("hand_rotmats")
    return BodyState(
        betas=parts["betas"],
        body_rotmats=parts["body_rotmats"].unflatten(-1, (NUM_BODY_JOINTS, 3, 3)),
        contacts=parts["contacts"],
        hand_rotmats=None if hands_flat is None else hands_flat.unflatten(-1, (NUM_HAND_JOINTS, 3, 3)),
    )


def pack_windows(layout: StateLayout, windows: MotionWindows) -> Tensor:
    """Clean states ``(B, T, D)`` of motion windows, in the windows' dtype and on their device.

    Windows without hand motion get identity hand rotations under a layout with hands; since they don't move, the
    training loss leaves them out (:func:`mgrpo.diffusion.loss.denoising_loss`), as EgoAllo does with AMASS clips whose
    hands were not tracked.
    """
    hands = None
    if layout.include_hands:
        hands = windows.hand_rotmats
        if hands is None:
            body = windows.body_rotmats
            hands = torch.eye(3, dtype=body.dtype, device=body.device).expand(*body.shape[:-3], NUM_HAND_JOINTS, 3, 3)
    return pack_state(layout, windows.betas, windows.body_rotmats, windows.contacts, hands)


def project_state(layout: StateLayout, x: Tensor, *, hands: bool = False, fix_det: bool = True) -> Tensor:
    """Replace the rotation channels of states ``(*b, T, D)`` by their nearest rotations; differentiable, ``x`` is not
    modified.

    EgoAllo projects the body only while sampling (``hands=False``) and keeps improper matrices improper
    (``fix_det=False``); ours are proper by default. Gradients use the closed form of the polar factor, never autograd
    through an SVD.
    """
    pieces, start = [], 0
    for name in ("body_rotmats", "hand_rotmats") if hands and layout.include_hands else ("body_rotmats",):
        part = layout.slices[name]
        pieces.append(x[..., start : part.start])
        matrices = x[..., part].unflatten(-1, (-1, 3, 3))
        pieces.append(project_so3(matrices, fix_det=fix_det).flatten(-3))
        start = part.stop
    pieces.append(x[..., start:])
    return torch.cat(pieces, dim=-1)
