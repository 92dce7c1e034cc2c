"""HalfLinear against the same layer in float64; where it doesn't run, that it says so."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mgrpo.kernels import BackendError, half_linear
from mgrpo.kernels.half_linear import HalfLinear, half_linear_problem

PROBLEM = half_linear_problem()
runs = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))
EXACT = {"none": lambda y: y, "gelu": F.gelu, "relu": F.relu}


def layer(outputs: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator) * inputs**-0.5
    return weight, torch.randn(outputs, generator=generator)


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@runs
@pytest.mark.parametrize("activation", EXACT)
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(129, 512, 256), (133, 130, 129), (7, 63, 1), (1, 64, 128), (2, 1, 300), (264, 65, 40), (5, 257, 127)],
)
def test_it_is_the_layer_up_to_rounding(rows: int, inputs: int, outputs: int, activation: str) -> None:
    weight, bias = layer(outputs, inputs)
    x = 3 * torch.randn(rows, inputs, generator=torch.Generator().manual_seed(1))
    exact = F.linear(x.double(), weight.double(), bias.double())
    got = HalfLinear(weight, bias)(x, activation)  # type: ignore[arg-type]
    assert got.shape == (rows, outputs) and got.dtype == torch.float32
    # Of what is rounded before the activation, which may take nearly all of it away.
    assert float((got - EXACT[activation](exact)).norm() / exact.norm()) < 2e-3


@runs
def test_numbers_that_float16_holds_come_out_exactly() -> None:
    """Small whole numbers, whose sums stay below 2048: nothing is rounded but by the activation's own formula."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randint(-2, 3, (140, 200), generator=generator).float()
    x = torch.randint(-2, 3, (11, 200), generator=generator).float()
    assert torch.equal(HalfLinear(weight)(x), x @ weight.T)
    assert torch.equal(HalfLinear(weight)(x, "relu"), (x @ weight.T).relu())
    near = torch.linspace(-9, 9, 1001)[:, None].half().float()
    one = HalfLinear(torch.ones(1, 1))(near, "gelu")
    assert torch.allclose(one.double(), F.gelu(near.double()), rtol=1e-4, atol=5e-7)


@runs
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e4, 1e30])
def test_size_doesnt_matter(scale: float) -> None:
    """Rows of any size, beside each other, and weights of any size."""
    weight, _ = layer(64, 512)
    x = torch.randn(4, 512, generator=torch.Generator().manual_seed(3)) * torch.tensor([[1.0], [scale], [0.0], [1.0]])
    got, exact = HalfLinear(weight)(x), x.double() @ weight.double().T
    for row in (0, 1, 3):
        assert error(got[row], exact[row]) < 2e-3
    assert torch.equal(got[2], torch.zeros(64))
    scaled = HalfLinear(weight * scale)(x[:1])
    assert error(scaled, exact[:1] * scale) < 2e-3


@runs
def test_the_largest_sums_dont_overflow() -> None:
    ones = torch.full((3, 512), 1.999)
    assert error(HalfLinear(torch.full((128, 512), 1.999))(ones), torch.full((3, 128), 512 * 1.999**2)) < 2e-3


@runs
def test_bad_rows_stay_alone_and_rows_dont_depend_on_each_other() -> None:
    weight, bias = layer(128, 256)
    half = HalfLinear(weight, bias)
    x = torch.randn(140, 256, generator=torch.Generator().manual_seed(4))
    clean = half(x)
    assert torch.equal(half(x[133:]), clean[133:]) and torch.equal(half(x.view(2, 70, 256)), clean.view(2, 70, 128))
    x[3, 5], x[9, 0] = torch.nan, torch.inf
    spoilt = half(x)
    assert not spoilt[3].isfinite().any() and not spoilt[9].isfinite().any()
    others = [row for row in range(140) if row not in (3, 9)]
    assert torch.equal(spoilt[others], clean[others])


@runs
def test_threads_and_strides_change_nothing() -> None:
    weight, bias = layer(300, 96)
    half = HalfLinear(weight.T.contiguous().T, bias)
    x = torch.randn(300, 96, generator=torch.Generator().manual_seed(5))
    expected, before = half(x), torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(half(x), expected)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(half(torch.stack((x, x), dim=-1)[..., 0]), expected)
    assert half(torch.empty(0, 96)).shape == (0, 300)
    assert not half(x.requires_grad_()).requires_grad
    assert half.nbytes == 384 * (2 * 96 + 4 + 4)


@runs
def test_what_is_refused() -> None:
    weight, bias = layer(4, 8)
    with pytest.raises(ValueError, match=r"HalfLinear\(\): bias must have shape \(N,\) with N = 4, got \(5,\)"):
        HalfLinear(weight, torch.zeros(5))
    with pytest.raises(TypeError, match="weight must have dtype float32 or float64, got float16"):
        HalfLinear(weight.half())
    half = HalfLinear(weight, bias)
    with pytest.raises(ValueError, match=r"x must have shape \(\*batch, 8\), got \(2, 7\)"):
        half(torch.zeros(2, 7))
    with pytest.raises(TypeError, match="x must have dtype float32, got float64"):
        half(torch.zeros(2, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match="activation must be one of none, gelu, relu, got 'tanh'"):
        half(torch.zeros(2, 8), "tanh")  # type: ignore[arg-type]


def test_where_it_doesnt_run_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_linear, "native_problem", lambda operators: "the native extension is not built")
    assert half_linear_problem() == "the native extension is not built"
    with pytest.raises(BackendError, match=r"HalfLinear\(\): the native extension is not built"):
        HalfLinear(torch.zeros(2, 2))


def test_narrower_instruction_sets_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """MGRPO_ISA lowers what the processor is taken to have, here as everywhere."""
    monkeypatch.setenv("MGRPO_ISA", "v3")
    assert half_linear_problem() is not None
