"""Bad recordings of every kind, as a user of `mgrpo infer` meets them: what is said, that it says what to do, and that
nothing is left where nothing could be made."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgrpo.cli import main
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.runs.run_dir import RunDir
from tests.mgrpo import head_files as files

TINY = DenoiserConfig(
    d_latent=16, d_feedforward=32, d_noise_emb=8, num_heads=2, encoder_layers=1, decoder_layers=1, include_hands=False
)
TIMES = np.arange(120) / 60
QUATS, PLACES = files.y_up_viewer(files.head(TIMES))
HEADER = "t,qw,qx,qy,qz,x,y,z"


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "prior"
    with RunDir.create(folder, TINY) as run:
        run.save(1, model=Denoiser(TINY, seed=1), model_config=TINY)
    return folder


def infer(source: Path, prior: Path, out: Path, words: list[str], capsys: Any) -> tuple[int, str]:
    quick = ["--kernel", "ddim", "--steps", "2", "--window", "32", "--guidance.mode", "off"]
    code = main(["infer", str(source), "--model", str(prior), "-o", str(out / "o.npz"), *quick, *words])
    return code, " ".join(capsys.readouterr().err.split())


def table(folder: Path, times: np.ndarray = TIMES, quats: np.ndarray = QUATS, places: np.ndarray = PLACES) -> Path:
    return files.write_csv(folder / "a.csv", HEADER, times, quats, places)


def changed(values: np.ndarray, rows: slice, by: Any) -> np.ndarray:
    values = values.copy()
    values[rows] += by
    return values


def backwards(times: np.ndarray) -> np.ndarray:
    times = times.copy()
    times[50:60] = times[49:39:-1]
    return times


@pytest.mark.parametrize(
    ("make", "words", "said"),
    [
        (lambda d: table(d, backwards(TIMES)), [], "time goes backwards in 9 of 120 rows .* they were left out"),
        (lambda d: table(d, changed(TIMES, slice(60, None), 3.0)), [], "gap(s) without poses: 0.98 to 4.00 s"),
        (lambda d: table(d, changed(TIMES, slice(60, None), 3.0)), [], "--max-gap bridges longer ones"),
        (lambda d: table(d, places=changed(PLACES, slice(60, None), [2, 0, 0])), [], "jumps 1 time(s) .* --cut-jumps"),
        (lambda d: table(d, places=1000 * PLACES), [], "Positions look like mm: give --unit mm"),
        (lambda d: table(d, places=100 * PLACES), [], "Positions look like cm: give --unit cm"),
        (table, ["--axes", "cpf"], "does not stand upright. It does with --axes openxr"),
        (table, ["--axes", "aria"], "gravity axis: .* Was the right --axes named"),
    ],
)
def test_what_is_strange_is_told(
    make: Callable[[Path], Path], words: list[str], said: str, prior: Path, tmp_path: Path, capsys: Any
) -> None:
    code, error = infer(make(tmp_path), prior, tmp_path / "out", words or ["--axes", "openxr"], capsys)
    assert code == 0 and "WARNING" in error and (tmp_path / "out" / "o.npz").exists()
    place = 0
    for part in said.split(" .* "):
        place = error.find(part, place)
        assert place >= 0, error


def raw(name: str, content: bytes | str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path if "/" not in name else folder / name.split("/")[0]

    return make


def cut(name: str, write: Callable[[Path], object]) -> Callable[[Path], Path]:
    """A file of which the second half is missing."""

    def make(folder: Path) -> Path:
        write(folder / name)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
        return folder / name

    return make


def _zipped(path: Path) -> None:
    path.write_bytes(gzip.compress(table(path.parent).read_bytes()))


ROWS = np.concatenate((TIMES[:, None], QUATS, PLACES), axis=1)
ARRAYS = {"t": TIMES, "wxyz": QUATS, "xyz": PLACES}
MPS = "mps/closed_loop_trajectory.csv"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda d: table(d, TIMES[::-1]), "time goes backwards in 119 of 120 rows, first in row 2; sort the rows"),
        (lambda d: table(d, 1000 * TIMES), "its poses are 16.7 s apart. .* (--max-gap); if not .* give --time-unit"),
        (lambda d: table(d, np.rint(1e9 * TIMES) + 1.7e18), "is the unit right? See --time-unit"),
        (lambda d: table(d, 0 * TIMES), "all 120 head poses have one time; name the column that is the time"),
        (lambda d: table(d, places=changed(PLACES, slice(60, 61), np.nan)), "column x is not finite in data row 61"),
        (lambda d: table(d, quats=2 * QUATS), "the quaternion of row 1 has length 2.0000, not 1"),
        (lambda d: table(d, TIMES[:1], QUATS[:1], PLACES[:1]), "1 head pose(s); at least 2 are needed"),
        (lambda d: table(d, TIMES[:2], QUATS[:2], PLACES[:2]), "no stretch of three poses at 30 Hz"),
        (raw("a.csv", HEADER + "\n"), "0 head pose(s); at least 2 are needed. Is the recording cut off?"),
        (raw("a.csv", ""), "the file is empty; expected a table of head poses"),
        (raw("a.csv", "a,b,c,d,e,f,g,h\n1,1,0,0,0,0,0,1\n"), "no column is a time: expected .* the header has: a, b"),
        (raw("a.csv", bytes(range(256)) * 9), "not a line of a table of head poses; is the file damaged?"),
        (raw("a.npz", ""), "not an npz file (or a damaged one)"),
        (raw("a.npy", ""), "not an array of numbers"),
        (raw("a.json", ""), "not valid JSON"),
        (cut("a.csv", lambda path: table(path.parent)), "values, the header has 8; the file is cut off"),
        (cut("a.csv.gz", _zipped), "ended before .* Download it again"),
        (cut("a.npz", lambda path: np.savez(path, **ARRAYS)), "not an npz file (or a damaged one)"),
        (cut("a.npy", lambda path: np.save(path, ROWS)), "not an array of numbers"),
        (cut("a.json", lambda path: path.write_text(json.dumps({k: v.tolist() for k, v in ARRAYS.items()}))),
         "is the file cut off?"),
        (raw("mps/other.txt", "x"), "no closed_loop_trajectory.csv below it. Give the folder with the recording's MPS"),
        (raw("mps/semidense_points.csv.gz", "x"), "no closed_loop_trajectory.csv below it"),
        (raw(MPS, ""), "the file is empty; expected a device trajectory"),
        (raw(MPS, "graph_uid,tracking_timestamp_us\n1,2\n"), "a device trajectory needs the column"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(
    make: Callable[[Path], Path], said: str, prior: Path, tmp_path: Path, capsys: Any
) -> None:
    source = make(tmp_path)
    words = [] if source.is_dir() else ["--axes", "openxr"]
    code, error = infer(source, prior, tmp_path / "out", words, capsys)
    assert code == 2 and "Traceback" not in error and not (tmp_path / "out").exists()
    place = 0
    for part in said.split(" .* "):
        place = error.find(part, place)
        assert place >= 0, error
