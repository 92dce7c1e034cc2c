"""Stored models and how they are loaded: a run's, in EgoAllo's layout, or from a folder of `save_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from torch import nn

from mgrpo.config_record import CLASS_KEY, differences, to_plain
from mgrpo.errors import InputError
from mgrpo.models.denoiser import Denoiser
from mgrpo.models.egoallo import is_egoallo, read_egoallo
from mgrpo.models.hub import PretrainedModel, is_pretrained, read_pretrained
from mgrpo.models.weights import check_weights_file
from mgrpo.storage import read_json, visible_folder

from .checkpoints import FURTHER_FILE, MODEL_FILE, Checkpoint, find_checkpoint, load_tensors_into, read_checkpoint

ConfigT = TypeVar("ConfigT")
ModelT = TypeVar("ModelT", bound=nn.Module)

ModelFormat = Literal["mgrpo", "egoallo", "hub"]
"""Layouts of stored models: runs and their checkpoints, EgoAllo's checkpoints, `save_pretrained`'s folders."""


def model_format(path: str | Path) -> ModelFormat:
    """The layout of what is stored at `path`; "mgrpo" also where nothing can be recognised."""
    given = Path(path).expanduser()
    if (visible_folder(given.parent if given.is_file() else given) / "state.json").is_file():
        return "mgrpo"
    if is_egoallo(given):
        return "egoallo"
    return "hub" if is_pretrained(given) else "mgrpo"


def stored_model(path: str | Path, *, prefer: str = "best") -> str:
    """Name of the class of the model at `path` (as in `load_model`), such as Denoiser; only its config.json is read."""
    layout = model_format(path)
    if layout == "egoallo":
        return Denoiser.__name__
    given = Path(path).expanduser()
    folder = find_checkpoint(path, prefer=prefer) if layout == "mgrpo" else given.parent if given.is_file() else given
    content = read_json(visible_folder(folder) / "config.json", f"model {folder}: config.json")
    if not isinstance(content, dict) or not isinstance(content.get("model"), str):
        raise InputError(f"model {folder}: config.json is not what mgrpo writes. Use another checkpoint.")
    return content["model"]


def load_model(
    path: str | Path,
    model_class: type[ModelT],
    config_class: type[ConfigT],
    *,
    prefer: str = "best",
    expected_config: ConfigT | None = None,
    use_ema: bool = False,
) -> tuple[ModelT, ConfigT, Checkpoint]:
    """Build `model_class(config)` from a checkpoint and load its weights, on the CPU and in evaluation mode.

    `path` may be a run or a checkpoint as in `find_checkpoint`, a checkpoint in EgoAllo's layout (see
    `mgrpo.models.egoallo`), or a folder that `save_pretrained` wrote; the latter two have no optimiser state.
    `use_ema`: take the averaged weights that were saved beside the weights. Raises `InputError` when the checkpoint is
    of another kind of model, of another configuration than `expected_config` (each differing field is listed), has no
    averaged weights, or is damaged. The checkpoint that comes with the model holds no optimiser state, and further
    tensors with `use_ema` only: other files are not read.
    """
    given = Path(path).expanduser()
    if given.is_file():
        check_weights_file(given, "checkpoint")
    if model_format(given) != "mgrpo":
        if use_ema:
            raise InputError(
                f"{given}: holds no averaged weights (only runs of `train prior --ema` do); leave out --use-ema"
            )
        model, checkpoint = _load_outside(given, model_class)
        config = cast(Any, model).config
        _refuse_other_config(checkpoint, expected_config)
        return model, config, checkpoint
    # What only training needs may be damaged or large: a model is its weights.
    needed = (MODEL_FILE, FURTHER_FILE) if use_ema else (MODEL_FILE,)
    checkpoint = read_checkpoint(find_checkpoint(path, prefer=prefer), only=needed)
    _refuse_other_model(checkpoint.config["model"], model_class, f"checkpoint {checkpoint.path}")
    config = checkpoint.model_config(config_class)
    _refuse_other_config(checkpoint, expected_config)
    model = model_class(config)
    if use_ema:
        load_tensors_into(model, checkpoint.averaged(), where=f"checkpoint {checkpoint.path}, averaged weights")
    else:
        checkpoint.restore(model)
    return model.eval(), config, checkpoint


def _load_outside(path: Path, model_class: type[ModelT]) -> tuple[ModelT, Checkpoint]:
    """A model in one of the layouts without optimiser state, and a checkpoint that says what is known of it."""
    model: Any
    record: dict[str, Any] = {}
    if model_format(path) == "egoallo":
        _refuse_other_model(Denoiser.__name__, model_class, f"EgoAllo checkpoint {path}")
        model, paths = read_egoallo(path, Denoiser)
        folder, step = paths.folder, paths.step
    else:
        if not issubclass(model_class, PretrainedModel):
            raise InputError(f"model {path}: a {model_class.__name__} isn't stored in this layout. Give a run folder.")
        model, content = read_pretrained(path, model_class)
        folder, step = path.parent if path.is_file() else path, content.get("step")
        record = {"training": content["training"]} if "training" in content else {}
    checkpoint = Checkpoint(
        path=folder,
        step=step if isinstance(step, int) else 0,
        model_tensors=model.state_dict(),
        tensors={},
        optimizer_tensors={},
        optimizer=None,
        state={},
        config={"model": type(model).__name__, "config": to_plain(model.config)},
        metric=None,
        record=record,
    )
    return model, checkpoint


def _refuse_other_model(stored: str, model_class: type[nn.Module], where: str) -> None:
    if stored != model_class.__name__:
        raise InputError(
            f"{where}: holds a {stored}, but a {model_class.__name__} is needed here. "
            "Give the run folder of the matching training."
        )


def _refuse_other_config(checkpoint: Checkpoint, expected: Any) -> None:
    if expected is None:
        return
    found = differences(checkpoint.config["config"], to_plain(expected))
    if found:
        listed = ", ".join(f"{name} is {old} there, {new} here" for name, old, new in found if name != CLASS_KEY)
        raise InputError(
            f"checkpoint {checkpoint.path}: was saved with another configuration ({listed}). "
            "Use the same configuration, or another checkpoint."
        )
