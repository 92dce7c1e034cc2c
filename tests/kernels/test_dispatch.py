"""Which backend serves a call, and what the refusal says."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import mgrpo
from mgrpo import kernels
from mgrpo.kernels import BackendError, _dispatch, _library, _triton, available_backends, explain_backend, use_backend
from mgrpo.kernels._dispatch import Implementation, resolve

KERNELS_FOLDER = Path(kernels.__file__).resolve().parent


@pytest.fixture(autouse=True)
def no_outer_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MGRPO_BACKEND", raising=False)


@pytest.fixture
def made_up_op(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An op with a cpp backend for float64 only, a CUDA backend that this machine lacks, and no Triton backend."""
    monkeypatch.setattr(_dispatch, "_ops", dict(_dispatch._ops))
    monkeypatch.setattr(_dispatch, "_logged", set())
    _dispatch.register_op(
        "made_up",
        {
            "cpp": Implementation(lambda: None, lambda x: None if x[0].dtype == torch.float64 else "wants float64"),
            "cuda": Implementation(lambda: "no such machine", lambda x: None),
        },
        auto_order={"cpu": ("cuda", "triton", "cpp")},
    )
    yield "made_up"


F32, F64 = torch.zeros(1), torch.zeros(1, dtype=torch.float64)


def test_auto_takes_the_first_that_can(made_up_op: str) -> None:
    assert resolve(made_up_op, None, F64) == "cpp"
    assert resolve(made_up_op, None, F32) == "reference"


def test_the_order_of_choices(made_up_op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGRPO_BACKEND", "reference")
    assert resolve(made_up_op, None, F64) == "reference"
    with use_backend("cpp"):
        assert resolve(made_up_op, None, F64) == "cpp"
        assert resolve(made_up_op, "reference", F64) == "reference"
        with use_backend("reference"):
            assert resolve(made_up_op, None, F64) == "reference"
        assert resolve(made_up_op, None, F64) == "cpp"
        with use_backend(None):
            assert resolve(made_up_op, None, F64) == "reference"  # what the environment says
    assert resolve(made_up_op, None, F64) == "reference"


def test_use_backend_ends_with_its_block_also_on_errors(made_up_op: str) -> None:
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert resolve(made_up_op, None, F64) == "cpp"


@pytest.mark.parametrize("way", ["argument", "context", "environment"])
def test_an_explicit_choice_is_honoured_or_refused(made_up_op: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(name: str) -> str:
        if way == "argument":
            return resolve(made_up_op, name, F32)
        if way == "environment":
            monkeypatch.setenv("MGRPO_BACKEND", name)
            return resolve(made_up_op, None, F32)
        with use_backend(name):
            return resolve(made_up_op, None, F32)

    for name in ("cpp", "cuda"):
        with pytest.raises(BackendError) as caught:
            call(name)
        message = str(caught.value)
        assert message.startswith("made_up(): ") and " cannot serve this call. " in message
        origin = {"argument": f"backend='{name}'", "context": f"use_backend('{name}')"}.get(
            way, f"MGRPO_BACKEND={name}"
        )
        assert f"{origin} cannot serve" in message
        assert message.endswith("or none (backend=None, no use_backend, MGRPO_BACKEND unset) for the fastest that can")
        for part in ("reference: can serve it", "cpp: wants float64", "triton: not written", "cuda: no such machine"):
            assert part in message
    with pytest.raises(ValueError, match=r"must be one of reference, cpp, triton, cuda, got 'fast'"):
        call("fast")


def test_a_process_wide_choice_leaves_out_ops_without_such_a_backend(
    made_up_op: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "mgrpo.kernels"), use_backend("triton"):
        assert resolve(made_up_op, None, F64) == "cpp"
    assert "made_up has no 'triton' backend" in caplog.text
    with pytest.raises(BackendError, match="triton: not written for this op"):
        resolve(made_up_op, "triton", F64)


def test_falling_back_is_logged_once(made_up_op: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mgrpo.kernels"):
        for _ in range(3):
            resolve(made_up_op, None, F32)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "made_up on cpu does without the 'cuda' backend: no such machine",
        "made_up on cpu does without the 'cpp' backend: wants float64",
    ]
    assert {record.levelno for record in caplog.records} == {logging.INFO}


def test_available_and_explained(made_up_op: str) -> None:
    assert available_backends(made_up_op) == ("reference", "cpp")
    lines = explain_backend(made_up_op, F64).splitlines()
    assert lines[0] == "made_up on cpu, float64:"
    assert [line.split() for line in lines[1:]] == [
        ["reference", "yes"],
        ["->", "cpp", "yes"],
        ["triton", "no:", "not", "written", "for", "this", "op"],
        ["cuda", "no:", "no", "such", "machine"],
    ]
    assert "-> reference" in explain_backend(made_up_op, F32)
    with pytest.raises(ValueError, match=r"op must be one of .*project_so3.*, got 'nothing'"):
        available_backends("nothing")
    with pytest.raises(ValueError, match="got 'nothing'"):
        explain_backend("nothing")


@pytest.mark.parametrize("op", kernels.registered_ops())
def test_every_op_has_a_reference_and_an_explanation(op: str) -> None:
    assert available_backends(op)[0] == "reference"
    assert len(explain_backend(op).splitlines()) == 1 + len(kernels.BACKENDS)


@pytest.mark.parametrize("name", kernels.__all__)
def test_public_names_exist_and_say_what_they_are(name: str) -> None:
    value = getattr(kernels, name)
    assert not callable(value) or value.__doc__


def test_cpp_wants_cpu_tensors() -> None:
    refusal = _dispatch._ops["project_so3"].implementations["cpp"].refuses
    assert refusal((torch.empty(3, 3, device="meta"),)) == "needs tensors on the CPU, got meta"
    assert refusal((torch.empty(3, 3, dtype=torch.bfloat16),)) == "does not take bfloat16"


@pytest.mark.skipif("cpp" not in available_backends("project_so3"), reason=explain_backend("project_so3"))
def test_compiled_functions_follow_a_later_choice() -> None:
    torch._dynamo.reset()
    served: list[str] = []

    def note_backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        served.append("cpp" if "mgrpo.project_so3" in graph.code else "reference")
        return graph.forward

    compiled = torch.compile(lambda m: kernels.project_so3(m) + 1, fullgraph=True, backend=note_backend)
    matrices = torch.eye(3).expand(4, 3, 3)
    compiled(matrices)
    with use_backend("reference"):
        compiled(matrices)
    with use_backend("cpp"):
        compiled(matrices)
    assert served[:2] == ["cpp", "reference"] and "reference" not in served[2:]


def run_python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
    )


def copy_kernels(folder: Path, name: str, *, extension: str | None = None) -> None:
    """The package's Python files as ``folder/name``, and something in the extension's place if asked for."""
    shutil.copytree(KERNELS_FOLDER, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if extension is not None:
        (folder / name / "_C.abi3.so").write_text(extension)


def test_refuses_to_be_imported_under_the_folder_name(tmp_path: Path) -> None:
    copy_kernels(tmp_path, "kernels")
    result = run_python("import kernels", tmp_path)
    assert result.returncode == 1
    assert "ImportError: import this package as mgrpo.kernels, not as kernels" in result.stderr


@pytest.mark.parametrize(
    ("extension", "reason"),
    [(None, "the native extension is not built"), ("no library", "the native extension does not load with torch")],
)
def test_everything_works_without_the_extension(tmp_path: Path, extension: str | None, reason: str) -> None:
    (tmp_path / "mgrpo").mkdir()
    (tmp_path / "mgrpo" / "__init__.py").touch()
    copy_kernels(tmp_path, "mgrpo/kernels", extension=extension)
    code = """if True:
        import torch
        from mgrpo import kernels
        assert not any("cpp" in kernels.available_backends(op) for op in kernels.registered_ops())
        assert torch.equal(kernels.project_so3(2 * torch.eye(3)), torch.eye(3))
        print(kernels.explain_backend("project_so3"))
        try:
            kernels.project_so3(torch.eye(3), backend="cpp")
        except kernels.BackendError as error:
            print("refused:", error)
    """
    result = run_python(code, tmp_path, MGRPO_EMULATION="")
    assert result.returncode == 0, result.stderr
    assert f"cpp       no: {reason}" in result.stdout
    assert "-> reference yes" in result.stdout
    assert (
        "refused: project_so3(): backend='cpp' cannot serve this call. reference: can serve it; cpp: " in result.stdout
    )
    assert f"cpp: {reason}" in result.stdout


def test_importing_does_not_need_triton_nor_a_compiler() -> None:
    code = """if True:
        import sys
        import mgrpo.kernels
        loaded = {name.split(".")[0] for name in sys.modules}
        assert "triton" not in loaded and "torch.utils.cpp_extension" not in sys.modules
    """
    result = run_python(code, Path(mgrpo.__file__).parents[1], CXX="/bin/false")
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(_triton.INTERPRETED is False, reason="kernels are not interpreted where there is a GPU")
def test_interpreted_triton_wants_cpu_tensors() -> None:
    refusal = _dispatch._ops["project_so3"].implementations["triton"].refuses
    assert refusal((F32, F64)) is None
    assert refusal((F32.to("meta"),)) == "needs tensors on the CPU under TRITON_INTERPRET=1, got meta"
    assert refusal((F32.bfloat16(),)) == "does not take bfloat16"


@pytest.mark.skipif("triton" not in available_backends("project_so3"), reason=explain_backend("project_so3"))
def test_compiled_triton_wants_a_gpu() -> None:
    code = """if True:
        import os, torch
        from mgrpo import kernels
        from mgrpo.kernels import _dispatch, _triton
        print("alone:", kernels.explain_backend("project_so3"))
        _triton.torch.cuda.is_available = lambda: True
        assert "triton" in kernels.available_backends("project_so3")
        print("with one:", kernels.explain_backend("project_so3"))
        os.environ["TRITON_INTERPRET"] = "1"
        try:
            _triton.triton_call("mgrpo.kernels.so3", "project_so3_forward")(torch.eye(3), True)
        except kernels.BackendError as error:
            print("late:", error)
    """
    result = run_python(code, Path(mgrpo.__file__).parents[1], TRITON_INTERPRET="0", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr
    alone, with_one = result.stdout.split("with one:")
    assert "triton    no: there is no CUDA device (TRITON_INTERPRET=1 set before" in alone
    assert "triton    no: needs tensors on a CUDA device, got cpu" in with_one
    assert "late: TRITON_INTERPRET was changed after mgrpo.kernels was imported" in with_one


def test_a_triton_that_does_not_import_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "mgrpo").mkdir()
    (tmp_path / "mgrpo" / "__init__.py").touch()
    copy_kernels(tmp_path, "mgrpo/kernels")
    (tmp_path / "triton.py").write_text("raise ImportError('no libcuda here')")
    code = """if True:
        import torch
        from mgrpo import kernels
        try:
            kernels.project_so3(torch.eye(3), backend="triton")
        except kernels.BackendError as error:
            print("refused:", error)
    """
    result = run_python(code, tmp_path, TRITON_INTERPRET="1")
    assert "refused: triton cannot be used (no libcuda here); choose another backend" in result.stdout, result.stderr


def test_every_op_has_its_oracle() -> None:
    from mgrpo.kernels import reference

    assert set(reference.__all__) == set(kernels.registered_ops())
    for name in reference.__all__:
        oracle = getattr(reference, name)
        assert oracle.func is getattr(kernels, name) and oracle.keywords == {"backend": "reference"}


# ---- the way past torch's dispatcher ----


class Seen(TorchDispatchMode):
    """Which operators a mode sees."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


needs_cpp = pytest.mark.skipif(
    "cpp" not in kernels.available_backends("project_so3"), reason="the native extension is not built"
)


@needs_cpp
def test_a_mode_sees_the_operator() -> None:
    M = torch.randn(3, 3, 3)
    with Seen() as seen:
        kernels.project_so3(M, backend="cpp")
    assert "mgrpo.project_so3.default" in seen.names


@needs_cpp
def test_what_nothing_watches_gives_the_operators_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    M = torch.randn(3, 3, 3)
    expected = torch.ops.mgrpo.project_so3(M, True, "cpp")
    direct = []
    run = _library._runs["project_so3"]
    monkeypatch.setitem(_library._runs, "project_so3", lambda *arguments: direct.append(1) or run(*arguments))
    assert torch.equal(kernels.project_so3(M, backend="cpp"), expected) and direct
    with torch.no_grad():
        assert torch.equal(kernels.project_so3(torch.nn.Parameter(M), backend="cpp"), expected) and len(direct) == 2


@needs_cpp
def test_gradients_are_those_of_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    M, probe = torch.randn(4, 3, 3), torch.randn(4, 3, 3)
    leaf = M.clone().requires_grad_()
    (expected,) = torch.autograd.grad(torch.ops.mgrpo.project_so3(leaf, True, "cpp"), leaf, probe)
    direct = []
    for name in ("project_so3", "project_so3_backward"):
        run = _library._runs[name]
        monkeypatch.setitem(_library._runs, name, lambda *a, name=name, run=run: direct.append(name) or run(*a))
    R = kernels.project_so3(leaf, backend="cpp")
    assert torch.equal(torch.autograd.grad(R, leaf, probe, retain_graph=True)[0], expected)
    assert direct == ["project_so3", "project_so3_backward"] and "project_so3" in R.grad_fn.name()
    # What can be differentiated again passes torch's operator, which refuses.
    (grad,) = torch.autograd.grad(R, leaf, probe, create_graph=True)
    assert torch.equal(grad, expected)
    with pytest.raises(kernels.BackendError, match="no second derivative"):
        grad.sum().backward()


@needs_cpp
def test_gradients_pass_hooks_and_modes() -> None:
    leaf = torch.randn(4, 3, 3, requires_grad=True)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x.shape) or x, lambda x: x):
        kernels.project_so3(leaf, backend="cpp")
    assert packed == [(4, 3, 3)] * 2, "the matrices and their rotations"
    again = torch.utils.checkpoint.checkpoint(
        lambda M: kernels.project_so3(M, backend="cpp"), leaf, use_reentrant=False
    )
    probe = torch.randn(4, 3, 3)
    wanted = torch.autograd.grad(kernels.project_so3(leaf, backend="cpp"), leaf, probe)
    assert torch.equal(torch.autograd.grad(again, leaf, probe)[0], wanted[0])
    with Seen() as seen:
        kernels.project_so3(leaf, backend="cpp").sum().backward()
    assert {"mgrpo.project_so3.default", "mgrpo.project_so3_backward.default"} <= {*seen.names}


@needs_cpp
def test_transforms_are_not_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    M = torch.randn(4, 3, 3)
    monkeypatch.setitem(_library._runs, "project_so3", lambda *arguments: pytest.fail("not through the dispatcher"))
    with pytest.raises(kernels.BackendError, match=r"no derivative for torch\.func"):
        torch.func.grad(lambda M: kernels.project_so3(M, backend="cpp").sum())(M)
    with FakeTensorMode():
        for tracked in (False, True):
            R = kernels.project_so3(torch.empty(2, 3, 3, requires_grad=tracked), backend="cpp")
            assert R.shape == (2, 3, 3) and R.requires_grad == tracked


def test_the_page_of_backends_lists_what_is_registered() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "backends.md").read_text()
    columns, listed = None, {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "operator":
            columns = [cell.strip("`") for cell in cells[1:]]
        elif columns and line.startswith("| `"):
            for op in cells[0].replace("`", "").split(", "):
                assert op not in listed
                listed[op] = {name for name, cell in zip(columns, cells[1:], strict=True) if cell == "yes"}
        elif columns and not line.startswith("|"):
            break
    registered = kernels._dispatch._ops
    assert listed == {op: {"reference", *registered[op].implementations} for op in kernels.registered_ops()}
