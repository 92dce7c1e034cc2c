"""Options of `mgrpo evaluate`, and what a protocol makes of them: what it fixes is filled in, and what contradicts it
is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mgrpo.diffusion.config import SamplerConfig, StitchingConfig
from mgrpo.errors import InputError
from mgrpo.eval.protocols import PROTOCOLS, Protocol, ProtocolName
from mgrpo.eval.published import Dataset
from mgrpo.execution.seeding import require_seed
from mgrpo.guidance import Optimisation

Part = Literal["held_out", "validation", "post_training", "train", "all"]


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure one or more models on the same windows, with the same sampler and the same noise.

    The first model is what the others are compared with, window by window. With --out, every finished piece of work is
    kept there: the same command goes on where it was interrupted, and --shard or torchrun share the work.
    """

    checkpoint: tuple[Path, ...]
    """Models: run folders (their best checkpoint), checkpoint folders, RUN/last, EgoAllo checkpoints, or folders
    written by save_pretrained."""
    name: tuple[str, ...] = ()
    """Names of the models in the table, in the same order; default: from the paths."""
    use_ema: bool = False
    """Take the averaged weights of the models (priors trained with --ema), instead of their last ones."""
    protocol: ProtocolName | None = None
    """Fix windows, sampler, seeds, samples and measures: `egoallo` (EgoAllo's evaluation script), `paper` (MotionGRPO's
    Table 1) or `mgrpo` (ours, usual definitions); an option that contradicts it is an error. Without one, the options
    below decide."""
    motion: str = "demo"
    """Motion: `demo` (ships with the package), a pack or clip npz, a folder of them, or an HDF5 file in EgoAllo's
    layout."""
    body: str = "default"
    """Body model: `default` (ships with the package), `smplh` (searched for), or the path of an SMPL-H npz."""
    part: Part = "held_out"
    """Which clips: those kept out of training, those used to choose settings, those that GRPO alone trained on, those
    that the prior trained on, or all."""
    validation: tuple[str, ...] = ()
    """Clip names (or patterns such as walk_*) of the validation part, if training named them."""
    held_out: tuple[str, ...] = ()
    """Clip names (or patterns) of the held-out part, if training named them."""
    post_training: tuple[str, ...] = ()
    """Clip names (or patterns) that GRPO alone trained on, if training named them."""
    length: int = 0
    """Frames in a window, at 30 per second; 0: the protocol's, otherwise 32."""
    stride: int = 0
    """Frames between the starts of windows; 0: the protocol's, otherwise half a window."""
    short_clips: Literal["error", "drop"] = "error"
    """Clips shorter than a window (one frame more than the length): refuse them, or leave them out."""
    mirrored: bool = False
    """Also evaluate on the mirror images of the clips."""
    split: str = ""
    """HDF5: subsets to evaluate on instead of a part, joined by +: train, val, test, test_humor (EgoAllo's splits),
    all, or names of folders. Empty: the part; held-out is test."""
    slices: Literal["stride", "deterministic"] = "stride"
    """HDF5: windows at every stride, or EgoAllo's fixed slices, of which its published numbers are the mean."""
    file_list: str = ""
    """HDF5: text file with the names of the sequences to use. Empty: NAME_files.txt beside NAME.hdf5 where there is
    one; `none`: every sequence of the file."""
    seeds: tuple[int, ...] = ()
    """Seeds of the noise; every window is sampled with each. None: the protocol's, otherwise 0."""
    samples: int = 0
    """Samples for each window and seed; 2 or more also give diversity and the mean of the samples. 0: the protocol's,
    otherwise 1."""
    sampler: Annotated[SamplerConfig, tyro.conf.arg(name="")] = field(default_factory=SamplerConfig)
    stitching: Annotated[StitchingConfig, tyro.conf.arg(name="")] = field(default_factory=StitchingConfig)
    guidance: Optimisation = "off"
    """Optimisation of the samples: `off`; `post`, after sampling (published rows with ℵ); or `inner`, in every sampling
    step as well."""
    perceptual: Path | None = None
    """Run folder, checkpoint or save_pretrained folder of a perceptual model; adds its score and accuracy."""
    family: Literal["standard", "paper", "all"] = "standard"
    """Measures in the table: the usual definitions, those of the published tables, or both."""
    format: Literal["table", "markdown", "latex", "csv", "json"] = "table"
    """What to print on standard output."""
    out: Path | None = None
    """Folder for evaluation.md, .tex, .csv, .json and evaluation_windows.csv (every single value). It also keeps what
    is finished: the same command goes on there, another evaluation is refused."""
    shard: str | None = None
    """Do the i-th of n shares of the work, such as 2/3; needs --out, the same for all. Whoever finishes last writes the
    tables. torchrun shares by itself."""
    published: bool = True
    """Show published numbers above ours, where the protocol has the same definitions."""
    published_data: Dataset = "amass"
    """Which data set's published numbers: amass, or rich (protocol paper)."""
    title: str = "Evaluation"
    """Heading of the table."""
    windows_per_chunk: int = 0
    """Windows sampled at a time, to bound the memory; 0: chosen from their length. Another number rounds differently in
    the last digits."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 ..."""

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise InputError("--checkpoint needs at least one run folder or checkpoint")
        if self.name and len(self.name) != len(self.checkpoint):
            raise InputError(
                f"--name must name every model: {len(self.checkpoint)} checkpoints, {len(self.name)} names"
            )
        if len(set(self.name)) != len(self.name):
            raise InputError(f"--name must differ between models, got {', '.join(self.name)}")
        settle(self)
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise InputError(f"--seeds must be different whole numbers from 0, got {' '.join(map(str, self.seeds))}")
        require_seed(max(self.seeds), "--seeds")
        for option, least in (("length", 4), ("stride", 0), ("samples", 0), ("windows_per_chunk", 0)):
            if getattr(self, option) < least:
                raise InputError(f"--{option.replace('_', '-')} must be at least {least}, got {getattr(self, option)}")


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
    for one in dataclasses.fields(config):
        if one.default is not dataclasses.MISSING:
            found[one.name] = one.default
        elif one.default_factory is not dataclasses.MISSING:
            found[one.name] = one.default_factory()
    return found


def _inner(wanted: Any, given: Any, default: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """Name, wanted value, default and given value of each option of a nested group, such as the sampler's."""
    for one in dataclasses.fields(wanted):
        yield one.name, getattr(wanted, one.name), getattr(default, one.name), getattr(given, one.name)


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
