"""Weights of networks from safetensors files that others may have written: names, shapes and types are compared with
the network's before a value is read or memory for it is taken."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from mgrpo.errors import InputError

ModelT = TypeVar("ModelT", bound=nn.Module)

WRAPPERS = ("module", "_orig_mod")
"""Words that wrappers put into parameter names: data parallelism and torch.compile."""

READABLE = ("F32", "F16", "BF16", "F64")
"""Types of numbers that weights may have in a file; a network takes them as its own type, float32."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Endings of weights as pickles, which are never read: a pickle can run code."""


@dataclass(frozen=True)
class TensorEntry:
    """What a file's header says of a tensor."""

    shape: tuple[int, ...]
    dtype: str
    """safetensors' name of the type: F32, BF16 ..."""

    @property
    def numel(self) -> int:
        """Count of numbers."""
        return math.prod(self.shape)


def check_weights_file(path: Path, what: str) -> None:
    """Raise :class:`InputError` unless ``path`` is a file that may be safetensors; ``what`` names it."""
    if path.suffix.lower() in PICKLES:
        raise InputError(
            f"{what}: {path} is a pickle by its name. Pickles are not read because they can run code; give the "
            "model.safetensors, or convert the weights where you trust them (safetensors.torch.save_file)."
        )
    if path.is_dir():
        raise InputError(f"{what}: {path} is a folder; expected a safetensors file there.")
    if not path.is_file():
        raise InputError(f"{what} not found: {path} does not exist, or is not a regular file.")


def read_header(path: Path, what: str) -> dict[str, TensorEntry]:
    """Names, shapes and types of the tensors in a safetensors file, in the file's order; no value is read.

    Raises:
        InputError: not a file, a pickle by its name, cut off, or a header that doesn't describe the file (sizes that
            don't add up to the file's length, shapes beyond any memory).
    """
    check_weights_file(path, what)
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            slices = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
            return {name: TensorEntry(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"{what} is damaged or not what it should be: {path} ({path.stat().st_size:,} bytes) is not a whole "
            f"safetensors file ({error}). Copy or download it again."
        ) from error


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Parameter names without what wrappers put in front of or between the words: given name to plain name.

    ``_orig_mod.module.encoder_layers.0.mlp0.weight`` becomes ``encoder_layers.0.mlp0.weight``.
    """
    return {name: ".".join(word for word in name.split(".") if word not in WRAPPERS) for name in names}


def listed(items: list[str], limit: int = 6) -> str:
    """``a, b, c and 4 more``: at most ``limit`` of them by name."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def tensor_problems(
    wanted: Mapping[str, tuple[int, ...]],
    given: Mapping[str, tuple[int, ...]],
    *,
    optional: Callable[[str], bool] = lambda name: False,
    limit: int = 6,
) -> list[str]:
    """What keeps tensors of the shapes ``given`` from being those of a network with the shapes ``wanted``: missing
    ones (unless ``optional``), unknown ones, other shapes; at most ``limit`` of each by name. Empty when they fit."""
    missing = [name for name in wanted if name not in given and not optional(name)]
    unexpected = sorted(name for name in given if name not in wanted)  # safetensors keeps no order
    shapes = [
        f"{name} is {tuple(given[name])} in the file, {tuple(wanted[name])} in the model"
        for name in wanted
        if name in given and tuple(given[name]) != tuple(wanted[name])
    ]
    problems = [f"missing from the file: {listed(missing, limit)}"] if missing else []
    problems += [f"unknown to the model: {listed(unexpected, limit)}"] if unexpected else []
    problems += [f"of another shape: {listed(shapes, limit)}"] if shapes else []
    return problems


def refuse_non_finite(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise InputError naming the weights that hold NaN or infinity: everything computed with them would too."""
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise InputError(
            f"{where} holds weights that are not finite (NaN or infinite): {listed(bad)}. The training that wrote it "
            "had diverged; use an earlier checkpoint."
        )


def load_network(
    build: Callable[[], ModelT],
    config: Any,
    path: Path,
    *,
    what: str,
    layer_counts: tuple[str, ...] = (),
    hints: Callable[[Mapping[str, tuple[int, ...]]], list[str]] = lambda shapes: [],
) -> ModelT:
    """Build a network and fill it from a safetensors file, strictly: every tensor of the network is in the file and the
    other way round, with the same shape. Prefixes of wrappers are taken off; rotary frequencies may be missing.

    Args:
        build: makes the network; called once without memory for its numbers, and again when everything fits.
        config: the dataclass that ``build`` goes by. Whole numbers in it that the file can't be large enough for are
            refused before anything is built.
        path: the safetensors file; float32, float16, bfloat16 or float64.
        what: how messages name the weights.
        layer_counts: fields of ``config`` that count layers.
        hints: from the file's shapes, what the configuration probably should be; added to the message of a mismatch.

    Returns:
        The network on the CPU in evaluation mode. Global random state is as before.

    Raises:
        InputError: the file is damaged, or doesn't fit; the text names the tensors.
    """
    header = read_header(path, what)
    names = plain_names(header)
    entries: dict[str, TensorEntry] = {names[name]: entry for name, entry in header.items()}
    shapes = {name: entry.shape for name, entry in entries.items()}
    _refuse_impossible_sizes(config, entries, layer_counts, what)

    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                wanted = {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
        except InputError:
            raise
        except (RuntimeError, OverflowError, ValueError, TypeError) as error:
            raise InputError(f"{what}: no network can be built from its configuration ({error}).") from error
        problems = _twice(names)
        problems += tensor_problems(wanted, shapes, optional=_is_rotary, limit=12)
        strange = [f"{name} ({entry.dtype})" for name, entry in entries.items() if entry.dtype not in READABLE]
        problems += [f"not of a type that weights have ({', '.join(READABLE)}): {listed(strange)}"] if strange else []
        if problems:
            probably = hints(shapes)
            advice = f" The tensors say: {'; '.join(probably)}." if probably else ""
            raise InputError(
                f"{what}: {path} does not fit this configuration: {'; '.join(problems)}.{advice} "
                "Use the configuration that was saved with these weights."
            )
        model = build()

    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            tensors = {names[name]: stream.get_tensor(name) for name in header}
        refuse_non_finite(tensors, f"{what}: {path}")
        model.load_state_dict(tensors, strict=True)
    except (RuntimeError, SafetensorError, OSError) as error:
        raise InputError(f"{what}: {path} can't be loaded: {error}") from error
    return model.eval()


def _is_rotary(name: str) -> bool:
    return name.endswith("rotary_emb.freqs")


def _twice(names: Mapping[str, str]) -> list[str]:
    """A problem if two names of a file are the same without their wrappers' words."""
    twice = sorted(name for name, count in Counter(names.values()).items() if count > 1)
    return [f"in the file twice, with and without a wrapper's prefix: {listed(twice)}"] if twice else []


def _refuse_impossible_sizes(
    config: Any, entries: Mapping[str, TensorEntry], layer_counts: tuple[str, ...], what: str
) -> None:
    """A network has at least as many numbers as it is wide, and as many tensors as layers: larger whole numbers in a
    configuration are mistakes (or malice), and are refused without trying."""
    numbers = sum(entry.numel for entry in entries.values())
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        limit, unit = (len(entries), "tensors") if field.name in layer_counts else (numbers, "numbers")
        if value > limit:
            raise InputError(
                f"{what}: its configuration says {field.name} = {value}, but the file of weights has only {limit:,} "
                f"{unit}. The two don't belong together, or one of them is damaged."
            )
