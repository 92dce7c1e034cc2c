"""The floor in point clouds, against trying every candidate; reading columns of CSV files, fast path and slow."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from mgrpo.data import csv_columns
from mgrpo.data.csv_columns import read_columns
from mgrpo.data.point_cloud import FEWEST, PointCloud, floor_of_points, read_points
from mgrpo.errors import InputError

HEADER = "uid,graph_uid,px_world,py_world,pz_world,inv_dist_std,dist_std"


def made_cloud(seed: int, floor: float = -1.4, size: int = 3000) -> np.ndarray:
    generator = np.random.default_rng(seed)
    ground = np.c_[generator.uniform(-3, 3, (size, 2)), floor + generator.normal(0, 0.006, size)]
    room = np.c_[generator.uniform(-3, 3, (size, 2)), generator.uniform(floor - 0.05, floor + 2.4, size)]
    return np.concatenate((ground, room))


def best_by_trying_all(points: np.ndarray) -> float:
    """Section I word for word, every point a candidate."""
    heights = np.sort(points[:, 2])
    count = len(heights)
    heights = heights[count // 10000 : count - int(np.ceil(count / 10000))]
    share = 0.15 if len(heights) >= 10000 else 0.1
    low = [z for z in heights if z <= heights[0] + share * (heights[-1] - heights[0])]
    most, winner = 0, 0.0
    for z in low:
        inliers = sum(abs(other - z) < 0.01 for other in low)
        if inliers > most:
            most, winner = inliers, z
    return float(np.median([other for other in low if abs(other - winner) < 0.01]))


@pytest.mark.parametrize("seed", range(4))
def test_the_floor_is_the_best_of_all_candidates(seed: int) -> None:
    points = made_cloud(seed, size=400)
    assert floor_of_points(points) == pytest.approx(best_by_trying_all(points), abs=1e-12)
    assert floor_of_points(points) == pytest.approx(-1.4, abs=0.01)
    shuffled = np.random.default_rng(seed).permutation(points)
    assert floor_of_points(shuffled) == floor_of_points(points), "no draw, no order"


def test_stray_points_below_the_floor_are_passed_over() -> None:
    strays = np.array([[0, 0, -2.4], [0, 0, -2.6], [0, 0, -3.1]])
    assert floor_of_points(np.concatenate((made_cloud(1), strays))) == pytest.approx(-1.4, abs=0.01)


def test_a_large_cloud_gives_more_of_its_range() -> None:
    points = made_cloud(2, size=6000)
    lowered = points.copy()
    lowered[:300, 2] -= 0.3  # 12 % of the range below the floor: beyond a tenth, within 15 %
    assert floor_of_points(lowered) == pytest.approx(-1.4, abs=0.01)


def test_too_few_points_say_nothing() -> None:
    assert floor_of_points(np.zeros((FEWEST - 1, 3))) is None
    assert floor_of_points(np.zeros((FEWEST + 2, 3))) == 0.0
    spread = np.zeros((60, 3))
    spread[:, 2] = np.arange(60)
    assert floor_of_points(spread) is None, "nothing but points on their own"


def test_sure_points_come_first_and_worlds_are_turned() -> None:
    points = made_cloud(3)
    lower = points - [0, 0, 1.0]
    both = np.concatenate((points, lower))
    sure = np.concatenate((np.full(len(points), 5e-5), np.full(len(lower), 5e-4)))
    cloud = PointCloud(both, sure, np.full(len(both), 1e-3))
    assert cloud.floor() == pytest.approx(-1.4, abs=0.01)
    unsure = PointCloud(both, np.full(len(both), 5e-4), np.full(len(both), 1e-2))
    assert unsure.floor() == pytest.approx(-2.4, abs=0.02)
    assert PointCloud(both, np.full(len(both), 1.0), np.full(len(both), 1.0)).floor() is None
    turn = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # y up to z up
    assert cloud._replace(points=both @ turn).floor(turn) == cloud.floor()


def test_points_are_read_gzipped_or_not(tmp_path: Path) -> None:
    rows = [f"{index},a-b,{index}.5,2,-1,0.0001,0.01" for index in range(3)]
    (tmp_path / "points.csv").write_text("\n".join([HEADER, *rows]))
    with gzip.open(tmp_path / "points.csv.gz", "wt") as stream:
        stream.write("\ufeff" + "\r\n".join([HEADER, *rows, ""]))
    for name in ("points.csv", "points.csv.gz"):
        cloud = read_points(tmp_path / name)
        assert cloud.points.tolist() == [[0.5, 2, -1], [1.5, 2, -1], [2.5, 2, -1]]
        assert cloud.dist_std.tolist() == [0.01] * 3


def test_the_floor_of_a_recording(shared_data_dir: Path) -> None:
    path = shared_data_dir / "head" / "global_points.csv.gz"
    if not path.exists():
        pytest.skip("no point cloud there")
    cloud = read_points(path)
    assert len(cloud.points) == 99_472
    assert cloud.floor() == pytest.approx(-1.49, abs=0.01)  # as noted beside the file


# --- columns


def test_the_slow_reader_agrees_and_blocks_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    values = np.random.default_rng(0).normal(size=(25, 2))
    path.write_text("name,x,y\n" + "\n".join(f"n{k},{x!r},{y!r}" for k, (x, y) in enumerate(values.tolist())))
    assert np.array_equal(read_columns(path, "table", [("y",), ("x",)]), values[:, ::-1])
    monkeypatch.setattr(csv_columns, "_BLOCK", 4)
    assert np.array_equal(read_columns(path, "table", [("y",), ("x",)]), values[:, ::-1])
    monkeypatch.setattr(csv_columns, "_fast", lambda *_: None)
    assert np.array_equal(read_columns(path, "table", [("y",), ("x",)]), values[:, ::-1])


def test_quoted_cells_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('name, x\n"a, b",1\n\nc,"2"\n')
    assert read_columns(path, "table", [("x",)]).tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty; expected a table"),
        ("y\n1\n", "needs the column x; the header has: y"),
        ("x,y\n1,2\n3\n", "line 3: 1 values, the header has 2"),
        ("x,y\n1,2\nthree,2\n", "line 3: could not convert string to float: 'three'; expected numbers"),
        ("x,y\n1,2\nnan,2\n", "column x is not finite in data row 2"),
        ("x,y\n1,2\0\n", "line 2: not a line of a table"),
        ("x,y\n" + "1" * 70_000, "line 2: not a line of a table"),
    ],
)
def test_damage_is_told_with_its_place(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=f"(?s)a.csv.*{said}"):
        read_columns(path, "table", [("x",)])


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"x\n" + b"1\n" * 1000)[:-20])
    (tmp_path / "b.csv.gz").write_bytes(b"x\n1\n")
    for name, reason in (("a.csv.gz", "can't be read"), ("b.csv.gz", "can't be read"), ("none.csv", "no such file")):
        with pytest.raises(InputError, match=f"{name}: {reason}"):
            read_columns(tmp_path / name, "table", [("x",)])
    (tmp_path / "c.csv").write_text("x\n1\n2\n")
    monkeypatch.setattr(csv_columns, "MAX_ROWS", 2)
    with pytest.raises(InputError, match="more than 2 rows"):
        read_columns(tmp_path / "c.csv", "table", [("x",)])
