"""Published numbers, each with the table and row that it was read from, and the unit that it was printed in.

They never mix with ours by accident: a number is turned into the unit of its column by :func:`convert`, which knows the
pairs of units that it may turn into each other and refuses all others; and a row says by whom it was published, and
under which protocol.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mgrpo.errors import InputError

from .cells import Cell, stored_unit
from .metrics import METRICS

Dataset = Literal["amass", "rich"]

MOTIONGRPO = "MotionGRPO (the paper), Table 1"
EGOALLO_DOCS = "EgoAllo's documentation of its evaluation script, released checkpoint"
EGOALLO_PAPER = "EgoAllo (the paper), as quoted beside its evaluation script"


@dataclass(frozen=True)
class PublishedNumber:
    """One printed number."""

    value: float
    """As printed."""
    unit: str
    """Unit it was printed in; empty for a plain number."""
    standard_error: float = math.nan
    """As printed, in the same unit; NaN where none was."""


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table."""

    method: str
    """Name as printed."""
    source: str
    """Publication and table."""
    row: str
    """Row and block of that table."""
    table: str
    """Key: which protocol's table it may stand in."""
    data: Dataset
    """Data set that it was measured on."""
    length: int
    """Frames of a window."""
    numbers: Mapping[str, PublishedNumber]
    """By name of our measure of the same definition (as far as known)."""
    remark: str = ""
    """What differs in protocol."""

    def cells(self, columns: Sequence[str]) -> dict[str, Cell]:
        """Cells in the stored units of ``columns``; a measure without a number is left out."""
        cells = {}
        for name in columns:
            number = self.numbers.get(name)
            if number is not None:
                unit = stored_unit(METRICS[name])
                cells[name] = Cell(
                    convert(number.value, number.unit, unit), convert(number.standard_error, number.unit, unit)
                )
        return cells


_FACTORS = {
    ("m", "mm"): 1000.0,
    ("mm", "m"): 0.001,
    ("m/s", "mm/s"): 1000.0,
    ("mm/s", "m/s"): 0.001,
    ("%", ""): 0.01,
}


def convert(value: float, unit: str, wanted: str) -> float:
    """``value`` from ``unit`` in ``wanted``. Raises InputError for units that can't be turned into each other."""
    if unit == wanted:
        return value
    factor = _FACTORS.get((unit, wanted))
    if factor is None:
        raise InputError(f"a number in {unit or 'no unit'} can't be turned into {wanted or 'a plain number'}")
    return value * factor


_TABLE_1 = (
    ("mpjpe_mm", "mm"),
    ("pa_mpjpe_egoallo_mm", "mm"),
    ("mpjve_mm_s", "mm/s"),
    ("mpjre_paper_deg", "deg"),
    ("jitter_ratio", "ratio"),
    ("gp_sum_m", "m"),
    ("fs_egoallo_m", "m"),
)
"""Columns of Table 1 and their units (the text extract has lost some: MPJVE's is stated in section 4.2, Jitter is taken
for the ratio that the first author's early code computes, GP and FS are metres there)."""

_POST = "ℵ: with EgoAllo's optimisation after sampling (guidance post), which the rows without ℵ don't have"
_AS_REPORTED = "EgoEgo as reported there: another model family on its own inputs; its own paper measures differently"

_MOTIONGRPO_ROWS: tuple[tuple[str, str, dict[Dataset, tuple[float, ...]]], ...] = (
    (
        "EgoEgo",
        _AS_REPORTED,
        {
            "amass": (177.231, 152.125, 588.661, 9.457, 2.643, 1.331, 1.241),
            "rich": (221.45, 196.223, 572.331, 13.312, 5.187, 4.357, 1.021),
        },
    ),
    (
        "EgoAllo",
        "",
        {
            "amass": (124.985, 103.958, 553.221, 8.777, 2.394, 1.143, 1.290),
            "rich": (192.686, 172.724, 506.992, 12.734, 4.135, 4.145, 1.094),
        },
    ),
    (
        "EgoAllo ℵ",
        _POST,
        {
            "amass": (121.651, 101.034, 483.471, 8.728, 1.455, 1.099, 0.479),
            "rich": (190.000, 169.838, 407.628, 12.638, 1.880, 4.438, 0.223),
        },
    ),
    (
        "MotionGRPO",
        "",
        {
            "amass": (114.207, 95.512, 531.217, 8.413, 2.000, 0.901, 1.169),
            "rich": (187.223, 169.146, 477.344, 11.944, 3.685, 3.161, 1.008),
        },
    ),
    (
        "MotionGRPO ℵ",
        _POST,
        {
            "amass": (111.776, 93.702, 461.702, 8.330, 1.309, 0.963, 0.399),
            "rich": (184.992, 167.032, 378.423, 11.886, 1.614, 3.156, 0.199),
        },
    ),
)

_EGOALLO_COLUMNS = (
    ("mpjpe_mm", "mm"),
    ("pa_mpjpe_egoallo_mm", "mm"),
    ("head_position_mm", "m"),
    ("gnd", ""),
    ("fs_egoallo_m", "m"),
)
"""EgoAllo prints the head's error (T_head) in metres."""

_NAN = math.nan
_EGOALLO_ROWS: tuple[tuple[str, int, tuple[tuple[float, float], ...]], ...] = (
    (EGOALLO_DOCS, 128, ((118.340, 1.350), (100.026, 1.349), (0.006, _NAN), (1.000, _NAN), (0.417, 0.017))),
    (EGOALLO_DOCS, 32, ((129.193, 1.108), (109.489, 1.147), (0.006, _NAN), (0.985, 0.003), (0.185, 0.005))),
    (EGOALLO_PAPER, 128, ((119.7, 1.3), (101.1, 1.3), (0.0062, _NAN), (1.0, _NAN))),
    (EGOALLO_PAPER, 32, ((129.8, 1.1), (109.8, 1.1), (0.0064, _NAN), (0.98, _NAN))),
)

PUBLISHED: tuple[PublishedRow, ...] = (
    *(
        PublishedRow(
            method=method,
            source=MOTIONGRPO,
            row=f"row {method!r}, {data.upper()} block",
            table="paper",
            data=data,
            length=128,
            numbers={name: PublishedNumber(value, unit) for (name, unit), value in zip(_TABLE_1, values, strict=True)},
            remark=remark,
        )
        for method, remark, blocks in _MOTIONGRPO_ROWS
        for data, values in blocks.items()
    ),
    *(
        PublishedRow(
            method="EgoAllo ℵ",
            source=source,
            row=f"sequence length {length}",
            table="egoallo",
            data="amass",
            length=length,
            numbers={
                name: PublishedNumber(value, unit, error)
                for (name, unit), (value, error) in zip(_EGOALLO_COLUMNS, values)
            },
            remark="ℵ: with EgoAllo's optimisation after sampling (guidance post)",
        )
        for source, length, values in _EGOALLO_ROWS
    ),
)
"""Every published row that our tables may show."""


def published_rows(table: str | None, *, data: Dataset, length: int) -> tuple[PublishedRow, ...]:
    """The rows for a protocol's table, in print order; none for ``table`` None."""
    return tuple(row for row in PUBLISHED if (row.table, row.data, row.length) == (table, data, length))
