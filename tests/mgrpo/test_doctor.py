"""The doctor: complete, never ill itself, honest about which backend serves what."""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mgrpo import doctor, kernels
from mgrpo.cli import main
from mgrpo.doctor import Finding, backend_rows, examine, parse_explanation, print_report


@pytest.fixture(autouse=True)
def no_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MGRPO_")]:
        monkeypatch.delenv(name)


def by_name(section: str) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine()[section]}


def test_every_op_is_listed_with_a_reason_for_every_backend() -> None:
    rows = backend_rows()
    assert {row.op for row in rows} == set(kernels.registered_ops())
    for row in rows:
        assert tuple(row.backends) == kernels.BACKENDS and all(row.backends.values())
        assert row.backends["reference"] == "yes" and row.chosen is not None and row.backends[row.chosen] == "yes"
        if row.device == "cpu":
            assert {name for name, answer in row.backends.items() if answer == "yes"} == set(
                kernels.available_backends(row.op)
            )


def test_the_marked_backend_is_the_one_a_call_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, backends = parse_explanation(
        "op on cpu, float32:\n    reference yes\n -> cpp       yes\n    triton    no: needs a GPU: none"
    )
    assert chosen == "cpp" and backends == {"reference": "yes", "cpp": "yes", "triton": "needs a GPU: none"}
    monkeypatch.setenv("MGRPO_BACKEND", "reference")
    assert {row.chosen for row in backend_rows()} == {"reference"}


def test_json_holds_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) >= {"software", "machine", "compilers", "files", "folders", "backends"}
    assert {finding["status"] for section in report if section != "backends" for finding in report[section]} <= {
        "ok",
        "note",
    }
    assert any(finding["name"] == "torch" and torch.__version__ in finding["value"] for finding in report["software"])


@pytest.mark.parametrize("width", [60, 80, 140])
def test_tables_fit_the_terminal(width: int) -> None:
    stream = io.StringIO()
    print_report(examine(), backend_rows(), Console(file=stream, width=width))
    text = stream.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    assert all(op in text for op in kernels.registered_ops())
    assert "default body" in text and "demo motion" in text


def test_smplh_is_found_or_the_places_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    missing = by_name("files")["SMPL-H"]
    assert missing.status == "note" and str(tmp_path / "data") in missing.hint and "https://" in missing.hint
    assert "more places (see --json)" in doctor._shortened(missing.hint) and "export MGRPO_SMPLH=" in doctor._shortened(
        missing.hint
    )
    model = tmp_path / "data" / "smplh" / "neutral" / "model.npz"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"0" * 3_000_000)
    found = by_name("files")["SMPL-H"]
    assert found.status == "ok" and "model.npz (3 MB)" in found.value


def test_a_compiler_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    broken = by_name("compilers")["C++ compiler"]
    assert broken.status == "note" and "does not work (exit code 1)" in broken.value
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert by_name("compilers")["C++ compiler"].value == "none"
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho tiny compiler 1.0\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", f"{compiler} -O2")
    assert by_name("compilers")["C++ compiler"] == Finding("C++ compiler", f"{compiler}: tiny compiler 1.0")


def test_a_missing_extension_costs_speed_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.kernels, "available_backends", lambda op: ("reference",))
    row = doctor.BackendRow("op", "cpu", "reference", {"reference": "yes", "cpp": "the native extension is not built"})
    monkeypatch.setattr(doctor, "backend_rows", lambda: [row])
    found = by_name("compilers")["native extension"]
    assert found.status == "note" and found.hint.startswith(
        "the native extension is not built; the reference backend serves"
    )


def test_a_probe_that_fails_becomes_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> list[Finding]:
        raise RuntimeError("no pulse")

    monkeypatch.setattr(doctor, "machine", broken)
    assert main(["doctor"]) == 1
    assert "RuntimeError: no pulse" in capsys.readouterr().out


def test_an_unwritable_folder_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    monkeypatch.chdir("/proc/self")
    assert by_name("folders")["run folders"].status == "note"


def test_switches_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "environment" not in examine()
    monkeypatch.setenv("MGRPO_PROGRESS", "off")
    assert by_name("environment")["MGRPO_PROGRESS"].value == "off"


def test_memory_is_plausible() -> None:
    memory = doctor.memory_gigabytes()
    assert memory is not None and 0 < memory[1] <= memory[0]
