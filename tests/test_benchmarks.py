"""The benchmarks' own arithmetic: what counts as a sample, what a row says, who passes a gate, what is drawn."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import check, gate, gpu, gpu_calls, harness, machine, peers, plot, readme, requirement, results, run
from benchmarks.checks import all_requirements
from benchmarks.harness import CpuClock, Plan, Sample, measure, summarise
from benchmarks.ops import (
    forward_kinematics,
    guidance,
    metrics,
    noise,
    perlin,
    policy,
    procrustes,
    project_so3,
    rewards,
    sde,
    stitching,
)
from benchmarks.results import Row, read_rows, write_by_op, write_rows
from benchmarks.suite import COPY, Options, Suite, as_float64, compare
from benchmarks.suite import run_all as run_workloads
from benchmarks.workload import COMPILED, REFERENCE, Implementation, Workload, all_workloads, first_rows

ROOT = Path(__file__).resolve().parents[1]


def row(**changes: Any) -> Row:
    """A measured row."""
    start = Row(
        op="project_so3", workload="so3_near_104k", title="SO(3) projection, near rotations", size="104,448 matrices",
        items=104_448, item="matrix", gradient="no", implementation=REFERENCE, kind="reference", version="",
        mode="call", status="ok", note="", samples=7, p20_us=90.0, median_us=100.0, p80_us=110.0, ns_per_item=1.0,
        gb_per_s=2.0, copy_gb_per_s=4.0, bound="bytes", bound_share=0.5, max_abs_error=1e-7, relative_error=2e-7,
        date="2026-01-02",
        commit="0123456789ab", dirty="no", device="cpu-x86-64-avx2", cpu="x86-64, AVX2, 2 CPUs", threads="2",
        python="3.11.7", torch="2.13.0", triton="", cuda="", driver="",
    )  # fmt: skip
    return replace(start, **changes)


def measured(**times: float) -> list[Row]:
    """Rows of one workload: microseconds by kind."""
    names = {"ours": "mgrpo cpp", "reference": REFERENCE, "compile": COMPILED, "peer": "roma"}
    return [
        row(implementation=names[kind], kind=kind, median_us=time, ns_per_item=time) for kind, time in times.items()
    ]


# --- samples


class FakeClock:
    """A clock whose calls return how long they take; notes the order of samples."""

    def __init__(self, others: Callable[[int], float] = lambda number: 0.0) -> None:
        self.order: list[tuple[str, int, int]] = []
        self.others = others

    def seconds(self, call: Callable[[], Any]) -> float:
        return call()[1]

    def sample(self, calls: Sequence[Callable[[], Any]], repeats: int, start: int) -> Sample:
        name, seconds = calls[start % len(calls)]()
        self.order.append((name, repeats, start))
        return Sample(seconds, self.others(len(self.order)))


def constant(name: str, seconds: float) -> list[Callable[[], Any]]:
    return [lambda: (name, seconds), lambda: (name, seconds)]


def test_rounds_are_interleaved_and_turn() -> None:
    clock = FakeClock()
    timings, failures = measure({"a": constant("a", 1e-3), "b": constant("b", 2e-3)}, clock, Plan(rounds=3))
    assert [name for name, _, _ in clock.order] == ["a", "b", "b", "a", "a", "b"]
    assert [start for name, _, start in clock.order if name == "a"] == [0, 1, 2], "calls turn through the inputs"
    assert timings["a"].median == 1e-3 and timings["b"].median == 2e-3 and not failures
    assert not timings["a"].busy and timings["a"].samples == 3


def test_a_sample_lasts_as_long_as_wanted() -> None:
    clock = FakeClock()
    measure({"a": constant("a", 1e-3), "b": constant("b", 10.0)}, clock, Plan(rounds=5, sample_seconds=0.06))
    assert {repeats for name, repeats, _ in clock.order if name == "a"} == {60}
    slow = [repeats for name, repeats, _ in clock.order if name == "b"]
    assert slow == [1] * harness.LEAST_CLEAN, "one call is enough, and three of them"


def test_disturbed_samples_do_not_count() -> None:
    clock = FakeClock(others=lambda number: 0.5 if number % 2 else 0.0)
    timings, _ = measure({"a": constant("a", 1e-3)}, clock, Plan(rounds=4))
    assert timings["a"].samples == 4 and not timings["a"].busy
    assert len(clock.order) == 8


def test_a_machine_that_is_never_idle_is_said_to_be_busy() -> None:
    clock = FakeClock(others=lambda number: 0.9)
    timings, _ = measure({"a": constant("a", 1e-3)}, clock, Plan(rounds=4, most_samples=6))
    assert timings["a"].busy and len(clock.order) == 6


def test_the_time_is_bounded_but_everyone_is_sampled() -> None:
    ticks = itertools.count(0, 10)
    clock = FakeClock(others=lambda number: 0.9)
    plan = Plan(rounds=4, seconds=5, clock_now=lambda: next(ticks))
    timings, _ = measure({"a": constant("a", 1e-3), "b": constant("b", 1e-3)}, clock, plan)
    assert set(timings) == {"a", "b"} and len(clock.order) == 2


def test_who_raises_is_named_and_the_rest_measured() -> None:
    def broken() -> Any:
        raise RuntimeError("no such kernel\nsecond line")

    later = iter([("late", 1e-3)] * 5)
    timings, failures = measure(
        {"broken": [broken], "late": [lambda: next(later)], "fine": constant("fine", 1e-3)}, FakeClock(), Plan(rounds=9)
    )
    assert failures["broken"] == "RuntimeError: no such kernel"
    assert failures["late"].startswith("StopIteration") and set(timings) == {"fine"}


def test_percentiles() -> None:
    timing = summarise([Sample(float(value), 0.0) for value in (5, 1, 2, 4, 3, 6)] + [Sample(99.0, 0.3)])
    assert (timing.median, timing.p20, timing.p80, timing.samples) == (3.5, 2.0, 5.0, 6)
    few = summarise([Sample(1.0, 0.0), Sample(2.0, 0.0), Sample(9.0, 1.0)])
    assert few.busy and few.samples == 3 and few.median == 2.0


def test_others_are_what_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, own, wall = iter([10.0, 10.5]), iter([3.0, 3.3]), iter([0.0, 0.5])
    monkeypatch.setattr(harness, "machine_busy_seconds", lambda: next(busy))
    monkeypatch.setattr(harness, "own_cpu_seconds", lambda: next(own))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(wall))
    done = []
    sample = CpuClock().sample([lambda: done.append("a"), lambda: done.append("b")], 4, 1)
    assert done == ["a", "b", "a", "b", "a"]  # the first is not timed
    assert sample.seconds == 0.125 and sample.others == pytest.approx(0.4) and not sample.clean


def test_reading_the_machines_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.os, "sysconf", lambda name: 100)
    path = tmp_path / "stat"
    path.write_text("cpu  100 20 30 9999 8888 4 5 600 7 8\ncpu0 1 2 3\n")
    assert harness.machine_busy_seconds(path) == 7.59, "idle and waiting do not count, stolen time does"
    assert harness.machine_busy_seconds(tmp_path / "none") is None


# --- what is compared


def test_comparison_with_float64() -> None:
    exact = {"x": torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64), "y": torch.zeros(0)}
    got = {"x": torch.tensor([[3.0, 4.5], [0.0, 0.0], [7.0, 7.0]]), "z": torch.ones(1)}
    assert compare(got, exact) == (0.5, 0.1), "further rows and names are not compared"
    assert compare({"z": torch.ones(1)}, exact) == (None, None)
    assert compare(got, None) == (None, None) and compare(object(), None) == (None, None)
    assert compare({"x": torch.full((2, 2), float("nan"))}, exact) == (float("inf"), float("inf"))
    undefined = {"x": torch.tensor([float("nan"), 1.0], dtype=torch.float64)}
    assert compare({"x": torch.tensor([float("nan"), 1.0])}, undefined) == (0.0, 0.0)


def test_first_rows() -> None:
    inputs = {"rows": torch.zeros(5, 2), "shared": torch.zeros(5), "other": torch.zeros(3), "number": 5}
    cut = first_rows(5, "shared")(inputs, 2)
    assert {name: tuple(getattr(value, "shape", ())) for name, value in cut.items()} == {
        "rows": (2, 2), "shared": (5,), "other": (3,), "number": (),
    }  # fmt: skip


# --- a whole measurement


def doubling(name: str = "double_4", **changes: Any) -> Workload:
    """A workload of four additions, with everything that can be wrong with an implementation."""

    def implementation(name: str, kind: Any, factor: float = 2.0, **options: Any) -> Implementation:
        return Implementation(name, kind, lambda given: lambda: {"y": factor * given["x"]}, **options)

    def unprepared(given: Any) -> Any:
        raise ValueError("cannot take this")

    start = Workload(
        op="double", name=name, title="Doubling", items=4, item="number", size="4 numbers",
        make_inputs=lambda seed: {"x": torch.arange(4.0) + seed},
        implementations=lambda: [
            implementation(REFERENCE, "reference"),
            implementation("mgrpo cpp", "ours"),
            implementation("off by a tenth", "peer", 2.2),
            implementation("too large", "peer", left_out="takes all memory"),
            Implementation("broken", "peer", unprepared),
            implementation("elsewhere", "peer", package="smplx"),
        ],
        exact=lambda given: {"y": 2 * given["x"]}, bytes_moved=32, operations=4,
    )  # fmt: skip
    return replace(start, **changes)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A suite that takes one sample of each, without the peer smplx."""
    monkeypatch.setattr("benchmarks.suite.matmul_rate", lambda device: 1e9)
    monkeypatch.setitem(peers.PEERS, "smplx", peers.Peer("no_such_module", "no-such-distribution"))
    return Suite(Options(threads=1, plan=Plan(rounds=3, sample_seconds=1e-4, most_samples=3)))


def test_every_implementation_gets_its_row(quick: Suite) -> None:
    rows = {one.implementation: one for one in quick.run(doubling())}
    assert list(rows) == [REFERENCE, "mgrpo cpp", "off by a tenth", "too large", "broken", "elsewhere"]
    assert COPY not in rows
    status = {name: one.status for name, one in rows.items()}
    assert status["too large"] == "left out" and status["broken"] == "failed" and status["elsewhere"] == "absent"
    assert rows["broken"].note == "ValueError: cannot take this"
    assert peers.HOW_TO_INSTALL in rows["elsewhere"].note
    for name in (REFERENCE, "mgrpo cpp", "off by a tenth"):
        assert status[name] in ("ok", "busy")
        assert rows[name].p20_us <= rows[name].median_us <= rows[name].p80_us
        assert rows[name].ns_per_item == pytest.approx(rows[name].median_us * 1e3 / 4)
        assert rows[name].gb_per_s == pytest.approx(32 / rows[name].median_us / 1e3)
        assert rows[name].bound in ("bytes", "operations") and rows[name].bound_share > 0
    assert rows["mgrpo cpp"].relative_error == 0.0
    assert rows["off by a tenth"].relative_error == pytest.approx(0.1, rel=1e-5)
    assert rows["too large"].median_us is None and rows["too large"].relative_error is None


def test_a_gpu_adds_replayed_graphs_and_host_times(quick: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The assembly of rows; what talks to a device is replaced."""

    def capture(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
        if "off" in str(calls[0]()):
            raise RuntimeError("not permitted when stream is capturing")
        return lambda: [call() for call in calls]

    quick.cuda = True
    monkeypatch.setattr(quick, "_sets", lambda workload: 2)
    monkeypatch.setattr(quick, "_on_gpu", lambda calls: {"host_us": 4.5, "peak_mb": 1.0})
    monkeypatch.setattr("benchmarks.suite.capture", capture)
    monkeypatch.setattr("benchmarks.suite.CudaClock", lambda device, flush=True: CpuClock())
    off = Implementation("mgrpo triton", "ours", lambda given: lambda: {"y": 2 * given["x"], "note": "off"})
    plain = doubling()
    rows = quick.run(replace(plain, implementations=lambda: [*plain.implementations(), off]))
    graphs = {one.implementation: one for one in rows if one.mode == "graph"}
    assert set(graphs) == {REFERENCE, "mgrpo cpp", "mgrpo triton"}, "packages are not captured"
    assert graphs["mgrpo triton"].status == "failed" and "capturing" in graphs["mgrpo triton"].note
    assert graphs["mgrpo cpp"].median_us > 0 and graphs["mgrpo cpp"].copy_gb_per_s > 0
    assert all(one.host_us == 4.5 for one in rows if one.mode == "call" and one.median_us is not None)
    assert not any(one.status == "busy" for one in rows), "nobody shares the device"


def test_rows_say_where_they_come_from(quick: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    (first, *_) = quick.run(doubling())
    assert all(getattr(first, column) for column in ("date", "commit", "dirty", "device", "cpu", "python", "torch"))
    assert first.threads == "1" and first.torch == torch.__version__ and first.device.startswith("cpu-")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", first.date)
    assert set(machine.provenance("cpu", 1)) == set(results.PROVENANCE)


def test_processor_is_named_by_kind(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("model name : Somebody's Own CPU\nflags : fpu avx2 fma avx512f avx512bw avx512vl avx512dq\n")
    name, slug = machine.processor(info)
    assert "AVX-512" in name and slug.endswith("-avx512") and "Somebody" not in name + slug
    info.write_text("flags : fpu avx2 fma avx512f\n")
    assert machine.processor(info)[1].endswith("-avx2")
    assert "avx" not in machine.processor(tmp_path / "none")[1]


def test_a_budget_ends_the_list(quick: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    ticks = itertools.count(0, 40)
    monkeypatch.setattr("benchmarks.suite.time.monotonic", lambda: next(ticks))
    workloads = [doubling("first"), doubling("second"), doubling("third")]
    done = [workload.name for workload, _ in run_workloads(quick, workloads, said.append, budget=100)]
    assert done == ["first", "second"] and "third: no time left" in said


# --- csv files


def test_rows_survive_a_file(tmp_path: Path) -> None:
    path = tmp_path / "op.csv"
    rows = [row(), row(implementation="absent", kind="peer", status="absent", note="a, b", median_us=None, samples=0)]
    write_rows(path, rows)
    assert read_rows(path) == rows
    header = path.read_text("utf-8").splitlines()[0].split(",")
    assert set(results.PROVENANCE) <= set(header)


def test_a_new_measurement_replaces_the_old(tmp_path: Path) -> None:
    path = tmp_path / "op.csv"
    write_rows(path, [row(), row(implementation="gone"), row(workload="other"), row(threads="1")])
    write_rows(path, [row(median_us=50.0)])
    kept = [(one.workload, one.threads, one.implementation, one.median_us) for one in read_rows(path)]
    assert kept == [
        ("other", "2", REFERENCE, 100.0),
        ("so3_near_104k", "1", REFERENCE, 100.0),
        ("so3_near_104k", "2", REFERENCE, 50.0),
    ]
    write_rows(path, [row(implementation="mgrpo cpp", kind="ours")], partial=True)
    assert len(read_rows(path)) == 4, "a run of some implementations keeps the others"


def test_a_file_without_provenance_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "op.csv"
    path.write_text("op,workload\na,b\n")
    with pytest.raises(ValueError, match=r"lacks the columns .*commit"):
        read_rows(path)


def test_rows_from_elsewhere_are_sorted_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "all.csv", [row(), row(op="sde_step", workload="sde_step_16", device="nvidia-x")])
    assert results.main([str(tmp_path / "all.csv"), "--into", str(tmp_path / "results")]) == 0
    written = sorted(str(path.relative_to(tmp_path / "results")) for path in (tmp_path / "results").rglob("*.csv"))
    assert written == ["cpu-x86-64-avx2/project_so3.csv", "nvidia-x/sde_step.csv"]


# --- gate and command


def test_the_gate_is_shut_by_a_failing_test(tmp_path: Path) -> None:
    passing, failing = tmp_path / "test_passing.py", tmp_path / "test_failing.py"
    passing.write_text("def test_it(): pass\n")
    failing.write_text("def test_it(): assert 1 == 2\n")
    assert gate.run_tests([str(passing)]) is None
    assert "assert 1 == 2" in gate.run_tests([str(passing), str(failing)])
    assert "no tests" in gate.run_tests([])


def test_nothing_is_timed_behind_a_shut_gate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "use_threads", lambda count: None)
    monkeypatch.setattr(gate, "run_tests", lambda files: "the tests fail:\nE   boom")
    monkeypatch.setattr("benchmarks.suite.Suite", lambda options: pytest.fail("it was timed all the same"))
    assert run.main(["--op", "so3_near_104k", "--gate"]) == 1
    assert "boom" in capsys.readouterr().err


def test_the_command_measures_and_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], quick: Suite
) -> None:
    monkeypatch.setattr(run, "use_threads", lambda count: None)
    monkeypatch.setattr("benchmarks.workload.all_workloads", lambda device, backends: [doubling(), doubling("other")])
    assert run.main(["--op", "double_*", "--quick", "--threads", "1", "--into", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*/double.csv")
    assert {one.workload for one in read_rows(path)} == {"double_4"}
    shown = capsys.readouterr().out
    assert "mgrpo cpp" in shown and "left out: takes all memory" in shown
    assert run.main(["--op", "nothing"]) == 2


def test_a_failure_of_ours_fails_the_command(monkeypatch: pytest.MonkeyPatch, quick: Suite) -> None:
    def broken(given: Any) -> Any:
        raise RuntimeError("crashed")

    bad = doubling(implementations=lambda: [Implementation("mgrpo cpp", "ours", broken)])
    monkeypatch.setattr(run, "use_threads", lambda count: None)
    monkeypatch.setattr("benchmarks.workload.all_workloads", lambda device, backends: [bad])
    assert run.main(["--quick", "--threads", "1"]) == 1


# --- wanted figures


def test_a_ratio_is_against_the_fastest_reference() -> None:
    wanted = requirement.speed_up("a", "w", 10)
    rows = [*measured(ours=10.0, reference=150.0), row(implementation="plainer", median_us=99.0)]
    assert wanted.judge(rows).state == "missed", "99 / 10 is less than 10"
    assert "9.9x" in wanted.judge(rows).measured
    assert wanted.judge(measured(ours=10.0, reference=100.0)).state == "met"


def test_a_ratio_says_how_near_its_bound_it_was_measured() -> None:
    wanted = requirement.speed_up("a", "w", 10)
    reference = measured(reference=90.0)
    ours = {"implementation": "mgrpo cpp", "kind": "ours", "median_us": 10.0}
    by_bytes = wanted.judge([*reference, row(**ours, bound="bytes", bound_share=1.07)])
    assert by_bytes.state == "missed", "a figure stays what it is, whatever bounds it"
    assert "107% of the rate of a copy of as many bytes" in by_bytes.measured
    by_operations = wanted.judge([*reference, row(**ours, bound="operations", bound_share=0.36)])
    assert "36% of the rate of a matrix product" in by_operations.measured
    assert "rate" not in wanted.judge([*reference, row(**ours, bound="", bound_share=None)]).measured


@pytest.mark.parametrize(
    "rows",
    [
        [],
        measured(ours=1.0),
        [*measured(ours=1.0), row(status="busy")],
        [row(), row(kind="ours", status="failed", note="crashed", median_us=None)],
    ],
)
def test_what_was_not_measured_is_not_met(rows: list[Row]) -> None:
    assert requirement.speed_up("a", "w", 1.1).judge(rows).state == "unmeasured"


def test_no_peer_may_be_faster() -> None:
    wanted = requirement.no_peer_faster("a", "w")
    assert wanted.judge(measured(ours=10.0, peer=11.0, compile=30.0)).state == "met"
    assert wanted.judge(measured(ours=10.0, peer=11.0, compile=9.0)).state == "missed"
    assert wanted.judge(measured(ours=10.0)).state == "unmeasured", "without any peer nothing is shown"
    busy = row(kind="peer", status="busy", median_us=1.0)
    assert wanted.judge([*measured(ours=10.0, peer=11.0), busy]).state == "unmeasured"
    absent = row(kind="peer", status="absent", median_us=None)
    assert "1 absent" in wanted.judge([*measured(ours=10.0, peer=11.0), absent]).measured
    alone = wanted.judge([*measured(ours=10.0, compile=30.0), absent])
    assert alone.state == "unmeasured" and "pip install" in alone.measured, "the packages are what it is about"
    assert wanted.judge(measured(ours=10.0, compile=30.0)).state == "met", "there is no package for it"


def test_the_check_measures_once_and_again_only_when_busy(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [requirement.speed_up("slow", "a", 10), requirement.speed_up("fast", "b", 2)]
    tries: list[str] = []

    def measure_it(workload: Workload, same_inputs: bool) -> list[Row]:
        tries.append(workload.name + "=" * same_inputs)
        if workload.name == "b" and tries.count("b") < 2:
            return [row(status="busy"), *measured(ours=10.0)]
        return measured(ours=10.0, reference=50.0)

    workloads = {name: doubling(name) for name in "ab"}
    assert check.judge_all(asked, workloads, measure_it, threads=2, tries=3) == 1
    assert tries == ["a", "b", "b"], "a missed figure stays missed"
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("MISSED") and "wanted 10x eager torch, measured 5.0x" in first and "2 threads" in first
    assert second.startswith("met") and "4 numbers" in second and last == "1 met, 1 not met"
    assert check.judge_all(asked[1:], workloads, measure_it, threads=2, tries=1) == 0
    both = [asked[1], requirement.speed_up("hot", "b", 2, same_inputs=True)]
    tries[:] = ["b"]
    assert check.judge_all(both, workloads, measure_it, threads=2, tries=1) == 0 and tries == ["b", "b", "b="]
    assert "the same inputs" in capsys.readouterr().out.splitlines()[-2]


def test_the_wanted_figures_are_about_workloads_that_exist() -> None:
    names = {workload.name for workload in all_workloads()}
    wanted = all_requirements()
    assert {one.workload for one in wanted} <= names
    text = {one.name: one.wanted for one in wanted}
    assert text["fk_quaternion_2048"] == "15x eager torch" and text["rewards_256"] == "45x eager torch"
    assert text["procrustes_32768_peers"] == "no peer faster"
    assert len(check.select(wanted, ["so3_near_104k"])) == 2 and check.select(wanted, None) == wanted
    assert {one.workload for one in check.select(wanted, ["grpo"])} == {"grpo_narrow"}
    assert len(check.select(wanted, ["grpo", "fk_quaternion_2048", "fk_quaternion_2048"])) > 5
    assert check.select(wanted, ["gr"]) == []


def test_the_check_lists(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "use_threads", lambda count: None)
    assert check.main(["--list", "--only", "procrustes*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all("procrustes" in line for line in lines)
    with pytest.raises(SystemExit):
        check.main(["--only", "nonsense"])


# --- pictures and tables


def sample_rows() -> list[Row]:
    """Two operations of the README, one of them at two sizes, and one that it does not show."""
    found = []
    for workload, title, items in (
        ("so3_near_104k", "SO(3) projection", 104_448),
        ("so3_near_836k", "SO(3) projection", 835_584),
        ("procrustes_2048", "Procrustes residual", 2_048),
        ("so3_random_104k", "Random", 104_448),
    ):
        for one in measured(ours=2.0, reference=100.0, compile=50.0, peer=200.0):
            found.append(replace(one, workload=workload, title=title, items=items, size=f"{items:,} rows"))
    return found


def test_a_size_without_reference_is_not_shown() -> None:
    large = [replace(one, workload="so3_near_6.68M", items=6_684_672) for one in measured(ours=2.0, peer=9.0)]
    sizes = {group.ours.items for group in plot.groups([*sample_rows(), *large])}
    assert sizes == {2_048, 835_584}


def test_groups_take_the_largest_size_of_the_headlines() -> None:
    rows = sample_rows()
    shown = plot.groups(rows)
    assert [(group.title, group.size) for group in shown] == [
        ("Procrustes residual", "2,048 rows"),
        ("SO(3) projection", "835,584 rows"),
    ]
    assert len(plot.groups(rows, headlines=False)) == 4
    assert shown[0].speed_up(shown[0].ours) == 50 and shown[0].peer.implementation == "roma"
    assert plot.groups([replace(one, status="busy") for one in rows]) == []
    slower = [replace(one, threads="1", median_us=1.0) for one in rows]
    assert {one.threads for one in plot.for_one_machine([*rows, *slower])} == {"2"}


def test_names_without_sizes() -> None:
    assert plot.without_size("fk_matrix_32768_backward") == "fk_matrix_backward"
    assert plot.without_size("so3_near_2.75M") == "so3_near" and plot.without_size("rollout_tiny") == "rollout"
    assert plot.without_size("fk52_matrix_32768") == "fk52_matrix", "another tree is another workload"
    assert set(plot.HEADLINES) <= {plot.without_size(workload.name) for workload in all_workloads()}


def test_pictures_are_drawn_from_the_files(tmp_path: Path) -> None:
    from PIL import Image

    write_by_op(tmp_path / "results", sample_rows())
    assert plot.main(["--results", str(tmp_path / "results" / "cpu-x86-64-avx2"), "--into", str(tmp_path)]) == 0
    sizes = []
    for name, surface in (("speed.png", 255), ("speed-dark.png", 26)):
        with Image.open(tmp_path / name) as picture:
            sizes.append(picture.size)
            assert picture.convert("RGB").getpixel((1, 1))[0] == surface
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
    assert sizes[0] == sizes[1] and sizes[0][0] == 1536
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SystemExit):
        plot.main(["--results", str(empty), "--into", str(tmp_path)])


def test_times_and_ratios_are_readable() -> None:
    assert plot.time_text(row(ns_per_item=50.2)) == "50.2 ns per matrix"
    assert plot.time_text(row(ns_per_item=1_315.0)) == "1.31 µs per matrix"
    assert plot.time_text(row(ns_per_item=2.5e9)) == "2.5 s per matrix"
    assert [plot.ratio_text(value) for value in (0.43, 9.96, 28.4, 1234.0)] == ["0.4x", "10.0x", "28x", "1,234x"]
    assert [run.duration(value) for value in (63.12, 999.6, 1541.4, 2e6)] == ["63.1 ns", "1 µs", "1.54 µs", "2 ms"]


def test_the_table_holds_what_the_files_hold(tmp_path: Path) -> None:
    assert "No measurement" in readme.section(tmp_path)
    write_by_op(tmp_path, [*sample_rows(), *(replace(one, device="nvidia-x") for one in sample_rows())])
    text = readme.section(tmp_path)
    assert text.count("| **50x** |") == 4 and "roma" in text and "50% (bytes)" in text
    assert text.index("AVX2") < text.index("nvidia-x") and "0123456789ab" in text
    assert text.startswith("<picture>") and not readme.section(tmp_path, headlines=False).startswith("<picture>")


def test_only_the_part_between_the_markers_is_written() -> None:
    page = f"above\n{readme.BEGIN}\nold\n{readme.END}\nbelow\n"
    assert readme.rewritten(page, "new") == f"above\n{readme.BEGIN}\n\nnew\n\n{readme.END}\nbelow\n"
    assert readme.rewritten(readme.rewritten(page, "new"), "new") == readme.rewritten(page, "new")
    with pytest.raises(ValueError, match="needs the line"):
        readme.rewritten("no markers", "new")


def test_the_pages_show_the_committed_results() -> None:
    assert readme.main(["--check"]) == 0, "run python -m benchmarks.readme"


def test_committed_results_are_readable_and_clean() -> None:
    for path in (ROOT / "benchmarks" / "results").rglob("*.csv"):
        for one in read_rows(path):
            assert one.op == path.stem and one.device == path.parent.name
            assert one.commit != "unknown" and one.status in ("ok", "busy", "absent", "left out", "failed")


# --- the workloads themselves


def test_workloads_have_tests_and_bounds() -> None:
    for workload in all_workloads():
        assert gate.test_files([workload]), f"{workload.name} has no tests"
        assert workload.op == "iteration" or (workload.bytes_moved > 0 and workload.operations > 0)


SMALL = {
    "so3_near": lambda: project_so3.workload("cpu", None, "small", 40, near=True, gradient=False),
    "so3_random": lambda: project_so3.workload("cpu", None, "small", 40, near=False, gradient=False),
    "so3_backward": lambda: project_so3.workload("cpu", None, "small", 40, near=True, gradient=True),
    "fk_quaternion": lambda: forward_kinematics.workload(
        "cpu", None, 6, forward_kinematics.PARENTS_22, "quaternion"
    ),
    "fk_matrix": lambda: forward_kinematics.workload("cpu", None, 6, forward_kinematics.PARENTS_22, "matrix"),
    "fk52": lambda: forward_kinematics.workload("cpu", None, 3, forward_kinematics.PARENTS_52, "matrix"),
    "fk_backward": lambda: forward_kinematics.workload(
        "cpu", None, 6, forward_kinematics.PARENTS_22, "matrix", gradient=True
    ),
    "procrustes": lambda: procrustes.workload("cpu", None, 6),
    "procrustes_backward": lambda: procrustes.workload("cpu", None, 6, gradient=True),
    "rewards": lambda: rewards.workload("cpu", None, 1),
    "rewards_state": lambda: rewards.workload("cpu", None, 1, state=True),
    "sde_step": lambda: sde.workload("cpu", None, "sde_step", "t", sde.step, 2, ("x_t", "x0_pred", "noise"), moved=4),
    "sde_step_log_prob": lambda: sde.workload(
        "cpu", None, "sde_step", "t", sde.step_log_prob, 2, ("x_t", "x0_pred", "noise"), moved=4
    ),
    "sde_noisy_step": lambda: sde.workload(
        "cpu", None, "sde_step", "t", sde.noisy_step, 2, ("x_t", "x0_pred"), moved=3
    ),
    "sde_noisy_step_log_prob": lambda: sde.workload(
        "cpu", None, "sde_step", "t", sde.noisy_step_log_prob, 2, ("x_t", "x0_pred"), moved=3
    ),
    "sde_projected_step": lambda: sde.workload(
        "cpu", None, "projected_sde_step", "t", sde.projected_step, 2, ("x_t", "x0_pred", "noise"), moved=5
    ),
    "sde_log_prob_backward": lambda: sde.workload(
        "cpu", None, "sde_log_prob", "t", sde.log_prob, 2, ("x_prev", "x_t", "x0_pred"), moved=6, gradient="log_prob"
    ),
    "sde_log_ratio_backward": lambda: sde.workload(
        "cpu", None, "sde_log_ratio", "t", sde.log_ratio, 2, ("x0_pred", "x0_old", "noise"), moved=7,
        gradient="log_ratio",
    ),
    "guidance": lambda: guidance.workload("cpu", None, 2, frames=9),
    "advantages": lambda: policy.advantages_workload("cpu", None, 3),
    "grpo_loss": lambda: policy.loss_workload("cpu", None, 3, 7),
    "grpo_loss_backward": lambda: policy.loss_workload("cpu", None, 3, 7, gradient=True),
    "metrics": lambda: metrics.workload("cpu", None, 2),
    "noise": lambda: noise.workload("cpu", None, 2),
    "perlin": lambda: perlin.workload("cpu", None, 18),
    "stitching": lambda: stitching.workload("cpu", stitching.Setting("tiny", 3, 20, 8, 2)),
}  # fmt: skip

KNOWN_WRONG = {
    # Power iterations that do not converge on matrices far from rotations.
    ("so3_random", "nanomanifold, davenport"),
    # Gradients of its Lie tensors are with respect to tangent vectors.
    ("procrustes_backward", "pypose"),
}
"""Results that differ from float64 by more than rounding; a measurement's row says by how much."""


@pytest.mark.parametrize("name", SMALL)
def test_everyone_computes_the_same(name: str) -> None:
    """Ours, the eager reference and each package that is installed, on a small size of each workload."""
    workload = SMALL[name]()
    inputs = workload.make_inputs(0)
    exact = workload.exact({key: as_float64(value) for key, value in inputs.items()})
    compared = 0
    for one in workload.implementations():
        absent = one.package is not None and peers.problem(one.package) is not None
        if one.kind == "compile" or one.left_out or absent or (name, one.name) in KNOWN_WRONG:
            continue
        _, relative = compare(one.results(one.prepare(inputs)()), exact)
        assert relative is None or relative < 2e-4, f"{one.name}: {relative}"
        compared += relative is not None
    assert compared >= 1


@pytest.mark.slow
def test_the_compiled_reference_is_the_reference() -> None:
    workload = SMALL["sde_step"]()
    inputs = workload.make_inputs(0)
    (one,) = (one for one in workload.implementations() if one.kind == "compile")
    (plain,) = (one for one in workload.implementations() if one.kind == "reference")
    torch.testing.assert_close(one.prepare(inputs)(), plain.prepare(inputs)())


def test_trees() -> None:
    tree = forward_kinematics.PARENTS_52
    assert len(tree) == 52 and all(parent < joint for joint, parent in enumerate(tree))
    assert tree[22:25] == (20, 22, 23) and tree[37] == 21 and tree.count(20) == tree.count(21) == 5


@pytest.mark.skipif(importlib.util.find_spec("tyro") is None, reason="tyro is not installed")
def test_an_iteration_runs_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.ops import iteration

    tiny = iteration.Setting("tiny", 2, 2, 8, 2, updated_conditions=2, updated_steps=1)
    monkeypatch.setitem(iteration.SETTINGS, "cpu", tiny)
    monkeypatch.setattr(iteration, "WHOLE", dataclasses.replace(tiny, steps=6, updated_steps=5))
    for workload in iteration.workloads("cpu", None):
        found = {}
        for one in workload.implementations():
            found[one.kind] = one.prepare(workload.make_inputs(0))()
        assert set(found) == {"reference", "ours"}
        if workload.name.startswith("rollout"):
            torch.testing.assert_close(found["ours"].x0, found["reference"].x0, rtol=1e-3, atol=1e-3)
        if workload.name.startswith("reward"):
            torch.testing.assert_close(found["ours"], found["reference"], rtol=1e-3, atol=1e-3)


# --- the run on a GPU machine


def stage(code: str, name: str = "stage", seconds: float = 30.0, **options: Any) -> gpu.Stage:
    return gpu.Stage(name, (sys.executable, "-c", code), seconds, **options)


def test_a_stage_is_recorded_whatever_it_does(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    ok = gpu.run_stage(stage("print('17 passed')"), 30, log)
    failed = gpu.run_stage(stage("import sys; print('2 failed'); sys.exit(3)"), 30, log)
    crashed = gpu.run_stage(stage("import os; os.abort()"), 30, log)
    missing = gpu.run_stage(gpu.Stage("none", ("/no/such/program",), 5), 5, log)
    skipped = gpu.run_stage(stage("print(1)", needs="no-such-tool"), 30, log)
    assert [one.state for one in (ok, failed, crashed, missing, skipped)] == [
        "ok", "failed", "failed", "failed", "skipped",
    ]  # fmt: skip
    assert ok.finding == "17 passed" and failed.finding == "exit code 3: 2 failed" and "no-such-tool" in skipped.finding
    assert "2 failed" in log.read_text("utf-8")


def test_a_stage_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "child"
    # The child does not heed SIGTERM: that its parent has ended is not enough.
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))\n"
        "print('before', flush=True)\n"
        "time.sleep(60)\n"
    )
    outcome = gpu.run_stage(stage(code), 4.0, tmp_path / "log.txt")
    assert outcome.state == "timed out" and outcome.finding == "before" and outcome.seconds < 20
    status = Path("/proc", note.read_text(), "status")
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_the_budget_is_for_the_most_important(tmp_path: Path) -> None:
    ticks = itertools.chain([0.0, 0.0, 0.0], itertools.repeat(98.0))
    said: list[str] = []
    plan = [stage("print(1)", "first"), stage("print(2)", "second")]
    outcomes = gpu.run_all(plan, 100, tmp_path / "log.txt", said.append, now=lambda: next(ticks))
    assert [(one.stage.name, one.state, one.finding) for one in outcomes] == [
        ("first", "ok", "1"),
        ("second", "skipped", "no time left"),
    ]


def test_a_substitute_runs_only_where_it_is_needed(tmp_path: Path) -> None:
    log, quiet = tmp_path / "log.txt", lambda text: None
    instead = stage("print('plain')", "plain", instead_of="build")
    good = gpu.run_all([stage("print(1)", "build"), instead], 600, log, quiet)
    bad = gpu.run_all([stage("raise SystemExit(1)", "build"), instead], 600, log, quiet)
    assert [one.stage.name for one in good] == ["build"]
    assert [(one.stage.name, one.state) for one in bad] == [("build", "failed"), ("plain", "ok")]


def test_the_plan_has_everything(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUT", raising=False)
    assert gpu.main(["--dry-run"]) == 0
    shown = capsys.readouterr().out
    for word in ("build_ext", "memcheck", "racecheck", "initcheck", "tests/kernels", "-m gpu", "MGRPO_BUILD=cuda"):
        assert word in shown
    assert {workload.op for workload in all_workloads()} == set(gpu.OPERATIONS)
    assert gpu.main(["--dry-run", "--only", "sanitizer"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    with pytest.raises(SystemExit):
        gpu.main(["--dry-run", "--only", "nonsense"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "CUDA" in capsys.readouterr().err


def test_what_a_sanitizer_says() -> None:
    report = (
        "========= COMPUTE-SANITIZER\n"
        "========= Invalid __global__ write of size 4 bytes\n"
        "=========     at void mgrpo::project_kernel<float>(float const*, float*)+0x70\n"
        "=========     by thread (0,0,0) in block (0,0,0)\n"
        "========= \n"
        "========= Uninitialized __global__ memory read of size 4 bytes\n"
        "=========     at void at::native::reduce_kernel<512>()+0x70\n"
        "========= \n"
        "5 of 5 calls as they should be\n"
        "========= ERROR SUMMARY: 2 errors\n"
    )
    assert gpu.sanitizer_finding(report) == "2 errors, 5 of 5 calls as they should be, 1 reports name our kernels"
    clean = "========= COMPUTE-SANITIZER\n9 of 9 calls as they should be\n========= ERROR SUMMARY: 0 errors\n"
    assert gpu.sanitizer_finding(clean) == "0 errors, 9 of 9 calls as they should be"
    assert gpu.sanitizer_finding("Device not supported") == "no summary"


def test_results_go_to_out_in_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [replace(one, device="nvidia-x") for one in sample_rows()]
    (tmp_path / "out").mkdir()
    gpu.keep_results(rows, "summary", tmp_path / "out", "nvidia-x")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["results.csv", "summary.txt"]
    assert read_rows(tmp_path / "out" / "results.csv") == rows
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results")
    gpu.keep_results(rows, "summary", None, "nvidia-x")
    assert sorted(path.name for path in (tmp_path / "results" / "nvidia-x").iterdir()) == [
        "project_so3.csv",
        "summary.txt",
    ]


def test_the_gpu_table_shows_both_backends_and_failures() -> None:
    rows = [
        *measured(reference=100.0, compile=50.0),
        row(
            implementation="mgrpo cuda", kind="ours", median_us=2.0, host_us=9.5, gb_per_s=1500.0, copy_gb_per_s=3000.0
        ),
        row(
            implementation="mgrpo cuda", kind="ours", mode="graph", median_us=1.0, gb_per_s=2400.0, copy_gb_per_s=3000.0
        ),
        row(implementation="mgrpo triton", kind="ours", status="failed", note="no kernel", median_us=None),
    ]
    _, first, second = gpu.speed_table(rows).splitlines()
    assert re.search(r"mgrpo cuda +2\.0 +1\.0 +9\.5 +50\.0x +25\.0x +2400 +80%", first)
    assert "mgrpo triton" in second and "failed: no kernel" in second


def test_first_calls_compare_with_float64(capsys: pytest.CaptureFixture[str]) -> None:
    from mgrpo.kernels import available_backends
    from mgrpo.kernels._spec import all_specs

    (spec,) = (spec for spec in all_specs() if spec.name == "project_so3")
    backend = "cpp" if "cpp" in available_backends("project_so3") else "reference"
    assert gpu_calls.problem_of(spec, spec.cases[0], backend, "cpu", plain=False) is None

    def crooked(case: Any, *inputs: Any, backend: str | None = None) -> Any:
        return tuple(value * (1 if backend == "reference" else 1.01) for value in spec.call(case, *inputs))

    assert "differs from float64" in gpu_calls.problem_of(
        replace(spec, call=crooked), spec.cases[0], backend, "cpu", plain=False
    )

    def broken(case: Any, *inputs: Any, backend: str | None = None) -> Any:
        raise RuntimeError("illegal address")

    assert gpu_calls.problem_of(replace(spec, call=broken), spec.cases[0], backend, "cpu", plain=True) == (
        "RuntimeError: illegal address"
    )
    assert gpu_calls.distance(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0])) == float("inf")


def test_peers_that_are_missing_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PEERS, "x", peers.Peer("no_such_module", "no-such", needs=("torch", "neither_this")))
    assert peers.problem("x") == f"no_such_module, neither_this not installed: {peers.HOW_TO_INSTALL}"
    extra = (ROOT / "pyproject.toml").read_text("utf-8").split("bench = [")[1].split("]")[0]
    names = {peer.distribution for name, peer in peers.PEERS.items() if name != "x"}
    assert all(f'"{name}' in extra for name in names)
