"""`mgrpo data amass` as a whole: EgoAllo's own files reproduced, the same bytes however it was run, every bad file
reported, every interruption survived."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from benchmarks.amass_files import write_recording, write_smplh
from mgrpo import storage
from mgrpo.body import default_body, load_smplh
from mgrpo.cli import main
from mgrpo.commands import data_amass
from mgrpo.commands.data_amass import AmassConfig
from mgrpo.data.amass import prepare as prepare_module
from mgrpo.data.amass.parts import PartsFolder, parts_folder
from mgrpo.data.amass.prepare import Outcome, make_plan, prepare_dataset
from mgrpo.data.amass.process import ClipRules, float64_body, prepare_recording
from mgrpo.data.amass.recording import read_recording
from mgrpo.data.amass.writer import DATASETS, list_text, write_hdf5
from mgrpo.errors import InputError
from mgrpo.geometry import axis_angle_to_rotmat, quat_to_rotmat, se3_apply
from tests.golden import golden_file, golden_files

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The recordings are small: on a busy machine, threads that wait for each other are most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Reference


@pytest.fixture(scope="module")
def golden_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """EgoAllo's own results, and ours for the same recordings."""
    golden, out = golden_file("dataset/*.hdf5").parent, tmp_path_factory.mktemp("golden") / "dataset.hdf5"
    words = ["--body", str(golden_file("body/*.npz")), "--betas", "as-is", "--parity", "--workers", "1"]
    assert main(["data", "amass", str(golden / "raw"), str(out), *words]) == 0
    return golden, out


@pytest.mark.golden
def test_egoallos_file_is_reproduced(golden_run: tuple[Path, Path]) -> None:
    golden, out = golden_run
    wanted = (golden / "dataset_files.txt").read_text().splitlines()
    ours = out.with_name("dataset_files.txt").read_text().splitlines()
    # every recording of ours also has its mirror image; EgoAllo's was made for some
    assert wanted and set(wanted) <= set(ours) and ours == sorted(ours)
    assert {name.replace("_reflect", "") for name in ours} == {name.replace("_reflect", "") for name in wanted}
    expected = json.loads((golden / "expected.json").read_text())
    with h5py.File(golden / "dataset.hdf5") as theirs, h5py.File(out) as file:
        assert set(expected["hdf5"]) == set(wanted)
        for name in wanted:
            assert set(file[name]) == set(theirs[name]) == set(expected["hdf5"][name])
            for key in theirs[name]:
                one, other = file[name][key], theirs[name][key]
                assert [list(one.shape), str(one.dtype), list(one.chunks)] == expected["hdf5"][name][key]
                assert (one.shape, one.dtype, one.chunks, one.compression) == (
                    other.shape, other.dtype, other.chunks, other.compression
                )  # fmt: skip
                # theirs is computed in float32, joints along whole chains, mirrored paths by summing up steps
                tolerance = {"contacts": 0, "betas": 0, "body_quats": 2e-7, "hand_quats": 2e-7}.get(key, 3e-5)
                np.testing.assert_allclose(one[:], other[:], atol=tolerance, rtol=0, err_msg=f"{name} {key}")


@pytest.mark.golden
def test_floor_and_labels_of_the_reference(golden_run: tuple[Path, Path]) -> None:
    golden, out = golden_run
    body = float64_body(load_smplh(golden_file("body/*.npz"), with_mesh=False))
    expected = json.loads((golden / "expected.json").read_text())["processing"]
    assert expected
    with h5py.File(out) as file:
        for name, values in expected.items():
            plain = name.replace("_reflect", "")
            recording = read_recording(golden / "raw" / plain)
            clips, _ = prepare_recording(recording, plain, body, ClipRules(parity=True), None)
            clip = clips[name != plain]
            assert clip is not None
            assert clip.floor_height == pytest.approx(values["floor_height"], abs=5e-6)
            assert len(file[name]["contacts"]) == values["frames"] - 1
            # the sums of the reference still have the frame that is dropped last, and the root
            more = np.array(values["contacts_sum"])[1:] - file[name]["contacts"][:].sum(0)
            assert set(more) <= {0, 1} and values["contacts_sum"][0] == 0


@pytest.mark.golden
def test_processed_recordings_of_the_reference(golden_run: tuple[Path, Path]) -> None:
    golden, out = golden_run
    body = float64_body(load_smplh(golden_file("body/*.npz"), with_mesh=False))
    paths = golden_files("dataset/processed_selected/**/*.npz")
    with h5py.File(out) as file:
        for path in paths:
            group = file[path.relative_to(golden / "processed_selected").as_posix()]
            with np.load(path, allow_pickle=False) as data:
                wanted = dict(data)
            found = {key: torch.from_numpy(group[key][:]).double() for key in DATASETS}
            joints = se3_apply(found["T_world_cpf"][:, None], found["joints_wrt_cpf"]).numpy()
            np.testing.assert_allclose(joints, wanted["joints"][1:, 1:], atol=5e-5)
            np.testing.assert_allclose(found["T_world_root"][:, 4:], wanted["joints"][1:, 0], atol=2e-5)
            trans = found["T_world_root"][:, 4:] - body.rest_joints(found["betas"])[0, 0]
            np.testing.assert_allclose(trans, wanted["trans"][1:], atol=2e-5)
            np.testing.assert_array_equal(found["contacts"], wanted["contacts"][1:, 1:])
            assert len(found["contacts"]) == int(wanted["num_frames"]) - 1 and int(wanted["fps"]) == 30
            # turns of more than half a round are there, so rotations are compared, not their logarithms
            pose = axis_angle_to_rotmat(torch.from_numpy(wanted["pose_body"][1:]).double().unflatten(1, (21, 3)))
            np.testing.assert_allclose(quat_to_rotmat(found["body_quats"]), pose, atol=1e-5)
            root = axis_angle_to_rotmat(torch.from_numpy(wanted["root_orient"][1:]).double())
            np.testing.assert_allclose(quat_to_rotmat(found["T_world_root"][:, :4]), root, atol=1e-5)


# A download of our own


@pytest.fixture(scope="module")
def smplh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_smplh(tmp_path_factory.mktemp("body") / "model.npz")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven good recordings with names of both generations, one that is too short, and some left out by name."""
    folder = tmp_path_factory.mktemp("raw")
    for number in range(4):
        write_recording(folder / f"CMU/0{number}/walk_poses.npz", frames=90, fps=60.0, seed=number)
    write_recording(folder / "BMLrub/rub1/jump_stageii.npz", frames=60, fps=30.0, rate_key="mocap_frame_rate")
    write_recording(folder / "BMLrub/rub1/treadmill_poses.npz", frames=60, fps=30.0)
    write_recording(folder / "SSM/s1/a b_poses.npz", frames=60, fps=30.0)
    write_recording(folder / "HDM05/dg/HDM_dg_07-01_01_poses.npz", frames=60, fps=30.0)
    write_recording(folder / "SFU/1/short_poses.npz", frames=30, fps=30.0)
    write_recording(folder / "SFU/1/still_poses.npz", frames=60, fps=30.0, stand=0.0)
    write_recording(folder / "GRAB/1/x_poses.npz", frames=60, fps=30.0)
    return folder


def run(raw: Path, out: Path, smplh: Path, *words: str) -> int:
    return main(["data", "amass", str(raw), str(out), "--body", str(smplh), "--betas", "as-is", *words])


@pytest.fixture(scope="module")
def whole(raw: Path, smplh: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of an undisturbed run in one process."""
    out = tmp_path_factory.mktemp("whole") / "amass.hdf5"
    assert run(raw, out, smplh, "--workers", "1") == 0
    return out


def files_of(out: Path) -> dict[str, bytes]:
    """The data file and its list; what the report says depends on names alone."""
    return {path.name: path.read_bytes() for path in (out, out.with_name(f"{out.stem}_files.txt"))}


def test_what_is_written(whole: Path) -> None:
    assert {path.name for path in whole.parent.iterdir()} == {"amass.hdf5", "amass_files.txt", "amass.hdf5.report.json"}
    names = whole.with_name("amass_files.txt").read_text().split("\n")
    plain = [
        "BioMotionLab_NTroje/rub1/jump_poses.npz",
        *(f"CMU/0{number}/walk_poses.npz" for number in range(4)),
        "SFU/1/still_poses.npz",
        "SSM_synced/s1/a b_poses.npz",
    ]
    assert names == sorted([*plain, *(name.replace("_poses", "_poses_reflect") for name in plain)])
    with h5py.File(whole) as file:
        found: list[str] = []
        file.visititems(lambda name, item: found.append(name) if name.endswith(".npz") else None)
        assert sorted(found) == names
        for name in names:
            assert set(file[name]) == set(DATASETS) and file[name]["betas"].chunks == (1, 16)
            assert file[name]["body_quats"].chunks == (min(32, len(file[name]["body_quats"])), 21, 4)


def test_the_report(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(whole.with_name("amass.hdf5.report.json").read_text())
    assert report["counts"] == {
        "written": 7, "skipped": 3, "failed": 0, "defect": 0, "clips": 14, "frames": 2 * (4 * 34 + 3 * 45),
    }  # fmt: skip
    assert report["reasons"] == {"inline skating": 1, "shorter than 1 s after the trim": 1, "treadmill": 1}
    assert [entry["name"] for entry in report["skipped"]] == [
        "BioMotionLab_NTroje/rub1/treadmill_poses.npz",
        "MPI_HDM05/dg/HDM_dg_07-01_01_poses.npz",
        "SFU/1/short_poses.npz",
    ]
    assert report["subsets"]["SFU"] == {
        "splits": ["val"], "recordings": 2, "clips": 1, "mirrored": 1, "skipped": 1, "failed": 0, "frames": 90,
    }  # fmt: skip
    assert report["missing_subsets"]["test"] == ["Transitions_mocap"]
    assert report["missing_subsets"]["val"] == ["HumanEva", "MPI_mosh"]
    assert report["unused_folders"] == ["GRAB"] and report["without_floor"] == ["SFU/1/still_poses.npz"]
    assert report["options"]["parity"] is False and report["options"]["betas"] == "as-is"
    data_amass._print_report(report)
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("BioMotionLab_NTroje", "skipped 1: treadmill", "missing of val: HumanEva, MPI_mosh", "GRAB"):
        assert text in shown
    assert "1 recording(s) have no static toe" in shown


def test_dry_run_writes_nothing(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "amass", str(raw), str(tmp_path / "x" / "a.hdf5"), "--dry-run", "--splits", "val"]) == 0
    shown = capsys.readouterr().out
    assert "2 recordings and their mirror images would be prepared" in shown and "missing of val: HumanEva" in shown
    assert "CMU" in shown.split("folders of no chosen split")[1] and not list(tmp_path.iterdir())


def test_any_number_of_workers_gives_the_same_bytes(raw: Path, smplh: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "amass.hdf5"
    time.sleep(1.1)  # a time that is stored would now be another one
    assert run(raw, out, smplh, "--workers", "2") == 0
    assert files_of(out) == files_of(whole)
    assert not multiprocessing.active_children()


def test_options_change_the_file(raw: Path, smplh: Path, whole: Path, tmp_path: Path) -> None:
    words = ("--no-mirror", "--splits", "test", "--workers", "1")
    assert run(raw, tmp_path / "amass.hdf5", smplh, *words) == 0
    assert (tmp_path / "amass_files.txt").read_text() == "SSM_synced/s1/a b_poses.npz"
    assert run(raw, tmp_path / "parity.hdf5", smplh, "--parity", *words) == 0
    with h5py.File(tmp_path / "amass.hdf5") as one, h5py.File(tmp_path / "parity.hdf5") as other:
        name = "SSM_synced/s1/a b_poses.npz/hand_quats"
        assert np.abs(one[name][:] - other[name][:]).max() > 1e-3


def test_shape_numbers_go_through_the_conversion(tmp_path: Path, smplh: Path) -> None:
    write_recording(tmp_path / "raw/CMU/1/a_poses.npz", frames=60, fps=30.0, gender="female")
    for gender, shift in (("female", 0.5), ("male", 0.0)):
        np.savez(tmp_path / f"{gender}_to_neutral.npz", A=np.zeros((16, 16)), b=np.full(16, shift))
    words = [str(tmp_path / "raw"), str(tmp_path / "a.hdf5"), "--body", str(smplh), "--workers", "1"]
    assert main(["data", "amass", *words, "--gender-conversion", str(tmp_path)]) == 0
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert (file["CMU/1/a_poses.npz/betas"][:] == 0.5).all()


# What can't be used


def test_one_bad_file_does_not_stop_the_others(
    smplh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "raw"
    write_recording(raw / "CMU/1/good_poses.npz", frames=60, fps=30.0)
    (raw / "CMU/1/text_poses.npz").write_text("hello")
    np.savez(
        raw / "CMU/1/object_poses.npz", poses=np.array([{}], object), trans=0, betas=0, gender=0, mocap_framerate=1
    )
    (raw / "CMU/1/dangling_poses.npz").symlink_to(tmp_path / "nowhere")
    (raw / "CMU/1/line\nbreak_poses.npz").write_bytes((raw / "CMU/1/good_poses.npz").read_bytes())
    (raw / os.fsdecode(b"CMU/1/\xff_poses.npz")).write_bytes(b"")
    assert run(raw, tmp_path / "a.hdf5", smplh, "--workers", "1") == 1
    report = json.loads((tmp_path / "a.hdf5.report.json").read_text())
    reasons = {entry["name"]: entry["reason"] for entry in report["failed"]}
    assert len(reasons) == 5 and report["counts"]["clips"] == 2
    for name, text in (
        ("text", "not an npz file"),
        ("object", "pickled Python objects"),
        ("dangling", "can't be read"),
        ("line\nbreak", "line break"),
        ("\udcff", "not UTF-8"),
    ):
        assert text in reasons[f"CMU/1/{name}_poses.npz"]
    captured = capsys.readouterr()
    assert "failed: " in captured.out and "left out: " in captured.err
    assert "INCOMPLETE: 5 of 6 recordings could not be used" in captured.out.splitlines()[-1]
    assert h5py.is_hdf5(tmp_path / "a.hdf5")


def test_nothing_usable_is_an_error_that_leaves_no_file(
    smplh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw/CMU").mkdir(parents=True)
    (tmp_path / "raw/CMU/a_poses.npz").write_text("hello")
    assert run(tmp_path / "raw", tmp_path / "a.hdf5", smplh) == 2
    assert "none of 1 recordings can be used: " in capsys.readouterr().err and not (tmp_path / "a.hdf5").exists()


def test_a_defect_costs_one_recording_and_is_told(
    raw: Path, smplh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(recording: object, name: str, *rest: object) -> object:
        if "02" in name:
            raise ZeroDivisionError("oh")
        return prepare_recording(recording, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(prepare_module, "prepare_recording", broken)
    assert run(raw, tmp_path / "a.hdf5", smplh, "--workers", "1") == 1
    (failed,) = json.loads((tmp_path / "a.hdf5.report.json").read_text())["failed"]
    assert failed["status"] == "defect" and "ZeroDivisionError: oh" in failed["reason"]


def test_options_that_make_no_sense(raw: Path, smplh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    existing = tmp_path / "old.hdf5"
    existing.write_bytes(b"old")
    out = str(tmp_path / "a.hdf5")
    for words, message in (
        ([str(raw), out], "--gender-conversion FOLDER"),
        ([str(raw), out, "--betas", "as-is", "--gender-conversion", "x"], "of no use"),
        ([str(raw), out, "--betas", "as-is", "--body", "default"], "something else on the default body"),
        ([str(raw), out, "--betas", "as-is", "--workers", "-1"], "--workers must be 0 or more"),
        ([str(raw), out, "--betas", "as-is", "--body", str(tmp_path / "no.npz")], "not found"),
        ([str(raw), out, "--gender-conversion", str(tmp_path / "no")], "no such folder"),
        ([str(raw), str(existing), "--betas", "as-is"], "exists already"),
        ([str(raw), str(tmp_path), "--betas", "as-is"], "is a folder"),
        ([str(raw), str(tmp_path / "a.npz"), "--betas", "as-is"], "a.npz: the file to write must end in .hdf5 or .h5"),
        ([str(raw), str(tmp_path / "a"), "--betas", "as-is", "--dry-run"], "must end in .hdf5 or .h5"),
        ([str(tmp_path / "no"), out, "--betas", "as-is"], "no such folder"),
    ):
        assert main(["data", "amass", *words]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert existing.read_bytes() == b"old" and list(tmp_path.iterdir()) == [existing]
    assert run(raw, existing, smplh, "--overwrite", "--workers", "1", "--splits", "test") == 0
    assert h5py.is_hdf5(existing)


def test_the_writer_refuses_what_the_format_does_not_have(tmp_path: Path) -> None:
    good = {name: np.zeros((1 if name == "betas" else 4, *shape), np.float32) for name, shape in DATASETS.items()}
    out = tmp_path / "a.hdf5"
    for changes, message in (
        ({"contacts": np.zeros((3, 21), np.float32)}, r"contacts must be float32 \(4, 21\)"),
        ({"contacts": np.zeros((4, 21))}, "contacts must be float32"),
        ({"more": np.zeros(3)}, "a group has the datasets"),
    ):
        with pytest.raises(InputError, match=message):
            write_hdf5(out, [("a", {**good, **changes})], grow_in=tmp_path)
    with pytest.raises(InputError, match="sorted order"):
        write_hdf5(out, [("b", good), ("a", good)], grow_in=tmp_path)
    assert not list(tmp_path.iterdir())
    assert write_hdf5(out, [("a", good), ("b", good)], grow_in=tmp_path) == ["a", "b"]
    assert list_text(["b", "a"]) == "a\nb"


# Interruptions


def prepared(raw: Path, out: Path, **options: object) -> list[Outcome]:
    """A run through the library, with the default body (its joints are those of the made-up SMPL-H file)."""
    rules = options.pop("rules", ClipRules())
    with PartsFolder(out) as parts:
        return prepare_dataset(
            make_plan(raw, ("train", "val", "test")),
            out,
            default_body(),
            rules,
            None,
            parts,
            workers=1,
            **options,  # type: ignore[arg-type]
        )


def reused(outcomes: list[Outcome]) -> list[str]:
    return [outcome.file.name for outcome in outcomes if outcome.reused]


def test_finished_parts_are_used_again(raw: Path, tmp_path: Path) -> None:
    out, done = tmp_path / "a.hdf5", []

    def stop(outcome: Outcome) -> None:
        done.append(outcome.file.name)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(raw, out, on_recording=stop)
    assert not out.exists() and len(list(parts_folder(out).glob("*.safetensors"))) == 3
    assert reused(prepared(raw, out)) == done
    first = files_of(out)
    # another setting, another file, a damaged part: made again
    assert len(reused(prepared(raw, out, rules=ClipRules(parity=True)))) == 0
    assert files_of(out) != first
    assert len(reused(prepared(raw, out))) == 0 and files_of(out) == first
    one, other = sorted(parts_folder(out).glob("*.safetensors"))[:2]
    one.write_bytes(one.read_bytes()[:-10])
    other.write_bytes(b"hello")
    assert len(reused(prepared(raw, out))) == 6 and files_of(out) == first
    os.utime(raw / "CMU/00/walk_poses.npz")
    assert len(reused(prepared(raw, out))) == 7 and files_of(out) == first


def test_an_interruption_while_writing_leaves_the_old_file(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.hdf5"
    out.write_bytes(b"old")

    def stop(groups: int) -> None:
        if groups == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(raw, out, on_written=stop)
    assert out.read_bytes() == b"old" and not list(parts_folder(out).glob(".tmp*"))


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(raw: Path, smplh: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "amass.hdf5"
    words = ["data", "amass", str(raw), str(out), "--body", str(smplh), "--betas", "as-is", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mgrpo", *words], env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
    )
    folder = parts_folder(out)
    while process.poll() is None and not list(folder.glob("*.safetensors")):
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers_alive = children.read_text().split() if children.exists() else []
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not out.exists()
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers_alive) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers_alive)
    assert run(raw, out, smplh, "--workers", "1") == 0
    assert files_of(out) == files_of(whole) and not folder.exists()


def test_a_kill_after_the_file_was_written_is_no_harm(
    raw: Path, smplh: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "amass.hdf5"

    def killed(parts: PartsFolder) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PartsFolder, "remove", killed)
        assert run(raw, out, smplh, "--workers", "1") == 130
    assert out.exists() and parts_folder(out).exists()
    assert run(raw, out, smplh, "--workers", "1") == 0
    assert files_of(out) == files_of(whole) and not parts_folder(out).exists()


def test_a_worker_that_dies_is_explained(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.hdf5"

    def kill(outcome: Outcome) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)

    many = make_plan(raw, ("train", "val", "test"))
    many = many.__class__(many.layout, many.skipped, many.todo * 6)
    with PartsFolder(out) as parts, pytest.raises(InputError, match="a worker process ended by itself"):
        prepare_dataset(many, out, default_body(), ClipRules(), None, parts, workers=2, on_recording=kill)
    assert list(parts.path.glob("*.safetensors"))


def test_what_a_killed_run_was_writing_is_removed(tmp_path: Path) -> None:
    with PartsFolder(tmp_path / "a.hdf5") as parts:
        for left in (".tmp-7-a.hdf5", ".tmp-8-x.safetensors", "x.safetensors"):
            (parts.path / left).write_bytes(b"half")
    with PartsFolder(tmp_path / "a.hdf5") as parts:
        assert sorted(path.name for path in parts.path.iterdir()) == [".lock", "x.safetensors"]


def test_two_runs_do_not_share_an_output(
    raw: Path, smplh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with PartsFolder(tmp_path / "a.hdf5"):
        assert run(raw, tmp_path / "a.hdf5", smplh, "--workers", "1") == 2
    assert "in use by another process" in capsys.readouterr().err


# The disk


def test_a_full_disk_while_parts_are_written(
    raw: Path,
    smplh: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, calls = tmp_path / "amass.hdf5", []

    def full(descriptor: int) -> None:
        calls.extend([descriptor] * stat.S_ISREG(os.fstat(descriptor).st_mode))
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "fsync", full)
        assert run(raw, out, smplh, "--workers", "1") == 2
    message = capsys.readouterr().err
    assert "the disk is full" in message and "goes on from" in message
    assert len(list(parts_folder(out).iterdir())) == 4 and not out.exists()  # three parts and the lock
    assert run(raw, out, smplh, "--workers", "1") == 0 and files_of(out) == files_of(whole)


def test_too_little_space_for_the_file_is_seen_before(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match="No space left"):
        prepared(raw, tmp_path / "a.hdf5")
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf5.parts"]


def test_hdf5_on_a_full_disk(tmp_path: Path) -> None:
    """A real refusal of the system, in a process of its own: HDF5, if it saw one, would end it by a crash."""
    code = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from mgrpo.data.amass.writer import DATASETS, write_hdf5
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
clip = {name: np.zeros((1 if name == "betas" else 300, *shape), np.float32) for name, shape in DATASETS.items()}
folder = Path(sys.argv[1])
for limit in (3_000, 500_000, 5_000_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    clips = ((f"{number:03}", clip) for number in range(20))
    try:
        write_hdf5(folder / "a.hdf5", clips, grow_in=folder)
    except OSError as error:
        print(error.errno, list(folder.iterdir()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"{errno.EFBIG} []"] * 3 and not done.stderr
    assert done.returncode == 0


def test_the_configuration_needs_a_split() -> None:
    with pytest.raises(InputError, match="--splits needs at least one"):
        AmassConfig(Path("a"), Path("b"), splits=(), betas="as-is")
