"""The samplers' scalars: reference values, relations between kernels, preserved marginals, step weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.transition import KERNELS, STEP_WEIGHTINGS, Transitions, make_transitions, step_weights
from mgrpo.errors import InputError
from tests.golden import golden_file

SCHEDULE = CosineSchedule.make()
MARGINAL_KERNELS = [("ddim", 1.0), ("ddim", 0.3), ("dance", 0.3), ("dance", 2.0), ("cps", 0.8), ("ode", 0.0)]

# (t, sigma_t, c0, cx) of EgoAllo's update as tabulated in the fact sheet.
PUBLISHED = [
    (1000, 0.799599, 0.245240, 0.522656),
    (841, 0.088345, 0.104280, 0.921551),
    (484, 0.043696, 0.158168, 0.842658),
    (225, 0.027376, 0.338101, 0.654490),
    (100, 0.018194, 0.614206, 0.381632),
    (25, 0.009731, 0.893665, 0.105846),
    (4, 0.005047, 0.987418, 0.012563),
    (1, 0.0, 1.0, 0.0),
]


@pytest.mark.golden
def test_egoallo_kernel_matches_the_reference() -> None:
    transitions = make_transitions("egoallo", eta=0.8)
    with np.load(golden_file("schedule/schedule*.npz"), allow_pickle=False) as data:
        arrays = {name: torch.from_numpy(data[name]) for name in data.files}
    for ours, name in (("A", "kernel_cx_eta0p8"), ("B", "kernel_c0_eta0p8"), ("s", "kernel_sigma_eta0p8")):
        torch.testing.assert_close(getattr(transitions, ours), arrays[name], rtol=1e-9, atol=1e-14)
    levels = arrays["timesteps"].tolist()
    assert transitions.t.tolist() == levels[:-1] and transitions.t_prev.tolist() == levels[1:]


def test_egoallo_kernel_matches_the_published_table() -> None:
    transitions = make_transitions()
    rows = {t: (s, B, A) for t, A, B, s in transitions.scalars}
    for t, sigma, c0, cx in PUBLISHED:
        assert rows[t] == pytest.approx((sigma, c0, cx), abs=6e-7)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("steps", [1, 2, 10, 30, 50])
def test_last_step_returns_the_prediction(kernel: str, steps: int) -> None:
    transitions = make_transitions(kernel, eta=0.3, steps=steps)  # type: ignore[arg-type]
    assert len(transitions) == steps
    assert (transitions.A[-1].item(), transitions.B[-1].item(), transitions.s[-1].item()) == (0.0, 1.0, 0.0)
    assert not transitions.trainable[-1]
    assert math.isinf(transitions.gradient_amplification[-1])
    assert all(torch.isfinite(getattr(transitions, name)).all() for name in "ABs")
    assert (transitions.t > transitions.t_prev).all() and transitions.t_prev[-1] == 0
    assert transitions.t_prev[:-1].tolist() == transitions.t[1:].tolist()


def variance_after(transitions: Transitions, data_variance: float) -> torch.Tensor:
    """Variance of x after each step, and its covariance with x0, for data x0 ~ N(0, v) and a network that predicts x0.

    With x0_pred = x0, x_prev = A x_t + B x0 + s z stays Gaussian, so both follow in closed form.
    """
    abar = SCHEDULE.alpha_bar[transitions.t[0]].item()
    variance = abar * data_variance + (1.0 - abar)
    covariance = math.sqrt(abar) * data_variance
    out = []
    for _, A, B, s in transitions.scalars:
        variance = A * A * variance + 2.0 * A * B * covariance + B * B * data_variance + s * s
        covariance = A * covariance + B * data_variance
        out.append((variance, covariance))
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("kernel, eta", MARGINAL_KERNELS)
@pytest.mark.parametrize("data_variance", [1.0, 0.25, 4.0])
def test_marginals_are_kept_on_gaussian_data(kernel: str, eta: float, data_variance: float) -> None:
    transitions = make_transitions(kernel, eta=eta)  # type: ignore[arg-type]
    abar = SCHEDULE.alpha_bar[transitions.t_prev]
    expected = torch.stack((abar * data_variance + 1.0 - abar, abar.sqrt() * data_variance), dim=1)
    torch.testing.assert_close(variance_after(transitions, data_variance), expected, rtol=1e-9, atol=1e-12)


def test_egoallo_kernel_does_not_keep_marginals() -> None:
    """A known property of the published sampler: the noise it leaves is far below the schedule's."""
    transitions = make_transitions("egoallo")
    got, abar = variance_after(transitions, 0.0)[:, 0].sqrt(), SCHEDULE.alpha_bar[transitions.t_prev]
    at = transitions.t_prev.tolist().index(289)
    assert got[at].item() == pytest.approx(0.158, abs=2e-3)
    assert (1 - abar[at]).sqrt().item() == pytest.approx(0.446, abs=1e-3)


def test_ddim_and_dance_agree_where_they_must() -> None:
    for eta, tolerance in ((1.0, 1e-12), (0.0, 1e-14)):
        ddim, dance = make_transitions("ddim", eta=eta), make_transitions("dance", eta=eta)
        for name in "ABs":
            torch.testing.assert_close(getattr(ddim, name), getattr(dance, name), rtol=0, atol=tolerance)


def test_dance_is_an_ornstein_uhlenbeck_step() -> None:
    """Two half steps of the same SDE equal one whole step while the prediction is held."""
    eps = 0.7
    whole = make_transitions("dance", eta=eps, steps=15)
    fine = make_transitions("dance", eta=eps, steps=30)
    assert set(whole.t.tolist()) <= set(fine.t.tolist())
    rows = {t: k for k, t in enumerate(fine.t.tolist())}
    for t, t_prev, A, B, s in zip(whole.t.tolist(), whole.t_prev.tolist(), whole.A, whole.B, whole.s, strict=True):
        mean_x, mean_0, variance = 1.0, 0.0, 0.0
        level = t
        while level != t_prev:
            k = rows[level]
            a, b, std = fine.A[k].item(), fine.B[k].item(), fine.s[k].item()
            mean_x, mean_0, variance = a * mean_x, a * mean_0 + b, a * a * variance + std * std
            level = int(fine.t_prev[k])
        assert (mean_x, mean_0, math.sqrt(variance)) == pytest.approx((A.item(), B.item(), s.item()), abs=1e-9)


def test_deterministic_kernels_have_no_noise() -> None:
    ode = make_transitions("ode", eta=0.8)
    assert ode.s.eq(0).all() and not ode.trainable.any() and ode.trainable_steps == ()
    for kernel in ("ddim", "dance", "cps"):
        same = make_transitions(kernel, eta=0.0)
        for name in "ABs":
            torch.testing.assert_close(getattr(same, name), getattr(ode, name), rtol=0, atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(eta=st.floats(0.01, 1.0), steps=st.integers(2, 100), kernel=st.sampled_from(["egoallo", "ddim", "dance", "cps"]))
def test_noise_never_exceeds_the_next_level(eta: float, steps: int, kernel: str) -> None:
    if kernel == "egoallo":
        eta *= 0.3  # few and long steps leave no room for more of its fixed std; see the error test
    transitions = make_transitions(kernel, eta=eta, steps=steps)  # type: ignore[arg-type]
    spread = (1.0 - SCHEDULE.alpha_bar[transitions.t_prev]).sqrt()
    assert (transitions.s >= 0).all() and (transitions.s <= spread + 1e-12).all()
    assert transitions.trainable.tolist() == (transitions.s > 1e-6).tolist()


def test_gradient_amplification_spread() -> None:
    """Values of the fact sheet: why uniform weights train almost only the last steps."""
    for kernel, eta, first, last in (
        ("ddim", 1.0, 0.253, 138.0),
        ("dance", 0.3, 0.285, 246.0),
        ("egoallo", 0.8, 0.31, 196.0),
    ):
        amplification = make_transitions(kernel, eta=eta).gradient_amplification  # type: ignore[arg-type]
        assert amplification[0].item() == pytest.approx(first, rel=0.02)
        assert amplification[28].item() == pytest.approx(last, rel=0.01)


@pytest.mark.parametrize("scheme", STEP_WEIGHTINGS)
@pytest.mark.parametrize("kernel", ["egoallo", "ddim", "dance", "cps"])
def test_step_weights_have_mean_one_over_trained_steps(scheme: str, kernel: str) -> None:
    transitions = make_transitions(kernel, eta=0.5)  # type: ignore[arg-type]
    weights = step_weights(transitions, scheme)  # type: ignore[arg-type]
    assert weights[transitions.trainable].mean().item() == pytest.approx(1.0, abs=1e-12)
    assert weights[~transitions.trainable].eq(0).all() and (weights[transitions.trainable] > 0).all()
    if scheme == "none":
        assert weights[transitions.trainable].eq(1).all()
    elif scheme == "inv_snr":
        even = (weights * transitions.gradient_amplification)[transitions.trainable]
        torch.testing.assert_close(even, even[:1].expand_as(even), rtol=1e-12, atol=0)
    else:
        ratio = (weights / transitions.s)[transitions.trainable]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-12, atol=0)


def test_small_steps_can_be_excluded() -> None:
    transitions = make_transitions("egoallo", s_min=0.01)
    assert transitions.trainable.tolist() == (transitions.s > 0.01).tolist()
    assert 0 < len(transitions.trainable_steps) < 29
    weights = step_weights(transitions, "inv_snr")
    assert weights[transitions.trainable].mean().item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"kernel": "euler"}, "one of egoallo, ddim"),
        ({"kernel": "ddim", "eta": 1.5}, r"lie in \[0, 1\]"),
        ({"kernel": "cps", "eta": -0.1}, r"lie in \[0, 1\]"),
        ({"kernel": "dance", "eta": float("nan")}, "finite and not negative"),
        ({"kernel": "egoallo", "eta": -1.0}, "finite and not negative"),
        ({"kernel": "egoallo", "eta": 3.0}, "too large"),
        ({"kernel": "egoallo", "eta": 0.8, "steps": 2}, "from level 1000 to 225"),
        ({"steps": 0}, "steps"),
        ({"s_min": -1.0}, "s_min"),
    ],
)
def test_make_transitions_errors(kwargs: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_transitions(**kwargs)  # type: ignore[arg-type]


def test_step_weight_errors() -> None:
    with pytest.raises(InputError, match="scheme"):
        step_weights(make_transitions(), "linear")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no step can be trained"):
        step_weights(make_transitions("ode"))
