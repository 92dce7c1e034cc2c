"""Training and evaluation on HDF5 files: which sequences each part gets, options, and resumed runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.hdf5_files import made_up_sequence, write_sequences
from mgrpo import cli
from mgrpo.body import default_body
from mgrpo.commands.evaluate import EvaluateConfig, evaluation_windows
from mgrpo.data import AugmentConfig, Hdf5Sampler, open_hdf5
from mgrpo.errors import InputError
from mgrpo.models import denoiser
from mgrpo.train.hdf5_parts import split_hdf5
from mgrpo.train.motion_data import MotionDataConfig, load_motion_data
from mgrpo.train.prior import PriorConfig, train_prior

TINY_DENOISER = denoiser.DenoiserConfig(
    d_latent=16, d_feedforward=32, d_noise_emb=8, num_heads=2, encoder_layers=1, decoder_layers=1, include_hands=False
)
SEQUENCES = {
    "ACCAD/a_poses.npz": 60,
    "ACCAD/a_poses_reflect.npz": 60,
    "BMLrub/b_poses.npz": 45,
    "CMU/short_poses.npz": 10,
    "HumanEva/h_poses.npz": 50,
    "MPI_HDM05/m_poses.npz": 40,
    "Transitions/t_poses.npz": 80,
    "SSM/s_poses.npz": 12,
    "GRAB/g_poses.npz": 40,
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    body = default_body()
    sequences = {name: made_up_sequence(body, frames, seed) for seed, (name, frames) in enumerate(SEQUENCES.items())}
    return write_sequences(tmp_path_factory.mktemp("hdf5") / "amass.hdf5", sequences, listed=True)


@pytest.fixture
def config(file: Path) -> MotionDataConfig:
    return MotionDataConfig(motion=str(file), length=16)


def names(data: object, part: str) -> set[str]:
    return {name.split("/")[0] for name in data.clip_names[part]}  # type: ignore[attr-defined]


def test_amass_is_split_by_subset(config: MotionDataConfig) -> None:
    data = load_motion_data(config, seed=0)
    assert names(data, "train") == {"ACCAD", "BMLrub", "CMU"} and names(data, "post_training") == set()
    assert names(data, "validation") == {"HumanEva", "MPI_HDM05"} and names(data, "held_out") == {"Transitions", "SSM"}
    drawn = {name for i in range(10) for name in data.train.batch(i, 16).names}
    assert drawn == {"ACCAD/a_poses.npz", "ACCAD/a_poses_reflect.npz", "BMLrub/b_poses.npz"}  # one is too short
    assert set(data.validation.names) == {"HumanEva/h_poses.npz", "MPI_HDM05/m_poses.npz"}
    assert set(data.held_out.names) == {"Transitions/t_poses.npz"}
    assert len(data.held_out) == (80 - 16) // 8 + 1 and data.held_out.hand_rotmats is not None


@pytest.mark.parametrize(
    ("options", "train", "validation", "held_out"),
    [
        ({"split": "train+val"}, "ACCAD BMLrub CMU HumanEva MPI_HDM05", "HumanEva MPI_HDM05", "Transitions SSM"),
        ({"split": "BioMotionLab_NTroje+GRAB"}, "BMLrub GRAB", "HumanEva MPI_HDM05", "Transitions SSM"),
        ({"held_out_split": "test_humor"}, "ACCAD BMLrub CMU", "MPI_HDM05", "Transitions HumanEva"),
        ({"validation_split": "GRAB"}, "ACCAD BMLrub CMU", "GRAB", "Transitions SSM"),
        (
            {"validation": ("HumanEva/*",), "held_out": ("*_reflect.npz",)},
            "ACCAD BMLrub CMU MPI_HDM05 Transitions SSM GRAB",
            "HumanEva",
            "ACCAD",
        ),
        (
            {"split": "train", "validation": ("ACCAD/a_*",), "held_out": ("CMU/*",)},
            "BMLrub",
            "ACCAD",
            "CMU",
        ),
    ],
)
def test_parts(options: dict, train: str, validation: str, held_out: str, file: Path) -> None:
    motion = open_hdf5(file)
    parts = split_hdf5(motion, **options)
    found = {part: {name.split("/")[0] for name in members} for part, members in parts.names.items()}
    assert found["train"] == set(train.split()) and found["validation"] == set(validation.split())
    assert found["held_out"] == set(held_out.split()) and not parts.names["train"] & parts.names["held_out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "TotalCapture"}, "--data.split TotalCapture: the motion has nothing of it; it has ACCAD"),
        ({"split": "trian"}, "--data.split: 'trian' is neither a split"),
        ({"split": "test"}, "sequences are in the train part too, such as SSM/s_poses.npz"),
        ({"validation_split": "test"}, "sequences are in the validation part too"),
        ({"held_out_split": "KIT"}, "--data.held-out-split KIT: the motion has nothing of it"),
        ({"validation": ("HumanEva/*",)}, "--data.held-out is empty while another part is named"),
        ({"validation": ("x",), "held_out_split": "test"}, "can't be used together with names of clips"),
        ({"validation": ("nobody",), "held_out": ("GRAB/*",)}, "validation: no clip is called 'nobody'"),
    ],
)
def test_parts_that_cannot_be(options: dict, message: str, file: Path) -> None:
    with pytest.raises(InputError, match=message):
        split_hdf5(open_hdf5(file), **options)


def test_motion_without_all_splits_lends_some(file: Path) -> None:
    """A single subset, or motion that isn't AMASS: a share by the hash of the name; mirrored copies stay together."""
    motion = open_hdf5(file)
    for keep in ({"ACCAD", "BMLrub", "GRAB"}, {"GRAB", "Mine"}):
        entries = [
            entry._replace(info=entry.info._replace(name=f"{folder}/{number}_poses{mirror}.npz"))
            for folder in sorted(keep)
            for number in range(10)
            for mirror in ("", "_reflect")
            for entry in motion.sequences[:1]
        ]
        motion.sequences = tuple(entries)
        parts = split_hdf5(motion).names
        assert parts["validation"] and parts["held_out"] and len(parts["train"]) > 20
        together = [parts[part] for part in ("train", "validation", "held_out")]
        assert sum(map(len, together)) == len(frozenset().union(*together))
        for members in together:
            assert {name.replace("_poses.npz", "_poses_reflect.npz") for name in members} <= members
        known = any(name.startswith("ACCAD") for name in frozenset().union(*together))
        assert any("GRAB" in name for name in frozenset().union(*together)) is not known


def test_options_reach_the_sampler(config: MotionDataConfig) -> None:
    config = replace(
        config, length=20, slices="random_variable_len", short_share=1.0, cache_mb=3.0, prefetch="off",
        augment=AugmentConfig(weighting="frames", yaw=False),
    )  # fmt: skip
    sampler = load_motion_data(config, seed=4).train
    assert isinstance(sampler, Hdf5Sampler)
    assert (sampler.draws.strategy, sampler.draws.weighting, sampler.draws.seed) == ("random_variable_len", "frames", 4)
    assert not sampler.prefetch and not sampler.yaw and sampler.motion._cache_bytes == 3 << 20
    assert sampler.batch(0, 20).mask.sum(1).max() < 20
    assert load_motion_data(replace(config, augment=AugmentConfig()), seed=4).train.draws.weighting == "clips"


def test_few_fixed_windows(config: MotionDataConfig) -> None:
    every = load_motion_data(replace(config, stride=1, fixed_windows=0), seed=0).validation
    some = load_motion_data(replace(config, stride=1, fixed_windows=7), seed=0).validation
    assert len(every) == 35 + 25 and len(some) == 7 and len(set(some.names)) == 2
    chosen = [number * 60 // 7 for number in range(7)]
    assert torch.equal(some.T_world_cpf, every.T_world_cpf[chosen])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"augment": AugmentConfig(mirror_prob=0.5)}, r"--data.augment.mirror-prob 0.5: motion from HDF5 files is not"),
        ({"augment": AugmentConfig(betas_std=0.1)}, "--data.augment.betas-std 0.1"),
        ({"augment": AugmentConfig(speed=0.1)}, "--data.augment.speed 0.1"),
        ({"evaluate_mirrored": True}, "HDF5 files hold their mirrored copies"),
        ({"length": 55}, "validation part: no sequence has the 55 frames of a window .the longest has 50."),
    ],
)
def test_options_that_hdf5_files_refuse(change: dict, message: str, config: MotionDataConfig) -> None:
    with pytest.raises(InputError, match=message):
        load_motion_data(replace(config, **change), seed=0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("split", "train"),
        ("validation_split", "val"),
        ("held_out_split", "test"),
        ("slices", "deterministic"),
        ("short_share", 0.5),
        ("file_list", "x.txt"),
        ("cache_mb", 3.0),
        ("prefetch", "on"),
        ("fixed_windows", 8),
        ("check_body", False),
    ],
)
def test_options_for_hdf5_files_are_refused_elsewhere(option: str, value: object) -> None:
    with pytest.raises(InputError, match=f"--data.{option.replace('_', '-')} is for HDF5 files; demo is other motion"):
        load_motion_data(MotionDataConfig(**{option: value}), seed=0)  # type: ignore[arg-type]
    if option in ("split", "slices", "file_list"):
        with pytest.raises(InputError, match=f"--{option.replace('_', '-')} is for HDF5 files"):
            evaluation_windows(EvaluateConfig(checkpoint=(Path("unused"),), **{option: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_mb": -1.0}, "--cache-mb must be at least 0 MiB, got -1"),
        ({"fixed_windows": -1}, "--fixed-windows must be at least 0"),
        ({"slices": "random_variable_len", "length": 16}, "windows must be longer than 16"),
        ({"short_share": 1.5}, "--short-share must be at most 1, got 1.5"),
    ],
)
def test_numbers_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MotionDataConfig(motion="x.hdf5", **options)


def evaluation(file: Path, **options: object) -> EvaluateConfig:
    return EvaluateConfig(checkpoint=(Path("unused"),), motion=str(file), length=16, **options)  # type: ignore[arg-type]


def test_evaluation_windows_of_a_file(file: Path) -> None:
    held_out = evaluation_windows(evaluation(file))
    assert set(held_out.names) == {"Transitions/t_poses.npz"} and len(held_out) == 9
    fixed = evaluation_windows(evaluation(file, slices="deterministic"))
    assert len(fixed) == 80 // 17  # the other sequence of the part is shorter than 17 frames
    with_all = evaluation_windows(evaluation(file, part="all", stride=16))
    assert {name.split("/")[0] for name in with_all.names} == {name.split("/")[0] for name in SEQUENCES} - {
        "CMU",
        "SSM",
    }
    humor = evaluation_windows(evaluation(file, split="test_humor", stride=16))
    assert {name.split("/")[0] for name in humor.names} == {"HumanEva", "Transitions"}
    named = evaluation_windows(evaluation(file, held_out=("GRAB/*",), validation=("ACCAD/*",)))
    assert set(named.names) == {"GRAB/g_poses.npz"}
    for options, message in (
        ({"mirrored": True}, "--mirrored: HDF5 files hold their mirrored copies"),
        ({"slices": "deterministic", "stride": 3}, "--stride says nothing about deterministic slices"),
        ({"split": "test", "part": "train"}, "--split test and --part train both say"),
        ({"split": "test", "held_out": ("x",)}, "--split says which sequences to take"),
        ({"part": "all", "held_out": ("x",)}, "--part all says which sequences to take"),
        ({"part": "post_training"}, "--part post_training: .* has no motion for it"),
        ({"split": "KIT"}, "--split KIT: .* has no motion for it; mgrpo data info shows what it has"),
    ):
        with pytest.raises(InputError, match=message):
            evaluation_windows(evaluation(file, **options))


def test_training_resumes_exactly(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps at once and three plus three, with other memory and without the thread, give the same weights."""
    monkeypatch.setitem(denoiser.DENOISER_PRESETS, "tiny", TINY_DENOISER)
    data = MotionDataConfig(motion=str(file), length=20, slices="random_variable_len", prefetch="on")
    config = PriorConfig(
        output=tmp_path / "whole", data=data, iterations=6, batch_size=4, warmup=1, validate_every=3, device="cpu"
    )
    train_prior(config)
    parts = replace(config, output=tmp_path / "parts", iterations=3)
    train_prior(parts)
    train_prior(replace(parts, iterations=6, resume=True, data=replace(data, cache_mb=0.0, prefetch="off")))
    from safetensors.torch import load_file

    weights = [
        load_file(next((tmp_path / run / "checkpoints" / "step_00000006").glob("model*.safetensors")))
        for run in ("whole", "parts")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_data_info(file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["data", "info", str(file), "--format", "json"]) == 0
    subsets = {entry["subset"]: entry for entry in json.loads(capsys.readouterr().out)["subsets"]}
    assert list(subsets) == sorted(subsets) and sum(entry["sequences"] for entry in subsets.values()) == len(SEQUENCES)
    assert subsets["ACCAD"] | {"bytes": 0} == {
        "subset": "ACCAD", "splits": ["train"], "sequences": 2, "mirrored": 1, "frames": 120,
        "minutes": pytest.approx(120 / 1800), "with_hands": 2, "bytes": 0,
    }  # fmt: skip
    assert subsets["HumanEva"]["splits"] == ["val", "test_humor"] and subsets["GRAB"]["splits"] == []
    # 32-frame chunks of 7 + 7 + 7 + 1 + 84 + 120 + 21 + 63 numbers, 64 of them for 60 frames
    assert subsets["ACCAD"]["bytes"] == 2 * 4 * (64 * 310 + 16)
    assert cli.main(["data", "info", str(file), "--check"]) == 0
    shown = capsys.readouterr().out
    assert "every value was checked" in shown and "BioMotionLab_NTroje" in shown and "total" in shown
    assert f"{sum(SEQUENCES.values())} " in shown and "yes" in shown
    assert cli.main(["data", "info", str(tmp_path)]) == 2
    assert "expected an HDF5 file" in capsys.readouterr().err


def test_data_info_says_at_once_what_is_not_there(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.hdf5").write_text("hello")
    for words, said in (
        ([tmp_path / "none.hdf5"], "no such file or folder"),
        ([tmp_path / "none"], "no such file or folder"),
        ([tmp_path / "text.hdf5"], "not an HDF5 file"),
        ([file, "--file-list", tmp_path / "none.txt"], "none.txt"),
    ):
        assert cli.main(["data", "info", *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert said in error and error.startswith("error: ") and "stopped" not in error


def test_data_info_checks_values_when_asked(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import h5py

    copy = tmp_path / "bad.hdf5"
    copy.write_bytes(file.read_bytes())
    with h5py.File(copy, "r+") as opened:
        opened["GRAB/g_poses.npz/body_quats"][39, 0, 0] = np.nan
    assert cli.main(["data", "info", str(copy)]) == 0
    assert cli.main(["data", "info", str(copy), "--check"]) == 2
    assert "GRAB/g_poses.npz: body_quats is not finite (NaN or infinity) at frame 39" in capsys.readouterr().err


def test_another_body_is_refused_unless_allowed(config: MotionDataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from mgrpo.train import motion_data

    body = default_body()
    taller = replace(body, J_template=body.J_template * 1.2)
    monkeypatch.setattr(motion_data, "resolve_body", lambda spec: taller)
    with pytest.raises(InputError, match="made with another body"):
        load_motion_data(config, seed=0)
    load_motion_data(replace(config, check_body=False), seed=0)
