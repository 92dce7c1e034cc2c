"""Terminals: every text is written where the locale isn't Unicode too, and slow loading is told."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mgrpo.terminal.encoding import plain, write_anywhere
from mgrpo.terminal.loading import loading_shown

ROOT = Path(__file__).resolve().parents[3]


def test_plain_spellings() -> None:
    assert plain("149.3 ± 2.2 m/s³ ↓ – −1 µm") == "149.3 +- 2.2 m/s3 v - -1 um"
    assert plain("┏━┳┓│✓ Käse ⠋ 漢\u202f1") == "+-++|ok Kase * ? 1"


@pytest.mark.parametrize(
    ("encoding", "written"),
    [("ascii", b"a +- b v \xff"), ("latin-1", b"a \xb1 b v \xff"), ("utf-8", "a ± b ↓ ".encode() + b"\xff")],
)
def test_streams_take_every_text(monkeypatch: pytest.MonkeyPatch, encoding: str, written: bytes) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="surrogateescape")
    monkeypatch.setattr(sys, "stdout", stream)
    write_anywhere()
    print("a ± b ↓ \udcff", end="", flush=True)
    assert raw.getvalue() == written


def test_the_command_answers_without_unicode() -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    environment.pop("PYTHONIOENCODING", None)
    done = subprocess.run(
        [sys.executable, "-m", "mgrpo", "doctor"], env=environment, capture_output=True, timeout=300, check=False
    )
    assert b"UnicodeEncodeError" not in done.stderr
    assert done.returncode in (0, 2), done.stderr
    assert b" ok " in done.stdout
    for text in (done.stdout, done.stderr):
        assert text.isascii() and b"\\u" not in text and b"\x1b" not in text and b"\r" not in text


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "setting", "takes", "told"),
    [
        (_Terminal, "", 0.5, True),
        (_Terminal, "", 0.0, False),
        (_Terminal, "off", 0.5, False),
        (io.StringIO, "", 0.5, False),
    ],
)
def test_slow_loading_is_told_on_a_terminal_and_wiped(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], setting: str, takes: float, told: bool
) -> None:
    written = stream()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setenv("MGRPO_PROGRESS", setting)
    with pytest.raises(ImportError), loading_shown(after=0.1 if takes else 60.0):
        time.sleep(takes)
        assert written.getvalue() == ("loading ..." if told else "")
        raise ImportError
    assert (written.getvalue().split("\r")[1:] == [" " * len("loading ..."), ""]) == told
    assert told or not written.getvalue()
