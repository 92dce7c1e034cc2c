"""Options of `mgrpo evaluate` under a protocol: what it fixes is filled in, and what contradicts it is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mgrpo.errors import InputError
from mgrpo.eval.protocols import PROTOCOLS, Protocol

if TYPE_CHECKING:
    from .evaluate import EvaluateConfig

_USUAL: dict[str, Any] = {"length": 32, "seeds": (0,), "samples": 1}
"""What an option means that was left open (0, or no numbers) without a protocol."""


def chosen_protocol(config: EvaluateConfig) -> Protocol:
    """The protocol that the options name, which there must be."""
    assert config.protocol is not None
    return PROTOCOLS[config.protocol]


def settle(config: EvaluateConfig) -> None:
    """Fill in what was left open, while ``config`` is being made: afterwards it says what will be done.

    Raises InputError naming the option that contradicts the protocol, and for one that can't be honoured.
    """
    if config.protocol is None:
        for name, value in _USUAL.items():
            if not getattr(config, name):
                object.__setattr__(config, name, value)
    else:
        _apply(config, chosen_protocol(config))
    if config.split and config.part != _defaults(config)["part"]:
        raise InputError(_two_parts(config))
    if config.published_data != "amass" and (config.protocol is None or chosen_protocol(config).table != "paper"):
        raise InputError(
            f"--published-data {config.published_data}: only --protocol paper has published numbers on it; leave it out"
        )


def _fixed(protocol: Protocol, length: int) -> dict[str, Any]:
    """What a protocol fixes, by name of the option."""
    return {
        "length": length,
        "stride": length if protocol.slices == "every" else 0,
        "slices": "deterministic" if protocol.slices == "deterministic" else "stride",
        "short_clips": "drop",
        "mirrored": protocol.mirrored,
        "seeds": protocol.seeds,
        "samples": protocol.samples,
        "sampler": protocol.sampler,
        "stitching": protocol.stitching,
        "family": protocol.family,
        "title": None,
    }


def _apply(config: EvaluateConfig, protocol: Protocol) -> None:
    """Put the protocol's values into options that have their default; refuse every other value that differs."""
    length = config.length or protocol.lengths[0]
    if length not in protocol.lengths:
        allowed = " or ".join(map(str, protocol.lengths))
        raise InputError(_contradiction("length", config.length, allowed, protocol))
    for name, default in _defaults(config).items():
        wanted, given = _fixed(protocol, length).get(name), getattr(config, name)
        if wanted is None:
            continue
        if dataclasses.is_dataclass(wanted):
            for option, value, inner_default, inner in _inner(wanted, given, default):
                if inner not in (value, inner_default):
                    raise InputError(_contradiction(option, inner, value, protocol))
        elif given not in (wanted, default):
            raise InputError(_contradiction(name, given, wanted, protocol))
        object.__setattr__(config, name, wanted)
    if config.title == _defaults(config)["title"]:
        object.__setattr__(config, "title", protocol.title)


def _defaults(config: EvaluateConfig) -> dict[str, Any]:
    """Defaults of all options but the required ones."""
    found = {}
    for field in dataclasses.fields(config):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


def _inner(wanted: Any, given: Any, default: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """Name, wanted value, default and given value of each option of a nested group, such as the sampler's."""
    for field in dataclasses.fields(wanted):
        yield field.name, getattr(wanted, field.name), getattr(default, field.name), getattr(given, field.name)


def refuse_contradictions(config: EvaluateConfig, command: Sequence[str]) -> None:
    """Refuse options that were written out with their usual value, although the protocol fixes another one: nothing
    that was asked for is silently replaced.

    Raises InputError naming the option.
    """
    written = _written(command)
    if written.get("published") == "True" and (config.protocol is None or chosen_protocol(config).table is None):
        which = "without --protocol" if config.protocol is None else f"with --protocol {config.protocol}"
        raise InputError(f"--published: {which} there are no published numbers with the same definitions; leave it out")
    if config.split and "part" in written:
        raise InputError(_two_parts(config))
    if config.protocol is None:
        return
    protocol = chosen_protocol(config)
    defaults = _defaults(config)
    for name, wanted in _fixed(protocol, config.length).items():
        if wanted is None:
            continue
        pairs = (
            [(option, value, default) for option, value, default, _ in _inner(wanted, defaults[name], defaults[name])]
            if dataclasses.is_dataclass(wanted)
            else [(name, wanted, defaults[name])]
        )
        for option, value, default in pairs:
            # 0 and none mean "the protocol's" where that is the default
            if default and option in written and written[option] == str(default) and default != value:
                raise InputError(_contradiction(option, default, value, protocol))
            if default is False and written.get(option) == "False" and value is True:
                raise InputError(_contradiction(option, default, value, protocol))


def _two_parts(config: EvaluateConfig) -> str:
    return (
        f"--split {config.split} and --part {config.part} both say which motion to evaluate on; leave one of them out "
        "(--split names subsets of an HDF5 file, --part what training kept for it)"
    )


def _written(command: Sequence[str]) -> dict[str, str]:
    """Options that a command line names, with the text of the first value (``True`` and ``False`` for switches)."""
    found = {}
    words = list(command)
    for number, word in enumerate(words):
        if not word.startswith("--") or len(word) == 2:
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        following = words[number + 1] if number + 1 < len(words) else "--"
        if equals:
            found[name] = value
        elif not following.startswith("--"):
            found[name] = following
        elif name.startswith("no_"):
            found[name[3:]] = "False"
        else:
            found[name] = "True"
    return found


def _contradiction(option: str, given: Any, wanted: Any, protocol: Protocol) -> str:
    flag = f"--{option.replace('_', '-')}"
    if isinstance(given, bool):
        asked, fixed = (f"--no-{flag[2:]}", flag) if not given else (flag, f"--no-{flag[2:]}")
    else:
        asked, fixed = f"{flag} {_text(given)}", f"{flag} {_text(wanted)}"
    return (
        f"{asked} contradicts --protocol {protocol.name}, which has {fixed}; leave the option out, or evaluate without "
        "--protocol"
    )


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
