"""End to end: the rollout, the reward and the update of a GRPO iteration, with our operators and with the references.

The network is the same in both; what differs is everything that :mod:`mgrpo.kernels` does around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..workload import OURS, REFERENCE, Implementation, Inputs, Workload


@dataclass(frozen=True)
class Setting:
    """Sizes of an iteration."""

    preset: str
    conditions: int
    members: int
    frames: int
    steps: int
    updated_conditions: int
    """Conditions of one backward pass: activations of a large network would not fit for all of them."""
    updated_steps: int


SETTINGS = {
    "cpu": Setting("tiny", 8, 8, 32, 10, updated_conditions=8, updated_steps=3),
    # Two of the sampler's thirty steps: all cost the same.
    "cuda": Setting("egoallo", 64, 16, 128, 2, updated_conditions=8, updated_steps=1),
}


def workloads(device: str, backends: Sequence[str] | None) -> list[Workload]:
    """Rollout, reward and update at the device's size."""
    setting = SETTINGS[device.split(":")[0]]
    choices = {f"{OURS} auto": None} if backends is None else {f"{OURS} {name}": name for name in backends}
    samples = f"{setting.conditions} x {setting.members} samples of {setting.frames} frames"
    found = []
    for part, title, items, item, size in (
        ("rollout", "rollout", setting.steps, "step", samples),
        ("reward", "rewards and advantages", 1, "batch", samples),
        (
            "update",
            "policy gradient",
            setting.updated_steps,
            "step",
            f"{setting.updated_conditions} x {setting.members} samples of {setting.frames} frames",
        ),
    ):
        prepare = {"rollout": prepare_rollout, "reward": prepare_reward, "update": prepare_update}[part]
        found.append(
            Workload(
                op="iteration",
                name=f"{part}_{setting.preset}",
                title=f"GRPO {title}, {setting.preset} network",
                items=items,
                item=item,
                size=size,
                make_inputs=lambda seed: {"setting": setting, "device": device, "seed": seed},
                implementations=lambda prepare=prepare: [
                    Implementation(REFERENCE, "reference", lambda inputs: on_backend(prepare, inputs, "reference")),
                    *(
                        Implementation(name, "ours", lambda inputs, choice=choice: on_backend(prepare, inputs, choice))
                        for name, choice in choices.items()
                    ),
                ],
                exact=None,
                bytes_moved=0,
                operations=0,
                gradient=part == "update",
                device=device,
                tests=("tests/mgrpo/test_sampler.py", "tests/mgrpo/test_grpo_update.py", "tests/mgrpo/test_rewards.py"),
            )
        )
    return found


def on_backend(
    prepare: Callable[[Inputs], Callable[[], Any]], inputs: Inputs, backend: str | None
) -> Callable[[], Any]:
    """The prepared call with ``use_backend(backend)`` around it; None lets every operator choose."""
    from mgrpo.kernels import use_backend

    with use_backend(backend):
        call = prepare(inputs)

    def run() -> Any:
        with use_backend(backend):
            return call()

    return run


def prepare_rollout(inputs: Inputs) -> Callable[[], Any]:
    """Sampling groups, with projection in every step."""
    return _rollout(_policy(inputs), inputs)


def _policy(inputs: Inputs) -> Any:
    from mgrpo.models.denoiser import DENOISER_PRESETS, Denoiser

    return Denoiser(DENOISER_PRESETS[inputs["setting"].preset], seed=0).to(inputs["device"]).eval()


def _rollout(policy: Any, inputs: Inputs) -> Callable[[], Any]:
    import torch

    from mgrpo.diffusion.sampler import NoiseKeys
    from mgrpo.diffusion.transition import make_transitions
    from mgrpo.grpo.rollout import roll_out
    from mgrpo.models.conditioning import make_cond

    setting, device, seed = inputs["setting"], inputs["device"], inputs["seed"]
    windows = _windows(setting, device, seed)
    cond = make_cond(policy.config, windows.T_world_cpf, windows.T_cpf_tm1_cpf_t)[:, None]
    return partial(
        roll_out,
        policy,
        cond,
        make_transitions("ddim", eta=0.8, steps=setting.steps),
        NoiseKeys(seed, 0, torch.arange(setting.conditions, device=device), setting.members),
        policy.layout,
        group_size=setting.members,
        project_rotations=True,
    )


def prepare_reward(inputs: Inputs) -> Callable[[], Any]:
    """From sampled states to advantages, as the training loop does it."""
    import torch

    from mgrpo.body import default_body
    from mgrpo.models.denoiser import DENOISER_PRESETS
    from mgrpo.models.motion import decode_motion
    from mgrpo.models.state import StateLayout
    from mgrpo.rewards import RewardBatch, score_groups

    setting, device, seed = inputs["setting"], inputs["device"], inputs["seed"]
    windows = _windows(setting, device, seed)
    layout = StateLayout(include_hands=DENOISER_PRESETS[setting.preset].include_hands)
    body = default_body().to(device)
    body = body if layout.include_hands else body.body_only()
    generator = torch.Generator().manual_seed(seed)
    shape = (setting.conditions, setting.members, setting.frames, layout.dim)
    x0 = torch.randn(shape, generator=generator).to(device)
    weights = dict.fromkeys(("position", "aligned_position", "rotation", "velocity"), 1.0)

    @torch.no_grad()
    def call() -> Any:
        motion = decode_motion(layout, x0, windows.T_world_cpf[:, None], body)
        return score_groups(RewardBatch(motion, windows), body, weights).advantages

    return call


def prepare_update(inputs: Inputs) -> Callable[[], Any]:
    """Gradient of the clipped loss over some of the stored steps."""
    import torch

    from mgrpo.grpo.update import PolicyLossConfig, accumulate_gradients

    setting = inputs["setting"]
    smaller = replace(setting, conditions=setting.updated_conditions)
    policy = _policy(inputs)
    rollout = _rollout(policy, {**inputs, "setting": smaller})()
    generator = torch.Generator().manual_seed(inputs["seed"])
    advantages = torch.randn(smaller.conditions, smaller.members, generator=generator).to(inputs["device"])
    steps = torch.arange(setting.updated_steps)

    def call() -> Any:
        policy.zero_grad(set_to_none=True)
        return accumulate_gradients(
            policy,
            rollout,
            advantages,
            PolicyLossConfig(),
            steps=steps,
            rows=slice(None),
            denominator=float(advantages.numel() * len(steps)),
        )

    return call


def _windows(setting: Setting, device: str, seed: int) -> Any:
    """The demo's motion, again and again until there are enough windows."""
    from mgrpo.body import default_body
    from mgrpo.data import cut_windows, drop_short, load_motion

    body = default_body()
    clips, _ = drop_short(load_motion("demo", body), setting.frames)
    cut = cut_windows(clips, body, length=setting.frames)
    return cut.select([(seed + number) % len(cut) for number in range(setting.conditions)]).to(device)
