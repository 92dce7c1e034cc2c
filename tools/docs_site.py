"""What mkdocs.yml can't say: pages of the site that lie elsewhere in the repository, or are made from the code.

* README.md is the first page; CONTRIBUTING.md, the READMEs of kernels, benchmarks and assets have pages of their own.
* Every command has a section of the page "Commands": what --help prints.
* Every part of the package has a page of the API reference, made from its docstrings.
* Links are written for readers of the repository. Those to a page of the site lead there, those to the source of a
  part to its API page; links to other files of the repository become their names.

mkdocs calls the functions that begin with ``on_``.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "mgrpo/assets/README.md": "assets.md",
    "csrc/emulation/README.md": "emulation.md",
} | {
    f"kernels/{path.parent.name}/README.md": f"kernels/{path.parent.name}.md"
    for path in ROOT.glob("kernels/*/README.md")
}
"""Files of the repository that are pages of the site, and what they are called there."""

COMMANDS = "commands.md"
"""The page with the help of all commands."""

_NOT_API = {"assets", "__main__", "py.typed"}
_FENCE = re.compile(r"^(```.*?^```)[ \t]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_ATTRIBUTE = re.compile(r"(\b(?:src|srcset)=\")([^\"]+)(\")")


def api_parts() -> dict[str, tuple[str, ...]]:
    """Parts of the package that have a page, and the modules on it: all of a part's, for kernels the operators."""
    parts: dict[str, tuple[str, ...]] = {}
    for path in sorted((ROOT / "mgrpo").iterdir()):
        name = path.stem
        if name.startswith("_") or path.name in _NOT_API or name == "kernels":
            continue
        if path.suffix == ".py":
            parts[name] = (f"mgrpo.{name}",)
        elif (path / "__init__.py").is_file():
            files = [
                file for file in sorted(path.rglob("*.py")) if not file.stem.startswith("_") or file.stem == "__init__"
            ]
            modules = [
                ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files
            ]
            parts[name] = tuple(sorted(modules))
    operators = sorted(path.parent.name for path in ROOT.glob("kernels/*/__init__.py"))
    parts["kernels"] = ("mgrpo.kernels", *(f"mgrpo.kernels.{name}" for name in operators))
    return dict(sorted(parts.items()))


def summary(module: str) -> str:
    """First line of a module's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(source_of(module).read_text("utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").rstrip(".")


def source_of(module: str) -> Path:
    """The file of a module."""
    words = module.split(".")[1:]
    folder = ROOT / "kernels" if words[0] == "kernels" else ROOT / "mgrpo" / words[0]
    path = folder.joinpath(*words[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def exported(module: str, modules: tuple[str, ...]) -> list[str]:
    """Names in a package's ``__all__`` that it takes from others of ``modules``; they are described there."""
    path = source_of(module)
    if path.name != "__init__.py":
        return []
    tree = ast.parse(path.read_text("utf-8"))
    names: list[str] = []
    taken: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "__all__" for target in node.targets):
            names = [constant.value for constant in ast.walk(node.value) if isinstance(constant, ast.Constant)]
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: len(module.split(".")) - node.level + 1] if node.level else []
            if ".".join([*base, *([node.module] if node.module else [])]) in modules:
                taken |= {alias.asname or alias.name for alias in node.names}
    return [name for name in names if name in taken]


def api_page(part: str, modules: tuple[str, ...]) -> str:
    """The page of a part: its modules with their docstrings and public members."""
    lines = [f"# mgrpo.{part}", ""]
    for module in modules:
        lines += [f"::: {module}", ""]
        if names := exported(module, modules):
            lines[-1:] = [f"    options: {{filters: ['!^_', '!^({'|'.join(names)})$']}}", ""]
            lines += [f"From `{module}` can be imported: " + ", ".join(f"`{name}`" for name in names) + ".", ""]
    return "\n".join(lines)


def api_index(parts: dict[str, tuple[str, ...]]) -> str:
    """The page that lists all parts."""
    rows = [f"| [mgrpo.{part}]({part}.md) | {summary(f'mgrpo.{part}')} |" for part in parts]
    return "\n".join(["# API reference", "", "Made from the docstrings.", "", "| part | |", "|---|---|", *rows, ""])


def commands_page() -> str:
    """The help of every command, in the order of the overview."""
    from mgrpo import cli

    lines = ["# Commands", "", "What `mgrpo COMMAND --help` prints.", ""]
    os.environ["COLUMNS"] = "90"
    for command in cli.COMMANDS:
        name = " ".join(command.words)
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(io.StringIO()):
            code = cli.main([*command.words, "--help"])
        if code:
            raise RuntimeError(f"mgrpo {name} --help ends with code {code}")
        text = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).replace(str(Path.home()), "~").rstrip()
        lines += [
            f"## mgrpo {name}",
            "",
            f"{command.summary[0].upper()}{command.summary[1:]}.",
            "",
            "```text",
            text,
            "```",
            "",
        ]
    return "\n".join(lines)


def on_config(config: Any) -> Any:
    """Complete the navigation: pages from elsewhere, commands, API, and pages of docs/ that mkdocs.yml doesn't name."""
    named = set(re.findall(r"[\w./-]+\.md", repr(config["nav"])))
    docs = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    more = sorted(docs - named)
    if more:
        config["nav"].append({"More": more})
    kernels = sorted(page for page in ELSEWHERE.values() if page.startswith("kernels/"))
    config["nav"] += [
        {"Commands": COMMANDS},
        {"API reference": ["api/index.md", *({f"mgrpo.{part}": f"api/{part}.md"} for part in api_parts())]},
        {"Operators": kernels},
        {"Project": ["contributing.md", "benchmarks.md", "assets.md", "emulation.md"]},
    ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/."""
    from mkdocs.structure.files import File

    parts = api_parts()
    pages = {page: (ROOT / source).read_text("utf-8") for source, page in ELSEWHERE.items()}
    pages |= {f"api/{part}.md": api_page(part, modules) for part, modules in parts.items()}
    pages |= {"api/index.md": api_index(parts), COMMANDS: commands_page()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links that lead through the repository into links of the site."""
    uri = page.file.src_uri
    if uri == COMMANDS or uri.startswith("api/"):
        return markdown
    sources = {target: source for source, target in ELSEWHERE.items()}
    here = sources.get(uri, f"docs/{uri}")
    parts = _FENCE.split(markdown)  # every second one is a block of code

    def turned(match: re.Match[str]) -> str:
        return f"{match[1]}{site_link(match[2], here, uri)}{match[3]}"

    for index in range(0, len(parts), 2):
        parts[index] = _ATTRIBUTE.sub(turned, _LINK.sub(turned, parts[index]))
        parts[index] = re.sub(r"\[([^\]]*)\]\(#none\)", r"\1", parts[index])
    return "".join(parts)


def site_link(target: str, here: str, uri: str) -> str:
    """Where a link of the file ``here`` of the repository leads on the page ``uri`` of the site; "#none": nowhere."""
    if re.match(r"[a-z]+:|#", target):
        return target
    path, mark, anchor = target.partition("#")
    file = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
    if file in ELSEWHERE:
        goal = ELSEWHERE[file]
    elif file.startswith("docs/"):
        goal = file.removeprefix("docs/")
    else:
        words = file.removesuffix(".py").split("/")
        part = "kernels" if words[0] == "kernels" else words[1] if words[0] == "mgrpo" and len(words) > 1 else ""
        if part not in api_parts():
            return "#none"
        goal, mark, anchor = f"api/{part}.md", "", ""
    return posixpath.relpath(goal, posixpath.dirname(uri) or ".") + mark + anchor
