"""Philox streams: known answers, the documented counter layout, invariances, statistics, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgrpo import kernels
from mgrpo.kernels import available_backends, philox_normal, philox_uniform
from mgrpo.kernels.rng import reference

BACKENDS = available_backends("philox_normal")
DRAWS = (philox_normal, philox_uniform)

# Random123's known-answer vectors of philox4x32-10: counter, key, result.
KNOWN_ANSWERS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (  # digits of pi
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


def rows(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.int64)


def draw(function, shape, backend="reference", **changes):
    """Rows 0..4 with default keys, except for ``changes``."""
    keys = {"seed": 11, "iteration": 3, "condition": rows(5), "member": rows(5) % 2, "step": 7, "stream": 0} | changes
    return function(shape, backend=backend, **keys)


def bits(values: torch.Tensor) -> torch.Tensor:
    return values.view(torch.int32)


def philox_by_big_integers(counter, key):
    """The generator from its paper's definition, with Python's unbounded integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    words = reference.philox4x32(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in words) == expected
    assert philox_by_big_integers(counter, key) == expected


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**64 - 1),
    iteration=st.integers(0, 2**32 - 1),
    condition=st.integers(0, 2**32 - 1),
    member=st.integers(0, 2**16 - 1),
    step=st.integers(0, 2**16 - 1),
    stream=st.integers(0, 15),
    element=st.integers(0, 300),
)
def test_layout_is_the_documented_one(seed, iteration, condition, member, step, stream, element):
    counter = (stream << 28 | element // 4, member << 16 | step, condition, iteration)
    word = philox_by_big_integers(counter, (seed & 0xFFFFFFFF, seed >> 32))[element % 4]
    for backend in BACKENDS:
        values = philox_uniform(
            (element + 1,), seed=seed, iteration=iteration, condition=torch.tensor([condition]),
            member=torch.tensor([member]), step=step, stream=stream, backend=backend,
        )  # fmt: skip
        assert float(values[0, element]) == (word >> 8) / 2**24


def test_normal_is_box_muller_of_the_words():
    words = torch.stack(reference.row_words(rows(3), rows(3) + 9, 4000, seed=5, iteration=6, stream=1), dim=-1).double()
    radius = (-2.0 * ((words[..., 0::2] // 256 + 1) / 2**24).log()).sqrt()
    angle = 2.0 * math.pi * (words[..., 1::2] // 256) / 2**24
    exact = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1).flatten(1)
    values = reference.philox_normal(rows(3), rows(3) + 9, 4000, seed=5, iteration=6, stream=1)
    assert (values.double() - exact).abs().max() < 1.5e-6


def test_logarithm_and_circle_polynomials():
    near_ends = torch.cat((torch.arange(1, 70_000), torch.arange(2**24 - 70_000, 2**24 + 1)))
    u = near_ends.float() / 2**24
    exact = u.double().log()
    assert ((reference.log_positive(u).double() - exact).abs() <= 1.2e-7 * exact.abs()).all()
    turn = torch.arange(0, 2**24, 97)
    sine, cosine = reference.sin_cos_turns(turn)
    angle = turn.double() * (2.0 * math.pi / 2**24)
    assert (sine.double() - angle.sin()).abs().max() < 1.5e-7
    assert (cosine.double() - angle.cos()).abs().max() < 1.5e-7
    # The axes are hit exactly.
    sine, cosine = reference.sin_cos_turns(torch.arange(4) << 22)
    assert sine.tolist() == [0.0, 1.0, 0.0, -1.0] and cosine.tolist() == [1.0, 0.0, -1.0, 0.0]


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("name", ["philox_normal", "philox_uniform"])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 127, 128, 129, 8191, 8192, 8193, 100_003])
def test_equals_reference_bit_for_bit(name, count, backend):
    generator = torch.Generator().manual_seed(count)
    size = 1 if count > 10_000 else 6
    keys = {
        "condition": torch.randint(0, 2**32, (size,), generator=generator),
        "member": torch.randint(0, 2**16, (size,), generator=generator),
        "step": torch.randint(0, 2**16, (size,), generator=generator),
    }
    for seed, iteration, stream in ((0, 0, 0), (2**64 - 1, 2**32 - 1, 15), (123456789, 7, 3)):
        both = [
            getattr(kernels, name)((count,), seed=seed, iteration=iteration, stream=stream, backend=b, **keys)
            for b in ("reference", backend)
        ]
        assert torch.equal(bits(both[0]), bits(both[1]))


PINNED_NORMAL = [1071350833, -1088434839, -1095319251, 1051104255, 1060111531, 1072309213]


def test_pinned_bits():
    """Saved runs are replayed from their keys, so these numbers may never change."""
    for backend in BACKENDS:
        values = philox_normal(
            (6,), seed=1234567890123, iteration=42, condition=torch.tensor([7]), member=torch.tensor([3]), step=5,
            backend=backend,
        )  # fmt: skip
        assert bits(values)[0].tolist() == PINNED_NORMAL


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("function", DRAWS)
def test_rows_depend_on_their_key_alone(function, backend):
    condition, member = torch.tensor([4, 0, 2**32 - 1, 4, 9]), torch.tensor([0, 5, 65535, 1, 0])
    step = torch.tensor([0, 1, 2, 65535, 4])
    whole = draw(function, (33, 7), backend, condition=condition, member=member, step=step)
    order = torch.tensor([3, 1, 4, 0, 2])
    shuffled = draw(function, (33, 7), backend, condition=condition[order], member=member[order], step=step[order])
    assert torch.equal(bits(shuffled), bits(whole[order]))
    for i in range(5):
        alone = draw(
            function, (33, 7), backend, condition=condition[i : i + 1], member=member[i : i + 1], step=int(step[i])
        )
        assert torch.equal(bits(alone), bits(whole[i : i + 1]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("function", DRAWS)
def test_shorter_array_is_prefix_of_longer(function, backend):
    longer = draw(function, (40, 11), backend)
    for frames in (0, 1, 5, 39):
        assert torch.equal(draw(function, (frames, 11), backend), longer[:, :frames])
    assert torch.equal(draw(function, (), backend), longer[:, 0, 0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_thread_count_changes_nothing(backend):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = draw(philox_normal, (30_000,), backend)
        torch.set_num_threads(3)
        three = draw(philox_normal, (30_000,), backend)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(bits(one), bits(three))


def test_every_part_of_the_key_matters():
    base = draw(philox_normal, (64,))
    # Rows of the base differ in condition and member already.
    assert len({tuple(row.tolist()) for row in base}) == 5
    changes = {
        "seed": 12,
        "iteration": 4,
        "step": 8,
        "stream": 1,
        "condition": rows(5) + 2**31,
        "member": (rows(5) % 2) + 2**15,
    }
    for name, value in changes.items():
        assert (draw(philox_normal, (64,), **{name: value}) == base).float().mean() < 0.01, name
    assert (draw(philox_normal, (64,), seed=11 + 2**32) == base).float().mean() < 0.01


def kolmogorov_distance(values: torch.Tensor, cdf) -> float:
    ordered = values.double().flatten().sort().values
    count = ordered.numel()
    exact = cdf(ordered)
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    return float(torch.maximum((steps[1:] - exact).abs().max(), (exact - steps[:-1]).abs().max()))


def normal_cdf(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * torch.erfc(-x / math.sqrt(2.0))


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_normal_statistics(seed):
    values = philox_normal(
        (5000,), seed=seed, iteration=0, condition=rows(40), member=rows(40), step=0, backend=BACKENDS[-1]
    ).double()
    count = values.numel()
    assert abs(values.mean()) < 4.0 / math.sqrt(count)
    assert abs(values.var() - 1.0) < 4.0 * math.sqrt(2.0 / count)
    assert abs((values**3).mean()) < 4.0 * math.sqrt(15.0 / count)
    assert abs((values**4).mean() - 3.0) < 4.0 * math.sqrt(96.0 / count)
    assert kolmogorov_distance(values, normal_cdf) < 2.0 / math.sqrt(count)  # p = 0.0007
    assert values.abs().max() <= math.sqrt(48.0 * math.log(2.0)) + 1e-6


def test_uniform_statistics():
    values = draw(philox_uniform, (40_000,), BACKENDS[-1])
    assert values.min() >= 0.0 and values.max() < 1.0
    assert torch.equal(values * 2**24, (values * 2**24).round())
    assert kolmogorov_distance(values, lambda x: x) < 2.0 / math.sqrt(values.numel())


@pytest.mark.parametrize("varied", ["seed", "iteration", "condition", "member", "step", "stream"])
def test_neighbouring_keys_are_independent(varied):
    count, size = 12, 4000
    batch = {"condition": torch.zeros(count, dtype=torch.int64), "member": torch.zeros(count, dtype=torch.int64)}
    if varied in batch:
        values = philox_normal((size,), seed=3, iteration=1, step=0, **(batch | {varied: rows(count)}))
    else:
        one = {name: tensor[:1] for name, tensor in batch.items()}
        keys = {"seed": 3, "iteration": 1, "step": 0, "stream": 0}
        values = torch.cat([philox_normal((size,), **one, **(keys | {varied: i})) for i in range(count)])
    correlation = torch.corrcoef(values.double())
    off_diagonal = correlation[~torch.eye(count, dtype=torch.bool)]
    assert off_diagonal.abs().max() < 4.5 / math.sqrt(size)
    # Squares too: an equal radius with another angle would pass the test above.
    squares = torch.corrcoef(values.double().square())[~torch.eye(count, dtype=torch.bool)]
    assert squares.abs().max() < 4.5 / math.sqrt(size)
    # And along a row.
    lagged = (values[:, 1:] * values[:, :-1]).double().mean(dim=1)
    assert lagged.abs().max() < 4.5 / math.sqrt(size)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch_and_strided_keys(backend):
    none = torch.empty(0, dtype=torch.int64)
    assert draw(philox_normal, (3, 2), backend, condition=none, member=none).shape == (0, 3, 2)
    strided = torch.arange(10)[::2]
    expanded = torch.tensor(1).expand(5)
    plain = draw(philox_normal, (9,), backend, condition=strided.contiguous(), member=expanded.contiguous())
    assert torch.equal(draw(philox_normal, (9,), backend, condition=strided, member=expanded), plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_and_passes_opcheck(backend):
    keys = (rows(4) << 16 | 3, rows(4))
    for name in ("philox_normal", "philox_uniform"):
        torch.library.opcheck(getattr(torch.ops.mgrpo, name).default, (*keys, 37, 5, 6, 1, backend))
    compiled = torch.compile(
        lambda condition: philox_normal((5,), seed=1, iteration=2, condition=condition, member=condition, step=3,
                                        backend=backend) * 2.0,
        fullgraph=True, backend="aot_eager",
    )  # fmt: skip
    expected = philox_normal((5,), seed=1, iteration=2, condition=rows(4), member=rows(4), step=3) * 2.0
    assert torch.equal(compiled(rows(4)), expected)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"seed": -1}, ValueError, r"philox_normal\(\): seed must be in \[0, 2\^64\), got -1"),
        ({"seed": 2**64}, ValueError, r"seed must be in \[0, 2\^64\)"),
        ({"seed": 1.5}, TypeError, "seed must be an int, got float"),
        ({"iteration": -3}, ValueError, r"iteration must be in \[0, 2\^32\), got -3"),
        ({"iteration": 2**32}, ValueError, "iteration must be in"),
        ({"step": 2**16}, ValueError, r"step must be in \[0, 2\^16\), got 65536"),
        ({"step": -1}, ValueError, "step must be in"),
        ({"step": rows(5) - 1}, ValueError, r"step must be in \[0, 2\^16\), got -1 in row 0"),
        ({"stream": 16}, ValueError, r"stream must be in \[0, 2\^4\), got 16"),
        ({"condition": rows(5) - 2}, ValueError, r"condition must be in \[0, 2\^32\), got -2 in row 0"),
        ({"condition": rows(5) + 2**32 - 2}, ValueError, r"got 4294967296 in row 2"),
        ({"member": rows(5) + 65533}, ValueError, r"member must be in \[0, 2\^16\), got 65536 in row 3"),
        ({"member": rows(4)}, ValueError, r"member must have shape \(N,\) with N = 5, got \(4,\)"),
        ({"step": rows(4)}, ValueError, r"step must have shape \(N,\)"),
        ({"condition": rows(5)[:, None]}, ValueError, r"condition must have shape \(N,\), got \(5, 1\)"),
        ({"condition": rows(5).float()}, TypeError, "condition must have dtype int64, got float32"),
        ({"condition": [1, 2]}, TypeError, "condition must be a torch.Tensor, got list"),
        ({"backend": "fast"}, ValueError, "backend must be one of"),
    ],
)
def test_refusals(changes, error, message):
    with pytest.raises(error, match=message):
        draw(philox_normal, (4,), **changes)


def test_refused_shapes():
    with pytest.raises(TypeError, match=r"shape must be a sequence of ints, got int; write \(4,\)"):
        draw(philox_uniform, 4)
    with pytest.raises(ValueError, match=r"philox_uniform\(\): shape must be >= 0, got -1"):
        draw(philox_uniform, (4, -1))
    with pytest.raises(ValueError, match=r"at most 2\^30 elements"):
        draw(philox_uniform, (2**20, 2**11))


def test_streams_are_distinct():
    streams = {name: getattr(kernels, name) for name in kernels.__all__ if name.startswith("STREAM_")}
    assert streams == {"STREAM_STEP": 0, "STREAM_INIT": 1, "STREAM_PERLIN": 2, "STREAM_TRAIN": 3, "STREAM_DATA": 4}
