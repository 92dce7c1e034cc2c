"""What process 0 writes and shows of every finished iteration: log, alarms, unscored samples, trackers, terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from mgrpo.config_record import to_plain
from mgrpo.grpo.alarms import Alarm, Alarms

from .grpo_config import PostTrainingConfig
from .live_view import LiveView
from .loop_frame import Unscored
from .metric_log import read_metrics
from .progress import Progress, notice
from .run_dir import RunDir
from .tracking import Tracker


class Observation:
    """Of one training, by the process that writes. A context manager; a resumed training remembers what its log
    holds."""

    def __init__(self, run: RunDir, config: PostTrainingConfig, rewards: Sequence[str], progress: Progress) -> None:
        self._run, self._progress = run, progress
        self._alarms = Alarms(
            config.alarms, clip_range=config.loss.clip_range, gold=config.gold, gold_better=config.gold_better
        )
        self._view = LiveView(rewards, gold=config.gold, gold_better=config.gold_better)
        rows = read_metrics(run.path) if run.start_step else []
        self._alarms.replay(rows)
        for row in rows:
            self._view.observe(int(row["step"]), row)
        progress.view = self._view
        self._tracker = Tracker(config.track, run.path, project=config.track_project, config=to_plain(config))

    def __enter__(self) -> Observation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tracker.close()

    def iteration(self, done: int, metrics: Mapping[str, float], unscored: Sequence[Unscored]) -> None:
        """Write and show an iteration; ``done`` counts the finished ones. Raises StorageError."""
        self.unscored(done, unscored)
        alarms = self._alarms.observe(done, metrics)
        metrics = {**metrics, **{f"alarm/{alarm.name}": 1.0 for alarm in alarms}}
        for alarm in alarms:
            self._give(alarm)
        self._run.log(done, metrics)
        self._tracker.log(done, metrics)
        self._view.observe(done, metrics)
        self._progress.update(reward=metrics["reward"])

    def unscored(self, done: int, samples: Sequence[Unscored]) -> None:
        """Name samples in unscored.jsonl, also those of an iteration that comes to nothing. Raises StorageError."""
        for group in samples:
            self._run.note("unscored.jsonl", done, group._asdict())

    def _give(self, alarm: Alarm) -> None:
        notice(f"alarm, iteration {alarm.step}: {alarm.text}")
        self._run.note("alarms.jsonl", alarm.step, {"name": alarm.name, "text": alarm.text})
        self._view.alarm(alarm.step, alarm.name, alarm.text)
