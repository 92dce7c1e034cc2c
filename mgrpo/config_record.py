"""Configurations as plain data: nested frozen dataclasses to dictionaries for YAML and JSON, back, and compared."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from mgrpo.errors import InputError

CLASS_KEY = "class"
"""Key under which `to_plain` notes the name of a dataclass."""

ConfigT = TypeVar("ConfigT")


def to_plain(value: Any) -> Any:
    """Turn a configuration into dictionaries, lists, numbers, text and None, ready for `yaml.safe_dump` and JSON.

    A dataclass becomes a dictionary whose key "class" holds its name; paths and dtypes become text, enum members their
    name, tuples and sets lists. Raises `TypeError` for anything else (a tensor or a function is no setting).
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {CLASS_KEY: type(value).__name__, **fields}
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(to_plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    raise TypeError(f"to_plain(): a configuration holds plain values and dataclasses, got {type(value).__name__}")


def to_yaml(value: Any) -> str:
    """YAML text of `to_plain(value)`, fields in their order of definition."""
    return yaml.safe_dump(to_plain(value), sort_keys=False, default_flow_style=False, allow_unicode=True, width=100)


def from_plain(config_class: type[ConfigT], data: Mapping[str, Any], *, where: str = "configuration") -> ConfigT:
    """Build a (nested) dataclass from what `to_plain` made of it.

    Fields absent from `data` keep their default, so older files stay readable. Raises `InputError` naming `where` and
    the field when a field is unknown, required and missing, or of another type.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: expected the fields of {config_class.__name__}, got {type(data).__name__}")
    stored_class = data.get(CLASS_KEY, config_class.__name__)
    if stored_class != config_class.__name__:
        raise InputError(f"{where}: expected a {config_class.__name__}, got a {stored_class}")
    hints = typing.get_type_hints(config_class)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, config_class)) if field.init}
    unknown = sorted(set(data) - set(fields) - {CLASS_KEY})
    if unknown:
        raise InputError(
            f"{where}: {config_class.__name__} has no field {', '.join(unknown)}. It knows {', '.join(fields)}. "
            "The file may come from another version of mgrpo."
        )
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _from_plain_value(hints[name], data[name], f"{where}, {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{where}: {config_class.__name__} needs the field {name}, which is missing")
    return config_class(**values)


def _from_plain_value(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _from_plain_value(typing.get_args(hint)[0], value, where)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _from_union(typing.get_args(hint), value, where)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise InputError(f"{where}: expected one of {', '.join(map(repr, typing.get_args(hint)))}, got {value!r}")
        return value
    if origin in (tuple, list, Sequence):
        return _from_sequence(hint, origin, value, where)
    if origin in (dict, Mapping):
        value_hint = (typing.get_args(hint) or (Any, Any))[1]
        return {key: _from_plain_value(value_hint, item, f"{where}, {key}") for key, item in dict(value).items()}
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast(type, hint), value, where=where)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        if value not in hint.__members__:
            raise InputError(f"{where}: expected one of {', '.join(hint.__members__)}, got {value!r}")
        return hint[value]
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is torch.dtype and isinstance(getattr(torch, str(value).removeprefix("torch."), None), torch.dtype):
        return getattr(torch, value.removeprefix("torch."))
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint in (None, type(None)) and value is None:
        return None
    if isinstance(hint, type) and isinstance(value, hint) and not (isinstance(value, bool) and hint is int):
        return value
    raise InputError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r}")


def _from_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if isinstance(value, Mapping) and CLASS_KEY in value:
        for option in options:
            if dataclasses.is_dataclass(option) and getattr(option, "__name__", None) == value[CLASS_KEY]:
                return from_plain(typing.cast(type, option), value, where=where)
    failures = []
    for option in options:
        try:
            return _from_plain_value(option, value, where)
        except InputError as error:
            failures.append(str(error))
    raise InputError("; or ".join(failures))


def _from_sequence(hint: Any, origin: Any, value: Any, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{where}: expected a list, got {value!r}")
    inner = typing.get_args(hint)
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        if len(inner) != len(value):
            raise InputError(f"{where}: expected {len(inner)} values, got {len(value)}")
        return tuple(_from_plain_value(kind, item, where) for kind, item in zip(inner, value))
    item_hint = inner[0] if inner else Any
    items = [_from_plain_value(item_hint, item, where) for item in value]
    return items if origin is list else tuple(items)


def with_defaults(stored: Any, config: Any) -> Any:
    """The plain configuration ``stored`` with the fields of the dataclass ``config`` that it doesn't have, at their
    defaults: an older version, which knew no such option, did what the default says. Fields without a default, and
    groups of another class, stay as they are."""
    if not (isinstance(stored, Mapping) and dataclasses.is_dataclass(config) and not isinstance(config, type)):
        return stored
    if stored.get(CLASS_KEY, type(config).__name__) != type(config).__name__:
        return stored
    filled = dict(stored)
    for field in dataclasses.fields(config):
        if field.name in filled:
            filled[field.name] = with_defaults(filled[field.name], getattr(config, field.name))
        elif field.default is not dataclasses.MISSING:
            filled[field.name] = to_plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            filled[field.name] = to_plain(field.default_factory())
    return filled


def differences(old: Any, new: Any, *, may_change: Sequence[str] = ()) -> list[tuple[str, Any, Any]]:
    """List the fields in which two plain configurations differ, as (dotted name, old value, new value).

    A name in `may_change` covers that field and everything below it. A field present on one side only shows as
    the text "(absent)" on the other.
    """
    old_flat, new_flat = dict(_flatten(old)), dict(_flatten(new))
    found = []
    for name in [*old_flat, *(name for name in new_flat if name not in old_flat)]:
        before, after = old_flat.get(name, "(absent)"), new_flat.get(name, "(absent)")
        # NaN is equal to NaN as a setting, though not as a number
        same = before == after or (before != before and after != after)
        if not same and not any(name == free or name.startswith(f"{free}.") for free in may_change):
            found.append((name, before, after))
    return found


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        return [
            pair for key, item in value.items() for pair in _flatten(item, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, value)]
