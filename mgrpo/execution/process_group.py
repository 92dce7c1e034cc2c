"""torch's process group, for the time of a block, and gone after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist


@contextmanager
def process_group(backend: str, **options: Any) -> Iterator[None]:
    """Join the other processes, and leave them at the end of the block: no thread of the group runs on after it.

    ``torch.distributed.nn`` is imported first because its functions keep, as defaults of their arguments, whichever
    group exists when it is first imported (``optimizer.step`` imports it, through ``torch._dynamo``). A group that
    something keeps is destroyed in name only: its threads live until the interpreter ends, and one that lets go of a
    tensor just then ends the process with "terminate called without an active exception".

    Args:
        backend: as for ``dist.init_process_group``, which takes ``options`` too and says what it raises.
    """
    import torch.distributed.nn  # noqa: F401

    dist.init_process_group(backend, **options)
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
