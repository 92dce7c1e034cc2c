"""Guidance after sampling: motions of a clip with the jitter and the sliding feet of samples, corrected without hands.

The reference is the same search in eager torch: all sequences in one batch, analytic derivatives, one banded
factorisation per iteration. A plainer one, with derivatives by autograd and a dense matrix, does not fit into memory at
128 frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..workload import Inputs, Results, Workload, exact_call, ours

FRAMES = 128
COUPLED = 33
"""Numbers of a frame's block that points couple."""
ITERATIONS = 6
"""About what it takes, for the count of operations."""
COUNTS = {"cpu": (1, 16), "cuda": (64, 1024)}


def apply(inputs: Inputs, backend: str) -> Results:
    """Ours."""
    from mgrpo.kernels import motion_guidance

    names = ("rotmats", "t_parent_joint", "T_world_head", "contacts")
    result = motion_guidance(*(inputs[name] for name in names), parents=inputs["parents"], backend=backend)
    return {"rotmats": result.rotmats, "final_costs": result.costs[..., -1]}


def workloads(device: str, backends: Sequence[str] | None) -> list[Workload]:
    """Both sizes."""
    return [workload(device, backends, count) for count in COUNTS[device.split(":")[0]]]


def workload(device: str, backends: Sequence[str] | None, count: int, frames: int = FRAMES) -> Workload:
    """One size."""
    return Workload(
        op="motion_guidance",
        name=f"guidance_{count}",
        title="Guidance without hands, after sampling",
        items=count * frames,
        item="frame",
        size=f"{count} sequence{'s' if count > 1 else ''} of {frames} frames",
        make_inputs=partial(make_inputs, device, count, frames),
        # torch.compile cannot follow a search whose end depends on its numbers.
        implementations=lambda: [
            one for one in ours(device, "motion_guidance", apply, backends=backends) if one.kind != "compile"
        ],
        exact=exact_call(apply),
        bytes_moved=4 * count * frames * (2 * 21 * 9 + 7 + 4),
        # Elimination of a frame's block against the two next ones: 6.3 n^3; the rest is about as much.
        operations=2 * count * frames * ITERATIONS * int(6.3 * COUPLED**3),
        device=device,
        tests=("tests/kernels/test_guidance.py",),
    )


def make_inputs(device: str, count: int, frames: int, seed: int) -> Inputs:
    """``count`` samples of a clip of the demo: its motion with slow errors of 5 degrees and fast ones of 0.3."""
    import torch

    from mgrpo import geometry
    from mgrpo.body import default_body
    from mgrpo.data import cut_windows, load_motion

    generator = torch.Generator().manual_seed(seed)
    body = default_body().body_only()
    clips = [clip for clip in load_motion("demo", body) if clip.loop]  # those can be of any length
    window = cut_windows([clips[seed % len(clips)]], body, frames).select([0])
    slow = torch.randn(count, frames, 21, 3, generator=generator).cumsum(1) / frames**0.5
    vectors = 0.09 * slow + 0.005 * torch.randn(count, frames, 21, 3, generator=generator)
    rotmats = window.body_rotmats @ geometry.axis_angle_to_rotmat(vectors)
    betas = window.betas[:, 0] if window.betas.ndim == 3 else window.betas
    offset = body.t_head_cpf(betas)[:, None]
    identity = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(1, 1, 4)
    given = {
        "rotmats": rotmats,
        "t_parent_joint": body.t_parent_joint(betas),
        "T_world_head": geometry.se3_multiply(window.T_world_cpf, geometry.se3(identity, -offset)),
        "contacts": window.contacts[..., [6, 7, 9, 10]].float(),
    }
    return {**{name: value.to(device).contiguous() for name, value in given.items()}, "parents": body.parents}
