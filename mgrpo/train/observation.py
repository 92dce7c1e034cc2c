"""What process 0 writes and shows of every finished iteration: log, alarms, unscored samples, trackers, terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import NamedTuple

from mgrpo.config_record import to_plain
from mgrpo.grpo.alarms import Alarm, Alarms
from mgrpo.runs.metric_log import read_metrics
from mgrpo.runs.run_dir import RunDir
from mgrpo.runs.tracking import Tracker
from mgrpo.terminal.interrupt import TrainingInterrupted
from mgrpo.terminal.progress import View, notice

from .grpo_config import PostTrainingConfig
from .live_view import LiveView
from .run_config import RunConfig


class Unscored(NamedTuple):
    """Members of one group that could not be scored."""

    condition: int
    """Number of the condition in its iteration."""
    clip: str | None
    """Where the condition comes from, if its batch knows."""
    members: list[int]
    """Those of which some reward is NaN."""
    rewards: list[str]
    """Rewards that are NaN for one of them or more."""


class Log:
    """The log of one training and its tracker. A context manager, around the progress: what a tracker says, or asks
    for, stands before and after the bar."""

    view: View | None = None
    """What to show under the bar."""

    def __init__(self, run: RunDir, config: RunConfig) -> None:
        self._run = run
        self._tracker = Tracker(config.track, run.path, project=config.track_project, config=to_plain(config))

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, KeyboardInterrupt) or isinstance(error, TrainingInterrupted):
            self._tracker.close()  # which may take a while; a second Ctrl-C ends at once

    def iteration(self, done: int, metrics: Mapping[str, float], unscored: Sequence[Unscored]) -> None:
        """Write a finished iteration; ``done`` counts them. Raises StorageError."""
        self._run.log(done, metrics)
        self._tracker.log(done, metrics)

    def unscored(self, done: int, samples: Sequence[Unscored]) -> None:
        """Name the samples of an iteration that comes to nothing. Raises StorageError."""


class Observation(Log):
    """What GRPO tells besides: alarms, the names of unscored samples, curves on the terminal. A resumed training
    remembers what its log holds."""

    def __init__(self, run: RunDir, config: PostTrainingConfig, rewards: Sequence[str]) -> None:
        self._alarms = Alarms(
            config.alarms, clip_range=config.loss.clip_range, gold=config.gold, gold_better=config.gold_better
        )
        self.view = self._view = LiveView(rewards, gold=config.gold, gold_better=config.gold_better)
        rows = read_metrics(run.path) if run.start_step else []
        self._alarms.replay(rows)
        for row in rows:
            self._view.observe(int(row["step"]), row)
        super().__init__(run, config)

    def iteration(self, done: int, metrics: Mapping[str, float], unscored: Sequence[Unscored]) -> None:
        """Write and show a finished iteration. Raises StorageError."""
        self.unscored(done, unscored)
        alarms = self._alarms.observe(done, metrics)
        metrics = {**metrics, **{f"alarm/{alarm.name}": 1.0 for alarm in alarms}}
        for alarm in alarms:
            self._give(alarm)
        super().iteration(done, metrics, unscored)
        self._view.observe(done, metrics)

    def unscored(self, done: int, samples: Sequence[Unscored]) -> None:
        """Name samples in unscored.jsonl, also those of an iteration that comes to nothing. Raises StorageError."""
        for group in samples:
            self._run.note("unscored.jsonl", done, group._asdict())

    def _give(self, alarm: Alarm) -> None:
        notice(f"alarm, iteration {alarm.step}: {alarm.text}")
        self._run.note("alarms.jsonl", alarm.step, {"name": alarm.name, "text": alarm.text})
        self._view.alarm(alarm.step, alarm.name, alarm.text)
