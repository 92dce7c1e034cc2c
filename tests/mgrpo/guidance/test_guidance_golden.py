"""Guidance against runs of the original (JAX) optimiser."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mgrpo.body import resolve_body
from mgrpo.body.placement import place_on_cpf
from mgrpo.geometry import quat_to_rotmat
from mgrpo.guidance import GuidanceConfig, GuidedMotion, guide
from mgrpo.kernels import available_backends
from mgrpo.kernels.guidance import DAMPING_RULES
from tests.golden import golden_file, golden_files

pytestmark = pytest.mark.golden
BACKENDS = list(available_backends("motion_guidance"))


def cases() -> dict[str, dict[str, Any]]:
    """Every recorded run, by the name of its file."""
    found = {}
    for path in golden_files("guidance/no_hands_*.npz"):
        with np.load(path) as arrays:
            found[path.stem] = dict(arrays)
    return found


def tensors(arrays: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(value).to(dtype)
        for name, value in arrays.items()
        if value.dtype.kind == "f" and value.ndim > 1
    }


def guided(given: dict[str, Tensor], backend: str, damping: str, iterations: int = 20) -> tuple[GuidedMotion, float]:
    """Guidance of a recorded input, and the mean distance in metres of its joints from the recorded result's."""
    dtype = given["contacts"].dtype
    body = resolve_body(str(golden_file("body/*.npz")), with_mesh=False).to(dtype=dtype)
    result = guide(
        body,
        given["body_rotmats_in"],
        given["betas"],
        given["contacts"],
        given["Ts_world_cpf"],
        config=GuidanceConfig(damping=damping, post_iterations=iterations),  # type: ignore[arg-type]
        backend=backend,
    )
    shape = given["betas"].mean(1, keepdim=True)
    joints = [
        place_on_cpf(body, rotmats, shape, given["Ts_world_cpf"]).joints
        for rotmats in (result.body_rotmats, given["body_rotmats_out"])
    ]
    return result, (joints[0] - joints[1]).norm(dim=-1).mean().item()


@pytest.mark.parametrize("backend", BACKENDS)
def test_costs_and_joints_of_the_original(backend: str) -> None:
    for name, arrays in cases().items():
        result, distance = guided(tensors(arrays, torch.float32), backend, "adaptive")
        start, end = float(arrays["total_initial_jaxls"][0]), float(arrays["total_final_jaxls"][0])
        assert result.costs[0, 0].item() == pytest.approx(start, rel=1e-4), name
        assert result.costs[0, -1].item() <= 1.001 * end, name
        assert (result.costs[0, 1:] <= result.costs[0, :-1]).all(), name
        assert int(result.iterations[0]) <= int(arrays["max_iters"]), name
        if arrays["termination_criteria"][0, 0]:  # it converged: so the solution is the recorded one
            assert distance < 0.005, name


def test_where_the_original_was_cut_off_its_minimum_lies_elsewhere() -> None:
    """Where it ran out of iterations (contradictory contacts), both rules go on to one motion, of no higher a cost. The
    original's own rule passes by at its cost and its joints after some more iterations."""
    for name, arrays in cases().items():
        if arrays["termination_criteria"][0].tolist() != [False, False, False, True]:
            continue
        end, given = float(arrays["total_final_jaxls"][0]), tensors(arrays, torch.float64)
        longer = int(arrays["max_iters"][()]) * 7 // 5
        near, distance = guided(given, "cpp", "egoallo", longer)
        assert near.costs[0, -1].item() <= 1.001 * end and distance < 0.005, name
        ends = {rule: guided(given, "cpp", rule, 300) for rule in DAMPING_RULES}
        for result, _ in ends.values():
            assert int(result.iterations[0]) < 300 and result.costs[0, -1].item() < end, name
        body = resolve_body(str(golden_file("body/*.npz")), with_mesh=False).to(dtype=torch.float64)
        shape = given["betas"].mean(1, keepdim=True)
        adaptive, egoallo = (
            place_on_cpf(body, result.body_rotmats, shape, given["Ts_world_cpf"]).joints for result, _ in ends.values()
        )
        assert (adaptive - egoallo).norm(dim=-1).mean() < 0.003, name


@pytest.mark.parametrize("damping", list(DAMPING_RULES))
def test_the_path_to_the_solution(damping: str) -> None:
    """Where the original takes every step, the costs on the way are its own, but for its inexact linear solves."""
    for name, arrays in cases().items():
        history = arrays["cost_history"][0][: int(arrays["iterations"][0])]
        result, distance = guided(tensors(arrays, torch.float64), "reference", damping)
        costs = result.costs[0].numpy()
        if (np.diff(history) < 0).all():
            np.testing.assert_allclose(costs[2 : len(history)], history[2:], rtol=0.003, err_msg=name)
            assert int(result.iterations[0]) == len(history), name
            recorded = quat_to_rotmat(torch.from_numpy(arrays["body_quats_out"]).double())
            if damping == "egoallo":
                torch.testing.assert_close(result.body_rotmats.double(), recorded, rtol=0, atol=2e-3)
        elif damping == "egoallo":  # it depends on the path, of which this is nearly the original's
            assert costs[-1] < 1.02 * history[-1] and distance < 0.005, name
