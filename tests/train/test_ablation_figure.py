"""The figure of an ablation: which way each difference is good."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mgrpo.ablations import figure
from mgrpo.ablations.results import AblationResults, RowResult
from mgrpo.ablations.rows import ABLATIONS, Row
from mgrpo.report.row_figure import RowPanel


def panels_of(ablation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, RowPanel]:
    """What is drawn of two rows, of which the second is larger by one in every measure."""
    drawn: list[RowPanel] = []

    def draw_rows(panels: Sequence[RowPanel], path: Path, **_: object) -> Path:
        drawn.extend(panels)
        return path

    monkeypatch.setattr(figure, "draw_rows", draw_rows)
    columns = {name for table in ABLATIONS[ablation].tables.values() for name in table}
    rows = {
        name: RowResult(
            Row(name, name, "prior", reference="first"),
            seeds=(0, 1),
            values={key: torch.full((2, 3), level) for key in columns},
            budget={},
            seconds=0,
        )
        for name, level in (("first", 1.0), ("second", 2.0))
    }
    results = AblationResults(ablation, ("a", "b", "c"), {}, rows, {})
    assert figure.write_figure(results, tmp_path / "figure.png") == tmp_path / "figure.png"
    return {panel.title: panel for panel in drawn}


def test_a_judge_that_is_right_more_often_is_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panels = panels_of("table4", tmp_path, monkeypatch)
    assert (panels["Accuracy"].lower_is_better, panels["Wrong"].lower_is_better) == (False, True)
    assert panels["Accuracy"].unit == "difference, percentage points" and panels["Wrong"].unit == "difference"
    assert panels["Accuracy"].means == [0, pytest.approx(100)]


def test_a_group_that_spreads_more_is_neither_better_nor_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panels = panels_of("table3", tmp_path, monkeypatch)
    assert panels["Spread"].lower_is_better is None and panels["Spread"].unit == "difference, mm"
    assert panels["MPJPE"].lower_is_better is True
