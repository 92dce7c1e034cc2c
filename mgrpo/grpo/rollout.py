"""Sampling groups from the policy, and keeping what the update needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mgrpo.diffusion.sampler import NoiseKeys, StepOptions, policy_layout, reverse_process
from mgrpo.diffusion.transition import Transitions
from mgrpo.models.denoiser import Denoiser
from mgrpo.models.state import StateLayout, project_state

from .encoding import EncodedSteps
from .policy import Policy, at_level
from .task import Batch, Task, look


@dataclass(frozen=True)
class RecordedStep:
    """One step as it was taken, for R rows of M members.

    The noise of a step is not stored: it is drawn again from its counter.
    """

    x_t: Tensor
    """State before the step, (R, M, T, D), or (R, 1, T, D) where the members did not differ yet."""
    x0_pred: Tensor
    """What the policy predicted and the step used (projected where the sampler projects), (R, M, T, D)."""
    prediction: Tensor | None
    """The same as x0_pred with its graph, shaped as x_t; None unless graphs were kept."""


@dataclass(frozen=True)
class Rollout:
    """R rows of M members: a row is a condition and its group, or, where every member has a condition of its own, one
    member."""

    cond: Any
    """Conditions that the policy saw, R rows."""
    steps: Mapping[int, RecordedStep]
    """The steps to train, by their index."""
    x0: Tensor
    """Final samples, (R, M, T, D)."""
    keys: NoiseKeys
    transitions: Transitions
    layout: StateLayout | None
    project_rotations: bool
    mask: Tensor | None = None
    """Real frames (R, T) bool, where samples have different lengths."""

    @property
    def rows(self) -> int:
        """R."""
        return len(self.keys.condition)


@torch.no_grad()
def roll_out(
    policy: Policy,
    cond: Any,
    transitions: Transitions,
    keys: NoiseKeys,
    *,
    shape: tuple[int, int],
    steps: Sequence[int],
    layout: StateLayout | None = None,
    project_rotations: bool = False,
    mask: Tensor | None = None,
    per_member: bool = False,
    keep_graphs: bool = False,
    same_kernels: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Rollout:
    """Draw a group of samples for each condition.

    As long as the members of a group have the same state, the network is called once for all of them: before the first
    step that draws noise, if they share their initial noise.

    Args:
        policy: the network, whose dropout must be off.
        cond: conditions of B rows, shared by their groups, or of B * G rows where ``per_member``.
        transitions: the sampler's steps.
        keys: which noise to draw, for B conditions of G members.
        shape: (T, D) of a state.
        steps: indices of the steps to record.
        layout, project_rotations: as in :func:`mgrpo.diffusion.sampler.sample`; ``layout`` may be None where nothing is
            projected.
        mask: real frames (B, T) bool, where samples have different lengths; the policy's ``encode`` then takes it too.
        per_member: every member has a condition of its own.
        keep_graphs: record predictions with their graphs, so that gradients need no second forward pass.
        same_kernels: run recorded steps as training does, with gradients enabled, and forget the graphs: for compiled
            networks, which otherwise compute these two with different kernels.
        dtype: of the states, float32 or float64.
    """
    if isinstance(policy, Denoiser):
        layout = policy_layout("roll_out", policy, layout)
    if per_member:
        mask = None if mask is None else mask.repeat_interleave(keys.members, dim=0)
        keys = keys.one_row_per_member()
    levels = [level for level, *_ in transitions.scalars]
    index = {level: k for k, level in enumerate(levels)}
    wanted = frozenset(steps)
    encoded = EncodedSteps(
        policy, cond, mask, levels, rows=len(keys.condition), device=keys.condition.device,
        with_graph=wanted if keep_graphs else (), alone=() if keep_graphs else wanted,
    )  # fmt: skip
    predictions: dict[int, Tensor] = {}

    def predict(x_t: Tensor, level: int) -> Tensor:
        k = index[level]
        t = at_level(level, x_t.shape[0], x_t.device)
        with torch.set_grad_enabled(k in wanted and (keep_graphs or same_kernels)):
            prediction = policy.decode(x_t, t, encoded.take(k))
            if keep_graphs and project_rotations:
                assert layout is not None
                prediction = project_state(layout, prediction.to(dtype))
        if keep_graphs and k in wanted:
            predictions[k] = prediction
        return prediction.detach()

    result = reverse_process(
        predict,
        transitions,
        keys,
        caller="roll_out",
        conditions=len(keys.condition),
        shape=shape,
        dtype=dtype,
        # With graphs the projection is a part of them; without, it is done together with the step.
        steps=StepOptions(
            layout, project_rotations=project_rotations and not keep_graphs, record=tuple(steps), shared_prefix=True
        ),
    )
    recorded = {
        k: RecordedStep(x_t, x0_pred, predictions.get(k))
        for k, x_t, x0_pred in zip(result.steps, result.x_t, result.x0_pred, strict=True)
    }
    return Rollout(cond, recorded, result.x0, keys, transitions, layout, project_rotations, mask)


def roll_out_groups(
    policy: Policy,
    task: Task[Any],
    batch: Batch,
    transitions: Transitions,
    *,
    seed: int,
    iteration: int,
    first: int,
    members: range,
    share_initial: bool,
    device: torch.device,
    steps: Sequence[int] = (),
    keep_graphs: bool = False,
    same_kernels: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Rollout:
    """:func:`roll_out` of a batch of a task's conditions, as every training draws its groups: the same conditions,
    seen in the same way, with the same noise.

    Args:
        policy: the network.
        task: what is sampled.
        batch: some conditions on the device.
        transitions: the sampler's steps.
        seed, iteration: key the noise.
        first: number of the batch's first condition in the iteration.
        members: which members of the groups.
        share_initial: whether a group shares its initial noise.
        device: the batch's.
        steps, keep_graphs, same_kernels, dtype: as in :func:`roll_out`.
    """
    seen = look(task, batch, iteration=iteration, first=first, members=members)
    condition = torch.arange(first, first + len(batch), device=device)
    keys = NoiseKeys(seed, iteration, condition, len(members), share_initial=share_initial, first_member=members.start)
    return roll_out(
        policy, seen.cond, transitions, keys, shape=task.state_shape(batch), steps=steps,
        layout=task.layout, project_rotations=task.project_rotations, mask=seen.mask, per_member=task.per_member,
        keep_graphs=keep_graphs, same_kernels=same_kernels, dtype=dtype,
    )  # fmt: skip
