"""The documentation is true: its Python runs, its commands parse, its links lead somewhere, its variables exist."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mgrpo import cli
from mgrpo.command_list import COMMANDS, ENVIRONMENT, Command

ROOT = Path(__file__).resolve().parents[1]

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
"""Pages for people who read the repository."""

NOTES = [ROOT / "mgrpo" / "assets" / "README.md", *sorted((ROOT / "kernels").glob("*/README.md"))]
"""Pages that ship with the package; only their links are checked."""

VARIABLE = re.compile(r"MGRPO_[A-Z_]+")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    """Line of the opening fence, from 1."""
    language: str
    text: str

    @property
    def label(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page in one of the languages."""
    found, opened = [], None
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        fence = re.match(r"```(\w*)\s*$", line)
        if fence is None:
            if opened is not None:
                opened[2].append(line)
        elif opened is None:
            opened = (number, fence[1], [])
        else:
            found.append(Block(page, opened[0], opened[1], "\n".join(opened[2]) + "\n"))
            opened = None
    assert opened is None, f"{page}: the fence in line {opened[0]} is not closed"
    return [block for block in found if block.language in languages]


def commands() -> Iterator[tuple[Block, list[str]]]:
    """Every command of the pages' shell blocks as words; continued lines are joined, comments dropped."""
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield block, words


PYTHON = [block for page in PAGES for block in blocks(page, "python")]
SHOWN = list(commands())
MGRPO = [(block, words[1:]) for block, words in SHOWN if words[0] == "mgrpo"]
MAKE = [(block, words[1:]) for block, words in SHOWN if words[0] == "make"]


def test_the_readme_has_what_a_newcomer_needs() -> None:
    shown = [" ".join(words) for block, words in SHOWN if block.page.name == "README.md"]
    assert shown[:2] == ["make demo", "make test"]
    assert len([block for block in PYTHON if block.page.name == "README.md"]) >= 2
    shown_commands = {command.words for command in COMMANDS for _, words in MGRPO if starts_with(words, command)}
    assert shown_commands >= {command.words for command in COMMANDS} - {("demo",)}


def test_the_api_fits_into_fifteen_lines() -> None:
    lines = [line for line in PYTHON[0].text.splitlines() if line.strip()]
    assert PYTHON[0].page.name == "README.md" and len(lines) <= 15


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.label)
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Within this process: a fresh one for each block would load torch anew, which takes longer than the blocks.
    monkeypatch.chdir(tmp_path)
    script = tmp_path / f"{block.page.stem}_line_{block.line}.py"
    script.write_text(block.text, "utf-8")
    runpy.run_path(str(script), run_name="__main__")


def starts_with(words: list[str], command: Command) -> bool:
    return tuple(words[: len(command.words)]) == command.words


@pytest.mark.parametrize(
    ("block", "words"), [pytest.param(*shown, id=f"{shown[0].label} {' '.join(shown[1])[:40]}") for shown in MGRPO]
)
def test_commands_parse(
    block: Block, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command exists and takes the options shown; it is not run."""
    command = next((command for command in COMMANDS if starts_with(words, command)), None)
    assert command is not None, f"{block.label}: there is no command {' '.join(words)}"
    module, taken = importlib.import_module(command.module), []

    def note(config: Any) -> None:
        taken.append(config)

    monkeypatch.setattr(module, command.function, note)
    assert cli.main(words) == 0, capsys.readouterr().err
    assert len(taken) == 1 and type(taken[0]).__name__ == command.config


def test_commands_in_running_text_exist() -> None:
    for page in PAGES:
        for text in re.findall(r"`mgrpo ([a-z][^`]*)`", page.read_text("utf-8")):
            words = text.split()
            assert any(starts_with(words, command) for command in COMMANDS), f"{page.name}: mgrpo {text}"


def test_options_in_running_text_exist(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    help_texts = []
    for command in COMMANDS:
        assert cli.main([*command.words, "--help"]) == 0
        help_texts.append(capsys.readouterr().out)
    others = {"--no-build-isolation", "--index-url", "--only", "--write"}  # of pip, benchmarks.check, tools
    known = set(re.findall(r"--[a-z][\w.-]*", "\n".join(help_texts))) | others
    for page in PAGES:
        for text in re.findall(r"`([^`\n]*--[^`\n]*)`", page.read_text("utf-8")):
            for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*", text):
                assert option in known, f"{page.name}: {option}"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert MAKE and targets >= {"demo", "test", "install"}
    for block, words in MAKE:
        unknown = [word for word in words if "=" not in word and word not in targets]
        assert not unknown, f"{block.label}: make {' '.join(words)}"
    for page in PAGES:
        text = page.read_text("utf-8")
        for target in re.findall(r"`make ([a-z]+)", text):
            assert target in targets, f"{page.name}: make {target}"
        for variable in re.findall(r"`make [^`]*?\b([A-Z]+(?:_[A-Z]+)*)=", text):
            known = makefile + (ROOT / "setup.py").read_text("utf-8")
            assert re.search(rf"\b{variable}\b", known), f"{page.name}: {variable}"


def anchors(page: Path) -> set[str]:
    """Anchors that a page's headings get."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *NOTES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            missing.append(target)
    assert not missing, f"{page.relative_to(ROOT)}: {', '.join(missing)}"


@pytest.mark.parametrize("page", [*PAGES, *NOTES], ids=lambda page: str(page.relative_to(ROOT)))
def test_pictures_have_texts(page: Path) -> None:
    for text in re.findall(r"!\[([^\]]*)\]\(", page.read_text("utf-8")):
        assert len(text) > 20, f"{page.relative_to(ROOT)}: a picture needs words that stand in for it, got {text!r}"


# --- environment variables


def strings(path: Path) -> Iterator[str]:
    """Every string constant of a Python file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def read_by_python(path: Path) -> set[str]:
    """Names of variables that a Python file takes from the environment by a literal name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Call) and re.search(r"(environ\.(get|setdefault|pop)|getenv)$", ast.unparse(node.func)):
            first = node.args[0]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("environ"):
            first = node.slice
        else:
            continue
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            found.add(first.value)
    return found


def python_files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return [path for path in found if (ROOT / "mgrpo" / "kernels") not in path.parents]


def our_variables() -> set[str]:
    """Every MGRPO_ name that the code knows: whole string constants in Python, expansions in shell and make, what C++
    asks for."""
    found = set()
    for path in [*python_files("mgrpo", "kernels", "tests", "tools", "benchmarks"), ROOT / "setup.py"]:
        found |= {text for text in strings(path) if VARIABLE.fullmatch(text)}
    for path in (ROOT / "csrc").rglob("*.h"):
        found |= set(re.findall(r'getenv\("(MGRPO_[A-Z_]+)"\)', path.read_text("utf-8")))
    for path in (ROOT / "tools" / "install", ROOT / "Makefile", ROOT / ".ci" / "run"):
        found |= set(re.findall(r"\$[{(]?(MGRPO_[A-Z_]+)", path.read_text("utf-8")))
        found |= set(re.findall(r"^\w+: export (MGRPO_[A-Z_]+)", path.read_text("utf-8"), re.MULTILINE))
    return found


def documented_variables() -> set[str]:
    """Names in the first column of the tables of docs/env.md."""
    rows = re.findall(r"^\|((?: *`[A-Z_]+`,?)+) *\|", (ROOT / "docs" / "env.md").read_text("utf-8"), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}


def test_our_variables_are_documented_and_nothing_else() -> None:
    documented = {name for name in documented_variables() if VARIABLE.fullmatch(name)}
    known = our_variables()
    assert {"MGRPO_BACKEND", "MGRPO_BUILD", "MGRPO_SMPLH", "MGRPO_GOLDEN"} <= known
    assert known - documented == set(), "add them to docs/env.md"
    assert documented - known == set(), "docs/env.md names variables that the code does not know"


def test_every_variable_that_is_read_is_documented() -> None:
    read = set().union(*(read_by_python(path) for path in [*python_files("mgrpo", "kernels"), ROOT / "setup.py"]))
    assert {"CXX", "OMP_NUM_THREADS", "MGRPO_PROGRESS"} <= read
    assert read - documented_variables() == set(), "add them to docs/env.md"


def test_the_command_line_lists_variables_of_the_page() -> None:
    assert {name for name, _ in ENVIRONMENT} <= documented_variables()


def test_variables_in_the_pages_exist() -> None:
    for page in PAGES:
        unknown = set(VARIABLE.findall(page.read_text("utf-8"))) - documented_variables()
        assert not unknown, f"{page.name}: {', '.join(sorted(unknown))}"
