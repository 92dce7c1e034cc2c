"""Where to compute."""

from __future__ import annotations

import torch

from mgrpo.errors import InputError


def resolve_device(name: str, *, option: str = "--device") -> torch.device:
    """`auto` is the first CUDA device where there is one, else the CPU. Raises InputError, which calls the option
    ``option``, for a device that isn't there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"{option} must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index is not None):
        raise InputError(f"{option} must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"{option} {name}: this torch ({torch.__version__}) finds no CUDA device; use {option} cpu, or see mgrpo "
            "doctor"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"{option} {name}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0; use one of them"
        )
    return device
