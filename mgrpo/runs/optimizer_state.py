"""Optimiser state as tensors plus plain data, and back, without losing a bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mgrpo.errors import InputError


def split_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split `optimizer.state_dict()` into tensors (for safetensors) and plain data (for JSON).

    Tensors are named `<parameter>/<entry>`, such as `decoder.weight/exp_avg`, or `group.<i>/<option>` for options held
    as tensors (a capturable learning rate). The plain part keeps the class, the parameter names of every group and all
    other values; Python's JSON writes float64 so that it reads back equal.
    """
    names = _parameter_names(optimizer, model)
    content = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain_state: dict[str, dict[str, Any]] = {}
    for index, entries in content["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{names[index]}/{key}"] = value
            else:
                plain_state.setdefault(names[index], {})[key] = value
    groups = []
    for position, group in enumerate(content["param_groups"]):
        plain_group: dict[str, Any] = {}
        for key, value in group.items():
            if key == "params":
                plain_group["params"] = [names[index] for index in value]
            elif isinstance(value, Tensor):
                tensors[f"group.{position}/{key}"] = value
            else:
                plain_group[key] = list(value) if isinstance(value, tuple) else value
        groups.append(plain_group)
    return tensors, {"class": type(optimizer).__name__, "groups": groups, "state": plain_state}


def restore_optimizer_state(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
    *,
    where: str,
) -> None:
    """Put back what `split_optimizer_state` took, into an optimiser of the same class over the same parameters.

    Raises `InputError` naming `where` when the class, the groups, or the parameters differ.
    """
    if plain["class"] != type(optimizer).__name__:
        raise InputError(
            f"{where}: the optimiser state is of {plain['class']}, this run uses {type(optimizer).__name__}. "
            "Resume with the optimiser of the first run."
        )
    names = _parameter_names(optimizer, model)
    current = optimizer.state_dict()["param_groups"]
    wanted = [[names[index] for index in group["params"]] for group in current]
    stored = [list(group["params"]) for group in plain["groups"]]
    if wanted != stored:
        missing = sorted({n for g in wanted for n in g} - {n for g in stored for n in g})
        unknown = sorted({n for g in stored for n in g} - {n for g in wanted for n in g})
        raise InputError(
            f"{where}: the optimiser state covers other parameters than this model (absent from the file: "
            f"{_some(missing)}; only in the file: {_some(unknown)}; groups of {[len(g) for g in stored]} parameters "
            f"there, {[len(g) for g in wanted]} here). Resume with the configuration of the first run."
        )
    index_of = {name: index for index, name in names.items()}
    state: dict[int, dict[str, Any]] = {index_of[name]: dict(entries) for name, entries in plain["state"].items()}
    groups = []
    for group, now in zip(plain["groups"], current):
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in group.items()}
        groups.append({**options, "params": now["params"]})
    for label, tensor in tensors.items():
        owner, key = label.rsplit("/", 1)
        if owner in index_of:
            state.setdefault(index_of[owner], {})[key] = tensor
        elif owner.startswith("group."):
            groups[int(owner.removeprefix("group."))][key] = tensor
        else:
            raise InputError(f"{where}: the optimiser state holds {label}, which no parameter of this model owns")
    # load_state_dict keeps references to what it need not convert; clones keep the checkpoint unchanged while training
    state = {
        i: {k: v.clone() if isinstance(v, Tensor) else v for k, v in entries.items()} for i, entries in state.items()
    }
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _parameter_names(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[int, str]:
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    names: dict[int, str] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            names[len(names)] = known.get(id(parameter), f"parameter.{len(names)}")
    return names


def _some(names: list[str], limit: int = 5) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
