"""Tensors in safetensors files: to bytes for `mgrpo.storage` to write, and back with a checksum."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save

from mgrpo.errors import InputError
from mgrpo.storage import checksum, read_bytes


def tensors_to_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The content of a safetensors file. Values and dtypes are kept exactly; shared memory is stored twice."""
    storable: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        # safetensors refuses views of one storage, such as tied weights
        if storage.data_ptr() in seen or storage.nbytes() != plain.numel() * plain.element_size():
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        storable[name] = plain
    return safetensors_save(storable, metadata={"format": "pt"})


def read_tensors(path: Path, what: str, expected_checksum: str | None = None) -> dict[str, torch.Tensor]:
    """Read a safetensors file to CPU tensors.

    Raises `InputError` when it is missing, truncated, not a safetensors file, or differs from `expected_checksum`.
    """
    data = read_bytes(path, what)
    advice = "Use another checkpoint of the run, or copy the file again from where it came."
    try:
        tensors = safetensors_load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(
            f"{what} is damaged: {path} ({len(data)} bytes) is not a whole safetensors file ({error}). {advice}"
        ) from error
    if expected_checksum is not None and checksum(data) != expected_checksum:
        raise InputError(f"{what} is damaged: the content of {path} differs from what was saved (checksum). {advice}")
    return tensors
