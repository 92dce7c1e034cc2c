"""Sampling of any length: chunks, their joins, interruptions, guidance, bounded memory."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgrpo.body import BodyModel, resolve_body
from mgrpo.diffusion.sampler import NoiseKeys
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.stitched_sampler import sample_stitched
from mgrpo.diffusion.stitching import Stitching
from mgrpo.diffusion.transition import make_transitions
from mgrpo.errors import InputError
from mgrpo.guidance import GuidanceConfig
from mgrpo.infer import pipeline, store
from mgrpo.infer.guiding import RecordingGuidance, hidden, wrist_observations
from mgrpo.infer.output import amass_arrays, stretches_of
from mgrpo.infer.pipeline import Prepared, grounded, infer_to_file, prepare
from mgrpo.infer.sampling import Known, SamplingSettings, fade, plan_chunks, sample_chunks, windows_of
from mgrpo.infer.store import PartialResult, fingerprint
from mgrpo.infer.trajectory import Floor, HeadTrajectory, WristTrack
from mgrpo.infer.wrist_check import predicted_wrists, wrist_errors
from mgrpo.models.conditioning import relative_cpf
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.npz import read_npz
from mgrpo.storage import StorageError
from tests.mgrpo.head_files import head

TINY = DenoiserConfig(
    d_latent=16, d_feedforward=32, d_noise_emb=8, num_heads=2, encoder_layers=1, decoder_layers=1, include_hands=False
)
STEPS = make_transitions("ddim", eta=0.8, steps=3, schedule=CosineSchedule.make(1000))
SETTINGS = SamplingSettings(STEPS, Stitching("proper", 16, 4), samples=2, seed=3, chunk=40)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser(TINY, seed=1).eval()


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return resolve_body("default", with_mesh=False)


def recording(frames: int, cut: tuple[int, ...] = (), **fields: Any) -> Prepared:
    """A prepared recording of ``frames`` frames, with half a second missing after each pose of ``cut``."""
    index = np.arange(frames + 1)
    times = index / 30 + 0.5 * sum((index > at).astype(float) for at in cut)
    stamps = np.rint(times * 1e9).astype(np.int64)
    fields = {"floor": Floor(0.3, "points")} | fields
    poses = head(times) + np.array([0, 0, 0, 0, 0, 0, 0.3])
    return prepare(HeadTrajectory("it", stamps, poses, **fields))


# --- chunks


@pytest.mark.parametrize(
    ("frames", "chunk", "overlap"), [(40, 40, 4), (41, 40, 4), (100, 40, 4), (1000, 64, 31), (3, 32, 8)]
)
def test_chunks_cover_everything(frames: int, chunk: int, overlap: int) -> None:
    plan = plan_chunks(frames, chunk, overlap)
    assert plan[0][0] == 0 and plan[-1][1] == frames
    for (_, stop), (start, _) in pairwise(plan):
        assert stop - start == overlap
    lengths = [stop - start for start, stop in plan]
    assert max(lengths) <= chunk + 1 and max(lengths) - min(lengths) <= 1
    assert (len(plan) - 1) * (chunk - overlap) + overlap < frames or len(plan) == 1, "no more than needed"


def test_one_chunk_is_what_sample_draws(denoiser: Denoiser) -> None:
    poses = grounded(recording(40).motions[0], Floor(0.3, "points"))
    (chunk,) = sample_chunks(denoiser, poses, SETTINGS)
    keys = NoiseKeys(3, 0, torch.zeros(1, dtype=torch.int64), 2, share_initial=False)
    wanted = sample_stitched(
        denoiser, poses[None, 1:], relative_cpf(poses[None]), STEPS, keys, stitching=SETTINGS.stitching
    )
    # alike but for rounding: a network prepared for inference multiplies other shapes
    torch.testing.assert_close(chunk.states, wanted.x0[0], atol=1e-4, rtol=0)
    assert chunk.carry is None


def test_chunks_join_and_go_on_anywhere(denoiser: Denoiser) -> None:
    """The frames that two chunks share pass from one result to the other; from any chunk on, the same comes out."""
    poses = grounded(recording(100).motions[0], Floor(0.3, "points"))
    counted: list[int] = []
    chunks = list(sample_chunks(denoiser, poses, SETTINGS, on_windows=counted.append))
    assert [(chunk.start, chunk.stop) for chunk in chunks] == [(0, 32), (32, 64), (64, 100)]
    assert sum(counted) == windows_of(100, SETTINGS)
    again = list(sample_chunks(denoiser, poses, SETTINGS, first=1, carry=chunks[0].carry))
    assert all(torch.equal(a.states, b.states) for a, b in zip(chunks[1:], again))
    carry = chunks[0].carry
    assert carry is not None and carry.shape[1] == 4
    # without a carry the second chunk's first frames are another motion; with it they begin close to the known one
    (alone, *_) = list(sample_chunks(denoiser, poses, SETTINGS, first=1))
    joined = chunks[1].states[:, :4]
    apart = (alone.states[:, :4] - carry).abs().mean(dim=(0, 2))
    near = (joined - carry).abs().mean(dim=(0, 2))
    assert near[0] < 0.35 * apart[0] and near[0] < near[3]
    betas = torch.cat([chunk.states[..., :16] for chunk in chunks], dim=1)
    steps = (betas[:, 1:] - betas[:, :-1]).norm(dim=-1).mean(0)
    assert steps[[31, 63]].max() < 3 * steps.median(), "no seam"


def test_known_frames_are_drawn_towards() -> None:
    weight = fade(3)
    assert weight.tolist() == [0.75, 0.5, 0.25]
    known = Known(torch.ones(2, 3, 5), weight)
    drawn = known.drawn(torch.zeros(2, 6, 5))
    assert drawn[0, :, 0].tolist() == [0.75, 0.5, 0.25, 0, 0, 0]


def test_a_sample_does_not_depend_on_the_others(denoiser: Denoiser) -> None:
    poses = grounded(recording(60).motions[0], Floor(0.3, "points"))
    two = list(sample_chunks(denoiser, poses, SETTINGS))
    three = list(sample_chunks(denoiser, poses, replace(SETTINGS, samples=3)))
    for a, b in zip(two, three):
        assert torch.allclose(a.states, b.states[:2], atol=1e-5)
    other = list(sample_chunks(denoiser, poses, SETTINGS, stretch=1))
    assert not torch.allclose(two[0].states, other[0].states, atol=1e-2)


def test_chunks_must_hold_windows() -> None:
    with pytest.raises(InputError, match="--chunk 31; a smaller --window"):
        SamplingSettings(STEPS, Stitching("proper", 16, 4), chunk=31)


# --- files


def run(out: Path, denoiser: Denoiser, body: BodyModel, prepared: Prepared, **options: Any) -> dict[str, np.ndarray]:
    settings = options.pop("settings", SETTINGS)
    infer_to_file(denoiser, body, prepared, settings, out, **options)
    return read_npz(out, "result")


def test_the_file_is_egoallos(denoiser: Denoiser, body: BodyModel, tmp_path: Path) -> None:
    prepared = recording(100, cut=(50,))
    arrays = run(tmp_path / "a.npz", denoiser, body, prepared)
    frames = 99  # a stretch lends its first pose to its first frame
    assert {name: array.shape for name, array in arrays.items()} == {
        "Ts_world_cpf": (frames, 7),
        "Ts_world_root": (2, frames, 7),
        "body_quats": (2, frames, 21, 4),
        "left_hand_quats": (2, frames, 15, 4),
        "right_hand_quats": (2, frames, 15, 4),
        "contacts": (2, frames, 21),
        "betas": (2, frames, 16),
        "frame_nums": (frames,),
        "timestamps_ns": (frames,),
    }
    assert arrays["frame_nums"].dtype == np.int64 and arrays["body_quats"].dtype == np.float32
    assert stretches_of(arrays["frame_nums"]) == [slice(0, 50), slice(50, 99)]
    assert arrays["frame_nums"][49] == 50 and arrays["frame_nums"][50] == 67
    wanted = head(arrays["timestamps_ns"] / 1e9)
    assert np.abs(arrays["Ts_world_cpf"][:, 4:] - wanted[:, 4:]).max() < 1e-3, "the floor is at zero"
    # the body's eyes are the recorded ones
    from mgrpo.body.placement import cpf_of, place_on_root
    from mgrpo.geometry import quat_to_rotmat

    betas = torch.from_numpy(arrays["betas"])
    placed = place_on_root(
        body, quat_to_rotmat(torch.from_numpy(arrays["body_quats"])), betas, torch.from_numpy(arrays["Ts_world_root"])
    )
    assert (cpf_of(body, placed, betas)[..., 4:] - torch.from_numpy(arrays["Ts_world_cpf"])[:, 4:]).abs().max() < 1e-4
    kept = run(tmp_path / "b.npz", denoiser, body, prepared, keep_world=True)
    for name in ("Ts_world_cpf", "Ts_world_root"):
        assert np.allclose(kept[name][..., 6] - arrays[name][..., 6], 0.3, atol=1e-5)
        assert np.array_equal(kept[name][..., :6], arrays[name][..., :6])
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"


def test_an_interrupted_job_goes_on(
    denoiser: Denoiser, body: BodyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    prepared = recording(150, cut=(90,))
    whole = run(tmp_path / "whole.npz", denoiser, body, prepared)
    real, left = PartialResult.put, [0]
    for stop_after in (1, 2, 1):
        left[0] = stop_after

        def put(self: PartialResult, *arguments: Any) -> None:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            real(self, *arguments)

        monkeypatch.setattr(PartialResult, "put", put)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "a.npz", denoiser, body, prepared)
        assert not (tmp_path / "a.npz").exists()
        assert "chunk(s) are kept beside" in capsys.readouterr().err
    monkeypatch.setattr(PartialResult, "put", real)
    drawn: list[int] = []
    monkeypatch.setattr(pipeline, "sample_chunks", lambda *a, **k: _counted(drawn, *a, **k))
    arrays = run(tmp_path / "a.npz", denoiser, body, prepared)
    assert len(drawn) == 1, "five chunks, four of them done before"
    assert "continuing: 4 chunk(s)" in capsys.readouterr().err
    assert all(np.array_equal(arrays[name], whole[name]) for name in whole)
    assert not list(tmp_path.glob(".*"))


def _counted(drawn: list[int], *arguments: Any, **options: Any) -> Any:
    for chunk in sample_chunks(*arguments, **options):
        drawn.append(chunk.number)
        yield chunk


def test_other_work_begins_anew(
    denoiser: Denoiser, body: BodyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    prepared = recording(100)
    real = PartialResult.put
    calls = [0]

    def put(self: PartialResult, *arguments: Any) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        real(self, *arguments)

    monkeypatch.setattr(PartialResult, "put", put)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.npz", denoiser, body, prepared)
    assert (tmp_path / ".a.npz.partial").is_dir()
    monkeypatch.setattr(PartialResult, "put", real)
    capsys.readouterr()
    other = replace(SETTINGS, seed=4)
    arrays = run(tmp_path / "a.npz", denoiser, body, prepared, settings=other)
    assert "continuing" not in capsys.readouterr().err
    assert np.array_equal(arrays["betas"], run(tmp_path / "b.npz", denoiser, body, prepared, settings=other)["betas"])


def test_what_determines_a_result_is_in_its_fingerprint(denoiser: Denoiser) -> None:
    base = [1, "a", np.zeros(3), torch.ones(2)]
    assert fingerprint(base) == fingerprint(list(base))
    for changed in ([2, *base[1:]], [*base[:2], np.zeros((3, 1)), base[3]], [*base[:3], torch.ones(2) * 2]):
        assert fingerprint(changed) != fingerprint(base)


def test_nothing_is_left_when_the_first_chunk_fails(
    denoiser: Denoiser, body: BodyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError("too large")

    monkeypatch.setattr(pipeline, "sample_chunks", fail)
    with pytest.raises(MemoryError):
        run(tmp_path / "a.npz", denoiser, body, recording(40))
    assert not list(tmp_path.iterdir())


def test_two_processes_do_not_write_one_file(body: BodyModel, tmp_path: Path) -> None:
    with PartialResult(tmp_path / "a.npz", "x", 1, 10) as first:
        assert first.folder.is_dir()
        with pytest.raises(InputError, match="in use by another process"):
            PartialResult(tmp_path / "a.npz", "x", 1, 10)


def test_a_full_disk_is_known_before_the_work(
    denoiser: Denoiser, body: BodyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for the whole result is taken first; where there is none, it is said and nothing is left."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.os, "posix_fallocate", full)
        with pytest.raises(StorageError, match="the disk is full"):
            run(tmp_path / "a.npz", denoiser, body, recording(40))
    assert not list(tmp_path.iterdir())
    with PartialResult(tmp_path / "a.npz", "x", 1, 100_000) as result:
        taken = sum(path.stat().st_blocks * 512 for path in result.folder.glob("*.npy"))
        assert taken >= 100_000 * 4 * (7 + 84 + 120 + 21 + 16)


def test_a_damaged_rest_of_a_job_is_dropped(tmp_path: Path) -> None:
    folder = tmp_path / ".a.npz.partial"
    folder.mkdir()
    (folder / "plan.json").write_text("{")
    with PartialResult(tmp_path / "a.npz", "x", 1, 10) as result:
        assert result.chunks == [] and result.arrays["betas"].shape == (1, 10, 16)
    assert store.PER_SAMPLE and not folder.exists()


def test_memory_does_not_grow_with_the_recording(denoiser: Denoiser, body: BodyModel, tmp_path: Path) -> None:
    """States of one chunk at a time: the largest tensors asked for are those of a chunk."""
    largest = [0]

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.shape[-1:] == (226,):
                largest[0] = max(largest[0], result.numel())
            return result

    with Watch():
        run(tmp_path / "a.npz", denoiser, body, recording(300))
    assert 0 < largest[0] <= 2 * 64 * 226, "a chunk's windows, not 300 frames"


# --- AMASS


def test_amass_files_stand_where_the_head_was(denoiser: Denoiser, body: BodyModel, tmp_path: Path) -> None:
    """Posed by SMPL's own rule (pelvis = trans + rest pelvis), the eyes are the recorded ones."""
    from mgrpo.body.placement import cpf_of, place_on_root
    from mgrpo.geometry import axis_angle_to_quat, quat_to_rotmat

    prepared = recording(40)
    arrays = run(tmp_path / "a.npz", denoiser, body, prepared, keep_world=True)
    smplh = replace(body, name="smplh")
    written = amass_arrays(arrays, 1, slice(5, 30), smplh, floor_m=0.3)
    assert written["poses"].shape == (25, 156) and written["dmpls"].shape == (25, 8) and written["betas"].shape == (16,)
    assert str(written["gender"]) == "neutral" and float(written["mocap_framerate"]) == 30.0
    assert np.allclose(written["betas"], arrays["betas"][1, 5:30].mean(0), atol=1e-6)
    poses = torch.from_numpy(written["poses"]).float().view(25, 52, 3)
    betas = torch.from_numpy(written["betas"]).float()
    pelvis = torch.from_numpy(written["trans"]).float() + smplh.rest_joints(betas)[0]
    root = torch.cat((axis_angle_to_quat(poses[:, 0]), pelvis), dim=-1)
    placed = place_on_root(smplh, quat_to_rotmat(axis_angle_to_quat(poses[:, 1:22])), betas, root)
    eyes = cpf_of(smplh, placed, betas)
    wanted = arrays["Ts_world_cpf"][5:30, 4:] - np.array([0, 0, 0.3])
    assert np.abs(eyes[:, 4:].numpy() - wanted).max() < 1e-4
    mean = amass_arrays(arrays, 1, slice(5, 30), body, floor_m=0.3)
    assert (mean["betas"] == 0).all() and np.allclose(mean["poses"], written["poses"])
    assert np.allclose(mean["trans"] + body.rest_joints(torch.zeros(16))[0].numpy(), pelvis.numpy(), atol=1e-5), (
        "the pelvis stays where it was"
    )


# --- wrists and guidance


def with_wrists(frames: int, **fields: Any) -> Prepared:
    """Both wrists 0.25 m to the sides, 0.5 m below and 0.2 m before the eyes; the right one is lost after 20 frames."""
    times = np.arange(frames + 1) / 30
    stamps = np.rint(times * 1e9).astype(np.int64)
    poses = head(times) + np.array([0, 0, 0, 0, 0, 0, 0.3])
    tracks = []
    for side, count in ((-1, frames + 1), (1, 21)):
        places = poses[:count, 4:] + np.array([side * 0.25, 0.2, -0.5])
        tracks.append(WristTrack(stamps[:count], places, np.ones(count), "track"))
    return recording(frames, wrists=tuple(tracks), **fields)


def test_errors_of_wrists(denoiser: Denoiser, body: BodyModel, tmp_path: Path) -> None:
    prepared = with_wrists(40)
    arrays = run(tmp_path / "a.npz", denoiser, body, prepared)
    found = predicted_wrists(arrays, body)
    wrists = prepared.wrists - np.array([0, 0, 0.3])
    errors = wrist_errors(arrays, wrists, body)
    assert errors["frames"] == {"left": 40, "right": 21}
    apart = np.linalg.norm(found - wrists, axis=-1)
    assert errors["mean"] == pytest.approx(np.nanmean(apart)) and errors["unit"] == "m"
    assert errors["right"]["mean"] == pytest.approx(np.nanmean(apart[:, :, 1]))
    assert errors["per_sample"] == pytest.approx([np.nanmean(one) for one in apart])
    assert wrist_errors(arrays, found[0], body)["per_sample"][0] == pytest.approx(0.0, abs=1e-9)
    # controllers that are 0.1 m off, always in their own direction: fitted away
    turns = np.tile(np.eye(3), (40, 2, 1, 1))
    moved = wrist_errors(
        {**arrays, **{k: v[:1] for k, v in arrays.items() if v.ndim > 2}}, found[0] + [0.1, 0, 0], body, turns
    )
    assert moved["mean"] == pytest.approx(0.1) and moved["fitted"] == pytest.approx(0.0, abs=1e-9)
    half = np.arange(40) >= 20
    assert wrist_errors(arrays, wrists, body, hidden=half)["hidden"]["mean"] == pytest.approx(
        np.nanmean(apart[:, half])
    )
    assert wrist_errors(arrays, wrists * np.nan, body) == {"unit": "m", "frames": {"left": 0, "right": 0}}


def guided(prepared: Prepared, denoiser: Denoiser, body: BodyModel, hide_s: float = 0.0, **options: Any) -> Any:
    config = GuidanceConfig(**({"mode": "aria_wrist_only", "post_iterations": 8} | options))
    return RecordingGuidance(
        config, denoiser.layout, body, prepared.trajectory, prepared.motions, prepared.floor, hide_s
    )


def test_guidance_draws_wrists_to_where_they_were_seen(denoiser: Denoiser, body: BodyModel, tmp_path: Path) -> None:
    prepared = with_wrists(60)
    wrists = prepared.wrists - np.array([0, 0, 0.3])
    settings = replace(SETTINGS, samples=1)
    alone = wrist_errors(run(tmp_path / "a.npz", denoiser, body, prepared, settings=settings), wrists, body)
    maker = guided(prepared, denoiser, body)
    with_them = run(tmp_path / "b.npz", denoiser, body, prepared, settings=settings, guide_maker=maker)
    errors = wrist_errors(with_them, wrists, body)
    assert errors["mean"] < 0.03 and alone["mean"] > 5 * errors["mean"]
    maker = guided(prepared, denoiser, body, hide_s=1.0)
    part = run(tmp_path / "c.npz", denoiser, body, prepared, settings=settings, guide_maker=maker)
    kept = hidden(prepared.frame_nums, 1.0)
    told, untold = (wrist_errors(arrays, wrists, body, hidden=kept)["hidden"]["mean"] for arrays in (with_them, part))
    assert untold > 2 * told, "frames that guidance was not told of are worse"
    inner = guided(prepared, denoiser, body, inner=True, post=False, inner_iterations=4)
    within = run(tmp_path / "d.npz", denoiser, body, prepared, settings=settings, guide_maker=inner)
    assert wrist_errors(within, wrists, body)["mean"] < 0.8 * alone["mean"]


def test_tracks_without_orientation_draw_by_position_only(denoiser: Denoiser, body: BodyModel) -> None:
    assert guided(with_wrists(40), denoiser, body)._config.weights.wrist_orientation == 0.0
    prepared = with_wrists(40)
    turned = replace(prepared.motions[0], R_world_wrist=np.tile(np.eye(3), (40, 2, 1, 1)))
    config = guided(replace(prepared, motions=(turned,)), denoiser, body)._config
    assert config.weights == GuidanceConfig().weights and config.weights.wrist_orientation > 0


def test_hidden_frames() -> None:
    assert not hidden(np.arange(90), 0.0).any()
    assert np.flatnonzero(hidden(np.arange(90), 1.0)).tolist() == list(range(30, 60))


def test_observations_of_wrists() -> None:
    prepared = with_wrists(40)
    (motion,) = prepared.motions
    seen = wrist_observations(motion, slice(10, 30), prepared.floor)
    assert seen.T_world_wrist.shape == (20, 2, 7)
    assert np.allclose(seen.T_world_wrist[:, 0, 4:].numpy(), motion.wrists[10:30, 0] - [0, 0, 0.3])
    assert seen.confidence[:, 1].tolist() == [1.0] * 11 + [0.0] * 9
    turned = replace(motion, R_world_wrist=np.tile(np.eye(3), (40, 2, 1, 1)))
    assert turned.R_world_wrist is not None
    turned.R_world_wrist[12, 0] = np.nan
    seen = wrist_observations(turned, slice(10, 30), prepared.floor)
    assert seen.confidence[2, 0] == 0 and seen.T_world_wrist[0, 0, :4].tolist() == [1.0, 0, 0, 0]


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("aria_wrist_only", "has no tracked wrists .* --wrists"),
        ("hamer_wrist", "has no hands of HaMeR.* take no_hands"),
    ],
)
def test_guidance_needs_what_its_mode_names(mode: str, said: str, denoiser: Denoiser, body: BodyModel) -> None:
    with pytest.raises(InputError, match=f"--guidance.mode {mode}: it {said}"):
        guided(recording(40), denoiser, body, mode=mode)
    if mode == "hamer_wrist":
        with pytest.raises(InputError, match="take aria_wrist_only"):
            guided(with_wrists(40), denoiser, body, mode=mode)


def test_models_that_know_the_hands_get_them(body: BodyModel, tmp_path: Path) -> None:
    """A condition with wrists: other wrists, other motion."""
    model = Denoiser(replace(TINY, include_hand_positions_cond=True), seed=1).eval()
    seen = run(tmp_path / "a.npz", model, body, with_wrists(40))
    unseen = run(tmp_path / "b.npz", model, body, recording(40))
    assert np.abs(seen["body_quats"] - unseen["body_quats"]).max() > 1e-3


def test_bfloat16_is_near(denoiser: Denoiser) -> None:
    poses = grounded(recording(40).motions[0], Floor(0.3, "points"))
    (exact,) = sample_chunks(denoiser, poses, SETTINGS)
    (rounded,) = sample_chunks(denoiser, poses, replace(SETTINGS, precision="bf16"))
    assert rounded.states.dtype == torch.float32
    apart = (rounded.states - exact.states).abs().mean()
    assert 0 < apart < 0.02 * exact.states.std()
