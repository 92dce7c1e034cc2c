"""Checkpoints: a folder with weights in safetensors, their configuration, the optimiser and the loop's state.

step_00000100/
    model.safetensors       weights
    config.json             class and fields of the model's configuration
    optimizer.safetensors   optimiser tensors (when an optimiser was given)
    tensors.safetensors     further tensors of the loop (when given); an averaged copy of the weights as ema.<name>
    state.json              step, metric, loop state, plain part of the optimiser, checksums of the files above
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mgrpo.config_record import from_plain, to_plain
from mgrpo.errors import InputError
from mgrpo.models.weights import refuse_non_finite, tensor_problems
from mgrpo.storage import atomic_write_folder, checksum, json_text, read_json, visible_folder
from mgrpo.tensor_files import read_tensors, tensors_to_bytes

from .optimizer_state import restore_optimizer_state, split_optimizer_state

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
FURTHER_FILE = "tensors.safetensors"
CHECKPOINT_TENSORS = (MODEL_FILE, OPTIMIZER_FILE, FURTHER_FILE)
"""Files of tensors in a checkpoint's folder."""

CHECKPOINT_FORMAT = 1
"""Number written into `state.json`; a reader refuses a larger one."""

AVERAGE_PREFIX = "ema."
"""Before the names of averaged weights in tensors.safetensors. The prior's loop saves its average there, beside the
weights that training goes on from; GRPO's saves its average as the model."""

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint, everything on the CPU."""

    path: Path
    """Folder it was read from."""
    step: int
    """Iterations finished when it was saved."""
    model_tensors: dict[str, Tensor]
    """State dictionary of the model."""
    tensors: dict[str, Tensor]
    """Further tensors of the loop; empty when none were saved."""
    optimizer_tensors: dict[str, Tensor]
    """Tensors of the optimiser, see `optimizer_state.py`."""
    optimizer: dict[str, Any] | None
    """Plain part of the optimiser; None when none was saved."""
    state: dict[str, Any]
    """Plain state of the loop, as given to `RunDir.save`."""
    config: dict[str, Any]
    """Content of config.json: `model` (class name) and `config` (fields and class of the model's configuration)."""
    metric: float | None
    """Value by which best is chosen; None when it wasn't measured at this step."""
    record: dict[str, Any]
    """What the run folder noted: `best` so far, `metrics_bytes` (length of the metric log), `training` (class of the
    run's configuration, such as GrpoConfig)."""

    def model_config(self, config_class: type[ConfigT]) -> ConfigT:
        """The model's configuration as a `config_class`. Raises `InputError` when the file holds another class or
        field."""
        return from_plain(config_class, self.config["config"], where=f"checkpoint {self.path}")

    def averaged(self) -> dict[str, Tensor]:
        """State dictionary of the averaged weights beside the model's. Raises `InputError` when there are none."""
        found = {n.removeprefix(AVERAGE_PREFIX): v for n, v in self.tensors.items() if n.startswith(AVERAGE_PREFIX)}
        if not found:
            raise InputError(
                f"checkpoint {self.path}: holds no averaged weights beside the model's. Train the prior with --ema, or "
                "leave --use-ema out (a model of GRPO trained with --ema is its average already)."
            )
        return found

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Load the weights into `model` and, if given, the state into `optimizer`, bit for bit.

        Raises `InputError` explaining which tensors differ, or when the checkpoint holds no optimiser state.
        """
        load_tensors_into(model, self.model_tensors, where=f"checkpoint {self.path}")
        if optimizer is None:
            return
        if self.optimizer is None:
            raise InputError(
                f"checkpoint {self.path}: holds weights but no optimiser state, so training can't go on from it "
                "exactly. Resume from a checkpoint that a training run wrote."
            )
        restore_optimizer_state(
            optimizer, model, self.optimizer_tensors, self.optimizer, where=f"checkpoint {self.path}"
        )


def load_tensors_into(model: nn.Module, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Copy a state dictionary into `model`, all of it or nothing.

    Raises `InputError` listing missing and unexpected tensors and every differing shape, so that a checkpoint of
    another configuration explains itself.
    """
    problems = tensor_problems(
        {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
    )
    if problems:
        raise InputError(
            f"{where} does not fit this {type(model).__name__}: {'; '.join(problems)}. "
            "It was saved with another configuration: use the one in its config.json, or another checkpoint."
        )
    refuse_non_finite(tensors, where)
    model.load_state_dict(dict(tensors), strict=True)


def write_checkpoint(
    path: Path,
    *,
    step: int,
    model: nn.Module,
    model_config: Any,
    optimizer: torch.optim.Optimizer | None,
    tensors: Mapping[str, Tensor] | None,
    state: Mapping[str, Any] | None,
    metric: float | None,
    record: Mapping[str, Any],
) -> None:
    """Write a checkpoint folder in one step (see the module's text). Raises `StorageError` when the disk refuses."""
    files = {MODEL_FILE: tensors_to_bytes(model.state_dict())}
    plain_optimizer = None
    if optimizer is not None:
        optimizer_tensors, plain_optimizer = split_optimizer_state(optimizer, model)
        files[OPTIMIZER_FILE] = tensors_to_bytes(optimizer_tensors)
    if tensors:
        files[FURTHER_FILE] = tensors_to_bytes(tensors)
    checksums = {name: checksum(data) for name, data in files.items()}
    files["config.json"] = json_text({"model": type(model).__name__, "config": to_plain(model_config)}).encode()
    content = {
        "format": CHECKPOINT_FORMAT,
        "step": step,
        "metric": metric,
        "state": to_plain(dict(state or {})),
        "optimizer": plain_optimizer,
        "record": dict(record),
        "sha256": checksums,
    }
    files["state.json"] = json_text(content).encode()
    atomic_write_folder(path, files)


def read_checkpoint(path: Path, *, only: Collection[str] = CHECKPOINT_TENSORS) -> Checkpoint:
    """Read the checkpoint folder `path`, checking every file that is read.

    `only`: the files of tensors to read, of `CHECKPOINT_TENSORS`; what the others hold is absent from the result.

    Raises `InputError` when it is absent, incomplete, damaged, or written by a newer version.
    """
    path = visible_folder(path)
    what = f"checkpoint {path}"
    if not path.is_dir():
        raise InputError(f"checkpoint not found: {path} is not a folder. Give the folder of a checkpoint or of a run.")
    content = read_json(path / "state.json", f"{what}: state.json")
    config = read_json(path / "config.json", f"{what}: config.json")
    known = isinstance(content, dict) and {"format", "step", "sha256", "state", "record"} <= set(content)
    if not known or not isinstance(config, dict) or not {"model", "config"} <= set(config):
        raise InputError(f"{what}: state.json or config.json is not what mgrpo writes. Use another checkpoint.")
    if content["format"] > CHECKPOINT_FORMAT:
        raise InputError(
            f"{what}: has format {content['format']}, this mgrpo reads up to {CHECKPOINT_FORMAT}. "
            "Install a newer mgrpo."
        )
    loaded: dict[str, dict[str, Tensor]] = {}
    for name in only:
        if name in content["sha256"] or name == MODEL_FILE:
            loaded[name] = read_tensors(path / name, f"{what}: {name}", content["sha256"].get(name))
    return Checkpoint(
        path=path,
        step=int(content["step"]),
        model_tensors=loaded.get(MODEL_FILE, {}),
        tensors=loaded.get(FURTHER_FILE, {}),
        optimizer_tensors=loaded.get(OPTIMIZER_FILE, {}),
        optimizer=content.get("optimizer") if OPTIMIZER_FILE in only else None,
        state=content["state"],
        config=config,
        metric=content.get("metric"),
        record=content["record"],
    )


def find_checkpoint(path: str | Path, *, prefer: str = "best") -> Path:
    """Find the checkpoint folder that a user means by `path`.

    `path` may be a checkpoint folder, its model.safetensors, a run folder (then its `prefer`red checkpoint, "best" or
    "last", else the other), or `<run folder>/best` or `/last`. Raises `InputError` saying what was found instead.
    """
    given = Path(path).expanduser()
    if given.name == MODEL_FILE and given.is_file():
        return given.parent
    if (visible_folder(given) / "state.json").is_file():
        return given
    if given.name in ("best", "last") and not given.exists() and (given.parent / "checkpoints").is_dir():
        found = pointed_checkpoint(given.parent / "checkpoints", given.name)
        if found is None:
            raise InputError(f"checkpoint not found: the run folder {given.parent} has no {given.name} checkpoint yet")
        return found
    folder = given / "checkpoints" if (given / "checkpoints").is_dir() else given
    for name in (prefer, "last" if prefer == "best" else "best"):
        found = pointed_checkpoint(folder, name)
        if found is not None:
            return found
    if not given.exists():
        raise InputError(f"checkpoint not found: {given} does not exist. Give the folder of a run or of a checkpoint.")
    if folder != given:
        raise InputError(f"checkpoint not found: the run in {given} has not saved one yet. Continue it with --resume.")
    raise InputError(
        f"checkpoint not found: {given} is neither a run folder nor a checkpoint (no checkpoints/ and no state.json in "
        "it). Give the folder given to training as --output, or one of its checkpoints/step_… folders."
    )


def pointed_checkpoint(checkpoints: Path, name: str) -> Path | None:
    """The folder that `<name>.json` ("best" or "last") points to; for "last" without a usable pointer, the highest
    step.

    None when there is none.
    """
    pointer = checkpoints / f"{name}.json"
    if pointer.is_file():
        content = read_json(pointer, f"pointer {pointer}")
        target = checkpoints / str(content.get("checkpoint", "")) if isinstance(content, dict) else checkpoints
        if target != checkpoints and (visible_folder(target) / "state.json").is_file():
            return target
    if name == "last":
        steps = sorted(step_folders(checkpoints).items())
        return steps[-1][1] if steps else None
    return None


def step_folders(checkpoints: Path) -> dict[int, Path]:
    """All visible (therefore whole) checkpoint folders directly in `checkpoints`, by step."""
    if not checkpoints.is_dir():
        return {}
    found = {}
    for entry in checkpoints.iterdir():
        digits = entry.name.removeprefix("step_")
        if entry.name.startswith("step_") and digits.isdigit() and (entry / "state.json").is_file():
            found[int(digits)] = entry
    return found
