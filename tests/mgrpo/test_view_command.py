"""The command `mgrpo view`: what it writes, what it says, and what it refuses before it has written anything."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mgrpo import cli
from mgrpo.commands import view
from mgrpo.data import save_clip
from mgrpo.viz import film, live
from mgrpo.viz.film import Look
from mgrpo.viz.live import have_viser
from mgrpo.viz.mp4 import have_mp4_encoder
from tests.mgrpo import view_motion as motion

needs_encoder = pytest.mark.skipif(not have_mp4_encoder(), reason="the package imageio-ffmpeg is not installed")
needs_viser = pytest.mark.skipif(not have_viser(), reason="the package viser is not installed (pip install viser)")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run `mgrpo view` in an empty folder; exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        code = cli.main(["view", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, re.sub(r"\s*[│╭╮╰╯─]+\s*", " ", captured.err)

    return call


@pytest.fixture
def predictions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("predictions")
    return [
        motion.write_prediction(folder / f"walk_{name}.npz", size=size, samples=2, seed=seed)
        for seed, (name, size) in enumerate((("a", 0.2), ("b", 0.1)))
    ]


@needs_encoder
def test_everything_that_can_be_written(run: Run, predictions: list[Path], tmp_path: Path) -> None:
    code, out, err = run(
        *predictions, "--names", "prior", "post-trained", "--truth", "demo", "--clip", "walk", "--seconds", "0.3",
        "--html", "new/a.html", "--video", "new/a.mp4", "--png", "new/a.png", "--at", "0.1", "0.2",
        "--width", "700", "--height", "400", "--theme", "dark", "--show", "both", "--layout", "overlay",
    )  # fmt: skip
    assert code == 0, err
    names = ["a.html", "a_0000.10s.png", "a_0000.20s.png", "a.mp4"]
    assert out.split() == [f"new/{name}" for name in names]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(names)
    assert "walk_a.npz: read as EgoAllo output" in err and "brought together by frame numbers" in err
    data = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "new/a.html").read_text())[1])
    assert [actor["name"] for actor in data["actors"]] == ["ground truth", "prior", "post-trained"]
    assert (data["show"], data["layout"], data["frames"], data["title"]) == ("both", "overlay", 10, "walk")
    picture = Image.open(tmp_path / "new/a_0000.10s.png")
    assert picture.size == (700, 400) and sum(picture.getpixel((0, 0))) < 200
    before = (tmp_path / "new/a.html").read_text()
    assert run(*predictions, "--html", "new/a.html")[0] == 0
    assert (tmp_path / "new/a.html").read_text() != before


def test_one_picture_shows_the_middle(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Look, Path, int]] = []
    monkeypatch.setattr(view, "write_still", lambda stage, look, path, frame: drawn.append((look, path, frame)))
    assert run("demo", "--clip", "walk", "--png", "a.png")[0] == 0
    assert run("demo", "--clip", "walk", "--png", "a.png", "--at", "1.0", "--show", "skeleton")[0] == 0
    assert [(path.name, frame) for _, path, frame in drawn] == [("a.png", 18), ("a.png", 30)]
    assert drawn[0][0] == Look() and drawn[1][0] == Look(show="skeleton")


def test_a_sample_is_chosen(run: Run, predictions: list[Path], tmp_path: Path) -> None:
    assert run(*predictions, "--sample", "1", "--html", "a.html")[0] == 0
    data = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "a.html").read_text())[1])
    assert [actor["numbers"] for actor in data["actors"]] == [[1, 0], [1, 0]]
    code, out, err = run(*predictions, "--sample", "2", "--html", "b.html")
    assert code == 2 and "walk_a.npz holds 2 samples, 0 to 1" in " ".join(err.split())
    assert out == "" and not (tmp_path / "b.html").exists()


def test_names_come_from_the_paths(run: Run, predictions: list[Path], tmp_path: Path) -> None:
    assert run(*predictions, "--html", "a.html")[0] == 0
    data = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "a.html").read_text())[1])
    assert [(actor["name"], actor["truth"]) for actor in data["actors"]] == [("walk_a", False), ("walk_b", False)]


@pytest.mark.parametrize("name", ["<img src=x onerror=run()> 名前 😀.npz", "na\udcffme.npz"])
def test_any_name_of_a_file_is_only_text(run: Run, predictions: list[Path], tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(predictions[0].read_bytes())
    code, _, err = run(name, "--html", "a.html", "--png", "a.png", "--width", "400", "--height", "320")
    assert code == 0, err
    text = (tmp_path / "a.html").read_text("utf-8")
    assert "<img" not in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert data["actors"][0]["name"] == name.removesuffix(".npz").replace("\udcff", "?")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give a file to show, or `demo`"),
        (["missing.npz", "--png", "a.png"], "missing.npz: no such file; expected a motion file"),
        (["text.npz", "--png", "a.png"], "text.npz: not a motion file of a known format"),
        (["demo", "--names", "a", "b"], "--names: 2 names for 1 files; give one for each, or none"),
        (["demo", "demo", "--names", "a", "a"], "--names: the names must differ, got a a"),
        (["demo", "--names", " "], "--names: a name is empty"),
        (["demo", "demo", "--png", "a.png"], "a file was given twice"),
        (["demo", "--clip", "fly", "--png", "a.png"], "--clip: demo has no motion called 'fly'. It has: backflip"),
        (["demo", "--html", "a.txt"], "--html a.txt: the name must end in .html or .htm"),
        (["demo", "--video", "a.gif"], "--video a.gif: the name must end in .mp4"),
        (["demo", "--png", "a.jpg"], "--png a.jpg: the name must end in .png"),
        (["demo", "--png", "folder.png"], "--png folder.png: a folder; name a file"),
        (["demo", "--png", "a.png", "--at", "50"], "--at 50: the motion shown has 0.00 to 1.73 s"),
        (["demo", "--png", "a.png", "--at", "nan"], "--at takes times in seconds from 0 on, got nan"),
        (["demo", "--at", "1"], "--at has no effect without --png; leave it out"),
        (["demo", "--width", "900"], "--width has no effect without --video or --png; leave it out"),
        (["demo", "--png", "a.png", "--port", "81"], "--port has no effect where a file is written"),
        (["demo", "--truth-up", "y", "--png", "a.png"], "--truth-up has no effect without --truth"),
        (["demo", "--png", "a.png", "--width", "100"], "--width must be at least 320 pixels, got 100"),
        (["demo", "--png", "a.png", "--start", "-1"], "--start must be at least 0, got -1.0"),
        (["demo", "--png", "a.png", "--start", "60"], "--start 60 is after the end: the motion has 1.73 s"),
        (["demo", "--png", "a.png", "--seconds", "nan"], "--seconds must be finite, got nan"),
        (["demo", "--png", "a.png", "--sample", "-1"], "--sample must be at least 0, got -1"),
        (["demo", "--png", "a.png", "--sample", "1"], "--sample 1: no file shown holds several samples"),
        (["demo", "--png", "a.png", "--samples", "0"], "--samples must be at least 1, got 0"),
        (["demo", "--png", "a.png", "--fps", "1e9"], "--fps must be 0.1 to 10000 frames per second, got 1e+09"),
        (["demo", "--port", "70000"], "--port must be at most 65535, got 70000"),
        (["demo", "--png", "a.png", "--body", "robot"], "unknown body 'robot'"),
        (["demo", "--html", "run/a.html"], "is the folder of a training run"),
        ([f"{number}.npz" for number in range(17)], "shows at most 16 files at once, got 17"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(
    run: Run, tmp_path: Path, words: list[str], said: str
) -> None:
    (tmp_path / "text.npz").write_text("no motion")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.resolved.yaml").write_text("")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    code, out, err = run(*words)
    assert code == 2 and said in " ".join(err.split()), err
    assert out == "" and sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_a_new_folder_goes_again_where_reading_fails(run: Run, tmp_path: Path) -> None:
    assert run("missing.npz", "--png", "new/deep/a.png")[0] == 2
    assert not (tmp_path / "new").exists()
    assert run("demo", "--png", "new/deep/a.png", "--html", "other/a.html", "--at", "50")[0] == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "name"), [("--png", "new/a.png"), ("--video", "new/a.mp4"), ("--html", "new/a.html")]
)
def test_a_full_disk_is_told_with_the_file_and_leaves_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str, name: str
) -> None:
    def full(*words: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(view, "have_mp4_encoder", lambda: True)
    monkeypatch.setattr(view, "write_still", full)
    monkeypatch.setattr(view, "write_film", full)
    monkeypatch.setattr("mgrpo.storage.write_and_sync", full)
    code, out, err = run("demo", "--clip", "walk", option, name)
    assert code == 2 and out == "" and f"could not write {name}: the disk is full" in " ".join(err.split())
    assert not (tmp_path / "new").exists()


@needs_encoder
def test_ctrl_c_during_a_film_leaves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    draw, drawn = film.StagePainter.picture, []

    def picture(self: Any, frame: int) -> Any:
        drawn.append(sorted(path.name[:5] for path in (tmp_path / "new").iterdir()))
        if frame == 3:
            raise KeyboardInterrupt
        return draw(self, frame)

    monkeypatch.setattr(film.StagePainter, "picture", picture)
    words = ("demo", "--clip", "walk", "--video", "new/a.mp4", "--width", "400", "--height", "320")
    code, out, err = run(*words)
    assert code == 130 and "interrupted" in err and out == ""
    assert drawn[-1] == [".tmp-"] and not (tmp_path / "new").exists()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.mp4").write_bytes(b"an older film")
    assert run(*words)[0] == 130
    assert [path.read_bytes() for path in (tmp_path / "new").iterdir()] == [b"an older film"]


def test_without_the_extra_the_browser_is_refused_but_files_are_written(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "have_viser", lambda: False)
    code, out, err = run("demo")
    assert code == 2 and out == "" and "pip install 'mgrpo[viewer]'" in err
    assert "read motion" not in err  # said before the work
    assert run("demo", "--html", "a.html")[0] == 0


def test_without_an_encoder_a_film_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "have_mp4_encoder", lambda: False)
    code, _, err = run("demo", "--video", "a.mp4")
    assert code == 2 and "--video needs the package imageio-ffmpeg" in err and "read motion" not in err


def test_a_port_in_use_is_refused_before_the_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "have_viser", lambda: True)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        code, _, err = run("demo", "--port", holder.getsockname()[1])
    assert code == 2 and "is free" in err and "read motion" not in err


def test_options_reach_the_reader(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    walk = motion.clips()["walk"]
    save_clip(tmp_path / "walk.npz", dataclasses.replace(walk, name="other"))
    seen: dict[str, Any] = {}

    def note(files: Any, names: Any, truth: Any, body: Any, **options: Any) -> Any:
        seen.update(options, files=files, truth=truth, body=body.name)
        raise view.InputError("seen")

    monkeypatch.setattr(view, "read_stage", note)
    words = [
        "a.npz",
        "--truth",
        "t.npz",
        "--fps",
        "25",
        "--up",
        "y",
        "--unit",
        "cm",
        "--truth-fps",
        "60",
        "--truth-up",
        "z",
        "--truth-unit",
        "mm",
    ]
    assert run(*words, "--samples", 3, "--start", 2, "--seconds", 4, "--html", "a.html")[0] == 2
    told, truth = seen["options"], seen["truth_options"]
    assert (told.fps, told.up, told.unit) == (25, "y", "cm") and (truth.fps, truth.up, truth.unit) == (60, "z", "mm")
    assert truth.flag("fps") == "--truth-fps" and told.flag("fps") == "--fps"
    assert (seen["samples"], seen["start"], seen["seconds"], seen["body"]) == (3, 2, 4, "default")


def test_the_viewer_is_served_until_it_is_stopped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    class Server:
        url = "http://localhost:1234"

        def __init__(self, stage: Any, look: Look, *, host: str, port: int) -> None:
            ended.append(f"{stage.title} {look.show} {look.dark} {host}")

        def run(self) -> None:
            raise KeyboardInterrupt

        def close(self) -> None:
            ended.append("closed")

    monkeypatch.setattr(live, "have_viser", lambda: True)
    monkeypatch.setattr(view, "LiveViewer", Server)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code, out, _ = run("demo", "--clip", "walk", "--theme", "dark", "--show", "skeleton", "--port", port)
    assert code == 0 and out == "http://localhost:1234 shows walk; Ctrl-C ends\nended\n"
    assert ended == ["walk skeleton True 127.0.0.1", "closed"]


@needs_viser
@pytest.mark.slow
def test_the_real_server_answers_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    import urllib.request

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "mgrpo", "view", "demo", "--clip", "walk", "--port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).resolve().parents[1])},
    )  # fmt: skip
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"http://localhost:{port} shows walk; Ctrl-C ends\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
            assert answer.status == 200 and b"<html" in answer.read(2000).lower()
        process.send_signal(signal.SIGINT)
        assert process.stdout.read().strip() == "ended" and process.wait(timeout=60) == 0
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
