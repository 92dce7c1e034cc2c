#!/usr/bin/env python3
"""What every Triton kernel costs on every kind of GPU: compiles them all, without a GPU, and reads the machine code.

    tools/triton_resources.py            compare with kernels/triton_resources.csv; exit status 1 if it differs
    tools/triton_resources.py --write    rewrite that table
    tools/triton_resources.py OP ...     either of them for these operators alone: the table keeps the rows of others
    tools/triton_resources.py --json OP  measure the kernels of kernels/OP (or of a file) in this process, print them;
                                         with --part, one case of each kernel for one architecture

A kernel is compiled by launching it: each ``triton_impl.py`` lists calls of its own launch functions in
``COMPILE_CASES``, and what starts kernels is replaced by what compiles them. So dtypes, alignment and options are those
of real launches. Registers and the stack depend on the compiler: the table names its version. The tests compile a part
where the table is about these sources and this compiler, see tools/source_digests.py.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import source_digests

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "kernels" / "triton_resources.csv"
PROCESSES = 2
LONGEST_SECONDS = 600
"""For one operator, so that a kernel whose compilation explodes is named. Most take a second per architecture."""
COLUMNS = ("op", "case", "kernel", "sm", "registers", "stack_bytes", "shared_bytes")
KEY = COLUMNS[:4]
RESOURCES = COLUMNS[4:]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help="operators, as folders of kernels/ (all)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="rewrite the table")
    what.add_argument("--json", metavar="OP", help="measure one operator's kernels and print them as JSON")
    parser.add_argument("--part", action="store_true", help="with --json: what the tests compile of a known operator")
    options = parser.parse_args(arguments)
    if options.json:
        print(json.dumps(measure(options.json, options.part)))
        return 0
    ops = options.ops or ops_with_kernels()
    if unknown := sorted({*ops} - {*ops_with_kernels()}):
        parser.error(f"no such operator with Triton kernels: {', '.join(unknown)}")
    with ThreadPoolExecutor(PROCESSES) as pool:
        rows = [row for rows in pool.map(measure_elsewhere, ops) for row in rows]
    table = read_table()[1]
    if options.write:
        others = [row for row in table if row["op"] not in ops and row["op"] in ops_with_kernels()]
        digests = {op: digest(op) for op in sorted({*ops, *filter(is_known, ops_with_kernels())})}
        TABLE.write_text(format_table(sorted([*others, *rows], key=lambda row: row["op"]), digests))
        print(f"{TABLE.relative_to(ROOT)}: {len(rows)} kernels written")
        return 0
    table = table if not options.ops else [row for row in table if row["op"] in ops]
    problems = [*spills(rows), *differences(rows, table)]
    print("\n".join(problems) or f"{TABLE.relative_to(ROOT)} holds all {len(rows)} kernels")
    return 1 if problems else 0


def ops_with_kernels() -> list[str]:
    """Folders of kernels/ that have Triton kernels."""
    return sorted(path.parent.name for path in (ROOT / "kernels").glob("*/triton_impl.py"))


def sources(op: str) -> list[Path]:
    """The operator's files with Triton in them: ``triton_impl.py``, and others where it is cut by subject."""
    return sorted((ROOT / "kernels" / op).glob("triton_*.py"))


def digest(op: str) -> str:
    """What the table says an operator's kernels were, when their numbers were found."""
    files = set(sources(op))
    for source in sources(op):
        beside = re.findall(r"^from \.(\w+) import", source.read_text(), re.MULTILINE)
        files |= {source.with_name(f"{name}.py") for name in beside}
    return source_digests.digest([*files, *(ROOT / "kernels").glob("_triton*.py")])


def is_known(op: str) -> bool:
    """Whether the table is about these kernels and this triton."""
    compiler, digests, _ = source_digests.split(TABLE.read_text())
    return _version_of(compiler) == version("triton") and digests.get(op) == digest(op)


def measure_elsewhere(op: str, part: bool = False) -> list[dict[str, Any]]:
    """:func:`measure` in a new process: triton compiles only where it was imported without its interpreter."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(ROOT / "build" / "triton"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    command = [sys.executable, __file__, "--json", op, *(["--part"] if part else [])]
    try:
        result = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the kernels of {op} did not compile within {LONGEST_SECONDS} s") from None
    if result.returncode != 0:
        raise RuntimeError(f"the kernels of {op} do not compile:\n{result.stderr[-4000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def measure(op: str, part: bool = False) -> list[dict[str, Any]]:
    """One row per compile case, kernel and architecture of kernels/OP, or of the file OP, with the columns of the table
    and ``fma``: how many fused multiply-adds the PTX holds, and ``fusion``: whether the launch allows them.

    ``part``: only cases that start a kernel which none before it starts, as the table has them, for one architecture.
    """
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from mgrpo.kernels import _triton

    if _triton.INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is set: an interpreting process cannot compile")
    # A device's number is its architecture: triton keeps compiled kernels by device.
    chosen = {"sm": 0}
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: chosen["sm"],
            get_current_target=lambda: GPUTarget("cuda", chosen["sm"], 32),
            get_current_stream=lambda device: 0,
        )
    )
    compiled: list[tuple[str, Any, bool]] = []

    def compile_only(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        binary = kernel.warmup(*arguments, grid=grid, **options)
        compiled.append((kernel.__name__, binary, options.get("enable_fp_fusion", True)))

    _triton.start = compile_only
    rows = []
    if op.endswith(".py"):
        sys.path.insert(0, str(Path(op).parent))
        module = importlib.import_module(Path(op).stem)
    else:
        module = importlib.import_module(f"mgrpo.kernels.{op}.triton_impl")
    cases = [(case, case.architectures) for case in module.COMPILE_CASES]
    if part:
        wanted = first_cases(read_table()[1], op)
        cases = [(case, _triton.PROOF_ARCHITECTURES) for case, _ in cases if case.name in wanted]
    for case, architectures in cases:
        for sm in architectures:
            chosen["sm"] = sm
            compiled.clear()
            case.run()
            if not compiled:
                raise RuntimeError(f"compile case {case.name!r} of {op} starts no kernel")
            for name, binary, fusion in compiled:
                registers, stack = registers_and_stack(binary.asm["cubin"])
                key = {"op": op, "case": case.name, "kernel": name, "sm": sm}
                resources = {"registers": registers, "stack_bytes": stack, "shared_bytes": binary.metadata.shared}
                fma = len(re.findall(r"\bfma\.", binary.asm["ptx"]))
                rows.append({**key, **resources, "fma": fma, "fusion": fusion})
    return rows


def first_cases(table: Sequence[dict[str, Any]], op: str) -> set[str]:
    """For every kernel of ``op`` the first case that starts it."""
    first: dict[str, str] = {}
    for row in table:
        if row["op"] == op:
            first.setdefault(row["kernel"], row["case"])
    return {*first.values()}


def registers_and_stack(cubin: bytes) -> tuple[int, int]:
    """Registers per thread, and bytes of stack: what a kernel spills lies there, and ours use it for nothing else."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"REG:(\d+) STACK:(\d+).* LOCAL:(\d+)", said)
    if len(found) != 1:
        raise RuntimeError(f"cuobjdump -res-usage said {said!r}")
    registers, stack, local = map(int, found[0])
    return registers, stack + local


def format_table(rows: Sequence[dict[str, Any]], digests: Mapping[str, str]) -> str:
    """The text of the table, with the digests of the operators that ``rows`` are about."""
    text = io.StringIO()
    text.write(
        source_digests.head(f"triton {version('triton')}; written by tools/triton_resources.py --write", digests)
    )
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_table() -> tuple[str, list[dict[str, Any]]]:
    """Version of triton that the table is about, and its rows."""
    compiler, _, rest = source_digests.split(TABLE.read_text())
    rows = [
        {name: int(value) if name in ("sm", *RESOURCES) else value for name, value in row.items()}
        for row in csv.DictReader(io.StringIO(rest))
    ]
    return _version_of(compiler), rows


def _version_of(compiler: str) -> str:
    return compiler.removeprefix("triton ").partition(";")[0]


def keyed(rows: Sequence[dict[str, Any]]) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """Resources by key; a kernel that one case starts several times has a number from its second row on."""
    found: dict[tuple[Any, ...], tuple[int, ...]] = {}
    for row in rows:
        key, number = tuple(row[name] for name in KEY), 1
        while (*key, number) in found:
            number += 1
        found[(*key, number)] = tuple(row[name] for name in RESOURCES)
    return found


def differences(rows: Sequence[dict[str, Any]], table: Sequence[dict[str, Any]]) -> list[str]:
    """One sentence per kernel in which ``rows`` and ``table`` disagree."""
    measured, wanted = keyed(rows), keyed(table)

    def describe(resources: tuple[int, ...] | None) -> str:
        return "nothing" if resources is None else ", ".join(f"{n} {v}" for n, v in zip(RESOURCES, resources))

    return [
        f"{key[0]}, {key[1]}, {key[2]}, sm_{key[3]}: {describe(measured.get(key))}, the table says "
        f"{describe(wanted.get(key))}; if that is meant, run tools/triton_resources.py --write"
        for key in sorted({*measured, *wanted})
        if measured.get(key) != wanted.get(key)
    ]


def spills(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One sentence per kernel that does not fit into registers."""
    return [
        f"{row['op']}, {row['case']}, {row['kernel']}, sm_{row['sm']}: {row['stack_bytes']} bytes of stack: it spills"
        for row in rows
        if row["stack_bytes"]
    ]


if __name__ == "__main__":
    sys.exit(main())
