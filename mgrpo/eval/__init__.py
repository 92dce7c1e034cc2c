"""Measuring motion: metrics in two families, evaluation with fixed noise, motion files of any origin, statistics and
tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgrpo.eval.files import Comparison, compare_files

__all__ = ["Comparison", "compare_files"]


def __getattr__(name: str) -> Any:
    # On first use: the metrics alone must not load tables and readers.
    if name in __all__:
        from mgrpo.eval import files

        return getattr(files, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
