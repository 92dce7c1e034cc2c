"""Perlin noise over time: bounds, smoothness, zero mean, prefixes, independence, keys."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgrpo.kernels import available_backends, explain_backend, perlin_noise, use_backend
from mgrpo.kernels.perlin.reference import fade, gradient_noise

# Root mean square of gradient noise whose gradients are uniform in [-1, 1] and whose peak is 1:
# 2 sqrt(2 I / 3) with I = integral of ((1 - fade(f)) f)^2 over [0, 1] = 535 / 18018.
RMS = 2.0 * math.sqrt(2.0 / 3.0 * 535.0 / 18018.0)
# Largest slope per cell: max over f of |d/df of (left weight)| + |d/df of (right weight)|, times 2.
STEEPEST = 2.0 * 1.3471507
PINNED = ["0x1.ad43c20000000p-6", "0x1.92c6140000000p-5", "0x1.46fc180000000p-8", "-0x1.771a840000000p-9"]


@pytest.fixture(params=["reference", "cpp", "cuda"], scope="module", autouse=True)
def backend(request):
    """Every test of this file runs on every backend that this machine has."""
    if request.param not in available_backends("perlin_noise"):
        pytest.skip(explain_backend("perlin_noise"))
    with use_backend(request.param):
        yield request.param


def rows(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.int64)


def noise(frames=64, **changes):
    options = {"alpha": 0.1, "seed": 3, "iteration": 5, "condition": rows(6)} | changes
    return perlin_noise(frames, **options)


def test_shape_dtype_and_exact_zeros():
    values = noise()
    assert values.shape == (6, 64, 3) and values.dtype == torch.float32
    assert noise(channels=5).shape == (6, 64, 5)
    assert noise(frames=1).shape == (6, 1, 3)
    silent = noise(alpha=0.0)
    assert torch.equal(silent, torch.zeros(6, 64, 3)) and not torch.signbit(silent).any()
    assert noise(condition=rows(0)).shape == (0, 64, 3)


@pytest.mark.parametrize("octaves", [1, 3])
def test_alpha_bounds_and_scales(octaves):
    one = noise(condition=rows(2000), alpha=1.0, octaves=octaves)
    assert one.abs().max() <= 1.0 and one.abs().max() > 0.7
    torch.testing.assert_close(noise(condition=rows(2000), alpha=0.05, octaves=octaves), one * 0.05)


def test_root_mean_square_and_zero_mean():
    values = noise(condition=rows(4000), alpha=1.0).double()
    # Frames 24 apart share no lattice point, so that each row and axis holds about 64 / 12 independent values.
    independent = 4000 * 3 * 64 / 12
    assert abs(values.mean()) < 4.0 * RMS / math.sqrt(independent)
    assert abs(values.square().mean().sqrt() - RMS) < 0.01 * RMS
    # At every frame, since each axis has its own phase: no frame is always still.
    per_frame = values.square().mean(dim=(0, 2)).sqrt()
    assert (per_frame - RMS).abs().max() < 0.05 * RMS


def test_extreme_gradients_reach_the_bound():
    opposite = torch.tensor([[1.0], [-1.0], [1.0]], dtype=torch.float64)[None]
    values = gradient_noise(opposite, torch.zeros(1, 1, dtype=torch.float64), 3, 2.0)
    assert values[0, :, 0].tolist() == [0.0, 1.0, 0.0]


@settings(deadline=None, max_examples=25)
@given(lattice=st.floats(1.0, 40.0), octaves=st.integers(1, 4), seed=st.integers(0, 2**64 - 1))
def test_first_difference_is_bounded(lattice, octaves, seed):
    values = noise(alpha=1.0, lattice=lattice, octaves=octaves, seed=seed).double()
    gains = [0.5**octave for octave in range(octaves)]
    # Gain halves while frequency doubles: every octave adds the same slope.
    bound = STEEPEST / lattice * octaves / sum(gains)
    assert (values[:, 1:] - values[:, :-1]).abs().max() <= min(bound, 2.0) + 1e-6


def test_smooth_across_lattice_points():
    """Value, slope and curvature have no jump: the second difference shrinks with the square of the time step."""
    coarse = noise(frames=400, lattice=40.0, alpha=1.0).double().diff(n=2, dim=1).abs().max()
    fine = noise(frames=4000, lattice=400.0, alpha=1.0).double().diff(n=2, dim=1).abs().max()
    assert fine < coarse / 80
    f = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    assert fade(f).tolist() == [0.0, 1.0]
    (first,) = torch.autograd.grad(fade(f).sum(), f, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), f)
    assert first.abs().max() < 1e-12 and second.abs().max() < 1e-12


@pytest.mark.parametrize("octaves", [1, 3])
@pytest.mark.parametrize("lattice", [1.0, 7.3, 12.0])
def test_noise_for_fewer_frames_is_a_prefix(octaves, lattice):
    longer = noise(frames=200, octaves=octaves, lattice=lattice)
    for frames in (1, 2, 13, 128, 199):
        assert torch.equal(noise(frames=frames, octaves=octaves, lattice=lattice), longer[:, :frames])


def test_rows_depend_on_their_key_alone():
    condition, member = torch.tensor([9, 2, 9, 70000, 0]), torch.tensor([0, 1, 1, 3, 65535])
    whole = noise(condition=condition, member=member, octaves=2)
    order = torch.tensor([4, 2, 0, 1, 3])
    assert torch.equal(noise(condition=condition[order], member=member[order], octaves=2), whole[order])
    for i in range(5):
        assert torch.equal(noise(condition=condition[i : i + 1], member=member[i : i + 1], octaves=2)[0], whole[i])


def test_member_none_is_shared_by_the_group():
    shared = noise(condition=torch.tensor([4, 4, 4]))
    assert torch.equal(shared[0], shared[1]) and torch.equal(shared[0], shared[2])
    assert torch.equal(shared, noise(condition=torch.tensor([4, 4, 4]), member=torch.zeros(3, dtype=torch.int64)))
    own = noise(condition=torch.tensor([4, 4, 4]), member=rows(3))
    assert not torch.equal(own[0], own[1]) and torch.equal(own[0], shared[0])


def test_every_part_of_the_key_matters():
    base = noise()
    for changes in ({"seed": 4}, {"iteration": 6}, {"condition": rows(6) + 6}, {"member": rows(6) + 1}):
        assert (noise(**changes) - base).abs().amax(dim=(1, 2)).min() > 1e-3


def test_axes_rows_and_octaves_are_independent():
    values = noise(frames=25, condition=rows(3000), alpha=1.0, octaves=1)[:, ::24].double()  # (3000, 2, 3)
    correlation = torch.corrcoef(values.flatten(1).T)
    off_diagonal = correlation[~torch.eye(6, dtype=torch.bool)]
    assert off_diagonal.abs().max() < 4.5 / math.sqrt(3000)
    # The second octave is not a faster copy of the first.
    first = noise(frames=25, condition=rows(3000), alpha=1.0).double()
    both = noise(frames=25, condition=rows(3000), alpha=1.5, octaves=2).double()  # 1 + 1/2 before scaling
    second = both - first
    assert abs(torch.corrcoef(torch.stack((first[:, 7, 0], second[:, 7, 0])))[0, 1]) < 4.5 / math.sqrt(3000)
    assert abs(second[:, 7].square().mean().sqrt() - RMS / 2) < 0.03 * RMS


def test_phases_are_spread():
    """Without a random phase every row would be 0 at frames 0, 12, 24, ..."""
    values = noise(condition=rows(500), alpha=1.0)
    assert (values[:, 0] == 0).float().mean() < 0.01 and values[:, 12].std() > 0.2


@settings(deadline=None, max_examples=40)
@given(
    frames=st.integers(1, 150),
    lattice=st.floats(1.0, 40.0),
    octaves=st.integers(1, 8),
    channels=st.integers(1, 5),
    seed=st.integers(0, 2**64 - 1),
    alpha=st.floats(1e-3, 3.0),
)
def test_bits_are_those_of_the_oracle(frames, lattice, octaves, channels, seed, alpha):
    options = {
        "frames": frames, "lattice": lattice, "octaves": octaves, "channels": channels, "seed": seed, "alpha": alpha,
        "condition": torch.tensor([0, 7, 2**32 - 1]), "member": torch.tensor([0, 65535, 3]), "iteration": 2**32 - 1,
    }  # fmt: skip
    assert torch.equal(noise(**options), noise(**options, backend="reference"))


def test_pinned_bits():
    """A saved run draws the same perturbation again."""
    values = noise(frames=200, octaves=2, iteration=11, condition=torch.tensor([4, 1]), member=torch.tensor([0, 9]))
    picked = values[[0, 0, 1, 1], [0, 199, 57, 128], [0, 2, 1, 0]]
    assert [float(value).hex() for value in picked] == PINNED


def test_any_number_of_threads_and_strided_keys():
    expected = noise(condition=rows(300), octaves=2)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(noise(condition=torch.stack((rows(300), rows(300) + 5), 1)[:, 0], octaves=2), expected)
    finally:
        torch.set_num_threads(threads)


def test_operator_and_compilation(backend):
    keys = torch.tensor([4, 1, 9]), torch.tensor([0, 2, 1])
    torch.library.opcheck(torch.ops.mgrpo.perlin_noise, (*keys, 20, 3, 0.1, 12.0, 2, -5, 3, backend))
    torch._dynamo.reset()

    def shifted(positions, condition):
        return positions + noise(frames=20, condition=condition, octaves=2)

    compiled = torch.compile(shifted, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(torch.ones(3, 20, 3), keys[0]), shifted(torch.ones(3, 20, 3), keys[0]))


def test_no_value_is_read_by_the_checks():
    with use_backend(None):  # the meta device has the reference alone
        assert noise(condition=torch.empty(6, dtype=torch.int64, device="meta"), octaves=2).shape == (6, 64, 3)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"frames": 0}, ValueError, r"perlin_noise\(\): frames must be >= 1, got 0"),
        ({"frames": 2.5}, TypeError, "frames must be an int, got float"),
        ({"alpha": -0.1}, ValueError, "alpha must be >= 0, got -0.1"),
        ({"alpha": math.nan}, ValueError, "alpha must be >= 0, got nan"),
        ({"lattice": 0.5}, ValueError, "lattice must be >= 1, got 0.5"),
        ({"octaves": 0}, ValueError, "octaves must be >= 1, got 0"),
        ({"octaves": 9}, ValueError, "octaves must be <= 8, got 9"),
        ({"channels": 0}, ValueError, "channels must be >= 1, got 0"),
        (
            {"frames": 2**29, "lattice": 1.0},
            ValueError,
            r"frames must need at most 2\^30 gradients per row, got 536870912 frames",
        ),
        ({"seed": -1}, ValueError, r"perlin_noise\(\): seed must be in \[0, 2\^64\), got -1"),
        ({"condition": rows(6) - 1}, ValueError, r"condition must be in \[0, 2\^32\), got -1 in row 0"),
        ({"condition": [0, 1]}, TypeError, "condition must be a torch.Tensor, got list"),
        ({"member": rows(5)}, ValueError, r"member must have shape \(N,\) with N = 6, got \(5,\)"),
    ],
)
def test_refusals(changes, error, message):
    with pytest.raises(error, match=message):
        noise(**changes)
