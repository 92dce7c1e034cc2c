"""Several processes that train one model: who they are, which part of a batch is whose, and sums over all of them.

The processes are started by ``torchrun`` or ``accelerate launch``, which say in the environment who each one is
(``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR``, ``MASTER_PORT``). Without these there is one process, and
everything here does nothing. Gradients are summed once per optimiser step, after the last part of a batch: the loops
call the network in several ways and several times before they step, so there is no wrapper around it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mgrpo.errors import InputError, MgrpoError
from mgrpo.terminal.progress import silence

from .device import resolve_device
from .process_group import process_group

ResultT = TypeVar("ResultT")

_BUCKET = 1 << 24
"""Numbers that are summed over the processes at a time."""


class ProcessLostError(MgrpoError):
    """Another process of the training ended, or can't be reached any more."""


@dataclass(frozen=True)
class Processes:
    """The processes of one training, seen from one of them. Make it with :func:`open_processes`."""

    rank: int
    """Number of this process, from 0."""
    count: int
    """How many there are."""
    device: torch.device
    """Where this one computes."""

    @property
    def main(self) -> bool:
        """Whether this is process 0, which alone writes logs and checkpoints."""
        return self.rank == 0

    def parts(self, batch: int, accumulate: int = 1) -> list[tuple[int, int]]:
        """This process's parts of a batch, one for each micro-batch: (first position, number of windows).

        Raises:
            InputError: the batch can't be divided evenly.
        """
        size, rest = divmod(batch, self.count * accumulate)
        if rest or not size:
            share = f"{self.count} processes" if accumulate == 1 else f"{self.count} x {accumulate}"
            hint = "" if accumulate == 1 else " (processes x --accumulate)"
            raise InputError(
                f"--batch-size must be a multiple of {share}{hint}, got {batch}: every part of a batch must have the "
                "same number of windows"
            )
        return [((self.rank * accumulate + part) * size, size) for part in range(accumulate)]

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace ``tensor`` by its sum over the processes, the same on all of them; returns it."""
        if self.count > 1:
            self._call(lambda: dist.all_reduce(tensor))
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """A tensor of every process, in their order; all must have the same shape."""
        if self.count == 1:
            return [tensor]
        gathered = [torch.empty_like(tensor) for _ in range(self.count)]
        self._call(lambda: dist.all_gather(gathered, tensor.contiguous()))
        return gathered

    def gather_objects(self, value: ResultT) -> list[ResultT]:
        """A plain value of every process, in their order."""
        if self.count == 1:
            return [value]
        gathered: list[Any] = [None] * self.count
        self._call(lambda: dist.all_gather_object(gathered, value))
        return gathered

    def sum_gradients_(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes. A parameter without one counts as zero."""
        if self.count == 1:
            return
        gradients = []
        for parameter in parameters:
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = self.sum_(torch.cat([gradient.reshape(-1) for gradient in bucket]))
            sizes = [gradient.numel() for gradient in bucket]
            for gradient, summed in zip(bucket, flat.split(sizes), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def copy_from_main_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of process 0."""
        if self.count > 1:
            for tensor in tensors:
                self._call(lambda tensor=tensor: dist.broadcast(tensor.detach(), src=0))

    def largest(self, number: int) -> int:
        """The largest of a whole number over the processes: what any of them saw, all of them know."""
        if self.count == 1:
            return number
        value = torch.tensor(number, dtype=torch.int64)
        self._call(lambda: dist.all_reduce(value, op=dist.ReduceOp.MAX))
        return int(value)

    def main_only(self, function: Callable[[], ResultT]) -> ResultT | None:
        """Call ``function`` in process 0, while the others wait; its result there, None elsewhere. When it raises, all
        processes end: process 0 with the error, the others silently."""
        result, error = None, None
        if self.main:
            try:
                result = function()
            except BaseException as raised:
                error = raised
        failed = self.largest(int(error is not None))
        if error is not None:
            raise error
        if failed:
            raise SystemExit(2)
        return result

    def from_main(self, function: Callable[[], ResultT]) -> ResultT:
        """Like :meth:`main_only`, with the result given to all processes."""
        result = self.main_only(function)
        if self.count > 1:
            holder: list[Any] = [result]
            self._call(lambda: dist.broadcast_object_list(holder, src=0, device=torch.device("cpu")))
            result = holder[0]
        return result  # type: ignore[return-value]

    def fail(self, error: Exception) -> NoReturn:
        """End all processes over something that all of them found: only process 0 tells it."""
        if self.main:
            raise error
        raise SystemExit(2)

    def _call(self, collective: Callable[[], Any]) -> None:
        try:
            collective()
        except RuntimeError as error:  # dist.DistError is one
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ProcessLostError(
                f"process {self.rank} of {self.count}: lost the others ({first}). One of them has probably ended; its "
                "own message is above or in the launcher's report. Checkpoints are whole: continue with --resume."
            ) from error


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, in groups of one dtype and at most ``_BUCKET`` numbers (or one larger tensor)."""
    group: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if group and (size + tensor.numel() > _BUCKET or tensor.dtype != group[0].dtype):
            yield group
            group, size = [], 0
        group.append(tensor)
        size += tensor.numel()
    if group:
        yield group


@contextmanager
def open_processes(device: str) -> Iterator[Processes]:
    """Join the processes that the launcher started, for the time of the block; one process where there is no launcher.

    Args:
        device: as for :func:`mgrpo.execution.device.resolve_device`; with several processes ``auto`` and ``cuda`` give
            each process of a machine its own GPU.

    Raises:
        InputError: an incomplete environment, a device that can't be shared out.
        ProcessLostError: the other processes don't answer.
    """
    rank, count, local_rank = _environment()
    if count == 1:
        yield Processes(0, 1, resolve_device(device))
        return
    if not dist.is_available():
        raise InputError(
            f"WORLD_SIZE is {count}, but this torch ({torch.__version__}) was built without torch.distributed; install "
            "another build, or train in one process"
        )
    chosen = _own_device(device, local_rank)
    with ExitStack() as group:
        if not dist.is_initialized():
            if chosen.type == "cuda":
                torch.cuda.set_device(chosen)
            backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" and dist.is_nccl_available() else "gloo"
            try:
                group.enter_context(process_group(backend, rank=rank, world_size=count))
            except (RuntimeError, ValueError) as error:
                raise ProcessLostError(
                    f"process {rank} of {count}: could not join the others at {os.environ.get('MASTER_ADDR')}:"
                    f"{os.environ.get('MASTER_PORT')} ({error}). Start all of them with one torchrun or accelerate "
                    "launch."
                ) from error
        with silence(rank != 0):
            yield Processes(rank, count, chosen)


def _environment() -> tuple[int, int, int]:
    """(rank, number of processes, rank on this machine) from the launcher's variables."""
    count = _whole_number("WORLD_SIZE", os.environ.get("WORLD_SIZE", "1"))
    if count <= 1:
        return 0, 1, 0
    given = {
        "RANK": os.environ.get("RANK"),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR"),
        "MASTER_PORT": os.environ.get("MASTER_PORT"),
    }
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {count}, but {', '.join(missing)} is not set: start the processes with torchrun or "
            "accelerate launch, or unset WORLD_SIZE"
        )
    rank = _whole_number("RANK", given["RANK"] or "")
    if rank >= count:
        raise InputError(f"RANK must be below WORLD_SIZE ({count}), got {rank}")
    return rank, count, _whole_number("LOCAL_RANK", os.environ.get("LOCAL_RANK", given["RANK"] or ""))


def _whole_number(name: str, text: str) -> int:
    if not text.strip().isdigit():
        raise InputError(
            f"the environment variable {name} must be a whole number, as torchrun sets it; got {text!r}. Unset it to "
            "train in one process"
        )
    return int(text)


def _own_device(name: str, local_rank: int) -> torch.device:
    """The device of one of several processes."""
    device = resolve_device(name)
    if device.type != "cuda":
        return device
    if device.index is not None:
        raise InputError(
            f"--device {name} names one GPU for several processes; use --device cuda, which gives each its own"
        )
    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"process {local_rank} of this machine has no GPU of its own: there are {torch.cuda.device_count()}. Start "
            "fewer processes, or use --device cpu"
        )
    return torch.device("cuda", local_rank)
