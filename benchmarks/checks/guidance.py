"""Speed of guidance on the CPU against the same search in eager torch. The original's own time, in JAX, was recorded on
a machine like this one and is set against ours in docs/guidance.md."""

from __future__ import annotations

from benchmarks.requirement import Requirement, speed_up

REQUIREMENTS: tuple[Requirement, ...] = (
    speed_up("guidance_1", "guidance_1", 10),
    speed_up("guidance_16", "guidance_16", 3),
)
