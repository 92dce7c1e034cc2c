"""Errors that speak to a user: what was expected, what came, how to mend it. The command line prints them without a
traceback."""

from __future__ import annotations


class MgrpoError(Exception):
    """Base of every error that is the user's to mend. The command line prints its text and exits with code 2."""


class InputError(MgrpoError, ValueError):
    """A file, option or array that can't be used: the text says what was expected, what came and how to mend it."""
