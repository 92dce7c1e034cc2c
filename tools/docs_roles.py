"""For the API reference: roles of reStructuredText in docstrings (``:func:`place_on_cpf```) become plain code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc|obj):`~?([^`]+)`")


class PlainRoles(griffe.Extension):
    """Rewrites the docstring of every object that has one."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object when it is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
