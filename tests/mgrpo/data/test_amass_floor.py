"""Floor and contacts of recordings: reference cases, the clustering against its definition, what parity keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgrpo.data.amass.floor import NOISE, TOE_CLEARANCE_M, cluster_heights, find_floor
from tests.golden import golden_file

TOES = (10, 11)
ROOT, LEFT_ANKLE, LEFT_KNEE, LEFT_WRIST, LEFT_HIP = 0, 7, 4, 20, 1


@pytest.mark.golden
def test_floor_cases() -> None:
    path = golden_file("dataset/floor_cases*.npz")
    with np.load(path, allow_pickle=False) as data:
        arrays = dict(data)
    names = sorted({key.rpartition(".")[0] for key in arrays})
    assert names
    for name in names:
        joints = torch.from_numpy(arrays[f"{name}.joints"]).double()
        floor = find_floor(joints, float(arrays[f"{name}.fps"]), parity=True)
        assert floor.height == pytest.approx(float(arrays[f"{name}.offset_floor_height"]), abs=1e-7), name
        np.testing.assert_array_equal(floor.contacts.numpy(), arrays[f"{name}.contacts"], name)
        assert floor.terrain == bool(arrays[f"{name}.discard_if_enabled"]), name


def by_definition(heights: np.ndarray, eps: float, min_samples: int) -> np.ndarray:
    """DBSCAN as it is written down: clusters grow from cores in the order of the points."""
    near = np.abs(heights[:, None] - heights[None]) <= eps
    core = near.sum(1) >= min_samples
    labels = np.full(len(heights), NOISE)
    label = 0
    for seed in np.flatnonzero(core):
        if labels[seed] != NOISE:
            continue
        waiting = [seed]
        while waiting:
            point = waiting.pop()
            if labels[point] != NOISE:
                continue
            labels[point] = label
            if core[point]:
                waiting += list(np.flatnonzero(near[point]))
        label += 1
    return labels


@settings(max_examples=300, deadline=None)
@given(
    # powers of two: distances are exact, so both agree on what is exactly eps away
    st.lists(st.integers(-40, 40), max_size=60).map(lambda steps: np.array(steps) / 16),
    st.integers(1, 6).map(lambda step: step / 16),
    st.integers(1, 5),
)
def test_clusters_are_those_of_the_definition(heights: np.ndarray, eps: float, min_samples: int) -> None:
    np.testing.assert_array_equal(cluster_heights(heights, eps, min_samples), by_definition(heights, eps, min_samples))


def test_a_border_point_joins_the_cluster_that_comes_first() -> None:
    left, right, between = [-0.5, -0.5, 0.0], [1.0, 1.5, 1.5], 0.5
    assert cluster_heights(np.array([*left, *right, between]), 0.5, 4).tolist() == [0, 0, 0, 1, 1, 1, 0]
    assert cluster_heights(np.array([between, *right, *left]), 0.5, 4).tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert cluster_heights(np.array([*left, between]), 0.5, 5).tolist() == [NOISE] * 4
    assert cluster_heights(np.array([]), 0.5, 3).tolist() == []


def standing(frames: int = 60, height: float = 0.0) -> torch.Tensor:
    """Joints that never move: toes 0.01 m above ``height``, everything else a metre higher."""
    joints = torch.zeros(frames, 22, 3, dtype=torch.float64)
    joints[..., 2] = height + 1.0
    joints[:, TOES, 2] = height + TOE_CLEARANCE_M
    return joints


def test_the_floor_lies_below_standing_toes() -> None:
    for parity in (False, True):
        floor = find_floor(standing(height=-0.7), 60.0, parity=parity)
        assert floor.height == pytest.approx(-0.7) and floor.found and not floor.terrain
        assert floor.contacts[:, TOES].all() and int(floor.contacts.sum()) == 120


def test_moving_toes_say_nothing_about_the_floor() -> None:
    joints = standing(height=0.5)
    joints[..., 0] = torch.arange(60)[:, None]
    floor = find_floor(joints, 60.0)
    assert floor.height == 0 and floor.toe_height == 0 and not floor.found and not floor.contacts.any()


def test_an_outlier_is_the_floor_with_parity_only() -> None:
    joints = standing()
    joints[30:32, TOES[0], 2] = -0.2  # the first of two such frames is static
    assert find_floor(joints, 60.0).height == pytest.approx(0.0)
    assert find_floor(joints, 60.0, parity=True).height == pytest.approx(-0.2 - TOE_CLEARANCE_M)


def test_noise_alone_is_no_floor_by_default() -> None:
    joints = standing()
    joints[:, TOES, 0] = torch.arange(60)[:, None].double()
    joints[11, TOES[0], 0] = 10.0  # one static frame
    assert not find_floor(joints, 60.0).found
    assert find_floor(joints, 60.0, parity=True).height == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("fps", "speed", "default", "parity"),
    [(30.0, 0.2, True, False), (60.0, 0.29, True, True), (60.0, 0.31, False, False), (240.0, 1.0, False, True)],
)
def test_static_is_a_speed_by_default_and_a_step_with_parity(
    fps: float, speed: float, default: bool, parity: bool
) -> None:
    joints = standing(40)
    joints[:, LEFT_ANKLE, 2] = 0.05
    joints[:, LEFT_ANKLE, 0] = torch.arange(40) / fps * speed
    assert bool(find_floor(joints, fps).contacts[:, LEFT_ANKLE].all()) == default
    assert bool(find_floor(joints, fps, parity=True).contacts[:, LEFT_ANKLE].all()) == parity


def test_contact_heights_are_measured_from_a_planted_toe() -> None:
    low, high = 0.079 + TOE_CLEARANCE_M, 0.081 + TOE_CLEARANCE_M
    for joint in (LEFT_ANKLE, LEFT_KNEE, LEFT_WRIST):
        for height, touches in ((low, True), (high, False)):
            joints = standing()
            joints[:, joint, 2] = height
            assert bool(find_floor(joints, 60.0).contacts[:, joint].all()) == touches
    joints = standing()
    joints[:, LEFT_HIP, 2] = joints[:, ROOT, 2] = 0.0
    assert not find_floor(joints, 60.0).contacts[:, [ROOT, LEFT_HIP]].any()
    for height, touches in ((0.049, True), (0.051, False)):
        joints = standing()
        joints[:, TOES[1], 2] = height
        assert bool(find_floor(joints, 60.0).contacts[:, TOES[1]].all()) == touches


@pytest.mark.parametrize(
    ("rise", "root_rise", "frames", "terrain"),
    [(0.05, 0.05, 12, True), (0.03, 0.05, 12, False), (0.05, 0.03, 12, False), (0.05, 0.05, 6, False)],
)
def test_terrain_is_a_place_where_toes_and_root_are_higher_for_long(
    rise: float, root_rise: float, frames: int, terrain: bool
) -> None:
    joints = standing(60)
    joints[-frames:, TOES, 2] += rise
    joints[-frames:, ROOT, 2] += root_rise
    # both toes count, and the step itself is no static frame: more than 15 of 2 * 60 samples are 0.25 s
    assert find_floor(joints, 60.0).terrain == terrain
