"""A command in a pseudo-terminal, and what stands on its screen: as much of a terminal as the display uses."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence

_PIECE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b[()][A-Z0-9]|\x1b[=>78]|([\r\n])|([^\x1b\r\n]+)")


class Screen:
    """Lines of text under a cursor that escape sequences move; without a lower end."""

    def __init__(self, columns: int) -> None:
        self.columns, self.rows, self._row, self._column, self._begun = columns, [""], 0, 0, ""

    def write(self, text: str) -> None:
        """Take what a program wrote; an escape sequence may come in two pieces."""
        text = self._begun + text
        begun = re.search(r"\x1b(\[[0-9;?]*|[()])?$", text)
        self._begun = begun[0] if begun else ""
        text = text[: len(text) - len(self._begun)]
        for number, final, end, plain in _PIECE.findall(text):
            if plain:
                while plain:
                    if self._column == self.columns:
                        self._down()
                        self._column = 0
                    room = self.columns - self._column
                    self._put(plain[:room])
                    plain = plain[room:]
            elif end == "\n":
                self._down()
            elif end == "\r":
                self._column = 0
            elif final == "A":
                self._row = max(0, self._row - int(number or 1))
            elif final == "K":
                self.rows[self._row] = "" if number == "2" else self.rows[self._row][: self._column]

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self.rows):
            self.rows.append("")

    def _put(self, text: str) -> None:
        row = self.rows[self._row].ljust(self._column)
        self.rows[self._row] = row[: self._column] + text + row[self._column + len(text) :]
        self._column += len(text)

    def text(self) -> str:
        """Everything on it."""
        return "\n".join(self.rows)


def run_on_terminal(
    command: Sequence[str], *, columns: int, lines: int, environment: Mapping[str, str], seconds: float, shows: str = ""
) -> tuple[int | None, list[str]]:
    """Run a command in a terminal of this size until it ends, or shows a text, in which case it is interrupted.

    Returns its exit status (None: it was ended after ``seconds``), and the screen at every moment that something new
    stood on it.
    """
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=other, stderr=other, env=dict(environment), start_new_session=True
    )
    os.close(other)
    screen, screens, unread = Screen(columns), [], b""
    end = time.monotonic() + seconds
    interrupted = False
    while time.monotonic() < end:
        if not select.select([main], [], [], 0.1)[0]:
            if process.poll() is not None:
                break
            continue
        try:
            unread += os.read(main, 65536)
        except OSError:  # the other end was closed
            break
        try:
            text, unread = unread.decode(), b""
        except UnicodeDecodeError:  # in the middle of a letter
            continue
        screen.write(text)
        screens.append(screen.text())
        if shows and shows in screens[-1] and not interrupted:
            interrupted = True
            process.terminate()
    os.close(main)
    try:
        return process.wait(max(0.1, end - time.monotonic())), screens
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None, screens
