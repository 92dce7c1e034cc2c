"""What the tests that compare with reference values do where values are missing: one rule, see tests/golden.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import golden

FAIL, SKIP = pytest.fail.Exception, pytest.skip.Exception


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_a_named_folder_must_be_there_and_hold_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGRPO_GOLDEN", str(tmp_path / "absent"))
    with pytest.raises(FAIL, match=r"MGRPO_GOLDEN names .*absent, which is no folder; expected .* body/\*\.npz"):
        golden.golden_folder()
    monkeypatch.setenv("MGRPO_GOLDEN", str(tmp_path))
    with pytest.raises(FAIL, match="holds no reference values; expected a folder that holds some of"):
        golden.golden_files("fk/fk*.npz")
    assert golden.listed_files("fk/fk*.npz") == []


def test_families_of_a_named_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGRPO_GOLDEN", str(tmp_path))
    cases = [touch(tmp_path / "fk" / name) for name in ("fk_a.npz", "fk_b.npz")]
    assert golden.golden_files("fk/fk*.npz") == cases == golden.listed_files("fk/fk*.npz")
    with pytest.raises(SKIP, match=r"holds no fk/lie\*\.npz"):
        golden.golden_files("fk/lie*.npz")
    with pytest.raises(FAIL, match=r"fk_a\.npz, fk_b\.npz"):
        golden.golden_file("fk/fk*.npz")
    with pytest.raises(ValueError, match="not one of FAMILIES"):
        golden.golden_files("fk/*.npz")


def test_the_default_folder_may_be_absent_but_not_incomplete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MGRPO_GOLDEN", raising=False)
    monkeypatch.setattr(golden, "DEFAULT", tmp_path / "golden")
    with pytest.raises(SKIP, match="does not exist; set MGRPO_GOLDEN"):
        golden.golden_files("fk/fk*.npz")
    touch(tmp_path / "golden" / "fk" / "fk.npz")
    for _ in range(2):
        with pytest.raises(FAIL, match=r"holds no fk/lie\*\.npz; the default folder must hold every family"):
            golden.golden_files("fk/lie*.npz")
        monkeypatch.setenv("MGRPO_GOLDEN", str(tmp_path / "golden"))  # the same folder, by name
