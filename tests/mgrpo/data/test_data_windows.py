"""Windows: exact slices, the sampler's reproducibility and augmentation, splits by clip."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from mgrpo import geometry as g
from mgrpo.body import BodyModel, cpf_of, default_body, place_on_cpf
from mgrpo.data import (
    DEMO_HELD_OUT,
    DEMO_POST_TRAINING,
    DEMO_VALIDATION,
    AugmentConfig,
    MotionClip,
    MotionWindows,
    WindowSampler,
    cut_windows,
    drop_short,
    load_motion,
    loop,
    mirror,
    place_clip,
    reshape_body,
    split_by_fraction,
    split_clips,
)
from mgrpo.errors import InputError

PLAIN = AugmentConfig(yaw=False, loop=False)


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return default_body()


@pytest.fixture(scope="module")
def clips(body: BodyModel) -> list[MotionClip]:
    return load_motion("demo", body)


def named(clips: list[MotionClip], *names: str) -> list[MotionClip]:
    return [clip for clip in clips if clip.name in names]


def long_clips(clips: list[MotionClip]) -> list[MotionClip]:
    return [clip for clip in clips if len(clip) > 33]


def tensors(windows: MotionWindows) -> dict[str, Tensor]:
    values = {field.name: getattr(windows, field.name) for field in fields(windows)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def same(a: MotionWindows, b: MotionWindows) -> bool:
    return a.names == b.names and all(torch.equal(x, y) for x, y in zip(tensors(a).values(), tensors(b).values()))


# Cutting


def test_numbers_of_frames_are_whole(clips: list[MotionClip], body: BodyModel) -> None:
    for length, stride in ((32.5, None), (20, 2.5)):
        with pytest.raises(InputError, match="length and stride must be whole numbers, got"):
            cut_windows(clips[:1], body, length, stride)  # type: ignore[arg-type]


def test_windows_are_slices_of_the_clip(clips: list[MotionClip], body: BodyModel) -> None:
    clip = named(clips, "cartwheel")[0]
    length, stride = 20, 7
    windows = cut_windows([clip], body, length, stride)
    assert len(windows) == (len(clip) - 1 - length) // stride + 1
    placed = place_clip(clip, body)
    cpf = cpf_of(body, placed, clip.betas)
    for number in range(len(windows)):
        rows = slice(number * stride + 1, number * stride + 1 + length)
        torch.testing.assert_close(windows.T_world_root[number], clip.T_world_root[rows])
        torch.testing.assert_close(windows.body_rotmats[number], g.quat_to_rotmat(clip.body_quats[rows]))
        assert torch.equal(windows.contacts[number], clip.contacts[rows])
        torch.testing.assert_close(windows.joints[number], placed.joints[rows], rtol=0, atol=1e-6)
        torch.testing.assert_close(windows.R_world_joint[number], placed.R_world_joint[rows], rtol=0, atol=1e-6)
        torch.testing.assert_close(windows.T_world_cpf[number], cpf[rows], rtol=0, atol=1e-6)
        before = cpf[rows.start - 1 : rows.stop - 1]
        relative = g.se3_multiply(g.se3_inverse(before), cpf[rows])
        torch.testing.assert_close(windows.T_cpf_tm1_cpf_t[number], relative, rtol=0, atol=1e-5)
    assert windows.mask.all() and windows.hand_rotmats is None
    assert windows.names == ("cartwheel",) * len(windows) and windows.length == length


def test_relative_head_motion_chains(clips: list[MotionClip], body: BodyModel) -> None:
    windows = cut_windows(named(clips, "kick"), body, 16)
    pose = windows.T_world_cpf[:, 0]
    for frame in range(1, 16):
        pose = g.se3_multiply(pose, windows.T_cpf_tm1_cpf_t[:, frame])
    torch.testing.assert_close(pose[:, 4:], windows.T_world_cpf[:, -1, 4:], rtol=0, atol=1e-4)


def test_default_stride_uses_no_frame_twice(clips: list[MotionClip], body: BodyModel) -> None:
    windows = cut_windows(named(clips, "getup_faceup"), body, 32)
    assert len(windows) == 3
    firsts = windows.T_world_root[:, 0]
    clip = named(clips, "getup_faceup")[0]
    torch.testing.assert_close(firsts, clip.T_world_root[[1, 33, 65]])


def test_eyes_and_joints_of_windows_fit_together(clips: list[MotionClip], body: BodyModel) -> None:
    windows = cut_windows(long_clips(clips), body, 32)
    again = place_on_cpf(body.body_only(), windows.body_rotmats, windows.betas[:, None], windows.T_world_cpf)
    torch.testing.assert_close(again.joints, windows.joints, rtol=0, atol=1e-5)
    torch.testing.assert_close(again.T_world_root[..., 4:], windows.T_world_root[..., 4:], rtol=0, atol=1e-5)


def test_a_short_clip_is_named_with_what_to_do(clips: list[MotionClip], body: BodyModel) -> None:
    short = replace(named(clips, "kick")[0], name="shorty", T_world_root=clips[8].T_world_root[:20],
                    body_quats=clips[8].body_quats[:20], contacts=clips[8].contacts[:20])  # fmt: skip
    for make in (lambda: cut_windows([short], body, 32), lambda: WindowSampler([short], body, 32, 0)):
        with pytest.raises(InputError) as error:
            make()
        for part in ("'shorty'", "20 frames", "need 33", "at most 19 frames", "leave this clip out"):
            assert part in str(error.value)
    assert [clip.name for clip in drop_short([*clips, short], 32)[1]] == ["shorty"]


def test_short_loops_are_repeated(clips: list[MotionClip], body: BodyModel) -> None:
    run = named(clips, "run")[0]
    assert run.loop and len(run) == 24
    windows = cut_windows([run], body, 32)
    assert len(windows) == 1
    expected = cut_windows([replace(loop(run, 33), loop=False)], body, 32)
    assert same(windows, expected)


def test_cutting_nothing_is_an_error(clips: list[MotionClip], body: BodyModel) -> None:
    with pytest.raises(InputError, match="no clips"):
        cut_windows([], body, 32)
    with pytest.raises(InputError, match="at least 1"):
        cut_windows(clips, body, 32, 0)


def test_fingers_are_carried_along(clips: list[MotionClip], body: BodyModel) -> None:
    clip = named(clips, "kick")[0]
    hands = g.axis_angle_to_quat(torch.rand(len(clip), 30, 3))
    with_hands, without = replace(clip, name="with", hand_quats=hands), replace(clip, name="without")
    windows = cut_windows([with_hands, without], body, 32)
    torch.testing.assert_close(windows.hand_rotmats[0], g.quat_to_rotmat(hands[1:33]))
    torch.testing.assert_close(windows.hand_rotmats[1], torch.eye(3).expand(32, 30, 3, 3))
    drawn = WindowSampler([with_hands, without], body, 32, 0, replace(PLAIN, mirror_prob=0.5)).batch(0, 8)
    assert drawn.hand_rotmats.shape == (8, 32, 30, 3, 3)
    joined = MotionWindows.concat([windows.select([0]), cut_windows([without], body, 32)])
    assert joined.hand_rotmats.shape == (2, 32, 30, 3, 3)


def test_select_and_concat(clips: list[MotionClip], body: BodyModel) -> None:
    windows = cut_windows(long_clips(clips), body, 32)
    back = MotionWindows.concat([windows.select(range(3)), windows.select(slice(3, None))])
    assert same(back, windows)
    chosen = windows.select(torch.tensor([4, 0]))
    assert chosen.names == (windows.names[4], windows.names[0])
    assert torch.equal(chosen.joints[1], windows.joints[0])
    flags = torch.zeros(len(windows), dtype=torch.bool)
    flags[2] = True
    assert same(windows.select(flags), windows.select([2]))
    double = windows.to(dtype=torch.float64)
    assert double.joints.dtype == torch.float64 and double.mask.dtype == torch.bool and double.names == windows.names
    with pytest.raises(InputError, match="one length"):
        MotionWindows.concat([windows, cut_windows(long_clips(clips), body, 16)])
    with pytest.raises(InputError, match="nothing to join"):
        MotionWindows.concat([])


# The sampler


def test_sampler_repeats_itself_whatever_came_before(clips: list[MotionClip], body: BodyModel) -> None:
    config = AugmentConfig(mirror_prob=0.5, betas_std=0.5, speed=0.1)
    one, two = WindowSampler(clips, body, 32, 7, config), WindowSampler(clips, body, 32, 7, config)
    for iteration in (5, 0, 2):
        two.batch(iteration, 3)
    assert same(one.batch(3, 16), two.batch(3, 16))
    assert not same(one.batch(3, 16), one.batch(4, 16))
    assert not same(one.batch(3, 16), WindowSampler(clips, body, 32, 8, config).batch(3, 16))


def test_window_does_not_depend_on_the_size_of_the_batch(clips: list[MotionClip], body: BodyModel) -> None:
    sampler = WindowSampler(clips, body, 32, 7, AugmentConfig(mirror_prob=0.5, betas_std=0.5, speed=0.1))
    whole = sampler.batch(3, 40)
    for small, large in (
        (sampler.batch(3, 5), whole.select(range(5))),
        (sampler.batch(3, 5, first=11), whole.select(range(11, 16))),
    ):
        assert small.names == large.names
        for name, value in tensors(small).items():
            torch.testing.assert_close(value, getattr(large, name), rtol=0, atol=1e-5)


def test_sampler_ignores_the_global_random_state(clips: list[MotionClip], body: BodyModel) -> None:
    sampler = WindowSampler(clips, body, 32, 7, AugmentConfig(mirror_prob=0.5, betas_std=0.5))
    first = sampler.batch(0, 4)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert same(sampler.batch(0, 4), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_plain_windows_are_slices(clips: list[MotionClip], body: BodyModel) -> None:
    use = long_clips(clips)
    every = {clip.name: cut_windows([clip], body, 32, 1) for clip in use}
    drawn = WindowSampler(use, body, 32, 1, PLAIN).batch(0, 50)
    for number, name in enumerate(drawn.names):
        distance = (every[name].T_world_root - drawn.T_world_root[number]).abs().amax((1, 2))
        start = int(distance.argmin())
        assert float(distance[start]) < 1e-6
        for field in ("joints", "contacts", "T_world_cpf", "T_cpf_tm1_cpf_t", "body_rotmats", "betas"):
            torch.testing.assert_close(
                getattr(drawn, field)[number], getattr(every[name], field)[start], rtol=0, atol=2e-5
            )


@pytest.mark.parametrize("names", [("walk", "kick"), ("crawl",), ("cartwheel", "jump")])
def test_augmented_windows_are_slices_of_augmented_clips(
    clips: list[MotionClip], body: BodyModel, names: tuple[str, ...]
) -> None:
    """Mirrored and reshaped in the batch equals the whole clip mirrored and reshaped, then cut."""
    use = named(clips, *names)
    drawn = WindowSampler(use, body, 32, 3, replace(PLAIN, mirror_prob=0.5, betas_std=0.8)).batch(0, 12)
    mirrored = 0
    for number, name in enumerate(drawn.names):
        clip = named(clips, name)[0]
        best = []
        for source in (clip, mirror(clip, body)):
            windows = cut_windows([replace(reshape_body(source, drawn.betas[number], body), loop=False)], body, 32, 1)
            best.append((windows.joints - drawn.joints[number]).norm(dim=-1).amax((1, 2)).min())
        assert float(min(best)) < 1e-4, (name, best)
        mirrored += int(best[1] < best[0])
    assert 0 < mirrored < 12


def test_yaw_leaves_everything_but_the_heading(clips: list[MotionClip], body: BodyModel) -> None:
    use = long_clips(clips)
    plain = WindowSampler(use, body, 32, 1, PLAIN).batch(0, 16)
    turned = WindowSampler(use, body, 32, 1, replace(PLAIN, yaw=True)).batch(0, 16)
    assert plain.names == turned.names
    torch.testing.assert_close(turned.joints[..., 2], plain.joints[..., 2], rtol=0, atol=1e-5)
    one, two = plain.T_cpf_tm1_cpf_t, turned.T_cpf_tm1_cpf_t
    torch.testing.assert_close(one[..., 4:], two[..., 4:], rtol=0, atol=1e-5)
    torch.testing.assert_close(g.quat_to_rotmat(one[..., :4]), g.quat_to_rotmat(two[..., :4]), rtol=0, atol=1e-5)
    assert torch.equal(plain.body_rotmats, turned.body_rotmats)
    # One rotation about the vertical per window, different between windows.
    R = turned.R_world_joint[:, :, 0] @ plain.R_world_joint[:, :, 0].mT
    torch.testing.assert_close(R, R[:, :1].expand_as(R), rtol=0, atol=1e-5)
    torch.testing.assert_close(R[..., 2, 2], torch.ones(16, 32), rtol=0, atol=1e-5)
    rotated = (R[:, :, None] @ plain.joints[..., None])[..., 0]
    torch.testing.assert_close(rotated, turned.joints, rtol=0, atol=1e-4)
    headings = torch.atan2(R[:, 0, 1, 0], R[:, 0, 0, 0])
    assert float(headings.std()) > 1.0


def test_betas_are_spread_as_asked_and_keep_the_floor(clips: list[MotionClip], body: BodyModel) -> None:
    use = named(clips, "walk")
    sampler = WindowSampler(use, body, 32, 2, AugmentConfig(betas_std=0.6))
    batches = MotionWindows.concat([sampler.batch(iteration, 64) for iteration in range(4)])
    assert float(batches.betas.std()) == pytest.approx(0.6, abs=0.02)
    assert float(batches.betas.mean()) == pytest.approx(0.0, abs=0.02)
    weights = batches.contacts[..., 9:11]
    planted = (batches.joints[:, :, [10, 11], 2] * weights).sum() / weights.sum()
    assert float(planted) == pytest.approx(body.toe_clearance, abs=2e-3)
    heights = batches.T_world_cpf[..., 6].mean(1)
    assert float(heights.std()) > 0.03


def test_mirror_probability(clips: list[MotionClip], body: BodyModel) -> None:
    use = named(clips, "cartwheel")
    plain = WindowSampler(use, body, 32, 1, PLAIN).batch(0, 200)
    for probability in (0.0, 0.25, 1.0):
        drawn = WindowSampler(use, body, 32, 1, replace(PLAIN, mirror_prob=probability)).batch(0, 200)
        changed = (drawn.joints[..., 0] - plain.joints[..., 0]).abs().amax((1, 2)) > 1e-3
        assert float(changed.float().mean()) == pytest.approx(probability, abs=0.1)


def test_loops_run_over_the_seam(clips: list[MotionClip], body: BodyModel) -> None:
    walk, run = named(clips, "walk"), named(clips, "run")
    assert len(WindowSampler(walk, body, 32, 0, PLAIN)) == len(walk[0]) - 32
    around = WindowSampler(walk, body, 32, 0, replace(PLAIN, loop=True))
    assert len(around) == len(walk[0])
    with pytest.raises(InputError, match=r"'run' has 24 frames.*allow loops"):
        WindowSampler(run, body, 32, 0, PLAIN)
    drawn = WindowSampler(run, body, 60, 0, replace(PLAIN, loop=True)).batch(0, 30)
    every = cut_windows([loop(run[0], 200)], body, 60, 1)
    for number in range(30):
        shift = every.joints - every.joints[:, :1, :1] * torch.tensor([1.0, 1, 0])
        mine = drawn.joints[number] - drawn.joints[number, :1, :1] * torch.tensor([1.0, 1, 0])
        assert float((shift - mine).abs().amax((1, 2, 3)).min()) < 1e-4


def gliding_clip(frames: int = 80, step: float = 0.01) -> MotionClip:
    """Someone who glides along x while turning, at constant rates."""
    time = torch.arange(frames)
    up = torch.tensor([0.5**0.5, 0.5**0.5, 0.0, 0.0])
    quats = g.quat_multiply(g.yaw_rotation(0.02 * time), up.expand(frames, 4))
    root = torch.cat((quats, torch.stack((step * time, 0.0 * time, 0.0 * time + 0.9), 1)), 1)
    local = torch.zeros(frames, 21, 4)
    local[..., 0] = 1
    local[:, 17] = g.axis_angle_to_quat(torch.stack((0.0 * time, 0.03 * time, 0.0 * time), 1))
    return MotionClip("glide", 30.0, root, local, torch.zeros(16), torch.zeros(frames, 21))


def test_speed_changes_the_rate_and_nothing_else(body: BodyModel) -> None:
    clip = gliding_clip()
    drawn = WindowSampler([clip], body, 32, 0, replace(PLAIN, speed=0.5)).batch(0, 100)
    steps = drawn.T_world_root[:, 1:, 4] - drawn.T_world_root[:, :-1, 4]
    rates = steps.mean(1) / 0.01
    torch.testing.assert_close(steps, (rates * 0.01)[:, None].expand_as(steps), rtol=0, atol=1e-5)
    assert float(rates.min()) < 0.6 and 1.3 < float(rates.max()) <= 1.5 + 1e-4
    # Local rotations and heading run at the same rate.
    local = drawn.body_rotmats[:, :, 17]
    angle = g.geodesic_angle(local[:, 1:], local[:, :-1])
    torch.testing.assert_close(angle, (0.03 * rates)[:, None].expand_as(angle), rtol=0, atol=2e-3)
    start = drawn.T_world_root[:, 0, 4] / 0.01
    assert float((start + 31 * rates).max()) <= 79 + 1e-2


def test_windows_are_drawn_evenly_over_frames_or_clips(clips: list[MotionClip], body: BodyModel) -> None:
    use = named(clips, "kick", "getup_faceup")  # 14 and 81 starts
    for weighting, share in (("frames", 14 / 95), ("clips", 0.5)):
        sampler = WindowSampler(use, body, 32, 0, AugmentConfig(weighting=weighting))
        names = [name for iteration in range(4) for name in sampler.batch(iteration, 250).names]
        assert names.count("kick") / 1000 == pytest.approx(share, abs=0.05)


def test_every_start_is_drawn(clips: list[MotionClip], body: BodyModel) -> None:
    use = named(clips, "kick")
    drawn = WindowSampler(use, body, 32, 0, PLAIN).batch(0, 300)
    starts = {
        int((use[0].T_world_root[1:, 4:] - drawn.T_world_root[number, 0, 4:]).norm(dim=-1).argmin())
        for number in range(300)
    }
    assert starts == set(range(len(use[0]) - 32))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mirror_prob": 1.5}, "--mirror-prob must be at most 1, got 1.5"),
        ({"betas_std": -1.0}, "--betas-std must be at least 0, got -1.0"),
        ({"speed": 1.0}, "speed"),
        ({"weighting": "both"}, "weighting"),
    ],
)
def test_bad_augmentation_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AugmentConfig(**values)


def test_bad_sampler_arguments(clips: list[MotionClip], body: BodyModel) -> None:
    with pytest.raises(InputError, match="no clips"):
        WindowSampler([], body, 32, 0)
    with pytest.raises(InputError, match="at least 1 frame"):
        WindowSampler(clips, body, 0, 0)
    with pytest.raises(InputError, match="size must be at least 1"):
        WindowSampler(clips, body, 32, 0).batch(0, 0)
    with pytest.raises(InputError, match="first at least 0, got 3 and -1"):
        WindowSampler(clips, body, 32, 0).batch(0, 3, first=-1)
    with pytest.raises(InputError, match="two clips are called"):
        WindowSampler([clips[0], clips[0]], body, 32, 0)


# Splits


def test_demo_split(clips: list[MotionClip], body: BodyModel) -> None:
    split = split_clips(clips, post_training=DEMO_POST_TRAINING)
    names = [[clip.name for clip in part] for part in split]
    assert sorted(names[1]) == ["dance_a", "jump", "spinkick"]
    assert names[2] == ["punch", "spin"] and sorted(names[3]) == ["dance_b", "kick", "run"]
    assert len(names[0]) == 7
    assert sorted(name for part in names for name in part) == sorted(clip.name for clip in clips)
    sampler = WindowSampler(split.train, body, 32, 0, AugmentConfig(mirror_prob=0.5, betas_std=0.5))
    drawn = {name for iteration in range(8) for name in sampler.batch(iteration, 100).names}
    assert drawn == set(names[0])
    assert not drawn & {*DEMO_POST_TRAINING, *DEMO_VALIDATION, *DEMO_HELD_OUT}
    assert set(cut_windows(split.held_out, body, 32).names) == set(DEMO_HELD_OUT)


def test_split_by_patterns(clips: list[MotionClip]) -> None:
    split = split_clips(clips, validation=["getup_*"], held_out=["dance_?", "walk"])
    assert [clip.name for clip in split.validation] == ["getup_facedown", "getup_faceup"]
    assert [clip.name for clip in split.held_out] == ["dance_a", "dance_b", "walk"]
    assert len(split_clips(clips, validation=[], held_out=[]).train) == 15


def test_bad_splits_are_explained(clips: list[MotionClip]) -> None:
    with pytest.raises(
        InputError, match=r"validation: no clip is called 'jog'\. Known clips: backflip, cartwheel, .*walk"
    ):
        split_clips(clips, validation=["jog"])
    with pytest.raises(InputError, match=r"both validation and held_out: run"):
        split_clips(clips, validation=["run"], held_out=["r*"])
    with pytest.raises(InputError, match=r"both post_training and held_out: run"):
        split_clips(clips, post_training=["run", "walk"])
    with pytest.raises(InputError, match="validation take all 15 clips"):
        split_clips(clips, validation=["*"], held_out=[])


def test_split_by_fraction_is_stable(clips: list[MotionClip]) -> None:
    many = [replace(clips[0], name=f"clip{number}") for number in range(300)]
    split = split_by_fraction(many, validation=0.1, held_out=0.2, seed=1)
    sizes = [len(part) for part in split]
    assert sum(sizes) == 300 and sizes[1] == 0 and 15 <= sizes[2] <= 50 and 35 <= sizes[3] <= 85
    fewer = split_by_fraction(many[:150], validation=0.1, held_out=0.2, seed=1)
    held = {clip.name for clip in split.held_out}
    assert {clip.name for clip in fewer.held_out} == {name for name in held if int(name[4:]) < 150}
    other = split_by_fraction(many, validation=0.1, held_out=0.2, seed=2)
    assert {clip.name for clip in other.held_out} != held


def test_split_by_fraction_keeps_mirrored_copies_together(clips: list[MotionClip]) -> None:
    many = [replace(clips[0], name=f"c{number}{end}") for number in range(60) for end in ("", "_reflect")]
    for part in split_by_fraction(many, validation=0.2, held_out=0.2):
        names = {clip.name.replace("_reflect", "") for clip in part}
        assert len(part) == 2 * len(names)


def test_split_by_fraction_fills_every_set(clips: list[MotionClip]) -> None:
    for seed in range(20):
        split = split_by_fraction(clips[:3], validation=0.05, held_out=0.05, seed=seed)
        assert [len(part) for part in split] == [1, 0, 1, 1]
    with pytest.raises(InputError, match=r"2 clip\(s\) can't be split"):
        split_by_fraction(clips[:2])
    with pytest.raises(InputError, match="add up to less than 1"):
        split_by_fraction(clips, validation=0.6, held_out=0.5)
