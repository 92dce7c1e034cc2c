"""Random numbers that depend on what they are for, never on what was drawn before: a resumed run draws what an
uninterrupted one draws."""

from __future__ import annotations

import hashlib

import torch

from mgrpo.errors import InputError


def stream_seed(seed: int, iteration: int, purpose: str) -> int:
    """A 63-bit seed for one purpose in one iteration, from a hash of the three. Different purposes give unrelated
    streams."""
    digest = hashlib.blake2b(f"{seed}/{iteration}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def iteration_generator(seed: int, iteration: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh torch generator on ``device`` for one purpose in one iteration."""
    generator = torch.Generator(device=device)
    generator.manual_seed(stream_seed(seed, iteration, purpose))
    return generator


def require_seed(seed: int, option: str = "--seed") -> None:
    """Raise InputError for a seed that the noise can't be keyed by."""
    if not 0 <= seed < 2**64:
        raise InputError(f"{option} must be a whole number from 0 to 2^64 - 1, got {seed}")
