"""Wanted figures, one file per topic with a tuple ``REQUIREMENTS``; ``python -m benchmarks.check`` finds the files."""

from __future__ import annotations

import importlib
import pkgutil

from benchmarks.requirement import Requirement


def all_requirements() -> list[Requirement]:
    """The requirements of every file here, by file name. Raises ValueError where two have the same name."""
    found: list[Requirement] = []
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        found.extend(importlib.import_module(f"{__name__}.{module.name}").REQUIREMENTS)
    names = [requirement.name for requirement in found]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"requirements must have names of their own, repeated: {', '.join(repeated)}")
    return found
