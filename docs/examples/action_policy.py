"""Post-train a motion model of another kind with rewards of your own: an action-conditioned transformer in MDM's style.

It learns the demo's fifteen motions from their names (jump, walk, ...), then GRPO teaches it to do the same with the
wrists held high, and smoothly. Nothing here knows heads, SMPL-H states or the denoiser of mgrpo; what the trainer asks
of a policy and a task is `mgrpo.grpo.policy.PlainPolicy` and `mgrpo.grpo.task.Task`.

    python docs/examples/action_policy.py --output runs/action

Takes about two minutes on two CPU cores; under torchrun several processes share it. `mgrpo report runs/action` draws
its curves.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mgrpo.body import default_body
from mgrpo.data import cut_windows, load_motion
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.transition import Transitions, make_transitions
from mgrpo.execution.distributed import open_processes
from mgrpo.execution.precision import NetworkPrecision
from mgrpo.execution.seeding import iteration_generator
from mgrpo.grpo.policy import PlainPolicy
from mgrpo.grpo.task import Scored, Seen, TensorBatch
from mgrpo.grpo.update import PolicyLossConfig
from mgrpo.kernels import forward_kinematics
from mgrpo.train.grpo_config import PostTrainingConfig
from mgrpo.train.post_training import post_train

FRAMES, JOINTS = 24, 21
CHANNELS = 6 * JOINTS  # each joint's rotation as two columns of its matrix
WRISTS, FPS = (20, 21), 30.0  # of the 22 joints that begin with the pelvis
SCHEDULE = CosineSchedule.make()


@dataclass(frozen=True)
class MotionTransformerConfig:
    """Saved beside the weights."""

    actions: int
    width: int = 64
    layers: int = 2


class MotionTransformer(nn.Module):
    """x0_pred = network(x_t, t, cond): frames are tokens, level and action are one more."""

    def __init__(self, config: MotionTransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.action = nn.Embedding(config.actions, width)
        self.level = nn.Embedding(SCHEDULE.max_t, width)
        self.place = nn.Parameter(0.02 * torch.randn(FRAMES + 1, width))
        self.read, self.write = nn.Linear(CHANNELS, width), nn.Linear(width, CHANNELS)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)

    def forward(self, x_t: Tensor, t: Tensor, cond: TensorBatch) -> Tensor:
        """``x_t (N, T, D)`` at levels ``t (N,)`` in 1 … max_t, ``cond["action"] (N,)``; returns ``(N, T, D)``."""
        told = self.action(cond["action"]) + self.level(t - 1)
        tokens = torch.cat((told[:, None], self.read(x_t)), dim=1) + self.place
        return self.write(self.layers(tokens)[:, 1:])


class WristsHigh:
    """The task: motions of given names, better the higher the wrists and the smoother the joints."""

    layout = None  # states are not EgoAllo's: nothing to project, all channels count
    project_rotations = False
    per_member = False

    def __init__(self) -> None:
        body = default_body().body_only()
        clips = [clip for clip in load_motion("demo", body) if len(clip) > FRAMES]
        windows = cut_windows(clips, body, length=FRAMES, stride=4)
        names = sorted(set(windows.names))
        self.actions = torch.tensor([names.index(name) for name in windows.names])
        self.states = windows.body_rotmats[..., :2].transpose(-1, -2).flatten(-3)  # (N, T, D)
        self.body = body
        self.reward_weights = {"wrists": 1.0, "smooth": 0.5}

    # What the trainer asks for

    def transitions(self, noisy_steps: Collection[int] | None) -> Transitions:
        """The sampler."""
        return make_transitions("ddim", eta=1.0, steps=12, schedule=SCHEDULE, noisy_steps=noisy_steps)

    def draw(self, iteration: int, first: int, size: int) -> TensorBatch:
        """The same actions for every process that asks for the same part of the same iteration."""
        order = torch.randperm(len(self.actions), generator=iteration_generator(0, iteration, "actions"))
        return TensorBatch(action=self.actions[order[first : first + size]])

    def state_shape(self, batch: TensorBatch) -> tuple[int, int]:
        """Frames and channels."""
        return FRAMES, CHANNELS

    def seen(self, batch: TensorBatch, *, iteration: int, first: int, members: range) -> Seen:
        """The policy is told the action."""
        return Seen(batch)

    def joints(self, x0: Tensor) -> Tensor:
        """Positions ``(*b, T, 21, 3)`` in the pelvis' frame, metres; its y axis points up."""
        rotations = x0.unflatten(-1, (JOINTS, 6))
        body = self.body
        return forward_kinematics(rotations, body.offset_template, body.parents, representation="rot6d").joints

    @torch.no_grad()
    def score(self, x0: Tensor, batch: TensorBatch) -> Scored:
        """Rewards ``(B, G, 2)`` of samples ``(B, G, T, D)``: mean height of the wrists above the pelvis in metres, and
        minus the mean acceleration of all joints, in g."""
        joints = self.joints(x0)
        height = joints[..., [one - 1 for one in WRISTS], 1].mean((-1, -2))
        acceleration = torch.diff(joints, n=2, dim=-3).norm(dim=-1).mean((-1, -2)) * FPS**2 / 9.81
        return Scored(torch.stack((height, -acceleration), dim=-1), joints.flatten(-2))

    def measures(self, outcome: Tensor, batch: TensorBatch) -> dict[str, Tensor]:
        """Millimetres that the members of a group differ by."""
        return {"diversity/joint_std_mm": 1000 * outcome.std(1).mean((-1, -2))}

    @torch.no_grad()
    def gold(self, policy: nn.Module) -> dict[str, float]:
        """What is no reward: how far the motions are from the nearest real one of their name, in millimetres."""
        from mgrpo.diffusion.sampler import NoiseKeys
        from mgrpo.grpo.rollout import roll_out

        actions = self.actions.unique()
        device = next(policy.parameters()).device
        keys = NoiseKeys(1, 0, torch.arange(len(actions), device=device), 4, share_initial=False)
        cond = TensorBatch(action=actions).to(device)
        x0 = roll_out(policy, cond, self.transitions(None), keys, shape=(FRAMES, CHANNELS), steps=()).x0.cpu()
        made, real = self.joints(x0).flatten(-2), self.joints(self.states).flatten(-2)
        nearest = [
            (made[row][:, None] - real[self.actions == action]).abs().mean((-1, -2)).min(1).values.mean()
            for row, action in enumerate(actions)
        ]
        return {"distance_mm": 1000 * float(torch.stack(nearest).mean())}


def pretrain(policy: PlainPolicy, task: WristsHigh, steps: int) -> None:
    """The prior: predict clean motions from noised ones."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    for step in range(steps):
        generator = iteration_generator(0, step, "pretraining")
        rows = torch.randint(len(task.states), (64,), generator=generator)
        t = torch.randint(1, SCHEDULE.max_t + 1, (64,), generator=generator)
        alpha_bar = SCHEDULE.alpha_bar[t].float()[:, None, None]
        noise = torch.randn(64, FRAMES, CHANNELS, generator=generator)
        x0 = task.states[rows]
        x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
        loss = (policy.network(x_t, t, TensorBatch(action=task.actions[rows])) - x0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"prior {step + 1}/{steps}: loss {loss.item():.4f}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Train the prior, then post-train it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/action"), help="run folder")
    parser.add_argument("--pretraining", type=int, default=1500, help="optimiser steps of the prior")
    parser.add_argument("--iterations", type=int, default=80, help="rollouts")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of the run folder")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    task = WristsHigh()
    config = MotionTransformerConfig(actions=int(task.actions.max()) + 1)
    policy = PlainPolicy(MotionTransformer(config), config)
    pretrain(policy, task, options.pretraining)
    policy.eval()
    training = PostTrainingConfig(
        output=options.output,
        iterations=options.iterations,
        resume=options.resume,
        conditions=16,
        group_size=8,
        learning_rate=2e-5,
        loss=PolicyLossConfig(step_weight="inv_snr"),
        gold="distance_mm",
        validate_every=20,
        device="cpu",
    )
    with open_processes(training.device) as processes:
        precision = NetworkPrecision(training.execution.precision, processes.device)
        last = post_train(policy, task, training, processes=processes, precision=precision)
        if processes.main:
            print(last)


if __name__ == "__main__":
    main()
