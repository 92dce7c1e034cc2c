"""One step of sampling a long sequence: all windows of all samples in one call with a shared encoder, against loops.

The network is the same in all. EgoAllo's way is a loop over windows, each a batch of all samples with the condition
repeated for every one of them; the plainest is a loop over windows and samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..workload import OURS, Implementation, Inputs, Results, Workload

LEVEL = 300
"""Diffusion level of the step; all cost the same."""


@dataclass(frozen=True)
class Setting:
    """Sizes of a step."""

    preset: str
    samples: int
    frames: int
    window: int
    overlap: int


SETTINGS = {
    "cpu": (Setting("tiny", 8, 320, 32, 8), Setting("tiny", 1, 320, 32, 8)),
    "cuda": (Setting("egoallo", 8, 3872, 128, 32),),
}


def workloads(device: str, backends: Sequence[str] | None) -> list[Workload]:
    """The device's sizes; ``backends`` makes no difference, the network has only one."""
    return [workload(device, setting) for setting in SETTINGS[device.split(":")[0]]]


def workload(device: str, setting: Setting) -> Workload:
    """One size."""
    name = f"stitched_{setting.preset}_{setting.samples}"
    frames = setting.frames * setting.samples
    tokens = sum(length + 1 for length in _stitching(setting).plan(setting.frames).lengths) * setting.samples
    parameters, channels = _sizes(setting.preset)
    return Workload(
        op="stitching",
        name=name,
        title=f"Stitched sampling, {setting.preset} network",
        items=frames,
        item="frame",
        size=f"{setting.samples} samples of {setting.frames} frames, windows of {setting.window}",
        make_inputs=partial(make_inputs, device, setting),
        implementations=lambda: [
            Implementation("loop over windows", "reference", partial(prepare, setting, loop_over_windows)),
            Implementation("loop over windows and samples", "reference", partial(prepare, setting, loop_over_samples)),
            Implementation(f"{OURS} batched", "ours", partial(prepare, setting, batched)),
        ],
        exact=lambda inputs: prepare(setting, loop_over_samples, inputs)(),
        # Weights read once, states read and written once; two operations for each weight and token.
        bytes_moved=4 * (parameters + 2 * frames * channels),
        operations=2 * parameters * tokens,
        device=device,
        tests=("tests/mgrpo/diffusion/test_stitching.py", "tests/mgrpo/diffusion/test_stitched_sampler.py"),
    )


def make_inputs(device: str, setting: Setting, seed: int) -> Inputs:
    """States of every sample, and the head trajectory of a clip of the demo."""
    import torch

    from mgrpo.body import default_body
    from mgrpo.data import cut_windows, load_motion

    body = default_body()
    clips = [clip for clip in load_motion("demo", body) if clip.loop]  # those can be of any length
    windows = cut_windows([clips[seed % len(clips)]], body, setting.frames).select([0])
    x_t = torch.randn(1, setting.samples, setting.frames, _sizes(setting.preset)[1],
                      generator=torch.Generator().manual_seed(seed))  # fmt: skip
    poses = {"T_world_cpf": windows.T_world_cpf, "T_cpf_tm1_cpf_t": windows.T_cpf_tm1_cpf_t}
    return {name: value.to(device) for name, value in {"x_t": x_t, **poses}.items()}


Predict = Callable[[Any, Any, Inputs], Callable[[], Any]]
"""Denoiser, stitching and inputs -> the call that returns the blended prediction."""


def prepare(setting: Setting, predict: Predict, inputs: Inputs) -> Callable[[], Results]:
    """The call that is timed; what sampling does once, not in every step, is done here."""
    import torch

    from mgrpo.models.denoiser import DENOISER_PRESETS, Denoiser

    x_t = inputs["x_t"]
    model = Denoiser(DENOISER_PRESETS[setting.preset], seed=0).to(x_t).eval()
    call = predict(model, _stitching(setting), inputs)

    def run() -> Results:
        with torch.no_grad():
            return {"x0_pred": call()}

    return run


def batched(model: Any, stitching: Any, inputs: Inputs) -> Callable[[], Any]:
    """Ours."""
    from mgrpo.diffusion.stitched_sampler import StitchedPredictor

    predictor = StitchedPredictor(model, model.config, stitching, inputs["T_world_cpf"], inputs["T_cpf_tm1_cpf_t"])
    return lambda: predictor(inputs["x_t"], LEVEL)


def loop_over_windows(model: Any, stitching: Any, inputs: Inputs) -> Callable[[], Any]:
    """A call for each window with all samples, the condition repeated for each."""
    samples = inputs["x_t"].shape[1]
    plan = stitching.plan(inputs["x_t"].shape[2])

    def predict(window: slice) -> Any:
        return _forward(model, inputs, window, slice(0, samples))

    return lambda: plan.blend([predict(window) for window in _windows(plan)])[None]


def loop_over_samples(model: Any, stitching: Any, inputs: Inputs) -> Callable[[], Any]:
    """A call for each window of each sample."""
    import torch

    samples = inputs["x_t"].shape[1]
    plan = stitching.plan(inputs["x_t"].shape[2])

    def predict(window: slice) -> Any:
        return torch.cat([_forward(model, inputs, window, slice(g, g + 1)) for g in range(samples)])

    return lambda: plan.blend([predict(window) for window in _windows(plan)])[None]


def _forward(model: Any, inputs: Inputs, window: slice, members: slice) -> Any:
    import torch

    x_t = inputs["x_t"][0, members, window]
    poses = (inputs[name][:, window].expand(len(x_t), -1, -1) for name in ("T_world_cpf", "T_cpf_tm1_cpf_t"))
    t = torch.full((len(x_t),), LEVEL, device=x_t.device)
    return model(x_t, t, **dict(zip(("T_world_cpf", "T_cpf_tm1_cpf_t"), poses)))


def _windows(plan: Any) -> Iterator[slice]:
    return map(slice, plan.starts, plan.stops)


def _stitching(setting: Setting) -> Any:
    from mgrpo.diffusion.stitching import Stitching

    return Stitching("proper", setting.window, setting.overlap)


def _sizes(preset: str) -> tuple[int, int]:
    """Weights of a network and channels of its state; without making the weights."""
    import torch

    from mgrpo.models.denoiser import DENOISER_PRESETS, Denoiser

    with torch.device("meta"):
        model = Denoiser(DENOISER_PRESETS[preset])
    return sum(parameter.numel() for parameter in model.parameters()), model.layout.dim
