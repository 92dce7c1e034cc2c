"""Evaluation of a denoiser on fixed windows with fixed noise.

The noise of a sample is a function of (seed, window, sample) alone, so two models that are evaluated on the same
windows with the same seeds meet the same noise, whatever the chunk size, and their difference can be taken window by
window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from mgrpo.data.split import recording_of
from mgrpo.diffusion.sampler import NoiseKeys, sample
from mgrpo.diffusion.stitched_sampler import sample_stitched
from mgrpo.errors import InputError
from mgrpo.guidance import GuidanceConfig, SamplingGuidance
from mgrpo.models.conditioning import make_cond
from mgrpo.models.motion import PredictedMotion, decode_motion
from mgrpo.models.state import StateLayout

from .bootstrap import bootstrap_intervals
from .metrics import (
    METRICS,
    fs_egoallo_m,
    fs_mm_per_contact_frame,
    gnd,
    gp_mean_mm,
    gp_sum_m,
    group_diversity,
    jitter_m_s3,
    motion_metrics,
)
from .statistics import PairedDifference, Statistic, over_windows_and_seeds, paired_difference

if TYPE_CHECKING:
    from mgrpo.body import BodyModel
    from mgrpo.data import MotionWindows
    from mgrpo.diffusion.stitching import Stitching
    from mgrpo.diffusion.transition import Transitions
    from mgrpo.models.denoiser import Denoiser
    from mgrpo.models.perceptual import PerceptualModel

FRAMES_PER_CHUNK = 16384
"""Frames (windows x samples x length) that are sampled together when the caller doesn't choose; bounds the memory."""


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """What a model scored on N windows with R seeds and S samples each. Every value is kept, on the CPU in float64."""

    name: str
    """Name of the model in tables."""
    window_names: tuple[str, ...]
    """Clip of each of the N windows."""
    seeds: tuple[int, ...]
    """The R seeds."""
    samples: int
    """Samples S per window and seed."""
    values: dict[str, Tensor]
    """Per sample ``(N, R, S)``: the measures of :data:`mgrpo.eval.metrics.METRICS`; with a perceptual model also score,
    score_gap, accuracy."""
    group_values: dict[str, Tensor]
    """Per group of samples ``(N, R)``: diversity; empty for S = 1."""
    mean_of_samples: dict[str, Tensor]
    """Measures ``(N, R)`` of the mean motion of each group; empty for S = 1."""
    ground_truth: dict[str, Tensor]
    """Measures ``(N,)`` of the recorded motion itself: smoothness, floor, score."""
    settings: dict[str, Any]
    """How the samples were drawn: kernel, eta, steps, rotations projected or not, frames and their rate."""

    @property
    def windows(self) -> int:
        """Number N of windows."""
        return len(self.window_names)

    def statistics(self) -> dict[str, Statistic]:
        """Mean and standard error over windows and seeds of every measure, in table order; wrong_count derived from
        accuracy."""
        found = {name: over_windows_and_seeds(value) for name, value in (self.values | self.group_values).items()}
        return _with_wrong_count(found, self.windows)

    def mean_of_samples_statistics(self) -> dict[str, Statistic]:
        """The same for the mean motion of each group."""
        found = {name: over_windows_and_seeds(value) for name, value in self.mean_of_samples.items()}
        return _with_wrong_count(found, self.windows)

    def ground_truth_statistics(self) -> dict[str, Statistic]:
        """The same for the recorded motion."""
        return _ordered({name: over_windows_and_seeds(value[:, None]) for name, value in self.ground_truth.items()})

    def means(self) -> dict[str, float]:
        """The means of :meth:`statistics`; NaN where nothing could be scored."""
        return {name: statistic.mean for name, statistic in self.statistics().items()}


def _ordered(statistics: dict[str, Statistic]) -> dict[str, Statistic]:
    return {name: statistics[name] for name in METRICS if name in statistics}


def _with_wrong_count(statistics: dict[str, Statistic], windows: int) -> dict[str, Statistic]:
    """Add the published Wrong Count: windows times the share of samples that the truth does not beat."""
    accuracy = statistics.get("accuracy")
    if accuracy is not None:
        wrong = Statistic(
            windows * (1 - accuracy.mean), windows * accuracy.standard_error, accuracy.windows, accuracy.seeds
        )
        statistics = statistics | {"wrong_count": wrong}
    return _ordered(statistics)


def compare(first: EvaluationResult, second: EvaluationResult) -> dict[str, PairedDifference]:
    """Paired difference ``second - first`` of every measure both have, with its interval over clips
    (:func:`mgrpo.eval.bootstrap.bootstrap_intervals`).

    Raises InputError unless both were evaluated on the same windows with the same seeds, samples and sampler.
    """
    for field in ("window_names", "seeds", "samples", "settings"):
        ours, theirs = getattr(first, field), getattr(second, field)
        if ours != theirs:
            raise InputError(
                f"compare(): {first.name!r} and {second.name!r} were evaluated with different "
                f"{field.replace('_', ' ')} ({_short(ours)} and {_short(theirs)}); evaluate both on the same windows, "
                "with the same seeds and sampler."
            )
    mine, others = first.values | first.group_values, second.values | second.group_values
    found = {name: paired_difference(mine[name], others[name]) for name in METRICS if name in mine and name in others}
    # A window's mean over seeds and samples: the clips, not the seeds, are what is drawn again.
    per_window = [(others[name].double() - mine[name].double()).flatten(1).nanmean(1) for name in found]
    recordings = [recording_of(name) for name in first.window_names]
    intervals = bootstrap_intervals(torch.stack(per_window, dim=1), recordings) if found else []
    return {
        name: replace(difference, interval_low=interval.low, interval_high=interval.high, clusters=len(set(recordings)))
        for (name, difference), interval in zip(found.items(), intervals)
    }


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@torch.no_grad()
def evaluate(
    denoiser: Denoiser,
    windows: MotionWindows,
    body: BodyModel,
    transitions: Transitions,
    *,
    seeds: Sequence[int] = (0,),
    samples: int = 1,
    perceptual: PerceptualModel | None = None,
    progress: Callable[[int, int], None] | None = None,
    name: str = "model",
    project_rotations: bool = True,
    stitching: Stitching | None = None,
    fps: float = 30.0,
    guidance: GuidanceConfig | None = None,
    windows_per_chunk: int | None = None,
    window_numbers: Sequence[int] | None = None,
) -> EvaluationResult:
    """Sample every window ``samples`` times for each seed from its clean head trajectory, and measure.

    Args:
        denoiser: on the device where the work shall be done; its training mode is left as it was.
        windows: N windows on any device; their mask is applied to every measure.
        body: body with 21 joints, for forward kinematics.
        transitions: the sampler's steps.
        seeds: keys of the noise.
        samples: samples S per window and seed, with independent initial noise; 2 or more give diversity and the mean of
            samples.
        perceptual: adds score, score_gap and accuracy.
        progress: called with (windows done, windows in all), seeds counted separately.
        name: the model's name in tables.
        project_rotations: project the predicted rotations inside the sampler (EgoAllo's inference).
        stitching: how the sampler cuts long windows into shorter ones that it blends; None samples each as it is. With
            ``Stitching("egoallo")``, 128 frames are the original's two.
        fps: frames per second of the windows.
        guidance: optimisation of the samples, of a mode without hands; None: none. Its body is the mean shape of each
            sample, while the measures take the predicted shape of every frame, as in EgoAllo.
        windows_per_chunk: windows sampled together; None bounds the memory (:data:`FRAMES_PER_CHUNK`).
        window_numbers: number of each window, the key of its noise; None: 0 to N - 1. A part of a set of windows that
            keeps its numbers meets the noise that it meets in the whole set.

    Raises:
        InputError: no windows, no or repeated seeds, fewer than one sample, or not one number for each window.
    """
    count, frames = windows.mask.shape
    seeds = tuple(int(seed) for seed in seeds)
    if count == 0:
        raise InputError("evaluate(): there are no windows; check the split of the clips and the window length.")
    if not seeds or len(set(seeds)) != len(seeds):
        raise InputError(f"evaluate(): seeds must be different whole numbers, at least one, got {seeds}.")
    if samples < 1:
        raise InputError(f"evaluate(): samples must be at least 1, got {samples}.")
    if window_numbers is not None and len(window_numbers) != count:
        raise InputError(f"evaluate(): there are {count} windows, but {len(window_numbers)} window_numbers.")
    numbers = torch.arange(count) if window_numbers is None else torch.tensor(window_numbers, dtype=torch.long)
    device = next(denoiser.parameters()).device
    chunk = windows_per_chunk or max(1, FRAMES_PER_CHUNK // (frames * samples))
    drawing = _Drawing(denoiser, body.to(device), transitions, samples, project_rotations, stitching, guidance)
    chunks: list[_Measured] = []
    with _evaluation_mode(denoiser, perceptual):
        for start in range(0, count, chunk):
            index = torch.arange(start, min(start + chunk, count))
            part = windows.select(index).to(device)
            truth = _truth_measures(part, perceptual, fps)
            draw = drawing.sampler(part, numbers[index].to(device))
            of_seeds: list[_Measured] = []
            for number, seed in enumerate(seeds):
                of_seeds.append(_measured(drawing, draw(seed), part, perceptual, truth, fps))
                if progress is not None:
                    progress(start * len(seeds) + (number + 1) * len(index), count * len(seeds))
            chunks.append(
                _Measured(
                    per_sample=_stack_seeds([one.per_sample for one in of_seeds]),
                    per_group=_stack_seeds([one.per_group for one in of_seeds]),
                    of_mean=_stack_seeds([one.of_mean for one in of_seeds]),
                    truth=truth,
                )
            )
    return EvaluationResult(
        name=name,
        window_names=tuple(windows.names),
        seeds=seeds,
        samples=samples,
        values=_join([one.per_sample for one in chunks]),
        group_values=_join([one.per_group for one in chunks]),
        mean_of_samples=_join([one.of_mean for one in chunks]),
        ground_truth=_join([one.truth for one in chunks]),
        settings={
            "kernel": transitions.kernel,
            "eta": transitions.eta,
            "steps": len(transitions),
            "project_rotations": project_rotations,
            "frames": frames,
            "fps": fps,
        }
        | _stitched(stitching, frames)
        | ({"guidance": guidance.phases} if guidance is not None and guidance.enabled else {}),
    )


class _Measured(NamedTuple):
    """Measures of B windows by name: with one seed ``(B, S)`` and ``(B,)``, with R of them ``(B, R, S)`` and ``(B,
    R)``; of the recorded motion ``(B,)``. Of a single sample there are none of groups and means."""

    per_sample: dict[str, Tensor]
    per_group: dict[str, Tensor]
    of_mean: dict[str, Tensor]
    truth: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class _Drawing:
    """How samples are drawn, whatever the windows."""

    denoiser: Denoiser
    body: BodyModel
    transitions: Transitions
    samples: int
    project_rotations: bool
    stitching: Stitching | None
    guidance: GuidanceConfig | None

    @property
    def layout(self) -> StateLayout:
        return StateLayout(include_hands=self.denoiser.config.include_hands)

    def sampler(self, part: MotionWindows, numbers: Tensor) -> Callable[[int], Tensor]:
        """What draws the states ``(B, S, T, C)`` of B windows, whose noise is known by ``numbers (B,)``, for a seed."""
        head = part.T_world_cpf, part.T_cpf_tm1_cpf_t
        if self.stitching is None:
            draw = partial(sample, self.denoiser, make_cond(self.denoiser.config, *head))
        else:
            draw = partial(sample_stitched, self.denoiser, *head, stitching=self.stitching)
        mask = None if bool(part.mask.all()) else part.mask
        guidance = self.guidance or GuidanceConfig("off")
        guided = SamplingGuidance(guidance, self.layout, self.body, part.T_world_cpf, mask=mask)

        def of_seed(seed: int) -> Tensor:
            keys = NoiseKeys(seed=seed, iteration=0, condition=numbers, members=self.samples, share_initial=False)
            drawn = draw(
                self.transitions,
                keys,
                guidance=guided.hook(len(self.transitions)),
                layout=self.layout,
                mask=mask,
                project_rotations=self.project_rotations,
            )
            return guided.finish(drawn.x0)

        return of_seed

    def motion(self, x0: Tensor, part: MotionWindows) -> PredictedMotion:
        """The motion of states ``(B, S, T, C)`` under the windows' heads."""
        return decode_motion(self.layout, x0, part.T_world_cpf[:, None], self.body)


@contextmanager
def _evaluation_mode(*modules: nn.Module | None) -> Iterator[None]:
    """Modules in evaluation mode for a block, and back in the one that they were in."""
    there = [(module, module.training) for module in modules if module is not None]
    for module, _ in there:
        module.eval()
    try:
        yield
    finally:
        for module, training in there:
            module.train(training)


def _measured(
    drawing: _Drawing,
    x0: Tensor,
    part: MotionWindows,
    perceptual: PerceptualModel | None,
    truth: dict[str, Tensor],
    fps: float,
) -> _Measured:
    """Measures of the states of one seed; where there are several samples, also of their group and their mean."""
    motion = drawing.motion(x0, part)
    per_sample = _sample_measures(motion, part, perceptual, truth, fps)
    if x0.shape[1] == 1:
        return _Measured(per_sample, {}, {}, truth)
    # The mean of the states, projected back to rotations, is the chordal mean of the samples' rotations.
    average = _sample_measures(drawing.motion(x0.mean(1, keepdim=True), part), part, perceptual, truth, fps)
    of_mean = {key: value[:, 0] for key, value in average.items()}
    return _Measured(per_sample, group_diversity(motion.joints22, part.mask), of_mean, truth)


def _stitched(stitching: Stitching | None, frames: int) -> dict[str, Any]:
    """What the settings say of windows inside a window: nothing where there is only one, predicted as it is."""
    if stitching is None or (len(stitching.plan(frames)) == 1 and stitching.blend != "author"):
        return {}
    return {"blend": stitching.blend, "window": stitching.window, "overlap": stitching.overlap}


def _sample_measures(
    motion: PredictedMotion,
    windows: MotionWindows,
    perceptual: PerceptualModel | None,
    truth: dict[str, Tensor],
    fps: float,
) -> dict[str, Tensor]:
    """All measures ``(B, S)`` of samples against their windows."""
    measures = motion_metrics(motion, windows, fps=fps)
    if perceptual is not None:
        true_score = truth["score"].to(motion.joints22.device)[:, None]
        score = score_samples(perceptual, motion, windows)
        # a sample that isn't a motion has no error and no score: a comparison with NaN would say that it passed
        score = torch.where(measures["mpjpe_mm"].isnan(), torch.nan, score)
        gap = true_score - score
        measures |= {
            "score": score,
            "score_gap": gap,
            "accuracy": torch.where(gap.isnan(), torch.nan, (gap > 0).to(score.dtype)),
        }
    return {name: value.double().cpu() for name, value in measures.items()}


def _truth_measures(windows: MotionWindows, perceptual: PerceptualModel | None, fps: float) -> dict[str, Tensor]:
    """Measures ``(B,)`` of the recorded motion itself."""
    joints, mask = windows.joints, windows.mask
    measures = {
        "jitter_m_s3": jitter_m_s3(joints, mask, fps=fps),
        "gp_mean_mm": gp_mean_mm(joints, mask),
        "gp_sum_m": gp_sum_m(joints, mask),
        "fs_mm_per_contact_frame": fs_mm_per_contact_frame(joints, mask),
        "fs_egoallo_m": fs_egoallo_m(joints, mask),
        "gnd": gnd(joints, mask),
    }
    if perceptual is not None:
        measures["score"] = score_windows(perceptual, windows)
    return {name: value.double().cpu() for name, value in measures.items()}


def score_windows(perceptual: PerceptualModel, windows: MotionWindows) -> Tensor:
    """Perceptual score ``(B,)`` of the recorded motion of B windows."""
    return perceptual(windows.R_world_joint, windows.joints, windows.T_world_cpf, windows.mask)


def score_samples(perceptual: PerceptualModel, motion: PredictedMotion, windows: MotionWindows) -> Tensor:
    """Perceptual score ``(B, S)`` of S samples for each of B windows, beside the windows' own head trajectories."""
    batch, samples = motion.joints22.shape[:2]
    head = windows.T_world_cpf[:, None].expand(-1, samples, -1, -1).flatten(0, 1)
    mask = windows.mask[:, None].expand(-1, samples, -1).flatten(0, 1)
    score = perceptual(motion.R_world_joint22.flatten(0, 1), motion.joints22.flatten(0, 1), head, mask)
    return score.view(batch, samples)


def _stack_seeds(seeds: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the seeds' dictionaries of ``(B, …)`` into one of ``(B, R, …)``."""
    return {name: torch.stack([values[name].double().cpu() for values in seeds], dim=1) for name in seeds[0]}


def _join(chunks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the chunks' dictionaries along the windows."""
    return {name: torch.cat([values[name] for values in chunks]) for name in chunks[0]}
