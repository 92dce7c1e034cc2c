"""Projection of 3x3 matrices onto the rotations: near rotations, as a trained network gives them, and random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .. import peers
from ..bodies import matrices, normal, quaternions
from ..workload import Implementation, Inputs, Results, Workload, exact_call, first_rows, ours, timed_call

OPERATIONS = 934
"""Instructions of four Jacobi sweeps for one matrix; Newton's iteration needs about half."""
OPERATIONS_BACKWARD = 250
MOST_SVD = 3_000_000
"""Matrices that torch's singular value decomposition is asked to take at once."""


def apply(inputs: Inputs, backend: str) -> Results:
    """Our projection."""
    from mgrpo.kernels import project_so3

    return {"R": project_so3(inputs["matrices"], backend=backend)}


def workloads(device: str, backends: Sequence[str] | None) -> list[Workload]:
    """All sizes."""
    # On a GPU: the body rotations and all rotations of 64 x 16 sequences of 128 frames.
    sizes = (("104k", 104_448), ("836k", 835_584))
    if device != "cpu":
        sizes = (("131k", 131_072), ("2.75M", 2_752_512), ("6.68M", 6_684_672))
    found = []
    for label, count in sizes:
        for near in (True, False):
            for gradient in (False, True):
                if gradient and not near:
                    continue
                found.append(workload(device, backends, label, count, near, gradient))
    return found


def workload(
    device: str, backends: Sequence[str] | None, label: str, count: int, near: bool, gradient: bool
) -> Workload:
    leaves = ("matrices",) if gradient else ()
    kind = "near rotations" if near else "random matrices"

    def make_inputs(seed: int) -> Inputs:
        noise = normal((count, 3, 3), seed, device)
        M = matrices(quaternions((count,), seed, device, spread=2.0)) + 0.05 * noise if near else noise
        return {
            "matrices": M.contiguous(),
            **({"grad_R": normal((count, 3, 3), 77 + seed, device)} if gradient else {}),
        }

    return Workload(
        op="project_so3",
        name=f"so3_{'near' if near else 'random'}_{label}{'_backward' if gradient else ''}",
        title=f"SO(3) projection, {kind}" + (", forward + backward" if gradient else ""),
        items=count,
        item="matrix",
        size=f"{count:,} matrices",
        make_inputs=make_inputs,
        implementations=lambda: [
            *(_affordable(one, count) for one in ours(device, "project_so3", apply, leaves=leaves, backends=backends)),
            *_peers(leaves, near),
        ],
        exact=exact_call(apply, leaves),
        bytes_moved=count * 36 * (3 if gradient else 2),
        operations=count * (OPERATIONS + OPERATIONS_BACKWARD * gradient),
        gradient=gradient,
        device=device,
        tests=("tests/kernels/test_so3.py", "tests/kernels/test_ops.py"),
        rows=first_rows(count),
    )


def _affordable(one: Implementation, count: int) -> Implementation:
    if one.kind == "ours" or count <= MOST_SVD:
        return one
    return replace(one, left_out="takes seconds: measured with fewer matrices")


def _peers(leaves: tuple[str, ...], near: bool) -> list[Implementation]:
    def torch_peer(name: str, package: str, load: Any) -> Implementation:
        def prepare(inputs: Inputs) -> Any:
            project = load()
            return timed_call(lambda given: {"R": project(given["matrices"])}, inputs, leaves)

        return Implementation(name, "peer", prepare, package=package)

    def smplfitter(function: str) -> Any:
        return lambda: getattr(peers.load("smplfitter", "smplfitter.pt.rotation"), function)

    def nanomanifold(mode: str) -> Any:
        def load() -> Any:
            conversions = peers.load("nanomanifold", "nanomanifold.SO3.conversions")
            return lambda matrices: conversions.from_matrix_to_rotmat(matrices, mode=mode)

        return load

    found = [
        torch_peer("roma", "roma", lambda: peers.load("roma").special_procrustes),
        torch_peer("smplfitter, svd", "smplfitter", smplfitter("proj_SO3")),
        torch_peer("smplfitter, closed form", "smplfitter", smplfitter("proj_SO3_analytic")),
        torch_peer("nanomanifold, svd", "nanomanifold", nanomanifold("svd")),
        torch_peer("nanomanifold, davenport", "nanomanifold", nanomanifold("davenport")),
    ]
    if not leaves:
        found.append(
            Implementation(
                "scipy",
                "peer",
                _scipy,
                package="scipy",
                left_out=None if near else "refuses matrices with a negative determinant",
            )
        )
    return found


def _scipy(inputs: Inputs) -> Any:
    import torch

    rotation = peers.load("scipy").Rotation
    M = inputs["matrices"].numpy()
    return lambda: {"R": torch.from_numpy(rotation.from_matrix(M).as_matrix())}
