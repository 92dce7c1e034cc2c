"""What `mgrpo evaluate` computes: models, windows, and the pieces that the work is cut into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mgrpo import __version__
from mgrpo.body import BodyModel
from mgrpo.config_record import to_plain
from mgrpo.data import MotionWindows
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.stitching import Stitching
from mgrpo.diffusion.transition import Transitions
from mgrpo.errors import InputError
from mgrpo.eval.evaluate import EvaluationResult, evaluate
from mgrpo.eval.metrics import METRICS
from mgrpo.guidance import optimisation
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.perceptual import PerceptualConfig, PerceptualModel
from mgrpo.runs.stored_models import load_model
from mgrpo.runs.trained_length import trained_length

from .evaluation_folder import Piece, assemble, checksum_tensors, plain_result
from .evaluation_options import EvaluateConfig

if TYPE_CHECKING:
    import torch

FRAMES_PER_PIECE = 2048
"""Frames (windows x samples x length) of a piece of work. Small enough that little is lost by an interruption and that
eight processes share a test set evenly; the same for every way of sharing, since the size of a batch moves rounding."""

_NOT_COMPARED = frozenset(
    {
        # where the models and the data are: their contents are compared
        *("checkpoint", "name", "motion", "body", "part", "validation", "held_out", "post_training", "perceptual"),
        # which windows are cut from the data: the windows are compared
        *("length", "stride", "short_clips", "mirrored", "split", "slices", "file_list"),
        # how it is computed, and what is shown
        *("device", "shard", "windows_per_chunk", "family", "format", "out", "title", "published", "published_data"),
    }
)
"""Options that may differ when an evaluation is continued."""


@dataclass(frozen=True, eq=False)
class EvaluatedModel:
    """One model to evaluate."""

    name: str
    """Name in the tables."""
    denoiser: Denoiser
    """On the CPU, except while its pieces are computed."""
    transitions: Transitions
    """The sampler's steps."""
    stitching: Stitching
    """How the sampler cuts its windows."""


@dataclass(frozen=True, eq=False)
class EvaluationWork:
    """Everything that the pieces need."""

    config: EvaluateConfig
    device: torch.device
    body: BodyModel
    windows: MotionWindows
    perceptual: PerceptualModel | None
    models: tuple[EvaluatedModel, ...]

    @property
    def chunks(self) -> list[range]:
        """Numbers of the windows of each chunk."""
        config = self.config
        size = config.windows_per_chunk or max(1, FRAMES_PER_PIECE // (self.windows.length * config.samples))
        return [range(start, min(start + size, len(self.windows))) for start in range(0, len(self.windows), size)]

    def pieces(self) -> list[Piece]:
        """All the work, model by model."""
        chunks = range(len(self.chunks))
        return [
            Piece(model, chunk, seed)
            for model in range(len(self.models))
            for chunk in chunks
            for seed in self.config.seeds
        ]

    def settings(self) -> dict[str, Any]:
        """All that the values depend on, with checksums of what is too large to write down."""
        options = to_plain(self.config)
        perceptual = None if self.perceptual is None else checksum_tensors(self.perceptual.state_dict())
        return {
            "mgrpo": __version__,
            "options": {name: value for name, value in options.items() if name not in _NOT_COMPARED},
            "windows": {
                "count": len(self.windows),
                "frames": self.windows.length,
                "clips": list(self.windows.names),
                "sha256": checksum_tensors(_tensors(self.windows)),
            },
            "windows_in_a_piece": len(self.chunks[0]),
            "body_sha256": checksum_tensors(_tensors(self.body)),
            "perceptual_sha256": perceptual,
            # numbered: the pieces know a model by its place
            "models": {
                str(number): {
                    "name": model.name,
                    "sha256": checksum_tensors(model.denoiser.state_dict()),
                    "stitching": to_plain(model.stitching),
                }
                for number, model in enumerate(self.models, start=1)
            },
            "measures": list(METRICS),
        }

    def compute(self, piece: Piece) -> EvaluationResult:
        """The values of one piece; its model must be on the device."""
        numbers, model, config = self.chunks[piece.chunk], self.models[piece.model], self.config
        return evaluate(
            model.denoiser,
            self.windows.select(numbers),
            self.body,
            model.transitions,
            seeds=(piece.seed,),
            samples=config.samples,
            perceptual=self.perceptual,
            name=model.name,
            project_rotations=config.sampler.project,
            stitching=model.stitching,
            guidance=optimisation(config.guidance),
            windows_per_chunk=len(numbers),
            window_numbers=numbers,
        )

    def compute_all(
        self,
        pieces: list[Piece],
        done: Mapping[Piece, Mapping[str, Any]],
        keep: Callable[[Piece, EvaluationResult], None],
        progress: Callable[[str, int, int], Any],
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Compute the ``pieces`` that aren't ``done`` and hand each to ``keep``, until ``stop`` says so.

        ``progress(model name, windows in all, windows done before)`` gives the context in which a model's pieces are
        computed; the value that it is entered with has ``update(windows)``.
        """
        for number, model in enumerate(self.models):
            mine = [piece for piece in pieces if piece.model == number]
            open_pieces = [piece for piece in mine if piece not in done]
            if not open_pieces or stop():
                continue
            size = {piece: len(self.chunks[piece.chunk]) for piece in mine}
            total = sum(size.values())
            before = total - sum(size[piece] for piece in open_pieces)
            model.denoiser.to(self.device)
            try:
                with progress(model.name, total, before) as shown:
                    for piece in open_pieces:
                        if stop():
                            break
                        keep(piece, self.compute(piece))
                        shown.update(size[piece])
            finally:
                model.denoiser.cpu()

    def results(self, done: Mapping[Piece, Mapping[str, Any]]) -> list[EvaluationResult]:
        """The results of all models when every piece is there."""
        names = [model.name for model in self.models]
        return assemble(names, self.windows.names, self.chunks, self.config.seeds, self.config.samples, done)

    def compute_in_memory(self, progress: Callable[[str, int, int], Any]) -> list[EvaluationResult]:
        """Compute everything, keeping nothing on disk."""
        found: dict[Piece, dict[str, Any]] = {}
        self.compute_all(self.pieces(), {}, lambda piece, result: found.update({piece: plain_result(result)}), progress)
        return self.results(found)


def load_work(
    config: EvaluateConfig,
    windows: MotionWindows,
    body: BodyModel,
    device: torch.device,
    name_models: Callable[[list[Path]], list[str]],
) -> EvaluationWork:
    """Load the models that the options name. Raises InputError for checkpoints that can't be used."""
    perceptual = None
    if config.perceptual is not None:
        perceptual = load_model(config.perceptual, PerceptualModel, PerceptualConfig)[0].to(device)
    loaded = [load_model(path, Denoiser, DenoiserConfig, use_ema=config.use_ema) for path in config.checkpoint]
    names = config.name or name_models([checkpoint.path for _, _, checkpoint in loaded])
    if config.guidance != "off":
        names = [f"{name} ℵ" for name in names]  # as published tables mark their rows
    stitchings = [config.stitching.stitching(trained_length(checkpoint.path)) for _, _, checkpoint in loaded]
    cut = [stitching for stitching in stitchings if len(stitching.plan(windows.length)) > 1]
    if cut and len(set(stitchings)) > 1:
        raise InputError(
            f"--length {windows.length} is more than one window of {min(one.window for one in cut)} frames, and the "
            "models were trained with different lengths, so they would be given different windows; name one --window "
            "for all"
        )
    models = tuple(
        EvaluatedModel(name, denoiser, config.sampler.transitions(CosineSchedule.make(model_config.max_t)), stitching)
        for name, (denoiser, model_config, _), stitching in zip(names, loaded, stitchings)
    )
    return EvaluationWork(config, device, body, windows, perceptual, models)


def _tensors(holder: Any) -> dict[str, Tensor]:
    """The tensors among the fields of a dataclass."""
    return {name: value for name, value in vars(holder).items() if isinstance(value, Tensor)}
