"""Random numbers that depend on what they are for, never on what was drawn before: a resumed run draws what an
uninterrupted one draws."""

from __future__ import annotations

import hashlib

import torch


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
