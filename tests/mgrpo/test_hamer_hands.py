"""HaMeR's hands: from the original's pickle to our npz, and which pose each hand belongs to."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgrpo.cli import main
from mgrpo.errors import InputError
from mgrpo.infer.hamer import (
    HamerDetections,
    HamerHands,
    detections_from_arrays,
    detections_from_pickle,
    hamer_arrays,
    match_hands,
    read_hamer,
)

FRAME_NS = 1e9 / 30


def one_image(generator: np.random.Generator, hands: int, wrist: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """What HaMeR says of one image."""
    keypoints = generator.normal(size=(hands, 21, 3)).astype(np.float32)
    if wrist is not None:
        keypoints[:, 0] = wrist
    return {
        "verts": generator.normal(size=(hands, 778, 3)).astype(np.float32),
        "keypoints_3d": keypoints,
        "mano_hand_pose": np.tile(np.eye(3, dtype=np.float32), (hands, 15, 1, 1)),
        "mano_hand_betas": np.zeros((hands, 10), np.float32),
        "mano_hand_global_orient": np.tile(np.eye(3, dtype=np.float32), (hands, 1, 1)),
    }


def saved(images: int = 20, start: int = 1_000_000_000, step: float = FRAME_NS) -> dict[str, Any]:
    """The contents of EgoAllo's pickle: left hands in every second image, two right ones in image 3."""
    generator = np.random.default_rng(0)
    times = [start + round(k * step) for k in range(images)]
    at = np.array([0.3, 0, 0.5])
    left = {time: one_image(generator, 1, -at) if k % 2 == 0 else None for k, time in enumerate(times)}
    right = {time: one_image(generator, 2, at) if k == 3 else None for k, time in enumerate(times)}
    pose = np.array([1.0, 0, 0, 0, 0.01, 0.02, 0.03])
    return {
        "mano_faces_right": np.zeros((1538, 3), np.int64),
        "mano_faces_left": np.zeros((1538, 3), np.int64),
        "detections_left_wrt_cam": left,
        "detections_right_wrt_cam": right,
        "T_device_cam": pose,
        "T_cpf_cam": pose * [1, 1, 1, 1, -1, 1, 1],
    }


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_the_command_converts_the_pickle(protocol: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = saved()
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    assert main(["data", "hamer", str(tmp_path / "a.pkl"), str(tmp_path / "a.npz")]) == 0
    out = capsys.readouterr().out
    assert "left: 10 hands in 20 images, 0.6 s" in out and "right: 2 hands in 20 images" in out
    found = read_hamer(tmp_path / "a.npz")
    assert found.T_cpf_cam.tolist() == content["T_cpf_cam"].tolist()
    left, right = found.hands
    times = sorted(content["detections_left_wrt_cam"])
    assert left.times_ns.tolist() == times and left.frame.tolist() == list(range(0, 20, 2))
    assert right.frame.tolist() == [3, 3]
    told = content["detections_right_wrt_cam"][times[3]]
    for name in ("keypoints_3d", "mano_hand_pose", "mano_hand_betas", "mano_hand_global_orient"):
        assert np.array_equal(getattr(right, name), told[name].astype(np.float64)), name


class Evil:
    """An object whose unpickling would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_cannot_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = saved() | {"extra": Evil(tmp_path / "ran")}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    assert main(["data", "hamer", str(tmp_path / "a.pkl"), str(tmp_path / "a.npz")]) == 2
    assert "not read" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists() and not (tmp_path / "a.npz").exists()


def test_the_pickle_itself_is_refused_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mgrpo data hamer .*a\.pkl .*a\.npz"):
        read_hamer(tmp_path / "a.pkl")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(saved()))
    assert main(["data", "hamer", str(tmp_path / "a.pkl"), str(tmp_path / "a.txt")]) == 2
    assert not (tmp_path / "a.txt").exists()


def test_many_images_are_read(tmp_path: Path) -> None:
    """More instructions than other pickles may have."""
    generator = np.random.default_rng(0)
    image = {name: value for name, value in one_image(generator, 1).items() if name != "verts"}
    copies = {k: {name: value.copy() for name, value in image.items()} for k in range(20_000)}
    content = saved() | {"detections_left_wrt_cam": copies}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    assert main(["data", "hamer", str(tmp_path / "a.pkl"), str(tmp_path / "a.npz")]) == 0
    assert len(read_hamer(tmp_path / "a.npz").hands[0].frame) == 20_000


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "part": (lambda c: c.pop("T_cpf_cam"), "missing: T_cpf_cam"),
    "list": (lambda c: c.update(detections_left_wrt_cam=[1]), "must be a mapping from capture times"),
    "keys": (lambda c: c.update(detections_left_wrt_cam={"a": None}), "must be a mapping from capture times"),
    "array": (lambda c: _first(c).pop("keypoints_3d"), "keypoints_3d must have shape .* got nothing"),
    "shape": (lambda c: _first(c).update(mano_hand_pose=np.zeros((1, 16, 3, 3))), r"got shape \(1, 16, 3, 3\)"),
    "lengths": (lambda c: _first(c).update(mano_hand_betas=np.zeros((2, 10))), r"different lengths \[1, 2\]"),
    "NaN": (lambda c: _first(c).update(mano_hand_betas=np.full((1, 10), np.nan)), "left_mano_hand_betas has values"),
    "pose": (lambda c: c.update(T_cpf_cam=np.zeros(7)), "T_cpf_cam: its quaternion has length 0.000"),
    "size": (lambda c: c.update(T_cpf_cam=np.zeros(16)), "T_cpf_cam must be 7 numbers"),
}


def _first(content: dict[str, Any]) -> dict[str, Any]:
    return content["detections_left_wrt_cam"][1_000_000_000]


@pytest.mark.parametrize("change", CHANGES)
def test_other_contents_are_refused(change: str) -> None:
    content = saved()
    CHANGES[change][0](content)
    with pytest.raises(InputError, match=f"it.pkl: .*{CHANGES[change][1]}"):
        detections_from_pickle(content, "it.pkl")


@pytest.mark.parametrize("content", [None, [1], {"a": 1}, 7])
def test_what_is_no_such_pickle(content: Any) -> None:
    with pytest.raises(InputError, match="not HaMeR's outputs"):
        detections_from_pickle(content, "it.pkl")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("left_frame", lambda a: a + 30, "indices of the 20 times"),
        ("left_frame", lambda a: a[::-1], "must rise"),
        ("left_frame", lambda a: a.astype(float), "whole numbers"),
        ("left_timestamps_ns", lambda a: a * 0, "must rise"),
        ("right_keypoints_3d", lambda a: a[:1], r"must hold numbers of shape \(2, 21, 3\)"),
    ],
)
def test_damaged_arrays(name: str, change: Callable[[np.ndarray], np.ndarray], said: str) -> None:
    arrays = hamer_arrays(detections_from_pickle(saved(), "it"))
    with pytest.raises(InputError, match=f"it.npz: .*{said}"):
        detections_from_arrays(arrays | {name: change(arrays[name])}, "it.npz")


# --- matching


def hands_at(times: list[int], frames: list[int], wrists: np.ndarray) -> HamerHands:
    count = len(frames)
    keypoints = np.zeros((count, 21, 3))
    keypoints[:, 0] = wrists
    eye = np.eye(3)
    return HamerHands(
        np.array(times, np.int64),
        np.array(frames, np.int64),
        keypoints,
        np.tile(eye, (count, 15, 1, 1)),
        np.tile(eye, (count, 1, 1)),
        np.zeros((count, 10)),
    )


def both(left: HamerHands, right: HamerHands) -> HamerDetections:
    pose = np.array([1.0, 0, 0, 0, 0, 0, 0])
    return HamerDetections((left, right), pose, pose)


def poses(count: int) -> np.ndarray:
    return np.rint(1e9 + np.arange(count) * FRAME_NS).astype(np.int64)


def test_images_meet_poses_that_are_mutually_nearest() -> None:
    """Ten images per second and thirty poses: every third pose gets one; an image before the first pose gets none."""
    times = [round(1e9 + 4e6 + k * 1e8) for k in range(-1, 4)]
    seen = hands_at(times, list(range(5)), np.full((5, 3), 0.5))
    none = hands_at(times, [], np.zeros((0, 3)))
    chosen = match_hands(both(seen, none), poses(12))
    assert chosen[:, 0].tolist() == [1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1, -1]
    assert (chosen[:, 1] == -1).all()


def test_of_several_images_the_nearest_is_a_poses() -> None:
    """36 images per second and 30 poses: two images have the same nearest pose now and then; one of them has none."""
    times = [round(1e9 - 4e6 + k * 1e9 / 36) for k in range(36)]
    seen = hands_at(times, list(range(36)), np.full((36, 3), 0.5))
    none = hands_at(times, [], np.zeros((0, 3)))
    chosen = match_hands(both(seen, none), poses(30))[:, 0]
    apart = np.abs(np.array(times)[:, None] - poses(30)[None])
    assert (chosen >= 0).all() and len(set(chosen.tolist())) == 30
    assert chosen.tolist() == apart.argmin(axis=0).tolist()


def test_hands_in_the_same_place_are_one_hand() -> None:
    """Wrists of both sides within 0.1 m of each other cancel from 15 poses before to 14 after."""
    times = poses(60).tolist()
    left = hands_at(times, list(range(60)), np.zeros((60, 3)))
    right = hands_at(times, [30], np.array([[0.0, 0, 0.09]]))
    chosen = match_hands(both(left, right), poses(60))
    lost = np.flatnonzero(chosen[:, 0] < 0).tolist()
    assert lost == list(range(16, 46)), "those of which frame 30 lies within -15 to +14"
    assert (chosen[:, 1] < 0).all()
    apart = hands_at(times, [30], np.array([[0.0, 0, 0.11]]))
    chosen = match_hands(both(left, apart), poses(60))
    assert (chosen[:, 0] >= 0).all() and chosen[30, 1] == 0


def test_the_first_hand_that_is_left_is_taken() -> None:
    times = poses(30).tolist()
    left = hands_at(times, [1], np.array([[0.0, 0, 0.5]]))
    right = hands_at(times, [1, 1, 1], np.array([[0.0, 0, 0.55], [0.4, 0, 0.5], [0.5, 0, 0.5]]))
    chosen = match_hands(both(left, right), poses(30))
    assert chosen[1].tolist() == [-1, 1]


@pytest.mark.parametrize("step", [1e9 / 60, 1e9])
def test_rates_that_are_not_understood(step: float) -> None:
    times = [round(1e9 + k * step) for k in range(10)]
    seen = hands_at(times, [0], np.zeros((1, 3)))
    with pytest.raises(InputError, match="images per second; 5 to 40 are understood"):
        match_hands(both(seen, seen), poses(10))
