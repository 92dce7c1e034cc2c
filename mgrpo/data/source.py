"""What a training loop draws its windows from."""

from __future__ import annotations

from typing import Protocol

from mgrpo.data.windows import MotionWindows


class WindowSource(Protocol):
    """Batches of windows as a pure function of the iteration: a resumed run asks for the iteration it has come to and
    sees what an unbroken one sees."""

    def batch(self, iteration: int, size: int, *, first: int = 0, whole: int | None = None) -> MotionWindows:
        """``size`` windows for this iteration (0 <= iteration < 2^32), float32 on the CPU: those at positions ``first``
        and after of the iteration's batch, which has ``whole`` windows in all (None: it ends with these)."""
        ...
