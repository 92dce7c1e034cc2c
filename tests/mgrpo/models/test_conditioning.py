"""Condition encoding: reference values, invariances, errors."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgrpo.errors import InputError
from mgrpo.geometry import (
    axis_angle_to_quat,
    quat_normalize,
    se3,
    se3_multiply,
    yaw_rotation,
)
from mgrpo.models.conditioning import COND_PARAMS, fourier_encode, make_cond, relative_cpf
from mgrpo.models.denoiser import DenoiserConfig
from tests.golden import golden_file


def head_motion(generator: torch.Generator, batch: int = 2, frames: int = 9) -> torch.Tensor:
    """A smooth head path ``(B, T+1, 7)``, float64, at head height; the first frame looks roughly along -y."""
    steps = 0.1 * torch.randn(batch, frames, 3, generator=generator, dtype=torch.float64)
    turn = torch.tensor([math.pi / 2, 0.0, 0.0], dtype=torch.float64) + steps.cumsum(1)
    position = (0.05 * torch.randn(batch, frames, 3, generator=generator, dtype=torch.float64)).cumsum(1)
    position[..., 2] += 1.6
    return se3(axis_angle_to_quat(turn), position)


def moved(T_world_cpf: torch.Tensor, yaw: float, x: float, y: float, z: float = 0.0) -> torch.Tensor:
    """The same motion turned about the vertical axis and moved."""
    T = se3(yaw_rotation(torch.tensor(yaw, dtype=torch.float64)), torch.tensor([x, y, z], dtype=torch.float64))
    return se3_multiply(T, T_world_cpf)


def encode(config: DenoiserConfig, T_world_cpf: torch.Tensor) -> torch.Tensor:
    return make_cond(config, T_world_cpf[:, 1:], relative_cpf(T_world_cpf))


@pytest.mark.golden
def test_every_variant_matches_the_reference() -> None:
    path = golden_file("cond/make_cond*.npz")
    variants = json.loads(path.with_name("variants.json").read_text())
    assert {v["cond_param"] for v in variants} <= set(COND_PARAMS)
    with np.load(path, allow_pickle=False) as data:
        arrays = {name: torch.from_numpy(data[name]) for name in data.files}
    compared = set()
    for variant in variants:
        options = {name: value for name, value in variant.items() if name not in ("name", "d_cond")}
        config = DenoiserConfig(**options)
        assert config.d_cond == variant["d_cond"]
        for suffix, dtype, tolerance in (("f64", torch.float64, 1e-9), ("f32", torch.float32, 1e-5)):
            expected = arrays.get(f"{variant['name']}_{suffix}")
            if expected is None:
                continue
            hands = arrays["hand_positions_wrt_cpf"].to(dtype) if config.include_hand_positions_cond else None
            cond = make_cond(
                config, arrays["T_world_cpf_all"][:, 1:].to(dtype), arrays["T_cpf_tm1_cpf_t"].to(dtype), hands
            )
            torch.testing.assert_close(cond, expected, atol=tolerance, rtol=tolerance)
            compared.add(f"{variant['name']}_{suffix}")
    assert compared == {name for name in arrays if name.startswith("cond")} and len(compared) >= len(variants)
    relative = relative_cpf(arrays["T_world_cpf_all"])
    torch.testing.assert_close(relative, arrays["T_cpf_tm1_cpf_t"], atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(yaw=st.floats(-math.pi, math.pi), x=st.floats(-50, 50), y=st.floats(-50, 50))
def test_default_condition_ignores_place_and_heading(yaw: float, x: float, y: float) -> None:
    T_world_cpf = head_motion(torch.Generator().manual_seed(1))
    config = DenoiserConfig()
    torch.testing.assert_close(
        encode(config, moved(T_world_cpf, yaw, x, y)), encode(config, T_world_cpf), atol=1e-9, rtol=0
    )


def test_default_condition_sees_height(tiny: torch.Generator) -> None:
    T_world_cpf = head_motion(tiny)
    config = DenoiserConfig()
    raised = encode(config, moved(T_world_cpf, 0.0, 0.0, 0.0, z=0.25)) - encode(config, T_world_cpf)
    changed = (raised.abs() > 1e-9).any(dim=1).any(dim=0)
    # Raw channel 12 is the height; each raw channel has its value, 3 sines and 3 cosines.
    expected = {12, *(22 + 12 * 3 + k for k in range(3)), *(22 * 4 + 12 * 3 + k for k in range(3))}
    assert set(changed.nonzero()[:, 0].tolist()) == expected


@pytest.mark.parametrize("cond_param", [name for name in COND_PARAMS if name.startswith("abs")])
def test_absolute_conditions_see_the_place(cond_param: str, tiny: torch.Generator) -> None:
    T_world_cpf = head_motion(tiny)
    config = DenoiserConfig(cond_param=cond_param)  # type: ignore[arg-type]
    assert (encode(config, moved(T_world_cpf, 0.0, 1.0, 0.0)) - encode(config, T_world_cpf)).abs().max() > 0.1


def test_canonicalised_condition_ignores_the_first_frames_place_and_heading(tiny: torch.Generator) -> None:
    T_world_cpf = head_motion(tiny)
    config = DenoiserConfig(cond_param="canonicalized")
    a, b = encode(config, T_world_cpf), encode(config, moved(T_world_cpf, 2.0, -3.0, 4.0, z=0.5))
    torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


def test_gaze_of_the_canonical_rotation_lies_over_positive_x(tiny: torch.Generator) -> None:
    rotation = encode(DenoiserConfig(), head_motion(tiny))[..., 13:22].unflatten(-1, (3, 3))
    torch.testing.assert_close(rotation[..., 1, 2], torch.zeros_like(rotation[..., 1, 2]), atol=1e-12, rtol=0)
    assert (rotation[..., 0, 2] > 0).all()


def test_quaternion_sign_and_length_do_not_matter(tiny: torch.Generator) -> None:
    T_world_cpf, config = head_motion(tiny), DenoiserConfig()
    T_rel = relative_cpf(T_world_cpf)
    expected = make_cond(config, T_world_cpf[:, 1:], T_rel)
    factor = torch.tensor([-1.7] * 4 + [1.0] * 3, dtype=torch.float64)
    torch.testing.assert_close(
        make_cond(config, T_world_cpf[:, 1:] * factor, T_rel * factor), expected, atol=1e-12, rtol=0
    )


def test_relative_motion_rebuilds_the_path(tiny: torch.Generator) -> None:
    T_world_cpf = head_motion(tiny)
    rebuilt = se3_multiply(T_world_cpf[:, :-1], relative_cpf(T_world_cpf))
    rebuilt[..., :4] = quat_normalize(rebuilt[..., :4])
    torch.testing.assert_close(rebuilt, T_world_cpf[:, 1:], atol=1e-12, rtol=0)


def test_fourier_order_is_value_sines_cosines() -> None:
    v = torch.tensor([0.3, -1.2], dtype=torch.float64)
    scaled = torch.tensor([0.3, 0.6, 1.2, -1.2, -2.4, -4.8], dtype=torch.float64)
    torch.testing.assert_close(fourier_encode(v, 3), torch.cat((v, scaled.sin(), scaled.cos())), atol=1e-15, rtol=0)
    assert torch.equal(fourier_encode(v, 0), v)


def test_missing_hand_positions_are_zeros(tiny: torch.Generator) -> None:
    T_world_cpf = head_motion(tiny)
    config = DenoiserConfig(include_hand_positions_cond=True)
    T_rel = relative_cpf(T_world_cpf)
    zeros = torch.zeros(*T_rel.shape[:-1], 6, dtype=torch.float64)
    assert torch.equal(
        make_cond(config, T_world_cpf[:, 1:], T_rel), make_cond(config, T_world_cpf[:, 1:], T_rel, zeros)
    )


def test_errors(tiny: torch.Generator) -> None:
    T_world_cpf = head_motion(tiny)
    T_rel, config = relative_cpf(T_world_cpf), DenoiserConfig()
    with pytest.raises(InputError, match="same shape"):
        make_cond(config, T_world_cpf, T_rel)
    with pytest.raises(InputError, match="include_hand_positions_cond"):
        make_cond(config, T_world_cpf[:, 1:], T_rel, torch.zeros(2, 8, 6))
    with pytest.raises(InputError, match="hand_positions_wrt_cpf must have shape"):
        make_cond(DenoiserConfig(include_hand_positions_cond=True), T_world_cpf[:, 1:], T_rel, torch.zeros(2, 8, 3))
    with pytest.raises(InputError, match="at least two poses"):
        relative_cpf(T_world_cpf[:, :1])
