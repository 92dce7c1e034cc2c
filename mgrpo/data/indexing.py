"""Which part of which sequence a training item is: EgoAllo's rule with numpy's global-style draws, and ours with
counters, where any position can be asked for directly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from mgrpo.errors import InputError
from mgrpo.kernels import STREAM_DATA, philox_uniform

SliceStrategy = Literal["deterministic", "random_uniform_len", "random_variable_len"]
"""How a slice of a sequence is chosen: by its number; at a random place; at a random place and sometimes shorter."""

SHORTEST = 16
"""Frames of the shortest slice that ``random_variable_len`` takes (facts: section E)."""

SHORT_SHARE = 0.3
"""Share of the items that ``random_variable_len`` makes shorter (facts: section E)."""

Weighting = Literal["clips", "frames"]
"""Whether each sequence is drawn equally often whatever its length (as EgoAllo), or in proportion to its length."""


class Slice(NamedTuple):
    """Frames ``start`` to ``start + frames`` of a sequence; what is missing to a window repeats the last of them."""

    sequence: int
    """Row of the sequence among those of the dataset."""
    start: int
    frames: int


class ItemIndex:
    """EgoAllo's items: ``len = total frames // length``; item i is slice ``i // N`` of sequence ``i % N`` (facts:
    section E). Sequences shorter than ``length`` take no part, neither in N nor in the total."""

    def __init__(self, frames: Sequence[int] | np.ndarray, length: int) -> None:
        """``frames``: of each sequence, in the dataset's order; ``length``: frames of a window. Raises InputError for a
        length below 1 and where every sequence is shorter."""
        if length < 1:
            raise InputError(f"windows must have at least 1 frame, got {length}")
        counts = np.asarray(frames, np.int64).reshape(-1)
        self.length = length
        self.sequences = np.flatnonzero(counts >= length)
        """Rows of the sequences that are long enough, in order, ``(N,)``."""
        self.frames = counts[self.sequences]
        """Frames of these, ``(N,)``."""
        if not len(self.sequences):
            longest = f"the longest has {counts.max()}" if len(counts) else "there are none"
            raise InputError(f"no sequence has the {length} frames of a window ({longest}); use shorter windows")
        self._last_start = np.cumsum(self.frames - length + 1)

    def __len__(self) -> int:
        return int(self.frames.sum()) // self.length

    @property
    def starts(self) -> int:
        """Number of places at which a window of full length can start, in all sequences."""
        return int(self._last_start[-1])

    def deterministic(self, item: int) -> Slice:
        """EgoAllo's ``deterministic`` slice of an item: it starts at ``(slice * length) mod (T - length)``. Slices
        overlap, and those of a short sequence are nearly the same."""
        member, number = self._member(item)
        room = int(self.frames[member]) - self.length
        return Slice(int(self.sequences[member]), number * self.length % room if room else 0, self.length)

    def replayed(
        self, item: int, strategy: SliceStrategy, random: np.random.RandomState, short_share: float = SHORT_SHARE
    ) -> Slice:
        """What EgoAllo takes for an item when numpy's global generator is in the state of ``random``, which moves on by
        the same draws."""
        if strategy == "deterministic":
            return self.deterministic(item)
        member, _ = self._member(item)
        frames = self.length
        # The coin is tossed before the length is drawn.
        if strategy == "random_variable_len" and random.random_sample() < short_share:
            frames = int(random.randint(SHORTEST, self.length))
        start = int(random.randint(0, int(self.frames[member]) - frames + 1))
        return Slice(int(self.sequences[member]), start, frames)

    def _member(self, item: int) -> tuple[int, int]:
        if not 0 <= item < len(self):
            raise IndexError(f"item must be in [0, {len(self)}), got {item}")
        return item % len(self.frames), item // len(self.frames)

    def member_of_start(self, number: np.ndarray) -> np.ndarray:
        """Position among ``sequences`` that start ``number`` of :attr:`starts` falls into."""
        return np.searchsorted(self._last_start, number, side="right")


def check_strategy(strategy: SliceStrategy, length: int, short_share: float) -> None:
    """Raise InputError for a strategy that can't be used with windows of ``length`` frames."""
    if strategy not in ("deterministic", "random_uniform_len", "random_variable_len"):
        raise InputError(f"slices must be deterministic, random_uniform_len or random_variable_len, got '{strategy}'")
    if strategy == "random_variable_len" and length <= SHORTEST:
        raise InputError(
            f"random_variable_len takes slices of {SHORTEST} frames or more, so windows must be longer than "
            f"{SHORTEST}, got {length}; use random_uniform_len"
        )
    if not 0 <= short_share <= 1:
        raise InputError(f"the share of shorter slices must lie in [0, 1], got {short_share}")


class SliceDraws:
    """Slices for training, as a pure function of (seed, iteration, size, position): nothing depends on what was drawn
    before, so a resumed run goes on exactly.

    The positions of all batches follow each other through epochs: position ``p = iteration * size + i`` is place
    ``p mod len`` of epoch ``p div len``. With the weighting ``clips`` an epoch is a permutation of EgoAllo's items, a
    new one each time, so that every sequence is drawn as often as there (up to one time in an epoch); with ``frames``
    each place of an epoch is a uniform draw among all window starts.
    """

    def __init__(
        self,
        index: ItemIndex,
        strategy: SliceStrategy,
        seed: int,
        *,
        weighting: Weighting = "clips",
        short_share: float = SHORT_SHARE,
    ) -> None:
        """Raises InputError for a strategy that doesn't fit the windows."""
        check_strategy(strategy, index.length, short_share)
        if strategy == "deterministic" and weighting == "frames":
            raise InputError(
                "deterministic slices are EgoAllo's numbered items, which take each sequence equally often; use the "
                "weighting 'clips', or random slices"
            )
        self.index, self.strategy, self.seed = index, strategy, seed
        self.weighting, self.short_share = weighting, short_share
        self._orders: dict[int, np.ndarray] = {}

    def slices(self, iteration: int, size: int) -> list[Slice]:
        """The ``size`` slices of an iteration. Raises InputError for fewer than one."""
        if size < 1:
            raise InputError(f"a batch must have at least 1 window, got {size}")
        rows = torch.arange(size)
        uniform = self._uniform(iteration, rows, 6, step=0)
        members, numbers = self._members(iteration, size, uniform[:, 0])
        frames = np.full(size, self.index.length)
        if self.strategy == "random_variable_len":
            shorter = uniform[:, 1] < self.short_share
            drawn = SHORTEST + (uniform[:, 2] * (self.index.length - SHORTEST)).astype(np.int64)
            frames = np.where(shorter, drawn, frames)
        available = self.index.frames[members]
        if self.strategy == "deterministic":
            room = available - self.index.length
            starts = np.where(room > 0, numbers * self.index.length % np.maximum(room, 1), 0)
        else:
            starts = (uniform[:, 3] * (available - frames + 1)).astype(np.int64)
        sequences = self.index.sequences[members]
        return [Slice(int(s), int(t), int(f)) for s, t, f in zip(sequences, starts, frames)]

    def yaws(self, iteration: int, size: int) -> torch.Tensor:
        """An angle for each window of an iteration, uniform in [0, 2 pi) radians, ``(size,)`` float32."""
        uniform = self._uniform(iteration, torch.arange(size), 1, step=3)
        return torch.from_numpy(2 * np.pi * uniform[:, 0]).to(torch.float32)

    def _members(self, iteration: int, size: int, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position of each window's sequence among ``index.sequences``, and the number of its slice."""
        if self.weighting == "frames":
            members = self.index.member_of_start((uniform * self.index.starts).astype(np.int64))
            return members, np.zeros(size, np.int64)
        items = np.empty(size, np.int64)
        done, count = 0, len(self.index)
        while done < size:
            epoch, place = divmod(iteration * size + done, count)
            part = self._order(epoch)[place : place + size - done]
            items[done : done + len(part)] = part
            done += len(part)
        return items % len(self.index.frames), items // len(self.index.frames)

    def _order(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch."""
        known = self._orders
        order = known.get(epoch)
        if order is None:
            order = np.argsort(self._uniform(epoch, torch.arange(len(self.index)), 1, step=2)[:, 0], kind="stable")
            # The neighbours are kept for batches that cross the border or are asked for ahead of their turn. A new
            # dictionary, so that another thread's view stays whole.
            self._orders = {number: known[number] for number in (epoch - 1, epoch + 1) if number in known}
            self._orders[epoch] = order
        return order

    def _uniform(self, iteration: int, rows: torch.Tensor, count: int, *, step: int) -> np.ndarray:
        """``(len(rows), count)`` float64 in [0, 1) with 48 bits each, enough to tell all starts of a large dataset
        apart."""
        drawn = philox_uniform(
            (2 * count,),
            seed=self.seed,
            iteration=iteration,
            condition=rows,
            member=torch.zeros_like(rows),
            step=step,
            stream=STREAM_DATA,
        )
        halves = drawn.to(torch.float64).numpy().reshape(len(rows), count, 2)
        return halves[..., 0] + halves[..., 1] * 2.0**-24
