"""Blocks of a dataset kept in memory up to a number of bytes; the one not used for longest goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

import numpy as np


class CacheCounts(NamedTuple):
    """What a cache has done so far."""

    hits: int
    misses: int
    bytes: int
    """Bytes held now."""
    peak_bytes: int
    """Most bytes ever held."""


class BlockCache:
    """Arrays by key, at most ``limit`` bytes of them. May be used from several threads; two that miss the same key at
    the same moment both load it."""

    def __init__(self, limit: int) -> None:
        """``limit`` in bytes; 0 keeps nothing."""
        self.limit = limit
        self._lock = threading.Lock()
        self._blocks: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._bytes = self._peak = self._hits = self._misses = 0

    def get(self, key: Hashable, load: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of ``key``, from memory or from ``load``. Callers must not write to it."""
        with self._lock:
            block = self._blocks.get(key)
            if block is not None:
                self._blocks.move_to_end(key)
                self._hits += 1
                return block
            self._misses += 1
        block = load()
        block.setflags(write=False)
        with self._lock:
            if block.nbytes <= self.limit and key not in self._blocks:
                while self._bytes + block.nbytes > self.limit:
                    self._bytes -= self._blocks.popitem(last=False)[1].nbytes
                self._blocks[key] = block
                self._bytes += block.nbytes
                self._peak = max(self._peak, self._bytes)
        return block

    @property
    def counts(self) -> CacheCounts:
        """Hits, misses and bytes so far."""
        with self._lock:
            return CacheCounts(self._hits, self._misses, self._bytes, self._peak)
