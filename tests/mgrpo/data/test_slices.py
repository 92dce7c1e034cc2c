"""Deterministic slices: EgoAllo's items, and windows of clips by the same rule."""

from __future__ import annotations

import json

import pytest
import torch

from mgrpo.body import default_body
from mgrpo.data import cut_windows, deterministic_windows, load_motion, slice_starts
from mgrpo.errors import InputError
from tests.golden import golden_file


@pytest.mark.golden
def test_items_of_egoallos_reader() -> None:
    """Length, order and starts. A start was recorded as the first frame with the slice's first pose: where somebody
    stands still, several frames have it."""
    h5py = pytest.importorskip("h5py")
    path = golden_file("dataset/*.hdf5")
    cases = json.loads((path.parent / "expected.json").read_text())["reader"]
    assert cases
    with h5py.File(path) as file:
        for case in cases:
            poses = {name: file[name]["T_world_root"][:] for name in case["groups"]}
            # With sequences that are too short before and between those that count.
            named = ["short", *case["groups"], "short again"]
            counts = [len(poses[name]) if name in poses else case["subseq_len"] - 1 for name in named]
            items = slice_starts(counts, case["subseq_len"])
            assert len(items) == case["length"]
            for (index, start), (_, name, recorded) in zip(items, case["items_index_group_start"], strict=True):
                assert named[index] == name
                assert (poses[name][start] == poses[name][recorded]).all() and start >= recorded


def test_rule_by_hand() -> None:
    # 25 + 10 + 12 frames = 47: four slices of ten, the sequence of three frames left out.
    assert slice_starts([25, 3, 10, 12], 10) == [(0, 0), (2, 0), (3, 0), (0, 10)]
    # A sequence of exactly one slice always starts at 0; slice numbers wrap around what a sequence has to spare.
    assert slice_starts([10], 10) == [(0, 0)]
    assert slice_starts([24], 10) == [(0, 0), (0, 10)]
    assert slice_starts([34, 14], 10) == [(0, 0), (1, 0), (0, 10), (1, 2)]


def test_errors() -> None:
    with pytest.raises(InputError, match="none of the 2 sequences has 10 frames \\(the longest has 9\\)"):
        slice_starts([9, 2], 10)
    with pytest.raises(InputError, match="at least 1 frame"):
        slice_starts([9], 0)


def test_windows_are_the_slices() -> None:
    body = default_body().body_only()
    clips = [clip for clip in load_motion("demo", body) if clip.name in ("walk", "dance_a", "crawl")]
    windows = deterministic_windows(clips, body, 32)
    slices = slice_starts([len(clip) for clip in clips], 33)
    assert len(windows) == len(slices) == (88 + 49 + 38) // 33 and windows.length == 32
    assert windows.names == tuple(clips[index].name for index, _ in slices)
    for number, (index, start) in enumerate(slices):
        every = cut_windows([clips[index]], body, 32, 1)
        torch.testing.assert_close(windows.T_world_cpf[number], every.T_world_cpf[start])
        torch.testing.assert_close(windows.joints[number], every.joints[start])
        torch.testing.assert_close(windows.T_cpf_tm1_cpf_t[number], every.T_cpf_tm1_cpf_t[start])
    assert len({start for _, start in slices}) > 1
