"""Windows of long sequences: EgoAllo's, number for number, and the repaired ones; properties for any length."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgrpo.diffusion.config import StitchingConfig
from mgrpo.diffusion.stitching import BLENDS, Stitching, WindowPlan
from mgrpo.errors import InputError

LENGTHS = range(1, 2001)
SETTINGS = [(128, 32), (128, 1), (32, 8), (20, 17)]
"""(window, overlap); in the last one, frames belong to many windows."""


def shares_of_frames(plan: WindowPlan) -> torch.Tensor:
    """Sum of the shares ``(T,)`` of every frame; NaN where no window is."""
    total = torch.full((plan.frames,), torch.nan, dtype=torch.float64)
    for start, stop, share in zip(plan.starts, plan.stops, plan.shares, strict=True):
        total[start:stop] = total[start:stop].nan_to_num(0.0) + share
    return total


@pytest.mark.parametrize(("window", "overlap"), SETTINGS)
@pytest.mark.parametrize("blend", ["egoallo", "proper"])
def test_any_length(blend: str, window: int, overlap: int) -> None:
    stitching = Stitching(blend, window, overlap)  # type: ignore[arg-type]
    lengths = LENGTHS if window == 128 else range(1, 400)
    for frames in lengths:
        plan = stitching.plan(frames)
        assert max(plan.lengths) <= window and min(plan.lengths) >= 1 and plan.frames == frames
        assert plan.starts[0] == 0 and plan.stops[-1] == frames
        assert all(bool((share > 0).all()) and len(share) == n for share, n in zip(plan.shares, plan.lengths))
        total = shares_of_frames(plan)
        assert bool(((total - 1).abs() < 1e-12).all()), f"{frames} frames: covered, and shares that sum to one"


@pytest.mark.parametrize(("window", "overlap"), SETTINGS)
def test_proper_windows_are_full_few_and_evenly_spread(window: int, overlap: int) -> None:
    proper, original = Stitching("proper", window, overlap), Stitching("egoallo", window, overlap)
    for frames in LENGTHS if window == 128 else range(1, 400):
        plan = proper.plan(frames)
        assert set(plan.lengths) == {min(window, frames)}, f"{frames} frames: full windows"
        assert (len(plan) == 1) == (frames <= window) and len(plan) <= len(original.plan(frames))
        steps = [b - a for a, b in zip(plan.starts, plan.starts[1:])]
        assert not steps or (max(steps) - min(steps) <= 1 and max(steps) <= window - overlap)
        # One window fewer could not overlap by so much.
        assert len(plan) == 1 or (len(plan) - 1) * (window - overlap) + overlap < frames


def test_the_originals_windows_and_weights() -> None:
    """Facts: D.5 (a) to (d)."""
    stitching = Stitching("egoallo")
    k = torch.arange(32, dtype=torch.float64)
    short = stitching.plan(96)
    assert (short.starts, short.stops) == ((0,), (96,))
    two = stitching.plan(128)
    assert (two.starts, two.stops) == ((0, 96), (128, 128))
    torch.testing.assert_close(two.shares[1], (k + 1) / 33)
    torch.testing.assert_close(two.shares[0][96:], 1 - (k + 1) / 33)
    assert stitching.plan(100).lengths == (100, 4) and stitching.plan(97).lengths == (97, 1)
    assert stitching.plan(200).lengths == (128, 104, 8)
    # A long sequence: every window takes the beginning of one array of weights, so the first keeps weight 1 to its
    # end where the second fades in.
    long = stitching.plan(1000)
    torch.testing.assert_close(long.shares[1][:32], ((k + 1) / 32) / (1 + (k + 1) / 32))
    torch.testing.assert_close(long.shares[0][96:], 1 / (1 + (k + 1) / 32))


def test_proper_cross_fades_are_linear() -> None:
    plan = Stitching("proper", 10, 4).plan(16)
    assert (plan.starts, plan.stops) == ((0, 6), (10, 16))
    rise = torch.tensor([1, 2, 3, 4], dtype=torch.float64) / 5
    torch.testing.assert_close(plan.shares[1], torch.cat((rise, torch.ones(6, dtype=torch.float64))))
    torch.testing.assert_close(plan.shares[0], torch.cat((torch.ones(6, dtype=torch.float64), 1 - rise)))
    # Two windows that share most of their frames: linear all the same, because the ends of the sequence don't fade.
    wide = Stitching("proper", 10, 4).plan(12)
    assert wide.starts == (0, 2)
    torch.testing.assert_close(wide.shares[1][:8], torch.arange(1, 9, dtype=torch.float64) / 9)
    torch.testing.assert_close(wide.shares[0][2:], torch.arange(8, 0, -1, dtype=torch.float64) / 9)
    # The middle window of three fades on both sides, each window with weights of its own place.
    three = Stitching("proper", 10, 4).plan(22)
    assert three.starts == (0, 6, 12)
    torch.testing.assert_close(three.shares[1], torch.cat((rise, torch.ones(2, dtype=torch.float64), 1 - rise)))
    assert Stitching("proper").plan(128).starts == (0,) and Stitching("proper").plan(129).starts == (0, 1)


def test_the_early_codes_shares() -> None:
    plan, weighed = Stitching("author").plan(128), Stitching("egoallo").plan(128)
    assert (plan.starts, plan.stops) == (weighed.starts, weighed.stops)
    i = torch.arange(32, dtype=torch.float64)
    torch.testing.assert_close(plan.shares[0][:32], 32 / (i + 1))
    torch.testing.assert_close(plan.shares[0][96:], torch.full((32,), 32 / 33, dtype=torch.float64))
    torch.testing.assert_close(shares_of_frames(plan)[96:], torch.full((32,), 64 / 33, dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["egoallo", "proper"]), st.integers(1, 600), st.integers(2, 130), st.data())
def test_a_constant_is_unchanged_and_a_blend_lies_between(blend: str, frames: int, window: int, data) -> None:
    overlap = data.draw(st.integers(1, window - 1))
    if frames / (window - overlap) > 100:
        frames = 100 * (window - overlap)
    plan = Stitching(blend, window, overlap).plan(frames)  # type: ignore[arg-type]
    constant = plan.blend([torch.full((2, length, 3), 0.7) for length in plan.lengths])
    assert constant.shape == (2, frames, 3) and constant.dtype == torch.float32
    assert float((constant - 0.7).abs().max()) <= 2e-7 * max(1, len(plan) / 10)
    mixed = plan.blend([torch.full((length, 1), float(k)) for k, length in enumerate(plan.lengths)])
    assert float(mixed.min()) >= -1e-6 and float(mixed.max()) <= len(plan) - 1 + 1e-4
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(frames, 4, generator=generator, dtype=torch.float64)
    pieces = [truth[start:stop] for start, stop in zip(plan.starts, plan.stops)]
    torch.testing.assert_close(plan.blend(pieces), truth)


def test_one_window_is_passed_on_bit_for_bit() -> None:
    prediction = torch.randn(2, 96, 5)
    for blend in ("egoallo", "proper"):
        assert torch.equal(Stitching(blend).plan(96).blend([prediction]), prediction)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"blend": "linear"}, "blend must be one of egoallo, proper, author, got 'linear'"),
        ({"window": 1}, "window must be a whole number of frames, at least 2, got 1"),
        ({"window": 64.0}, "window must be a whole number"),
        ({"overlap": 0}, "overlap must be a whole number of frames, at least 1 and at most 127"),
        ({"window": 16, "overlap": 16}, "at most 15, below the window of 16, got 16"),
    ],
)
def test_impossible_windows_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Stitching(**options)  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused() -> None:
    for blend in BLENDS:
        with pytest.raises(InputError, match="at least 1 frame, got 0"):
            Stitching(blend).plan(0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"the windows have \[128, 32\] frames, the predictions \[128\]"):
        Stitching("egoallo").plan(128).blend([torch.zeros(128, 2)])


def test_options_follow_the_model() -> None:
    assert StitchingConfig().stitching(None) == Stitching("proper", 128, 32)
    assert StitchingConfig().stitching(32) == Stitching("proper", 32, 8)
    assert StitchingConfig("egoallo", 64).stitching(32) == Stitching("egoallo", 64, 16)
    assert StitchingConfig(overlap=5).stitching(32) == Stitching("proper", 32, 5)
    assert StitchingConfig(window=3).stitching(None) == Stitching("proper", 3, 1)
    with pytest.raises(InputError, match="--overlap 32 must be below the window of 32 frames, the"):
        StitchingConfig(overlap=32).stitching(32)
    for options in ({"window": 1}, {"window": 8, "overlap": 8}):
        with pytest.raises(InputError, match="--window must be at least 2 frames and more than --overlap"):
            StitchingConfig(**options)
    with pytest.raises(InputError, match="--overlap must be at least 0, got -1"):
        StitchingConfig(overlap=-1)
