"""One reverse step of every sampler, as three scalars: ``x_prev = A x_t + B x0_pred + s z``, z standard normal.

Formulas: fact sheets ``grpo.md`` 3.1 and ``egoallo.md`` D.3. Write ``a = sqrt(ᾱ_t)``, ``b = sqrt(1 - ᾱ_t)`` and a', b'
    for the next level. All kernels but ``egoallo`` keep the marginals: with exact predictions, x_prev is distributed as
    the forward process at t'. They choose s and follow with ``A = sqrt(b'² - s²) / b`` and ``B = a' - a A``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from mgrpo.diffusion.schedule import CosineSchedule, quadratic_timesteps
from mgrpo.errors import InputError

Kernel = Literal["egoallo", "ddim", "dance", "cps", "ode"]
KERNELS: tuple[str, ...] = get_args(Kernel)
StepWeighting = Literal["none", "inv_snr", "noise"]
STEP_WEIGHTINGS: tuple[str, ...] = get_args(StepWeighting)

_EGOALLO_DAMPING = 0.1


class NoiseTooLargeError(InputError):
    """A step would draw more noise than the level holds that it reaches."""


def largest_eta(kernel: Kernel) -> float:
    """The largest noise parameter that a kernel's formula takes; infinite where it is not bounded."""
    return 1.0 if kernel in ("ddim", "cps") else math.inf


@dataclass(frozen=True, eq=False)
class Transitions:
    """The S reverse steps of a sampler, first step (highest level) first. Scalars are float64 tensors on the CPU."""

    kernel: str
    """Which family member."""
    eta: float
    """Its noise parameter, see :func:`make_transitions`."""
    t: Tensor
    """Level before each step ``(S,)`` int64, never 0."""
    t_prev: Tensor
    """Level after each step ``(S,)`` int64; the last is 0."""
    A: Tensor
    """Weight of x_t ``(S,)``."""
    B: Tensor
    """Weight of the predicted clean state ``(S,)``."""
    s: Tensor
    """Standard deviation of the step ``(S,)``; the last is exactly 0."""
    trainable: Tensor
    """``(S,)`` bool: the step has a density (s > s_min), so it is an action of the policy."""

    def __len__(self) -> int:
        return len(self.t)

    def first(self, count: int) -> Transitions:
        """The first ``count`` steps alone."""
        parts = {name: getattr(self, name)[:count] for name in ("t", "t_prev", "A", "B", "s", "trainable")}
        return dataclasses.replace(self, **parts)

    @cached_property
    def trainable_steps(self) -> tuple[int, ...]:
        """Indices of the trainable steps, in sampling order."""
        return tuple(self.trainable.nonzero()[:, 0].tolist())

    @cached_property
    def scalars(self) -> tuple[tuple[int, float, float, float], ...]:
        """``(t, A, B, s)`` of each step as plain numbers, for loops."""
        return tuple(zip(self.t.tolist(), self.A.tolist(), self.B.tolist(), self.s.tolist(), strict=True))

    @cached_property
    def gradient_amplification(self) -> Tensor:
        """``B / s`` ``(S,)``: how strongly a change of the prediction moves the step's log-probability. Infinite where
        s = 0.

        It grows by two to three orders of magnitude towards the last steps; :func:`step_weights` can even that out.
        """
        return torch.where(self.s > 0, self.B / self.s, torch.full_like(self.s, math.inf))


def make_transitions(
    kernel: Kernel = "egoallo",
    *,
    eta: float = 0.8,
    steps: int = 30,
    schedule: CosineSchedule | None = None,
    s_min: float = 1e-6,
    noisy_steps: Collection[int] | None = None,
) -> Transitions:
    """The three scalars of each step.

    Args:
        kernel: which sampler.

            * ``egoallo``: EgoAllo's own update and the prototype's: s = eta times the *single-unit* posterior std at t,
              and a damped noise direction, ``A = sqrt(b'² - s²) / sqrt(b² + 0.1)``. Not marginal-preserving.
            * ``ddim``: ``s = eta (b'/b) sqrt(1 - ᾱ_t / ᾱ_t')``; eta 1 is ancestral sampling, 0 the ODE.
            * ``dance``: DanceGRPO's SDE with ε = eta held constant, integrated exactly: ``s = b' sqrt(1 - exp(-2 eta²
              h))``, h the step in log(a / b). Equal to ``ddim`` at eta 0 and 1.
            * ``cps``: ``s = b' sin(eta π / 2)``.
            * ``ode``: s = 0, the deterministic sampler; eta isn't used.
        eta: the kernel's noise parameter: ``egoallo`` and ``dance`` not negative, ``ddim`` and ``cps`` in [0, 1].
        steps: number of steps, :func:`mgrpo.diffusion.schedule.quadratic_timesteps`.
        schedule: noise schedule; default :meth:`CosineSchedule.make` with 1000 levels.
        s_min: steps with a smaller std aren't trainable.
        noisy_steps: indices of the steps that draw noise; the others take s = 0 of the same kernel (``grpo.md`` 2.2:
            mixed ODE-SDE sampling). None: all of them.

    Every kernel ends with s = 0, A = 0, B = 1: the last step returns the prediction.

    Raises:
        InputError: unknown kernel, or eta, steps, s_min or noisy_steps out of range (:class:`NoiseTooLargeError` where
            eta does not go with the steps).
    """
    if kernel not in KERNELS:
        raise InputError(f"make_transitions(): kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    limit = largest_eta(kernel)
    if not (0.0 <= eta <= limit and math.isfinite(eta)):
        wanted = "lie in [0, 1]" if limit == 1.0 else "be finite and not negative"
        raise InputError(f"make_transitions(): eta of kernel {kernel!r} must {wanted}, got {eta}")
    if not s_min >= 0.0:
        raise InputError(f"make_transitions(): s_min must not be negative, got {s_min}")
    schedule = CosineSchedule.make() if schedule is None else schedule
    levels = quadratic_timesteps(steps, schedule.max_t)
    t, t_prev = torch.tensor(levels[:-1]), torch.tensor(levels[1:])
    abar, abar_prev = schedule.alpha_bar[t], schedule.alpha_bar[t_prev]
    a, b = abar.sqrt(), (1.0 - abar).sqrt()
    a_prev, b_prev = abar_prev.sqrt(), (1.0 - abar_prev).sqrt()
    final = t_prev == 0
    quiet = torch.zeros(len(t), dtype=torch.bool)
    if noisy_steps is not None:
        if any(not 0 <= k < len(t) for k in noisy_steps):
            raise InputError(
                f"make_transitions(): noisy_steps must be indices of the {len(t)} steps, got {sorted(noisy_steps)}"
            )
        quiet[:] = True
        quiet[list(noisy_steps)] = False

    if kernel == "egoallo":
        # EgoAllo's last step is 1 -> 0, where the posterior std is 0; other step counts may end with a longer one.
        s = torch.where(final | quiet, 0.0, eta * schedule.posterior_std[t])
        radicand = b_prev**2 - s**2
        if bool((radicand < 0).any()):
            worst = int((radicand < 0).nonzero()[0, 0])
            raise NoiseTooLargeError(
                f"eta {eta} is too large for kernel 'egoallo' with {steps} steps: the one from level "
                f"{int(t[worst])} to {int(t_prev[worst])} would have std {float(s[worst]):.4f}, more than the "
                f"noise {float(b_prev[worst]):.4f} of the level it reaches; use a smaller eta or more steps"
            )
        A = radicand.sqrt() / (b**2 + _EGOALLO_DAMPING).sqrt()
    else:
        if kernel == "ddim":
            s = eta * (b_prev / b) * (1.0 - abar / abar_prev).sqrt()
        elif kernel == "dance":
            # exp(-2 eta² h) with exp(-h) = (a b') / (a' b); zero at the last step, where b' = 0.
            s = b_prev * (1.0 - (a * b_prev / (a_prev * b)) ** (2.0 * eta * eta)).clamp_min(0.0).sqrt()
        elif kernel == "cps":
            s = b_prev * math.sin(eta * math.pi / 2.0)
        else:
            s = torch.zeros_like(b_prev)
        s = torch.where(quiet, 0.0, s)
        A = (b_prev**2 - s**2).clamp_min(0.0).sqrt() / b
    B = a_prev - a * A
    # At the last step b' = 0: the kernels give s = A = 0 and B = 1 up to rounding; make it exact.
    zero, one = torch.zeros_like(s), torch.ones_like(s)
    s, A, B = torch.where(final, zero, s), torch.where(final, zero, A), torch.where(final, one, B)
    return Transitions(kernel=kernel, eta=float(eta), t=t, t_prev=t_prev, A=A, B=B, s=s, trainable=s > s_min)


def step_weights(
    transitions: Transitions, scheme: StepWeighting = "none", steps: Collection[int] | None = None
) -> Tensor:
    """Weight ``(S,)`` float64 of each step in the policy loss: mean 1 over the trainable steps, or those of them that
    are among ``steps``, 0 elsewhere (``grpo.md`` 3.4).

    ``none`` weighs all alike, as the paper does; the last, visually negligible steps then hold most of the gradient.
    ``inv_snr`` takes s / B: equal gradient per unit of change in the prediction. ``noise`` takes s: steps count by the
    noise they inject.

    Raises:
        InputError: unknown scheme, or no trainable step (the ``ode`` kernel, or eta 0).
    """
    if scheme not in STEP_WEIGHTINGS:
        raise InputError(f"step_weights(): scheme must be one of {', '.join(STEP_WEIGHTINGS)}, got {scheme!r}")
    active = transitions.trainable
    if steps is not None:
        active = active & torch.tensor([k in steps for k in range(len(transitions))])
    if not bool(active.any()):
        raise InputError(
            f"step_weights(): kernel {transitions.kernel!r} with eta {transitions.eta} draws no noise, so no "
            "step can be trained; "
            "choose another kernel or a larger eta"
        )
    if scheme == "none":
        weights = torch.ones_like(transitions.s)
    elif scheme == "inv_snr":
        weights = transitions.s / transitions.B
    else:
        weights = transitions.s.clone()
    weights = torch.where(active, weights, torch.zeros_like(weights))
    return weights / weights[active].mean()
