"""`mgrpo convert`: a model from one layout of files to another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from mgrpo.errors import InputError
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.perceptual import PerceptualConfig, PerceptualModel
from mgrpo.runs.checkpoints import Checkpoint, write_checkpoint
from mgrpo.runs.stored_models import ModelFormat, load_model, stored_model
from mgrpo.storage import make_folder
from mgrpo.terminal.progress import Progress

from .destination import refuse_run_folder

_MODELS: dict[str, tuple[type[Any], type[Any]]] = {
    "Denoiser": (Denoiser, DenoiserConfig),
    "PerceptualModel": (PerceptualModel, PerceptualConfig),
}


@dataclass(frozen=True)
class ConvertConfig:
    """Store a model in another layout; its weights stay what they are, bit for bit.

    egoallo: an experiment's folder that EgoAllo reads. mgrpo: a checkpoint folder, as runs have them, without optimiser
    state. hub: config.json, model.safetensors and a model card, as save_pretrained writes them.
    """

    src: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Model to read: run folder (its best checkpoint), checkpoint folder, RUN/last, EgoAllo checkpoint, or folder
    written by save_pretrained."""
    dst: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Folder to write: a new or empty one. For egoallo it may also be an experiment of the same configuration, which
    gets one more step."""
    to: ModelFormat
    """Layout to write."""
    step: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Training step to note with the weights; default: that of the source, 0 if it is unknown."""
    license: str = "mit"
    """Licence of the weights in the model card (hub), in the Hub's spelling: mit, cc-by-nc-4.0, other ..."""

    def __post_init__(self) -> None:
        if self.step is not None and self.step < 0:
            raise InputError(f"--step must be at least 0, got {self.step}")
        if not self.license.strip():
            raise InputError("--license must not be empty; give other where no name fits")
        if self.license != "mit" and self.to != "hub":
            raise InputError(f"--license goes into the model card, which only --to hub has; got --to {self.to}")


def run_convert(config: ConvertConfig) -> int:
    """Read, write, and print where. Returns the exit code 0.

    Raises InputError for what can't be read, or a destination that would lose files; StorageError for the disk.
    """
    # what can be refused is refused before anything is shown or read
    name = stored_model(config.src)
    if name not in _MODELS:
        raise InputError(f"{config.src}: holds a {name}; known are {', '.join(_MODELS)}")
    model_class, config_class = _MODELS[name]
    if config.to == "egoallo" and model_class is not Denoiser:
        raise InputError(f"--to egoallo: {config.src} holds a {name}; EgoAllo's layout is for denoisers. Take hub.")
    _refuse_destination(config)
    with Progress("convert", 2, "steps") as progress:
        model, _, checkpoint = load_model(config.src, model_class, config_class)
        progress.update(1)
        written = _write(config, model, checkpoint)
        progress.update(1)
    print(written)
    return 0


def _refuse_destination(config: ConvertConfig) -> None:
    """Raise InputError where writing would mix with what is there; EgoAllo's layout, which takes further steps, is
    looked at when it is written."""
    folder = config.dst.expanduser()
    refuse_run_folder(folder, "DST")
    if config.to != "egoallo" and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty; nothing there is replaced. Give a new or empty folder.")


def _write(config: ConvertConfig, model: Any, checkpoint: Checkpoint) -> Path:
    """Write the model to ``config.dst``; the folder of the weights."""
    step = checkpoint.step if config.step is None else config.step
    if config.to == "egoallo":
        return model.save_egoallo(config.dst, step=step)
    folder = config.dst.expanduser()
    training = checkpoint.record.get("training")
    if config.to == "hub":
        return model.save_pretrained(folder, step=step, training=training, license=config.license)
    make_folder(folder.parent)
    write_checkpoint(
        folder,
        step=step,
        model=model,
        model_config=model.config,
        optimizer=None,
        tensors=None,
        state=None,
        metric=checkpoint.metric,
        record={"best": None, "metrics_bytes": 0, "training": training},
    )
    return folder
