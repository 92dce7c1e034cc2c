"""The denoiser: EgoAllo's names, shapes and numbers; groups; options; errors."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mgrpo.errors import InputError
from mgrpo.models import denoiser as denoiser_module
from mgrpo.models.conditioning import make_cond
from mgrpo.models.denoiser import DENOISER_PRESETS, Denoiser, DenoiserConfig, RotaryEmbedding, rotate_pairs
from tests.golden import golden_file

SMALL = DenoiserConfig(
    d_latent=32, d_feedforward=64, d_noise_emb=16, num_heads=4, encoder_layers=2, decoder_layers=2, include_hands=False
)
VARIANTS: dict[str, dict[str, object]] = {
    "default": {},
    "hands": {"include_hands": True},
    "film": {"noise_conditioning": "film"},
    "sinusoidal": {"positional_encoding": "transformer"},
    "swapped": {"xattn_mode": "kv_from_x_q_from_cond"},
    "relu": {"activation": "relu", "cond_param": "absrel"},
    "film_swapped_sinusoidal": {
        "noise_conditioning": "film",
        "xattn_mode": "kv_from_x_q_from_cond",
        "positional_encoding": "transformer",
    },
}


def golden_arrays(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path, allow_pickle=False) as data:
        return {name: torch.from_numpy(data[name]) for name in data.files}


def small(variant: str = "default", dtype: torch.dtype = torch.float64) -> Denoiser:
    """A small network whose zero-initialised and constant parameters are shaken, so that each one matters."""
    model = Denoiser(dataclasses.replace(SMALL, **VARIANTS[variant]), seed=3)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype).eval()


def inputs(
    model: Denoiser, batch: int, group: int, frames: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``x (B, G, T, D)``, ``cond (B, T, d_cond)``, ``t (B,)`` in the model's dtype."""
    dtype = model.latent_from_cond.weight.dtype
    x = torch.randn(batch, group, frames, model.layout.dim, generator=generator, dtype=dtype)
    cond = torch.randn(batch, frames, model.config.d_cond, generator=generator, dtype=dtype)
    return x, cond, torch.randint(1, 1001, (batch,), generator=generator)


def some_poses(batch: int, frames: int, generator: torch.Generator) -> torch.Tensor:
    poses = torch.randn(batch, frames, 7, generator=generator, dtype=torch.float64)
    return torch.cat((F.normalize(poses[..., :4], dim=-1), poses[..., 4:]), dim=-1)


# EgoAllo's numbers


@pytest.mark.golden
def test_full_size_names_and_shapes() -> None:
    options: dict[str, dict[str, object]] = {
        "default": {},
        "no_hands": {"include_hands": False},
        "film": {"noise_conditioning": "film"},
        "sinusoidal_positions": {"positional_encoding": "transformer"},
    }
    listed = json.loads(golden_file("network/full_config_names.json").read_text())
    assert listed and set(listed) <= set(options)
    for name, expected in listed.items():
        with torch.device("meta"):
            model = Denoiser(DenoiserConfig(**options[name]))  # type: ignore[arg-type]
        state = model.state_dict()
        assert [[key, list(value.shape)] for key, value in state.items()] == expected["params"]
        assert len(state) == expected["num_tensors"]
        assert sum(value.numel() for value in state.values()) == expected["num_values"]
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert trainable == expected["num_trainable"]


def reference_model(folder: Path, entry: dict[str, Any], data: dict[str, torch.Tensor]) -> Denoiser:
    """The network of an entry of configs.json with its reference weights."""
    weights = {key[len("param/") :]: value for key, value in data.items() if key.startswith("param/")}
    if not weights:  # those that are stored in the release's layout instead
        model = Denoiser.from_egoallo(folder / "checkpoint_layout")
        assert model.config == DenoiserConfig(**entry["config"])
        return model
    model = Denoiser(DenoiserConfig(**entry["config"])).eval()
    model.load_state_dict(weights)
    return model


def block_outputs(monkeypatch: pytest.MonkeyPatch, model: Denoiser) -> dict[str, torch.Tensor]:
    """Fills, while the model runs, with each block's output ``(rows * tokens, d_latent)``, by name: its last norm's."""
    names = {
        id(block.layernorm2): f"{stack}.{number}"
        for stack in ("encoder_layers", "decoder_layers")
        for number, block in enumerate(getattr(model, stack))
    }
    outputs: dict[str, torch.Tensor] = {}
    layer_norm = denoiser_module._layer_norm

    def note(norm: torch.nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        out = layer_norm(norm, x)
        if id(norm) in names:
            outputs[names[id(norm)]] = out
        return out

    monkeypatch.setattr(denoiser_module, "_layer_norm", note)
    return outputs


@pytest.mark.golden
def test_outputs_match_the_reference() -> None:
    listed = golden_file("network/configs.json")
    folder, entries = listed.parent, json.loads(listed.read_text())
    assert {f"net_{entry['name']}.npz" for entry in entries} == {path.name for path in folder.glob("net_*.npz")}
    for entry in entries:
        data = golden_arrays(folder / f"net_{entry['name']}.npz")
        model = reference_model(folder, entry, data)
        config = model.config
        assert (config.d_cond, config.layout.dim) == (entry["d_cond"], entry["d_state"])
        assert [[k, list(v.shape)] for k, v in model.state_dict().items()] == entry["params"]
        compared = set()
        for dtype, suffix, tolerance in ((torch.float32, "f32", 1e-5), (torch.float64, "f64", 1e-9)):
            model = model.to(dtype)
            x_t, t = data["x_t"].to(dtype), data["t"]
            poses = {
                "T_world_cpf": data["T_world_cpf_all"][:, 1:].to(dtype),
                "T_cpf_tm1_cpf_t": data["T_cpf_tm1_cpf_t"].to(dtype),
            }
            options: dict[str, dict[str, object]] = {
                f"out_{suffix}": {},
                f"out_mask_{suffix}": {"mask": data["mask"]},
                f"out_keep_{suffix}": {"cond_dropout_keep_mask": data["cond_keep"]},
                f"out_projected_{suffix}": {"project_output_rotmats": True},
            }
            for name, extra in options.items():
                if name in data:
                    with torch.no_grad():
                        out = model(x_t, t, **poses, **extra)
                    torch.testing.assert_close(
                        out, data[name], atol=tolerance, rtol=tolerance, msg=f"{entry['name']} {name}"
                    )
                    compared.add(name)
        assert compared == {name for name in data if name.startswith("out_")}, entry["name"]


@pytest.mark.golden
def test_every_block_matches_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored for the first batch item, noise token included."""
    listed = golden_file("network/configs.json")
    folder = listed.parent
    for entry in json.loads(listed.read_text()):
        data = golden_arrays(folder / f"net_{entry['name']}.npz")
        model = reference_model(folder, entry, data).double()
        with monkeypatch.context() as patch, torch.no_grad():
            outputs = block_outputs(patch, model)
            model(
                data["x_t"].double(),
                data["t"],
                T_world_cpf=data["T_world_cpf_all"][:, 1:].double(),
                T_cpf_tm1_cpf_t=data["T_cpf_tm1_cpf_t"].double(),
            )
        stored = {
            name.removeprefix("act_item0_f64/"): v for name, v in data.items() if name.startswith("act_item0_f64/")
        }
        assert set(stored) == set(outputs) and len(stored) == len(model.encoder_layers) + len(model.decoder_layers)
        for name, expected in stored.items():
            first = outputs[name].view(len(data["t"]), -1, model.config.d_latent)[0]
            torch.testing.assert_close(first, expected, atol=1e-9, rtol=1e-9, msg=f"{entry['name']} {name}")


def test_hand_positions_reach_the_output(tiny: torch.Generator) -> None:
    """With wrists in the condition: forward() encodes what make_cond() makes of them, and they matter."""
    model = Denoiser(dataclasses.replace(SMALL, include_hand_positions_cond=True)).double().eval()
    T_world_cpf, T_rel = some_poses(2, 5, tiny), some_poses(2, 5, tiny)
    x, t = torch.randn(2, 5, 226, generator=tiny, dtype=torch.float64), torch.tensor([5, 600])
    hands = torch.randn(2, 5, 6, generator=tiny, dtype=torch.float64)
    poses = {"T_world_cpf": T_world_cpf, "T_cpf_tm1_cpf_t": T_rel}
    with torch.no_grad():
        out = model(x, t, **poses, hand_positions_wrt_cpf=hands)
        cond = make_cond(model.config, T_world_cpf, T_rel, hands)
        assert torch.equal(out, model.decode(x[:, None], t, model.encode(cond, t))[:, 0])
        assert (out - model(x, t, **poses)).abs().max() > 1e-4


# Groups


@pytest.mark.parametrize("variant", VARIANTS)
def test_group_equals_separate_calls(variant: str, tiny: torch.Generator) -> None:
    model = small(variant)
    x, cond, t = inputs(model, 3, 4, 7, tiny)
    mask = torch.arange(7) < torch.tensor([7, 4, 6])[:, None]
    with torch.no_grad():
        together = model.decode(x, t, model.encode(cond, t, mask=mask))
        for b in range(3):
            for g in range(4):
                row = slice(b, b + 1)
                alone = model.decode(x[row, g : g + 1], t[row], model.encode(cond[row], t[row], mask=mask[row]))
                torch.testing.assert_close(together[b, g], alone[0, 0], atol=1e-12, rtol=0)


def test_group_equals_forward_in_float32(tiny: torch.Generator) -> None:
    model = small(dtype=torch.float32)
    T_world_cpf, T_rel = some_poses(3, 9, tiny).float(), some_poses(3, 9, tiny).float()
    x = torch.randn(3, 4, 9, 226, generator=tiny)
    t = torch.tensor([1, 500, 1000])
    with torch.no_grad():
        together = model.decode(x, t, model.encode(make_cond(model.config, T_world_cpf, T_rel), t))
        for g in range(4):
            alone = model(x[:, g], t, T_world_cpf=T_world_cpf, T_cpf_tm1_cpf_t=T_rel)
            torch.testing.assert_close(together[:, g], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", ["default", "film", "swapped"])
def test_group_gradients_equal_separate_calls(variant: str, tiny: torch.Generator) -> None:
    model = small(variant)
    x, cond, t = inputs(model, 2, 3, 5, tiny)
    seed = torch.randn(x.shape, generator=tiny, dtype=x.dtype)
    (model.decode(x, t, model.encode(cond, t)) * seed).sum().backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert set(together) == {name for name, _ in model.named_parameters()}
    model.zero_grad()
    for g in range(3):
        (model.decode(x[:, g : g + 1], t, model.encode(cond, t)) * seed[:, g : g + 1]).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, together[name], atol=1e-10, rtol=1e-10, msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_permuting_members_permutes_outputs(variant: str, tiny: torch.Generator) -> None:
    model = small(variant)
    x, cond, t = inputs(model, 2, 5, 6, tiny)
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        memory = model.encode(cond, t)
        torch.testing.assert_close(
            model.decode(x[:, order], t, memory), model.decode(x, t, memory)[:, order], atol=1e-12, rtol=0
        )


def test_memory_can_be_split_by_condition(tiny: torch.Generator) -> None:
    model = small()
    x, cond, t = inputs(model, 4, 2, 6, tiny)
    mask = torch.arange(6) < torch.tensor([6, 2, 5, 3])[:, None]
    with torch.no_grad():
        memory = model.encode(cond, t, mask=mask)
        whole = model.decode(x, t, memory)
        for index in (slice(1, 3), torch.tensor([3, 0])):
            part = model.decode(x[index], t[index], memory.select(index))
            torch.testing.assert_close(part, whole[index], atol=1e-12, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_several_levels_in_one_pass(variant: str, tiny: torch.Generator) -> None:
    """Memories and gradients of one pass over all levels against a pass for each."""
    model = small(variant)
    x, cond, _ = inputs(model, 3, 2, 6, tiny)
    mask = torch.arange(6) < torch.tensor([6, 2, 5])[:, None]
    levels = [900, 17, 1]
    seeds = torch.randn(len(levels), *x.shape, generator=tiny, dtype=x.dtype)
    gradients = []
    outputs = []
    for together in (True, False):
        at = [torch.full((3,), level) for level in levels]
        memories = (
            model.encode_levels(cond, levels, mask=mask) if together else [model.encode(cond, t, mask=mask) for t in at]
        )
        assert [memory.t.tolist() for memory in memories] == [[level] * 3 for level in levels]
        out = torch.stack([model.decode(x, t, memory) for t, memory in zip(at, memories, strict=True)])
        model.zero_grad()
        (out * seeds).sum().backward()
        outputs.append(out.detach())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    torch.testing.assert_close(*outputs, atol=1e-12, rtol=0)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-10, rtol=1e-10, msg=name)


# Behaviour of the parts


def test_padding_leaks_through_self_attention_only(tiny: torch.Generator) -> None:
    """EgoAllo's behaviour, needed for its weights: only cross-attention ignores padded frames."""
    model = small()
    x, cond, t = inputs(model, 1, 1, 8, tiny)
    mask = torch.arange(8)[None] < 5
    with torch.no_grad():
        before = model.decode(x, t, model.encode(cond, t, mask=mask))
        changed = x.clone()
        changed[:, :, 5:] += 1.0
        after = model.decode(changed, t, model.encode(cond, t, mask=mask))
        assert (after - before)[..., :5, :].abs().max() > 1e-4
        unmasked = model.decode(x, t, model.encode(cond, t))
        assert (unmasked - before).abs().max() > 1e-6
        everything = torch.ones(1, 8, dtype=torch.bool)
        full = model.decode(x, t, model.encode(cond, t, mask=everything))
        torch.testing.assert_close(full, unmasked, atol=1e-12, rtol=0)


def test_dropped_condition_equals_zeros(tiny: torch.Generator) -> None:
    model = small()
    x, cond, t = inputs(model, 2, 1, 5, tiny)
    keep = torch.tensor([True, False])
    with torch.no_grad():
        dropped = model.decode(x, t, model.encode(cond, t, cond_dropout_keep_mask=keep))
        zeroed = cond.clone()
        zeroed[1] = 0.0
        assert torch.equal(dropped, model.decode(x, t, model.encode(zeroed, t)))


def test_projection_of_the_output(tiny: torch.Generator) -> None:
    model = small("hands")
    T_world_cpf, T_rel = some_poses(2, 4, tiny), some_poses(2, 4, tiny)
    x, t = torch.randn(2, 4, 496, generator=tiny, dtype=torch.float64), torch.tensor([5, 600])
    with torch.no_grad():
        raw = model(x, t, T_world_cpf=T_world_cpf, T_cpf_tm1_cpf_t=T_rel)
        out = model(x, t, T_world_cpf=T_world_cpf, T_cpf_tm1_cpf_t=T_rel, project_output_rotmats=True)
    for part in (slice(16, 205), slice(226, 496)):
        R = out[..., part].unflatten(-1, (-1, 3, 3))
        eye = torch.eye(3, dtype=R.dtype).expand_as(R)
        torch.testing.assert_close(R @ R.transpose(-1, -2), eye, atol=1e-9, rtol=0)
    for part in (slice(0, 16), slice(205, 226)):
        assert torch.equal(out[..., part], raw[..., part])


def test_rotation_by_pairs_is_relative_and_equal_in_both_forms(tiny: torch.Generator) -> None:
    """Products of rotated queries and keys depend on the distance of their positions alone; complex and real agree."""
    q, k = (torch.randn(8, generator=tiny, dtype=torch.float64).expand(12, 1, 8) for _ in range(2))
    angles = torch.arange(12, dtype=torch.float64)[:, None] * RotaryEmbedding.formula(8).double()
    table = torch.polar(torch.ones_like(angles), angles)[:, None]
    real = torch.stack((angles.cos(), angles.sin()))[:, :, None]
    rotated = [rotate_pairs(x, table)[:, 0] for x in (q, k)]
    for x, y in zip((q, k), rotated, strict=True):
        torch.testing.assert_close(rotate_pairs(x, real)[:, 0], y, atol=1e-14, rtol=0)
    products = rotated[0] @ rotated[1].T
    for shift in range(-11, 12):
        diagonal = products.diagonal(shift)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-12, rtol=0)


def test_inputs_are_not_modified(tiny: torch.Generator) -> None:
    model = small()
    x, cond, t = inputs(model, 2, 2, 5, tiny)
    copies = [value.clone() for value in (x, cond, t)]
    model.decode(x, t, model.encode(cond, t, cond_dropout_keep_mask=torch.tensor([True, False])))
    assert all(torch.equal(a, b) for a, b in zip((x, cond, t), copies, strict=True))


def test_half_precision_stays_close(tiny: torch.Generator) -> None:
    model = small(dtype=torch.float32)
    x, cond, t = inputs(model, 2, 3, 6, tiny)
    with torch.no_grad():
        expected = model.decode(x, t, model.encode(cond, t))
        with torch.autocast("cpu", torch.bfloat16):
            autocast = model.decode(x, t, model.encode(cond, t))
        lower = copy.deepcopy(model).to(torch.bfloat16)
        cast = lower.decode(x, t, lower.encode(cond, t))
    for out in (autocast.float(), cast.float()):
        assert (out - expected).abs().max() < 0.1 * expected.abs().max()


def test_both_halves_compile_without_graph_breaks(tiny: torch.Generator) -> None:
    model = small()
    x, cond, t = inputs(model, 2, 2, 5, tiny)

    def both(x: torch.Tensor, cond: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model.decode(x, t, model.encode(cond, t))

    with torch.no_grad():
        expected = both(x, cond, t)
        compiled = torch.compile(both, backend="eager", fullgraph=True)
        for _ in range(2):
            torch.testing.assert_close(compiled(x, cond, t), expected, atol=1e-12, rtol=0)
        assert torch.equal(both(x, cond, t), expected)
    torch.compiler.reset()


def test_tables_made_in_inference_mode_serve_training(tiny: torch.Generator) -> None:
    for variant in ("default", "sinusoidal"):
        model = small(variant)
        x, cond, t = inputs(model, 1, 1, 11, tiny)
        with torch.inference_mode():
            model.decode(x, t, model.encode(cond, t))
        model.decode(x, t, model.encode(cond, t)).sum().backward()


def test_dropout_acts_in_training_only(tiny: torch.Generator) -> None:
    model = Denoiser(dataclasses.replace(SMALL, dropout_p=0.3))
    x, cond, t = inputs(model, 2, 2, 5, tiny)
    with torch.no_grad():
        model.train()
        assert not torch.equal(model.decode(x, t, model.encode(cond, t)), model.decode(x, t, model.encode(cond, t)))
        model.eval()
        assert torch.equal(model.decode(x, t, model.encode(cond, t)), model.decode(x, t, model.encode(cond, t)))


def test_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    a = Denoiser(SMALL, seed=7)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    b, c = Denoiser(SMALL, seed=7), Denoiser(SMALL, seed=8)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert not torch.equal(a.latent_from_cond.weight, c.latent_from_cond.weight)


def test_film_starts_without_effect(tiny: torch.Generator) -> None:
    """Zero FiLM matrices: the level doesn't matter until training moves them."""
    model = Denoiser(dataclasses.replace(SMALL, noise_conditioning="film")).double()
    x, cond, _ = inputs(model, 1, 1, 5, tiny)
    low, high = torch.tensor([1]), torch.tensor([900])
    with torch.no_grad():
        assert torch.equal(
            model.decode(x, low, model.encode(cond, low)), model.decode(x, high, model.encode(cond, high))
        )


# State dicts


def test_frequencies_may_be_missing_but_not_wrong() -> None:
    model = Denoiser(SMALL)
    state = model.state_dict()
    names = [name for name in state if name.endswith("rotary_emb.freqs")]
    assert len(names) == 4
    model.load_state_dict({name: value for name, value in state.items() if name not in names}, strict=True)
    wrong = {**state, names[0]: state[names[0]] * 1.1}
    with pytest.raises(RuntimeError, match="rotary frequencies"):
        model.load_state_dict(wrong)
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({name: value for name, value in state.items() if "mlp0" not in name})
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict({**state, names[0]: state[names[0]][:2]})


# Configuration


def test_presets() -> None:
    assert DENOISER_PRESETS["egoallo"] == DenoiserConfig()
    assert DENOISER_PRESETS["egoallo"].d_cond == 154 and DENOISER_PRESETS["egoallo"].layout.dim == 496
    assert not DENOISER_PRESETS["tiny"].include_hands
    for config in DENOISER_PRESETS.values():
        assert DenoiserConfig.from_mapping(dataclasses.asdict(config)) == config


def test_mappings_of_older_checkpoints() -> None:
    config = DenoiserConfig.from_mapping({"cond_param": "absrel_avatarposer", "d_cond": 168, "d_latent": 64})
    assert config.cond_param == "absrel_global_deltas" and config.d_latent == 64 and config.d_cond == 168
    with pytest.raises(InputError, match=r"d_latant.*known are"):
        DenoiserConfig.from_mapping({"d_latant": 64})


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"d_latent": 30}, "multiple of num_heads"),
        ({"d_latent": 36, "num_heads": 12}, "even width per head"),
        ({"d_latent": 33, "num_heads": 3, "positional_encoding": "transformer"}, "even d_latent"),
        ({"encoder_layers": 0}, "encoder_layers must be a whole number"),
        ({"d_latent": 64.0}, "d_latent must be a whole number"),
        ({"max_t": True}, "max_t must be a whole number"),
        ({"fourier_enc_freqs": -1}, "fourier_enc_freqs"),
        ({"dropout_p": 1.0}, r"dropout_p must lie in \[0, 1\)"),
        ({"activation": "silu"}, "activation must be one of gelu, relu"),
        ({"xattn_mode": "both"}, "xattn_mode must be one of"),
        ({"cond_param": "mine"}, "cond_param must be one of ours"),
        ({"include_hands": "yes"}, "include_hands must be one of"),
    ],
)
def test_config_errors(kwargs: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        DenoiserConfig(**kwargs)  # type: ignore[arg-type]


def test_shape_errors(tiny: torch.Generator) -> None:
    model = small()
    x, cond, t = inputs(model, 2, 3, 5, tiny)
    memory = model.encode(cond, t)
    with pytest.raises(InputError, match=r"cond must have shape \(B, T, 154\)"):
        model.encode(cond[..., :100], t)
    with pytest.raises(InputError, match=r"t must have shape \(2,\)"):
        model.encode(cond, t[:1])
    with pytest.raises(InputError, match="mask must be boolean"):
        model.encode(cond, t, mask=torch.ones(2, 5))
    with pytest.raises(InputError, match="cond_dropout_keep_mask"):
        model.encode(cond, t, cond_dropout_keep_mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(InputError, match=r"x_t must have shape \(B, G, T, 226\)"):
        model.decode(x[:, 0], t, memory)
    with pytest.raises(InputError, match="memory holds 2 conditions"):
        model.decode(x[:1], t[:1], memory)
    with pytest.raises(InputError, match="made for 5"):
        model.decode(x[:, :, :4], t, memory)
    with pytest.raises(InputError, match=r"x_t must have shape \(B, T, 226\)"):
        model(x, t, T_world_cpf=torch.zeros(2, 5, 7), T_cpf_tm1_cpf_t=torch.zeros(2, 5, 7))
    for level in (0, 1001):
        with pytest.raises(InputError, match="levels must lie in 1"):
            model.encode(cond, torch.full((2,), level))
