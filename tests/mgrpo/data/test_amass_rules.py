"""AMASS by name and by file: subsets of both generations, rules on names, frames that are used, and files that are
damaged, hostile or meant for something else."""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.amass_files import recording, write_recording, write_smplh
from mgrpo.cli import main
from mgrpo.data.amass import recording as recording_module
from mgrpo.data.amass.clip_rules import corrected_fps, long_enough, skip_reason, trimmed
from mgrpo.data.amass.gender import GENDERS, conversion_file, fit_conversions, load_conversions
from mgrpo.data.amass.layout import find_recordings, subsets_in
from mgrpo.data.amass.names import SPLITS, canonical_subset, splits_of
from mgrpo.data.amass.recording import read_recording
from mgrpo.errors import InputError

# Names


@pytest.mark.parametrize(
    ("folder", "subset"),
    [
        ("ACCAD", "ACCAD"), ("BMLrub", "BioMotionLab_NTroje"), ("BioMotionLab_NTroje", "BioMotionLab_NTroje"),
        ("DFaust", "DFaust_67"), ("EyesJapanDataset", "Eyes_Japan_Dataset"), ("HDM05", "MPI_HDM05"),
        ("MoSh", "MPI_mosh"), ("mosh", "MPI_mosh"), ("PosePrior", "MPI_Limits"), ("SSM", "SSM_synced"),
        ("TCDHands", "TCD_handMocap"), ("TCD_handMocap", "TCD_handMocap"), ("Transitions", "Transitions_mocap"),
        ("Human-Eva", "HumanEva"), ("SOMA", None), ("", None),
    ],
)  # fmt: skip
def test_both_generations_of_subset_names(folder: str, subset: str | None) -> None:
    assert canonical_subset(folder) == subset


def test_splits() -> None:
    assert [len(names) for names in SPLITS.values()] == [13, 4, 2, 2]
    assert subsets_in(("test", "test_humor")) == ("HumanEva", "SSM_synced", "Transitions_mocap")
    assert splits_of("HumanEva") == ("val", "test_humor") and splits_of("SOMA") == ()
    for names in SPLITS.values():
        assert all(canonical_subset(name) == name for name in names)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_recordings_are_found_under_both_kinds_of_names(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "BMLrub/rub1/b c_stageii.npz", "BMLrub/rub1/shape.npz", "BMLrub/rub1/neutral_stagei.npz", "CMU/01/a_poses.npz",
        "SSM/x/y_poses.npz", "SSM/x/y_stageii.npz", "SOMA/s/z_poses.npz", "LICENSE.txt", "HDM05/readme.txt",
    )  # fmt: skip
    layout = find_recordings(tmp_path, ("train", "val", "test"))
    assert [file.name for file in layout.files] == [
        "BioMotionLab_NTroje/rub1/b c_poses.npz",
        "CMU/01/a_poses.npz",
        "SSM_synced/x/y_poses.npz",
    ]
    assert layout.files[0].path == tmp_path / "BMLrub/rub1/b c_stageii.npz"
    assert layout.files[0].mirrored_name == "BioMotionLab_NTroje/rub1/b c_poses_reflect.npz"
    assert [file.path.name for file in layout.doubles] == ["y_stageii.npz"]
    assert layout.unused == ("SOMA",)
    assert layout.missing["test"] == ("Transitions_mocap",) and "MPI_HDM05" in layout.missing["val"]
    assert "CMU" not in layout.missing["train"] and len(layout.missing["train"]) == 11
    only_test = find_recordings(tmp_path, ("test",))
    assert [file.subset for file in only_test.files] == ["SSM_synced"] and "CMU" in only_test.unused


def test_folders_that_cannot_be_meant(tmp_path: Path) -> None:
    touch(tmp_path, "file", "both/MoSh/a_poses.npz", "both/MPI_mosh/a_poses.npz", "CMU/01/a_poses.npz", "x/y/z")
    for folder, message in (
        ("nowhere", "no such folder"),
        ("file", "not a folder"),
        ("x", "none of the subsets of val is here .*found: y"),
        ("both", "MPI_mosh and MoSh are two names of the same subset"),
        ("CMU", "CMU is a subset itself: give the folder above it"),
    ):
        with pytest.raises(InputError, match=message):
            find_recordings(tmp_path / folder, ("val",))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("BioMotionLab_NTroje/rub1/0000_treadmill_slow_poses.npz", "treadmill"),
        ("BioMotionLab_NTroje/rub1/0005_normal_walk1_poses.npz", "walk on a treadmill (normal_)"),
        ("BioMotionLab_NTroje/rub1/0010_knocking1_poses.npz", None),
        ("CMU/01/0005_normal_walk_treadmill_poses.npz", None),
        ("MPI_HDM05/dg/HDM_dg_07-01_01_120_poses.npz", "inline skating"),
        ("MPI_HDM05/dg/HDM_dg_07-02_01_120_poses.npz", None),
        ("MPI_HDM05/bk/HDM_bk_07-01_01_120_poses.npz", None),
    ],
)
def test_left_out_by_name(name: str, reason: str | None) -> None:
    assert skip_reason(name) == reason


def test_rates_that_files_have_wrong() -> None:
    assert corrected_fps("BMLhandball/S01/Trial_upper_left_001_poses.npz", 120.0) == 240.0
    assert corrected_fps("SSM_synced/20160930_50032/punch_poses.npz", 60.0) == 59.0
    assert corrected_fps("SSM_synced/20161014_50033/punch_poses.npz", 60.0) == 59.0
    assert corrected_fps("SSM_synced/20160330_03333/chicken_poses.npz", 60.0) == 60.0


def test_the_frames_that_are_used() -> None:
    assert trimmed(432) == slice(43, 388) and trimmed(10) == slice(1, 9) and trimmed(0) == slice(0, 0)
    assert long_enough(60, 60.0) and not long_enough(59, 60.0) and not long_enough(119, 119.88)


# Files


@pytest.mark.parametrize("key", ["mocap_framerate", "mocap_frame_rate"])
def test_both_spellings_of_the_rate(tmp_path: Path, key: str) -> None:
    path = write_recording(tmp_path / "a_poses.npz", frames=20, fps=59.94, gender="female", rate_key=key)
    found = read_recording(path)
    assert found.fps == 59.94 and found.gender == "female"
    assert found.poses.shape == (20, 52, 3) and found.poses.dtype == np.float64
    np.testing.assert_array_equal(found.trans, recording(20, 59.94)["trans"])


def save(path: Path, **changes: object) -> Path:
    """A good recording with some arrays replaced, or left out where None."""
    arrays = {**recording(20, 60.0), **changes}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("gender", [np.array(b"male"), np.array(["male"]), np.array("Male ")])
def test_genders_as_files_hold_them(tmp_path: Path, gender: np.ndarray) -> None:
    assert read_recording(save(tmp_path / "a.npz", gender=gender)).gender == "male"


def test_object_arrays_beside_do_no_harm(tmp_path: Path) -> None:
    markers = np.array([{"a": 1}], dtype=object)
    assert len(read_recording(save(tmp_path / "a.npz", marker_labels=markers)).poses) == 20


NAN = np.full((20, 3), np.nan)
BAD: list[tuple[dict[str, object], str]] = [
    ({"poses": None}, "missing: poses"),
    ({"mocap_framerate": None}, "missing: mocap_framerate or mocap_frame_rate"),
    ({"trans": np.array([None] * 20, object)}, "'trans' holds pickled Python objects"),
    ({"gender": np.array({}, object)}, "'gender' holds pickled Python objects"),
    ({"poses": np.zeros((20, 165))}, "AMASS for SMPL-X"),
    ({"poses": np.zeros((20, 72))}, r"poses must have shape \(N, 156\), got \(20, 72\)"),
    ({"poses": np.zeros((0, 156)), "trans": np.zeros((0, 3))}, r"got \(0, 156\)"),
    ({"poses": np.zeros((20, 156), complex)}, "poses must hold numbers"),
    ({"trans": np.zeros((19, 3))}, r"trans must have shape \(20, 3\)"),
    ({"trans": np.array(["a"] * 20)}, "trans must hold numbers"),
    ({"trans": NAN}, "trans is not finite or beyond 10000 m in 20 row.*first in row 0"),
    ({"trans": np.full((20, 3), 1e9)}, "trans is not finite or beyond"),
    ({"poses": np.full((20, 156), np.inf)}, "poses is not finite"),
    ({"betas": np.zeros(10)}, "betas must have at least 16 numbers"),
    ({"betas": np.full(16, 1e30)}, "betas is not finite or beyond"),
    ({"mocap_framerate": np.array(0.0)}, "mocap_framerate must be 5 to 2000 Hz, got 0.0"),
    ({"mocap_framerate": np.array(np.nan)}, "got nan"),
    ({"mocap_framerate": np.array([60.0, 60.0])}, "must be one number"),
    ({"mocap_framerate": np.array("60")}, "must hold numbers"),
    ({"gender": np.array("other")}, "gender must be female, male, neutral, got 'other'"),
    ({"gender": np.zeros(3)}, "gender must be"),
    ({"betas": np.zeros(100_000)}, "'betas' would take 1 MB unpacked; at most 0.07 MB"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_recordings_are_explained(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_recording(save(tmp_path / "a.npz", **changes))


def test_files_that_are_no_recordings(tmp_path: Path) -> None:
    good = save(tmp_path / "good.npz").read_bytes()
    for name, content, message in (
        ("empty.npz", b"", "not an npz file"),
        ("cut.npz", good[: len(good) // 2], "not an npz file"),
        ("pickle.npz", b"\x80\x04N.", "a pickle"),
        ("text.npz", b"hello", "not an npz file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_recording(tmp_path / name)
    with pytest.raises(InputError, match="can't be read"):
        read_recording(tmp_path / "nowhere.npz")
    with pytest.raises(InputError, match="folder"):
        read_recording(tmp_path)
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(InputError, match="not a regular file"):
        read_recording(tmp_path / "pipe.npz")


def test_no_damage_gets_through_as_anything_but_an_input_error(tmp_path: Path) -> None:
    good = bytearray(save(tmp_path / "good.npz").read_bytes())
    random = np.random.default_rng(0)
    # headers and the table of contents are where damage could confuse the reader
    places = [*range(160), *range(len(good) - 900, len(good)), *random.integers(0, len(good), 200)]
    refused = 0
    for place in places:
        damaged = bytearray(good)
        damaged[place] ^= int(random.integers(1, 256))
        (tmp_path / "bad.npz").write_bytes(damaged)
        try:
            read_recording(tmp_path / "bad.npz")
        except InputError:
            refused += 1
    assert refused > 300


def packed(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def members() -> dict[str, bytes]:
    return {f"{key}.npy": npy(value) for key, value in recording(20, 60.0).items()}


def peak_bytes(action: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_recording(path)


def test_what_unpacks_to_much_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_module, "_ARRAY_BYTES", {"trans": 1_000_000, "poses": 1_000_000})
    path = packed(tmp_path / "bomb.npz", {**members(), "poses.npy": npy(np.zeros(8_000_000))})
    assert path.stat().st_size < 200_000
    assert peak_bytes(lambda: refused(path, "'poses' would take 64 MB unpacked")) < 5_000_000


def test_a_shape_is_not_believed_before_it_is_checked(tmp_path: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 156), }"
    claim = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    path = packed(tmp_path / "claim.npz", {**members(), "poses.npy": claim})
    assert peak_bytes(lambda: refused(path, r"claims the shape \(1000000000, 156\)")) < 5_000_000
    for shape in ("(-5, 156)", "(20, 156.0)", "(20,", "('a',)"):
        text = header.replace(b"(1000000000, 156)", shape.encode())
        claim = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
        refused(
            packed(tmp_path / "claim.npz", {**members(), "poses.npy": claim}), "the file is damaged|claims the shape"
        )
    cut = members()["poses.npy"][:-8]
    refused(packed(tmp_path / "cut.npz", {**members(), "poses.npy": cut}), "the file is damaged")
    newer = b"\x93NUMPY\x03\x00" + (70).to_bytes(4, "little") + header
    refused(packed(tmp_path / "newer.npz", {**members(), "poses.npy": newer}), r"npy version \(3, 0\)")


def test_a_file_that_is_too_large_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_module, "MAX_FILE_BYTES", 1000)
    refused(save(tmp_path / "a.npz"), "GB; an AMASS recording")


# Shape numbers


def test_conversions_are_found_where_they_are_exact(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    template, directions = random.normal(size=(40, 3)), random.normal(size=(40, 3, 16))
    A, b, betas = random.normal(size=(16, 16)), random.normal(size=16), random.normal(size=16)
    models = {"neutral": tmp_path / "neutral.npz", "male": tmp_path / "male.npz"}
    # 20 shape directions, as newer files have: the first 16 count
    more = np.concatenate((directions, random.normal(size=(40, 3, 4))), axis=2)
    np.savez(models["neutral"], v_template=template, shapedirs=more)
    np.savez(models["male"], v_template=template + directions @ b, shapedirs=directions @ A)
    found = fit_conversions(models)
    np.testing.assert_allclose(found["male", "neutral"].A, A, atol=1e-10)
    np.testing.assert_allclose(found["male", "neutral"].b, b, atol=1e-10)
    np.testing.assert_allclose(found["neutral", "male"](found["male", "neutral"](betas)), betas, atol=1e-8)


def test_the_command_writes_six_files_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(write_smplh(tmp_path / f"{gender}.npz", size=size)) for gender, size in zip(GENDERS, (0.9, 1.1, 1.0))]
    assert main(["data", "gender-conversion", *paths, str(tmp_path / "out")]) == 0
    assert len(capsys.readouterr().out.split()) == 6 == len(list((tmp_path / "out").iterdir()))
    found = load_conversions(tmp_path / "out")
    expected = fit_conversions(dict(zip(GENDERS, map(Path, paths))))
    assert set(found) == {"female", "male"}
    np.testing.assert_array_equal(found["male"].A, expected["male", "neutral"].A)
    np.testing.assert_array_equal(found["female"].b, expected["female", "neutral"].b)


def test_one_model_is_not_taken_for_two_bodies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = write_smplh(tmp_path / "one.npz"), write_smplh(tmp_path / "other.npz", size=1.1)
    copy = tmp_path / "copy.npz"
    copy.write_bytes(one.read_bytes())
    for paths, said in (
        ((one, one, one), "the female and the male model are the same"),
        ((other, one, one), "the male and the neutral model are the same"),
        ((one, other, copy), "the female and the neutral model are the same"),
    ):
        assert main(["data", "gender-conversion", *map(str, paths), str(tmp_path / "out")]) == 2
        assert said in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "out").exists()


def test_conversions_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such folder; it should hold female_to_neutral.npz and male_to_neutral"):
        load_conversions(tmp_path / "nowhere")
    good = {"A": np.eye(16), "b": np.zeros(16)}
    for gender in GENDERS[:2]:
        np.savez(tmp_path / conversion_file(gender, "neutral"), **good)
    assert load_conversions(tmp_path)["female"](np.arange(16.0))[3] == 3
    path = tmp_path / conversion_file("male", "neutral")
    for changes, message in (
        ({"A": np.eye(10)}, r"A must be finite numbers of shape \(16, 16\)"),
        ({"b": np.full(16, np.nan)}, "b must be finite"),
        ({"A": np.zeros((1000, 1000))}, "a gender conversion has a few thousand"),
    ):
        np.savez(path, **{**good, **changes})
        with pytest.raises(InputError, match=message):
            load_conversions(tmp_path)
    np.savez(path, A=np.eye(16))
    with pytest.raises(InputError, match="missing: b"):
        load_conversions(tmp_path)


def test_models_that_cannot_be_compared(tmp_path: Path) -> None:
    good = write_smplh(tmp_path / "good.npz")
    with np.load(good) as data:
        arrays = dict(data)
    for changes, message in (
        ({"v_template": np.zeros((10, 3)), "shapedirs": np.zeros((10, 3, 16))}, "different numbers of vertices"),
        ({"shapedirs": arrays["shapedirs"][..., :10]}, "shapedirs .*16"),
        ({"shapedirs": arrays["shapedirs"] * 0}, "only 0 of the 16 shape directions"),
        ({"v_template": np.full_like(arrays["v_template"], np.nan)}, "finite"),
    ):
        np.savez(tmp_path / "bad.npz", **{**arrays, **changes})
        with pytest.raises(InputError, match=message):
            fit_conversions({"female": good, "neutral": tmp_path / "bad.npz"})
