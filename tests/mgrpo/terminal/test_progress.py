"""Progress lines and bars, and the polite reaction to Ctrl-C."""

from __future__ import annotations

import io
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgrpo.errors import InputError
from mgrpo.runs.run_dir import RunDir
from mgrpo.terminal import progress as progress_module
from mgrpo.terminal.interrupt import SAME_REQUEST_S, TrainingInterrupted, graceful_interrupt
from mgrpo.terminal.progress import Progress, display_mode, format_rate, format_seconds, notice


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    # not sys.stderr itself: pytest puts its own there again between this fixture and the test
    monkeypatch.setattr(progress_module, "sys", SimpleNamespace(stderr=stream, stdout=io.StringIO()))
    monkeypatch.setenv("MGRPO_PROGRESS", "plain")
    return stream


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; a generous limit turns a hang into a failure."""
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def test_first_and_last_line(stderr: io.StringIO) -> None:
    with Progress("prior", 3) as progress:
        for number in range(3):
            progress.update(loss=0.5 / (number + 1), reward=1)
    lines = stderr.getvalue().splitlines()
    assert lines[0].startswith("prior  0/3 it  0 %")
    assert lines[-1].startswith("prior  done: 3 it in 0:00") and lines[-1].endswith("loss 0.1667  reward 1")


def test_lines_keep_coming_inside_one_long_step(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress_module.PLAIN_INTERVAL < 2
    monkeypatch.setenv("MGRPO_PROGRESS", "plain:0.01")
    with Progress("grpo", 5, "iterations") as progress:
        progress.update(reward=2.5)
        seen = len(stderr.getvalue().splitlines())
        wait_for(lambda: len(stderr.getvalue().splitlines()) >= seen + 3)
        assert stderr.getvalue().splitlines()[-1].startswith("grpo  1/5 iterations  20 %  reward 2.5")
    assert "stopped: 1/5 iterations" in stderr.getvalue().splitlines()[-1]


def test_lines_are_not_printed_at_every_update(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGRPO_PROGRESS", "plain:1000")
    with Progress("prior", 500) as progress:
        for _ in range(500):
            progress.update()
    assert len(stderr.getvalue().splitlines()) == 2


def test_nested_progress_names_the_outer_one(stderr: io.StringIO) -> None:
    with Progress("demo", 2, "stages") as outer:
        with Progress("prior", 1) as inner:
            inner.update()
        outer.update()
        with Progress("evaluate") as inner:
            inner.update(4)
        outer.update()
    lines = stderr.getvalue().splitlines()
    assert any(line.startswith("demo 0/2 > prior  done: 1 it") for line in lines)
    assert any(line.startswith("demo 1/2 > evaluate  done: 4 it") for line in lines)
    assert lines[-1].startswith("demo  done: 2 stages")


def test_an_exception_passes_and_the_display_ends(stderr: io.StringIO) -> None:
    with pytest.raises(ZeroDivisionError), Progress("outer", 2), Progress("inner", 2) as progress:
        progress.update()
        raise ZeroDivisionError
    lines = stderr.getvalue().splitlines()
    assert lines[-2].startswith("outer 0/2 > inner  stopped: 1/2 it") and lines[-1].startswith("outer  stopped: 0/2 it")
    assert not any(thread.name == "mgrpo-progress" for thread in threading.enumerate())
    assert not progress_module._DISPLAY.active


def test_off_prints_nothing_but_notices(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGRPO_PROGRESS", "off")
    with Progress("prior", 2) as progress:
        progress.update()
        notice("look here")
    assert stderr.getvalue() == "look here\n"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("MGRPO_PROGRESS", raising=False)
    assert display_mode()[0] == "rich"
    with Progress("stages [1]", 2) as outer:
        with Progress("grpo", 4) as progress:
            progress.update(2, reward=1.25)
            wait_for(lambda: "2/4" in terminal.getvalue() and "reward 1.25" in terminal.getvalue())
            notice("a notice with [brackets]")
        outer.update(2)
    text = terminal.getvalue()
    assert "━" in text and "a notice with [brackets]\n" in text and "stages [1] 0/2 > grpo  stopped: 2/4 it" in text
    assert "stages [1]  done: 2 it" in text


def test_a_bar_keeps_its_line_and_its_count_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    for name, value in (("MGRPO_PROGRESS", "rich"), ("TERM", "xterm"), ("COLUMNS", "40"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    with Progress("prior", total=300) as progress:
        for _ in range(4):
            progress.update(50, loss=0.123456, reward=1.23456)
            time.sleep(0.3)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    bars = [line for line in re.split(r"[\r\n]+", shown) if "stopped" not in line and line.strip()]
    assert len(bars) > 2
    assert all("/300" in line for line in bars), bars


def test_mode_of_the_environment(monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO) -> None:
    for value, expected in (("plain", "plain"), ("RICH", "rich"), ("off", "off"), ("auto", "plain"), ("", "plain")):
        monkeypatch.setenv("MGRPO_PROGRESS", value)
        assert display_mode() == (expected, progress_module.PLAIN_INTERVAL)
    monkeypatch.setenv("MGRPO_PROGRESS", "plain:30")
    assert display_mode() == ("plain", 30.0)
    for value in ("loud", "plain:", "plain:-1", "rich:3"):
        monkeypatch.setenv("MGRPO_PROGRESS", value)
        with pytest.raises(InputError, match=r"MGRPO_PROGRESS must be off, plain"):
            Progress("x").__enter__()
        assert not progress_module._DISPLAY.active


def test_a_closed_stream_does_not_stop_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("MGRPO_PROGRESS", "plain:0.001")
    with Progress("x", 2) as progress:
        stream.close()
        progress.update(2)
    assert progress.done == 2


def test_rate_and_time_left_of_a_resumed_run(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    progress = Progress("prior", 100, start=60)
    assert progress.rate is None and progress.time_left is None
    for _ in range(10):
        now += 0.5
        progress.update()
    assert progress.done == 70 and progress.rate == pytest.approx(2.0) and progress.time_left == pytest.approx(15.0)
    now += 0.25
    assert progress.time_left == pytest.approx(14.75)
    for _ in range(30):  # twice as slow: the old speed is forgotten after a while
        now += 1.0
        progress.update()
    assert progress.rate == pytest.approx(1.0, rel=0.05) and progress.time_left == 0.0


@given(st.floats(0, 1e6))
def test_seconds_as_text(seconds: float) -> None:
    parts = [int(part) for part in format_seconds(seconds).split(":")]
    total = sum(part * 60**power for power, part in enumerate(reversed(parts)))
    assert abs(total - seconds) <= 0.5 and all(part < 60 for part in parts[1:])


def test_rates_as_text() -> None:
    assert format_rate(12.345, "it") == "12.3 it/s" and format_rate(0.25, "it") == "4 s/it"
    assert format_rate(12345.6, "it") == "12346 it/s" and format_rate(0.0001, "it") == "10000 s/it"


# --- stopping


def stop_self(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0)  # the handler runs between two byte codes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_loop_saves(
    number: signal.Signals, tmp_path: Path, stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(number)
    saved = []
    run = RunDir.create(tmp_path / "run", {"a": 1}, command=["mgrpo", "train", "prior"], tensorboard=False)
    with (
        pytest.raises(
            TrainingInterrupted, match=r"stopped by SIG.*; continue with: mgrpo train prior --resume"
        ) as caught,
        run,
        graceful_interrupt(run) as stop,
        Progress("prior", 5) as progress,
    ):
        for iteration in range(5):
            if iteration == 2:
                stop_self(number)
            stopping = stop.requested
            progress.update()
            if stopping:
                saved.append(iteration)
                break
    assert saved == [2] and caught.value.number == number and isinstance(caught.value, KeyboardInterrupt)
    assert signal.getsignal(number) is before
    text = stderr.getvalue()
    assert "stopping after this iteration and saving" in text and "continue with: mgrpo train prior --resume" in text
    RunDir.create(tmp_path / "run", {"a": 1}, resume=True, tensorboard=False).close()  # the folder was freed


def test_the_second_interrupt_ends_at_once() -> None:
    reached, before = False, signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it
    with pytest.raises(KeyboardInterrupt) as caught, graceful_interrupt() as stop:
        stop_self(signal.SIGINT)
        assert stop.requested
        stop_self(signal.SIGTERM)  # torchrun and a batch system passed it on as well
        time.sleep(SAME_REQUEST_S)
        stop_self(signal.SIGINT)
        reached = True
    assert not reached and not isinstance(caught.value, TrainingInterrupted)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_after_that_of_another_process_is_no_second_one() -> None:
    """The loop has learned from the others that it is to end; its own signal comes while it saves."""
    saved = False
    with pytest.raises(TrainingInterrupted), graceful_interrupt() as stop:
        stop.number = int(signal.SIGTERM)
        stop_self(signal.SIGTERM)
        saved = True
    assert saved


def test_without_a_signal_nothing_happens_and_other_errors_pass() -> None:
    with graceful_interrupt() as stop:
        assert not stop.requested
    with pytest.raises(ZeroDivisionError), graceful_interrupt():
        stop_self(signal.SIGINT)
        raise ZeroDivisionError


def test_outside_the_main_thread_it_changes_nothing() -> None:
    results: list[bool] = []

    def work() -> None:
        with graceful_interrupt() as stop:
            results.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [False]


def test_a_message_without_a_display_goes_out_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TrainingInterrupted), graceful_interrupt():
        stop_self(signal.SIGINT)
        assert "SIGINT: stopping after this iteration" in capfd.readouterr().err
