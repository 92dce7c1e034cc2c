"""Diffusion-DPO for policies that predict the clean state (arXiv 2311.12908; facts: GRPO, section 6.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class PreferenceLoss(NamedTuple):
    """Of N pairs."""

    loss: Tensor
    """``(N,)`` with gradient."""
    z: Tensor
    """Log-odds that the policy gives the winner ``(N,)``: what the sigmoid is taken of; no gradient."""
    correct: Tensor
    """1 where the policy prefers the winner (z above 0), 0.5 where it can't tell, as it can't before the first step;
    their mean is the implicit accuracy."""


def preference_loss(
    m_winner: Tensor, m_loser: Tensor, m_winner_reference: Tensor, m_loser_reference: Tensor, *, beta: float
) -> PreferenceLoss:
    """``-log sigmoid(z)``, ``z = -(beta / 2) [(m_winner - m_winner_reference) - (m_loser - m_loser_reference)]``.

    Each m is the weighted mean squared error ``(N,)`` of a prediction of the clean state from the same level and, for
    both ends of a pair, the same noise; those of the reference are constants. The gradient moves the winner's
    prediction towards the winner and the loser's away from the loser, the less the surer the policy is.
    """
    gain = (m_winner - m_winner_reference.detach()) - (m_loser - m_loser_reference.detach())
    z = -0.5 * beta * gain
    found = z.detach()
    return PreferenceLoss(-F.logsigmoid(z), found, 0.5 * (torch.sign(found) + 1))
