"""Mean distance of a frame's joints from the target after the best similarity alignment (PA-MPJPE's core)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import peers
from ..bodies import matrices, normal, quaternions
from ..workload import Implementation, Inputs, Results, Workload, exact_call, first_rows, ours, timed_call

POINTS = 22
OPERATIONS = 2_000
"""Per cloud of 22 points: means, 3x3 covariance, its polar factor, moved points, their distances."""


def apply(inputs: Inputs, backend: str) -> Results:
    """Ours."""
    from mgrpo.kernels import procrustes_residual

    return {"residual": procrustes_residual(inputs["source"], inputs["target"], backend=backend)}


def workloads(device: str, backends: Sequence[str] | None) -> list[Workload]:
    """All sizes."""
    frames = (2_048, 32_768) if device == "cpu" else (16_384, 131_072)
    return [
        *(workload(device, backends, count) for count in frames),
        workload(device, backends, frames[-1], gradient=True),
    ]


def workload(device: str, backends: Sequence[str] | None, frames: int, gradient: bool = False) -> Workload:
    import torch

    leaves = ("source",) if gradient else ()

    def make_inputs(seed: int) -> Inputs:
        shape = torch.tensor([0.3, 0.2, 0.6], device=device)  # metres: longer than wide, wider than deep
        source = normal((frames, POINTS, 3), seed, device) * shape + 0.5
        turn = matrices(quaternions((frames, 1), seed, device, spread=1.0))
        target = 1.1 * (turn @ source[..., None])[..., 0] + 0.05 * normal((frames, POINTS, 3), 50 + seed, device)
        inputs = {"source": source, "target": target.contiguous()}
        if gradient:
            inputs["grad_residual"] = normal((frames,), 77 + seed, device)
        return inputs

    return Workload(
        op="procrustes_residual",
        name=f"procrustes_{frames}{'_backward' if gradient else ''}",
        title="Procrustes residual, 22 joints" + (", forward + backward" if gradient else ""),
        items=frames,
        item="frame",
        size=f"{frames:,} frames",
        make_inputs=make_inputs,
        implementations=lambda: [
            *ours(device, "procrustes_residual", apply, leaves=leaves, backends=backends),
            *_peers(leaves, frames, device),
        ],
        exact=exact_call(apply, leaves),
        bytes_moved=4 * frames * (POINTS * 6 + 1 + (POINTS * 9 + 1 if gradient else 0)),
        operations=frames * OPERATIONS * (2 if gradient else 1),
        gradient=gradient,
        device=device,
        tests=("tests/kernels/test_procrustes.py", "tests/kernels/test_ops.py"),
        rows=first_rows(frames),
    )


def _peers(leaves: tuple[str, ...], frames: int, device: str) -> list[Implementation]:
    def torch_peer(
        name: str,
        package: str,
        residual: Callable[[Any, Any], Any],
        left_out: str | None = None,
        comparable: bool = True,
    ) -> Implementation:
        def prepare(inputs: Inputs) -> Callable[[], Results]:
            return timed_call(lambda given: {"residual": residual(given["source"], given["target"])}, inputs, leaves)

        results = (lambda raw: raw) if comparable else (lambda raw: {})
        return Implementation(name, "peer", prepare, results, package=package, left_out=left_out)

    large = frames > 4_096
    found = [
        torch_peer("roma", "roma", _roma),
        torch_peer("smplfitter, svd, no scale", "smplfitter", _kabsch, comparable=False),
        torch_peer("smplfitter, closed form, no scale", "smplfitter", _kabsch_closed_form, comparable=False),
        torch_peer(
            "pypose", "pypose", _pypose,
            left_out="takes more than 10 GB of memory at this size" if large or device != "cpu" else None,
        ),
    ]  # fmt: skip
    if not leaves:
        too_many = "aligns one frame per call: measured at the small size" if large else None
        found.append(
            Implementation("scipy, no scale", "peer", _scipy, lambda raw: {}, package="scipy", left_out=too_many)
        )
    return found


def _roma(source: Any, target: Any) -> Any:
    R, t, scale = peers.load("roma").rigid_points_registration(source, target, compute_scaling=True)
    moved = scale[..., None, None] * (source @ R.mT) + t[..., None, :]
    return (moved - target).norm(dim=-1).mean(-1)


def _kabsch(source: Any, target: Any) -> Any:
    return _rigid(source, target, peers.load("smplfitter", "smplfitter.pt.rotation").proj_SO3)


def _kabsch_closed_form(source: Any, target: Any) -> Any:
    return _rigid(source, target, peers.load("smplfitter", "smplfitter.pt.rotation").proj_SO3_analytic)


def _rigid(source: Any, target: Any, project: Callable[[Any], Any]) -> Any:
    """The package's rotation between centred clouds, and what remains; it has no scale."""
    x, y = source - source.mean(-2, keepdim=True), target - target.mean(-2, keepdim=True)
    return (x @ project(y.mT @ x).mT - y).norm(dim=-1).mean(-1)


def _pypose(source: Any, target: Any) -> Any:
    aligned = peers.load("pypose").svdstf(source, target)
    return (aligned[..., None, :].Act(source) - target).norm(dim=-1).mean(-1)


def _scipy(inputs: Inputs) -> Callable[[], Any]:
    import numpy as np

    Rotation = peers.load("scipy").Rotation
    source, target = inputs["source"].numpy(), inputs["target"].numpy()

    def call() -> Any:
        x, y = source - source.mean(1, keepdims=True), target - target.mean(1, keepdims=True)
        return np.array(
            [np.linalg.norm(Rotation.align_vectors(b, a)[0].apply(a) - b, axis=-1).mean() for a, b in zip(x, y)]
        )

    return call
