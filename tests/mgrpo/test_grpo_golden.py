"""The prototype's policy update: log-probs of recorded steps under its network, the clipped losses and their gradients.

Not compared: ``log_probs_old`` and ``grad_norm_old_policy``, whose network is not recorded (``param/*`` are the weights
that had moved away from it). The former is an input here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mgrpo.diffusion.schedule import quadratic_timesteps
from mgrpo.diffusion.transition import make_transitions
from mgrpo.kernels import grpo_loss, sde_log_prob
from mgrpo.models.denoiser import Denoiser, DenoiserConfig

FROZEN = {"_latent_from_cond_frozen": "latent_from_cond."}
"""Parameters that a recorded variant did not train, by the end of its name."""


@pytest.mark.golden("loss/author_grpo_*.npz")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_probs_losses_and_gradients(golden_path: Path, dtype: torch.dtype) -> None:
    described = json.loads(golden_path.with_suffix(".json").read_text())
    with np.load(golden_path, allow_pickle=False) as data:
        case = {name: torch.from_numpy(data[name]) for name in data.files if data[name].dtype.kind in "fib"}
        order = [str(name) for name in data["param_order"]]
    given = {name: value.to(dtype) for name, value in case.items() if value.is_floating_point()}
    model = Denoiser(DenoiserConfig(**described["config"])).train()
    model.load_state_dict({k.removeprefix("param/"): v for k, v in case.items() if k.startswith("param/")})
    model = model.to(dtype)

    after = dict(zip(quadratic_timesteps(), quadratic_timesteps()[1:]))
    assert [after[t] for t in case["timesteps"].tolist()] == case["timesteps_next"].tolist()
    assert described["eta"] == case["eta"].item()
    scalars = {t: step for t, *step in make_transitions("egoallo", eta=described["eta"]).scalars}
    A, B, s = torch.tensor([scalars[t] for t in case["timesteps"].tolist()], dtype=dtype).unbind(-1)
    # The prototype's schedule is float32: its sigma is off by up to 1.1e-4 at low levels.
    torch.testing.assert_close(s, given["sigma_t"], rtol=1.2e-4, atol=0)

    poses = given["T_world_cpf_all"][:, 1:].clone()
    poses[..., 6] -= given["floor_z"]

    def log_probs() -> Tensor:
        x0_pred = model(
            given["packed_traj"], case["timesteps"], T_world_cpf=poses, T_cpf_tm1_cpf_t=given["T_cpf_tm1_cpf_t"]
        )
        return sde_log_prob(given["next_packed_traj"], given["packed_traj"], x0_pred, A, B, s)

    torch.testing.assert_close(log_probs(), given["log_probs_new"], rtol=0, atol=2e-5)
    variants = [name.removeprefix("loss") for name in case if re.fullmatch(r"loss(_.+)?", name)]
    assert "" in variants
    for variant in variants:
        if variant == "_old_policy":
            continue
        limit = re.fullmatch(r"_clip(.+)", variant)
        clip_range = float(limit[1].replace("p", ".")) if limit else described["clip_range"]
        frozen = FROZEN.get(variant)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(frozen is None or not name.startswith(frozen))
            parameter.grad = None
        advantages = given["advantages"].clamp(-described["adv_clip"], described["adv_clip"])
        result = grpo_loss(log_probs() - given["log_probs_old"], advantages, clip_range=clip_range)
        result.loss.backward()
        torch.testing.assert_close(result.ratio.detach(), given["ratio"], rtol=2e-5, atol=0)
        assert result.loss.item() == pytest.approx(case[f"loss{variant}"].item(), rel=3e-5), variant
        check_gradients(model, order, case, variant)


def check_gradients(model: Denoiser, order: list[str], case: dict[str, Tensor], variant: str) -> None:
    """Norms of the gradients that the model holds: most of them comes from the lowest levels, where the prototype's
    float32 1 - alpha_bar is off by up to a thousandth, and members of the batch cancel."""
    found = {name: 0.0 if p.grad is None else p.grad.norm().item() for name, p in model.named_parameters()}
    total = sum(norm**2 for norm in found.values()) ** 0.5
    assert total == pytest.approx(case[f"grad_norm{variant}"].item(), rel=2e-3), variant
    recorded = dict(zip(order, case[f"grad_norm_per_param{variant}"].tolist(), strict=True))
    assert recorded.keys() >= found.keys()
    for name, norm in recorded.items():
        # frequencies of the rotary embedding are no parameters of ours: never trained
        assert found.get(name, 0.0) == pytest.approx(norm, rel=1e-2, abs=1e-12), f"{variant} {name}"
