"""EgoAllo's checkpoints, read and written (facts: section C.4).

<experiment>/
    model_config.yaml                   fields of the network's configuration, under a tag that names a Python class
    checkpoints_<step>/
        model.safetensors               weights, float32; the original adds files of its optimiser, not needed here

The original's reader hands the YAML to a loader that builds Python objects. Here the one tag it needs becomes a plain
mapping, every other tag is refused, and no code of the file's choosing runs.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import yaml
from torch import Tensor, nn

from mgrpo.errors import InputError
from mgrpo.models.denoiser_config import DenoiserConfig
from mgrpo.models.positions import RotaryEmbedding
from mgrpo.models.weights import PICKLES, check_weights_file, listed, load_network, plain_names
from mgrpo.storage import atomic_write_folder, make_folder, read_bytes
from mgrpo.tensor_files import tensors_to_bytes

CONFIG_NAME = "model_config.yaml"
WEIGHTS_NAME = "model.safetensors"

CONFIG_TAG = "tag:yaml.org,2002:python/object:egoallo.network.EgoDenoiserConfig"
"""The tag of the original's configuration class, written ``!!python/object:egoallo.network.EgoDenoiserConfig``."""

_MAX_CONFIG_BYTES = 1 << 16  # the original's is 0.4 kB
_MAX_CONFIG_DEPTH = 16
_SAFE_TAG = "tag:yaml.org,2002:"
_CHECKPOINT = re.compile(r"checkpoints_([0-9]{1,18})")

_logger = logging.getLogger("mgrpo.models")


NetworkT = TypeVar("NetworkT", bound=nn.Module)


class HasDenoiserConfig(Protocol):
    """What is written: a :class:`mgrpo.models.denoiser.Denoiser`."""

    config: DenoiserConfig

    def state_dict(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        ...


@dataclass(frozen=True)
class EgoAlloPaths:
    """Where the parts of a checkpoint are."""

    config: Path
    """The model_config.yaml."""
    weights: Path
    """The model.safetensors."""
    step: int | None
    """Training step, from the folder's name; None where the name has none."""

    @property
    def folder(self) -> Path:
        """The folder of the weights."""
        return self.weights.parent


class _ConfigLoader(yaml.SafeLoader):
    """Plain YAML and the original's one tag; no anchors, so a small text can't become a large structure."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.composer.ComposerError(
                None, None, "anchors and aliases (& and *) don't belong in a model_config.yaml", event.start_mark
            )
        self.depth += 1
        if self.depth > _MAX_CONFIG_DEPTH:
            raise yaml.composer.ComposerError(
                None, None, f"nested deeper than {_MAX_CONFIG_DEPTH} levels", event.start_mark
            )
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_config(self, node: yaml.Node) -> dict[Any, Any]:
        """The mapping below the original's tag."""
        return self.construct_mapping(node, deep=True)  # type: ignore[arg-type]

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        """As SafeLoader, but a key that stands twice is an error: which of the two counts would be chance."""
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = [key for key, count in Counter(keys).items() if count > 1]
            if twice:
                raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} stands twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)  # type: ignore[arg-type]

    def refuse(self, node: yaml.Node) -> Any:
        """Any other tag: an object to build or a function to call."""
        tag = node.tag.replace(_SAFE_TAG, "!!")[:80]
        allowed = CONFIG_TAG.replace(_SAFE_TAG, "!!")
        raise yaml.constructor.ConstructorError(
            None, None, f"the tag {tag} is refused, it could run code; only {allowed} is known", node.start_mark
        )


_ConfigLoader.add_constructor(CONFIG_TAG, _ConfigLoader.construct_config)
_ConfigLoader.add_constructor(None, _ConfigLoader.refuse)


def is_egoallo(path: str | Path) -> bool:
    """Whether ``path`` looks like a checkpoint in EgoAllo's layout, whole or not: see :func:`find_egoallo`."""
    given = Path(path).expanduser().absolute()
    folder = given.parent if given.is_file() else given
    if (folder / CONFIG_NAME).exists():
        return True
    if not (folder / WEIGHTS_NAME).exists():
        return folder.is_dir() and any(_CHECKPOINT.fullmatch(entry.name) for entry in folder.iterdir())
    return (folder.parent / CONFIG_NAME).exists() or bool(_CHECKPOINT.fullmatch(folder.name))


def find_egoallo(path: str | Path) -> EgoAlloPaths:
    """The parts of the checkpoint that a user means by ``path``.

    ``path`` may be the experiment folder (then its newest ``checkpoints_<step>``, and a warning is logged if there are
    several), a ``checkpoints_<step>`` folder in it, a folder that holds configuration and weights, or one of the two
    files.

    Raises:
        InputError: nothing there, a part is missing, weights only as a pickle, or a folder in the place of a file.
    """
    given = Path(path).expanduser().absolute()  # so that "." has a name and a folder above it
    what = "EgoAllo checkpoint"
    if not given.exists():
        raise InputError(f"{what} not found: {given} does not exist. Give the experiment's folder.")
    if given.is_file():
        if given.name != CONFIG_NAME:
            check_weights_file(given, what)
            if given.name != WEIGHTS_NAME:
                raise InputError(f"{what}: expected a folder, {CONFIG_NAME} or {WEIGHTS_NAME}, got the file {given}.")
        given = given.parent
    if not given.is_dir():
        raise InputError(f"{what}: {given} is neither a folder nor a regular file.")
    weights = given / WEIGHTS_NAME
    if not weights.exists():
        weights = _newest(given, what) / WEIGHTS_NAME
    check_weights_file(weights, f"{what}: {WEIGHTS_NAME}")
    configs = [folder / CONFIG_NAME for folder in (weights.parent, weights.parent.parent)]
    config = next((file for file in configs if file.is_file()), None)
    if config is None:
        odd = [file for file in configs if file.exists()]
        raise InputError(
            f"{what}: {odd[0]} is not a regular file."
            if odd
            else f"{what}: {weights} has no {CONFIG_NAME} beside it or one level above. Copy it from where the weights "
            "come from: without it the network's size and options are unknown."
        )
    step = _CHECKPOINT.fullmatch(weights.parent.name)
    return EgoAlloPaths(config=config, weights=weights, step=int(step[1]) if step else None)


def _newest(folder: Path, what: str) -> Path:
    """The ``checkpoints_<step>`` folder of the highest step that holds weights."""
    steps: dict[int, Path] = {}
    without: list[int] = []
    pickles = [entry for entry in folder.iterdir() if entry.suffix.lower() in PICKLES]
    for entry in folder.iterdir():
        step = _CHECKPOINT.fullmatch(entry.name)
        if step and entry.is_dir():
            pickles += [file for file in entry.iterdir() if file.suffix.lower() in PICKLES]
            if (entry / WEIGHTS_NAME).exists():
                steps[int(step[1])] = entry
            else:
                without.append(int(step[1]))
    if not steps:
        if pickles:
            check_weights_file(pickles[0], what)
        raise InputError(
            f"{what} not found: {folder} holds neither {WEIGHTS_NAME} nor folders checkpoints_<step> with one. Give "
            "the experiment's folder (the one with model_config.yaml), or one of its checkpoints_<step> folders."
        )
    newest = max(steps)
    if without and max(without) > newest:
        _logger.warning("%s: checkpoints_%d is passed over, it holds no %s", folder, max(without), WEIGHTS_NAME)
    if len(steps) > 1:
        others = listed([str(step) for step in sorted(steps)[:-1]])
        _logger.warning(
            "%s holds several checkpoints: taking %s, the newest; the others are of steps %s",
            folder,
            steps[newest].name,
            others,
        )
    return steps[newest]


def read_egoallo_config(path: str | Path) -> DenoiserConfig:
    """The configuration in a ``model_config.yaml``.

    Unknown fields are ignored (a warning names them), missing ones take the original's defaults, and the old name
    ``absrel_avatarposer`` is understood.

    Raises:
        InputError: not such a file (other tags, anchors, too long, too deep, not a mapping), or impossible values.
    """
    path = Path(path)
    what = f"EgoAllo configuration {path}"
    if not path.is_file():
        raise InputError(f"{what} not found, or not a regular file.")
    data = read_bytes(path, what, limit=_MAX_CONFIG_BYTES)
    try:
        loader = _ConfigLoader(data)
        try:
            content = loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        detail = " ".join(str(error).split())
        raise InputError(
            f"{what} can't be read: {detail}. Expected the flat list of fields that EgoAllo writes."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{what}: expected fields of a network (a flat mapping), got {type(content).__name__}.")
    known = {field.name for field in dataclasses.fields(DenoiserConfig)} | {"d_cond"}
    unknown = [name for name in content if name not in known]
    if unknown:
        _logger.warning("%s: unknown fields are ignored: %s", path, listed([repr(name[:40]) for name in unknown]))
    try:
        return DenoiserConfig.from_mapping({name: value for name, value in content.items() if name in known})
    except InputError as error:
        raise InputError(f"{what}: {error}") from error


def read_egoallo(path: str | Path, make: Callable[[DenoiserConfig], NetworkT]) -> tuple[NetworkT, EgoAlloPaths]:
    """The network of a checkpoint (see :func:`find_egoallo`), on the CPU, float32, in evaluation mode, and where it was
    read from. ``make`` builds it: :class:`mgrpo.models.denoiser.Denoiser`.

    Raises:
        InputError: as :func:`find_egoallo`, :func:`read_egoallo_config` and :func:`mgrpo.models.weights.load_network`.
    """
    paths = find_egoallo(path)
    config = read_egoallo_config(paths.config)
    network = load_network(
        lambda: make(config),
        config,
        paths.weights,
        what="EgoAllo checkpoint",
        layer_counts=("encoder_layers", "decoder_layers"),
        hints=lambda shapes: differing_options(config, shapes),
    )
    return network, paths


def differing_options(config: DenoiserConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Options that tensors of these names and shapes contradict, as texts "d_latent 512, not 64"."""

    def size(name: str, axis: int) -> int | None:
        shape = shapes.get(name, ())
        return shape[axis] if axis < len(shape) else None

    def layers(stack: str) -> int:
        return len({name.split(".")[1] for name in shapes if name.startswith(f"{stack}.")})

    token, film = (any(word in name for name in shapes) for word in ("noise_emb_token_proj", "mlp_film_cond_proj"))
    seen: dict[str, Any] = {
        "d_latent": size("latent_from_cond.weight", 0),
        "d_cond": size("latent_from_cond.weight", 1),
        "max_t": size("noise_emb.weight", 0),
        "d_noise_emb": size("noise_emb.weight", 1),
        "d_feedforward": size("encoder_layers.0.mlp0.weight", 0),
        "encoder_layers": layers("encoder_layers") or None,
        "decoder_layers": layers("decoder_layers") or None,
        "include_hands": any(name.startswith("encoders.hand_rotmats.") for name in shapes),
        "noise_conditioning": "film" if film else "token" if token else None,
    }
    if any(name.endswith("rotary_emb.freqs") for name in shapes):
        seen["positional_encoding"] = "rope"
    return [
        f"{name} {value}, not {getattr(config, name)}"
        for name, value in seen.items()
        if value is not None and value != getattr(config, name)
    ]


def config_text(config: DenoiserConfig) -> str:
    """The ``model_config.yaml`` of a configuration: tag, every field of the original's class and its cached ``d_cond``,
    in alphabetical order as the original writes them."""
    fields = {**dataclasses.asdict(config), "d_cond": config.d_cond}
    return CONFIG_TAG.replace(_SAFE_TAG, "!!") + "\n" + yaml.safe_dump(fields, sort_keys=True)


def write_egoallo(denoiser: HasDenoiserConfig, folder: str | Path, *, step: int) -> Path:
    """Write ``denoiser`` as a checkpoint that the original reads; the path of the new ``checkpoints_<step>`` folder.

    Weights are written as float32, the original's type; half precision is widened. In a new folder everything appears
    in one step. An existing one may hold other steps of the same configuration; nothing in it is ever replaced.

    Raises:
        InputError: the folder holds another configuration, that step, or files that are no such experiment; float64
            weights (they would be rounded: call ``float()`` first); a negative step.
        StorageError: the disk refuses; nothing is left half-written.
    """
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise InputError(f"write_egoallo(): step must be a whole number from 0, got {step!r}")
    folder = Path(folder).expanduser()
    text = config_text(denoiser.config)
    weights = tensors_to_bytes(_float32_state(denoiser))
    name = f"checkpoints_{step}"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"can't write an EgoAllo checkpoint: {folder} is a file. Choose another folder.")
    if not folder.exists() or not any(folder.iterdir()):
        make_folder(folder.parent)
        atomic_write_folder(folder, {CONFIG_NAME: text.encode(), f"{name}/{WEIGHTS_NAME}": weights})
        return folder / name
    config_file = folder / CONFIG_NAME
    if not config_file.exists():
        raise InputError(
            f"can't write an EgoAllo checkpoint: {folder} holds other files and no {CONFIG_NAME}. Choose an empty or "
            "new folder."
        )
    there = read_egoallo_config(config_file)
    if there != denoiser.config:
        ours, others = dataclasses.asdict(denoiser.config), dataclasses.asdict(there)
        changed = [f"{key} is {others[key]} there, {ours[key]} here" for key in ours if ours[key] != others[key]]
        raise InputError(
            f"can't write an EgoAllo checkpoint: {folder} belongs to a model of another configuration "
            f"({', '.join(changed)}). Choose another folder."
        )
    if (folder / name).exists():
        raise InputError(
            f"can't write an EgoAllo checkpoint: {folder / name} exists and is not replaced. Choose another step or "
            "folder."
        )
    atomic_write_folder(folder / name, {WEIGHTS_NAME: weights})
    return folder / name


def _float32_state(denoiser: HasDenoiserConfig) -> dict[str, Tensor]:
    """The state dictionary as the original has it: plain names, float32."""
    state = denoiser.state_dict()
    state = {plain: state[name] for name, plain in plain_names(state).items()}
    wide = [name for name, tensor in state.items() if tensor.dtype == torch.float64]
    if wide:
        raise InputError(
            f"write_egoallo(): the original's weights are float32, {wide[0]} is float64 and would be rounded. Call "
            "denoiser.float() first if that is meant."
        )
    formula = RotaryEmbedding.formula(denoiser.config.d_head)
    return {
        name: formula.clone()
        if name.endswith("rotary_emb.freqs") and tensor.dtype != torch.float32
        else tensor.to(torch.float32)
        for name, tensor in state.items()
    }
