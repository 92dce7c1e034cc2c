"""Sampling one sequence with the published network: as `mgrpo infer` does it, in float32 and in the precision that is
fastest on the machine, against a plain eager loop over the same network (:mod:`mgrpo.infer.plain`).

All get the same noise. The exact result is the plain loop's in float64: what half precision changes is the relative
error of its row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

from ..workload import OURS, PLAIN, Implementation, Inputs, Results, Workload

FRAMES = 128
STEPS = 10
"""Of the paper's thirty: all cost the same, and a measurement must end."""
MULTIPLIED_PER_FRAME = 186 * 512**2
"""Weights of the published network that a token passes in a step, encoder included."""
SECONDS = 25.0
"""Bound on a measurement, however busy the machine is."""


def workloads(device: str, backends: Sequence[str] | None) -> list[Workload]:
    """One sequence; a GPU samples more at once."""
    count = {"cpu": 1, "cuda": 64}[device.split(":")[0]]
    return [workload(device, backends, count)]


def workload(
    device: str, backends: Sequence[str] | None, count: int, preset: str = "egoallo", frames: int = FRAMES
) -> Workload:
    """One size."""
    return Workload(
        op="inference",
        name=f"inference_{count}",
        title=f"Sampling, {preset} network, {STEPS} steps",
        items=count,
        item="sequence",
        size=f"{count} sequence{'s' if count > 1 else ''} of {frames} frames",
        make_inputs=partial(make_inputs, device, preset, count, frames),
        implementations=lambda: [
            Implementation(PLAIN, "reference", prepare_plain),
            Implementation(f"{OURS} fp32", "ours", partial(prepare_ours, precision="fp32")),
            # Where nothing is faster than float32 this is the same once more.
            Implementation(f"{OURS} auto", "ours", partial(prepare_ours, precision="auto")),
        ],
        exact=lambda inputs: prepare_plain(inputs)(),
        bytes_moved=4 * (STEPS + 2) * count * frames * 496,
        operations=STEPS * count * frames * MULTIPLIED_PER_FRAME * 2,
        device=device,
        tests=("tests/mgrpo/test_bench_inference.py", "tests/mgrpo/test_inference_precision.py"),
        seconds=SECONDS,
    )


def make_inputs(device: str, preset: str, count: int, frames: int, seed: int) -> Inputs:
    """Head paths, and noise for all steps."""
    import torch

    from mgrpo.infer.plain import made_up_path
    from mgrpo.models.denoiser import DENOISER_PRESETS

    generator = torch.Generator().manual_seed(seed)
    shape = (STEPS + 1, count, 1, frames, DENOISER_PRESETS[preset].layout.dim)
    noise = torch.randn(shape, generator=generator)
    return {"preset": preset, "poses": made_up_path(count, frames).to(device), "noise": noise.to(device)}


@lru_cache(maxsize=2)
def network(preset: str, device: Any, dtype: Any) -> Any:
    """An untrained network that predicts nearly rotations, as a trained one does: others cost more to project."""
    import torch

    from mgrpo.models.denoiser import DENOISER_PRESETS, Denoiser

    denoiser = Denoiser(DENOISER_PRESETS[preset], seed=0)
    with torch.no_grad():
        last = denoiser.decoders["body_rotmats"][-1]
        last.weight.mul_(0.1)
        last.bias.copy_(torch.eye(3).flatten().repeat(last.out_features // 9))
    return denoiser.eval().to(device, dtype)


@lru_cache(maxsize=2)
def prepared(preset: str, device: Any, precision: str) -> Any:
    """The network as inference calls it."""
    import torch

    from mgrpo.models.inference import InferenceDenoiser

    return InferenceDenoiser(network(preset, device, torch.float32), precision)  # type: ignore[arg-type]


def transitions() -> Any:
    """The published sampler's steps."""
    from mgrpo.diffusion.transition import make_transitions

    return make_transitions("egoallo", eta=0.8, steps=STEPS)


def prepare_plain(inputs: Inputs) -> Callable[[], Results]:
    """What one would write first."""
    from mgrpo.infer.plain import plain_sample

    poses, noise = inputs["poses"], inputs["noise"]
    denoiser, steps = network(inputs["preset"], poses.device, noise.dtype), transitions()
    return lambda: {"states": plain_sample(denoiser, poses, steps, 1, 0, noise)}


def prepare_ours(inputs: Inputs, *, precision: str) -> Callable[[], Results]:
    """As a chunk of `mgrpo infer` is sampled."""
    from mgrpo.diffusion.stitched_sampler import FRAMES_AHEAD, sample_stitched
    from mgrpo.diffusion.stitching import Stitching
    from mgrpo.models.conditioning import relative_cpf

    poses, noise = inputs["poses"], inputs["noise"]
    denoiser, steps = prepared(inputs["preset"], poses.device, precision), transitions()
    frames = poses.shape[1] - 1

    def call() -> Results:
        result = sample_stitched(
            denoiser,
            poses[:, 1:],
            relative_cpf(poses),
            steps,
            None,
            stitching=Stitching("proper", frames, frames // 4),
            conditioning=denoiser.config,
            layout=denoiser.layout,
            noise=noise,
            fix_det=False,  # as the plain loop
            frames_ahead=FRAMES_AHEAD,
        )
        return {"states": result.x0}

    return call
