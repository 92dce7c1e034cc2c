"""Who imports whom: the layers of CONTRIBUTING.md, read from the source without importing it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS: tuple[tuple[str, ...], ...] = (
    ("kernels", "errors", "command_list"),
    ("storage", "terminal"),
    ("geometry", "npz", "tensor_files", "config_record", "options", "execution"),
    ("body",),
    ("data",),
    ("export",),
    ("models",),
    ("diffusion", "guidance", "runs"),
    ("rewards", "grpo", "eval", "infer"),
    ("train",),
    ("commands", "demo", "doctor", "ablations"),
    ("cli",),
    ("__main__",),
)
"""Parts of mgrpo from the bottom up. A part imports parts of lower layers, and none of its own layer but itself."""

PICTURES: Mapping[str, frozenset[str]] = {
    "viz": frozenset({"errors", "storage"}),
    "report": frozenset({"errors", "storage", "viz"}),
}
"""Parts beside the layers, and all that they may import. The commands and the demo use them."""

USERS_OF_PICTURES = ("commands", "demo", "ablations")

OUTSIDE: Mapping[str, frozenset[str]] = {
    "kernels": frozenset({"torch", "triton"}),
    "errors": frozenset(),
    "storage": frozenset(),
    "terminal": frozenset({"rich"}),
    "command_list": frozenset(),
    "execution": frozenset({"torch"}),
    "geometry": frozenset({"torch"}),
    "npz": frozenset({"numpy"}),
    "viz": frozenset({"numpy", "PIL", "imageio_ffmpeg", "viser"}),
    "report": frozenset({"numpy", "matplotlib"}),
    "cli": frozenset({"tyro"}),
    "__main__": frozenset(),
    "": frozenset(),
}
"""Other packages that a part may import, where that is limited; "" is mgrpo/__init__.py."""

SIBLINGS: Mapping[str, frozenset[str]] = {
    "metrics": frozenset({"procrustes"}),
    "perlin": frozenset({"rng"}),
    "rewards": frozenset({"kinematics", "policy", "procrustes", "so3"}),
    "transition": frozenset({"rng"}),
}
"""Operators that use another operator's public functions, and in C++ its formulas (``*_math.h``), by folder."""

TESTS_ONLY = frozenset({"smplx", "roma", "hypothesis", "pytest", "scipy"})
TRITON_FILE = re.compile(r"_?triton_\w+")
"""Names of the modules that import triton when they are imported, and are therefore imported on first use."""
TRAINING_LOOPS = ("prior", "perceptual", "grpo", "finetune", "dpo", "reft")


class Import(NamedTuple):
    """One module that a file imports."""

    line: int
    target: str
    """Dotted name of the module, such as ``torch.nn`` or ``mgrpo.body.model``."""
    at_start: bool
    """Whether it runs when the file is imported, not when a function is called."""


class Module(NamedTuple):
    """A source file."""

    path: Path
    name: str
    """Dotted name, such as ``mgrpo.kernels.so3.op``."""
    imports: tuple[Import, ...]

    @property
    def part(self) -> str:
        """Second word of the name: ``kernels``; "" for the package itself."""
        return self.name.split(".")[1] if "." in self.name else ""


def module_name(path: Path) -> str:
    """Dotted name of a file below mgrpo/ or kernels/."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "kernels":
        parts.insert(0, "mgrpo")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files() -> list[Path]:
    """Every Python file of the package; the link mgrpo/kernels is left out, kernels/ taken instead."""
    package = [path for path in (ROOT / "mgrpo").rglob("*.py") if "kernels" not in path.relative_to(ROOT).parts]
    return sorted([*package, *(ROOT / "kernels").rglob("*.py")])


def read_imports(
    tree: ast.Module, name: str, is_package: bool, known: Set[str], *, types: bool = False
) -> Iterator[Import]:
    """What a file imports, type-checking blocks left out unless ``types``. ``known`` are the modules there are: a name
    imported from a package may be one of them."""

    def walk(node: ast.AST, at_start: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and not types and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from walk(child, at_start)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, at_start)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if is_package else name.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(node.lineno, full if full in known else base, at_start)
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_start and not inside)

    yield from walk(tree, True)


@lru_cache(maxsize=1)
def modules() -> tuple[Module, ...]:
    """All source files with their imports."""
    paths = source_files()
    names = {module_name(path) for path in paths}
    return tuple(
        Module(
            path,
            module_name(path),
            tuple(
                read_imports(
                    ast.parse(path.read_text("utf-8"), str(path)),
                    module_name(path),
                    path.name == "__init__.py",
                    names,
                )
            ),
        )
        for path in paths
    )


def refuse(problems: Sequence[str]) -> None:
    assert not problems, "\n" + "\n".join(problems)


def said(module: Module, found: Import, why: str) -> str:
    return f"{module.path.relative_to(ROOT)}:{found.line} imports {found.target}: {why}"


def part_of(target: str) -> str | None:
    """The part of mgrpo that a module belongs to; None for other packages."""
    words = target.split(".")
    if words[0] != "mgrpo":
        return None
    return words[1] if len(words) > 1 else ""


def layer_of(part: str) -> int:
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


def test_the_source_was_found() -> None:
    names = {module.name for module in modules()}
    assert {"mgrpo", "mgrpo.kernels.so3.op", "mgrpo.body.model", "mgrpo.report.page"} <= names
    imported = {found.target for module in modules() for found in module.imports}
    assert {"mgrpo.kernels._dispatch", "mgrpo.geometry", "torch"} <= imported


def test_every_part_has_its_place() -> None:
    placed = {part for parts in LAYERS for part in parts} | set(PICTURES)
    parts = {module.part for module in modules()} - {""}
    assert parts == placed, "give a new package or module of mgrpo its line in LAYERS or PICTURES"


def test_contributing_draws_these_layers() -> None:
    """The picture of "Who imports whom" is this file's tables, from the top down."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    drawn = re.search(r"## Who imports whom\n+```\n(.*?)```", text, re.S)
    assert drawn, "CONTRIBUTING.md has no picture under 'Who imports whom'"
    layers, pictures = (re.split(r"\s*→\s*", line.strip()) for line in drawn[1].strip().splitlines())
    assert [set(re.split(r",\s*", part)) for part in layers] == [set(parts) for parts in reversed(LAYERS)]
    assert set(re.split(r",\s*", pictures[0])) == set(USERS_OF_PICTURES)
    assert pictures[1:-1] == list(reversed(PICTURES))
    assert set(re.split(r",\s*", pictures[-1])) == PICTURES["viz"]


def test_imports_point_down() -> None:
    problems = []
    for module in modules():
        if module.part in ("", *PICTURES):
            continue
        for found in module.imports:
            part = part_of(found.target)
            if part in (None, "", module.part):
                continue
            if part in PICTURES:
                if module.part not in USERS_OF_PICTURES:
                    problems.append(said(module, found, "made by the commands, the demo and the ablations"))
            elif layer_of(part) >= layer_of(module.part):
                problems.append(said(module, found, f"{part} does not stand below {module.part}"))
    refuse(problems)


def test_pictures_know_numbers_only() -> None:
    refuse(
        [
            said(module, found, f"{module.part} may import {', '.join(sorted(PICTURES[module.part]))} of mgrpo")
            for module in modules()
            if module.part in PICTURES
            for found in module.imports
            if part_of(found.target) not in (None, module.part, *PICTURES[module.part])
        ]
    )


def test_the_package_itself_imports_nothing() -> None:
    (package,) = (module for module in modules() if module.name == "mgrpo")
    assert [found.target for found in package.imports] == ["__future__"]


@pytest.mark.parametrize("part", OUTSIDE, ids=lambda part: part or "mgrpo")
def test_other_packages(part: str) -> None:
    refuse(
        [
            said(module, found, f"only {', '.join(sorted(OUTSIDE[part])) or 'the standard library'} may be imported")
            for module in modules()
            if module.part == part
            for found in module.imports
            if part_of(found.target) is None
            and (top := found.target.split(".")[0]) not in OUTSIDE[part]
            and top not in sys.stdlib_module_names
        ]
    )


def test_files_are_locked_and_replaced_in_one_place() -> None:
    """A second lock or a second way to replace a file would forget what the first one learned."""
    own = re.compile(r"\bfcntl\b|\bos\.(replace|rename|link)\(|\bpartial\.replace\(|\b(mkstemp|NamedTemporaryFile)\b")
    problems = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}: mgrpo.storage has FileLock, replacing and atomic_write"
        for path in source_files()
        if path != ROOT / "mgrpo" / "storage.py"
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if own.search(line)
    ]
    assert own.search((ROOT / "mgrpo" / "storage.py").read_text("utf-8"))
    refuse(problems)


def test_packages_for_tests_stay_in_tests() -> None:
    refuse(
        [
            said(module, found, "belongs in tests and benchmarks")
            for module in modules()
            for found in module.imports
            if found.target.split(".")[0] in TESTS_ONLY
        ]
    )


def test_triton_stays_in_its_files() -> None:
    refuse(
        [
            said(module, found, "triton may be named in files called triton_*.py and _triton_*.py only")
            for module in modules()
            if not TRITON_FILE.fullmatch(module.path.stem)
            for found in module.imports
            if found.target.split(".")[0] == "triton"
        ]
    )


def test_triton_is_loaded_on_first_use() -> None:
    refuse(
        [
            said(module, found, "load it inside a function")
            for module in modules()
            if not TRITON_FILE.fullmatch(module.path.stem)
            for found in module.imports
            if found.at_start and TRITON_FILE.fullmatch(found.target.rpartition(".")[2])
        ]
    )


def test_kernels_can_be_lifted_out() -> None:
    """Within kernels/, imports are relative, and an operator's folder uses its own files and the package's _*.py."""
    problems = []
    for module in modules():
        if module.part != "kernels":
            continue
        for node in ast.walk(ast.parse(module.path.read_text("utf-8"))):
            absolute = node.module if isinstance(node, ast.ImportFrom) and not node.level else None
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [absolute or ""]
            if any(name.split(".")[0] == "mgrpo" for name in names):
                problems.append(f"{module.path.relative_to(ROOT)}:{node.lineno} imports mgrpo by name; use a dot")
        words = module.name.split(".")[2:]
        if not words or not (ROOT / "kernels" / words[0]).is_dir():
            continue
        own = words[0]
        for found in module.imports:
            used = found.target.split(".")[2:]
            if part_of(found.target) != "kernels" or not used or used[0] == own or used[0].startswith("_"):
                continue
            if used[0] not in SIBLINGS.get(own, frozenset()) or len(used) > 1:
                problems.append(said(module, found, f"another operator's files, seen from {own}"))
    refuse(problems)


def test_shared_parts_of_the_kernels_know_no_operator() -> None:
    refuse(
        [
            said(module, found, "an operator's folder")
            for module in modules()
            if re.fullmatch(r"mgrpo\.kernels\._\w+", module.name)
            for found in module.imports
            if part_of(found.target) == "kernels" and not re.match(r"mgrpo\.kernels\._", found.target)
        ]
    )


def test_tests_share_modules_beside_them() -> None:
    """What several test files need is a module of its own, imported by its name."""
    problems = []
    paths = sorted((ROOT / "tests").rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    known = set(names)
    for path, name in zip(paths, names):
        tree = ast.parse(path.read_text("utf-8"))
        place = path.relative_to(ROOT)
        problems += [
            f"{place}:{found.line} imports {found.target}: move what both need into a module beside them"
            for found in read_imports(tree, name, False, known)
            if re.search(r"(^|\.)test_\w+$", found.target)
        ]
        problems += [
            f"{place}:{node.lineno} loads a file by its path: import it"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr == "spec_from_file_location"
        ]
    assert "tests.train.launcher" in names
    refuse(problems)


def test_tests_stand_where_the_packages_do() -> None:
    """A folder of tests has the name of a package; the file of a test is found by its name alone."""
    parts = {module.part for module in modules()}
    folders = [path.name for path in (ROOT / "tests" / "mgrpo").iterdir() if (path / "__init__.py").is_file()]
    assert folders and set(folders) <= parts
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)


def test_training_loops_do_not_import_each_other() -> None:
    loops = {f"mgrpo.train.{name}" for name in TRAINING_LOOPS}
    assert loops <= {module.name for module in modules()}
    refuse(
        [
            said(module, found, "loops share pure functions, not each other")
            for module in modules()
            if module.name in loops
            for found in module.imports
            if found.target in loops - {module.name}
        ]
    )


def test_no_circles_among_modules() -> None:
    """Imports form no circle, wherever they stand: one in a function or for types alone ties two files together as
    well (a package's __init__ names its own modules, and is left out)."""
    names = {module.name for module in modules()}
    graph = {
        module.name: {
            found.target
            for found in read_imports(ast.parse(module.path.read_text("utf-8")), module.name, False, names, types=True)
        }
        for module in modules()
        if module.path.name != "__init__.py"
    }
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        state[name] = 1
        for target in sorted((graph[name] & set(graph)) - {name}):
            if state.get(target) == 1:
                circle = (*trail, name, target)
                raise AssertionError("imports in a circle: " + " -> ".join(circle[circle.index(target) :]))
            if target not in state:
                visit(target, (*trail, name))
        state[name] = 2

    for name in graph:
        if name not in state:
            visit(name, ())


def includes(path: Path) -> list[tuple[int, str]]:
    """Line and name of every include of a C++ file."""
    lines = path.read_text("utf-8").splitlines()
    found = [(number, re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', line)) for number, line in enumerate(lines, 1)]
    return [(number, match[1]) for number, match in found if match]


def included_files(path: Path) -> set[Path]:
    """Our headers that a C++ file sees, itself included."""
    seen, waiting = set(), [path.resolve()]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += [file for _, name in includes(current) if (file := (current.parent / name).resolve()).is_file()]
    return seen


def native_sources() -> list[Path]:
    return sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu"))


def test_formulas_in_cpp_know_no_torch() -> None:
    maths = [path for path in native_sources() if path.name.endswith("_math.h")]
    assert maths
    refuse(
        [
            f"{file.relative_to(ROOT)}:{line} includes {name}, seen from {path.relative_to(ROOT)}"
            for path in maths
            for file in included_files(path)
            for line, name in includes(file)
            if name.startswith(("torch/", "ATen/", "c10/"))
        ]
    )


def test_native_operators_include_the_common_files_and_their_own() -> None:
    problems = []
    for path in native_sources():
        for line, name in includes(path):
            place = f"{path.relative_to(ROOT)}:{line} includes {name}"
            if name == "torch/extension.h":
                problems.append(f"{place}: registration goes through the stable ABI")
            file = (path.parent / name).resolve()
            allowed = [path.parent, ROOT / "csrc" / "common"]
            if path.name == "cuda_compat.h":
                allowed.append(ROOT / "csrc" / "emulation")
            if file.name.endswith("_math.h"):
                allowed += [ROOT / "csrc" / sibling for sibling in SIBLINGS.get(path.parent.name, ())]
            if file.is_file() and file.parent not in allowed:
                problems.append(f"{place}: another operator's file")
    refuse(problems)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.nn as nn", [("torch.nn", True)]),
        ("from . import reference", [("mgrpo.kernels.so3.reference", True)]),
        ("from .._checks import check_tensor", [("mgrpo.kernels._checks", True)]),
        ("from ..rng import philox_normal", [("mgrpo.kernels.rng", True)]),
        ("def f():\n    from mgrpo import geometry", [("mgrpo.geometry", False)]),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", [("typing", True)]),
        ("try:\n    import fcntl\nexcept ImportError:\n    fcntl = None", [("fcntl", True)]),
    ],
)
def test_reading_imports(source: str, expected: list[tuple[str, bool]]) -> None:
    known = {"mgrpo.kernels.so3.reference", "mgrpo.geometry", "mgrpo.kernels.rng"}
    found = read_imports(ast.parse(source), "mgrpo.kernels.so3.op", False, known)
    assert [(one.target, one.at_start) for one in found] == expected
