"""Protocols: what they fix, what they refuse, which windows they take, and the table that stands beside the paper's."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mgrpo.body import default_body
from mgrpo.commands.evaluate import EvaluateConfig, evaluation_windows
from mgrpo.commands.evaluation_options import refuse_contradictions
from mgrpo.data import load_motion, mirror, save_clip, slice_starts
from mgrpo.diffusion.config import SamplerConfig
from mgrpo.errors import InputError
from mgrpo.eval import protocol_table as layout
from mgrpo.eval.evaluate import EvaluationResult
from mgrpo.eval.metrics import METRICS
from mgrpo.eval.protocols import PROTOCOLS
from mgrpo.eval.published import PUBLISHED, convert, published_rows

MODEL = (Path("model"),)


def config(**options: object) -> EvaluateConfig:
    return EvaluateConfig(MODEL, **options)  # type: ignore[arg-type]


def written(*words: str, **options: object) -> None:
    """What a command line with these words is refused for."""
    refuse_contradictions(config(**options), ["mgrpo", "evaluate", "--checkpoint", "model", *words])


# --- what a protocol fixes


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_is_filled_in(name: str) -> None:
    protocol = PROTOCOLS[name]
    found = config(protocol=name)
    assert found.length == protocol.lengths[0] and found.seeds == protocol.seeds and found.samples == protocol.samples
    assert found.mirrored == protocol.mirrored and found.family == protocol.family
    assert found.sampler == protocol.sampler == SamplerConfig("egoallo", 0.8, 30, True)
    assert found.short_clips == "drop" and found.title == protocol.title
    assert dataclasses.replace(found, device="cpu").seeds == protocol.seeds
    assert all(column in METRICS and METRICS[column].family in ("both", protocol.family) for column in protocol.columns)


def test_sources_of_the_protocols() -> None:
    """The numbers that the published evaluations state."""
    assert PROTOCOLS["egoallo"].lengths == (128, 32) and PROTOCOLS["egoallo"].seeds == (0,)
    assert PROTOCOLS["paper"].lengths == (128,) and len(PROTOCOLS["paper"].seeds) == 5
    assert PROTOCOLS["paper"].columns == (
        *(
            "mpjpe_mm",
            "pa_mpjpe_egoallo_mm",
            "mpjve_mm_s",
            "mpjre_paper_deg",
            "jitter_ratio",
            "gp_sum_m",
            "fs_egoallo_m",
        ),
    )
    for name in ("egoallo", "paper"):
        assert PROTOCOLS[name].samples == 1 and PROTOCOLS[name].mirrored and PROTOCOLS[name].slices == "deterministic"
    assert len(PROTOCOLS["mgrpo"].seeds) == 5 and not PROTOCOLS["mgrpo"].mirrored


def test_without_a_protocol_nothing_changed() -> None:
    found = config()
    assert (found.length, found.stride, found.seeds, found.samples) == (32, 0, (0,), 1)
    assert not found.mirrored and found.family == "standard" and found.short_clips == "error"


def test_length_of_a_protocol() -> None:
    assert config(protocol="egoallo", length=32).length == 32
    assert config(protocol="mgrpo", length=32).stride == 32
    with pytest.raises(InputError, match="--length 32 contradicts --protocol paper, which has --length 128"):
        config(protocol="paper", length=32)
    with pytest.raises(InputError, match="--length 64 contradicts --protocol egoallo, which has --length 128 or 32"):
        config(protocol="egoallo", length=64)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"seeds": (7,)}, "--seeds 7 contradicts --protocol paper, which has --seeds 0 1 2 3 4"),
        ({"samples": 2}, "--samples 2 contradicts --protocol paper, which has --samples 1"),
        ({"stride": 16}, "--stride 16 contradicts"),
        ({"slices": "deterministic", "protocol": "mgrpo"}, "--slices deterministic contradicts --protocol mgrpo"),
        ({"family": "all"}, "--family all contradicts --protocol paper, which has --family paper"),
        ({"sampler": SamplerConfig(steps=10)}, "--steps 10 contradicts --protocol paper, which has --steps 30"),
        ({"sampler": SamplerConfig(project=False)}, "--no-project contradicts --protocol paper, which has --project"),
        ({"sampler": SamplerConfig(kernel="ode")}, "--kernel ode contradicts"),
        ({"published_data": "rich", "protocol": "egoallo"}, "--published-data rich"),
        ({"published_data": "rich", "protocol": None}, "--published-data rich"),
        ({"mirrored": True, "protocol": "mgrpo"}, "--mirrored contradicts --protocol mgrpo, which has --no-mirrored"),
    ],
)
def test_contradictions(options: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        config(**({"protocol": "paper"} | options))


@pytest.mark.parametrize(
    ("words", "protocol", "text"),
    [
        (("--no-mirrored",), "paper", "--no-mirrored contradicts --protocol paper, which has --mirrored"),
        (("--short-clips", "error"), "mgrpo", "--short-clips error contradicts --protocol mgrpo"),
        (("--short-clips=error",), "egoallo", "--short-clips error contradicts"),
        (("--family", "standard"), "paper", "--family standard contradicts --protocol paper"),
        (("--published",), "mgrpo", "--published: with --protocol mgrpo there are no published numbers"),
        (("--published",), None, "--published: without --protocol"),
    ],
)
def test_usual_values_that_were_written_out(words: tuple[str, ...], protocol: str | None, text: str) -> None:
    with pytest.raises(InputError, match=text):
        written(*words, protocol=protocol)


def test_split_and_part_are_not_both_obeyed() -> None:
    with pytest.raises(InputError, match="--split val and --part train both say which motion"):
        config(split="val", part="train")
    with pytest.raises(InputError, match="--split val and --part held_out both say which motion"):
        written("--split", "val", "--part", "held_out", split="val")
    written("--split", "val", split="val")
    written("--part", "held_out")


def test_written_options_that_agree() -> None:
    agree = ("--mirrored", "--short-clips", "drop", "--family", "paper", "--steps", "30", "--published")
    written(*agree, "--length", "128", "--seeds", "0", "1", "2", "3", "4", protocol="paper")
    written("--no-mirrored", "--family", "standard", "--no-published", protocol="mgrpo")
    written("--short-clips", "error", "--no-mirrored")


# --- windows


def test_windows_of_the_deterministic_protocols() -> None:
    body = default_body().body_only()
    windows = evaluation_windows(config(protocol="egoallo", length=32, part="all"))
    clips = sorted((clip for clip in load_motion("demo", body) if len(clip) >= 33), key=lambda clip: clip.name)
    frames = [len(clip) for clip in clips for _ in range(2)]
    expected = [(clips[index // 2].name, index % 2, start) for index, start in slice_starts(frames, 33)]
    assert windows.names == tuple(name for name, _, _ in expected) and {"run"}.isdisjoint(windows.names)
    by_name = {clip.name: clip for clip in clips}
    for number, (name, reflected, start) in enumerate(expected):
        clip = mirror(by_name[name], body) if reflected else by_name[name]
        torch.testing.assert_close(windows.T_world_root[number], clip.T_world_root[start + 1 : start + 33])


def test_windows_of_ours() -> None:
    windows = evaluation_windows(config(protocol="mgrpo", length=32, part="all"))
    body = default_body().body_only()
    frames = {clip.name: max(len(clip), 33) for clip in load_motion("demo", body)}  # short loops are repeated
    assert {name: windows.names.count(name) for name in frames} == {
        name: (count - 1) // 32 for name, count in frames.items()
    }
    # The parts are training's, although clips too short for a window are left out: 128 frames leave no held-out clip
    # but the loop.
    assert set(evaluation_windows(config(protocol="mgrpo")).names) == {"run"}
    with pytest.raises(InputError, match=r"none of the .* sequences has 129 frames"):
        evaluation_windows(config(protocol="paper"))


def test_mirrored_copies_in_the_data(tmp_path: Path) -> None:
    """Copies that preprocessing made are neither mirrored again nor taken for recordings of their own."""
    body = default_body().body_only()
    clips = {clip.name: clip for clip in load_motion("demo", body)}
    for name in ("getup_faceup", "crawl"):
        save_clip(tmp_path / f"{name}.npz", clips[name])
        copy = dataclasses.replace(mirror(clips[name], body), name=f"{name}_reflect")
        save_clip(tmp_path / f"{name}_reflect.npz", copy)
    options = {"motion": str(tmp_path), "part": "all", "length": 32}
    both = evaluation_windows(config(protocol="egoallo", **options))
    assert both.names[:4] == ("crawl", "crawl_reflect", "getup_faceup", "getup_faceup_reflect")
    assert len(both) == 2 * (88 + 113) // 33
    assert set(evaluation_windows(config(protocol="mgrpo", **options)).names) == {"crawl", "getup_faceup"}


# --- published numbers


def test_published_numbers_have_their_provenance() -> None:
    for row in PUBLISHED:
        assert row.source and row.row and row.numbers
        assert set(row.numbers) <= set(PROTOCOLS[row.table].columns)
        assert row.length in PROTOCOLS[row.table].lengths
        assert ("ℵ" in row.method) == ("guidance post" in row.remark)
        assert row.cells(list(row.numbers)).keys() == row.numbers.keys()
    table_1 = published_rows("paper", data="amass", length=128)
    assert [row.method for row in table_1] == ["EgoEgo", "EgoAllo", "EgoAllo ℵ", "MotionGRPO", "MotionGRPO ℵ"]
    assert [number.value for number in table_1[3].numbers.values()] == [
        114.207,
        95.512,
        531.217,
        8.413,
        2.0,
        0.901,
        1.169,
    ]
    assert [number.value for number in table_1[1].numbers.values()] == [
        *(124.985, 103.958, 553.221, 8.777, 2.394, 1.143, 1.290)
    ]
    assert len(published_rows("paper", data="rich", length=128)) == 5
    assert published_rows("paper", data="amass", length=32) == () == published_rows(None, data="amass", length=128)
    assert {row.source for row in published_rows("egoallo", data="amass", length=32)} != {table_1[0].source}


def test_units_are_converted() -> None:
    (row,) = (row for row in published_rows("egoallo", data="amass", length=128) if "documentation" in row.source)
    head = row.numbers["head_position_mm"]
    assert (head.value, head.unit) == (0.006, "m") and math.isnan(head.standard_error)
    cell = row.cells(["head_position_mm", "mpjpe_mm"])["head_position_mm"]
    assert cell.mean == pytest.approx(6.0) and math.isnan(cell.standard_error)
    assert convert(2.0, "m/s", "mm/s") == 2000.0 and convert(3.0, "mm", "m") == 0.003 and convert(1.5, "", "") == 1.5
    for unit, wanted in (("m", "deg"), ("ratio", "m/s³"), ("mm", "mm/s"), ("", "mm")):
        with pytest.raises(InputError, match="can't be turned into"):
            convert(1.0, unit, wanted)


# --- the table


def made_up(name: str, shift: float) -> EvaluationResult:
    generator = torch.Generator().manual_seed(5)
    columns = PROTOCOLS["paper"].columns
    values = {key: 10 + shift + torch.rand(12, 5, 1, generator=generator, dtype=torch.float64) for key in columns}
    return EvaluationResult(
        name=name,
        window_names=tuple(f"clip_{index // 2}" for index in range(12)),
        seeds=(0, 1, 2, 3, 4),
        samples=1,
        values=values,
        group_values={},
        mean_of_samples={},
        ground_truth={"gp_sum_m": torch.full((12,), 0.5, dtype=torch.float64)},
        settings={"kernel": "egoallo", "eta": 0.8, "steps": 30, "frames": 128, "fps": 30.0},
    )


@pytest.fixture
def table() -> layout.ProtocolTable:
    return layout.protocol_table(
        [made_up("prior", 0.0), made_up("grpo_50% [x]", -2.0)],
        PROTOCOLS["paper"],
        data="the motion 'demo'",
        published=published_rows("paper", data="amass", length=128),
    )


def test_markdown(table: layout.ProtocolTable) -> None:
    lines = [line for line in layout.to_markdown(table).splitlines() if line.startswith("|")]
    assert "MPJPE (mm) ↓<br>Joint accuracy" in lines[0] and "FS\\* (m) ↓<br>Visual quality" in lines[0]
    assert lines[3] == (
        "| EgoAllo [1] | published | 124.98 ± – | ".replace(" ± –", "")
        + "103.96 | 553.2 | 8.78 | 2.394 | 1.143 | 1.290 |"
    )
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["published"] * 5 + ["measured"] * 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {10}
    # The best measured model is bold; no published number is.
    assert lines[-2].count("**") == 14 and not any("**" in line for line in lines[2:7])
    assert re.search(r"\| -2\.00 \[-2\.00, -2\.00\] \|", lines[-1])
    text = layout.to_markdown(table)
    assert "measured: by this mgrpo on the motion 'demo'" in text
    assert "published [1]: as printed, MotionGRPO (the paper), Table 1, AMASS" in text
    assert "ℵ: with EgoAllo's optimisation after sampling" in text and "EgoEgo as reported" in text


def test_latex(table: layout.ProtocolTable) -> None:
    text = layout.to_latex(table)
    assert r" & & \multicolumn{4}{c}{Joint accuracy} & \multicolumn{3}{c}{Visual quality} \\" in text
    assert r"\cmidrule(lr){3-6}\cmidrule(lr){7-9}" in text
    assert r"EgoAllo $\aleph$ [1] & published & 121.65 & 101.03" in text
    assert r"grpo\_50\% [x] & measured & \textbf{8." in text
    assert text.isascii() and text.count("{") == text.count("}")


def test_csv(table: layout.ProtocolTable) -> None:
    rows = list(csv.DictReader(io.StringIO(layout.to_csv(table))))
    found = {(row["row"], row["metric"]): row for row in rows}
    published = found["MotionGRPO ℵ", "mpjpe_mm"]
    assert published["origin"] == "published" and published["unit"] == "mm" and float(published["mean"]) == 111.776
    assert "Table 1" in published["source"] and "row 'MotionGRPO ℵ', AMASS block" in published["source"]
    ours = found["prior", "gp_sum_m"]
    assert ours["origin"] == "measured" and ours["source"] == "the motion 'demo'" and ours["unit"] == "m"
    assert float(ours["mean"]) == pytest.approx(table.measured.rows[1].cells["gp_sum_m"].mean, rel=1e-8)
    difference = found["grpo_50% [x] - prior", "mpjpe_mm"]
    assert float(difference["interval_low"]) == pytest.approx(-2) == float(difference["interval_high"])


@pytest.mark.parametrize("width", [70, 80, 110, 180])
def test_terminal_never_cuts_a_number(table: layout.ProtocolTable, width: int) -> None:
    console = Console(record=True, width=width, file=io.StringIO())
    layout.print_protocol_table(table, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    words = text.split()
    for value in ("124.98", "553.2", "1.290", "111.78", "0.399"):
        assert value in words, value
    assert words.count("published") >= 5 and "grpo_50%" in words
    assert text.count("measured: by this mgrpo") == 1


def test_json(table: layout.ProtocolTable) -> None:
    content = json.loads(json.dumps(layout.protocol_json(table), allow_nan=False))
    assert content["protocol"]["name"] == "paper" and content["protocol"]["sampler"]["steps"] == 30
    assert content["published"][1]["numbers"]["fs_egoallo_m"] == {"value": 1.29, "unit": "m", "standard_error": None}


def test_without_published_rows() -> None:
    table = layout.protocol_table([made_up("prior", 0.0)], PROTOCOLS["paper"], data="d")
    text = layout.to_markdown(table)
    assert "| published |" not in text and "as printed" not in text and "| prior | measured |" in text
