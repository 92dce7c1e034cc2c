"""Geometry keeps out of autocast: the references multiply matrices in the dtype of their inputs, as all backends do.

``torch.autocast`` rounds what enters a matrix product of torch to bfloat16 or float16. The kernels multiply for
themselves, but a reference under a network's autocast would lose centimetres without a word.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_DEVICES = ("cpu", "cuda", "mps", "xpu")

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def without_autocast(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """``function`` with autocast off while it runs, on every device."""

    @functools.wraps(function)
    def call(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    return call(*arguments, **options)
        return function(*arguments, **options)

    return call
