"""Reads the reference runs of the samplers; for the tests of single windows and of stitched ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from mgrpo.models.denoiser import Denoiser, DenoiserConfig


def golden_case(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, object], Denoiser, torch.Tensor]:
    """Arrays, description, network and noise ``(S + 1, B, 1, T, D)`` of a sampler file."""
    with np.load(path, allow_pickle=False) as data:
        arrays = {name: torch.from_numpy(data[name]) for name in data.files}
    described = json.loads(path.with_suffix(".json").read_text())
    network = Denoiser(DenoiserConfig(**described["config"])).eval()
    network.load_state_dict({k[len("param/") :]: v for k, v in arrays.items() if k.startswith("param/")})
    noise = (arrays["noise_int8"].float() / arrays["noise_scale"].float())[:, :, None]
    return arrays, described, network, noise
