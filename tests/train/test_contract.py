"""What post-training relies on in a policy and a task that others wrote, and what it says where that does not hold."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from mgrpo.errors import InputError
from mgrpo.execution.distributed import open_processes
from mgrpo.execution.precision import NetworkPrecision
from mgrpo.grpo.policy import PlainPolicy
from mgrpo.grpo.task import Scored, Seen, TensorBatch
from mgrpo.grpo.update import RatioCheckError
from mgrpo.runs.metric_log import read_metrics
from mgrpo.train.grpo_config import ExecutionConfig
from mgrpo.train.post_training import post_train
from tests.train import reaching_task
from tests.train.reaching_task import FRAMES, Network, Reach, train

CONFIG = replace(reaching_task.CONFIG, iterations=2, learning_rate=1e-3)


class Mixing(Network):
    """Every row sees the mean of all rows, of a share ``mixed``."""

    mixed = 1.0

    def forward(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        return super().forward(x_t - self.mixed * x_t.mean(0, keepdim=True), t, cond)


class Layered(Network):
    """With a layer that behaves in another way in training mode."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.layer(super().forward(x_t, t, cond))


class Forgetful(Network):
    """Dropout that no mode switches off."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        return nn.functional.dropout(super().forward(x_t, t, cond), 0.1, training=True)


class Broken(Network):
    def forward(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        return super().forward(x_t, t, cond) * math.nan


@pytest.mark.parametrize("execution", [ExecutionConfig(), ExecutionConfig(reuse_graphs="no", micro_conditions=2)])
def test_samples_that_see_each_other_are_refused(tmp_path: Path, execution: ExecutionConfig) -> None:
    config = replace(CONFIG, execution=execution)
    with pytest.raises(InputError, match="depends on the others in its batch"):
        train(replace(config, output=tmp_path / "mixing"), policy=PlainPolicy(Mixing()))
    hardly = Mixing()
    hardly.mixed = 1e-6  # as much as rounding
    train(replace(config, output=tmp_path / "hardly"), policy=PlainPolicy(hardly))


class OwnConditions(Reach):
    """Every member has a condition of its own, and samples have different lengths."""

    per_member = True

    def seen(self, batch: TensorBatch, *, iteration: int, first: int, members: range) -> Seen:
        """Goals that are moved by the member's number, frames by the condition's."""
        moved = batch["goal"][:, None] + torch.tensor(list(members))[:, None]
        real = torch.arange(FRAMES) < 2 + torch.arange(first, first + len(batch))[:, None] % 3
        return Seen({"goal": moved.flatten(0, 1)}, real)


class Masked(Network):
    """Takes conditions and mask; frames that are not real get something that depends on the rows."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        cond, mask = cond
        return torch.where(mask[..., None], super().forward(x_t, t, cond), float(len(x_t)))


def test_only_real_frames_and_the_own_condition_are_compared(tmp_path: Path) -> None:
    train(replace(CONFIG, output=tmp_path / "run"), OwnConditions(), PlainPolicy(Masked()))
    assert read_metrics(tmp_path / "run")[0]["ratio/first_log_max"] == 0


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(FRAMES)])
def test_a_policy_in_training_mode_is_put_into_evaluation_mode(tmp_path: Path, layer: nn.Module) -> None:
    policy = PlainPolicy(Layered(layer)).train()
    train(replace(CONFIG, output=tmp_path / "run"), policy=policy)
    assert not any(module.training for module in policy.modules())
    assert read_metrics(tmp_path / "run")[0]["ratio/first_log_max"] == 0


def test_a_network_that_is_not_itself_twice_is_caught(tmp_path: Path) -> None:
    with pytest.raises(RatioCheckError, match="before any update the ratio must be 1"):
        train(replace(CONFIG, output=tmp_path / "run"), policy=PlainPolicy(Forgetful()))
    with pytest.raises(RatioCheckError, match="prediction at sampler step 0 is not finite"):
        train(replace(CONFIG, output=tmp_path / "nan"), policy=PlainPolicy(Broken()))


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (lambda: Network(), r"\(Network\) has no method encode and no method decode; wrap"),
        (lambda: PlainPolicy(Network().requires_grad_(False)), "no parameter of the policy requires a gradient"),
        (lambda: PlainPolicy(Network().half()), r"parameter network.layers.0.weight is float16, .*policy.float\(\)"),
        (lambda: PlainPolicy(Network().bfloat16()), "is bfloat16"),
    ],
)
def test_policies_that_cannot_learn_are_refused(tmp_path: Path, policy: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        train(replace(CONFIG, output=tmp_path / "run"), policy=policy())
    assert not (tmp_path / "run").exists()


def test_weights_in_float64_learn(tmp_path: Path) -> None:
    train(replace(CONFIG, output=tmp_path / "run"), policy=PlainPolicy(InFloat64()))


class InFloat64(Network):
    def __init__(self) -> None:
        super().__init__()
        self.double()

    def forward(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        return super().forward(x_t.double(), t.double(), {"goal": cond["goal"].double()})


class Few(Reach):
    def draw(self, iteration: int, first: int, size: int) -> TensorBatch:
        return super().draw(iteration, first, size).select(slice(0, 2 if size > 1 else 1))


class Empty(Reach):
    def draw(self, iteration: int, first: int, size: int) -> TensorBatch:
        return TensorBatch()


class NoWeight(Reach):
    reward_weights: ClassVar = {"near": 0.0, "small": 0.0}


class Scores(Reach):
    """Returns what ``change`` makes of its scores."""

    def __init__(self, change: Any) -> None:
        self.change = change

    def score(self, x0: Tensor, batch: TensorBatch) -> Any:
        return self.change(super().score(x0, batch))


class Measures(Reach):
    def measures(self, outcome: Tensor, batch: TensorBatch) -> dict[str, Tensor]:
        return {"spread": outcome.std()}


class Sees(Reach):
    def __init__(self, cond: Any, mask: Tensor | None) -> None:
        self.shown = Seen(cond, mask)

    def seen(self, batch: TensorBatch, *, iteration: int, first: int, members: range) -> Seen:
        return self.shown


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Few(), r"task.draw\(\) was asked for 6 conditions and gave 2"),
        (Empty(), "asked for 1 conditions and gave 0"),
        (NoWeight(), r"at least one of them other than 0, got \{'near': 0.0, 'small': 0.0\}"),
        (Scores(lambda one: Scored(one.rewards[..., :1])), r"shape \(6, 4, 2\).*near, small\); got float32 \(6, 4, 1"),
        (Scores(lambda one: Scored(one.rewards.mean(1))), r"got float32 \(6, 2\)"),
        (Scores(lambda one: Scored(one.rewards.long())), r"got int64 \(6, 4, 2\)"),
        (Scores(lambda one: one.rewards), "got Tensor"),
        (Scores(lambda one: Scored(one.rewards.numpy())), "got ndarray"),
        (Measures(), r"must return a tensor \(6,\) for 'spread', .* got \(\)"),
        (Sees({"goal": torch.zeros(3, 2)}, None), r"needs 1 rows .* got shape \(3, 2\)"),
        (Sees({"goal": torch.zeros(1, 2)}, torch.ones(1, FRAMES)), r"mask of shape \(1, 4\).* got float32 \(1, 4\)"),
        (Sees({"goal": torch.zeros(1, 2)}, torch.ones(1, 5, dtype=torch.bool)), r"got bool \(1, 5\)"),
    ],
)
def test_tasks_that_break_the_contract_are_told_so(tmp_path: Path, task: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        train(replace(CONFIG, output=tmp_path / "run"), task)


def test_infinite_rewards_are_no_scores(tmp_path: Path) -> None:
    """They count as NaN does, and leave the means of the others alone."""

    def change(scored: Scored, value: float) -> Scored:
        scored.rewards[0, 1, 0] = value
        return scored

    for value in (math.inf, math.nan):
        config = replace(CONFIG, output=tmp_path / str(value), iterations=1, validate_every=0)
        train(config, Scores(lambda one, value=value: change(one, value)))
    infinite, missing = (read_metrics(tmp_path / name)[0] for name in ("inf", "nan"))
    assert infinite["unscored_samples"] == 1
    for name in ("reward", "rewards/near/mean", "grad_norm"):
        assert infinite[name] == missing[name] is not None


def test_measures_may_be_tensors(tmp_path: Path) -> None:
    class Gold(Reach):
        def gold(self, policy: Any) -> Any:
            return {"error": torch.tensor(2.5)}

    train(replace(CONFIG, output=tmp_path / "run"), Gold())
    assert read_metrics(tmp_path / "run")[1]["validation/error"] == 2.5


def test_one_precision_is_meant(tmp_path: Path) -> None:
    with (
        open_processes("cpu") as processes,
        pytest.raises(InputError, match=r"precision given is fp32, but config.execution.precision is bf16"),
    ):
        post_train(
            PlainPolicy(Network()), Reach(),
            replace(CONFIG, output=tmp_path / "run", execution=ExecutionConfig(precision="bf16")),
            processes=processes, precision=NetworkPrecision("fp32", processes.device),
        )  # fmt: skip
