"""Which evaluation of a run was the best one, and for how many it has not got better."""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

from mgrpo.errors import InputError


class GoldConfig(Protocol):
    """What the watch needs of a configuration."""

    @property
    def gold(self) -> str:
        """Name of the measure."""
        ...

    @property
    def gold_better(self) -> Literal["min", "max"]:
        """Whether a smaller or a larger value is better."""
        ...

    @property
    def patience(self) -> int:
        """Evaluations without a better value after which training ends; 0: never."""
        ...


class GoldWatch:
    """Which evaluation was the best, and for how many it has not got better."""

    def __init__(self, config: GoldConfig) -> None:
        self._name, self.better, self._patience = config.gold, config.gold_better, config.patience
        self.best: float | None = None
        self.latest: float | None = None
        self._worse = 0

    def see(self, gold: dict[str, float]) -> bool:
        """Take in an evaluation; whether it is the best so far. Raises InputError when it lacks the measure."""
        if self._name not in gold:
            raise InputError(
                f"--gold {self._name} is not among the measures; there are {', '.join(sorted(gold)) or 'none'}"
            )
        value = gold[self._name]
        self.latest = None if math.isnan(value) else value
        sign = 1.0 if self.better == "min" else -1.0
        if self.latest is None:  # what could not be measured is no better
            pass
        elif self.best is None or sign * self.latest < sign * self.best:
            self.best, self._worse = self.latest, 0
            return True
        self._worse += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return bool(self._patience) and self._worse >= self._patience

    def verdict(self, done: int) -> str:
        """Why training stops after ``done`` iterations."""
        return (
            f"stopped after {done} iterations: {self._name} was no better than "
            f"{'nothing' if self.best is None else format(self.best, 'g')} in the last {self._worse} evaluations "
            "(--patience)"
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"gold_best": self.best, "gold_worse": self._worse}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state` gave."""
        self.best, self._worse = state.get("gold_best"), int(state.get("gold_worse", 0))
