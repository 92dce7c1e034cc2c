"""Levenberg-Marquardt over a batch of motions, in plain torch: the oracle of the fused backends.

The normal equations are block-pentadiagonal in time. The rotations of the *coupled* joints make one block of 3 C
numbers per frame; every *free* joint is a system of its own with blocks of 3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import lie
from .problem import DampingRule
from .terms import Pose, Problem, Term, chain_terms, place, point_terms

LAMBDA_START = 0.1
LAMBDA_MOST = 1e10
QUALITY_LEAST = 1e-3
"""A step is taken if it lowers the cost by this share of what the linearised residuals promise, its quality."""
COST_TOLERANCE = 1e-5
"""The search ends with a step that lowers the cost by a smaller share than this."""
STEP_TOLERANCE = 1e-6
"""The search ends with a step that is shorter than this, relative to the length of all quaternions."""


class System(NamedTuple):
    """Normal equations of a batch (\\*b) of chains of blocks: those of frames t, (t + 1, t) and (t + 2, t)."""

    diagonal: Tensor
    """(\\*b, T, n, n)."""
    below: Tensor
    """(\\*b, T - 1, n, n): row of frame t + 1, column of frame t."""
    second: Tensor
    """(\\*b, T - 2, n, n)."""
    gradient: Tensor
    """(\\*b, T, n)."""


def solve(system: System, damping: Tensor) -> tuple[Tensor, Tensor]:
    """The step ``delta`` (\\*b, T, n) with (H + damping) delta = -gradient, and whether the matrix is positive
    (\\*b)."""
    H, E, F = system.diagonal, system.below, system.second
    T, n = system.gradient.shape[-2:]
    rhs, fine = -system.gradient, torch.ones(damping.shape, dtype=torch.bool, device=damping.device)
    shift = damping[..., None, None] * torch.eye(n, dtype=H.dtype, device=H.device)
    L, L1, L2, y = [], [], [], []
    for t in range(T):
        block, right = H[..., t, :, :] + shift, rhs[..., t, :]
        if t >= 1:
            block = block - L1[t - 1] @ L1[t - 1].mT
            right = right - (L1[t - 1] @ y[t - 1][..., None])[..., 0]
        if t >= 2:
            block = block - L2[t - 2] @ L2[t - 2].mT
            right = right - (L2[t - 2] @ y[t - 2][..., None])[..., 0]
        factor, failed = torch.linalg.cholesky_ex(block)
        fine = fine & (failed == 0)
        L.append(factor)
        y.append(torch.linalg.solve_triangular(factor, right[..., None], upper=False)[..., 0])
        if t + 1 < T:
            lower = E[..., t, :, :] - (L2[t - 1] @ L1[t - 1].mT if t >= 1 else 0.0)
            L1.append(torch.linalg.solve_triangular(factor, lower.mT, upper=False).mT)
        if t + 2 < T:
            L2.append(torch.linalg.solve_triangular(factor, F[..., t, :, :].mT, upper=False).mT)
    delta: list[Tensor] = []
    for t in range(T - 1, -1, -1):
        right = y[t]
        if t + 1 < T:
            right = right - (L1[t].mT @ delta[-1][..., None])[..., 0]
        if t + 2 < T:
            right = right - (L2[t].mT @ delta[-2][..., None])[..., 0]
        delta.append(torch.linalg.solve_triangular(L[t].mT, right[..., None], upper=True)[..., 0])
    return torch.stack(delta[::-1], dim=-2), fine


def costs(terms: dict[str, Term]) -> Tensor:
    """Sum of squared residuals (B,)."""
    return sum(term.residual.square().flatten(1).sum(1) for term in terms.values())  # type: ignore[return-value]


def add_chain(system: System, term: Term) -> None:
    """Add the equations of a term of one joint over time to a batch (B, N) of chains."""
    _add(system, [J.transpose(1, 2) for J in term.jacobians], term.residual.transpose(1, 2))


def add_points(system: System, term: Term) -> None:
    """Add the equations of a term of points to a batch (B,) of chains."""
    _add(system, [J.flatten(2, 3) for J in term.jacobians], term.residual.flatten(2))


def _add(system: System, jacobians: list[Tensor], residual: Tensor) -> None:
    """Jacobians (\\*b, F, R, n), residual (\\*b, F, R)."""
    frames = residual.shape[-2]
    bands = (system.diagonal, system.below, system.second)
    for i, J in enumerate(jacobians):
        system.gradient[..., i : i + frames, :] += (J.mT @ residual[..., None])[..., 0]
        for j in range(i + 1):
            bands[i - j][..., j : j + frames, :, :] += J.mT @ jacobians[j]


def zeros(like: Tensor, batch: tuple[int, ...], T: int, n: int) -> System:
    """A system without equations."""
    shapes = ((T, n, n), (max(T - 1, 0), n, n), (max(T - 2, 0), n, n), (T, n))
    return System(*(like.new_zeros(*batch, *shape) for shape in shapes))


def linearise(problem: Problem, quats: Tensor, start_pose: Pose) -> tuple[System, System]:
    """The equations of the coupled joints (B,), and of every joint by itself (B, N), of which the free ones count."""
    B, T, N = quats.shape[:3]
    coupled = list(problem.tree.coupled)
    own = zeros(quats, (B, N), T, 3)
    for term in chain_terms(problem, quats).values():
        add_chain(own, term)
    joint = zeros(quats, (B,), T, 3 * len(coupled))
    for slot, k in enumerate(coupled):
        part = slice(3 * slot, 3 * slot + 3)
        for whole, single in zip(joint[:3], own[:3], strict=True):
            whole[:, :, part, part] = single[:, k]
        joint.gradient[:, :, part] = own.gradient[:, k]
    for term in point_terms(problem, quats, start_pose).values():
        add_points(joint, term)
    return hold(joint, problem.stays), hold(own, problem.stays[:, None].expand(B, N, T))


def hold(system: System, stays: Tensor) -> System:
    """The equations with a step of zero in the frames ``stays`` (\\*b, T), on which no other frame's step depends."""
    block = stays[..., None, None]
    identity = torch.eye(system.gradient.shape[-1], dtype=system.gradient.dtype, device=stays.device)
    return System(
        torch.where(block, identity, system.diagonal),
        # held frames are the first: of two frames the earlier one is among them if any is
        system.below.masked_fill(block[..., : system.below.shape[-3], :, :], 0.0),
        system.second.masked_fill(block[..., : system.second.shape[-3], :, :], 0.0),
        system.gradient.masked_fill(stays[..., None], 0.0),
    )


def optimise(problem: Problem, iterations: int, rule: DampingRule) -> tuple[Tensor, Tensor, Tensor]:
    """The quaternions (B, T, N, 4) of least cost that were found, the cost (B, iterations + 1) before and after every
    iteration (the last one repeated where the search ended), and the number of iterations made (B,) int64.

    A system that is not finite, or not positive, gives no step: the damping grows instead. So a sequence with numbers
    that are not finite keeps its start.
    """
    quats, start_pose = problem.start, place(problem, problem.start)
    B, T, N = quats.shape[:3]
    coupled = list(problem.tree.coupled)
    free = [joint for joint in range(N) if joint not in coupled]

    def cost_at(q: Tensor) -> Tensor:
        return costs(chain_terms(problem, q)) + costs(point_terms(problem, q, start_pose))

    cost = cost_at(quats)
    history, done = [cost], torch.zeros(B, dtype=torch.int64, device=quats.device)
    damping = torch.full_like(cost, LAMBDA_START)
    active = torch.isfinite(cost) & problem.valid.any(dim=1)
    for _ in range(iterations):
        if not bool(active.any()):
            history += [cost] * (iterations + 1 - len(history))
            break
        joint, own = linearise(problem, quats, start_pose)
        step, fine = solve(joint, damping)
        own_step, own_fine = solve(System(*(x[:, free] for x in own)), damping[:, None].expand(B, len(free)))
        delta = quats.new_zeros(B, T, N, 3)
        delta[:, :, coupled] = step.unflatten(-1, (len(coupled), 3))
        delta[:, :, free] = own_step.transpose(1, 2)
        slope = (joint.gradient * step).flatten(1).sum(1) + (own.gradient[:, free] * own_step).flatten(1).sum(1)
        length = delta.square().flatten(1).sum(1)

        moved = lie.retract(quats, delta)
        reached = cost_at(moved)
        promised = slope - damping * length  # of the change of cost; negative
        quality = torch.where(fine & own_fine.all(dim=1), (reached - cost) / promised, -1.0)
        taken = active & (quality >= QUALITY_LEAST) & (reached < cost)
        small = cost - reached < COST_TOLERANCE * cost
        short = length.sqrt() < STEP_TOLERANCE * (problem.valid.sum(1) * N).to(length.dtype).sqrt()
        done = done + active.long()
        quats = torch.where(taken[:, None, None, None], moved, quats)
        cost = torch.where(taken, reached, cost)
        change = torch.where(quality > rule.good, rule.less, torch.where(quality >= rule.poor, 1.0, rule.more))
        damping = (damping * torch.where(taken, change, rule.more)).clamp_max(LAMBDA_MOST)
        active = active & ~(taken & small) & ~short
        history.append(cost)
    return quats, torch.stack(history, dim=1), done
