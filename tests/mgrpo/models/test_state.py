"""Packed state: order, round trip, errors, projection."""

from __future__ import annotations

import pytest
import torch

from mgrpo.errors import InputError
from mgrpo.geometry import axis_angle_to_rotmat
from mgrpo.models.state import StateLayout, pack_state, project_state, unpack_state


def random_parts(lead: tuple[int, ...], hands: bool, generator: torch.Generator) -> dict[str, torch.Tensor]:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*lead, *shape, generator=generator)

    parts = {
        "betas": draw(16),
        "body_rotmats": axis_angle_to_rotmat(draw(21, 3)),
        "contacts": draw(21),
    }
    if hands:
        parts["hand_rotmats"] = axis_angle_to_rotmat(draw(30, 3))
    return parts


@pytest.mark.parametrize("hands", [False, True])
@pytest.mark.parametrize("lead", [(5,), (2, 3), (2, 4, 3)])
def test_pack_and_unpack_are_inverse(hands: bool, lead: tuple[int, ...], tiny: torch.Generator) -> None:
    layout = StateLayout(hands)
    parts = random_parts(lead, hands, tiny)
    x = pack_state(layout, **parts)
    assert x.shape == (*lead, 496 if hands else 226)
    state = unpack_state(layout, x)
    for name, part in parts.items():
        assert torch.equal(getattr(state, name), part)
    assert (state.hand_rotmats is None) == (not hands)


def test_order_is_betas_rotations_contacts_hands(tiny: torch.Generator) -> None:
    layout = StateLayout(True)
    parts = random_parts((4,), True, tiny)
    x = pack_state(layout, **parts)
    assert torch.equal(x[:, :16], parts["betas"])
    assert torch.equal(x[:, 16:205], parts["body_rotmats"].reshape(4, -1))
    assert torch.equal(x[:, 205:226], parts["contacts"])
    assert torch.equal(x[:, 226:], parts["hand_rotmats"].reshape(4, -1))
    assert layout.dim == 496 and StateLayout(False).dim == 226
    assert list(layout.slices) == ["betas", "body_rotmats", "contacts", "hand_rotmats"]


@pytest.mark.parametrize("shape", [(2, 16), (2, 1, 16), (2, 3, 16)])
def test_betas_of_a_clip_are_repeated_on_every_frame(shape: tuple[int, ...], tiny: torch.Generator) -> None:
    parts = random_parts((2, 3), False, tiny)
    betas = torch.randn(shape, generator=tiny)
    x = pack_state(StateLayout(False), betas, parts["body_rotmats"], parts["contacts"])
    expected = betas if betas.ndim == 3 else betas[:, None]
    assert torch.equal(x[..., :16], expected.expand(2, 3, 16))


def test_bool_contacts_become_numbers(tiny: torch.Generator) -> None:
    parts = random_parts((3,), False, tiny)
    parts["contacts"] = parts["contacts"] > 0
    x = pack_state(StateLayout(False), **parts)
    assert x.dtype == torch.float32 and set(x[:, 205:].unique().tolist()) <= {0.0, 1.0}


def test_channel_weights_default_to_what_rewards_touch() -> None:
    layout = StateLayout(True)
    weights = layout.channel_weights()
    assert weights.shape == (496,)
    assert weights[:205].eq(1).all() and weights[205:].eq(0).all()
    everything = layout.channel_weights(contacts=1.0, hand_rotmats=1.0)
    assert everything.eq(1).all()


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"betas": -1.0}, "betas"),
        ({"contacts": float("nan")}, "contacts"),
        ({"betas": 0.0, "body_rotmats": 0.0}, "every channel"),
    ],
)
def test_channel_weights_reject_nonsense(kwargs: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        StateLayout(False).channel_weights(**kwargs)


def test_errors_name_the_argument(tiny: torch.Generator) -> None:
    parts = random_parts((2, 3), True, tiny)
    layout = StateLayout(True)
    with pytest.raises(InputError, match="body_rotmats must have shape"):
        pack_state(layout, **{**parts, "body_rotmats": parts["body_rotmats"].flatten(-2)})
    with pytest.raises(InputError, match="contacts must have shape"):
        pack_state(layout, **{**parts, "contacts": parts["contacts"][..., :20]})
    with pytest.raises(InputError, match="betas must have shape"):
        pack_state(layout, **{**parts, "betas": parts["betas"][:, :2]})
    with pytest.raises(InputError, match="hand_rotmats"):
        pack_state(layout, **{**parts, "hand_rotmats": None})
    with pytest.raises(InputError, match="no hands"):
        pack_state(StateLayout(False), **parts)
    with pytest.raises(InputError, match="226 channels"):
        unpack_state(StateLayout(False), torch.zeros(2, 496))


@pytest.mark.parametrize("hands", [False, True])
def test_projection_changes_rotations_only(hands: bool, tiny: torch.Generator) -> None:
    layout = StateLayout(True)
    x = pack_state(layout, **random_parts((2, 3), True, tiny)) + 0.1 * torch.randn(2, 3, 496, generator=tiny)
    before = x.clone()
    projected = project_state(layout, x, hands=hands)
    assert torch.equal(x, before)
    state, given = unpack_state(layout, projected), unpack_state(layout, x)
    assert torch.equal(state.betas, given.betas) and torch.equal(state.contacts, given.contacts)
    eye = torch.eye(3).expand(2, 3, 21, 3, 3)
    torch.testing.assert_close(state.body_rotmats @ state.body_rotmats.transpose(-1, -2), eye, atol=1e-5, rtol=0)
    assert state.hand_rotmats is not None and given.hand_rotmats is not None
    assert torch.equal(state.hand_rotmats, given.hand_rotmats) == (not hands)
    torch.testing.assert_close(project_state(layout, projected, hands=hands), projected, atol=1e-5, rtol=0)


def test_projection_has_finite_gradients_at_rotations(tiny: torch.Generator) -> None:
    layout = StateLayout(False)
    x = pack_state(layout, **random_parts((2, 3), False, tiny)).requires_grad_()
    weight = torch.randn(2, 3, 226, generator=tiny)
    (project_state(layout, x) * weight).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert torch.equal(x.grad[..., :16], weight[..., :16]) and torch.equal(x.grad[..., 205:], weight[..., 205:])
