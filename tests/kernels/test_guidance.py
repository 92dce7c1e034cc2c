"""What is special to ``motion_guidance``: derivatives against autograd, the solver, the search, robustness."""

from __future__ import annotations

import dataclasses
import math
import sys

import pytest
import torch
from torch import Tensor

from mgrpo import kernels
from mgrpo.kernels._library import call_op
from mgrpo.kernels._rotations import quat_multiply
from mgrpo.kernels.guidance import GuidanceWeights, HandTargets, KeypointTargets, WristTargets, lie, motion_guidance
from mgrpo.kernels.guidance.problem import DAMPING_RULES, tree_of
from mgrpo.kernels.guidance.reference import System, linearise, solve
from mgrpo.kernels.guidance.spec import PARENTS, SPECS, call
from mgrpo.kernels.guidance.terms import Problem, chain_terms, place, point_terms

F64 = torch.float64
CPU = torch.device("cpu")
CASES = {case.name: case for case in SPECS[0].cases}
BACKENDS = kernels.available_backends("motion_guidance")


def problem_of(name: str, seed: int = 3, **sizes: object) -> Problem:
    """The problem of a spec's case in float64, with a start that is not where the search is."""
    case = dataclasses.replace(CASES[name], sizes={**CASES[name].sizes, **sizes})
    rotmats, offsets, head, contacts, lengths, *rest = SPECS[0].make_inputs(case, F64, CPU, seed)
    left = iter(rest)
    targets = case.sizes.get("targets", ())
    wrists = WristTargets(next(left), next(left), case.sizes.get("form", "split")) if "wrists" in targets else None
    hands = HandTargets(next(left), next(left)) if "hands" in targets else None
    keypoints = KeypointTargets(next(left), next(left), next(left)) if "keypoints" in targets else None
    return Problem(
        tree=tree_of(PARENTS[rotmats.shape[2]], wrists is not None, keypoints is not None),
        weights=GuidanceWeights(),
        start=kernels._rotations.unit_quaternion(rotmats),
        t_parent_joint=offsets,
        T_world_head=head,
        contacts=contacts,
        valid=torch.arange(rotmats.shape[1]) < lengths[:, None],
        stays=(torch.arange(rotmats.shape[1]) < case.sizes.get("held", 0)).expand(rotmats.shape[:2]),
        wrists=wrists,
        hands=hands,
        keypoints=keypoints,
    )


def elsewhere(problem: Problem, size: float = 0.4) -> Tensor:
    """Rotations away from the start."""
    generator = torch.Generator().manual_seed(8)
    step = torch.randn(*problem.start.shape[:3], 3, generator=generator, dtype=F64)
    return lie.retract(problem.start, size * step)


def all_residuals(problem: Problem, quats: Tensor) -> Tensor:
    """(B, R)."""
    terms = {**chain_terms(problem, quats), **point_terms(problem, quats, place(problem, problem.start))}
    return torch.cat([term.residual.flatten(1) for term in terms.values()], dim=1)


@pytest.mark.parametrize(("name", "frames"), [("body", 4), ("wrists", 3), ("wrists_se3_hands", 3), ("everything", 3)])
def test_normal_equations_are_those_of_autograd(name: str, frames: int) -> None:
    problem = problem_of(name, frames=frames, rows=2 if name == "body" else 1)
    quats = elsewhere(problem)
    B, T, N = quats.shape[:3]
    coupled = list(problem.tree.coupled)
    joint, own = linearise(problem, quats, place(problem, problem.start))
    for row in range(B):

        def residuals(delta: Tensor, row: int = row) -> Tensor:
            return all_residuals(problem, lie.retract(quats, delta))[row]

        zero = torch.zeros(B, T, N, 3, dtype=F64)
        J = torch.autograd.functional.jacobian(residuals, zero, vectorize=True, strategy="forward-mode")[:, row]
        r = residuals(zero)
        H = torch.einsum("rtni,rsmj->tnismj", J, J)
        g = torch.einsum("rtni,r->tni", J, r)
        n = 3 * len(coupled)
        for t in range(T):
            for s in range(t + 1):
                whole = H[t, :, :, s]
                if t - s < 3:
                    block = joint[t - s][row, s]
                    torch.testing.assert_close(block, whole[coupled][:, :, coupled].reshape(n, n), rtol=1e-9, atol=1e-9)
                else:
                    assert not whole.any()
                for k in set(range(N)) - set(coupled):
                    if t - s < 3:
                        torch.testing.assert_close(own[t - s][row, k, s], whole[k, :, k], rtol=1e-9, atol=1e-9)
                    others = [m for m in range(N) if m != k]
                    assert not whole[k][:, others].any(), "a free joint depends on itself alone"
        torch.testing.assert_close(joint.gradient[row], g[:, coupled].flatten(1), rtol=1e-9, atol=1e-9)


def test_held_frames_leave_the_equations_of_the_others() -> None:
    """What is left is the part of the whole problem's equations that belongs to the frames that may move."""
    problem = problem_of("body", frames=6, rows=2, padded=False)
    quats, at = elsewhere(problem), place(problem, problem.start)
    free = linearise(problem, quats, at)
    held = linearise(dataclasses.replace(problem, stays=(torch.arange(6) < 2).expand(2, 6)), quats, at)
    for whole, part in zip(free, held):
        frames = whole.gradient.ndim - 2
        for k, (a, b) in enumerate(zip(whole, part)):
            first, rest = b.narrow(frames, 0, 2), b.narrow(frames, 2, b.shape[frames] - 2)
            assert torch.equal(rest, a.narrow(frames, 2, a.shape[frames] - 2)) and rest.abs().sum() > 0
            assert torch.equal(first, torch.eye(b.shape[-1], dtype=F64).expand_as(first) if k == 0 else 0 * first)


@pytest.mark.parametrize("backend", BACKENDS)
def test_held_frames_stay_and_the_others_go_on_from_them(backend: str) -> None:
    case = dataclasses.replace(CASES["body"], sizes={**CASES["body"].sizes, "held": 3}, options={"iterations": 15})
    inputs = SPECS[0].make_inputs(case, torch.float32, CPU, 2)
    rotmats, costs, _ = call(case, *inputs, backend=backend)
    loose, lowest, _ = call(dataclasses.replace(case, sizes=CASES["body"].sizes), *inputs, backend=backend)
    assert torch.equal(rotmats[:, :3], inputs[0][:, :3]) and not torch.equal(loose[:, :3], inputs[0][:, :3])
    assert (costs[:, -1] < costs[:, 0]).all() and (costs[:, -1] > lowest[:, -1]).all()
    # a problem that is held anew where it ended goes on nowhere: the rest is at its best already
    again = [rotmats, *inputs[1:]]
    everything = dataclasses.replace(case, sizes={**case.sizes, "held": 9})
    found, costs, done = call(everything, *again, backend=backend)
    assert torch.equal(found, rotmats) and (done <= 1).all()
    torch.testing.assert_close(costs, costs[:, :1].expand_as(costs), rtol=1e-5, atol=0)


def test_the_coupled_joints() -> None:
    body = (0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 14)
    assert tree_of(PARENTS[21], False, False).coupled == body
    arms = (12, 13, 15, 16, 17, 18, 19, 20)
    assert tree_of(PARENTS[21], True, False).coupled == tuple(sorted(body + arms))
    fingers = tuple(21 + 3 * finger + bone for finger in range(10) for bone in (0, 1))
    assert tree_of(PARENTS[51], True, True).coupled == tuple(sorted(body + arms)) + fingers


@pytest.mark.parametrize("T", [1, 2, 3, 7])
def test_the_banded_solution_is_the_dense_one(T: int) -> None:
    generator = torch.Generator().manual_seed(1)
    n, B = 4, 3
    J = torch.randn(B, 30 * T, T, n, generator=generator, dtype=F64)
    frame = torch.arange(30 * T) // 30  # rows of frame t see frames t, t + 1, t + 2
    seen = (torch.arange(T) >= frame[:, None]) & (torch.arange(T) <= frame[:, None] + 2)
    J = (J * seen[None, :, :, None]).flatten(2)
    H, g = J.mT @ J, torch.randn(B, T, n, generator=generator, dtype=F64)
    blocks = H.unflatten(1, (T, n)).unflatten(3, (T, n)).transpose(2, 3)
    bands = [torch.stack([blocks[:, t + k, t] for t in range(T - k)], 1) if k < T else H[:, :0] for k in range(3)]
    damping = torch.tensor([0.0, 0.5, 100.0], dtype=F64)
    delta, fine = solve(System(*bands, g), damping)
    dense = torch.linalg.solve(H + damping[:, None, None] * torch.eye(T * n, dtype=F64), -g.flatten(1))
    torch.testing.assert_close(delta.flatten(1), dense, rtol=1e-8, atol=1e-8)
    assert fine.all()
    bands[0] = bands[0].clone()
    bands[0][1, T - 1] -= 1e6 * torch.eye(n, dtype=F64)
    assert solve(System(*bands, g), damping)[1].tolist() == [True, False, True]


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 3e-2, 0.49, 0.51, 1.5, 3.1])
def test_derivatives_of_logarithms(angle: float) -> None:
    generator = torch.Generator().manual_seed(4)
    axis = torch.nn.functional.normalize(torch.randn(3, generator=generator, dtype=F64), dim=0)
    quat = lie.exponential(angle * axis)
    right = torch.autograd.functional.jacobian(
        lambda d: lie.log_between(quat.new_tensor([1.0, 0, 0, 0]), lie.retract(quat, d)), torch.zeros(3, dtype=F64)
    )
    torch.testing.assert_close(lie.right_jacobian_inverse(angle * axis), right, rtol=1e-8, atol=1e-8)

    translation = torch.randn(3, generator=generator, dtype=F64)

    def moved(xi: Tensor) -> Tensor:  # log(exp(xi) T), to first order in xi
        turn = lie.exponential(xi[3:])
        shifted = xi[:3] + (lie.rotmats(turn) @ translation)
        return lie.se3_log(quat_multiply(turn, quat), shifted)

    left = torch.autograd.functional.jacobian(moved, torch.zeros(6, dtype=F64))
    twist = lie.se3_log(quat, translation)
    torch.testing.assert_close(lie.se3_left_jacobian_inverse(twist), left, rtol=1e-7, atol=1e-7)


def served(backend: str, dtype: torch.dtype) -> torch.dtype:
    """``dtype``, or float32 for a backend that has nothing else."""
    return torch.float32 if backend == "cuda" else dtype


def run(case: str, backend: str, dtype: torch.dtype = torch.float32, seed: int = 5, **options: object) -> tuple:
    spec = dataclasses.replace(CASES[case], options={**CASES[case].options, **options})
    inputs = SPECS[0].make_inputs(spec, dtype, CPU, seed)
    return inputs, call(spec, *inputs, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("damping", list(DAMPING_RULES))
def test_the_cost_never_rises(backend: str, damping: str) -> None:
    _, (_, costs, done) = run("body", backend, iterations=12, damping=damping)
    assert (costs[:, 1:] <= costs[:, :-1]).all()
    assert (costs[:, -1] < 0.5 * costs[:, 0]).all()
    assert (done >= 1).all() and (done <= 12).all()


@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend in ("cpp", "reference")])
def test_the_search_ends_by_itself(backend: str) -> None:
    """Where a step gains too little; in float64, where rounding doesn't decide, as the reference does."""
    _, (_, costs, done) = run("body", backend, F64, iterations=30)
    _, (_, wanted, ends) = run("body", "reference", F64, iterations=30)
    assert torch.equal(done, ends) and (done < 30).any() and (done > 3).any()
    for row, end in enumerate(done.tolist()):
        assert (costs[row, end:] == costs[row, end]).all()
    torch.testing.assert_close(costs, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_reported_cost_is_that_of_the_result(backend: str) -> None:
    inputs, (rotmats, costs, _) = run("everything", backend, served(backend, F64), iterations=4)
    problem = problem_of("everything", seed=5)
    for given, cost in ((inputs[0], costs[:, 0]), (rotmats, costs[:, -1])):
        quats = kernels._rotations.unit_quaternion(given.double())
        exact = all_residuals(problem, quats).square().sum(1)
        torch.testing.assert_close(cost.double(), exact, rtol=1e-9 if cost.dtype == F64 else 1e-4, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_has_no_cost_stays(backend: str) -> None:
    case = CASES["everything"]
    sizes = {**case.sizes, "targets": (), "padded": True, "rows": 3}
    weights = GuidanceWeights(hand_prior=0.0, hand_smoothness=0.0)
    case = dataclasses.replace(case, sizes=sizes, options={"iterations": 3, "weights": weights})
    inputs = SPECS[0].make_inputs(case, torch.float32, CPU, 1)
    rotmats, _, _ = call(case, *inputs, backend=backend)
    assert torch.equal(rotmats[:, :, 21:], inputs[0][:, :, 21:])
    for row, length in enumerate(inputs[4].tolist()):
        assert torch.equal(rotmats[row, length:], inputs[0][row, length:])
        unchanged = torch.equal(rotmats[row, :length, :21], inputs[0][row, :length, :21])
        assert unchanged == (length == 1), "one frame alone has nothing to gain"


@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend in ("cpp", "reference")])
@pytest.mark.parametrize("name", ["body", "everything", "held_wrists", "empty"])
def test_opcheck(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def record(op: str, *arguments: object) -> object:
        calls.append(arguments)
        return call_op(op, *arguments)

    monkeypatch.setattr(sys.modules[motion_guidance.__module__], "call_op", record)
    run(name, backend)
    (arguments,) = calls
    torch.library.opcheck(torch.ops.mgrpo.motion_guidance.default, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_frames_no_iterations(backend: str) -> None:
    inputs, (rotmats, costs, done) = run("body", backend, iterations=0)
    assert torch.equal(rotmats, inputs[0]) and costs.shape == (4, 1) and not done.any()
    assert torch.isfinite(costs).all() and (costs > 0).all()
    empty = [x[:, :0] if axis in (0, 2, 3) else x for axis, x in enumerate(inputs)]
    empty[4] = torch.zeros_like(empty[4])
    with pytest.raises(ValueError, match=r"motion_guidance\(\): rotmats must have T >= 1, got \(4, 0, 21, 3, 3\)"):
        call(CASES["body"], *empty, backend=backend)
    inputs = list(inputs)
    inputs[4] = torch.zeros_like(inputs[4])
    result = call(CASES["body"], *inputs, backend=backend)
    assert torch.equal(result[0], inputs[0]) and not result[1].any() and not result[2].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spoil", ["half_turns", "far_away", "huge_contacts", "huge_bones", "nan_after_the_end"])
def test_absurd_starts(backend: str, spoil: str) -> None:
    inputs = list(SPECS[0].make_inputs(CASES["body"], torch.float32, CPU, 2))
    if spoil == "half_turns":
        turned = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
        inputs[0] = inputs[0].clone()
        inputs[0][:, ::2] = inputs[0][:, ::2] @ turned
    elif spoil == "far_away":
        inputs[2] = inputs[2].clone()
        inputs[2][..., 4:] += 1e5
    elif spoil == "huge_contacts":
        inputs[3] = 1e4 * inputs[3] - 3e3
    elif spoil == "huge_bones":
        inputs[1] = 1e6 * inputs[1]
    else:
        for position in (0, 2, 3):
            inputs[position] = inputs[position].clone()
            for row, length in enumerate(inputs[4].tolist()):
                inputs[position][row, length:] = math.nan
    case = dataclasses.replace(CASES["body"], options={"iterations": 15})
    rotmats, costs, _ = call(case, *inputs, backend=backend)
    assert (costs[:, 1:] <= costs[:, :-1]).all() and torch.isfinite(costs).all()
    real = torch.arange(9) < inputs[4][:, None]
    found = rotmats[real]
    torch.testing.assert_close(found @ found.mT, torch.eye(3).expand_as(found), rtol=0, atol=1e-4)
    if spoil != "huge_bones":
        assert (costs[:, -1] < costs[:, 0]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_target_that_was_not_seen_is_not_read(backend: str) -> None:
    case = CASES["everything"]
    inputs = list(SPECS[0].make_inputs(case, torch.float32, CPU, 2))
    for confidence in (6, 8, 10):
        inputs[confidence] = torch.zeros_like(inputs[confidence])
    expected = call(case, *inputs, backend=backend)
    for target in (5, 7, 9):
        inputs[target] = torch.full_like(inputs[target], math.nan)
    for a, b in zip(call(case, *inputs, backend=backend), expected, strict=True):
        assert torch.equal(a, b)


def test_batch_axes_broadcast() -> None:
    case = CASES["body"]
    inputs = SPECS[0].make_inputs(case, torch.float32, CPU, 2)
    expected = call(case, *inputs)
    rotmats, offsets, head, contacts, lengths = inputs
    shared = motion_guidance(
        rotmats.view(2, 2, *rotmats.shape[1:]),
        offsets[:1],
        head.view(2, 2, *head.shape[1:])[:, :1],
        contacts.view(2, 2, *contacts.shape[1:]),
        lengths=lengths.view(2, 2)[:, :1],
        parents=PARENTS[21],
        **case.options,
    )
    assert shared.costs.shape == (2, 2, 4) and shared.iterations.shape == (2, 2)
    alone = motion_guidance(
        rotmats[1], offsets[0], head[0], contacts[1], lengths=lengths[0], parents=PARENTS[21], **case.options
    )
    torch.testing.assert_close(shared.rotmats[0, 1], alone.rotmats, rtol=0, atol=1e-4)
    assert alone.costs.shape == (4,) and expected[0].shape == rotmats.shape
