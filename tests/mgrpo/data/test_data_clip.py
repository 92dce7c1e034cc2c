"""The clip type: what it refuses and says, files."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mgrpo.body import default_body
from mgrpo.data import MotionClip, load_clip, load_motion, save_clip
from mgrpo.data.clip import check_unique_names
from mgrpo.errors import InputError
from mgrpo.npz import read_npz, write_npz


def identity_quats(*shape: int) -> torch.Tensor:
    quats = torch.zeros(*shape, 4)
    quats[..., 0] = 1.0
    return quats


def clip_of(frames: int = 5, hands: bool = False, **changes: object) -> MotionClip:
    fields = {
        "name": "stand",
        "fps": 30.0,
        "T_world_root": torch.cat((identity_quats(frames), torch.rand(frames, 3)), 1),
        "body_quats": identity_quats(frames, 21),
        "betas": torch.zeros(16),
        "contacts": torch.zeros(frames, 21),
        "hand_quats": identity_quats(frames, 30) if hands else None,
    }
    return MotionClip(**{**fields, **changes})


def spoiled(tensor: torch.Tensor, index: tuple[int, ...], value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


def test_a_good_clip() -> None:
    clip = clip_of(7, hands=True, fps=30)
    assert len(clip) == 7 and clip.fps == 30.0 and not clip.loop
    assert clip.duration == pytest.approx(0.2)
    assert replace(clip, loop=True).duration == pytest.approx(7 / 30)
    assert "stand" in repr(clip) and "7 frames" in repr(clip)


def test_values_become_float32() -> None:
    clip = clip_of(5, T_world_root=clip_of(5).T_world_root.double())
    assert clip.T_world_root.dtype == torch.float32


BAD_VALUES: list[tuple[dict[str, object], str]] = [
    ({"name": ""}, "needs a name"),
    ({"fps": 0}, "fps must be 0.1 to 10000"),
    ({"fps": -30.0}, "fps must be 0.1 to 10000"),
    ({"fps": math.nan}, "fps must be 0.1 to 10000"),
    ({"body_quats": identity_quats(4, 21)}, r"must have shape \(F, 21, 4\) with F = 5 .* got \(4, 21, 4\)"),
    ({"body_quats": identity_quats(5, 22)}, r"got \(5, 22, 4\)"),
    ({"hand_quats": identity_quats(5, 15)}, r"hand_quats must have shape \(F, 30, 4\)"),
    ({"betas": torch.zeros(10)}, r"betas must have shape \(16\)"),
    ({"contacts": torch.zeros(5, 22)}, r"contacts must have shape \(F, 21\)"),
    ({"T_world_root": torch.zeros(5, 6)}, r"T_world_root must have shape \(F, 7\)"),
    ({"betas": [0.0] * 16}, "betas must be a torch tensor, got list"),
    ({"contacts": spoiled(torch.zeros(5, 21), (3, 2), 1.5)}, r"contacts must lie in \[0, 1\].*frame 3"),
    ({"contacts": spoiled(torch.zeros(5, 21), (0, 2), -0.5)}, r"contacts must lie in \[0, 1\]"),
    ({"body_quats": spoiled(identity_quats(5, 21), (2, 4, 1), math.nan)}, r"not finite \(nan\) at frame 2"),
    ({"betas": spoiled(torch.zeros(16), (3,), math.inf)}, r"betas .*not finite \(inf\) at index 3"),
    ({"body_quats": spoiled(identity_quats(5, 21), (2, 4, 0), 1.01)}, r"frame 2, joint 4 the length is 1\.0100"),
    ({"body_quats": spoiled(identity_quats(5, 21), (1, 0, 0), 0.0)}, r"frame 1, joint 0 the length is 0\.0000"),
    ({"hand_quats": spoiled(identity_quats(5, 30), (4, 29, 0), 0.9)}, r"hand_quats must hold unit.*frame 4, joint 29"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_VALUES)
def test_bad_values_are_explained(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        clip_of(5, **changes)
    if changes.get("name") != "":
        assert "clip 'stand'" in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("body_quats", np.full((6, 21, 4), np.nan), "not finite"),
        ("body_quats", np.full((6, 21, 4), 0.4), "unit quaternions"),
        ("body_quats", np.ones((4, 21, 4)), "must have shape"),
        ("contacts", np.full((6, 21), 2.0), "must lie in"),
        ("fps", np.array(1e-300), "fps must be 0.1 to 10000"),
        ("fps", np.array(5000.0), "leave fewer than 2 frames"),
        ("name", np.array(""), "needs a name"),
    ],
)
def test_what_is_wrong_in_a_file_names_the_file(tmp_path: Path, field: str, value: np.ndarray, message: str) -> None:
    path = tmp_path / "walk.npz"
    save_clip(path, clip_of(6))
    with np.load(path) as good:
        np.savez(path, **{**good, field: value})
    readers = (
        load_clip,
        lambda file: load_motion(file, default_body()),
        lambda file: load_motion(tmp_path, default_body()),
    )
    for reader in readers[1 if "fewer" in message else 0 :]:
        with pytest.raises(InputError, match=message) as error:
            reader(path)
        assert str(error.value).startswith(f"{path}: ") and str(error.value).count(str(path)) == 1


def test_root_quaternions_are_checked() -> None:
    root = clip_of(5).T_world_root
    with pytest.raises(InputError, match=r"T_world_root must hold unit quaternions.*frame 4 the length.*wxyz"):
        clip_of(5, T_world_root=spoiled(root, (4, 0), 2.0))
    # Small rounding is no reason to refuse.
    clip_of(5, T_world_root=spoiled(root, (4, 0), 1.0005))


def test_too_few_frames() -> None:
    with pytest.raises(InputError, match=r"1 frame\(s\); a clip needs at least 2"):
        clip_of(1)
    with pytest.raises(InputError, match=r"0 frame\(s\)"):
        clip_of(0)


def test_names_must_differ() -> None:
    with pytest.raises(InputError, match="two clips are called 'stand'"):
        check_unique_names([clip_of(), clip_of()])


@pytest.mark.parametrize("hands", [False, True])
def test_files_return_the_same_clip(tmp_path: Path, hands: bool) -> None:
    clip = clip_of(6, hands=hands, loop=True, fps=59.94, name="ünïcode/name 1")
    path = tmp_path / "clip.npz"
    save_clip(path, clip)
    back = load_clip(path)
    assert (back.name, back.fps, back.loop) == (clip.name, clip.fps, clip.loop)
    for field in ("T_world_root", "body_quats", "betas", "contacts"):
        assert torch.equal(getattr(back, field), getattr(clip, field))
    assert (back.hand_quats is None) == (not hands)
    assert [file.name for file in tmp_path.iterdir()] == ["clip.npz"]
    assert path.stat().st_mode & 0o444 == 0o444 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_overwriting_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.npz"
    save_clip(path, clip_of(6))
    before = path.read_bytes()

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full_disk)
    with pytest.raises(InputError, match="No space left on device"):
        save_clip(path, clip_of(9))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["clip.npz"]


def test_unwritable_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be written"):
        save_clip(tmp_path / "no" / "folder" / "clip.npz", clip_of())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": np.array(2)}, "format version 2.*update mgrpo"),
        ({"format": np.array("other")}, "format is 'other'"),
        ({"fps": None}, "missing: fps"),
        ({"fps": np.array([30.0, 30.0])}, "fps must be one number"),
        ({"contacts": np.array([["a"]])}, "contacts must be numeric"),
        ({"body_quats": np.array([None, 1], dtype=object)}, "pickled Python objects"),
    ],
)
def test_bad_files_are_explained(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = tmp_path / "clip.npz"
    save_clip(path, clip_of())
    arrays = read_npz(path, "clip")
    merged = {key: value for key, value in {**arrays, **changes}.items() if value is not None}
    np.savez(path, **merged)
    with pytest.raises(InputError, match=message) as error:
        load_clip(path)
    assert str(path) in str(error.value)


def test_objects_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Python objects"):
        write_npz(tmp_path / "x.npz", {"a": np.array([{}], dtype=object)})
    assert list(tmp_path.iterdir()) == []
