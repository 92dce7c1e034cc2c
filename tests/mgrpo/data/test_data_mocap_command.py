"""`mgrpo data mocap`: what it writes, what it says, what it skips, and that it goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mgrpo.body import default_body
from mgrpo.cli import main
from mgrpo.commands import data_mocap
from mgrpo.data import load_motion
from mgrpo.data.mocap import convert
from mgrpo.data.packs.reading import read_pack
from tests.mgrpo.data import mocap_files as made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two BVH files of one skeleton, one AMC with its ASF, one file that is cut off."""
    source = tmp_path / "raw"
    (source / "a").mkdir(parents=True)
    for seed in (0, 1):
        values = made.bvh_values(90, 30.0, seed)
        (source / "a" / f"walk{seed}.bvh").write_text(made.bvh_text(values, "0.033333"))
    (source / "b").mkdir()
    (source / "b" / "01.asf").write_text(made.asf_text())
    (source / "b" / "01_01.amc").write_text(made.amc_text(made.amc_values(61)))
    (source / "cut.bvh").write_text(made.bvh_text(made.bvh_values(9, 30.0), "0.033333")[:-300])
    return source


def run(*words: object) -> int:
    return main(["data", "mocap", *map(str, words)])


def report(out: Path) -> dict[str, dict[str, object]]:
    content = json.loads((out / "mocap-report.json").read_text())
    return {entry["file"]: entry for entry in content["files"]}


def test_a_folder_becomes_motion(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(folder, out) == 0
    said = capsys.readouterr()
    lines = {line.split()[1].rstrip(":"): line for line in said.err.splitlines() if line.startswith(("conv", "skip"))}
    assert set(lines) == {"a/walk0.bvh", "a/walk1.bvh", "b/01_01.amc", "cut.bvh"}
    assert all(" mm" in line and "error 0." in line for name, line in lines.items() if name != "cut.bvh")
    assert "line " in lines["cut.bvh"] and "skipped" in lines["cut.bvh"]
    assert "3 clips" in said.out and "1 files skipped" in said.out
    entries = report(out)
    assert entries["a/walk0.bvh"]["frames"] == 90 and entries["b/01_01.amc"]["frames"] == 16
    assert all(entry["error_mm"] < 1 for entry in entries.values()) and entries["b/01_01.amc"]["source_fps"] == 120
    clips = {clip.name: clip for clip in load_motion(out, default_body())}
    assert set(clips) == {"a/walk0", "a/walk1", "b/01_01"}
    assert clips["a/walk0"].contacts[:, [9, 10]].mean() > 0.9  # it stands


def test_floors_are_found_per_skeleton(folder: Path, tmp_path: Path) -> None:
    """A toe joint of the BVH person stands 2 cm above the file's zero: 1 cm goes, for both clips."""
    assert run(folder, tmp_path / "out") == 0
    pack = read_pack(tmp_path / "out" / "mocap.npz")
    floors = np.load(tmp_path / "out" / "mocap.npz")["floor_m"]
    ground = 0.98 - 0.05 - 0.42 - 0.42 - 0.07
    assert floors[:2] == pytest.approx(ground - 0.01, abs=1e-3) and floors[2] != floors[0]
    assert pack.trans[:90, 2] == pytest.approx(0.98 - floors[0], abs=1e-6)
    for option, height in (("keep", 0.0), ("-0.5", -0.5)):
        assert run(folder, tmp_path / option, f"--floor={option}") == 0
        assert np.load(tmp_path / option / "mocap.npz")["floor_m"] == pytest.approx(height)


def test_it_goes_on_where_it_was_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, real, seen = tmp_path / "out", convert.convert_file, []

    def stopped(path: Path, options: convert.ConvertOptions) -> object:
        seen.append(path.name)
        if path.name == "01_01.amc":
            raise KeyboardInterrupt
        return real(path, options)

    monkeypatch.setattr(convert, "convert_file", stopped)
    assert run(folder, out) == 130
    assert seen == ["walk0.bvh", "walk1.bvh", "01_01.amc"] and not (out / "mocap.npz").exists()
    seen.clear()
    monkeypatch.setattr(convert, "convert_file", lambda path, options: (seen.append(path.name), real(path, options))[1])
    assert run(folder, out) == 0
    assert seen == ["01_01.amc", "cut.bvh"]
    assert report(out)["a/walk0.bvh"]["status"] == "reused"
    first = (out / "mocap.npz").read_bytes()
    fresh = tmp_path / "fresh"
    assert run(folder, fresh) == 0
    assert np.array_equal(np.load(out / "mocap.npz")["quats_wxyz_i16"], np.load(fresh / "mocap.npz")["quats_wxyz_i16"])
    # another option, a changed file or a damaged result are converted anew
    seen.clear()
    (folder / "a" / "walk1.bvh").write_text(made.bvh_text(made.bvh_values(60, 30.0, 5), "0.033333"))
    next((out / ".parts").iterdir()).write_bytes(b"PK damaged")
    assert run(folder, out) == 0
    assert {"walk1.bvh", "cut.bvh"} <= set(seen) and len(seen) in (3, 2)
    assert report(out)["a/walk1.bvh"]["frames"] == 60 and (out / "mocap.npz").read_bytes() != first
    seen.clear()
    assert run(folder, out, "--unit", "0.011", "--max-error-mm", "2", "--overwrite") == 0
    assert len(seen) == 4
    capsys.readouterr()


def test_processes_give_the_same(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path / "one", "--workers", "1") == 0
    assert run(folder, tmp_path / "two", "--workers", "2") == 0
    one, two = np.load(tmp_path / "one" / "mocap.npz"), np.load(tmp_path / "two" / "mocap.npz")
    assert set(one.files) == set(two.files) and all(np.array_equal(one[key], two[key]) for key in one.files)


def test_clips_on_a_body(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path / "out", "--format", "clips") == 0
    assert not (tmp_path / "out" / "mocap.npz").exists()
    clips = load_motion(tmp_path / "out" / "clips", default_body())
    assert sorted(clip.name for clip in clips) == ["a/walk0", "a/walk1", "b/01_01"]
    assert max(float(clip.contacts.sum()) for clip in clips) > 100


def test_an_output_made_in_another_way_is_kept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    assert run(folder, out) == 0
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    folder.rename(other)
    for source, words, told in (
        (other, ["--unit", "0.011", "--max-error-mm", "2"], "options.unit: auto there, 0.011 now"),
        (other, ["--floor", "keep"], "options.floor: auto there, keep now"),
        (other, ["--format", "clips"], "format: pack there, clips now"),
        (other, [], f"folder: {folder} there, {other} now"),
    ):
        assert run(source, out, *words) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "holds motion already" in said and "--overwrite" in said
        assert told in said or (source == other and "folder:" in said)
        assert {path: path.read_bytes() for path in before} == before
    other.rename(folder)
    assert run(folder, out, "--workers", "2") == 0  # how it is computed is no other way
    (out / "mocap-report.json").unlink()
    assert run(folder, out) == 2
    assert "it has no mocap-report.json" in capsys.readouterr().err


def test_overwriting_leaves_no_motion_of_before(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(folder, out) == 0
    assert run(folder, out, "--format", "clips", "--overwrite") == 0
    assert {path.name for path in out.iterdir()} == {"clips", "mocap-report.json", ".parts"}
    mine = out / "clips" / "mine.npz"
    mine.write_bytes((out / "clips" / "a" / "walk0.npz").read_bytes())
    (folder / "a" / "walk1.bvh").unlink()
    assert run(folder, out, "--format", "clips") == 0
    there = {path.relative_to(out / "clips").as_posix() for path in out.rglob("*.npz")}
    assert there == {"a/walk0.npz", "b/01_01.npz", "mine.npz"}  # only what it wrote itself is taken away
    assert run(folder, out, "--overwrite") == 0
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.npz")} == {"mocap.npz", "clips/mine.npz"}
    capsys.readouterr()


def test_a_run_without_a_usable_file_keeps_what_is_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(folder, out) == 0
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert run(folder, out, "--map", "bandai", "--overwrite") == 2
    assert "none of the 4 files" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--body", "smplh"], "--body smplh says nothing about --format pack"),
        (["--unit", "feet"], "--unit must be auto"),
        (["--floor", "low"], "--floor must be auto"),
        (["--workers", "-1"], "--workers must be at least 0"),
        (["--amc-fps", "0"], "--amc-fps must be 0.1 to 10000"),
        (["--max-error-mm", "-1"], "--max-error-mm must be positive"),
        (["--map", "none.json"], "none.json: can't be read"),
        (["--map", "bandai"], "none of the 4 files"),
        (["--asf", "none.asf", "--map", "acclaim"], "none of the 4 files"),
    ],
)
def test_bad_options(
    words: list[str], said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, tmp_path / "out", *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "mocap.npz").exists()


def test_folders_without_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none", tmp_path / "out") == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "a.fbx").write_text("")
    assert run(tmp_path, tmp_path / "out") == 2
    assert "it holds files ending in .fbx" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_names_stay_apart(tmp_path: Path) -> None:
    values = made.bvh_values(30, 30.0)
    source = tmp_path / "raw"
    source.mkdir()
    (source / "walk.bvh").write_text(made.bvh_text(values, "0.033333"))
    (source / "walk.asf").write_text(made.asf_text())
    (source / "walk.amc").write_text(made.amc_text(made.amc_values(61)))
    assert run(source, tmp_path / "out") == 0
    assert read_pack(tmp_path / "out" / "mocap.npz").names == ("walk.amc", "walk.bvh")
    assert data_mocap.PACK_NAME == "mocap.npz"
