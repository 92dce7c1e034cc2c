"""motion_metrics on every backend: reference values, masks, broken frames, degenerate bodies, and what it refuses.

The formulas' own properties are tested with the functions of mgrpo.eval.metrics, which share them.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mgrpo.kernels import MotionMetrics, available_backends, explain_backend, motion_metrics, use_backend
from mgrpo.kernels._spec import all_specs

F64 = torch.float64
SPEC = next(spec for spec in all_specs() if spec.name == "motion_metrics")


@pytest.fixture(params=["reference", "cpp", "cuda"], scope="module", autouse=True)
def backend(request):
    """Every test of this file runs on every backend that this machine has."""
    if request.param not in available_backends("motion_metrics"):
        pytest.skip(explain_backend("motion_metrics"))
    with use_backend(request.param):
        yield request.param


@pytest.fixture(scope="module")
def fused(backend):
    if backend == "reference":
        pytest.skip("only for backends with registered operators")
    return backend


def inputs(name: str = "all_frames", dtype: torch.dtype = F64) -> list[Tensor]:
    case = next(case for case in SPEC.cases if case.name == name)
    return list(SPEC.make_inputs(case, dtype, torch.device("cpu"), 11))


def score(tensors: list[Tensor], mask: Tensor | None = None, **options) -> MotionMetrics:
    heads = {}
    if len(tensors) == 6:
        heads = {"pred_R_world_head": tensors[4], "target_R_world_head": tensors[5]}
    return motion_metrics(*tensors[:4], mask, **heads, **options)


def assert_same(found: MotionMetrics, expected: MotionMetrics, rtol: float = 1e-11, atol: float = 1e-11) -> None:
    for name, a, b in zip(found._fields, found, expected, strict=True):
        torch.testing.assert_close(
            a, b, rtol=rtol, atol=atol, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_names_are_the_evaluation_s():
    from mgrpo.eval.metrics import METRICS

    measured = [name for name in METRICS if not name.startswith(("diversity", "score", "accuracy", "wrong"))]
    assert list(MotionMetrics._fields) == measured


def test_samples_share_their_target_without_a_copy(backend):
    pred, target = inputs("samples_of_windows")[::2], inputs("samples_of_windows")[1::2]
    together = score([t for pair in zip(pred, target, strict=True) for t in pair])
    assert together.mpjpe_mm.shape == (3, 4)
    repeated = [t.expand_as(p).contiguous() for p, t in zip(pred, target, strict=True)]
    assert_same(together, score([t for pair in zip(pred, repeated, strict=True) for t in pair]), 0, 0)
    # More batch axes than a row description holds, in an order that no strides merge.
    deep = [p[:, :, None, None].expand(3, 4, 2, 2, *p.shape[2:]).transpose(0, 3) for p in pred]
    wide = [t[:, :, None, None].expand(3, 4, 2, 2, *t.shape[2:]).transpose(0, 3) for t in target]
    found = score([t for pair in zip(deep, wide, strict=True) for t in pair])
    for a, b in zip(found, together, strict=True):
        assert torch.equal(a[1, :, 1].transpose(0, 1).nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("padding", [0.0, math.nan, math.inf, -1e3])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_frames_outside_the_mask_take_no_part(padding, dtype):
    tensors = inputs(dtype=dtype)
    expected = score(tensors)
    mask = torch.zeros(5, 19, dtype=torch.bool)
    mask[:, 2:18] = True
    padded = [torch.full((5, 19, *t.shape[2:]), padding, dtype=dtype) for t in tensors]
    for wide, t in zip(padded, tensors, strict=True):
        wide[:, 2:18] = t
    tolerance = 1e-12 if dtype == F64 else 3e-6
    assert_same(score(padded, mask), expected, tolerance, tolerance)
    # A mask of the time axis alone serves all sequences; an empty one leaves nothing to measure.
    assert_same(score(padded, mask[0]), expected, tolerance, tolerance)
    nothing = score(padded, torch.zeros(19, dtype=torch.bool))
    for name, value in nothing._asdict().items():
        expected_value = 0.0 if name in ("gp_sum_m", "fs_egoallo_m", "gnd") else math.nan
        assert all(float(v) == expected_value or (math.isnan(v) and math.isnan(expected_value)) for v in value), name


OF_HEIGHTS = ("gp_mean_mm", "gp_sum_m", "gnd")  # over z = 0
OF_THE_VERTICAL = (*OF_HEIGHTS, "fs_mm_per_contact_frame", "fs_egoallo_m")  # over the clip's lowest joint
OF_THE_AXES = ("fs_egoallo_m",)  # |dx| + |dy|, the sum of both ways along the floor
ALIGNED = ("pa_mpjpe_mm",)
LOCAL = ("mpjre_geodesic_deg", "mpjre_paper_deg", "head_angle_deg", "head_rotation_frobenius")


def moving_near_the_floor() -> list[Tensor]:
    """Inputs of which no measure is 0 or NaN: some joints lie below the floor, and feet touch it."""
    tensors = inputs()
    tensors[0][..., 2] -= 0.03
    found = score(tensors)
    assert all((value.abs() > 1e-6).all() for value in found), found
    return tensors


def turn_of(x: float, y: float, z: float) -> Tensor:
    return torch.matrix_exp(torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=F64))


def moved(tensors: list[Tensor], R: Tensor, shift: list[float], pairs: tuple[int, ...] = (0, 1)) -> list[Tensor]:
    """The world turned by ``R`` and then shifted: positions and heads; local rotations stay."""
    found = list(tensors)
    for which in pairs:
        found[which] = tensors[which] @ R.mT + torch.tensor(shift, dtype=F64)
        found[4 + which] = R @ tensors[4 + which]
    return found


def unlike(found: MotionMetrics, expected: MotionMetrics) -> set[str]:
    return {
        name
        for name, a, b in zip(found._fields, found, expected, strict=True)
        if not torch.allclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)
    }


def test_a_common_motion_of_the_world():
    """Bodies may shift and turn with their recordings; along the floor where heights matter, and without a turn where
    the axes do. What changes otherwise is held as well: else a measure might look at nothing."""
    tensors = moving_near_the_floor()
    before = score(tensors)
    upright, tilted = turn_of(0, 0, 0.8), turn_of(1.1, -0.7, 0.4)
    assert unlike(score(moved(tensors, torch.eye(3, dtype=F64), [3.0, -2.0, 0.0])), before) == set()
    assert unlike(score(moved(tensors, torch.eye(3, dtype=F64), [3.0, -2.0, 0.7])), before) == set(OF_HEIGHTS)
    assert unlike(score(moved(tensors, upright, [3.0, -2.0, 0.0])), before) == set(OF_THE_AXES)
    assert unlike(score(moved(tensors, turn_of(0, 0, math.pi / 2), [3.0, -2.0, 0.0])), before) == set()
    # fs_mm_per_contact_frame is NaN where no foot of the tilted body touches the floor: that is another value too.
    assert unlike(score(moved(tensors, tilted, [3.0, -2.0, 1.5])), before) == set(OF_THE_VERTICAL)


def test_a_motion_of_the_prediction_alone():
    """The aligned error lets each side move anyhow by itself; errors of positions and of the head do not."""
    tensors = moving_near_the_floor()
    before = score(tensors)
    turned = score(moved(tensors, turn_of(1.1, -0.7, 0.4), [3.0, -2.0, 1.5], pairs=(0,)))
    same = (*ALIGNED, "mpjre_geodesic_deg", "mpjre_paper_deg", "jitter_m_s3", "jitter_ratio", "pa_mpjpe_egoallo_mm")
    expected = set(before._fields) - set(same) | {"pa_mpjpe_egoallo_mm"}
    assert unlike(turned, before) == expected
    of_recordings = score(moved(tensors, turn_of(0.2, 0.9, -1.4), [-1.0, 4.0, 2.0], pairs=(1,)))
    for name in (*ALIGNED, *OF_THE_VERTICAL, "jitter_m_s3", "jitter_ratio"):
        torch.testing.assert_close(getattr(of_recordings, name), getattr(before, name), rtol=1e-9, atol=1e-9)
    bigger = score([1.7 * tensors[0], *tensors[1:]])
    torch.testing.assert_close(bigger.pa_mpjpe_mm, before.pa_mpjpe_mm, rtol=1e-9, atol=1e-9)


def test_local_rotations_in_other_axes():
    """The geodesic angle does not know the axes in which both sides are written; nor do the head's measures."""
    tensors = moving_near_the_floor()
    Q = turn_of(0.3, -1.2, 0.5)
    found = score([*tensors[:2], *(Q @ x @ Q.mT for x in tensors[2:])])
    assert unlike(found, score(tensors)) == {"mpjre_paper_deg"}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_order_of_sequences(backend, dtype):
    tensors = inputs(dtype=dtype)
    mask = torch.rand(5, 16, generator=torch.Generator().manual_seed(8)) < 0.8
    order = torch.tensor([3, 0, 4, 2, 1])
    whole, other = score(tensors, mask), score([t[order] for t in tensors], mask[order])
    tolerance = 0 if backend != "reference" else 1e-12 if dtype == F64 else 3e-6  # sums of another order
    assert_same(other, MotionMetrics(*(x[order] for x in whole)), tolerance, tolerance)
    for row in range(5):
        alone = score([t[row : row + 1] for t in tensors], mask[row : row + 1])
        assert_same(alone, MotionMetrics(*(x[row : row + 1] for x in whole)), tolerance, tolerance)


@pytest.mark.parametrize("padding", [0.0, math.nan, 1e3])
def test_padding_frames(backend, padding):
    """Sequences of several lengths in one batch, padded at their ends, are the sequences alone."""
    tensors, lengths = inputs(), (16, 9, 4, 3, 1)
    batch = [torch.full((5, 21, *t.shape[2:]), padding, dtype=F64) for t in tensors]
    for row, length in enumerate(lengths):
        for wide, t in zip(batch, tensors, strict=True):
            wide[row, :length] = t[row, :length]
    found = score(batch, torch.arange(21) < torch.tensor(lengths)[:, None])
    for row, length in enumerate(lengths):
        alone = score([t[row : row + 1, :length] for t in tensors])
        assert_same(MotionMetrics(*(x[row : row + 1] for x in found)), alone)


def test_holes_in_the_mask_break_pairs_and_fours(fused):
    generator = torch.Generator().manual_seed(3)
    tensors = [t.repeat(1, 3, *[1] * (t.dim() - 2)) for t in inputs()]
    for share in (0.9, 0.6, 0.3):
        mask = torch.rand(5, 48, generator=generator) < share
        assert_same(score(tensors, mask), score(tensors, mask, backend="reference"))


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 15, 16, 17, 33, 129, 300])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_clips_of_any_length(fused, frames, dtype):
    generator = torch.Generator().manual_seed(frames)
    pick = torch.randint(0, 16, (frames,), generator=generator)
    tensors = [t[:2, pick] for t in inputs(dtype=dtype)]
    tolerance = 1e-12 if dtype == F64 else 5e-6
    found, expected = score(tensors), score([t.double() for t in tensors], backend="reference")
    assert_same(MotionMetrics(*(x.double() for x in found)), expected, tolerance, tolerance)
    assert bool(found.jitter_m_s3.isnan().all()) == (frames < 4)


def test_a_nan_spoils_what_it_enters_and_nothing_else():
    tensors = inputs()
    clean = score(tensors)
    by_argument = {
        0: {"mpjpe_mm", "pa_mpjpe_mm", "pa_mpjpe_egoallo_mm", "mpjve_mm_s", "jitter_m_s3", "jitter_ratio", "gp_mean_mm",
            "gp_sum_m", "fs_egoallo_m", "fs_mm_per_contact_frame"},
        1: {"mpjpe_mm", "pa_mpjpe_mm", "pa_mpjpe_egoallo_mm", "mpjve_mm_s", "jitter_ratio"},
        2: {"mpjre_geodesic_deg", "mpjre_paper_deg"},
        3: {"mpjre_geodesic_deg", "mpjre_paper_deg"},
        4: {"head_angle_deg", "head_rotation_frobenius"},
        5: {"head_angle_deg", "head_rotation_frobenius"},
    }  # fmt: skip
    for position, spoilt in by_argument.items():
        broken = [t.clone() for t in tensors]
        # Coordinates of a shoulder, all entries of a matrix.
        (broken[position][2, 5, 17] if position < 4 else broken[position][2, 5]).fill_(math.nan)
        found = score(broken)
        for name, a, b in zip(found._fields, found, clean, strict=True):
            assert torch.equal(a[[0, 1, 3, 4]], b[[0, 1, 3, 4]]), name
            if name in spoilt and name != "fs_egoallo_m":
                assert a[2].isnan(), name
            elif name not in spoilt:
                assert torch.equal(a[2], b[2]), name
        if position == 0:  # no height is known, so no foot is in contact
            assert found.fs_egoallo_m[2] == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e200])
def test_bad_numbers_mean_the_same_in_every_backend(value):
    """One number or a whole frame of a sequence; frames that do not count hold NaN all the while."""
    mask = torch.rand(5, 16, generator=torch.Generator().manual_seed(4)) < 0.8
    mask[2, 5:8] = True
    tensors = inputs()
    for tensor in tensors:
        tensor[~mask] = math.nan
    clean, others = score(tensors, mask), [0, 1, 3, 4]
    for position in range(len(tensors)):
        for whole in (False, True):
            broken = [t.clone() for t in tensors]
            broken[position][2, 6].view(-1)[slice(None) if whole else 4] = value
            found, expected = score(broken, mask), score(broken, mask, backend="reference")
            assert_same(MotionMetrics(*(x[2] for x in found)), MotionMetrics(*(x[2] for x in expected)), 1e-9, 1e-9)
            for name, a, b in zip(found._fields, found, clean, strict=True):
                assert torch.equal(a[others].nan_to_num(), b[others].nan_to_num()), name
            if not math.isfinite(value) and position >= 2:  # no angle can be made of an infinite matrix
                names = ("mpjre_geodesic_deg", "mpjre_paper_deg") if position < 4 else ("head_angle_deg",)
                assert all(getattr(found, name)[2].isnan() for name in names), (position, whole)


@pytest.mark.parametrize("size", [1e-150, 1e150])
def test_the_size_of_bodies_scales_out_of_their_alignment(size):
    """Squares of such coordinates are 0 or infinite."""
    tensors = inputs()
    wanted, found = score(tensors), score([size * tensors[0], tensors[1], *tensors[2:]])
    torch.testing.assert_close(found.pa_mpjpe_mm, wanted.pa_mpjpe_mm, rtol=1e-9, atol=0)


def test_degenerate_bodies():
    """All joints at one place, on a line, or reflected: finite, and the same on every backend where it is unique."""
    tensors = inputs()
    point = torch.full_like(tensors[0], 0.7)
    for a, b in ((point, tensors[1]), (tensors[0], point), (point, point)):
        found = score([a, b, *tensors[2:]])
        assert torch.isfinite(found.pa_mpjpe_mm).all() and torch.isfinite(found.pa_mpjpe_egoallo_mm).all()
        assert_same(found, score([a, b, *tensors[2:]], backend="reference"), 1e-9, 1e-9)
    # A point fitted to a body stays a point, at the body's centre.
    centre = tensors[1] - tensors[1].mean(-2, keepdim=True)
    expected = 1000 * centre.norm(dim=-1).mean((-1, -2))
    torch.testing.assert_close(score([point, tensors[1], *tensors[2:]]).pa_mpjpe_mm, expected)
    mirrored = tensors[1] * torch.tensor([-1.0, 1.0, 1.0], dtype=F64)
    assert (score([mirrored, tensors[1], *tensors[2:]]).pa_mpjpe_mm > 1.0).all()
    line = torch.linspace(0, 1, 22, dtype=F64)[:, None] * torch.tensor([0.3, -0.2, 0.9], dtype=F64)
    found = score([2 * line.expand_as(tensors[0]) + 5, line.expand_as(tensors[0]), *tensors[2:]])
    assert (found.pa_mpjpe_mm < 1e-9).all() and torch.isfinite(found.pa_mpjpe_egoallo_mm).all()


def test_far_from_the_origin_digits_are_kept():
    tensors = inputs(dtype=torch.float32)
    near = score(tensors)
    # A power of two, so that the shifted positions lose digits but no more than float32 must.
    shift = torch.tensor([512.0, -1024.0, 0.0])
    far = score([tensors[0] + shift, tensors[1] + shift, *tensors[2:]])
    torch.testing.assert_close(far.pa_mpjpe_mm, near.pa_mpjpe_mm, rtol=0, atol=0.2)
    torch.testing.assert_close(far.mpjpe_mm, near.mpjpe_mm, rtol=0, atol=0.2)


def test_rotations_near_zero_and_near_half_a_turn():
    """Where the arc cosine would fail: tiny angles keep their digits, half turns give 180 degrees."""
    tensors = inputs(dtype=torch.float32)
    tensors[2], tensors[3] = (torch.eye(3).expand(5, 16, 21, 3, 3).clone() for _ in range(2))
    assert (score(tensors).mpjre_geodesic_deg == 0).all() and (score(tensors).mpjre_paper_deg == 0).all()
    tiny = 1e-4
    tensors[2][..., 1, 2], tensors[2][..., 2, 1] = -tiny, tiny
    found = score(tensors)
    torch.testing.assert_close(found.mpjre_geodesic_deg, torch.full((5,), math.degrees(tiny)), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.mpjre_paper_deg, torch.full((5,), math.degrees(tiny) / 3), rtol=1e-5, atol=0)
    for axis in range(3):
        half = -torch.eye(3)
        half[axis, axis] = 1.0
        tensors[2] = half.expand(5, 16, 21, 3, 3)
        found = score(tensors)
        torch.testing.assert_close(found.mpjre_geodesic_deg, torch.full((5,), 180.0), rtol=1e-5, atol=0)
        torch.testing.assert_close(found.mpjre_paper_deg, torch.full((5,), 60.0), rtol=1e-5, atol=0)


def test_heads_may_be_left_out():
    tensors = inputs()
    found, whole = score(tensors[:4]), score(tensors)
    assert found.head_angle_deg.isnan().all() and found.head_rotation_frobenius.isnan().all()
    assert torch.equal(found.head_position_mm, whole.head_position_mm)


def test_any_number_of_threads(fused):
    tensors = [t.repeat(20, *[1] * (t.dim() - 1)) for t in inputs(dtype=torch.float32)]
    first = score(tensors)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert_same(score(tensors), first, 0, 0)
    finally:
        torch.set_num_threads(threads)
    for a in first:
        assert torch.equal(a[:5], a[95:])


def test_no_gradient_but_in_the_reference(backend):
    tensors = inputs()
    tensors[0].requires_grad_()
    assert score(tensors).mpjpe_mm.requires_grad == (backend == "reference")


def test_operator(fused):
    tensors = inputs("samples_of_windows", torch.float32)
    batch = [t.expand(3, 4, *t.shape[2:]) for t in tensors]
    mask = (torch.arange(37) % 5 != 2).expand(3, 4, 37)
    options = (30.0, 15, [7, 8], [0.08, 0.08], True, True, fused)
    torch.library.opcheck(torch.ops.mgrpo.motion_metrics, (*batch, mask, *options))
    # Without heads two results are NaN, which the check by compilation takes for a difference.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.mgrpo.motion_metrics, (*batch[:4], *[None] * 3, *options), test_utils=checks)


@pytest.mark.parametrize("isa", ["v3", "baseline"])
def test_every_instruction_set(backend, isa):
    """The narrower vectors, of which the narrowest hold fewer frames than a jerk needs."""
    if backend != "cpp":
        pytest.skip("only the C++ backend has them")
    code = """if True:
        import torch
        from mgrpo.kernels._spec import all_specs
        spec = next(spec for spec in all_specs() if spec.name == "motion_metrics")
        for case in spec.cases:
            for dtype in (torch.float32, torch.float64):
                inputs = spec.make_inputs(case, dtype, torch.device("cpu"), 5)
                wanted = spec.call(case, *(x.double() for x in inputs), backend="reference")
                for a, b in zip(spec.call(case, *inputs, backend="cpp"), wanted, strict=True):
                    size = max(1.0, b.nan_to_num().abs().max()) if b.numel() else 1.0
                    error = spec.tolerances[dtype].forward * float(size)
                    torch.testing.assert_close(a.double(), b, rtol=0, atol=error, equal_nan=True)
    """
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "MGRPO_ISA": isa, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target_joints": torch.zeros(2, 6, 22, 3)}, ValueError,
         r"target_joints must have shape \(\*#batch, T, J, 3\) with T = 5, J = 22, got \(2, 6, 22, 3\)"),
        ({"pred_joints": torch.zeros(2, 5, 66)}, ValueError, r"pred_joints must have shape \(\*#batch, T, J, 3\), got"),
        ({"pred_joints": torch.zeros(2, 5, 22, 3).half()}, TypeError, "must have dtype float32 or float64, got flo"),
        ({"target_rotmats": torch.zeros(2, 5, 21, 3, 3).double()}, TypeError,
         r"target_rotmats must have the dtype of pred_joints \(float32\), got float64"),
        ({"mask": torch.ones(2, 5)}, TypeError, "mask must have dtype bool, got float32"),
        ({"mask": torch.ones(2, 4) > 0}, ValueError, r"mask must have shape \(\*#batch, T\) with T = 5, got \(2, 4\)"),
        ({"mask": torch.ones(3, 5) > 0}, ValueError, "must have batch axes that broadcast, got .*mask \\(3,\\)"),
        ({"pred_R_world_head": torch.zeros(2, 5, 3, 3)}, ValueError,
         "pred_R_world_head and target_R_world_head must be given together, got pred_R_world_head alone"),
        ({"fps": 0.0}, ValueError, "fps must be > 0, got 0.0"),
        ({"head": 22}, ValueError, "head must be below 22, the number of joints, got 22"),
        ({"feet": (7, 22, 10, 11)}, ValueError, r"feet\[1\] must be below 22, the number of joints, got 22"),
        ({"feet": ()}, ValueError, "feet must hold 1 to 8 joints, got 0"),
        ({"feet": (7, 8)}, ValueError, "foot_heights must hold a number per foot, 2, got 4"),
        ({"foot_heights": (0.1, 0.1, 0.1, -0.1)}, ValueError, r"foot_heights\[3\] must be > 0, got -0.1"),
        ({"backend": "numpy"}, ValueError, "backend must be one of"),
    ],
)  # fmt: skip
def test_refusals(change, error, message):
    arguments = {
        "pred_joints": torch.zeros(2, 5, 22, 3), "target_joints": torch.zeros(2, 5, 22, 3),
        "pred_rotmats": torch.zeros(2, 5, 21, 3, 3), "target_rotmats": torch.zeros(2, 5, 21, 3, 3),
    } | change  # fmt: skip
    with pytest.raises(error, match=r"motion_metrics\(\): .*" + message):
        motion_metrics(**arguments)
    empty = {name: value[:, :0] if isinstance(value, Tensor) else value for name, value in arguments.items()}
    if not change.keys() & empty.keys() - {"fps", "head", "feet", "foot_heights", "backend"}:
        with pytest.raises(ValueError, match=r"pred_joints must have T >= 1, got \(2, 0, 22, 3\) with T = 0"):
            motion_metrics(**{name: empty[name] for name in arguments if isinstance(arguments[name], Tensor)})


# -------------------------------------------------------------------- golden

# Reference array, our measure, factor from our unit to the array's, options.
GOLDEN = (
    ("egoallo_mpjpe_mm", "mpjpe_mm", 1.0, {}),
    ("mpjpe_standard_mm", "mpjpe_mm", 1.0, {}),
    ("author_mpjpe_m", "mpjpe_mm", 1e-3, {}),
    ("egoallo_pampjpe_mm", "pa_mpjpe_egoallo_mm", 1.0, {}),
    ("pa_mpjpe_egoallo_np64_mm", "pa_mpjpe_egoallo_mm", 1.0, {}),
    ("author_pampjpe_m", "pa_mpjpe_egoallo_mm", 1e-3, {}),
    ("pa_mpjpe_standard_mm", "pa_mpjpe_mm", 1.0, {}),
    ("pa_mpjpe_standard_noscale_mm", "pa_mpjpe_mm", 1.0, {"with_scale": False}),
    ("mpjre_geodesic_deg", "mpjre_geodesic_deg", 1.0, {}),
    ("author_mpjre_deg", "mpjre_paper_deg", 1.0, {}),
    ("author_mpjre_deg_pred_via_from_matrix", "mpjre_paper_deg", 1.0, {"short_way": False}),
    ("mpjve_standard_mm_s", "mpjve_mm_s", 1.0, {}),
    ("author_mpjve_m_s", "mpjve_mm_s", 1e-3, {}),
    ("jerk_pred_m_s3", "jitter_m_s3", 1.0, {}),
    ("author_jitter_ratio", "jitter_ratio", 1.0, {}),
    ("gp_sum_deepest_joint_m", "gp_sum_m", 1.0, {}),
    ("author_groundpenetrate_m", "gp_sum_m", 1.0, {}),
    ("egoallo_foot_skate", "fs_egoallo_m", 1.0, {}),
    ("foot_skate_egoallo_np64", "fs_egoallo_m", 1.0, {}),
    ("author_foot_skate_per_sample_floor", "fs_egoallo_m", 1.0, {}),
    ("egoallo_foot_contact", "gnd", 1.0, {}),
    ("egoallo_head_trans_m", "head_position_mm", 1e-3, {}),
    ("egoallo_head_ori", "head_rotation_frobenius", 1.0, {}),
)


def rotmats(quat: Tensor) -> Tensor:
    w, x, y, z = quat.unbind(-1)
    two = 2 / quat.square().sum(-1)
    rows = (
        1 - two * (y * y + z * z), two * (x * y - z * w), two * (x * z + y * w),
        two * (x * y + z * w), 1 - two * (x * x + z * z), two * (y * z - x * w),
        two * (x * z - y * w), two * (y * z + x * w), 1 - two * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


@pytest.mark.golden("metrics/metrics*.npz")
def test_golden_measures(golden_path: Path):
    """The arrays of a file of motions, and of ``author_<name>.npz``, which belongs to the motions of ``<name>.npz``."""
    arrays: dict[str, np.ndarray] = {}
    for path in (golden_path, golden_path.with_name(f"author_{golden_path.name}")):
        if path.is_file():
            with np.load(path, allow_pickle=False) as data:
                assert not arrays.keys() & set(data.files), "a name of both files would be compared once"
                arrays |= {name: data[name] for name in data.files}

    def bodies(side: str) -> tuple[Tensor, Tensor, Tensor]:
        root, joints = (torch.from_numpy(arrays[f"{side}_{n}"]).double() for n in ("T_world_root", "Ts_world_joint"))
        world = torch.cat((root[..., None, :], joints), dim=-2)
        local = torch.from_numpy(arrays[f"{side}_body_quats"]).double()
        return world[..., 4:], rotmats(local), rotmats(world[..., 15, :4])

    pred, target = bodies("pred"), [x[:, None] for x in bodies("label")]
    tensors = [t for pair in zip(pred, target, strict=True) for t in pair]
    compared = 0
    for name, measure, factor, options in GOLDEN:
        if name not in arrays:
            continue
        found = factor * getattr(score(tensors, **options), measure).numpy()
        # float32 references; the float64 evaluations to their own precision.
        exact = arrays[name].dtype == np.float64 and not name.startswith("author")
        np.testing.assert_allclose(found, arrays[name], rtol=1e-6 if exact else 5e-4, atol=1e-6, err_msg=name)
        compared += 1
    assert compared
