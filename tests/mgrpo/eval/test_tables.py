"""Tables: the same numbers in every format, and text that the formats can hold."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mgrpo.errors import InputError, MgrpoError
from mgrpo.eval import tables
from mgrpo.eval.evaluate import EvaluationResult
from mgrpo.eval.metrics import METRICS

SETTINGS = {"kernel": "egoallo", "eta": 0.8, "steps": 30, "project_rotations": True, "frames": 32, "fps": 30.0}
MEASURES = (
    "mpjpe_mm",
    "pa_mpjpe_mm",
    "pa_mpjpe_egoallo_mm",
    "jitter_m_s3",
    "accuracy",
    "score_gap",
    "fs_mm_per_contact_frame",
)


def made_up_result(name: str, shift: float, samples: int = 2, windows: int = 4) -> EvaluationResult:
    generator = torch.Generator().manual_seed(5)
    values = {key: 10 + torch.rand(windows, 3, samples, generator=generator, dtype=torch.float64) for key in MEASURES}
    values["accuracy"] = (values["accuracy"] > 10.2).double()
    values["mpjpe_mm"] += shift
    values["fs_mm_per_contact_frame"][0] = math.nan
    group = torch.rand(windows, 3, generator=generator, dtype=torch.float64)
    return EvaluationResult(
        name=name,
        window_names=tuple(f"clip_{index % 2}" for index in range(windows)),
        seeds=(0, 1, 2),
        samples=samples,
        values=values,
        group_values={"diversity_l2": group} if samples > 1 else {},
        mean_of_samples={"mpjpe_mm": values["mpjpe_mm"].mean(-1) - 1} if samples > 1 else {},
        ground_truth={"jitter_m_s3": torch.full((windows,), 3.0, dtype=torch.float64)},
        settings=dict(SETTINGS),
    )


@pytest.fixture
def results() -> list[EvaluationResult]:
    return [made_up_result("prior", 0.0), made_up_result("post_trained 50% & more", -2.0)]


def rows_of(table: tables.ResultTable) -> list[tuple[str, str]]:
    return [(row.kind, row.name) for row in table.rows]


def test_rows_and_columns(results: list[EvaluationResult]) -> None:
    table = tables.result_table(results)
    assert rows_of(table) == [
        ("truth", "ground truth"),
        ("model", "prior"),
        ("mean", "prior, mean of 2 samples"),
        ("model", "post_trained 50% & more"),
        ("mean", "post_trained 50% & more, mean of 2 samples"),
        ("difference", "post_trained 50% & more - prior"),
    ]
    names = [info.name for info in table.columns]
    assert names == [name for name in METRICS if name in names] and "pa_mpjpe_egoallo_mm" not in names
    assert "wrong_count" in names and "diversity_l2" not in names
    paper = [info.name for info in tables.result_table(results, family="paper").columns]
    assert "pa_mpjpe_egoallo_mm" in paper and "pa_mpjpe_mm" not in paper and "diversity_l2" in paper
    chosen = tables.result_table(results, metrics=("jitter_m_s3", "mpjpe_mm"))
    assert [info.name for info in chosen.columns] == ["jitter_m_s3", "mpjpe_mm"]


def test_cells_are_the_statistics(results: list[EvaluationResult]) -> None:
    table = tables.result_table(results, family="all")
    statistics = results[0].statistics()
    for info in table.columns:
        cell = table.rows[1].cells[info.name]
        assert (cell.mean, cell.standard_error) == (statistics[info.name].mean, statistics[info.name].standard_error)
    difference = table.rows[-1].cells["mpjpe_mm"]
    assert difference.mean == pytest.approx(-2) and difference.standard_error == pytest.approx(0, abs=1e-12)


def test_best_model(results: list[EvaluationResult]) -> None:
    table = tables.result_table(results, family="all")
    assert table.best("mpjpe_mm") == 3
    assert table.best("accuracy") is None and table.best("diversity_l2") is None
    assert tables.result_table(results[:1]).best("mpjpe_mm") is None
    # A row that is no model never wins, although its number is lower.
    assert table.rows[4].cells["mpjpe_mm"].mean < table.rows[3].cells["mpjpe_mm"].mean


def test_models_that_are_printed_alike_are_both_best(results: list[EvaluationResult]) -> None:
    table = tables.result_table(results)
    index = table.best("mpjpe_mm")
    assert index is not None
    other = next(i for i, row in enumerate(table.rows) if row.kind == "model" and i != index)
    best = table.rows[index].cells["mpjpe_mm"].mean

    def with_other(mean: float) -> tables.ResultTable:
        rows = list(table.rows)
        cells = {**rows[other].cells, "mpjpe_mm": replace(rows[other].cells["mpjpe_mm"], mean=mean)}
        rows[other] = replace(rows[other], cells=cells)
        return replace(table, rows=tuple(rows))

    assert with_other(best).best("mpjpe_mm") is None
    assert with_other(best + 1e-7).best("mpjpe_mm") is None
    assert with_other(best + 1).best("mpjpe_mm") == index and with_other(best - 1).best("mpjpe_mm") == other


def test_terminal(results: list[EvaluationResult]) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    tables.print_table(tables.result_table(results), console)
    text = console.export_text()
    assert (
        "MPJPE (mm) ↓" in text and "ground truth" in text and "4 windows of 32 frames, 3 seeds, 2 samples each" in text
    )
    mean = results[0].statistics()["mpjpe_mm"].mean
    assert f"{mean:.2f} ± " in text and "-2.00 [-2.00, -2.00]" in text
    assert f"{100 * results[0].means()['accuracy']:.1f}" in text


def printed(table: tables.ResultTable, width: int, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    tables.print_table(table, Console(width=width, file=file))
    file.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [45, 60, 80, 120, 400])
def test_narrow_terminals_cut_no_number(results: list[EvaluationResult], width: int) -> None:
    table = tables.result_table(results, family="all", title="A title")
    text = printed(table, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for row in table.rows:
        for name, cell in row.cells.items():
            assert f" {tables.format_cell(cell, METRICS[name], signed=row.kind == 'difference')} │" in text
    parts = text.count("┏")
    assert (parts == 1) == (width == 400) and text.count("A title") == 1 and text.count("± is the") == 1
    # every measure is named in every part; the narrowest ones may break its name
    assert width == 45 or text.count(f"│ {METRICS['jitter_m_s3'].heading} ↓ ") == parts


def test_more_models_than_measures_stand_below_each_other(results: list[EvaluationResult]) -> None:
    whole = tables.result_table(results, title="A title")
    table = replace(whole, columns=whole.columns[:2])
    lines = printed(table, 100).splitlines()
    assert len([line for line in lines if line.startswith("│")]) == len(table.rows) > 2
    heading = next(line for line in lines if line.startswith("┃"))
    assert all(info.heading in heading for info in table.columns)
    for row in table.rows:
        line = next(line for line in lines if line.startswith(f"│ {row.name} "))
        for info in table.columns:
            cell = tables.format_cell(row.cells.get(info.name), info, signed=row.kind == "difference")
            assert f" {cell} │" in line
    assert lines[0].startswith("A title") and "± is the" in "".join(lines)
    # where they don't fit, models stand side by side, in parts
    narrow = printed(table, 45)
    assert narrow.count("┏") > 1 and max(map(len, narrow.splitlines())) <= 45


def test_a_table_may_judge_a_measure_that_elsewhere_has_no_direction(results: list[EvaluationResult]) -> None:
    table = tables.result_table(results, family="all")
    for number, row in enumerate(table.rows):  # of the models the last is right most often
        if row.kind == "model":
            row.cells["accuracy"] = replace(row.cells["accuracy"], mean=0.5 + 0.01 * number)
    judged = replace(
        table,
        columns=tuple(replace(i, better="higher" if i.name == "accuracy" else i.better) for i in table.columns),
    )
    models = [i for i, row in enumerate(judged.rows) if row.kind == "model"]
    highest = max(models, key=lambda i: judged.rows[i].cells["accuracy"].mean)
    assert judged.best("accuracy") == highest and table.best("accuracy") is None


def test_columns_stay_aligned_without_unicode(results: list[EvaluationResult]) -> None:
    table = tables.result_table(results, notes=[])
    console = Console(width=200, file=(file := io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")))
    assert console.options.ascii_only
    tables.print_table(table, console)
    file.flush()
    lines = [line.rstrip() for line in file.buffer.getvalue().decode("ascii").splitlines() if line.startswith("|")]
    assert (
        len({len(line) for line in lines}) == 1 and any(" +- " in line for line in lines) and "?" not in "".join(lines)
    )


def test_a_file_gets_the_whole_width(
    results: list[EvaluationResult], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tables.result_table(results)
    monkeypatch.setattr("os.isatty", lambda number: False)
    monkeypatch.delenv("COLUMNS", raising=False)
    tables.print_table(table)
    text = capsys.readouterr().out
    assert text.count("┏") == 1 and table.rows[-1].name in text
    monkeypatch.setenv("COLUMNS", "60")
    tables.print_table(table)
    text = capsys.readouterr().out
    assert text.count("┏") > 1 and max(map(len, text.splitlines())) <= 60


def test_markdown(results: list[EvaluationResult]) -> None:
    table = tables.result_table(results)
    text = tables.to_markdown(table)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(table.rows)
    # Escaped bars don't part cells; every line has as many as there are columns.
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(table.columns) + 2}
    assert r"post\_trained" in text
    mean = results[1].statistics()["mpjpe_mm"].mean
    assert re.search(rf"\*\*{mean:.2f} ± ", text)


def test_latex(results: list[EvaluationResult]) -> None:
    table = tables.result_table(results, family="paper", title="50 % of a_b")
    text = tables.to_latex(table)
    assert r"\caption{50 \% of a\_b}" in text and r"post\_trained 50\% \& more" in text
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == len(table.rows)
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(table.columns)}
    assert text.count("{") == text.count("}")
    assert "±" not in text and "–" not in text and r"$\pm$" in text and "$-$2.00" in text
    assert text.isascii()


def test_csv(results: list[EvaluationResult]) -> None:
    table = tables.result_table(results, family="all")
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(table))))
    assert len(rows) == sum(len(row.cells) for row in table.rows)
    found = {(row["row"], row["metric"]): row for row in rows}
    cell = found["prior", "mpjpe_mm"]
    assert float(cell["mean"]) == pytest.approx(results[0].means()["mpjpe_mm"], rel=1e-8) and cell["unit"] == "mm"
    assert 0 <= float(found["prior", "accuracy"]["mean"]) <= 1 and found["prior", "accuracy"]["unit"] == ""


def test_per_window_csv(results: list[EvaluationResult]) -> None:
    rows = list(csv.DictReader(io.StringIO(tables.per_window_csv(results))))
    assert len(rows) == 2 * 4 * 3 * 2
    for row in rows:
        result = next(result for result in results if result.name == row["model"])
        index = int(row["window"]), result.seeds.index(int(row["seed"]))
        assert row["clip"] == result.window_names[index[0]]
        value = result.values["mpjpe_mm"][index][int(row["sample"])].item()
        assert float(row["mpjpe_mm"]) == pytest.approx(value, rel=1e-8)
        assert float(row["diversity_l2"]) == pytest.approx(result.group_values["diversity_l2"][index].item(), rel=1e-8)
        assert (row["fs_mm_per_contact_frame"] == "") == (index[0] == 0)


def test_json(results: list[EvaluationResult]) -> None:
    content = json.loads(json.dumps(tables.to_json(results), allow_nan=False))
    assert content["settings"]["windows"] == 4 and content["settings"]["clips"] == ["clip_0", "clip_1"]
    assert [model["name"] for model in content["models"]] == [result.name for result in results]
    statistic = content["models"][0]["statistics"]["mpjpe_mm"]
    assert statistic["mean"] == results[0].means()["mpjpe_mm"] and statistic["windows"] == 4
    assert content["models"][0]["statistics"]["fs_mm_per_contact_frame"]["windows"] == 3
    assert content["differences"][0]["statistics"]["mpjpe_mm"]["share_lower"] == 1.0
    lonely = made_up_result("one", 0.0, samples=1, windows=1)
    lonely = EvaluationResult(**(vars(lonely) | {"seeds": (0,), "values": {"mpjpe_mm": torch.ones(1, 1, 1).double()}}))
    plain = tables.to_json([lonely])["models"][0]
    assert plain["statistics"]["mpjpe_mm"]["standard_error"] is None and plain["mean_of_samples"] == {}


def test_write_tables(results: list[EvaluationResult], tmp_path: Path) -> None:
    folder = tmp_path / "new" / "tables"
    paths = tables.write_tables(folder, results, family="paper")
    assert {path.name for path in folder.iterdir()} == {path.name for path in paths.values()}
    assert paths["markdown"].read_text() == tables.to_markdown(tables.result_table(results, family="paper"))
    assert json.loads(paths["json"].read_text())["models"]
    # Writing again replaces.
    tables.write_tables(folder, results[:1])
    assert "post" not in paths["markdown"].read_text()


def test_a_disk_that_refuses(results: list[EvaluationResult], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MgrpoError, match="could not create the folder"):
        tables.write_tables(tmp_path / "file" / "folder", results)


def test_missing_values_are_dashes() -> None:
    info = METRICS["mpjpe_mm"]
    assert tables.format_cell(None, info) == "–"
    assert tables.format_cell(tables.Cell(math.nan, math.nan), info) == "–"
    assert tables.format_cell(tables.Cell(1.234, math.nan), info) == "1.23"
    assert tables.format_cell(tables.Cell(1.234, 0.5), info, signed=True) == "+1.23 ± 0.50"
    assert tables.format_cell(tables.Cell(0.5, 0.01), METRICS["accuracy"]) == "50.0 ± 1.0"


def test_samples_that_are_no_motion_are_counted(results: list[EvaluationResult]) -> None:
    first, second = results[:2]
    broken = {name: value.clone() for name, value in second.values.items()}
    for value in broken.values():
        value[1, 0, 0] = math.nan
    table = tables.result_table([first, replace(second, values=broken)])
    found = [note for note in table.notes if "NaN or infinity" in note]
    total = broken["mpjpe_mm"].numel()
    assert len(found) == 1 and found[0].startswith(f"{second.name}: 1 of {total} samples held NaN")
    assert not any("NaN or infinity" in note for note in tables.result_table(results).notes)


def test_input_errors(results: list[EvaluationResult]) -> None:
    with pytest.raises(InputError, match="at least one"):
        tables.result_table([])
    with pytest.raises(InputError, match="different name"):
        tables.result_table([results[0], results[0]])
    with pytest.raises(InputError, match="no measure named speed"):
        tables.result_table(results, metrics=("speed",))
    with pytest.raises(InputError, match="different window names"):
        tables.result_table([results[0], made_up_result("fewer", 0.0, windows=3)])
