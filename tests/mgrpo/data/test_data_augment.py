"""Contact labels, mirror, other shapes, turns, loops, other rates."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mgrpo import geometry as g
from mgrpo.body import BodyModel, cpf_of, default_body, place_on_cpf, place_on_root
from mgrpo.body.skeleton import BODY_JOINT_NAMES, CONTACT_JOINTS, MIRROR_BODY, MIRROR_HANDS
from mgrpo.data import (
    MotionClip,
    contact_labels,
    cut_windows,
    load_motion,
    loop,
    mirror,
    place_clip,
    resample,
    reshape_body,
    turn,
)
from mgrpo.data.augment import loop_step
from mgrpo.errors import InputError
from tests.golden import golden_files


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return default_body()


@pytest.fixture(scope="module")
def clips(body: BodyModel) -> dict[str, MotionClip]:
    return {clip.name: clip for clip in load_motion("demo", body)}


@pytest.fixture(scope="module")
def lopsided(body: BodyModel) -> BodyModel:
    joints = body.J_template.clone()
    joints[7] += torch.tensor([0.0, -0.03, 0.0])  # a longer left shin
    return replace(body, J_template=joints)


def with_hands(clip: MotionClip) -> MotionClip:
    generator = torch.Generator().manual_seed(1)
    hands = g.axis_angle_to_quat(0.4 * torch.randn(len(clip), 30, 3, generator=generator))
    return replace(clip, hand_quats=hands)


def same_pose(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a[..., 4:], b[..., 4:], rtol=0, atol=tolerance)
    torch.testing.assert_close(g.quat_to_rotmat(a[..., :4]), g.quat_to_rotmat(b[..., :4]), rtol=0, atol=tolerance)


# Contact labels


@pytest.mark.golden
def test_contact_labels_of_reference_recordings() -> None:
    checked = 0
    for path in golden_files("dataset/floor_cases*.npz"):
        with np.load(path, allow_pickle=False) as archive:
            names = sorted({key.rsplit(".", 1)[0] for key in archive.files if key.endswith(".offset_floor_height")})
            for name in names:
                fps = float(archive[f"{name}.fps"])
                joints = torch.from_numpy(archive[f"{name}.joints"]).double()
                joints[..., 2] -= float(archive[f"{name}.offset_floor_height"])
                expected = torch.from_numpy(archive[f"{name}.contacts"])[:, 1:]
                # The reference's threshold is a displacement per frame.
                labels = contact_labels(joints, fps, toe_clearance=0.01, speed_m_s=0.005 * fps)
                assert torch.equal(labels.bool(), expected.bool()), name
                checked += 1
    assert checked > 0


def test_contact_labels_need_slow_and_low() -> None:
    joints = torch.zeros(40, 22, 3)
    joints[..., 2] = 1.0
    joints[:, 10, 2] = 0.02  # left toe lies still, then slides
    joints[20:, 10, 0] = torch.arange(20) * 0.05
    joints[:, 8, 2] = 0.05  # right ankle
    joints[:, 16, 2] = 0.0  # a shoulder on the floor never counts
    labels = contact_labels(joints, 30.0)
    toe, ankle = BODY_JOINT_NAMES.index("left_foot"), BODY_JOINT_NAMES.index("right_ankle")
    assert labels[:20, toe].all() and not labels[20:, toe].any()
    assert labels[:, ankle].all()
    others = [joint for joint in range(21) if joint not in (toe, ankle)]
    assert not labels[:, others].any()


def test_contact_thresholds_are_per_second() -> None:
    """The same motion at twice the rate has the same labels."""
    time = torch.arange(0, 121) / 120.0
    joints = torch.zeros(121, 22, 3)
    joints[:, 10, 0] = 0.2 * time
    joints[:, 11, 0] = 0.5 * time
    fast, slow = contact_labels(joints, 120.0), contact_labels(joints[::4], 30.0)
    assert torch.equal(fast[::4][:, 9:11], slow[:, 9:11])
    assert slow[:, 9].all() and not slow[:, 10].any()


def test_contact_heights_follow_the_sole() -> None:
    joints = torch.full((4, 22, 3), 0.06)
    assert not contact_labels(joints, 30.0, toe_clearance=0.01)[:, 9].any()
    assert contact_labels(joints, 30.0, toe_clearance=0.03)[:, 9].all()


def test_contact_labels_only_on_the_joints_that_can_touch(clips: dict[str, MotionClip]) -> None:
    for clip in clips.values():
        never = [joint for joint in range(21) if joint not in CONTACT_JOINTS]
        assert not clip.contacts[:, never].any()


def test_contact_labels_refuse_other_shapes() -> None:
    with pytest.raises(InputError, match=r"\(F, 22, 3\)"):
        contact_labels(torch.zeros(5, 21, 3), 30.0)
    with pytest.raises(InputError, match="F >= 2"):
        contact_labels(torch.zeros(1, 22, 3), 30.0)
    with pytest.raises(InputError, match="fps"):
        contact_labels(torch.zeros(5, 22, 3), 0.0)


# Mirror


@pytest.mark.parametrize("name", ["walk", "cartwheel", "kick"])
def test_mirror_twice_is_the_clip(clips: dict[str, MotionClip], body: BodyModel, name: str) -> None:
    clip = with_hands(clips[name])
    back = mirror(mirror(clip, body), body)
    for field in ("T_world_root", "body_quats", "contacts", "hand_quats", "betas"):
        assert torch.equal(getattr(back, field), getattr(clip, field)), field


def test_mirrored_joints_are_mirror_images(clips: dict[str, MotionClip], body: BodyModel) -> None:
    order = [0, *(joint + 1 for joint in MIRROR_BODY)]
    for name in ("walk", "kick", "roll"):
        clip = clips[name]
        one, two = place_clip(clip, body).joints, place_clip(mirror(clip, body), body).joints
        torch.testing.assert_close(two, one[:, order] * torch.tensor([-1.0, 1, 1]), rtol=0, atol=1e-5)


def test_mirror_keeps_labels_with_their_side(clips: dict[str, MotionClip], body: BodyModel) -> None:
    """What the left foot touched, the right foot of the mirrored clip touches; labelling afterwards gives the same."""
    clip = clips["kick"]
    mirrored = mirror(clip, body)
    left, right = BODY_JOINT_NAMES.index("left_foot"), BODY_JOINT_NAMES.index("right_foot")
    assert not torch.equal(clip.contacts[:, left], clip.contacts[:, right])
    assert torch.equal(mirrored.contacts[:, right], clip.contacts[:, left])
    again = contact_labels(place_clip(mirrored, body).joints, clip.fps, toe_clearance=body.toe_clearance)
    assert float((again != mirrored.contacts).float().mean()) < 2e-3


def test_mirror_exchanges_the_hands(clips: dict[str, MotionClip], body: BodyModel) -> None:
    """A bent left index finger becomes a bent right index finger, on the whole skeleton too."""
    clip = with_hands(clips["punch"])
    mirrored = mirror(clip, body)
    left, right = clip.hand_quats[:, :15], mirrored.hand_quats[:, 15:]
    assert torch.equal(right, left * torch.tensor([1.0, 1, -1, -1]))
    order = torch.tensor([0, *(i + 1 for i in MIRROR_BODY), *(22 + i for i in MIRROR_HANDS)])
    joints = []
    for each in (clip, mirrored):
        rotmats = g.quat_to_rotmat(torch.cat((each.body_quats, each.hand_quats), 1))
        joints.append(place_on_root(body, rotmats, each.betas, each.T_world_root).joints)
    torch.testing.assert_close(joints[1], joints[0][:, order] * torch.tensor([-1.0, 1, 1]), rtol=0, atol=1e-5)


def test_mirror_keeps_the_floor_on_an_asymmetric_body(clips: dict[str, MotionClip], lopsided: BodyModel) -> None:
    clip = clips["kick"]
    mirrored = mirror(clip, lopsided)
    before = _planted_height(clip, lopsided)
    assert _planted_height(mirrored, lopsided) == pytest.approx(before, abs=1e-5)
    assert abs(float(mirrored.T_world_root[0, 6] - clip.T_world_root[0, 6])) > 5e-4
    back = mirror(mirrored, lopsided)
    torch.testing.assert_close(back.T_world_root, clip.T_world_root, rtol=0, atol=1e-5)


def _planted_height(clip: MotionClip, body: BodyModel) -> float:
    toes = place_clip(clip, body).joints[:, [10, 11], 2]
    weights = clip.contacts[:, 9:11]
    return float((toes * weights).sum() / weights.sum())


# Other shapes


@pytest.mark.parametrize("first", [-2.0, 2.0])
def test_other_shapes_keep_the_floor(clips: dict[str, MotionClip], body: BodyModel, first: float) -> None:
    betas = torch.zeros(16)
    betas[0], betas[1], betas[4] = first, 1.0, -1.0
    for name in ("walk", "kick", "jump", "spinkick"):
        clip = clips[name]
        other = reshape_body(clip, betas, body)
        assert torch.equal(other.betas, betas) and torch.equal(other.contacts, clip.contacts)
        assert _planted_height(other, body) == pytest.approx(_planted_height(clip, body), abs=1e-5)
        # Legs and root path scale together, so planted feet slide no more than they did.
        ratio = float(body.leg_length(betas) / body.leg_length(clip.betas))
        assert abs(ratio - 1) > 0.05
        path, scaled = clip.T_world_root[:, 4:6], other.T_world_root[:, 4:6]
        torch.testing.assert_close(scaled, path * ratio, rtol=1e-5, atol=1e-6)
        heads = place_clip(clip, body).joints[:, 15, 2], place_clip(other, body).joints[:, 15, 2]
        assert float(heads[1].median() / heads[0].median()) == pytest.approx(ratio, abs=0.08)


def test_the_floor_is_kept_without_any_toe_contact(clips: dict[str, MotionClip], body: BodyModel) -> None:
    crawl = clips["crawl"]
    assert not crawl.contacts[:, 9:11].any()
    other = reshape_body(crawl, torch.full((16,), 0.5), body)
    lowest = [place_clip(clip, body).joints[..., 2].amin().item() for clip in (crawl, other)]
    assert lowest[1] == pytest.approx(lowest[0], abs=0.03)
    bare = replace(crawl, contacts=torch.zeros_like(crawl.contacts))
    other = reshape_body(bare, torch.full((16,), 0.5), body)
    assert place_clip(other, body).joints[..., 2].amin().item() == pytest.approx(lowest[0], abs=0.03)


def test_reshaping_back_gives_the_clip(clips: dict[str, MotionClip], body: BodyModel) -> None:
    clip = clips["walk"]
    back = reshape_body(reshape_body(clip, torch.full((16,), 0.7), body), clip.betas, body)
    torch.testing.assert_close(back.T_world_root, clip.T_world_root, rtol=0, atol=1e-5)
    same = reshape_body(clip, clip.betas, body)
    torch.testing.assert_close(same.T_world_root, clip.T_world_root, rtol=0, atol=1e-6)


def test_eyes_and_root_stay_consistent_on_other_shapes(clips: dict[str, MotionClip], body: BodyModel) -> None:
    clip = reshape_body(clips["cartwheel"], torch.linspace(-1, 1, 16), body)
    placed = place_clip(clip, body)
    cpf = cpf_of(body, placed, clip.betas)
    again = place_on_cpf(body.body_only(), g.quat_to_rotmat(clip.body_quats), clip.betas, cpf)
    torch.testing.assert_close(again.joints, placed.joints, rtol=0, atol=1e-5)
    same_pose(cpf_of(body, again, clip.betas), cpf)


def test_reshape_refuses_other_shapes_of_betas(clips: dict[str, MotionClip], body: BodyModel) -> None:
    with pytest.raises(InputError, match=r"\(16,\), got \(10,\)"):
        reshape_body(clips["walk"], torch.zeros(10), body)


# Turn


def test_turn_moves_joints_rigidly_and_leaves_the_condition(clips: dict[str, MotionClip], body: BodyModel) -> None:
    clip, yaw = clips["dance_a"], 1.1
    turned = turn(clip, yaw)
    quat = g.yaw_rotation(torch.tensor(yaw))
    one, two = place_clip(clip, body), place_clip(turned, body)
    torch.testing.assert_close(two.joints, g.quat_apply(quat, one.joints), rtol=0, atol=1e-5)
    windows = [cut_windows([c], body, 16) for c in (clip, turned)]
    same_pose(windows[0].T_cpf_tm1_cpf_t, windows[1].T_cpf_tm1_cpf_t)
    torch.testing.assert_close(windows[0].T_world_cpf[..., 6], windows[1].T_world_cpf[..., 6], rtol=0, atol=1e-5)
    same_pose(turn(turned, -yaw).T_world_root, clip.T_world_root)


# Loop


LOOPS = ("backflip", "roll", "run", "spin", "walk")


def test_which_clips_loop(clips: dict[str, MotionClip]) -> None:
    assert {name for name, clip in clips.items() if clip.loop} == set(LOOPS)


@pytest.mark.parametrize("name", LOOPS)
def test_loops_have_no_seam(clips: dict[str, MotionClip], body: BodyModel, name: str) -> None:
    """The joints' acceleration over the seam is nothing unusual for the clip."""
    clip = clips[name]
    frames = len(clip)
    joints = place_clip(loop(clip, frames + 2), body).joints
    acceleration = (joints[2:] - 2 * joints[1:-1] + joints[:-2]).norm(dim=-1).mean(1)
    assert float(acceleration[-2:].max()) < 1.1 * float(acceleration[:-2].max())


def test_loop_repeats_and_moves_on(clips: dict[str, MotionClip]) -> None:
    clip = clips["walk"]
    frames = len(clip)
    longer = loop(clip, 3 * frames)
    assert len(longer) == 3 * frames and longer.loop and longer.name == clip.name
    step = loop_step(clip)
    assert float(step[2]) == 0 and float(step.norm()) > 0.5
    for number in range(3):
        part = slice(number * frames, (number + 1) * frames)
        assert torch.equal(longer.body_quats[part], clip.body_quats)
        assert torch.equal(longer.contacts[part], clip.contacts)
        moved = clip.T_world_root[:, 4:] + number * step
        torch.testing.assert_close(longer.T_world_root[part, 4:], moved, rtol=0, atol=1e-5)
    cut = loop(clip, frames + 5)
    assert not cut.loop and torch.equal(cut.body_quats, longer.body_quats[: frames + 5])


def test_only_loops_can_be_repeated(clips: dict[str, MotionClip]) -> None:
    with pytest.raises(InputError, match="'kick' is not a loop"):
        loop(clips["kick"], 100)
    with pytest.raises(InputError, match="at least 2"):
        loop(clips["walk"], 1)


# Rates


def test_resampling_up_and_down_returns(clips: dict[str, MotionClip], body: BodyModel) -> None:
    clip = with_hands(clips["cartwheel"])
    fine = resample(clip, 120.0)
    assert len(fine) == 4 * (len(clip) - 1) + 1 and fine.fps == 120.0
    assert fine.duration == pytest.approx(clip.duration)
    back = resample(fine, 30.0)
    same_pose(back.T_world_root, clip.T_world_root)
    torch.testing.assert_close(place_clip(back, body).joints, place_clip(clip, body).joints, rtol=0, atol=1e-5)
    assert torch.equal(back.contacts, clip.contacts)
    # In between, quaternions stay unit and take the short way.
    assert float((fine.body_quats.norm(dim=-1) - 1).abs().max()) < 1e-6


def test_resampling_interpolates_at_constant_speed() -> None:
    angles = torch.tensor([0.0, 0.9, 1.8])
    root = torch.cat((g.yaw_rotation(angles), torch.stack((angles, angles * 0, angles * 0 + 1), 1)), 1)
    root[1, :4] *= -1  # the same rotation, other sign
    quats = torch.zeros(3, 21, 4)
    quats[..., 0] = 1
    clip = MotionClip("turn", 10.0, root, quats, torch.zeros(16), torch.zeros(3, 21))
    fine = resample(clip, 40.0)
    expected = torch.linspace(0, 1.8, 9)
    torch.testing.assert_close(fine.T_world_root[:, 4], expected, rtol=0, atol=1e-6)
    heading = 2 * torch.atan2(fine.T_world_root[:, 3], fine.T_world_root[:, 0])
    torch.testing.assert_close(torch.remainder(heading, 2 * math.pi), expected, rtol=0, atol=1e-5)


def test_resampled_loops_stay_loops(clips: dict[str, MotionClip]) -> None:
    clip = clips["walk"]
    fine = resample(clip, 60.0)
    assert fine.loop and len(fine) == 2 * len(clip)
    torch.testing.assert_close(fine.T_world_root[::2], clip.T_world_root, rtol=0, atol=1e-6)
    torch.testing.assert_close(loop_step(fine), loop_step(clip), rtol=0, atol=0.02)


def test_resample_refuses_nonsense(clips: dict[str, MotionClip]) -> None:
    with pytest.raises(InputError, match=r"fps must be 0.1 to 10000"):
        resample(clips["kick"], 0)
    with pytest.raises(InputError, match="fewer than 2 frames"):
        resample(clips["kick"], 0.1)
    assert resample(clips["kick"], 30.0) is clips["kick"]


def test_inputs_are_not_modified(clips: dict[str, MotionClip], body: BodyModel, lopsided: BodyModel) -> None:
    clip = clips["walk"]
    before = clip.T_world_root.clone(), clip.body_quats.clone(), clip.contacts.clone()
    (
        mirror(clip, lopsided),
        reshape_body(clip, torch.ones(16), body),
        turn(clip, 1.0),
        loop(clip, 90),
        resample(clip, 25),
    )
    for old, new in zip(before, (clip.T_world_root, clip.body_quats, clip.contacts)):
        assert torch.equal(old, new)
