"""Columns of numbers from CSV files, gzipped or not, by name: fast, within limits, and with the line that is wrong."""

from __future__ import annotations

import csv
import gzip
import warnings
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from mgrpo.errors import InputError

MAX_ROWS = 20_000_000
"""Most rows of a file: five hours of poses at 1 kHz, or a large point cloud."""

MAX_LINE = 1 << 16
"""Longest line, characters."""

_BLOCK = 20_000
"""Rows that are turned into numbers at a time."""


def csv_lines(path: Path, what: str) -> Iterator[tuple[int, str]]:
    """Line numbers and text of the lines that are not empty, within limits. ``what`` names what the file should be.

    Raises:
        InputError: the file can't be read, a line is too long or binary, or there are too many.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            number = 0
            while raw := stream.readline(MAX_LINE + 1):
                number += 1
                if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise InputError(f"{path}: the text is UTF-16; save the {what} as UTF-8")
                if len(raw) > MAX_LINE or b"\0" in raw:
                    raise InputError(f"{path}, line {number}: not a line of a {what}; is the file damaged?")
                if number > MAX_ROWS:
                    raise InputError(f"{path}: more than {MAX_ROWS} rows; cut the recording")
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8", "replace").strip()
                if line:
                    yield number, line
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected a {what}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: can't be read ({error}); expected a {what}. Download it again") from error


def csv_cells(line: str) -> list[str]:
    """The cells of one line, without blanks around them."""
    try:
        return [cell.strip() for cell in next(csv.reader([line]))]
    except csv.Error:  # a lone carriage return within the line, say
        return [line]


def read_columns(path: Path, what: str, wanted: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Numbers ``(N, len(wanted))`` float64 of the columns of a file with a header, each by one of its possible names.

    Raises:
        InputError: a column is missing, a row has other cells than the header, or a number isn't one or isn't finite;
            the message has the line or the row.
    """
    lines = csv_lines(path, what)
    first = next(lines, None)
    if first is None:
        raise InputError(f"{path}: the file is empty; expected a {what}. Download it again")
    header = csv_cells(first[1])
    places = []
    for names in wanted:
        found = [header.index(name) for name in names if name in header]
        if not found:
            raise InputError(
                f"{path}: a {what} needs the column {' or '.join(names)}; the header has: {', '.join(header)[:400]}"
            )
        places.append(found[0])
    return numbers_of(path, lines, places, len(header), [names[0] for names in wanted])


def numbers_of(
    path: Path,
    lines: Iterator[tuple[int, str]],
    places: Sequence[int],
    cells: int,
    names: Sequence[str],
    finite: Sequence[bool] | None = None,
) -> np.ndarray:
    """Numbers ``(N, len(places))`` of the cells at ``places`` of every line, each of which must have ``cells`` of them.
    ``names`` are the columns', for messages; ``finite``: which may not be NaN or infinite (default: all). An empty cell
    of the others is NaN. Raises InputError as :func:`read_columns` does."""
    required = np.ones(len(places), bool) if finite is None else np.array(finite)
    content, rows = bytearray(), 0  # grows in place: an hour of poses at 1 kHz is 0.3 GB, which is not held twice
    while block := list(islice(lines, _BLOCK)):
        values = _fast(block, places, cells)
        values = _slow(path, block, places, cells, required) if values is None else values
        bad = np.argwhere(~np.isfinite(values) & required)
        if len(bad):
            raise InputError(
                f"{path}: column {names[bad[0][1]]} is not finite in data row {rows + int(bad[0][0]) + 1}; repair or "
                "cut it"
            )
        content += np.ascontiguousarray(values, np.float64).tobytes()
        rows += len(values)
    return np.frombuffer(content, np.float64).reshape(-1, len(places))


def _fast(block: list[tuple[int, str]], places: Sequence[int], cells: int) -> np.ndarray | None:
    """Numpy's reader, for rows of plain cells; None where a row is anything else, for :func:`_slow` to say what."""
    if any(line.count(",") != cells - 1 or '"' in line for _, line in block):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return np.loadtxt(
                [line for _, line in block], delimiter=",", usecols=list(places), ndmin=2, comments=None
            ).reshape(len(block), len(places))
    except (ValueError, UserWarning):
        return None


def _slow(
    path: Path, block: list[tuple[int, str]], places: Sequence[int], cells: int, required: np.ndarray
) -> np.ndarray:
    values = []
    for number, line in block:
        row = csv_cells(line)
        if len(row) != cells:
            raise InputError(
                f"{path}, line {number}: {len(row)} values, the header has {cells}; the file is cut off or damaged, "
                "download it again"
            )
        try:
            values.append(
                [float(row[place]) if row[place] or needed else float("nan") for place, needed in zip(places, required)]
            )
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}; expected numbers") from error
    return np.array(values, np.float64)
