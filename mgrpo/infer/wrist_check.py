"""Inferred motion against wrists that were seen: a check against reality that needs no recorded body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mgrpo.body.model import BodyModel
from mgrpo.body.placement import place_on_cpf
from mgrpo.geometry import quat_to_rotmat
from mgrpo.infer.trajectory import SIDES

WRIST_ROWS = (20, 21)
"""Left and right wrist among the 22 joints."""

_BLOCK = 4096


def predicted_wrists(arrays: Mapping[str, np.ndarray], body: BodyModel) -> np.ndarray:
    """Wrists ``(S, T, 2, 3)`` float64 of motions in EgoAllo's arrays, in their world."""
    samples, frames = arrays["body_quats"].shape[:2]
    found = np.zeros((samples, frames, 2, 3))
    for start in range(0, frames, _BLOCK):
        part = slice(start, start + _BLOCK)
        cpf = torch.from_numpy(np.asarray(arrays["Ts_world_cpf"][part], np.float32)).to(body.device)
        for sample in range(samples):
            quats = torch.from_numpy(np.asarray(arrays["body_quats"][sample, part], np.float32)).to(body.device)
            betas = torch.from_numpy(np.asarray(arrays["betas"][sample, part], np.float32)).to(body.device)
            joints = place_on_cpf(body, quat_to_rotmat(quats), betas, cpf).joints
            found[sample, part] = joints[:, list(WRIST_ROWS)].cpu().numpy()
    return found


def wrist_errors(
    arrays: Mapping[str, np.ndarray],
    wrists: np.ndarray,
    body: BodyModel,
    R_world_device: np.ndarray | None = None,
    hidden: np.ndarray | None = None,
) -> dict[str, Any]:
    """Distances between predicted and seen wrists, as plain values in metres.

    ``frames`` (how often each wrist was seen); ``mean``, ``median``, ``p90`` over all sights and samples, and
    ``left`` and ``right`` with the same; ``per_sample``: mean of each; ``fixed``: the mean distance of wrists that stay
    where they are on average as seen from the head, which the recording's own wrists tell (no model is needed);
    ``fitted``: the mean after the best constant offset in the controller's axes for each hand, which takes out where a
    controller has its origin; ``hidden``: over the frames that guidance didn't know, if there are any.

    Args:
        arrays: EgoAllo's arrays of S motions.
        wrists: seen wrists ``(T, 2, 3)`` in the same world, NaN where not seen.
        body: that the motions were made for.
        R_world_device: orientations of controllers ``(T, 2, 3, 3)``, for ``fitted``.
        hidden: frames ``(T,)`` in which guidance was not told of the wrists.
    """
    predicted = predicted_wrists(arrays, body)
    seen = np.isfinite(wrists).all(axis=-1)
    apart = np.linalg.norm(predicted - wrists, axis=-1)
    result: dict[str, Any] = {"unit": "m", "frames": {side: int(seen[:, k].sum()) for k, side in enumerate(SIDES)}}
    if not seen.any():
        return result
    result |= _statistics(apart[:, seen])
    for k, side in enumerate(SIDES):
        if seen[:, k].any():
            result[side] = _statistics(apart[:, seen[:, k], k])
    if hidden is not None and (seen & hidden[:, None]).any():
        result["hidden"] = _statistics(apart[:, seen & hidden[:, None]])
    result["per_sample"] = [float(one[seen].mean()) for one in apart]
    result["fixed"] = _fixed(np.asarray(arrays["Ts_world_cpf"], np.float64), wrists, seen)
    if R_world_device is not None:
        result["fitted"] = _fitted(predicted, wrists, seen & np.isfinite(R_world_device).all((-1, -2)), R_world_device)
    return result


def _statistics(apart: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(apart.mean()),
        "median": float(np.median(apart)),
        "p90": float(np.quantile(apart, 0.9)),
    }


def _fixed(T_world_cpf: np.ndarray, wrists: np.ndarray, seen: np.ndarray) -> float:
    R = quat_to_rotmat(torch.from_numpy(T_world_cpf[:, :4])).numpy()
    total = 0.0
    for k in range(2):
        here = seen[:, k]
        if here.any():
            local = np.einsum("nji,nj->ni", R[here], wrists[here, k] - T_world_cpf[here, 4:])
            total += float(np.linalg.norm(local - local.mean(axis=0), axis=1).sum())
    return total / int(seen.sum())


def _fitted(predicted: np.ndarray, wrists: np.ndarray, seen: np.ndarray, R: np.ndarray) -> float | None:
    total, count = 0.0, 0
    for k in range(2):
        here = seen[:, k]
        if not here.any():
            continue
        local = np.einsum("nji,snj->sni", R[here, k], predicted[:, here, k] - wrists[here, k])
        total += float(np.linalg.norm(local - local.mean(axis=(0, 1)), axis=-1).sum())
        count += local.shape[0] * local.shape[1]
    return total / count if count else None


def wrist_lines(errors: Mapping[str, Any]) -> list[str]:
    """The errors as lines for a person."""
    if "mean" not in errors:
        return ["wrists: none was seen in these frames"]
    frames = errors["frames"]
    lines = [
        f"wrists against what was seen ({frames['left']} left, {frames['right']} right frames): mean "
        f"{errors['mean']:.3f} m, median {errors['median']:.3f} m, 90 % below {errors['p90']:.3f} m"
    ]
    lines += [f"  {side}: mean {errors[side]['mean']:.3f} m" for side in SIDES if side in errors]
    if "hidden" in errors:
        lines.append(f"  where guidance was not told of them: mean {errors['hidden']['mean']:.3f} m")
    if len(errors["per_sample"]) > 1:
        lines.append(f"  best sample: mean {min(errors['per_sample']):.3f} m")
    if errors.get("fitted") is not None:
        lines.append(f"  after the best constant offset of each controller: mean {errors['fitted']:.3f} m")
    lines.append(f"  hands held still where they are on average (known from the recording): {errors['fixed']:.3f} m")
    return lines
