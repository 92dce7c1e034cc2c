"""The names that a pickle may use, and what answers where numpy, joblib and Python write a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .arrays import Array, Dtype, JoblibArray, numeric_array
from .refusal import Name, Refused, checked_key, short


def _reconstruct(arguments: tuple) -> Array:
    if len(arguments) != 3 or not isinstance(arguments[0], Name) or arguments[0].text != "numpy.ndarray":
        raise Refused("it has an array of a class other than numpy.ndarray")
    return Array()


def _frombuffer(arguments: tuple) -> np.ndarray:
    if len(arguments) != 4 or not isinstance(arguments[1], Dtype) or arguments[3] not in ("C", "F"):
        raise Refused("it has an array that is not made as numpy makes it")
    data, dtype, shape, order = arguments
    return numeric_array(data, dtype.dtype, shape, order == "F")


def _scalar(arguments: tuple) -> Any:
    if len(arguments) != 2 or not isinstance(arguments[0], Dtype) or arguments[0].dtype.hasobject:
        raise Refused("it has a number that is not made as numpy makes it")
    return numeric_array(arguments[1], arguments[0].dtype, (), False).item()


def _dtype(arguments: tuple) -> Dtype:
    if not 1 <= len(arguments) <= 3:
        raise Refused("it has a dtype that is not made as numpy makes it")
    return Dtype(arguments[0])


def _encode(arguments: tuple) -> bytes:
    """How protocols 0 to 2 write bytes."""
    if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] not in ("latin1", "latin-1"):
        raise Refused("it has bytes that are not made as Python makes them")
    try:
        return arguments[0].encode("latin-1")
    except UnicodeEncodeError as error:
        raise Refused("it has bytes that are not made as Python makes them") from error


def _empty_bytes(arguments: tuple) -> bytes:
    """How protocols 0 to 2 write empty bytes."""
    if arguments:
        raise Refused("it has bytes that are not made as Python makes them")
    return b""


def _plain_dict(arguments: tuple) -> dict:
    """An ordered or default dictionary; its entries follow. The default's maker is dropped."""
    if len(arguments) > 1 or not all(argument is None or isinstance(argument, Name) for argument in arguments):
        raise Refused("it has a dictionary that is not made as Python makes it")
    return {}


def _set(arguments: tuple) -> set:
    if len(arguments) != 1 or not isinstance(arguments[0], list):
        raise Refused("it has a set that is not made as Python makes it")
    return {checked_key(value) for value in arguments[0]}


def _joblib_array(arguments: tuple) -> JoblibArray:
    if arguments:
        raise Refused("it has an array that is not made as joblib makes it")
    return JoblibArray()


CALLS: dict[str, Callable[[tuple], Any]] = {
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _frombuffer,
    "numpy._core.numeric._frombuffer": _frombuffer,
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,
    "collections.OrderedDict": _plain_dict,
    "collections.defaultdict": _plain_dict,
    "builtins.bytes": _empty_bytes,
    "__builtin__.bytes": _empty_bytes,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "joblib.numpy_pickle.NumpyArrayWrapper": _joblib_array,
}
"""Every name that may be called, and what answers for it."""

ARGUMENTS = frozenset(
    {"numpy.ndarray"}
    | {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("dict", "list", "int", "float", "str")}
)
"""Names that may be handed to those calls, and nothing else may be done with."""

_TORCH = ("torch.", "torch_")


def named(module: Any, name: Any) -> Name:
    """What a file names, if it is among the few that are answered or passed on; anything else is refused by name."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise Refused("it names something by what is not a name")
    text = f"{module}.{name}"
    if text in CALLS or text in ARGUMENTS:
        return Name(text)
    if text.startswith(_TORCH):
        raise Refused(
            f"it holds torch objects ('{short(Name(text))}'); turn them into numpy arrays where it was written: "
            "tensor.cpu().numpy()"
        )
    raise Refused(
        f"it asks for '{short(Name(text))}', which is not a number, text, list, dictionary or numpy array; "
        "a pickle can name any function to run, so it was not read. Save plain arrays instead (np.savez)"
    )
