"""Inputs that several workloads share: the body's tree, rotations of a moving body, bone lengths."""

from __future__ import annotations

from typing import Any

PARENTS_22 = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19)
"""SMPL-H's pelvis and 21 body joints."""


def _with_fingers(body: tuple[int, ...], wrists: tuple[int, ...]) -> tuple[int, ...]:
    parents = list(body)
    for wrist in wrists:
        for _ in range(5):
            first = len(parents)
            parents += [wrist, first, first + 1]
    return tuple(parents)


PARENTS_52 = _with_fingers(PARENTS_22, wrists=(20, 21))
"""The same with five fingers of three joints on each wrist."""


def quaternions(shape: tuple[int, ...], seed: int, device: str, spread: float = 0.5) -> Any:
    """Unit quaternions (*shape, 4) wxyz, float32: rotations by about ``spread`` radians."""
    import torch

    generator = torch.Generator(device=device).manual_seed(seed)
    vector = torch.randn(*shape, 3, generator=generator, device=device) * (spread / 2 / 3**0.5)
    whole = torch.cat([torch.ones_like(vector[..., :1]), vector], dim=-1)
    return whole / whole.norm(dim=-1, keepdim=True)


def matrices(q: Any) -> Any:
    """Rotation matrices (*shape, 3, 3) of unit quaternions (*shape, 4) wxyz."""
    from mgrpo.geometry import quat_to_rotmat

    return quat_to_rotmat(q)


def bones(joints: int, seed: int, device: str) -> Any:
    """Offsets (J, 3) of joints from their parents, metres."""
    import torch

    generator = torch.Generator(device=device).manual_seed(1000 + seed)
    return 0.15 * torch.randn(joints, 3, generator=generator, device=device)


def rest_joints(offsets: Any, parents: tuple[int, ...]) -> Any:
    """Joints (J, 3) of the unposed body, for packages that take these instead of offsets."""
    import torch

    found: list[Any] = []
    for joint, parent in enumerate(parents):
        found.append(offsets[joint] if parent < 0 else found[parent] + offsets[joint])
    return torch.stack(found)


def normal(shape: tuple[int, ...], seed: int, device: str) -> Any:
    """Standard normal float32 numbers."""
    import torch

    return torch.randn(*shape, generator=torch.Generator(device=device).manual_seed(seed), device=device)
