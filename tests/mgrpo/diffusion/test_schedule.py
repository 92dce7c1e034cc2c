"""Noise schedule and sampling levels against EgoAllo's values."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgrpo.diffusion.schedule import CosineSchedule, quadratic_timesteps
from mgrpo.errors import InputError
from tests.golden import golden_file

EGOALLO_LEVELS = [1000, *(i * i for i in range(29, -1, -1))]


@pytest.mark.golden
def test_constants_match_the_reference() -> None:
    schedule = CosineSchedule.make()
    with np.load(golden_file("schedule/schedule*.npz"), allow_pickle=False) as data:
        arrays = {name: torch.from_numpy(data[name]) for name in data.files}
    torch.testing.assert_close(schedule.alpha_bar, arrays["alpha_bar_t"], rtol=1e-13, atol=0)
    torch.testing.assert_close(schedule.alpha[1:], arrays["alpha_t"], rtol=1e-13, atol=1e-15)
    # float32, and in it 1 - alpha_bar, which loses digits at low levels
    torch.testing.assert_close(schedule.alpha_bar.float(), arrays["alpha_bar_t_f32"], rtol=1e-7, atol=1e-7)
    etas = {
        name: float(name[len("sigma_t_eta") :].replace("p", "."))
        for name in arrays
        if re.match(r"sigma_t_eta\d+p\d+$", name)
    }
    assert etas
    for name, eta in etas.items():
        torch.testing.assert_close(eta * schedule.posterior_std, arrays[name], rtol=1e-12, atol=1e-15)
        sigma = (eta * schedule.posterior_std).float()
        torch.testing.assert_close(sigma[2:], arrays[f"{name}_f32"][2:], rtol=5e-4, atol=0)
    torch.testing.assert_close(schedule.training_weight_f32[1:], arrays["training_weight_t_f32"][1:], rtol=1e-6, atol=0)
    assert quadratic_timesteps() == arrays["timesteps"].tolist()


def test_published_values() -> None:
    schedule = CosineSchedule.make()
    assert schedule.alpha_bar.dtype == torch.float64 and schedule.alpha_bar.shape == (1001,)
    assert schedule.alpha_bar[0] == 1.0 and schedule.alpha[0] == 1.0
    assert schedule.alpha_bar[1].item() == pytest.approx(0.9999587158, abs=5e-11)
    assert schedule.alpha_bar[999].item() == pytest.approx(2.43e-6, rel=5e-3)
    assert schedule.alpha_bar[1000].item() == pytest.approx(2.43e-9, rel=5e-3)
    # Only the last beta is clipped.
    assert schedule.alpha[1000].item() == pytest.approx(0.001, rel=1e-9) and schedule.alpha[999] > 0.001
    for t, weight in ((1, 1.0), (2, 0.478), (3, 0.305), (10, 0.0747), (100, 0.0114), (1000, 0.01)):
        assert schedule.training_weight_f32[t].item() == pytest.approx(weight, rel=5e-3)
    assert schedule.training_weight_f32[1:].mean().item() == pytest.approx(0.0135, abs=5e-5)


@pytest.mark.parametrize("max_t", [1, 2, 10, 1000])
def test_alpha_bar_falls_from_one(max_t: int) -> None:
    schedule = CosineSchedule.make(max_t)
    assert schedule.alpha_bar[0] == 1.0
    assert (schedule.alpha_bar.diff() < 0).all() and (schedule.alpha_bar > 0).all()
    assert (schedule.snr.diff() < 0).all()
    assert schedule.posterior_std[:2].eq(0).all() and (schedule.posterior_std[2:] > 0).all()


def test_thirty_steps_are_egoallos() -> None:
    assert quadratic_timesteps() == EGOALLO_LEVELS


@given(max_t=st.integers(1, 1500), share=st.floats(0.0, 1.0))
def test_levels_fall_strictly_from_max_to_zero(max_t: int, share: float) -> None:
    steps = 1 + round(share * (max_t - 1))
    levels = quadratic_timesteps(steps, max_t)
    assert len(levels) == steps + 1
    assert levels[0] == max_t and levels[-1] == 0
    assert all(a > b for a, b in itertools.pairwise(levels))


def test_spacing_grows_with_the_level() -> None:
    levels = quadratic_timesteps(10)
    gaps = [a - b for a, b in itertools.pairwise(levels)]
    assert gaps == sorted(gaps, reverse=True)


def test_errors() -> None:
    with pytest.raises(InputError, match="max_t"):
        CosineSchedule.make(0)
    for steps in (0, -3, 1001):
        with pytest.raises(InputError, match="steps"):
            quadratic_timesteps(steps)
