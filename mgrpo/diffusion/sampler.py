"""Sampling groups of motions: G samples for each of B conditions, one encoder pass per condition and level.

All noise comes from a counter keyed by (seed, iteration, condition, member, step). A condition's samples therefore
don't depend on which other conditions are in the batch or how it is split, and the noise of any step can be made again
later (:func:`step_noise`) instead of being stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from mgrpo.diffusion.transition import Transitions
from mgrpo.errors import InputError
from mgrpo.kernels import STREAM_INIT, STREAM_STEP, NoiseKey, philox_normal, projected_sde_step, sde_step
from mgrpo.models.denoiser import Denoiser
from mgrpo.models.state import StateLayout, project_state

Record = Literal["none", "all", "last"] | Collection[int]
Guidance = Callable[[Tensor, int], Tensor]
"""Hook that corrects predictions: called with predicted clean states ``(B, G, T, D)`` and the number of steps done, it
returns the states to go on with, of the same shape. Within step k (k steps done) it gets the prediction, projected if
the sampler projects, before that enters the step; at the end (all steps done) the result."""


class GroupPredictor(Protocol):
    """What sampling needs of a network: :class:`mgrpo.models.denoiser.Denoiser` has it, and any other x0-predicting
    model can."""

    def encode(self, cond: Tensor, t: Tensor) -> Any:
        """Encode conditions ``(B, T, d_cond)`` at levels ``t (B,)``. Takes ``mask`` too if :func:`sample` is given
        one."""
        ...

    def decode(self, x_t: Tensor, t: Tensor, memory: Any) -> Tensor:
        """Predict clean states ``(B, G, T, D)`` of ``x_t (B, G, T, D)``."""
        ...


@dataclass(frozen=True, eq=False)
class NoiseKeys:
    """Which noise a group of samples gets."""

    seed: int
    """The run's seed."""
    iteration: int
    """Training iteration, or any other number that tells draws apart."""
    condition: Tensor
    """One identifier per condition ``(B,)`` int64, not negative: the same condition gets the same noise in any
    batch."""
    members: int
    """Samples per condition, G."""
    share_initial: bool = True
    """Whether the members of a group start from the same x_T (they still draw their own noise at every step)."""
    first_member: int | Tensor = 0
    """Number of each condition's first member, or one for each of them ``(B,)`` int64: a large group can be sampled in
    parts."""

    def __post_init__(self) -> None:
        condition, first = self.condition, self.first_member
        if condition.ndim != 1 or condition.dtype != torch.int64:
            raise InputError(
                f"NoiseKeys.condition must be an int64 tensor of shape (B,), got {condition.dtype} "
                f"{tuple(condition.shape)}"
            )
        if not 0 <= self.seed < 2**64:
            raise InputError(f"NoiseKeys.seed must be a whole number from 0 to 2^64 - 1, got {self.seed}")
        if self.members < 1:
            raise InputError(f"NoiseKeys.members must be at least 1, got {self.members}")
        if isinstance(first, Tensor):
            if first.shape != condition.shape or first.dtype != torch.int64:
                raise InputError(
                    "NoiseKeys.first_member must be a whole number or an int64 tensor of shape "
                    f"{tuple(condition.shape)}, "
                    f"got {first.dtype} {tuple(first.shape)}"
                )
        elif first < 0:
            raise InputError(f"NoiseKeys.first_member must not be negative, got {first}")

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """``(condition, member)`` of every sample ``(B * G,)``, condition by condition."""
        offset = torch.arange(self.members, device=self.condition.device)
        first = self.first_member
        if not isinstance(first, Tensor):
            first = torch.full_like(self.condition, first)
        return self.condition.repeat_interleave(self.members), (first[:, None] + offset).flatten()

    def one_row_per_member(self) -> NoiseKeys:
        """The same noise, laid out as B * G rows of one member each: for conditions that differ between the members of
        a group."""
        condition, member = self.rows
        return dataclasses.replace(self, condition=condition, members=1, first_member=member)

    def step_key(self, k: int) -> NoiseKey:
        """The key of step ``k``'s noise, a row for every sample."""
        condition, member = self.rows
        return NoiseKey(self.seed, self.iteration, condition, member, k, STREAM_STEP)

    def select(self, index: slice | Tensor) -> NoiseKeys:
        """The keys of some conditions: ``index`` is a slice or an index tensor into the batch axis."""
        first = self.first_member
        return dataclasses.replace(
            self, condition=self.condition[index], first_member=first[index] if isinstance(first, Tensor) else first
        )


def initial_noise(keys: NoiseKeys, shape: tuple[int, int]) -> Tensor:
    """The starting states x_T ``(B, G, T, D)`` float32 for ``shape`` = (T, D); expanded, not copied, where the group
    shares them."""
    batch, group = len(keys.condition), keys.members
    if keys.share_initial:
        condition, member = keys.condition, torch.zeros_like(keys.condition)
    else:
        condition, member = keys.rows
    drawn = philox_normal(
        shape, seed=keys.seed, iteration=keys.iteration, condition=condition, member=member, step=0, stream=STREAM_INIT
    )
    return drawn.view(batch, -1, *shape).expand(batch, group, *shape)


def step_noise(keys: NoiseKeys, k: int, shape: tuple[int, int]) -> Tensor:
    """The noise of step ``k`` (0 = the first, from the highest level) ``(B, G, T, D)`` float32, for ``shape`` = (T,
    D)."""
    condition, member = keys.rows
    drawn = philox_normal(
        shape, seed=keys.seed, iteration=keys.iteration, condition=condition, member=member, step=k, stream=STREAM_STEP
    )
    return drawn.view(len(keys.condition), keys.members, *shape)


@dataclass(frozen=True, eq=False)
class SampleResult:
    """Samples and, if asked for, the path that led to them."""

    x0: Tensor
    """Clean states ``(B, G, T, D)``; body rotations projected if the sampler projects."""
    steps: tuple[int, ...] = ()
    """Indices of the recorded steps, in sampling order."""
    x_t: list[Tensor] = field(default_factory=list)
    """State before each recorded step, ``(B, G, T, D)``: the network's input."""
    x0_pred: list[Tensor] = field(default_factory=list)
    """Prediction that entered each recorded step's mean ``(B, G, T, D)``: projected if the sampler projects."""


@dataclass(frozen=True, eq=False)
class StepOptions:
    """What every way of sampling does in each step, see :func:`sample`."""

    layout: StateLayout | None
    """The state's layout; may be None where nothing is projected."""
    project_rotations: bool = True
    """Whether predicted body rotations are replaced by the nearest rotations."""
    fix_det: bool = True
    """Whether projected matrices are made proper."""
    record: Record = "none"
    """Of which steps the path is kept."""
    record_last: int = 3
    """Number of steps kept by ``record="last"``."""
    noise: Tensor | None = None
    """Recorded noise ``(S + 1, B, G, T, D)`` to use instead of drawing."""
    guidance: Guidance | None = None
    """Hook that corrects predictions."""
    shared_prefix: bool = False
    """Keep one state per condition, ``(B, 1, T, D)``, as long as its members are equal: up to the prediction of the
    first step that draws noise, if they share x_T. The samples are the same up to rounding."""

    def __post_init__(self) -> None:
        if self.project_rotations and self.layout is None:
            raise InputError("StepOptions: give the state's layout; without one there are no rotations to project")


@torch.no_grad()
def sample(
    policy: GroupPredictor,
    cond: Tensor,
    transitions: Transitions,
    keys: NoiseKeys | None,
    *,
    layout: StateLayout | None = None,
    mask: Tensor | None = None,
    project_rotations: bool = True,
    fix_det: bool = True,
    record: Record = "none",
    record_last: int = 3,
    noise: Tensor | None = None,
    guidance: Guidance | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> SampleResult:
    """Sample G motions for each condition, as one window per condition
    (:func:`mgrpo.diffusion.stitched_sampler.sample_stitched` is for longer ones).

    Args:
        policy: the network, usually a :class:`~mgrpo.models.denoiser.Denoiser`, whose dropout must be off.
        cond: encoded head motion ``(B, T, d_cond)``.
        transitions: the sampler's steps.
        keys: which noise to draw; may be None if ``noise`` is given.
        layout: the state's layout; default the denoiser's. Must be given for other policies.
        mask: ``(B, T)`` bool, True = a real frame, for windows of different lengths.
        project_rotations: replace the predicted body rotations by the nearest rotations inside every step, as EgoAllo
            does (never the hands'). The prototype's policy doesn't.
        fix_det: make projected matrices proper; False is EgoAllo's.
        record: keep the path: of no step, of all steps, of the last ``record_last``, or of the steps of these
            indices.
        record_last: number of steps kept by ``record="last"``.
        noise: recorded noise ``(S + 1, B, G, T, D)`` to use instead: index 0 is x_T, index k + 1 the draw of step k.
        guidance: see :data:`Guidance`.
        callback: called after each step with (steps done, steps in all).

    Returns:
        see :class:`SampleResult`. The state is float64 for a float64 ``cond``, otherwise float32, whatever the network
        computes in.

    Raises:
        InputError: arguments that don't fit each other.
    """
    layout = policy_layout("sample", policy, layout)
    if cond.ndim != 3:
        raise InputError(f"sample(): cond must have shape (B, T, d_cond), got {tuple(cond.shape)}")
    batch, frames = cond.shape[:2]
    padding = {} if mask is None else {"mask": mask}

    def predict(x_t: Tensor, level: int) -> Tensor:
        t = torch.full((batch,), level, dtype=torch.int64, device=cond.device)
        # The first call sees one x_T per group where that is shared, but it isn't computed once and copied: a matrix
        # product of another size may round differently, and the policy update must find the same ratio of exactly one
        # at every step.
        return policy.decode(x_t, t, policy.encode(cond, t, **padding))

    return reverse_process(
        predict,
        transitions,
        keys,
        caller="sample",
        conditions=batch,
        shape=(frames, layout.dim),
        dtype=torch.float64 if cond.dtype == torch.float64 else torch.float32,
        steps=StepOptions(layout, project_rotations, fix_det, record, record_last, noise, guidance),
        callback=callback,
    )


def policy_layout(caller: str, policy: GroupPredictor, layout: StateLayout | None) -> StateLayout:
    """The layout of a policy's states. Raises InputError in the name of ``caller`` if ``layout`` isn't the denoiser's,
    if it is missing for another policy, or if dropout is on."""
    if isinstance(policy, Denoiser):
        if layout is not None and layout != policy.layout:
            raise InputError(f"{caller}(): the layout {layout} isn't the denoiser's, {policy.layout}")
        if policy.training and policy.config.dropout_p:
            raise InputError(
                f"{caller}(): the denoiser is in training mode with dropout {policy.config.dropout_p}; call eval() "
                "first"
            )
        return policy.layout
    if layout is None:
        raise InputError(f"{caller}(): give the state's layout; only a Denoiser knows its own")
    return layout


@torch.no_grad()
def reverse_process(
    predict: Callable[[Tensor, int], Tensor],
    transitions: Transitions,
    keys: NoiseKeys | None,
    *,
    caller: str,
    conditions: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
    steps: StepOptions,
    callback: Callable[[int, int], None] | None = None,
) -> SampleResult:
    """The loop over the steps that every way of predicting shares.

    Args:
        predict: from states ``x_t (B, G, T, D)`` and their level to predicted clean states of the same shape, not
            projected. It may return a tensor of its own, which is not written to.
        transitions: the sampler's steps.
        keys: which noise to draw; may be None if ``noise`` is given.
        caller: function that errors are reported for.
        conditions: B.
        shape: (T, D).
        dtype: of the states, float32 or float64.
        steps: what is done in every step.
        callback: as in :func:`sample`.

    At most four tensors of the states' size are alive besides what ``predict`` needs and what is recorded.

    Raises:
        InputError: arguments that don't fit each other.
    """
    count = len(transitions)
    noise, guidance = steps.noise, steps.guidance
    if noise is not None:
        if noise.ndim != 5 or noise.shape[:2] != (count + 1, conditions) or noise.shape[3:] != shape:
            raise InputError(
                f"{caller}(): noise must have shape {(count + 1, conditions, 'G', *shape)} (x_T, then one draw per "
                f"step), got {tuple(noise.shape)}"
            )
    elif keys is None:
        raise InputError(f"{caller}(): give keys to draw noise from, or the noise itself")
    elif len(keys.condition) != conditions:
        raise InputError(
            f"{caller}(): there are {conditions} conditions, but keys.condition holds {len(keys.condition)}"
        )
    recorded = _recorded_steps(caller, steps.record, steps.record_last, count)

    if noise is not None:
        x = noise[0].to(dtype)
    else:
        assert keys is not None
        x = initial_noise(keys, shape).to(dtype)
        if steps.shared_prefix and keys.share_initial:
            x = x[:, :1]
    members = x.shape[1] if noise is not None or keys is None else keys.members
    recorded_x: list[Tensor] = []
    recorded_x0: list[Tensor] = []
    for k, (level, A, B, s) in enumerate(transitions.scalars):
        x0_pred = predict(x, level).to(dtype)
        if noise is not None:
            drawn = noise[k + 1].to(dtype).flatten(0, 1)
        else:
            assert keys is not None
            drawn = keys.step_key(k)
        if guidance is not None:
            # The hook sees rotations, so they are projected before it and not again in the step.
            x0_pred = _projected(x0_pred, steps) if steps.project_rotations else x0_pred
            x0_pred = _guided(caller, guidance, x0_pred, k)
        if k in recorded:
            recorded_x.append(x)
        if s > 0.0 and x.shape[1] < members:  # from here on the members differ
            x, x0_pred = (part.expand(-1, members, -1, -1) for part in (x, x0_pred))
        project = steps.project_rotations and guidance is None
        x_prev, x0_pred = reverse_step(x, x0_pred, A, B, s, drawn, steps, project)
        if k in recorded:
            recorded_x0.append(x0_pred)
        x = x_prev
        del x0_pred, x_prev, drawn  # long sequences: nothing of this step stays alive in the next one's network calls
        if callback is not None:
            callback(k + 1, count)
    if guidance is not None:
        x = _guided(caller, guidance, x, count)
    x = x.expand(-1, members, -1, -1)
    return SampleResult(x0=x, steps=tuple(sorted(recorded)), x_t=recorded_x, x0_pred=recorded_x0)


def _recorded_steps(caller: str, record: Record, last: int, count: int) -> frozenset[int]:
    """Indices of the steps to record. Raises InputError for what isn't one of the choices."""
    if isinstance(record, str):
        if record not in ("none", "all", "last"):
            raise InputError(f"{caller}(): record must be 'none', 'all', 'last' or indices of steps, got {record!r}")
        if record == "last" and last < 1:
            raise InputError(f"{caller}(): record_last must be at least 1, got {last}")
        return frozenset(range({"none": count, "all": 0, "last": max(count - last, 0)}[record], count))
    if any(not 0 <= k < count for k in record):
        raise InputError(f"{caller}(): record must hold indices of the {count} steps, got {sorted(record)}")
    return frozenset(record)


def _projected(states: Tensor, steps: StepOptions) -> Tensor:
    assert steps.layout is not None
    return project_state(steps.layout, states, fix_det=steps.fix_det)


def _guided(caller: str, guidance: Guidance, states: Tensor, done: int) -> Tensor:
    guided = guidance(states, done)
    if guided.shape != states.shape:
        raise InputError(
            f"{caller}(): guidance must return states of shape {tuple(states.shape)}, got {tuple(guided.shape)}"
        )
    return guided.to(states)


def reverse_step(
    x_t: Tensor,
    x0_pred: Tensor,
    A: float,
    B: float,
    s: float,
    noise: Tensor | NoiseKey,
    steps: StepOptions,
    project: bool,
) -> tuple[Tensor, Tensor]:
    """The next state and the prediction that entered it, both ``(B, G, T, D)``: projection, noise and sum in one pass
    over memory, the noise drawn from its key. Differentiable in ``x_t`` and ``x0_pred``.

    Args:
        x_t, x0_pred: the state and what the network predicts from it, ``(B, G, T, D)``.
        A, B, s: scalars of the step, see :mod:`mgrpo.diffusion.transition`.
        noise: the step's noise, or its key; not used where s is 0.
        steps: the layout, and how rotations are projected.
        project: whether they are.
    """
    if A == 0.0 and s == 0.0:  # the last step returns the prediction
        if project:
            x0_pred = _projected(x0_pred, steps)
        return x0_pred if B == 1.0 else B * x0_pred, x0_pred
    noise = noise if s > 0.0 else None
    if not project:
        return sde_step(x_t.flatten(0, 1), x0_pred.flatten(0, 1), A, B, s, noise).view(x_t.shape), x0_pred
    assert steps.layout is not None
    body = steps.layout.slices["body_rotmats"]
    step = projected_sde_step(
        x_t.flatten(0, 1),
        x0_pred.flatten(0, 1),
        A,
        B,
        s,
        noise,
        first_channel=body.start,
        matrices=(body.stop - body.start) // 9,
        fix_det=steps.fix_det,
    )
    return step.x_prev.view(x_t.shape), step.x0_pred.view(x_t.shape)
