"""The CUDA sources without a GPU: they compile for every architecture without spilling registers, need what the table
says, give the same bits in every order of threads, and pass the sanitizers. New sources are found by their names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cuda_library
import cuda_resources
import emulation
import nvcc
import pytest
import source_digests
import torch
from torch import Tensor

from mgrpo import kernels
from mgrpo.kernels._library import EMULATION_PROBLEM
from mgrpo.kernels._spec import OpSpec
from tests.kernels import emulated_ops

ROOT = Path(emulation.__file__).resolve().parents[1]
SOURCES = [pytest.param(source, id=source.stem) for source in cuda_resources.sources()]
BY_SPEC = [pytest.param(spec, id=spec.name) for spec in emulated_ops.SPECS]
HOW = "after a wanted change: python tools/cuda_resources.py"

needs_nvcc = pytest.mark.skipif(nvcc.find() is None, reason="there is no nvcc")
needs_emulation = pytest.mark.skipif(
    EMULATION_PROBLEM is not None or torch.cuda.is_available(), reason=EMULATION_PROBLEM or "there is a GPU"
)


def test_the_emulation_is_built_where_there_is_a_compiler() -> None:
    """A mistake in a CUDA source must not pass as a machine without a compiler."""
    try:
        library = emulation.build()
    except emulation.BuildError as error:
        if "cannot run" not in str(error):
            raise
        pytest.skip(str(error))
    assert library.is_file()
    if not torch.cuda.is_available():
        assert EMULATION_PROBLEM is None
        assert all("cuda" in kernels.available_backends(spec.name) for spec in emulated_ops.SPECS)


def test_no_kernel_adds_in_the_order_in_which_threads_come() -> None:
    """Atomic sums of floats differ from run to run on a GPU, which neither the interpreter of Triton, whose programs
    run one after another, nor a single order of the emulation's threads would show."""
    native = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cu", ".cpp")]
    native = [path for path in native if path.parent.name != "emulation"]
    triton = list((ROOT / "kernels").rglob("*.py"))
    assert len(native) > 50 and any(path.name == "triton_impl.py" for path in triton)
    for files, calls in ((native, r"\batomic\w*\s*\(|\bred\.|\batom\."), (triton, r"\batomic_\w+|\.atomic\b")):
        for path in files:
            found = re.search(calls, path.read_text())
            assert found is None, f"{path.relative_to(ROOT)}: {found.group()}"


def test_every_source_has_its_glue_and_launchers() -> None:
    for source in cuda_resources.sources():
        assert source.with_suffix(".h").is_file(), f"{source.name} has no header of launchers"
        assert source.with_name(f"{source.stem}_op.cpp").is_file(), f"{source.name} has no glue"
    assert cuda_resources.sources()


@needs_nvcc
@pytest.mark.parametrize("source", SOURCES)
def test_resources(source: Path) -> None:
    """For every architecture where the table is about another source or compiler than these, else for one."""
    rows = cuda_resources.rows_of(source, cuda_resources.architectures_to_check(source))
    assert rows, f"{source.name} has no kernel"
    version, table = cuda_resources.read_table()
    same_compiler = version == cuda_resources.compiler_version()
    known = [row for row in table if row["source"] == str(source.relative_to(ROOT))]
    for row in rows + known * same_compiler:
        assert row["spill_bytes"] == "0", f"{row['kernel']} spills registers: give __launch_bounds__ fewer blocks"
        assert max(int(row[name]) for name in cuda_resources.ARCHITECTURES if name in row) < 255, (
            f"{row['kernel']} fills all registers"
        )
        assert int(row["shared_bytes"]) <= 48 << 10
    if not same_compiler:
        pytest.skip(f"the table is of nvcc {version}; the rest holds")
    assert rows == [{name: row[name] for name in rows[0]} for row in known], HOW


def test_a_source_that_the_table_does_not_know_is_compiled_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = cuda_resources.sources()[0]
    compiler, digests, rows = source_digests.split(cuda_resources.TABLE.read_text())
    monkeypatch.setattr(cuda_resources, "compiler_version", lambda: compiler.removeprefix("nvcc "))
    monkeypatch.setattr(cuda_resources, "TABLE", tmp_path / "table.csv")
    name = str(source.relative_to(ROOT))
    for about, known in (
        ((compiler, {**digests, name: cuda_resources.digest(source)}), True),
        ((compiler, {**digests, name: "another"}), False),
        ((compiler, {}), False),
        (("nvcc 1.0", {**digests, name: cuda_resources.digest(source)}), False),
    ):
        cuda_resources.TABLE.write_text(source_digests.head(*about) + rows)
        assert source_digests.split(cuda_resources.TABLE.read_text()) == (*about, rows)
        wanted = [cuda_resources.PROOF_ARCHITECTURE] if known else list(nvcc.ARCHITECTURES)
        assert cuda_resources.architectures_to_check(source) == wanted


def test_the_table_is_about_these_sources() -> None:
    """Else every run of the tests compiles them for every architecture, which takes minutes."""
    digests = source_digests.split(cuda_resources.TABLE.read_text())[1]
    assert digests == {
        str(source.relative_to(ROOT)): cuda_resources.digest(source) for source in cuda_resources.sources()
    }, HOW


def test_a_digest_is_not_of_what_the_code_says_of_itself(tmp_path: Path) -> None:
    source = tmp_path / "triton_impl.py"

    def digest(text: str) -> str:
        source.write_text(text)
        return source_digests.digest([source])

    first = digest("def f():\n    return 'a'\n")
    assert digest('"""What it\nis."""\n\n\ndef f():\n    """One."""\n    # two\n    return \'a\'\n') == first
    assert digest("def f():\n    return 'b'\n") != first


def test_a_digest_is_of_the_code_and_its_headers(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    source, header = tmp_path / "a_cuda.cu", tmp_path / "common" / "b.h"
    inner = header.with_name("c.h")
    source.write_text('#include "common/b.h"\nint a;\n')
    header.write_text('#include "c.h"\n')
    inner.write_text("int c;\n")

    def digest(*options: str) -> str:
        return source_digests.digest(source_digests.with_headers(source), options)

    first = digest()
    assert source_digests.with_headers(source) == {source.resolve(), header.resolve(), inner.resolve()}
    assert digest("-O1") != first
    inner.write_text("// what it is\n\nint c;  \n")
    assert digest() == first
    inner.write_text("int d;\n")
    assert digest() != first


def test_the_table_names_no_other_source() -> None:
    _, table = cuda_resources.read_table()
    assert {row["source"] for row in table} == {str(path.relative_to(ROOT)) for path in cuda_resources.sources()}, HOW


def test_names_of_kernels() -> None:
    for signature, name in {
        "void mgrpo::_GLOBAL__N__4787_11_so3_cuda_cu_9e3c_8449::project<float, 3>(float*, int)": "project<float, 3>",
        "void mgrpo::(anonymous namespace)::fk<float, (mgrpo::Output)1>(float*)": "fk<float, (Output)1>",
        "plain(float*)": "plain",
    }.items():
        assert cuda_resources.short_name(signature) == name


@needs_nvcc
def test_the_library_links_and_registers(tmp_path: Path) -> None:
    """The real glue, against this torch: what only a CUDA build of torch exports is replaced by empty functions."""
    glue = [path.read_text() for path in emulation.kernel_sources() if path.suffix == ".cpp"]
    names = sorted(name for text in glue for name in re.findall(r"MGRPO_CUDA_OPERATOR\(\s*\"(\w+)\"", text))
    assert "project_so3_fwd" in names
    code = f"""if True:
        import torch
        torch.ops.load_library({str(cuda_library.build_for_link_check())!r})
        for name in {names}:
            assert torch._C._dispatch_has_kernel_for_dispatch_key("mgrpo_cuda::" + name, "CUDA"), name
    """
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# ---- the kernels, emulated ----


def bits(x: Tensor) -> Tensor:
    return x.contiguous().flatten().view(torch.uint8)


@pytest.fixture
def configure() -> Iterator[Callable[[int, int], None]]:
    yield torch.ops.mgrpo_emulation.configure
    torch.ops.mgrpo_emulation.configure(0, 0)


@needs_emulation
@pytest.mark.parametrize("spec", BY_SPEC)
def test_the_order_of_threads_changes_no_bit(spec: OpSpec, configure: Callable[[int, int], None]) -> None:
    cases = [
        (case, dtype) for case in emulated_ops.small_cases(spec) for dtype in emulated_ops.served_dtypes(spec, case)
    ]
    assert cases, f"the spec of {spec.name} needs a small case"
    for case, dtype in cases:
        configure(0, 1)
        expected = [bits(x) for x in emulated_ops.results_and_gradients(spec, case, dtype)]
        for order, os_threads in ((1, 1), (2, 3), (3, 2)):
            configure(order, os_threads)
            for a, b in zip(expected, emulated_ops.results_and_gradients(spec, case, dtype), strict=True):
                same = torch.equal(a, bits(b))
                assert same, f"{case.name}, {dtype}: order {order} gives other numbers, a barrier may be missing"


@needs_emulation
def test_sanitizers(tmp_path: Path) -> None:
    """Every op's small cases with AddressSanitizer and UndefinedBehaviorSanitizer, in a process of their own."""
    library = emulation.build(emulation.Variant(sanitize=True))
    environment = {
        **os.environ,
        **emulation.sanitizer_environment(),
        "MGRPO_EMULATION": str(library),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, emulated_ops.__file__]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, f"after {result.stdout.split()}: {result.stderr[:5000]}"
    assert result.stdout.split() == [spec.name for spec in emulated_ops.SPECS]
