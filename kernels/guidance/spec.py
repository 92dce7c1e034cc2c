"""Cases of ``motion_guidance``: walking-like motion with contacts, some of them wrong, and observed hands."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._spec import Case, OpSpec, Tolerance
from . import HandTargets, KeypointTargets, WristTargets, lie, motion_guidance

_BODY = (-1, -1, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 11, 12, 13, 15, 16, 17, 18)
_HANDS = tuple(
    first + 3 * finger + bone - 1 if bone else wrist
    for wrist, first in ((19, 21), (20, 36))
    for finger in range(5)
    for bone in range(3)
)
PARENTS = {21: _BODY, 51: _BODY + _HANDS}


def _motion(generator: torch.Generator, *shape: int, size: float) -> Tensor:
    """Smooth random quaternions (B, T, N, 4) with a little noise."""
    B, T, N = shape
    phase = 2.0 * math.pi * torch.rand(B, 1, N, 3, generator=generator, dtype=torch.float64)
    pace = 0.1 + 0.2 * torch.rand(B, 1, N, 3, generator=generator, dtype=torch.float64)
    time = torch.arange(T, dtype=torch.float64)[None, :, None, None]
    vector = size * torch.sin(pace * time + phase)
    return lie.exponential(vector + 0.02 * torch.randn(B, T, N, 3, generator=generator, dtype=torch.float64))


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    """Rotations, bone offsets, head, contacts, lengths; then what the case's ``targets`` name."""
    generator = torch.Generator().manual_seed(seed)
    sizes = case.sizes
    B, T, N = sizes["rows"], sizes["frames"], sizes.get("joints", 21)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    offsets = normal(B, N, 3)
    reach = torch.full((N, 1), 0.03, dtype=torch.float64)
    reach[:21] = 0.2
    offsets = reach * offsets / offsets.norm(dim=-1, keepdim=True)
    head = torch.cat((_motion(generator, B, T, 1, size=0.3)[:, :, 0], 0.1 * normal(B, T, 3)), -1)
    quats = _motion(generator, B, T, N, size=0.4)
    contacts = 1.4 * torch.rand(B, T, 4, generator=generator, dtype=torch.float64) - 0.2
    tensors = [lie.rotmats(quats), offsets, head, contacts]
    targets: list[Tensor] = []
    seen = (torch.rand(B, T, 2, generator=generator, dtype=torch.float64) - 0.3).clamp_min(0.0)
    if "wrists" in sizes.get("targets", ()):
        wrist = _motion(generator, B, T, 2, size=0.5)
        targets += [torch.cat((wrist, head[:, :, None, 4:] + 0.3 * normal(B, 1, 2, 3)), -1), seen]
    if "hands" in sizes.get("targets", ()):
        targets += [lie.rotmats(_motion(generator, B, T, 30, size=0.5)), seen.flip(-1)]
    if "keypoints" in sizes.get("targets", ()):
        uv = 0.2 * normal(B, 1, 2, 1, 2) + 0.05 * normal(B, T, 2, 16, 2)
        camera = head.clone()
        camera[..., 6] -= 2.0
        camera[..., :4] = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
        targets += [uv, seen, camera]
    lengths = torch.full((B,), T, dtype=torch.int64)
    if sizes.get("padded"):
        lengths = T - torch.arange(B) % T
    floats = [x.to(device, dtype) for x in (*tensors, *targets)]
    return (*floats[:4], lengths.to(device), *floats[4:])


def call(case: Case, *inputs: Tensor, backend: str | None = None) -> tuple[Tensor, ...]:
    """The public function on the inputs of a case."""
    rotmats, offsets, head, contacts, lengths, *rest = inputs
    left = iter(rest)
    targets = case.sizes.get("targets", ())
    form = case.sizes.get("form", "split")
    return tuple(
        motion_guidance(
            rotmats,
            offsets,
            head,
            contacts,
            parents=PARENTS[rotmats.shape[-3]],
            lengths=lengths,
            held=torch.full_like(lengths, case.sizes.get("held", 0)),
            wrists=WristTargets(next(left), next(left), form) if "wrists" in targets else None,
            hands=HandTargets(next(left), next(left)) if "hands" in targets else None,
            keypoints=KeypointTargets(next(left), next(left), next(left)) if "keypoints" in targets else None,
            backend=backend,
            **case.options,
        )
    )


def _bytes_moved(case: Case, dtype: torch.dtype) -> int:
    rotations = case.sizes["rows"] * case.sizes["frames"] * case.sizes.get("joints", 21)
    return dtype.itemsize * 2 * 9 * rotations


SPECS = (
    OpSpec(
        name="motion_guidance",
        cases=(
            Case("body", {"rows": 4, "frames": 9, "padded": True}, {"iterations": 3}),
            Case("wrists", {"rows": 2, "frames": 5, "targets": ("wrists",)}, {"iterations": 2}),
            Case(
                "wrists_se3_hands",
                {"rows": 2, "frames": 4, "joints": 51, "targets": ("wrists", "hands"), "form": "se3", "padded": True},
                {"iterations": 2, "damping": "egoallo"},
            ),
            Case(
                "everything",
                {"rows": 2, "frames": 3, "joints": 51, "targets": ("wrists", "hands", "keypoints")},
                {"iterations": 2},
            ),
            Case(
                "held_wrists",
                {"rows": 3, "frames": 6, "joints": 51, "targets": ("wrists", "hands"), "held": 2, "padded": True},
                {"iterations": 3},
            ),
            Case("one_frame", {"rows": 3, "frames": 1}, {"iterations": 2}),
            Case("two_frames", {"rows": 1, "frames": 2}, {"iterations": 2}),
            Case("empty", {"rows": 0, "frames": 5}, {"iterations": 2}),
        ),
        make_inputs=make_inputs,
        call=call,
        tolerances={torch.float32: Tolerance(2e-4, 0.0), torch.float64: Tolerance(1e-9, 0.0)},
        bytes_moved=_bytes_moved,
        differentiable=False,
        row_axes=(4, 2, 2, 2, 0, 3, 2, 4, 2, 4, 2, 2),
    ),
)
