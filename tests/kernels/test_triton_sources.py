"""Every Triton kernel compiles for every kind of GPU without spilling, and uses what the committed table says.

No GPU is needed. ``tools/triton_resources.py`` does the work, one process per operator, two at a time. Where the table
is about these very sources and this triton, a part of each operator is compiled, and the table stands for the rest.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import triton_resources as tool  # tools/triton_resources.py

ROOT = Path(__file__).resolve().parents[2]
Row = dict[str, Any]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
]

OPS = tool.ops_with_kernels()


@pytest.fixture(scope="module")
def compiling(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[list[Row]]]]:
    """What the kernels cost of every operator that a chosen test is about, all being found out at once."""
    chosen = {item.callspec.params.get("op") for item in request.session.items if hasattr(item, "callspec")}
    with ThreadPoolExecutor(tool.PROCESSES) as pool:
        yield {op: pool.submit(tool.measure_elsewhere, op, in_part(op)) for op in OPS if op in chosen}


@pytest.fixture
def measured(compiling: dict[str, Future[list[Row]]], request: pytest.FixtureRequest) -> list[Row]:
    return compiling[request.getfixturevalue("op")].result()


def in_part(op: str) -> bool:
    """The table has no count of fused multiply-adds, which matter in every case that draws."""
    return tool.is_known(op) and not drawing_kernels(op)


def all_rows(op: str, measured: list[Row]) -> list[Row]:
    """What was measured, and the table's rows about what was not."""
    if not in_part(op):
        return measured
    found = tool.keyed(measured)
    return measured + [row for row in tool.read_table()[1] if row["op"] == op and not tool.keyed([row]).keys() & found]


def statements(op: str) -> list[ast.stmt]:
    """Of all files with the operator's kernels."""
    return [statement for source in tool.sources(op) for statement in ast.parse(source.read_text()).body]


def jitted_functions(op: str) -> dict[str, ast.FunctionDef]:
    return {
        node.name: node
        for node in statements(op)
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list)
    }


def kernel_names(op: str) -> set[str]:
    """Functions in the operator's source that are launched: jitted, and named ..._kernel."""
    return {name for name in jitted_functions(op) if name.endswith("_kernel")}


def drawing_kernels(op: str) -> set[str]:
    """Kernels that draw random numbers, by themselves or through a function of the operator's files."""
    sources = [node for node in statements(op) if isinstance(node, ast.ImportFrom)]
    drawing = {alias.name for node in sources if node.module == "_triton_philox" for alias in node.names}
    functions = jitted_functions(op)
    for _ in functions:  # as often as a chain of calls can be long
        for name, function in functions.items():
            if drawing & {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}:
                drawing.add(name)
    return drawing & kernel_names(op)


def test_kernels_were_found() -> None:
    assert {"rng", "so3"} <= set(OPS)
    assert kernel_names("rewards") >= {"rotations_fwd_kernel", "points_bwd_kernel"}  # of two files
    assert kernel_names("so3") == {"_project_so3_fwd_kernel", "_project_so3_bwd_kernel"}
    assert drawing_kernels("rng") == kernel_names("rng") == {"_philox_fwd_kernel"} and not drawing_kernels("so3")


@pytest.mark.parametrize("op", OPS)
def test_every_kernel_compiles_for_every_architecture(op: str, measured: list[Row]) -> None:
    for kernel in kernel_names(op):
        assert [row for row in measured if row["kernel"] == kernel], kernel
        assert {row["sm"] for row in all_rows(op, measured) if row["kernel"] == kernel} >= {80, 90, 100, 120}, kernel


@pytest.mark.parametrize("op", OPS)
def test_nothing_spills(op: str, measured: list[Row]) -> None:
    spills = tool.spills(all_rows(op, measured))
    assert not spills, "\n".join(spills)


@pytest.mark.parametrize("op", OPS)
def test_the_table_says_what_is_used(op: str, measured: list[Row]) -> None:
    written_for, table = tool.read_table()
    if version("triton") != written_for:
        pytest.skip(f"the table is about triton {written_for}, and this is {version('triton')}")
    problems = tool.differences(all_rows(op, measured), [row for row in table if row["op"] == op])
    assert not problems, "\n".join(problems)


def test_the_table_is_about_these_operators() -> None:
    assert sorted({row["op"] for row in tool.read_table()[1]}) == OPS


def test_the_table_is_about_these_sources() -> None:
    """Else all is compiled for every architecture in every run of the tests, which takes minutes."""
    digests = tool.source_digests.split(tool.TABLE.read_text())[1]
    assert digests == {op: tool.digest(op) for op in OPS}, "run tools/triton_resources.py --write"


@pytest.mark.parametrize("op", OPS)
def test_no_fused_multiply_add_where_bits_count(op: str, measured: list[Row]) -> None:
    """Kernels that draw random numbers are launched with ``enable_fp_fusion=False``, and nothing fuses then."""
    assert all(not row["fusion"] for row in measured if row["kernel"] in drawing_kernels(op))
    assert not [row for row in measured if not row["fusion"] and row["fma"]]
    if op == "so3":  # what is counted does occur
        assert all(row["fma"] for row in measured)


def test_device_functions_compile() -> None:
    """Those too that no operator uses; their sizes are the operators' affair."""
    rows = tool.measure_elsewhere("tests/kernels/triton_math_kernels.py")
    assert {"rot6d_matrix float64", "rounded_to"} <= {row["case"] for row in rows}


def row(**changes: Any) -> Row:
    key = {"op": "so3", "case": "forward", "kernel": "k", "sm": 90}
    return {**key, "registers": 40, "stack_bytes": 0, "shared_bytes": 16, **changes}


def test_differences_and_spills_are_named() -> None:
    assert tool.differences([row(), row(sm=80)], [row(sm=80), row()]) == []
    (changed,) = tool.differences([row(registers=41)], [row()])
    assert changed.startswith("so3, forward, k, sm_90: registers 41,") and "the table says registers 40" in changed
    assert changed.endswith("run tools/triton_resources.py --write")
    (missing,) = tool.differences([row(), row()], [row()])  # started twice
    assert "the table says nothing" in missing
    (stale,) = tool.differences([], [row()])
    assert "sm_90: nothing, the table says" in stale
    assert tool.spills([row(), row(stack_bytes=8)]) == ["so3, forward, k, sm_90: 8 bytes of stack: it spills"]


def test_the_table_is_read_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "TABLE", tmp_path / "table.csv")
    rows = [row(), row(case="a, b", registers=255)]
    tool.TABLE.write_text(tool.format_table([{**rows[0], "fma": 3, "fusion": True}, rows[1]], {}))
    assert tool.read_table() == (version("triton"), rows)


def test_what_the_table_does_not_know_is_compiled_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "TABLE", tmp_path / "table.csv")
    digest = tool.digest("so3")
    for digests, known in (({"rng": "0", "so3": digest}, True), ({"so3": "0"}, False), ({}, False)):
        tool.TABLE.write_text(tool.format_table([row()], digests))
        assert tool.is_known("so3") == known
    text = tool.format_table([row()], {"so3": digest})
    tool.TABLE.write_text(text.replace(version("triton"), "0.0.1", 1))
    assert not tool.is_known("so3")
    rows = [row(), row(sm=80), row(case="b"), row(case="b", kernel="l"), row(op="rng", case="c", kernel="m")]
    assert tool.first_cases(rows, "so3") == {"forward", "b"}
