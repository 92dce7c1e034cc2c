"""For the API reference: docstrings are words, not Markdown.

Roles of reStructuredText (``:func:`place_on_cpf```) become plain code, and two brackets in a row, as in
``FILE [FILE ...] [--truth FILE]``, stay brackets instead of becoming a link.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc|obj):`~?([^`]+)`")
_TWO_BRACKETS = re.compile(r"(?<!\\)\[(?=[^\[\]]*\]\s?\[)")


def as_markdown(text: str) -> str:
    """A docstring's text, such that Markdown shows it as it is meant."""
    return _TWO_BRACKETS.sub(r"\\[", _ROLE.sub(r"`\1`", text))


class PlainRoles(griffe.Extension):
    """Rewrites the docstring of every object that has one."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object when it is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
