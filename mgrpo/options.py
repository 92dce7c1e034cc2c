"""Options of commands: what they are called where the user types them, what they may be, and which have no effect.

A group of options (a frozen dataclass such as the sampler's) is a part of several commands and can't know what it is
called there. The command line says which command is at work (:func:`command_options`); :func:`option` then gives the
name as typed, so that one check beside the field serves every command.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from mgrpo.errors import InputError

MOST_COUNT = 2**32 - 1
"""Largest number of iterations or conditions: the noise is keyed by 32 bits of each."""

MOST_MEMBERS = 2**16
"""Largest number of samples of one condition: the noise is keyed by 16 bits of the member."""

MOST_NUMBER = 2**31 - 1
"""Largest number of whatever is counted in memory."""

_command: type | None = None


@runtime_checkable
class HasUnusedOptions(Protocol):
    """A configuration of which some values make other options meaningless."""

    def unused_options(self) -> Mapping[str, str]:
        """Options without effect and why: the name of a field (or of a group, or ``group.field``) and what follows
        "has no effect", such as "with --kernel ode"."""
        ...


@contextmanager
def command_options(config_class: type) -> Iterator[None]:
    """Within the block, options are named as they are in the command whose configuration is ``config_class``."""
    global _command
    before, _command = _command, config_class
    try:
        yield
    finally:
        _command = before


def option(owner: Any, name: str) -> str:
    """Option ``name`` (a field, or ``group.field``) of ``owner``, a configuration or a group of options, as the user
    types it. A group that a command has several times gives all names; outside a command the prefix is not known."""
    return " or ".join(f"--{prefix}{_typed(name)}" for prefix in _prefixes(type(owner)) or [""])


def require(
    owner: Any,
    *names: str,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    infinite: bool = False,
    unit: str = "",
) -> None:
    """Raise InputError for the first of the numbers ``names`` of ``owner`` that is not finite (unless ``infinite``) or
    outside the limits; it tells the limit that was passed, followed by ``unit``."""
    for name in names:
        value = getattr(owner, name)
        if math.isnan(value) or (math.isinf(value) and not infinite):
            wanted = "a number" if infinite else "finite"
        elif above is not None and not value > above:
            wanted = "positive" if above == 0 else f"above {above:g}"
        elif at_least is not None and not value >= at_least:
            wanted = f"at least {at_least}"
        elif at_most is not None and not value <= at_most:
            wanted = f"at most {at_most}"
        elif below is not None and not value < below:
            wanted = f"below {below:g}"
        else:
            continue
        raise InputError(f"{option(owner, name)} must be {wanted}{f' {unit}' if unit else ''}, got {value}")


def refuse_unused(config: Any, words: Sequence[str]) -> None:
    """Raise InputError for the first option among ``words`` (of the command line) that has no effect besides the
    others: nothing that was asked for is silently ignored."""
    written = _written(words)
    for prefix, part in _parts(config, ""):
        if not isinstance(part, HasUnusedOptions):
            continue
        for name, reason in part.unused_options().items():
            full = f"{prefix}{_typed(name)}"
            if found := next((w for w in written if w == full or w.startswith(f"{full}.")), None):
                raise InputError(f"--{found} has no effect {reason}; leave it out")


def _typed(name: str) -> str:
    return name.replace("_", "-")


def _written(words: Sequence[str]) -> list[str]:
    """Names of the options that a command line sets, as in the help: without dashes, values and a switch's "no-"."""
    names = []
    for word in words:
        if word.startswith("--") and len(word) > 2:
            group, dot, last = _typed(word[2:].partition("=")[0]).rpartition(".")
            names.append(f"{group}{dot}{last.removeprefix('no-')}")
    return names


def _groups(config_class: type) -> Iterator[tuple[str, str, type]]:
    """Field, prefix and class of each group of options directly in a configuration."""
    for name, hint in typing.get_type_hints(config_class, include_extras=True).items():
        base = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
        if dataclasses.is_dataclass(base):
            # tyro.conf.arg(name="") puts the group's options among the command's own
            renamed = [
                mark.name for mark in getattr(hint, "__metadata__", ()) if getattr(mark, "name", None) is not None
            ]
            shown = renamed[-1] if renamed else _typed(name)
            yield name, f"{shown}." if shown else "", typing.cast(type, base)


def _prefixes(owner: type) -> list[str]:
    """What stands before the options of ``owner`` in the present command; empty where they are not among its own."""

    def search(config_class: type, before: str) -> Iterator[str]:
        if config_class is owner:
            yield before
        for _, prefix, group in _groups(config_class):
            yield from search(group, before + prefix)

    return [] if _command is None else list(search(_command, ""))


def _parts(config: Any, before: str) -> Iterator[tuple[str, Any]]:
    """A configuration and all its groups, each with what stands before its options."""
    yield before, config
    for name, prefix, _ in _groups(type(config)):
        yield from _parts(getattr(config, name), before + prefix)
