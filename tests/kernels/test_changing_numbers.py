"""Numbers that change from call to call of a compiled function: scalars of a step, steps and iterations of keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager

from mgrpo.kernels import (
    NoiseKey,
    available_backends,
    forward_kinematics,
    group_advantages,
    group_rewards,
    grpo_loss,
    perlin_noise,
    philox_normal,
    projected_sde_step,
    sde_kl,
    sde_log_prob,
    sde_log_ratio,
    sde_step,
)

ROWS = torch.arange(4)
MANY = 12  # more than the graphs that torch.compile keeps of one function
REFUSALS = (ValueError, torch._dynamo.exc.TorchDynamoException)  # the second where it could not trace the message


@pytest.fixture(params=["reference", "cpp"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param not in available_backends("sde_step"):
        pytest.skip("the native extension is not built")
    monkeypatch.setenv("MGRPO_BACKEND", request.param)
    torch._dynamo.reset()
    return request.param


def states(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(4, 5, 9, generator=generator) for _ in range(count)]


def key(iteration: int = 3, step: int = 2, seed: int = 7) -> NoiseKey:
    return NoiseKey(seed=seed, iteration=iteration, condition=ROWS, member=ROWS, step=step)


def flat(result: Any) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, tuple) else (result,)


def graphs_for(function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *, rtol: float = 0.0) -> int:
    """How many graphs the calls needed; every result must be eager's, to the bit unless ``rtol`` is given."""
    graphs = []

    def counted(graph: Any, examples: Any) -> Any:
        graphs.append(graph)
        return aot_eager(graph, examples)

    compiled = torch.compile(function, fullgraph=True, backend=counted)
    for arguments in calls:
        for got, expected in zip(flat(compiled(*arguments)), flat(function(*arguments)), strict=True):
            torch.testing.assert_close(got, expected, rtol=rtol, atol=rtol, equal_nan=True)
    return len(graphs)


def test_the_scalars_of_a_step() -> None:
    x, y, z = states()
    scalars = [(0.9 - 0.05 * i, 0.1 + 0.03 * i, 0.5 - 0.02 * i) for i in range(MANY)]

    def step(A: float, B: float, s: float) -> Tensor:
        return sde_step(x, y, A, B, s, z)

    assert graphs_for(step, scalars) <= 2


def test_a_last_step_without_noise() -> None:
    x, y, z = states()
    stds = [0.1 * i for i in reversed(range(MANY))]
    assert graphs_for(lambda s: sde_step(x, y, 0.3, 0.4, s, z), [(s,) for s in stds]) <= 4


def test_the_scalars_of_a_projected_step_and_of_densities() -> None:
    x, y, z = states()
    scalars = [(0.9 - 0.05 * i, 0.1 + 0.03 * i, 0.5 - 0.02 * i) for i in range(MANY)]

    def everything(A: float, B: float, s: float) -> tuple[Tensor, ...]:
        return (
            *projected_sde_step(x, y, A, B, s, z, first_channel=0, matrices=1),
            *sde_step(x, y, A, B, s, z, return_log_prob=True),
            sde_log_prob(x, y, z, A, B, s),
            sde_log_ratio(x, y, z, B, s),
            sde_kl(x, y, B, s),
        )

    # Logarithms and quotients of numbers are taken by torch here, by Python there.
    assert graphs_for(everything, scalars, rtol=1e-6) <= 2


def test_gradients_with_changing_numbers() -> None:
    x, y, z = states()

    def loss(x: Tensor, B: float, s: float, iteration: int) -> Tensor:
        drawn = key(iteration)
        kl, density = sde_kl(x, y, B, s), sde_log_prob(z, y, x, 0.5, B, s)
        return (sde_log_ratio(x, y, drawn, B, s) + kl + density + sde_step(x, y, B, B, s, drawn).sum((1, 2))).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for i in range(MANY):
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        numbers = 0.2 + 0.01 * i, 0.3 + 0.02 * i, 5 + i
        grads = [torch.autograd.grad(f(leaf, *numbers), leaf)[0] for f, leaf in zip((compiled, loss), leaves)]
        torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)


def test_steps_iterations_and_seeds_of_keys() -> None:
    x, y, _ = states()

    def drawn(iteration: int, step: int, seed: int) -> tuple[Tensor, ...]:
        words = key(iteration, step, seed)
        return (
            sde_step(x, y, 0.4, 0.5, 0.1, words),
            sde_log_ratio(x, y, words, 0.4, 0.5),
            philox_normal((5,), seed=seed, iteration=iteration, condition=ROWS, member=ROWS, step=step),
            perlin_noise(frames=9, alpha=0.1, seed=seed, iteration=iteration, condition=ROWS),
        )

    assert graphs_for(drawn, [(2**31 + i, i, 2**40 + i) for i in range(MANY)]) <= 2


def test_a_key_made_outside() -> None:
    x, y, _ = states()
    keys = [(key(iteration=i, step=2 * i),) for i in range(MANY)]
    assert graphs_for(lambda words: sde_step(x, y, 0.4, 0.5, 0.1, words), keys) <= 3


def test_denominators_and_coefficients_of_the_loss() -> None:
    ratio, advantages = states(2)
    kl = ratio**2

    def loss(denominator: float, coefficient: float) -> Tensor:
        return grpo_loss(
            ratio, advantages, clip_range=0.2, denominator=denominator, kl=kl, kl_coef=coefficient
        ).loss  # fmt: skip

    assert graphs_for(loss, [(3.0 + i, 0.1 + 0.02 * i) for i in range(MANY)], rtol=1e-6) <= 2


SAMPLES = states()
JOINTS = torch.linspace(0, 1, 2 * 3 * 4 * 22 * 3).sin().view(2, 3, 4, 22, 3)
OPTIONS: dict[str, tuple[Callable[[float], Any], tuple[float, ...]]] = {
    "clip_range": (lambda v: grpo_loss(*SAMPLES[:2], clip_range=v).loss, (0.1, 0.2, 0.3)),
    "eps": (lambda v: group_advantages(SAMPLES[0], eps=v).advantages, (0.1, 0.2, 0.3)),
    "clamp": (lambda v: group_advantages(SAMPLES[0], clamp=v).advantages, (0.1, 0.2, 0.3)),
    "alpha": (lambda v: perlin_noise(frames=9, alpha=v, seed=1, iteration=1, condition=ROWS), (0.1, 0.2, 0.3)),
    "fps": (
        lambda v: group_rewards(JOINTS, JOINTS[:, 0] + 0.1, rewards=("velocity",), fps=v).errors,
        (30.0, 60.0, 20.0),
    ),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_may_change(option: str) -> None:
    function, values = OPTIONS[option]
    graphs_for(function, [(value,) for value in values], rtol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -0.1])
def test_a_bad_number_is_refused_by_what_was_compiled_for_good_ones(bad: float) -> None:
    x, y, z = states()
    compiled = torch.compile(lambda s: sde_step(x, y, 0.3, 0.4, s, z), fullgraph=True, backend="eager")
    for s in (0.1, 0.2, 0.3):
        compiled(s)
    with pytest.raises(REFUSALS):
        compiled(bad)


@pytest.mark.parametrize("bad", [-1, 1 << 32])
def test_a_bad_iteration_is_refused_by_what_was_compiled_for_good_ones(bad: int) -> None:
    x, y, _ = states()
    compiled = torch.compile(lambda i: sde_step(x, y, 0.3, 0.4, 0.1, key(i)), fullgraph=True, backend="eager")
    for iteration in (3, 4, 5):
        compiled(iteration)
    with pytest.raises(REFUSALS):
        compiled(bad)


def test_inductor_serves_changing_numbers() -> None:
    x, y, _ = states()

    def step(s: float, iteration: int, step: int) -> Tensor:
        return sde_step(x, y, 0.3, 0.4, s, key(iteration, step))

    compiled = torch.compile(step, fullgraph=True)
    for i in range(MANY):
        numbers = 0.1 + 0.02 * i, 3 + i, 2 + i
        torch.testing.assert_close(compiled(*numbers), step(*numbers), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("frames", [3, 4, 7, 11])
def test_a_changing_batch_may_have_the_size_of_another_axis(frames):
    # 3, 4 and 7 are also sizes of the rotations, of the joints and of the root's pose.
    def joints(rotmats, offsets, T_world_root):
        return forward_kinematics(rotmats, offsets, (-1, 0, 1, 2), T_world_root=T_world_root).joints

    made = torch.Generator().manual_seed(frames)
    arguments = [torch.randn(frames, *shape, generator=made) for shape in ((4, 3, 3), (4, 3), (7,))]
    torch.compiler.reset()
    compiled = torch.compile(joints, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), joints(*arguments))


def test_a_row_without_a_spread_is_refused():
    state = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match="got nan in row 1"):
        sde_step(state, state, 0.5, 0.5, torch.tensor([0.1, math.nan]), state)
