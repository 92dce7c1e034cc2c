"""The examples in the documentation run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgrpo.runs.checkpoints import find_checkpoint, read_checkpoint
from mgrpo.runs.metric_log import read_metrics

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def test_a_policy_of_another_kind_is_post_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    import action_policy as example

    example.main(["--output", str(tmp_path / "run"), "--pretraining", "3", "--iterations", "2"])
    rows = read_metrics(tmp_path / "run")
    assert len(rows) == 2 and {"rewards/wrists/mean", "rewards/smooth/mean", "diversity/joint_std_mm"} <= rows[0].keys()
    assert rows[1]["validation/distance_mm"] > 0 and rows[0]["ratio/first_log_max"] == 0
    example.main(["--output", str(tmp_path / "run"), "--pretraining", "3", "--iterations", "3", "--resume"])
    assert read_metrics(tmp_path / "run")[:2] == rows and len(read_metrics(tmp_path / "run")) == 3
    saved = read_checkpoint(find_checkpoint(tmp_path / "run"))
    task = example.WristsHigh()
    assert saved.config["config"]["actions"] == len(task.actions.unique()) > 10
    # a real motion is at no distance from itself, so the measure is about the right thing
    joints = task.joints(task.states[:5]).flatten(-2)
    assert float((joints - task.joints(task.states[:5]).flatten(-2)).abs().max()) == 0
    assert task.score(task.states[:4, None], None).rewards.shape == (4, 1, 2)
