"""Checkpoints in EgoAllo's layout: found from every path, read strictly and safely, written so that the original reads
them."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mgrpo import storage
from mgrpo.errors import InputError
from mgrpo.models import egoallo
from mgrpo.models.denoiser import Denoiser, DenoiserConfig, RotaryEmbedding
from mgrpo.storage import StorageError
from tests.golden import golden_file

TINY = DenoiserConfig(
    max_t=50, d_latent=16, d_feedforward=24, d_noise_emb=8, num_heads=2, encoder_layers=1, decoder_layers=2
)
TAG = "!!python/object:egoallo.network.EgoDenoiserConfig"


def network(config: DenoiserConfig = TINY) -> Denoiser:
    """An untrained network whose every number is shaken, FiLM matrices and norms too."""
    model = Denoiser(config, seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def equal(a: Denoiser, b: Denoiser) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return a.config == b.config and list(x) == list(y) and all(torch.equal(x[name], y[name]) for name in x)


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """An experiment's folder with one checkpoint, of step 30."""
    network().save_egoallo(tmp_path / "experiment", step=30)
    return tmp_path / "experiment"


def rewrite(experiment: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Change the tensors of the experiment's only checkpoint."""
    path = experiment / "checkpoints_30" / "model.safetensors"
    save_file(change(load_file(path)), path)


# Reading


@pytest.mark.golden
def test_the_released_layout_is_read_and_written_back(tmp_path: Path) -> None:
    layout = golden_file("network/checkpoint_layout/model_config.yaml").parent
    denoiser = Denoiser.from_egoallo(layout)
    (weights,) = layout.glob("checkpoints_*/model.safetensors")
    stored = load_file(weights)
    assert not denoiser.training
    assert set(stored) == set(denoiser.state_dict())
    assert all(torch.equal(stored[name], tensor) for name, tensor in denoiser.state_dict().items())

    folder = denoiser.save_egoallo(tmp_path / "copy", step=int(weights.parent.name.removeprefix("checkpoints_")))
    assert folder.name == weights.parent.name
    assert (tmp_path / "copy" / "model_config.yaml").read_bytes() == (layout / "model_config.yaml").read_bytes()
    again = load_file(folder / "model.safetensors")
    assert set(again) == set(stored)
    assert all(torch.equal(again[name], stored[name]) and again[name].dtype == torch.float32 for name in stored)


@pytest.mark.golden
def test_the_reference_configurations_survive_the_yaml(tmp_path: Path) -> None:
    for entry in json.loads(golden_file("network/configs.json").read_text()):
        denoiser = network(DenoiserConfig(**entry["config"]))
        denoiser.save_egoallo(tmp_path / entry["name"], step=1)
        assert equal(Denoiser.from_egoallo(tmp_path / entry["name"]), denoiser), entry["name"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"include_hands": False, "noise_conditioning": "film"},
        {"positional_encoding": "transformer", "activation": "relu"},
        {"xattn_mode": "kv_from_x_q_from_cond", "cond_param": "absrel_global_deltas"},
        {"include_hand_positions_cond": True, "fourier_enc_freqs": 1, "dropout_p": 0.1},
        {"include_canonicalized_cpf_rotation_in_cond": False, "cond_param": "ours"},
    ],
    ids=lambda options: ",".join(options) or "default",
)
def test_a_round_trip_is_exact(options: dict[str, Any], tmp_path: Path) -> None:
    denoiser = network(dataclasses.replace(TINY, **options))
    folder = denoiser.save_egoallo(tmp_path / "deep" / "experiment", step=7)
    assert folder == tmp_path / "deep" / "experiment" / "checkpoints_7"
    assert equal(Denoiser.from_egoallo(folder), denoiser)


def test_every_path_a_user_may_give(experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = experiment / "checkpoints_30"
    both = tmp_path / "both"
    both.mkdir()
    (both / "model_config.yaml").write_bytes((experiment / "model_config.yaml").read_bytes())
    (both / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    expected = network()
    for path in (experiment, checkpoint, both, checkpoint / "model.safetensors", experiment / "model_config.yaml"):
        assert equal(Denoiser.from_egoallo(path), expected) and equal(Denoiser.from_egoallo(str(path)), expected)
        assert egoallo.is_egoallo(path)
    assert egoallo.find_egoallo(checkpoint).step == 30 and egoallo.find_egoallo(both).step is None
    monkeypatch.chdir(checkpoint)
    assert equal(Denoiser.from_egoallo("."), expected)
    assert not egoallo.is_egoallo(tmp_path) and not egoallo.is_egoallo(tmp_path / "nowhere")


def test_of_several_checkpoints_the_newest_is_taken_and_said(
    experiment: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        Denoiser.from_egoallo(experiment)
    assert not caplog.records
    newest = Denoiser(TINY, seed=5)
    newest.save_egoallo(experiment, step=200)
    (experiment / "checkpoints_1000").mkdir()  # what a kill of the original's training leaves
    with caplog.at_level(logging.WARNING):
        assert equal(Denoiser.from_egoallo(experiment), newest)
    assert "taking checkpoints_200, the newest; the others are of steps 30" in caplog.text
    assert "checkpoints_1000 is passed over" in caplog.text
    assert equal(Denoiser.from_egoallo(experiment / "checkpoints_30"), network())


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.module."], ids=lambda prefix: prefix
)
def test_prefixes_of_wrappers_are_taken_off(experiment: Path, prefix: str) -> None:
    rewrite(experiment, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    assert equal(Denoiser.from_egoallo(experiment), network())


def test_a_wrapped_block_is_read_and_a_name_given_twice_refused(experiment: Path) -> None:
    def wrap(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name.replace("layers.0.", "layers.0._orig_mod."): tensor for name, tensor in tensors.items()}

    rewrite(experiment, wrap)
    assert equal(Denoiser.from_egoallo(experiment), network())
    rewrite(experiment, lambda tensors: {**tensors, "module.noise_emb.weight": tensors["noise_emb.weight"] + 1})
    with pytest.raises(InputError, match=r"twice.*noise_emb\.weight"):
        Denoiser.from_egoallo(experiment)


def test_rotary_frequencies_may_be_missing_but_not_wrong(experiment: Path) -> None:
    rewrite(experiment, lambda tensors: {n: t for n, t in tensors.items() if not n.endswith("rotary_emb.freqs")})
    assert equal(Denoiser.from_egoallo(experiment), network())
    name = "decoder_layers.1.rotary_emb.freqs"
    rewrite(experiment, lambda tensors: {**tensors, name: RotaryEmbedding.formula(8) * 1.001})
    with pytest.raises(InputError, match=r"decoder_layers\.1\.rotary_emb\.freqs holds rotary frequencies other than"):
        Denoiser.from_egoallo(experiment)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_widths_load_as_float32(experiment: Path, dtype: torch.dtype, tmp_path: Path) -> None:
    rewrite(experiment, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    denoiser = Denoiser.from_egoallo(experiment)
    for name, tensor in network().state_dict().items():
        rounded = tensor if name.endswith("rotary_emb.freqs") else tensor.to(dtype).float()
        assert torch.equal(denoiser.state_dict()[name], rounded) and denoiser.state_dict()[name].dtype == torch.float32
    denoiser.save_egoallo(tmp_path / "again", step=0)
    assert equal(Denoiser.from_egoallo(tmp_path / "again"), denoiser)


def test_every_mismatch_is_explained(experiment: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        del tensors["latent_from_cond.bias"]
        tensors["extra.weight"] = torch.zeros(2)
        tensors["noise_emb.weight"] = torch.zeros(50, 9)
        tensors["encoder_layers.0.mlp0.bias"] = torch.zeros(24, dtype=torch.int64)
        return tensors

    rewrite(experiment, change)
    with pytest.raises(InputError) as caught:
        Denoiser.from_egoallo(experiment)
    text = str(caught.value)
    assert "missing from the file: latent_from_cond.bias;" in text
    assert "unknown to the model: extra.weight;" in text
    assert "of another shape: noise_emb.weight is (50, 9) in the file, (50, 8) in the model;" in text
    assert "encoder_layers.0.mlp0.bias (I64)" in text
    assert "The tensors say: d_noise_emb 9, not 8." in text


def test_a_contradicting_configuration_is_told_what_the_tensors_say(experiment: Path) -> None:
    (experiment / "model_config.yaml").write_text(
        egoallo.config_text(
            dataclasses.replace(
                TINY, d_latent=32, include_hands=False, decoder_layers=3, positional_encoding="transformer"
            )
        )
    )
    with pytest.raises(InputError) as caught:
        Denoiser.from_egoallo(experiment)
    for words in (
        "d_latent 16, not 32",
        "include_hands True, not False",
        "decoder_layers 2, not 3",
        "encoding rope, not",
    ):
        assert words in str(caught.value)


# The configuration


def write_config(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "model_config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_old_names_defaults_and_unknown_fields(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_config(tmp_path, f"{TAG}\ncond_param: absrel_avatarposer\nd_cond: 168\nd_latent: 64\nlr: {{a: [1]}}\n")
    with caplog.at_level(logging.WARNING):
        config = egoallo.read_egoallo_config(path)
    assert config == DenoiserConfig(cond_param="absrel_global_deltas", d_latent=64)
    assert "unknown fields are ignored: 'lr'" in caplog.text
    many = write_config(tmp_path, "".join(f"k{number}: 1\n" for number in range(100)))
    with caplog.at_level(logging.WARNING):
        assert egoallo.read_egoallo_config(many) == DenoiserConfig()
    assert "'k5' and 94 more" in caplog.text
    assert egoallo.read_egoallo_config(write_config(tmp_path, "max_t: 9\n")) == DenoiserConfig(max_t=9)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("!!python/object/apply:os.system ['touch hacked']", r"!!python/object/apply:os\.system is refused"),
        (f"{TAG}\nactivation: !!python/object/apply:os.system ['touch hacked']\n", "refused, it could run code"),
        ("!!python/object/new:os.system ['touch hacked']", "python/object/new:os.system is refused"),
        ("!!python/object:egoallo.network.Other\nd_latent: 4\n", "Other is refused"),
        ("!!python/object:builtins.dict\n{}\n", "refused"),
        ("!local\nd_latent: 4\n", "!local is refused"),
        (f"{TAG}\nactivation: !!python/name:os.system ''\n", "python/name:os.system is refused"),
        (f"{TAG}\n{BOMB}", "anchors and aliases"),
        (f"{TAG}\na: &a [*a]\n", "anchors and aliases"),
        (f"{TAG}\nunknown: {'[' * 30000}\n", "nested deeper than"),
        (f"{TAG}\n" + "".join(f"{' ' * n}a:\n" for n in range(300)), "nested deeper than"),
        (f"{TAG}\nx: {'y' * 70000}\n", "longer than 65,536 bytes"),
        (f"{TAG}\nd_latent: {'9' * 5000}\n", "can't be read|has only|digit|multiple of"),
        (f"{TAG}\nd_latent: 4\nd_latent: 8\n", "d_latent stands twice"),
        (f"{TAG} [1, 2]\n", "expected a mapping"),
        ("- 1\n- 2\n", "flat mapping.*list"),
        ("", "flat mapping.*NoneType"),
        (b"\x80\x04\x95", "can't be read"),
        ("a: 1\n---\nb: 2\n", "can't be read"),
        ("? [a, b]\n: 3\n", "can't be read"),
        ("1: 2\n", "flat mapping"),
        (f"{TAG}\nd_latent: big\n", "d_latent must be a whole number"),
        (f"{TAG}\nd_latent: 512.0\n", "d_latent must be a whole number"),
        (f"{TAG}\ninclude_hands: 1\n", "include_hands must be one of True, False"),
        (f"{TAG}\nactivation: [gelu]\n", "activation must be one of"),
        (f"{TAG}\ndropout_p: .nan\n", "dropout_p must lie"),
        (f"{TAG}\nmax_t: !!int 'x'\n", "can't be read"),
        (f"{TAG}\nstart: 2020-99-99\n", "can't be read"),
    ],
)
def test_hostile_configurations_are_refused(
    text: str | bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_config(tmp_path, text)
    with pytest.raises(InputError, match=words) as caught:
        egoallo.read_egoallo_config(path)
    assert "model_config.yaml" in str(caught.value)
    assert not (tmp_path / "hacked").exists()


def test_absurd_sizes_are_refused_before_anything_is_built(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[DenoiserConfig] = []
    init = Denoiser.__init__

    def note(self: Denoiser, config: DenoiserConfig, **options: Any) -> None:
        built.append(config)
        init(self, config, **options)

    monkeypatch.setattr(Denoiser, "__init__", note)
    for field in ("d_latent", "d_feedforward", "d_noise_emb", "max_t", "encoder_layers", "decoder_layers"):
        values = {"d_latent": 10**9, field: 10**9}
        (experiment / "model_config.yaml").write_text(f"{TAG}\nnum_heads: 2\n{yaml.safe_dump({field: values[field]})}")
        with pytest.raises(InputError, match=rf"{field} = 1000000000, but the file of weights has only [\d,]+ "):
            Denoiser.from_egoallo(experiment)
    assert built == []
    # a width that the file could have in one tensor, but not in all of them: refused from the shapes alone
    wide = dataclasses.replace(TINY, d_latent=8192, d_feedforward=16384)
    (experiment / "model_config.yaml").write_text(egoallo.config_text(wide))
    with pytest.raises(InputError, match="d_latent 16, not 8192"):
        Denoiser.from_egoallo(experiment)
    assert built == [wide]  # once, without memory


# Hostile and damaged weights


def set_header(path: Path, header: dict[str, Any] | bytes, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def hostile(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-5])
    elif how == "cut in the header":
        path.write_bytes(path.read_bytes()[:100])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "absurd shape":
        set_header(
            path, {"noise_emb.weight": {"dtype": "F32", "shape": [10**12, 10**6], "data_offsets": [0, 4]}}, b"1234"
        )
    elif how == "overflowing shape":
        set_header(path, {"noise_emb.weight": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 0]}})
    elif how == "absurd header length":
        path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    elif how == "header is no json":
        set_header(path, b"not json, and long enough")
    elif how == "negative offsets":
        set_header(path, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, b"1234")
    elif how == "a pickle inside":
        path.write_bytes(pickle.dumps({"a": 1}) * 20)
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    else:
        path.unlink()
        os.mkfifo(path)


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "cut in the header",
        "empty",
        "absurd shape",
        "overflowing shape",
        "absurd header length",
        "header is no json",
        "negative offsets",
        "a pickle inside",
        "a folder",
        "a pipe",
    ],
)
def test_hostile_weights_are_refused(experiment: Path, how: str) -> None:
    hostile(experiment / "checkpoints_30" / "model.safetensors", how)
    with pytest.raises(InputError, match=r"not a whole safetensors file|is a folder|not a regular file") as caught:
        Denoiser.from_egoallo(experiment)
    assert "model.safetensors" in str(caught.value)


class _Hack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("hacked",)


def test_pickles_are_named_and_never_opened(experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = experiment / "checkpoints_30"
    (checkpoint / "model.safetensors").unlink()
    pickled = checkpoint / "pytorch_model.bin"
    pickled.write_bytes(pickle.dumps(_Hack()))
    for path in (experiment, checkpoint, pickled):
        with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle by its name.*can run code"):
            Denoiser.from_egoallo(path)
    assert not (tmp_path / "hacked").exists()


def test_missing_parts_are_named(experiment: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        Denoiser.from_egoallo(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"neither model\.safetensors nor folders checkpoints_<step>"):
        Denoiser.from_egoallo(tmp_path)
    with pytest.raises(InputError, match=r"expected a folder, model_config\.yaml or model\.safetensors"):
        (tmp_path / "x.txt").write_text("x")
        Denoiser.from_egoallo(tmp_path / "x.txt")
    (experiment / "model_config.yaml").unlink()
    with pytest.raises(InputError, match=r"has no model_config\.yaml beside it or one level above"):
        Denoiser.from_egoallo(experiment)
    (experiment / "model_config.yaml").mkdir()
    with pytest.raises(InputError, match="not a regular file"):
        Denoiser.from_egoallo(experiment)


# Writing


def test_the_originals_loader_gets_its_object(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its class is found by the tag, and every field stands in the object (the loader doesn't call the constructor)."""
    module = ModuleType("egoallo.network")

    class EgoDenoiserConfig:
        pass

    module.EgoDenoiserConfig = EgoDenoiserConfig  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "egoallo", ModuleType("egoallo"))
    monkeypatch.setitem(sys.modules, "egoallo.network", module)
    made = yaml.load((experiment / "model_config.yaml").read_text(), Loader=yaml.UnsafeLoader)
    assert type(made) is EgoDenoiserConfig
    assert vars(made) == {**dataclasses.asdict(TINY), "d_cond": TINY.d_cond}
    assert set(load_file(experiment / "checkpoints_30" / "model.safetensors")) == set(Denoiser(TINY).state_dict())
    assert sorted(path.name for path in experiment.rglob("*")) == [
        "checkpoints_30",
        "model.safetensors",
        "model_config.yaml",
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_of_another_run_is_overwritten(experiment: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"checkpoints_30 exists and is not replaced"):
        Denoiser(TINY, seed=9).save_egoallo(experiment, step=30)
    with pytest.raises(InputError, match=r"another configuration \(max_t is 50 there, 60 here\)"):
        network(dataclasses.replace(TINY, max_t=60)).save_egoallo(experiment, step=31)
    with pytest.raises(InputError, match=r"holds other files and no model_config\.yaml"):
        network().save_egoallo(tmp_path, step=1)
    with pytest.raises(InputError, match="is a file"):
        network().save_egoallo(experiment / "model_config.yaml", step=1)
    assert contents(tmp_path) == before
    (tmp_path / "empty").mkdir()
    network().save_egoallo(tmp_path / "empty", step=0)
    network().save_egoallo(tmp_path / "empty", step=1)
    assert len(contents(tmp_path / "empty")) == 3


def test_what_would_be_lost_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"float64 and would be rounded"):
        network().double().save_egoallo(tmp_path / "x", step=0)
    for step in (-1, True, 1.5):
        with pytest.raises(InputError, match="step must be a whole number"):
            network().save_egoallo(tmp_path / "x", step=step)  # type: ignore[arg-type]
    assert contents(tmp_path) == {}


def test_half_precision_is_widened_when_written(tmp_path: Path) -> None:
    half = network().to(torch.bfloat16)
    again = Denoiser.from_egoallo(half.save_egoallo(tmp_path / "x", step=0))
    for name, tensor in half.state_dict().items():
        if not name.endswith("rotary_emb.freqs"):
            assert torch.equal(again.state_dict()[name], tensor.float())


@pytest.mark.parametrize("there", [False, True], ids=["a new folder", "one more step"])
def test_a_full_disk_leaves_nothing_half_written(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if there:
        network().save_egoallo(tmp_path / "x", step=1)
    before = contents(tmp_path)
    write = storage.write_and_sync

    def full(path: Path, data: bytes) -> None:
        if path.name == "model.safetensors":
            write(path, data[:100])
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(storage, "write_and_sync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        network().save_egoallo(tmp_path / "x", step=2)
    assert contents(tmp_path) == before and (tmp_path / "x").exists() == there
