"""Batches made in the background while the one before is learned from."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

BatchT = TypeVar("BatchT")


def batches(draw: Callable[[int], BatchT], start: int, end: int, *, ahead: int) -> Iterator[tuple[int, BatchT]]:
    """``(iteration, draw(iteration))`` for iterations ``start`` to ``end - 1``.

    With ``ahead`` above 0 a thread draws up to that many batches in advance; ``draw`` must be a function of its
    argument alone, so that this changes nothing. Its errors come up here, at the iteration that they belong to. Close
    the iterator (or let it run out) to end the thread.
    """
    if ahead < 1:
        for iteration in range(start, end):
            yield iteration, draw(iteration)
        return
    thread = ThreadPoolExecutor(1, thread_name_prefix="mgrpo-batches")
    waiting: deque[Future[BatchT]] = deque()
    try:
        for iteration in range(start, end):
            while len(waiting) <= ahead and iteration + len(waiting) < end:
                waiting.append(thread.submit(draw, iteration + len(waiting)))
            yield iteration, waiting.popleft().result()
    finally:
        thread.shutdown(wait=True, cancel_futures=True)
