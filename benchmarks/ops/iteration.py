"""End to end: a GRPO iteration of every preset against a plain loop, and its parts with our operators and the
references.

The network's weights are the same everywhere. The plain loop is what people write: every sample through the whole
network at every step, a second pass for the gradient, rewards in eager torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
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

WHOLE = Setting("narrow", 4, 16, 32, 10, updated_conditions=4, updated_steps=9)
"""A whole iteration: the paper's group size, as few conditions as a CPU takes in a second, and the released network's
depth: the shallow preset for CPUs has so little of an encoder that sharing it means less than to those who train."""


def network(preset: str) -> Any:
    """Configuration of a network: a preset, or ``narrow``, EgoAllo's at an eighth of its width, without hands."""
    from mgrpo.models.denoiser import DENOISER_PRESETS

    if preset != "narrow":
        return DENOISER_PRESETS[preset]
    return replace(DENOISER_PRESETS["egoallo"], d_latent=64, d_feedforward=256, d_noise_emb=128, include_hands=False)


PLAIN_LOOP = "plain loop"
PLAIN_LOOP_FUSED = "plain loop, our operators"


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
                tests=(
                    "tests/mgrpo/diffusion/test_sampler.py",
                    "tests/mgrpo/test_grpo_update.py",
                    "tests/mgrpo/rewards/test_rewards.py",
                ),
            )
        )
    if device == "cpu":
        found += [whole_iteration(backends, device)]
    return found


def whole_iteration(backends: Sequence[str] | None, device: str) -> Workload:
    """Rollout, rewards and gradient of every preset on the same windows, and of the plain loop."""
    presets = ("paper", "default", "fast")
    choice = None if backends is None else backends[0]
    return Workload(
        op="iteration",
        name=f"grpo_{WHOLE.preset}",
        title=f"GRPO iteration, {WHOLE.preset} network, {WHOLE.steps} steps",
        items=WHOLE.conditions * WHOLE.members,
        item="sample",
        size=f"{WHOLE.conditions} x {WHOLE.members} samples of {WHOLE.frames} frames",
        make_inputs=lambda seed: {"setting": WHOLE, "device": device, "seed": seed},
        implementations=lambda: [
            Implementation(PLAIN_LOOP, "reference", lambda inputs: on_backend(prepare_plain, inputs, "reference")),
            Implementation(PLAIN_LOOP_FUSED, "reference", lambda inputs: on_backend(prepare_plain, inputs, choice)),
            *(
                Implementation(
                    f"{OURS} {name}",
                    "ours",
                    lambda inputs, name=name: on_backend(partial(prepare_preset, preset=name), inputs, choice),
                )
                for name in presets
            ),
        ],
        exact=None,
        bytes_moved=0,
        operations=0,
        gradient=True,
        device=device,
        tests=("tests/mgrpo/test_grpo_update.py", "tests/train/test_post_training.py"),
    )


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
    """An untrained network that predicts nearly rotations, as a trained one does: others cost more to project."""
    import torch

    from mgrpo.models.denoiser import Denoiser

    policy = Denoiser(network(inputs["setting"].preset), seed=0)
    with torch.no_grad():
        last = policy.decoders["body_rotmats"][-1]
        last.weight.mul_(0.1)
        last.bias.copy_(torch.eye(3).flatten().repeat(last.out_features // 9))
    return policy.to(inputs["device"]).eval()


def _rollout(policy: Any, inputs: Inputs, *, per_member: bool = False) -> Callable[[], Any]:
    import torch

    from mgrpo.diffusion.sampler import NoiseKeys
    from mgrpo.diffusion.transition import make_transitions
    from mgrpo.grpo.rollout import roll_out
    from mgrpo.models.conditioning import make_cond

    setting, device, seed = inputs["setting"], inputs["device"], inputs["seed"]
    windows = _windows(setting, device, seed)
    cond = make_cond(policy.config, windows.T_world_cpf, windows.T_cpf_tm1_cpf_t)
    transitions = make_transitions("ddim", eta=0.8, steps=setting.steps)
    return partial(
        roll_out,
        policy,
        cond.repeat_interleave(setting.members, dim=0) if per_member else cond,
        transitions,
        NoiseKeys(seed, 0, torch.arange(setting.conditions, device=device), setting.members),
        shape=(setting.frames, policy.layout.dim),
        steps=transitions.trainable_steps[: setting.updated_steps],
        layout=policy.layout,
        project_rotations=True,
        per_member=per_member,
    )


def prepare_reward(inputs: Inputs) -> Callable[[], Any]:
    """From sampled states to advantages, as the training loop does it."""
    import torch

    from mgrpo.body import default_body
    from mgrpo.models.motion import decode_motion
    from mgrpo.models.state import StateLayout
    from mgrpo.rewards import RewardBatch, score_groups

    setting, device, seed = inputs["setting"], inputs["device"], inputs["seed"]
    windows = _windows(setting, device, seed)
    layout = StateLayout(include_hands=network(setting.preset).include_hands)
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

    setting = inputs["setting"]
    smaller = replace(setting, conditions=setting.updated_conditions)
    policy = _policy(inputs)
    rollout = _rollout(policy, {**inputs, "setting": smaller})()
    generator = torch.Generator().manual_seed(inputs["seed"])
    advantages = torch.randn(smaller.conditions, smaller.members, generator=generator).to(inputs["device"])
    return partial(_gradient, policy, rollout, advantages)


def _gradient(policy: Any, rollout: Any, advantages: Any) -> Any:
    from mgrpo.grpo.update import PolicyLossConfig, accumulate_gradients

    policy.zero_grad(set_to_none=True)
    return accumulate_gradients(
        policy,
        rollout,
        advantages,
        PolicyLossConfig(),
        steps=tuple(rollout.steps),
        denominator=float(advantages.numel() * len(rollout.steps)),
    )


def prepare_plain(inputs: Inputs) -> Callable[[], Any]:
    """An iteration as people write it: nothing is shared, nothing is kept."""
    setting = inputs["setting"]
    policy = _policy(inputs)
    roll_out = _rollout(policy, inputs, per_member=True)
    task = _task(policy, inputs, "paper")
    windows = _windows(setting, inputs["device"], inputs["seed"])

    def call() -> Any:
        from mgrpo.kernels import group_advantages

        rollout = roll_out()
        x0 = rollout.x0.view(setting.conditions, setting.members, setting.frames, -1)
        advantages = group_advantages(task.score(x0, windows).rewards).advantages
        return _gradient(policy, rollout, advantages.reshape(-1, 1))

    return call


def prepare_preset(inputs: Inputs, *, preset: str) -> Callable[[], Any]:
    """An iteration of ``mgrpo train grpo PRESET``, up to the gradient."""
    from mgrpo.execution.distributed import open_processes
    from mgrpo.execution.precision import NetworkPrecision
    from mgrpo.train.post_training import PostTraining

    policy = _policy(inputs)
    task = _task(policy, inputs, preset)
    with open_processes(inputs["device"]) as processes:
        training = PostTraining(policy, task, task.config, processes, NetworkPrecision("fp32", processes.device))
    windows = _windows(inputs["setting"], inputs["device"], inputs["seed"])
    plan = training.plan(0)

    def call() -> Any:
        policy.zero_grad(set_to_none=True)
        sampled = training.sample(plan, [windows])
        return training.differentiate(0, sampled[0], training.judge(sampled), plan)

    return call


def _task(policy: Any, inputs: Inputs, preset: str) -> Any:
    """The motion task of a preset at the sizes of the setting, without a perceptual model or data of its own."""
    from mgrpo.body import default_body
    from mgrpo.diffusion.config import SamplerConfig
    from mgrpo.train.grpo_config import GRPO_PRESETS
    from mgrpo.train.motion_data import MotionData
    from mgrpo.train.motion_task import MotionTask

    setting, chosen = inputs["setting"], GRPO_PRESETS[preset]
    config = replace(
        chosen,
        conditions=setting.conditions,
        group_size=setting.members,
        sampler=SamplerConfig(kernel="ddim", eta=0.8, steps=setting.steps, project=chosen.sampler.project),
        rewards=replace(chosen.rewards, visual=0.0),
        perceptual=None,
        device=inputs["device"],
    )
    windows = _windows(setting, inputs["device"], inputs["seed"])
    sources = {field.name: windows for field in fields(MotionData) if field.name != "body"}
    data = MotionData(body=default_body().body_only(), **sources)
    return MotionTask(config, data, policy, None, windows.mask.device)


def _windows(setting: Setting, device: str, seed: int) -> Any:
    """The demo's motion, again and again until there are enough windows."""
    from mgrpo.body import default_body
    from mgrpo.data import cut_windows, drop_short, load_motion

    body = default_body()
    clips, _ = drop_short(load_motion("demo", body), setting.frames)
    cut = cut_windows(clips, body, length=setting.frames)
    return cut.select([(seed + number) % len(cut) for number in range(setting.conditions)]).to(device)
