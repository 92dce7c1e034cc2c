"""Which of the sampler's steps are trained in an iteration (facts: GRPO, 2.2: Flow-GRPO-Fast, MixGRPO)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mgrpo.errors import InputError
from mgrpo.options import option, require


@dataclass(frozen=True)
class StepWindowConfig:
    """A window of the sampler's stochastic steps: only these are trained. Steps are counted from the noisiest, which
    the sampler takes first."""

    size: int = 0
    """Steps in the window; 0: all of them (paper)."""
    start: int = 0
    """First step of the window, 0 = the noisiest."""
    move_every: int = 0
    """Move the window on by one step after this many iterations, and back to its start when it has reached the end; 0:
    it stays (MixGRPO: 25)."""
    quiet_outside: bool = False
    """Take the steps outside the window without noise. Members of a group that share their initial noise are then
    sampled as one up to the window, which saves network calls (Flow-GRPO-Fast, MixGRPO)."""

    def __post_init__(self) -> None:
        require(self, "size", "start", "move_every", at_least=0)

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        reason = f"without a window: give its number of steps with {option(self, 'size')}"
        return {} if self.size else dict.fromkeys(("start", "move_every", "quiet_outside"), reason)

    def steps(self, trainable: tuple[int, ...], iteration: int) -> tuple[int, ...]:
        """The steps inside the window in ``iteration``, of the sampler's ``trainable`` ones.

        Raises InputError when the window is longer than they are, or starts too late.
        """
        if not self.size:
            return trainable
        last = len(trainable) - self.size
        if self.start > last:
            raise InputError(
                f"{option(self, 'size')} {self.size} from {option(self, 'start')} {self.start} does not fit into the "
                f"sampler's {len(trainable)} stochastic steps"
            )
        places = last - self.start + 1
        first = self.start + (iteration // self.move_every % places if self.move_every else 0)
        return trainable[first : first + self.size]
