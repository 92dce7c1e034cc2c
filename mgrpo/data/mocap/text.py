"""Text files of motion capture, read line by line within limits; errors name the file and the line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NoReturn

from mgrpo.errors import InputError

MAX_BYTES = 256 * 1024 * 1024
"""Largest text file that is read."""

MAX_LINE = 1 << 18
"""Longest line, characters."""

MAX_JOINTS = 1024
"""Most joints (end sites included) of a skeleton."""

MAX_FRAMES = 1_000_000
"""Most frames of a file."""

MAX_JOINT_FRAMES = 8_000_000
"""Most frames times joints, since orientations of all of them are held in memory (0.8 GB at the limit)."""


class TextFile:
    """The lines of a text file; ``lines[0]`` is line 1."""

    def __init__(self, path: str | Path, what: str) -> None:
        """Read ``path``; ``what`` says what it should be ("BVH file").

        Raises:
            InputError: missing, unreadable, larger than :data:`MAX_BYTES`, not text, or a line too long.
        """
        self.path = Path(path)
        self.what = what
        try:
            size = self.path.stat().st_size
            if size > MAX_BYTES:
                raise InputError(
                    f"{path}: {size / 1e6:.0f} MB; a {what} of at most {MAX_BYTES // 2**20} MiB is read. Cut it into "
                    "shorter recordings"
                )
            data = self.path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: can't be read ({error.strerror or error}); expected a {what}") from error
        sample = data[:65536]
        odd = sum(sample.count(byte) for byte in range(32) if byte not in (9, 10, 12, 13, 26))
        if b"\0" in data or odd > len(sample) // 100:
            raise InputError(f"{path}: holds binary data; expected a {what}, which is text. Get the file again")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        # not splitlines(), which also breaks at characters that may stand in a name
        self.lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for number, line in enumerate(self.lines, 1):
            if len(line) > MAX_LINE:
                self.fail(number, f"the line has {len(line)} characters; at most {MAX_LINE} are read")

    def fail(self, line: int, problem: str) -> NoReturn:
        """Raise InputError with file, line and ``problem``."""
        raise InputError(f"{self.path}, line {line}: {problem}")

    def number(self, line: int, word: str, meaning: str) -> float:
        """A finite number written in ``word``."""
        try:
            if "_" in word:
                raise ValueError
            value = float(word)
        except ValueError:
            self.fail(line, f"{meaning} must be a number, got {word[:40]!r}")
        if not math.isfinite(value):
            self.fail(line, f"{meaning} must be finite, got {word[:40]!r}; cut or repair the recording there")
        return value

    def numbers(self, line: int, words: list[str], meaning: str) -> list[float]:
        """Finite numbers written in ``words``."""
        try:
            values = list(map(float, words))
            # a NaN or an infinity makes the sum one; an overflow of finite numbers does no harm, each is then checked
            if math.isfinite(sum(values)) and not any("_" in word for word in words):
                return values
        except ValueError:
            pass
        return [self.number(line, word, meaning) for word in words]

    def whole(self, line: int, word: str, meaning: str, most: int) -> int:
        """A whole number from 0 to ``most``."""
        if not (word.isascii() and word.isdigit()) or len(word) > 12:
            self.fail(line, f"{meaning} must be a whole number, got {word[:40]!r}")
        if int(word) > most:
            self.fail(line, f"{meaning} is {int(word)}; at most {most} are read")
        return int(word)

    def check_size(self, line: int, frames: int, joints: int) -> None:
        """Fail where the motion would take too much memory."""
        if frames * joints > MAX_JOINT_FRAMES:
            self.fail(
                line,
                f"{frames} frames of {joints} joints are too much at once (limit: {MAX_JOINT_FRAMES} together); cut "
                "the recording into shorter ones",
            )
