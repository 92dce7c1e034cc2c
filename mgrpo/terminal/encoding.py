"""Text that every terminal can show.

A run must not end because of a plus-minus sign: Python writes to standard output in the encoding of the locale. Where
that is not Unicode (``LC_ALL=C`` on a cluster, an old Windows console), characters outside it end the program with a
UnicodeEncodeError; on standard error they become escapes such as ``\\u00b1``. ``write_anywhere`` makes both write a
plain spelling instead.
"""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata

_PLAIN = {
    "±": "+-", "\N{MINUS SIGN}": "-", "–": "-", "—": "-", "…": "...", "→": "->", "←": "<-", "↑": "^", "↓": "v",
    "\N{MICRO SIGN}": "u", "\N{GREEK SMALL LETTER MU}": "u",
    "×": "x", "·": ".", "•": "*", "≤": "<=", "≥": ">=", "≈": "~", "∞": "inf", "√": "sqrt", "Δ": "delta",
    "✓": "ok", "✔": "ok", "✗": "x", "✘": "x", "‘": "'", "’": "'", "“": '"', "”": '"', "ℵ": "aleph",
    "│": "|", "┃": "|", "║": "|", "─": "-", "━": "-", "═": "=", "╸": "-", "╺": "-",
}  # fmt: skip
"""Spellings of the characters that mgrpo and its tables use."""

_HANDLER = "mgrpo-plain"


def plain(text: str) -> str:
    """A spelling of a text in ASCII: ``_PLAIN`` where it says so, letters without their accents, a box's corners as
    ``+``, moving dots (braille) as ``*``, anything else as ``?``."""
    return "".join(char if char.isascii() else _spelling(char) for char in text)


def _spelling(char: str) -> str:
    if char in _PLAIN:
        return _PLAIN[char]
    if "\u2500" <= char <= "\u257f":
        return "+"
    if "\u2800" <= char <= "\u28ff":
        return "*"
    if char.isspace():
        return " "
    letters = "".join(part for part in unicodedata.normalize("NFKD", char) if part.isascii())
    return letters or "?"


def _encode_plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    """Error handler for codecs: the plain spelling; bytes of file names that aren't text stay what they are."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    parts = []
    for char in error.object[error.start : error.end]:
        raw = "\udc80" <= char <= "\udcff"
        parts.append(bytes([ord(char) - 0xDC00]) if raw else plain(char).encode("ascii"))
    return b"".join(parts), error.end


def write_anywhere() -> None:
    """Make standard output and standard error write every text, plainly where their encoding lacks a character; streams
    in UTF-8 stay as they are."""
    codecs.register_error(_HANDLER, _encode_plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors=_HANDLER)
