"""What the tables of registers are about: each begins with the compiler's version and a digest of every source.

A compiler that is given the same source twice says the same twice. So where compiler and digest are those of the table,
tests take its word for what is slow to compile, and compile a part of it, which shows that the table is honest.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def digest(files: Iterable[Path], options: Sequence[str] = ()) -> str:
    """Of the files' content without comments and docstrings of their own lines, and of how they are compiled."""
    total = hashlib.sha256("\0".join(options).encode())
    for path in sorted({*files}, key=lambda path: (path.name, str(path))):
        total.update(f"\0{path.name}\0{_code(path)}".encode())
    return total.hexdigest()[:16]


def with_headers(source: Path) -> set[Path]:
    """A C++ source and every header of ours that it includes, however indirectly."""
    found, waiting = set(), [source.resolve()]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        names = re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE)
        waiting += [(path.parent / name).resolve() for name in names]
    return found


def head(compiler: str, digests: Mapping[str, str]) -> str:
    """The lines that a table begins with."""
    return "".join(f"# {line}\n" for line in [compiler, *(f"{name} {known}" for name, known in digests.items())])


def split(text: str) -> tuple[str, dict[str, str], str]:
    """The compiler that a table's first line names, the digests that follow, and the table."""
    lines = text.splitlines(keepends=True)
    count = next((number for number, line in enumerate(lines) if not line.startswith("# ")), len(lines))
    compiler, *sources = [line[2:].strip() for line in lines[:count]]
    return compiler, dict(line.split(" ") for line in sources), "".join(lines[count:])


def _code(path: Path) -> str:
    text = path.read_text()
    comment, told = ("#", _docstring_lines(text)) if path.suffix == ".py" else ("//", set())
    lines = (line.rstrip() for number, line in enumerate(text.splitlines(), 1) if number not in told)
    return "\n".join(line for line in lines if line and not line.lstrip().startswith(comment))


def _docstring_lines(python: str) -> set[int]:
    """Numbers of the lines of statements that are nothing but a text."""
    texts = [
        node
        for node in ast.walk(ast.parse(python))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return {number for node in texts for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
