"""Published numbers of the paper's ablations, its Tables 2 to 5, row by row (see :mod:`mgrpo.eval.published`)."""

from __future__ import annotations

from .published import Dataset, PublishedNumber, PublishedRow

_COLUMNS = (
    ("mpjpe_mm", "mm"),
    ("pa_mpjpe_egoallo_mm", "mm"),
    ("mpjve_mm_s", "mm/s"),
    ("mpjre_paper_deg", "deg"),
    ("jitter_ratio", "ratio"),
    ("gp_sum_m", "m"),
    ("fs_egoallo_m", "m"),
)
"""Order and units of Table 2, those of Table 1."""

_TABLE_2: dict[Dataset, dict[str, tuple[float, ...]]] = {
    "amass": {
        "Baseline": (124.985, 103.958, 553.221, 8.777, 2.394, 1.143, 1.290),
        "+ Vanilla GRPO": (117.418, 97.945, 543.012, 8.403, 2.084, 0.999, 1.272),
        "+ Visual": (116.549, 96.729, 546.128, 8.427, 2.014, 0.886, 1.221),
        "+ Perlin Noise": (114.207, 95.512, 531.217, 8.413, 2.000, 0.901, 1.169),
    },
    "rich": {
        "Baseline": (192.686, 172.724, 506.992, 12.734, 4.135, 4.145, 1.094),
        "+ Vanilla GRPO": (190.248, 171.223, 494.125, 12.369, 3.793, 3.633, 1.076),
        "+ Visual": (189.103, 170.002, 497.480, 12.268, 3.684, 3.225, 1.044),
        "+ Perlin Noise": (187.223, 169.146, 477.344, 11.944, 3.685, 3.161, 1.008),
    },
}

_TABLE_5 = {
    "EgoAllo": (124.985, 103.958, 553.221, 8.733, 2.394, 1.143, 1.290),
    "FT": (124.980, 103.923, 543.663, 9.117, 2.376, 1.092, 1.341),
    "DPO": (118.043, 100.920, 538.230, 8.449, 2.106, 1.530, 1.134),
    "MotionGRPO": (114.207, 95.512, 531.217, 8.413, 2.000, 0.901, 1.169),
}
"""Printed with MPJRE before MPJVE; here in the order of the others."""

_DIVERSITY = "the variant of Diversity and the samples behind it are not described; ours is the starred one"
_TABLE_3 = {"No Noise (α = 0)": 1.8827, "Perlin Noise (α = 0.05)": 2.2048, "Perlin Noise (α = 0.1)": 3.1430}
_TABLE_4 = {
    "GT Noise (σ = 0.01)": (84.31, 54.0),
    "GT Noise (σ = 0.05)": (86.04, 48.0),
    "GT Noise (σ = 0.10)": (84.88, 52.0),
    "HN-Samples": (97.68, 8.0),
}


def _row(table: str, method: str, data: Dataset, numbers: dict[str, PublishedNumber], remark: str = "") -> PublishedRow:
    return PublishedRow(
        method=method,
        source=f"MotionGRPO (the paper), Table {table[-1]}",
        row=f"row {method!r}, {data.upper()}",
        table=table,
        data=data,
        length=128,
        numbers=numbers,
        remark=remark,
    )


def _seven(values: tuple[float, ...]) -> dict[str, PublishedNumber]:
    return {name: PublishedNumber(value, unit) for (name, unit), value in zip(_COLUMNS, values, strict=True)}


PUBLISHED_ABLATIONS: tuple[PublishedRow, ...] = (
    *(
        _row("table2", method, data, _seven(values))
        for data, rows in _TABLE_2.items()
        for method, values in rows.items()
    ),
    *(
        _row("table3", method, "amass", {"diversity_l2": PublishedNumber(value, "m")}, _DIVERSITY)
        for method, value in _TABLE_3.items()
    ),
    *(
        _row(
            "table4",
            method,
            "amass",
            {"accuracy": PublishedNumber(accuracy, "%"), "wrong_count": PublishedNumber(wrong, "")},
        )
        for method, (accuracy, wrong) in _TABLE_4.items()
    ),
    *(_row("table5", method, "amass", _seven(values)) for method, values in _TABLE_5.items()),
)
"""Every row of the four tables, in print order."""
