"""Every op x backend x dtype from its spec: nothing here names an op.

Where no GPU is present, ``triton`` kernels run in Triton's interpreter and ``cuda`` kernels through the emulation
header, both on CPU tensors; a backend that this machine cannot run is skipped with dispatch's own reason.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from mgrpo import kernels
from mgrpo.kernels._spec import Case, OpSpec, all_specs
from tests.kernels import unusual_tensors as unusual

F64 = torch.float64
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SPECS = all_specs()
BY_SPEC = [pytest.param(spec, id=spec.name) for spec in SPECS]
BY_CASE = [pytest.param(spec, case, id=f"{spec.name}-{case.name}") for spec in SPECS for case in spec.cases]
BY_DTYPE = [
    pytest.param(spec, case, dtype, id=f"{spec.name}-{case.name}-{str(dtype).removeprefix('torch.')}")
    for spec in SPECS
    for case in spec.cases
    for dtype in spec.tolerances
]
WITH_ROWS = [pytest.param(spec, id=spec.name) for spec in SPECS if spec.row_axes is not None]
LOWEST = {spec.name: max(spec.tolerances, key=lambda dtype: torch.finfo(dtype).eps) for spec in SPECS}


@pytest.fixture(params=kernels.BACKENDS)
def backend(request: pytest.FixtureRequest, spec: OpSpec) -> str:
    """Each backend that the op has and this machine can run."""
    if request.param not in kernels.available_backends(spec.name):
        pytest.skip(kernels.explain_backend(spec.name))
    return request.param


@pytest.fixture
def fused(backend: str) -> str:
    if backend == "reference":
        pytest.skip("the reference is plain torch")
    return backend


def serves(spec: OpSpec, backend: str, inputs: Sequence[Tensor]) -> None:
    """Skip where the backend says that it does not take these tensors (a dtype it was not written for)."""
    floating = next(x for x in inputs if x.is_floating_point()) if any(x.is_floating_point() for x in inputs) else None
    try:
        kernels._dispatch.resolve(spec.name, backend, *([floating] if floating is not None else inputs))
    except kernels.BackendError as error:
        pytest.skip(str(error))


def probes_for(results: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(77)
    return [
        torch.randn(result.shape, generator=generator, dtype=F64).to(result.device, result.dtype)
        if result.is_floating_point()
        else torch.zeros(result.shape)
        for result in results
    ]


def leaves_of(spec: OpSpec, inputs: Sequence[Tensor]) -> list[Tensor]:
    return [x.detach().clone().requires_grad_(spec.differentiable and x.is_floating_point()) for x in inputs]


def back_propagate(results: Sequence[Tensor], probes: Sequence[Tensor]) -> None:
    """Gradients of the sum of products; a result that is constant (a fixed scale, a flag) has none."""
    pairs = [(result, probe) for result, probe in zip(results, probes, strict=True) if result.requires_grad]
    if pairs:
        torch.autograd.backward(*zip(*pairs))


def run(spec: OpSpec, case: Case, inputs: Sequence[Tensor], backend: str) -> tuple[list[Tensor], list[Tensor | None]]:
    """Results, and gradients of a fixed random functional of them."""
    leaves = leaves_of(spec, inputs)
    results = spec.call(case, *leaves, backend=backend)
    back_propagate(results, probes_for(results))
    return [result.detach() for result in results], [leaf.grad for leaf in leaves]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal up to ``tolerance`` times the largest finite magnitude (at least 1) of the expected tensor."""
    assert actual.shape == expected.shape
    if not actual.is_floating_point():
        assert torch.equal(actual.cpu(), expected.cpu())
        return
    finite = expected[torch.isfinite(expected)]
    scale = max(1.0, finite.abs().max().item()) if finite.numel() else 1.0
    torch.testing.assert_close(
        actual.double().cpu(), expected.double().cpu(), rtol=0, atol=tolerance * scale, equal_nan=True
    )


@pytest.mark.parametrize(("spec", "case", "dtype"), BY_DTYPE)
def test_forward_and_gradient_match_float64(spec: OpSpec, case: Case, dtype: torch.dtype, backend: str) -> None:
    exact = spec.make_inputs(case, F64, DEVICE, 5)
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in exact)
    serves(spec, backend, inputs)
    # The oracle sees the rounded inputs, so that only the computation is judged.
    rounded = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    wanted, wanted_grads = run(spec, case, rounded, "reference")
    results, grads = run(spec, case, inputs, backend)
    tolerance = spec.tolerances[dtype]
    for result, expected in zip(results, wanted, strict=True):
        assert result.is_contiguous()
        assert_close(result, expected, tolerance.forward)
    for grad, expected, given in zip(grads, wanted_grads, inputs, strict=True):
        assert (grad is None) == (expected is None)
        if grad is None:
            continue
        assert grad.dtype == given.dtype
        assert_close(grad, expected, tolerance.gradient)
        if expected.numel() and expected.norm() > 1e-6:  # as vectors: a small systematic error hides in a maximum
            error = (grad.double() - expected).norm() / expected.norm()
            assert error < tolerance.gradient


@pytest.mark.parametrize("spec", BY_SPEC)
def test_gradcheck(spec: OpSpec, backend: str) -> None:
    if not spec.differentiable or F64 not in spec.tolerances:
        pytest.skip(f"{spec.name} has no gradient in float64")
    if backend in ("triton", "cuda") and DEVICE.type == "cpu":
        pytest.skip("too slow without a GPU; its gradients are compared with the reference's above")
    for case in small_cases(spec):
        leaves = leaves_of(spec, spec.make_inputs(case, F64, DEVICE, 8))

        def function(*x: Tensor, case: Case = case) -> tuple[Tensor, ...]:
            return tuple(r for r in spec.call(case, *x, backend=backend) if r.requires_grad)

        assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize(("spec", "case"), BY_CASE)
def test_inputs_unchanged_and_runs_repeat_bitwise(spec: OpSpec, case: Case, backend: str) -> None:
    inputs = spec.make_inputs(case, LOWEST[spec.name], DEVICE, 3)
    serves(spec, backend, inputs)
    before = [x.clone() for x in inputs]
    first, second = run(spec, case, inputs, backend), run(spec, case, inputs, backend)
    for x, copy in zip(inputs, before, strict=True):
        assert torch.equal(x, copy)
    for a, b in zip(itertools.chain(*first), itertools.chain(*second), strict=True):
        assert (a is None and b is None) or torch.equal(a.nan_to_num(), b.nan_to_num())


def batches_of(spec: OpSpec, backend: str) -> list[tuple[Case, tuple[int, ...], tuple[Tensor, ...]]]:
    """Every case of two rows or more with its inputs expanded to the whole batch; of the interpreter and the emulation,
    which are slow, the first and the last that is small."""
    found = []
    for case in spec.cases:
        inputs = spec.make_inputs(case, LOWEST[spec.name], DEVICE, 21)
        axes = spec.row_axes_of(case)[: len(inputs)]
        rows = [x.shape[: x.dim() - n] for x, n in zip(inputs, axes, strict=True) if n is not None]
        batch = torch.broadcast_shapes(*rows)
        if math.prod(batch) < 2 or any(x.numel() == 0 for x in inputs):
            continue
        whole = (
            x if n is None else x.expand(*batch, *x.shape[x.dim() - n :]) for x, n in zip(inputs, axes, strict=True)
        )
        found.append((case, tuple(batch), tuple(whole)))
    if backend in ("reference", "cpp") or DEVICE.type == "cuda":
        return found
    small = [entry for entry in found[1:] if sum(x.numel() for x in entry[2]) <= 3000]
    return found[:1] + small[-1:]


@pytest.mark.parametrize("spec", WITH_ROWS)
def test_a_row_alone_equals_the_row_in_a_batch(spec: OpSpec, fused: str) -> None:
    for case, batch, inputs in batches_of(spec, fused):
        of_rows = [axes is not None for axes in spec.row_axes_of(case)[: len(inputs)]]
        inputs = [x.flatten(0, len(batch) - 1) if own else x for x, own in zip(inputs, of_rows, strict=True)]
        serves(spec, fused, inputs)
        results, grads = run(spec, case, inputs, fused)
        probes = probes_for(results)
        rows = math.prod(batch)
        quick = fused != "triton" or DEVICE.type == "cuda"
        # All where that is quick: a fault may sit in one lane or block.
        for row in range(rows) if quick else sorted({0, 1, rows // 2, rows - 1}):
            leaves = leaves_of(spec, [x[row : row + 1] if own else x for x, own in zip(inputs, of_rows, strict=True)])
            alone = spec.call(case, *leaves, backend=fused)
            back_propagate(alone, [probe[row : row + 1] for probe in probes])
            for a, b in zip(alone, results, strict=True):
                torch.testing.assert_close(a[0].detach(), b[row], rtol=0, atol=0, equal_nan=True)
            for leaf, grad, own in zip(leaves, grads, of_rows, strict=True):
                assert (leaf.grad is None) == (grad is None)
                assert grad is None or not own or torch.equal(leaf.grad[0], grad[row])


@pytest.mark.parametrize("spec", WITH_ROWS)
def test_a_bad_row_touches_no_other(spec: OpSpec, backend: str) -> None:
    for case, batch, inputs in batches_of(spec, backend):
        serves(spec, backend, inputs)
        clean, clean_grads = run(spec, case, inputs, backend)
        rows = math.prod(batch)
        both = {1: math.nan, 2: math.inf} if rows > 3 else {rows - 1: math.nan}
        slow = backend == "reference" or (backend == "triton" and DEVICE.type == "cpu")
        # Also an infinity by itself: a NaN beside it hides what only infinities do.
        choices = [both] if slow else [both, {rows - 1: math.inf}]
        positions = [
            position
            for position, axes in enumerate(spec.row_axes_of(case)[: len(inputs)])
            if axes is not None and inputs[position].is_floating_point()
        ]
        for position, bad in itertools.product(positions, choices):
            others = torch.tensor([row not in bad for row in range(rows)], device=DEVICE)
            spoilt = [x.clone() for x in inputs]
            flat = spoilt[position].view(rows, -1)
            for row, value in bad.items():
                flat[row, 0] = value
            results, grads = run(spec, case, spoilt, backend)
            compared = 0
            for now, before in zip(results + grads, clean + clean_grads, strict=True):
                if before is None:
                    assert now is None
                elif before.shape[: len(batch)] == batch:  # what belongs to no row has a gradient that sums over them
                    now, before = (x.flatten(0, len(batch) - 1)[others] for x in (now, before))
                    torch.testing.assert_close(now, before, rtol=0, atol=0, equal_nan=True)
                    compared += 1
            assert compared


def small_cases(spec: OpSpec, most: int = 700) -> list[Case]:
    """The cases of at most ``most`` numbers, and at least one."""
    sizes = [(case, sum(x.numel() for x in spec.make_inputs(case, F64, DEVICE, 8))) for case in spec.cases]
    return [case for case, size in sizes if 0 < size <= most] or [spec.smallest_case()]


def quick_cases(spec: OpSpec, backend: str) -> list[Case]:
    """Small cases, of the interpreter, which is slow, the smallest one."""
    return [spec.smallest_case()] if backend == "triton" and DEVICE.type == "cpu" else small_cases(spec, 7000)


@pytest.mark.parametrize("change", unusual.CHANGES)
@pytest.mark.parametrize("spec", BY_SPEC)
def test_unusual_tensors(spec: OpSpec, backend: str, change: str) -> None:
    """Strides, views of other numbers and tensors with tags are read as the values that they stand for."""

    def usual(x: Tensor) -> Tensor:
        return unusual.plain(unusual.CHANGES[change](x))

    def outcome(change: Callable[[Tensor], Tensor], case: Case) -> list[Tensor | None] | str:
        leaves = spec.make_inputs(case, torch.float32, DEVICE, 21)
        with torch.no_grad():
            try:
                results = list(unusual.call_changed(spec, change, case, leaves, backend))
            except ValueError as error:
                return str(error)
        if differentiable:
            leaves = leaves_of(spec, leaves)
            again = unusual.call_changed(spec, change, case, leaves, backend)
            back_propagate(again, [change(probe) for probe in probes_for(again)])
            results += [*(x.detach() for x in again), *(leaf.grad for leaf in leaves)]
        return results

    differentiable = change in unusual.DIFFERENTIABLE and spec.differentiable
    for case in quick_cases(spec, backend):
        serves(spec, backend, spec.make_inputs(case, torch.float32, DEVICE, 21))
        got, expected = outcome(unusual.CHANGES[change], case), outcome(usual, case)
        if isinstance(got, str) or isinstance(expected, str):
            assert got == expected and change == "zeros without storage", (got, expected)
            continue
        for a, b in zip(got, expected, strict=True):
            if a is None or b is None:
                assert a is b
            elif backend == "reference":
                assert_close(a.as_subclass(Tensor), b, 1e-5)
            else:
                torch.testing.assert_close(a.as_subclass(Tensor), b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("spec", BY_SPEC)
def test_tensors_on_two_devices_are_refused(spec: OpSpec, backend: str) -> None:
    """Also where one tensor alone is elsewhere that the spec makes itself: a mask, a recording, a weight."""
    for case in quick_cases(spec, backend):
        inputs = spec.make_inputs(case, torch.float32, DEVICE, 21)
        serves(spec, backend, inputs)
        counter = unusual.OneElsewhere()
        unusual.call_changed(spec, counter, case, inputs, backend)
        for place in range(counter.count) if counter.count > 1 else ():
            with pytest.raises(ValueError, match=r"\(\): [\w.]+ must be on (meta|cpu|cuda:0) like "):
                unusual.call_changed(spec, unusual.OneElsewhere(place), case, inputs, backend)


@pytest.mark.parametrize("spec", BY_SPEC)
def test_only_the_gradients_asked_for(spec: OpSpec, backend: str) -> None:
    if not spec.differentiable:
        pytest.skip(f"{spec.name} has no gradient")
    case = spec.cases[0]
    inputs = spec.make_inputs(case, LOWEST[spec.name], DEVICE, 21)
    serves(spec, backend, inputs)
    _, wanted = run(spec, case, inputs, backend)
    for position, grad in enumerate(wanted):
        if grad is None:
            continue
        leaves = [x.detach().clone().requires_grad_(i == position) for i, x in enumerate(inputs)]
        results = spec.call(case, *leaves, backend=backend)
        back_propagate(results, probes_for(results))
        torch.testing.assert_close(leaves[position].grad, grad, rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            assert not any(result.requires_grad for result in spec.call(case, *leaves, backend=backend))


@pytest.mark.parametrize("outer", [torch.sin, torch.clone], ids=["of_a_function", "of_the_result"])
@pytest.mark.parametrize("spec", BY_SPEC)
def test_second_derivatives_are_right_or_refused(spec: OpSpec, backend: str, outer: Callable[[Tensor], Tensor]) -> None:
    """Of a function of the results, whose incoming gradients depend on the inputs, and of the results' sum, whose
    incoming gradients are constants: what is kept for the backward pass must then carry the dependence."""
    if not spec.differentiable or F64 not in spec.tolerances:
        pytest.skip(f"{spec.name} has no gradient in float64")
    case = spec.smallest_case()
    inputs = spec.make_inputs(case, F64, DEVICE, 8)

    def of_the_gradients(backend: str) -> list[Tensor | None]:
        leaves = leaves_of(spec, inputs)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        results = [result for result in spec.call(case, *leaves, backend=backend) if result.requires_grad]
        total = sum(outer(result).sum() for result in results)
        grads = torch.autograd.grad(total, wanted, create_graph=True, allow_unused=True)
        total = sum(grad.square().sum() for grad in grads if grad is not None)
        if not total.requires_grad:
            return [None] * len(wanted)
        return list(torch.autograd.grad(total, wanted, allow_unused=True))

    expected = of_the_gradients("reference")
    assert outer is torch.clone or any(x is not None for x in expected)
    try:
        second = of_the_gradients(backend)
    except kernels.BackendError as error:
        assert backend != "reference"
        assert str(error).startswith(f"{spec.name}(): the {backend!r} backend has no second derivative")
        assert "backend='reference'" in str(error)
        return
    for got, wanted in zip(second, expected, strict=True):
        got, wanted = (torch.zeros(()) if x is None or not x.any() else x for x in (got, wanted))  # none is zeros
        assert_close(got, wanted, 10 * spec.tolerances[F64].gradient)


@pytest.mark.parametrize("spec", BY_SPEC)
def test_derivatives_by_torch_func_are_right_or_refused(spec: OpSpec, backend: str) -> None:
    """Of an operator without a forward-mode derivative torch makes zeros, and says nothing."""
    if not spec.differentiable or F64 not in spec.tolerances:
        pytest.skip(f"{spec.name} has no gradient in float64")
    case = spec.smallest_case()
    inputs = spec.make_inputs(case, F64, DEVICE, 8)
    serves(spec, backend, inputs)
    floats = tuple(i for i, x in enumerate(inputs) if x.is_floating_point())
    leaves = leaves_of(spec, inputs)
    exact = spec.call(case, *leaves, backend="reference")
    smooth = [result.requires_grad for result in exact]
    probes = probes_for(exact)
    back_propagate(exact, probes)
    directions = [torch.randn_like(inputs[i]) for i in floats]
    slope = sum(
        (leaves[i].grad * d).sum() for i, d in zip(floats, directions, strict=True) if leaves[i].grad is not None
    )

    def function(*changed: Tensor) -> Tensor:
        arguments = list(inputs)
        for i, value in zip(floats, changed, strict=True):
            arguments[i] = value
        results = spec.call(case, *arguments, backend=backend)
        return sum((r * p).sum() for r, p, wanted in zip(results, probes, smooth, strict=True) if wanted)

    given = tuple(inputs[i] for i in floats)
    size = 10 * spec.tolerances[F64].gradient * (1.0 + sum(d.abs().sum() for d in directions).item())
    if backend == "reference":
        _, tangent = torch.func.jvp(function, given, tuple(directions))
        torch.testing.assert_close(tangent, slope, rtol=1e-8, atol=size)
        grads = torch.func.grad(function, tuple(range(len(given))))(*given)
        total = sum((grad * d).sum() for grad, d in zip(grads, directions, strict=True))
        torch.testing.assert_close(total, slope, rtol=1e-8, atol=size)
        return
    with pytest.raises(kernels.BackendError, match=rf"the '{backend}' backend has no forward-mode derivative"):
        torch.func.jvp(function, given, tuple(directions))
    with pytest.raises(kernels.BackendError, match=rf"the '{backend}' backend has no derivative for torch\.func"):
        torch.func.grad(function, tuple(range(len(given))))(*given)


@pytest.mark.parametrize("spec", BY_SPEC)
def test_compiles_to_one_graph(spec: OpSpec, backend: str) -> None:
    torch._dynamo.reset()
    case = spec.smallest_case()
    inputs = spec.make_inputs(case, LOWEST[spec.name], DEVICE, 5)
    serves(spec, backend, inputs)

    def function(*x: Tensor) -> tuple[Tensor, ...]:
        return tuple(2 * r if r.is_floating_point() else r for r in spec.call(case, *x, backend=backend))

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    leaves = [leaves_of(spec, inputs) for _ in range(2)]
    results, expected = compiled(*leaves[0]), function(*leaves[1])
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, equal_nan=True)
    for found in (results, expected):
        back_propagate(found, probes_for(found))
    for a, b in zip(*leaves, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", BY_SPEC)
def test_autocast_changes_nothing(spec: OpSpec, backend: str) -> None:
    """Products of matrices in bfloat16 would move joints by centimetres."""
    for case in quick_cases(spec, backend):
        inputs = spec.make_inputs(case, torch.float32, DEVICE, 21)
        serves(spec, backend, inputs)
        wanted, wanted_grads = run(spec, case, inputs, backend)
        leaves = leaves_of(spec, inputs)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            results = spec.call(case, *leaves, backend=backend)
        back_propagate(results, probes_for(results))
        pairs = [*zip(results, wanted, strict=True), *zip((x.grad for x in leaves), wanted_grads, strict=True)]
        for got, expected in pairs:
            assert (got is None) == (expected is None)
            if got is not None:
                torch.testing.assert_close(got.detach(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("spec", BY_SPEC)
def test_empty_batch(spec: OpSpec, backend: str) -> None:
    empty = [case for case in spec.cases if any(x.numel() == 0 for x in spec.make_inputs(case, F64, DEVICE, 5))]
    assert empty, f"the spec of {spec.name} needs a case with an empty batch"
    for case in empty:
        inputs = spec.make_inputs(case, LOWEST[spec.name], DEVICE, 5)
        serves(spec, backend, inputs)
        results, grads = run(spec, case, inputs, backend)
        expected, _ = run(spec, case, inputs, "reference")
        assert [r.shape for r in results] == [r.shape for r in expected]
        for grad, given in zip(grads, inputs, strict=True):
            assert grad is None or grad.shape == given.shape


@pytest.mark.parametrize("spec", BY_SPEC)
def test_every_op_has_a_native_and_a_gpu_backend(spec: OpSpec) -> None:
    written = set(kernels._dispatch._ops[spec.name].implementations)
    assert "cpp" in written and written & {"triton", "cuda"}


@pytest.mark.parametrize(
    "op",
    ["project_so3", "forward_kinematics", "joint_offsets", "procrustes_align", "procrustes_residual",
     "group_rewards", "motion_rewards"],
)  # fmt: skip
def test_geometry_and_rewards_have_both_gpu_backends(op: str) -> None:
    assert set(kernels._dispatch._ops[op].implementations) >= {"cpp", "triton", "cuda"}


def test_every_registered_op_has_a_spec() -> None:
    assert {spec.name for spec in SPECS} == set(kernels.registered_ops())
