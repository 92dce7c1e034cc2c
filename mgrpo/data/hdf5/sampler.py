"""Training windows from HDF5 files: a pure function of the iteration, the next batch made in the background."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from mgrpo.body.model import BodyModel
from mgrpo.data.hdf5.dataset import Hdf5Motion
from mgrpo.data.indexing import SHORT_SHARE, ItemIndex, SliceDraws, SliceStrategy, Weighting
from mgrpo.data.windows import MotionWindows
from mgrpo.errors import InputError


class Hdf5Sampler:
    """Draws windows: ``batch(iteration, size)`` is a pure function of (seed, iteration, size) and the sequences.

    While a loop works with a batch, a thread makes the one of the next iteration. Results never depend on that, nor on
    the cache.
    """

    def __init__(
        self,
        motion: Hdf5Motion,
        body: BodyModel,
        length: int,
        seed: int,
        *,
        strategy: SliceStrategy = "random_uniform_len",
        weighting: Weighting = "clips",
        short_share: float = SHORT_SHARE,
        yaw: bool = False,
        prefetch: bool = True,
    ) -> None:
        """Prepare sequences for drawing.

        Args:
            motion: the sequences; those shorter than ``length`` are never drawn.
            body: the body that the files were made with.
            length: frames per window, ``T``.
            seed: 0 <= seed < 2^64.
            strategy: how slices are taken (facts: section E).
            weighting: ``clips``: each sequence equally often, as EgoAllo; ``frames``: each frame.
            short_share: share of shorter slices with ``random_variable_len``.
            yaw: turn each window by a random angle about the vertical.
            prefetch: make the next batch in the background.
        Raises:
            InputError: no sequence long enough, a strategy that doesn't fit the windows.
        """
        self.motion, self.length, self.yaw = motion, length, yaw
        self.body = body.to(device="cpu", dtype=torch.float32).body_only()
        self.draws = SliceDraws(
            ItemIndex(motion.frames, length), strategy, seed, weighting=weighting, short_share=short_share
        )
        self.prefetch = prefetch
        self._reset()

    def _reset(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._worker: ThreadPoolExecutor | None = None
        self._ahead: tuple[tuple[int, ...], Future[MotionWindows]] | None = None

    def __getstate__(self) -> dict[str, object]:
        own = ("_pid", "_lock", "_worker", "_ahead")
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __len__(self) -> int:
        """EgoAllo's number of items: windows in an epoch."""
        return len(self.draws.index)

    def batch(self, iteration: int, size: int, *, first: int = 0, whole: int | None = None) -> MotionWindows:
        """``size`` windows for this iteration (0 <= iteration < 2^32), float32 on the CPU: those at positions ``first``
        and after of the iteration's batch, which has ``whole`` windows in all (None: it ends with these).

        Raises:
            InputError: fewer than one window, or some outside of the batch; damage in a file, or values that are no
                motion, with the sequence's name.
        """
        whole = first + size if whole is None else whole
        if size < 1 or first < 0 or first + size > whole:
            raise InputError(
                f"Hdf5Sampler.batch(): a batch must have at least 1 window, inside the whole batch; got {size} windows "
                f"from position {first} of {whole}"
            )
        part = (size, first, whole)
        if not self.prefetch:
            return self.make(iteration, *part)
        if self._pid != os.getpid():  # a thread doesn't survive a fork
            self._reset()
        with self._lock:
            ahead, self._ahead = self._ahead, None
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, thread_name_prefix="motion")
        if ahead is not None and ahead[0] == (iteration, *part):
            windows = ahead[1].result()
        else:
            if ahead is not None:
                ahead[1].cancel()
            windows = self.make(iteration, *part)
        with self._lock:
            self._ahead = (iteration + 1, *part), self._worker.submit(self.make, iteration + 1, *part)
        return windows

    def make(self, iteration: int, size: int, first: int, whole: int) -> MotionWindows:
        """The windows of a part of an iteration's batch, made here and now."""
        mine = slice(first, first + size)
        slices = self.draws.slices(iteration, whole)[mine]
        yaw = self.draws.yaws(iteration, whole)[mine] if self.yaw else None
        return self.motion.windows(slices, self.length, self.body, yaw=yaw)

    def close(self) -> None:
        """Stop the thread; a batch that it is making is finished and forgotten."""
        with self._lock:
            worker, self._worker, self._ahead = self._worker, None, None
        if worker is not None:
            worker.shutdown(wait=True, cancel_futures=True)
