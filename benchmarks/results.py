"""The csv files below ``benchmarks/results``: one per device and operation, every row with its provenance."""

from __future__ import annotations

import argparse
import csv
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .machine import ROOT

RESULTS = ROOT / "benchmarks" / "results"

PROVENANCE = (
    "date", "commit", "dirty", "device", "cpu", "threads", "python", "torch", "triton", "cuda", "driver",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One implementation of one workload; a line of a csv file. Times in microseconds, rates in GB/s."""

    op: str
    workload: str
    title: str
    size: str
    items: int
    item: str
    gradient: str
    """yes: forward and backward."""
    implementation: str
    kind: str
    """ours, reference, compile or peer."""
    version: str
    """The peer's version."""
    mode: str
    """call: as a user calls it. graph: replayed as a CUDA graph, without the host's part."""
    status: str
    """ok; busy: too few clean samples, no measurement; absent: not installed; left out; failed."""
    note: str
    samples: int = 0
    p20_us: float | None = None
    median_us: float | None = None
    p80_us: float | None = None
    ns_per_item: float | None = None
    gb_per_s: float | None = None
    """Bytes that must be moved at least, over the median."""
    copy_gb_per_s: float | None = None
    """A copy of as many bytes, in the same rounds."""
    bound: str = ""
    """bytes or operations: whichever takes longer at the rates of a copy and of a matrix product."""
    bound_share: float | None = None
    """The bound's time over the median: 1 would be at the bound."""
    host_us: float | None = None
    """GPUs: time until the call returns to the host."""
    peak_mb: float | None = None
    """GPUs: memory that a call takes beyond its inputs."""
    max_abs_error: float | None = None
    relative_error: float | None = None
    """Against float64: largest difference, and norm of the difference over the norm."""
    date: str = ""
    commit: str = ""
    dirty: str = ""
    device: str = ""
    cpu: str = ""
    threads: str = ""
    python: str = ""
    torch: str = ""
    triton: str = ""
    cuda: str = ""
    driver: str = ""

    @property
    def measured(self) -> bool:
        """Whether the row holds a time that counts."""
        return self.status == "ok" and self.median_us is not None


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
_NUMBERS = {field.name for field in dataclasses.fields(Row) if "float" in str(field.type)}
_WHOLE = {"items", "samples"}


def write_rows(path: Path, rows: Sequence[Row], *, partial: bool = False) -> None:
    """Write rows to a csv file. Rows that it holds of the same workload and thread count are replaced, others kept;
    ``partial``: only those of the same implementation are replaced too."""

    def key(row: Row) -> tuple[str, ...]:
        return (row.workload, row.threads, *((row.implementation,) if partial else ()))

    new = {key(row) for row in rows}
    kept = [row for row in read_rows(path) if key(row) not in new] if path.is_file() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in [*kept, *rows]:
            writer.writerow([_text(getattr(row, column)) for column in COLUMNS])


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def read_rows(path: Path) -> list[Row]:
    """Rows of a csv file. Raises ValueError where it lacks a column."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}: measure it again")
        return [Row(**{column: _value(column, line[column]) for column in COLUMNS}) for line in reader]


def _value(column: str, text: str) -> object:
    if column in _WHOLE:
        return int(text)
    if column in _NUMBERS:
        return float(text) if text else None
    return text


def read_device(folder: Path) -> list[Row]:
    """All rows of a device's folder."""
    return [row for path in sorted(folder.glob("*.csv")) for row in read_rows(path)]


def write_by_op(folder: Path, rows: Iterable[Row], *, partial: bool = False) -> list[Path]:
    """Write rows to ``folder/<device>/<op>.csv``, see :func:`write_rows`; the files written."""
    files: dict[Path, list[Row]] = {}
    for row in rows:
        files.setdefault(folder / row.device / f"{row.op}.csv", []).append(row)
    for path, group in files.items():
        write_rows(path, group, partial=partial)
    return sorted(files)


def main(arguments: Sequence[str] | None = None) -> int:
    """Sort the rows of csv files made elsewhere into ``benchmarks/results``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=main.__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="csv files, such as the one that tools/gpu leaves in $OUT")
    parser.add_argument("--into", type=Path, default=RESULTS, help="folder (benchmarks/results)")
    options = parser.parse_args(arguments)
    for path in write_by_op(options.into, (row for file in options.files for row in read_rows(file))):
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
