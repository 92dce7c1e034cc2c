"""HDF5 files in EgoAllo's layout: items, slices, windows, cache, processes, and the values of EgoAllo's own reader."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import threading
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.hdf5_files import made_up_sequence, write_sequences
from mgrpo.body import BodyModel, default_body, load_smplh
from mgrpo.data import Hdf5Motion, Hdf5Sampler, MotionWindows, cut_windows, load_motion, open_hdf5
from mgrpo.data.amass.names import SPLITS, canonical_subset, splits_of, subset_of, subsets_named
from mgrpo.data.hdf5.cache import BlockCache
from mgrpo.data.hdf5.dataset import BLOCK_FRAMES, deterministic_slices, strided_slices
from mgrpo.data.indexing import SHORTEST, ItemIndex, Slice, SliceDraws
from mgrpo.errors import InputError
from mgrpo.geometry import quat_to_rotmat
from tests.golden import golden_file

NAMES = {"ACCAD/a_poses.npz": 90, "ACCAD/a_poses_reflect.npz": 90, "BMLrub/b_poses.npz": 40, "SSM/c_poses.npz": 700}


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return default_body()


@pytest.fixture(scope="module")
def arrays(body: BodyModel) -> dict[str, dict[str, np.ndarray]]:
    return {
        name: made_up_sequence(body, frames, seed, hands="BMLrub" not in name)
        for seed, (name, frames) in enumerate(NAMES.items())
    }


@pytest.fixture(scope="module")
def file(arrays: dict[str, dict[str, np.ndarray]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequences(tmp_path_factory.mktemp("hdf5") / "motion.hdf5", arrays)


@pytest.fixture
def motion(file: Path) -> Hdf5Motion:
    return open_hdf5(file)


def same(one: MotionWindows, other: MotionWindows) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


# Names


def test_both_generations_of_names_lead_to_one_subset() -> None:
    for new, old in (("BMLrub", "BioMotionLab_NTroje"), ("DFaust", "DFaust_67"), ("Transitions", "Transitions_mocap")):
        assert canonical_subset(new) == canonical_subset(old) == canonical_subset(old.lower()) == old
        assert splits_of(new) == splits_of(old) != ()
    assert canonical_subset("GRAB") is None and splits_of("GRAB") == ()
    assert {len(members) for members in SPLITS.values()} == {13, 4, 2}
    assert all(canonical_subset(member) == member for members in SPLITS.values() for member in members)
    assert subset_of("neutral/SSM/t/x.npz") == "SSM_synced" and subset_of("mine/x.npz") == "mine" == subset_of("mine/y")
    assert subset_of("x.npz") == ""


def test_splits_are_joined_by_plus() -> None:
    present = ["ACCAD", "HumanEva", "Transitions_mocap", "mine"]
    named = {
        text: subsets_named(text, present, option="--split") for text in ("train+val", "test_humor", "all", "mine")
    }
    assert named["train+val"] == {"ACCAD", "HumanEva"} and named["test_humor"] == {"HumanEva", "Transitions_mocap"}
    assert named["all"] == set(present) and named["mine"] == {"mine"}
    assert subsets_named("BMLrub+accad", present, option="--split") == {"ACCAD"}
    for text in ("trian", "", "train+"):
        with pytest.raises(InputError, match=r"--split: '.*' is neither a split \(train, val, test, test_humor, all\)"):
            subsets_named(text, present, option="--split")


# Items and slices


def test_items_cycle_over_sequences() -> None:
    index = ItemIndex([90, 20, 40, 32], 32)
    assert index.sequences.tolist() == [0, 2, 3] and len(index) == (90 + 40 + 32) // 32
    taken = [index.deterministic(item) for item in range(len(index))]
    assert taken == [Slice(0, 0, 32), Slice(2, 0, 32), Slice(3, 0, 32), Slice(0, 32, 32), Slice(2, 32 % 8, 32)]
    with pytest.raises(IndexError):
        index.deterministic(5)
    with pytest.raises(InputError, match=r"no sequence has the 91 frames of a window .the longest has 90."):
        ItemIndex([90, 20], 91)


def test_every_item_once_in_an_epoch() -> None:
    """However the batches fall; so every sequence is drawn as often as EgoAllo draws it."""
    index = ItemIndex([90, 40, 700], 32)
    draws = SliceDraws(index, "deterministic", 7)
    wanted = Counter(index.deterministic(item) for item in range(len(index)))
    for size in (5, 25, 60):
        taken = [chosen for iteration in range(5 * len(index) // size) for chosen in draws.slices(iteration, size)]
        for epoch in range(len(taken) // len(index)):
            part = taken[epoch * len(index) : (epoch + 1) * len(index)]
            assert Counter(part) == wanted
    epochs = [draws.slices(epoch, len(index)) for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]


def test_draws_depend_on_seed_and_iteration_alone() -> None:
    index = ItemIndex([90, 40, 700], 32)
    for strategy in ("random_uniform_len", "random_variable_len"):
        draws = SliceDraws(index, strategy, 7)
        late = draws.slices(300, 16)
        assert draws.slices(0, 16) != late == SliceDraws(index, strategy, 7).slices(300, 16)
        assert late != SliceDraws(index, strategy, 8).slices(300, 16)
        assert late != draws.slices(301, 16)


def test_random_slices_lie_inside_and_reach_both_ends() -> None:
    index = ItemIndex([40, 35], 32)
    taken = SliceDraws(index, "random_uniform_len", 1).slices(0, 640)
    assert {chosen.start for chosen in taken if chosen.sequence == 0} == set(range(9))
    assert {chosen.start for chosen in taken if chosen.sequence == 1} == set(range(4))
    assert {chosen.frames for chosen in taken} == {32}


def test_shorter_slices_have_their_share() -> None:
    index = ItemIndex([90, 60], 32)
    taken = SliceDraws(index, "random_variable_len", 1).slices(0, 1600)
    short = [chosen.frames for chosen in taken if chosen.frames < 32]
    assert set(short) == set(range(SHORTEST, 32))
    assert len(short) / len(taken) == pytest.approx(0.3, abs=0.04)
    assert max(chosen.start + chosen.frames for chosen in taken if chosen.sequence == 0) == 90
    everything = SliceDraws(index, "random_variable_len", 1, short_share=1.0).slices(0, 64)
    assert max(chosen.frames for chosen in everything) < 32


def test_replayed_slices_lie_inside() -> None:
    index, random = ItemIndex([22, 20], 20), np.random.RandomState(0)
    for strategy, shortest in (("random_uniform_len", 20), ("random_variable_len", SHORTEST)):
        taken = [index.replayed(number % 2, strategy, random, short_share=1.0) for number in range(400)]
        ends = {(chosen.sequence, chosen.start + chosen.frames) for chosen in taken}
        assert {chosen.frames for chosen in taken} == ({20} if shortest == 20 else set(range(SHORTEST, 20)))
        assert max(end for sequence, end in ends if sequence == 0) == 22
        assert max(end for sequence, end in ends if sequence == 1) == 20


def test_weighting_by_frames() -> None:
    index = ItemIndex([132, 432], 32)  # 101 and 401 starts
    for weighting, share in (("clips", 0.5), ("frames", 101 / 502)):
        draws = SliceDraws(index, "random_uniform_len", 3, weighting=weighting)
        drawn = Counter(chosen.sequence for chosen in draws.slices(0, 2000))
        assert drawn[0] / 2000 == pytest.approx(share, abs=0.03)
    with pytest.raises(InputError, match="use the weighting 'clips', or random slices"):
        SliceDraws(index, "deterministic", 0, weighting="frames")


def test_strategies_that_do_not_fit() -> None:
    index = ItemIndex([90], 16)
    with pytest.raises(InputError, match="windows must be longer than 16, got 16"):
        SliceDraws(index, "random_variable_len", 0)
    with pytest.raises(InputError, match="slices must be deterministic, random_uniform_len or random_variable_len"):
        SliceDraws(index, "some", 0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"share of shorter slices must lie in \[0, 1\], got 2"):
        SliceDraws(ItemIndex([90], 32), "random_variable_len", 0, short_share=2.0)
    with pytest.raises(InputError, match="at least 1 window"):
        SliceDraws(index, "deterministic", 0).slices(0, 0)


# Reading


def test_what_the_file_holds(motion: Hdf5Motion) -> None:
    assert motion.names == tuple(sorted(NAMES)) and motion.frames == [NAMES[name] for name in motion.names]
    assert [entry.subset for entry in motion.sequences] == ["ACCAD", "ACCAD", "BioMotionLab_NTroje", "SSM_synced"]
    assert motion.hands and not motion.sequences[2].info.hands
    motion.check()


def test_windows_hold_what_is_stored(
    motion: Hdf5Motion, arrays: dict[str, dict[str, np.ndarray]], body: BodyModel
) -> None:
    """Head poses bit for bit, across the border of two blocks; joints where the file says they are."""
    slices = [Slice(3, BLOCK_FRAMES - 10, 32), Slice(0, 58, 32), Slice(2, 0, 32)]
    windows = motion.windows(slices, 32, body)
    for row, chosen in enumerate(slices):
        stored = arrays[motion.names[chosen.sequence]]
        frames = slice(chosen.start, chosen.start + 32)
        for field in ("T_world_cpf", "T_cpf_tm1_cpf_t", "contacts"):
            assert np.array_equal(getattr(windows, field)[row].numpy(), stored[field][frames]), field
        assert np.array_equal(windows.betas[row].numpy(), stored["betas"][0])
        np.testing.assert_allclose(windows.T_world_root[row].numpy(), stored["T_world_root"][frames], atol=1e-6)
        head = torch.from_numpy(stored["T_world_cpf"][frames])
        R_cpf_world = rotation_to_cpf(head)
        joints = (R_cpf_world @ (windows.joints[row, :, 1:] - head[:, None, 4:]).unsqueeze(-1)).squeeze(-1)
        np.testing.assert_allclose(joints.numpy(), stored["joints_wrt_cpf"][frames], atol=1e-5)
    assert windows.names == tuple(motion.names[chosen.sequence] for chosen in slices)
    assert windows.mask.all() and windows.hand_rotmats is not None
    eye = torch.eye(3).expand(32, 30, 3, 3)
    assert torch.equal(windows.hand_rotmats[2], eye) and not torch.allclose(windows.hand_rotmats[1], eye, atol=0.05)


def rotation_to_cpf(poses: torch.Tensor) -> torch.Tensor:
    """Rotations ``(F, 1, 3, 3)`` from the world to the axes of head poses ``(F, 7)``."""
    return quat_to_rotmat(poses[:, :4]).mT[:, None]


def test_short_slices_repeat_their_last_frame(motion: Hdf5Motion, body: BodyModel) -> None:
    windows = motion.windows([Slice(0, 5, 20), Slice(0, 5, 32)], 32, body)
    assert windows.mask.sum(1).tolist() == [20, 32] and windows.mask[0, :20].all()
    for field in ("T_world_cpf", "joints", "body_rotmats", "contacts"):
        short, full = getattr(windows, field)
        assert torch.equal(short[:20], full[:20]) and torch.equal(short[20:], short[19:20].expand_as(short[20:]))
    item = motion.item(Slice(0, 5, 20), 32)
    assert item["betas"].shape == (32, 16) and item["mask"].sum() == 20 and item["hand_quats"].shape == (32, 30, 4)


def test_without_any_fingers_there_are_none(motion: Hdf5Motion, body: BodyModel) -> None:
    old = motion.part(lambda entry: entry.subset == "BioMotionLab_NTroje")
    assert old.windows([Slice(0, 0, 32)], 32, body).hand_rotmats is None
    assert "hand_quats" not in old.item(Slice(0, 0, 8), 8)


def test_evaluation_slices(motion: Hdf5Motion) -> None:
    """EgoAllo's are cut one frame longer; the first only tells where the head was."""
    index = ItemIndex(motion.frames, 33)
    taken = deterministic_slices(motion, 32)
    assert len(taken) == len(index) == sum(motion.frames) // 33
    assert taken[4] == Slice(0, 33 % (90 - 33) + 1, 32) and taken[0].start == 1
    strided = strided_slices(motion, 32, 16)
    assert [chosen.start for chosen in strided if chosen.sequence == 2] == [0]
    assert [chosen.start for chosen in strided if chosen.sequence == 0] == [0, 16, 32, 48]
    assert max(chosen.start for chosen in strided if chosen.sequence == 3) == 656


def test_as_clips(motion: Hdf5Motion, file: Path, body: BodyModel) -> None:
    clips = load_motion(file, body)
    assert [clip.name for clip in clips] == list(motion.names) and {clip.fps for clip in clips} == {30.0}
    assert clips[2].hand_quats is None and clips[0].hand_quats is not None
    cut = cut_windows(clips[:1], body, 32, 32)
    stored = motion.windows([Slice(0, 1, 32), Slice(0, 33, 32)], 32, body)
    for field in ("T_world_cpf", "T_cpf_tm1_cpf_t", "joints", "betas", "contacts"):
        torch.testing.assert_close(getattr(cut, field)[:2], getattr(stored, field), rtol=0, atol=2e-6)


def test_the_body_must_be_the_files(motion: Hdf5Motion, body: BodyModel) -> None:
    motion.check_body(body)
    taller = replace(body, J_template=body.J_template * 1.1)
    with pytest.raises(InputError, match=r"made with another body than .* differ by .* cm. Name its SMPL-H model"):
        motion.check_body(taller)


def test_a_list_says_which_and_in_which_order(arrays: dict[str, dict[str, np.ndarray]], tmp_path: Path) -> None:
    file = write_sequences(tmp_path / "x.hdf5", arrays, listed=True)
    listing = tmp_path / "x_files.txt"
    listing.write_text("SSM/c_poses.npz\n\nACCAD/a_poses.npz\n")
    assert open_hdf5(file).names == ("ACCAD/a_poses.npz", "SSM/c_poses.npz")
    assert open_hdf5(file, sort=False).names == ("SSM/c_poses.npz", "ACCAD/a_poses.npz")
    assert len(open_hdf5(file, file_list="none")) == 4
    listing.rename(tmp_path / "other.txt")
    assert len(open_hdf5(file)) == 4 and len(open_hdf5(file, file_list=tmp_path / "other.txt")) == 2


def test_several_files(arrays: dict[str, dict[str, np.ndarray]], tmp_path: Path, body: BodyModel) -> None:
    names = list(arrays)
    write_sequences(tmp_path / "two.hdf5", {name: arrays[name] for name in names[2:]}, listed=True)
    write_sequences(tmp_path / "one.h5", {name: arrays[name] for name in names[:2]})
    motion = open_hdf5(tmp_path)
    assert motion.names == tuple(sorted(names)) and len(motion.files) == 2
    windows = motion.windows([Slice(row, 0, 32) for row in range(4)], 32, body)
    for row, name in enumerate(motion.names):
        assert np.array_equal(windows.T_world_cpf[row].numpy(), arrays[name]["T_world_cpf"][:32])
    (tmp_path / "some.txt").write_text(f"{names[3]}\n{names[0]}\n")
    assert open_hdf5(tmp_path, file_list=tmp_path / "some.txt").names == (names[0], names[3])
    (tmp_path / "some.txt").write_text("ACCAD/nobody.npz\n")
    with pytest.raises(InputError, match=r"some.txt: ACCAD/nobody.npz is in none of the files"):
        open_hdf5(tmp_path, file_list=tmp_path / "some.txt")
    write_sequences(tmp_path / "one.hdf5", {names[0]: arrays[names[0]]})
    with pytest.raises(InputError, match=f"{names[0]} is in both .*one.h5 and .*one.hdf5"):
        open_hdf5(tmp_path)
    np.savez(tmp_path / "clip.npz", a=np.zeros(1))
    with pytest.raises(InputError, match="holds both HDF5 and npz files"):
        load_motion(tmp_path, body)


# Cache


def test_the_cache_is_bounded_and_forgets_what_was_used_longest_ago() -> None:
    cache, loaded = BlockCache(1000), []

    def get(key: str, size: int = 400) -> np.ndarray:
        return cache.get(key, lambda: loaded.append(key) or np.zeros(size, np.uint8))  # type: ignore[func-returns-value]

    for key in ("a", "b", "a", "c", "a", "b"):
        get(key)
    assert loaded == ["a", "b", "c", "b"]
    get("huge", 1001)
    assert cache.counts.bytes == 800 and cache.counts.peak_bytes == 800
    assert (cache.counts.hits, cache.counts.misses) == (2, 5)
    with pytest.raises(ValueError):
        get("a")[0] = 1


def test_results_do_not_depend_on_the_cache(file: Path, body: BodyModel) -> None:
    batches = []
    for cache_mb in (0, 0.2, 100):
        motion = open_hdf5(file, cache_mb=cache_mb)
        sampler = Hdf5Sampler(motion, body, 32, 5, strategy="random_variable_len", prefetch=False)
        batches.append([sampler.batch(iteration, 12) for iteration in range(6)])
        assert motion.cache_counts.peak_bytes <= cache_mb * 2**20
    assert motion.cache_counts.hits > motion.cache_counts.misses
    assert all(same(one, other) for other in batches[1:] for one, other in zip(batches[0], other))


# The sampler


def test_prefetched_batches_are_the_same(file: Path, body: BodyModel) -> None:
    plain = Hdf5Sampler(open_hdf5(file), body, 32, 5, yaw=True, prefetch=False)
    ahead = Hdf5Sampler(open_hdf5(file), body, 32, 5, yaw=True)
    for iteration, size in ((0, 8), (1, 8), (2, 8), (7, 8), (8, 4), (0, 8)):
        assert same(plain.batch(iteration, size), ahead.batch(iteration, size)), iteration
    ahead.close()
    assert same(plain.batch(3, 8), ahead.batch(3, 8))
    ahead.close()


@pytest.mark.parametrize("prefetch", [False, True])
def test_parts_make_up_the_batch(file: Path, body: BodyModel, prefetch: bool) -> None:
    whole = Hdf5Sampler(open_hdf5(file), body, 32, 5, yaw=True, prefetch=False)
    parts = Hdf5Sampler(open_hdf5(file), body, 32, 5, yaw=True, prefetch=prefetch)
    for iteration in (3, 4):
        batch = whole.batch(iteration, 10)
        assert same(parts.batch(iteration, 4, first=3, whole=10), batch.select(range(3, 7)))
        assert same(parts.batch(iteration, 3, first=7), batch.select(range(7, 10)))
    with pytest.raises(InputError, match="4 windows from position 8 of 10"):
        parts.batch(3, 4, first=8, whole=10)
    parts.close()


def test_the_next_batch_is_made_in_another_thread(file: Path, body: BodyModel) -> None:
    sampler = Hdf5Sampler(open_hdf5(file), body, 32, 5)
    made: list[tuple[int, str]] = []
    make = sampler.make

    def noted(iteration: int, *part: int) -> MotionWindows:
        made.append((iteration, threading.current_thread().name))
        return make(iteration, *part)

    sampler.make = noted  # type: ignore[method-assign]
    for iteration in range(3):
        sampler.batch(iteration, 4)
    sampler.close()
    # Whether the last one had begun when the thread was stopped is chance.
    assert [iteration for iteration, _ in made][:3] == [0, 1, 2] and len(made) <= 4
    assert made[0][1] == threading.current_thread().name and all(name.startswith("motion") for _, name in made[1:])


def test_an_error_in_the_background_reaches_the_loop(arrays: dict, tmp_path: Path, body: BodyModel) -> None:
    spoilt = {name: dict(array) for name, array in arrays.items()}
    spoilt["SSM/c_poses.npz"]["contacts"] = np.full((700, 21), 2.0, np.float32)
    motion = open_hdf5(write_sequences(tmp_path / "x.hdf5", spoilt))
    sampler = Hdf5Sampler(motion, body, 32, 5)
    with pytest.raises(InputError, match=r"SSM/c_poses.npz: contacts must lie in \[0, 1\]"):
        for iteration in range(40):
            sampler.batch(iteration, 2)
    sampler.close()


def test_yaw_turns_head_and_body_together(file: Path, body: BodyModel) -> None:
    motion = open_hdf5(file)
    plain, turned = (Hdf5Sampler(motion, body, 32, 5, yaw=yaw, prefetch=False).batch(2, 6) for yaw in (False, True))
    assert torch.equal(plain.T_cpf_tm1_cpf_t, turned.T_cpf_tm1_cpf_t)
    assert torch.equal(plain.T_world_cpf[..., 6], turned.T_world_cpf[..., 6])
    assert not torch.allclose(plain.T_world_cpf, turned.T_world_cpf, atol=0.05)
    head = lambda windows: (windows.joints - windows.T_world_cpf[:, :, None, 4:]).norm(dim=-1)  # noqa: E731
    torch.testing.assert_close(head(plain), head(turned), rtol=0, atol=1e-5)


def _batch_in_child(sampler: Hdf5Sampler, queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    windows = sampler.batch(4, 6)
    assert sampler.motion.files[0]._pid == os.getpid()
    queue.put(windows.T_world_cpf.numpy().copy())
    sampler.close()


def test_each_process_opens_the_file_for_itself(file: Path, body: BodyModel) -> None:
    sampler = Hdf5Sampler(open_hdf5(file), body, 32, 5)
    expected = sampler.batch(4, 6).T_world_cpf.numpy()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_batch_in_child, args=(sampler, queue))
    child.start()
    received = queue.get(timeout=20)
    child.join(60)
    assert child.exitcode == 0 and np.array_equal(received, expected)
    assert np.array_equal(sampler.batch(4, 6).T_world_cpf.numpy(), expected)
    copied = pickle.loads(pickle.dumps(sampler))  # what a spawned process gets
    assert np.array_equal(copied.batch(4, 6).T_world_cpf.numpy(), expected)
    assert copied.motion.cache_counts.misses > 0
    sampler.close(), copied.close()


def test_many_threads_read_at_once(file: Path, body: BodyModel) -> None:
    motion = open_hdf5(file, cache_mb=0.3)
    sampler = Hdf5Sampler(motion, body, 32, 5, prefetch=False)
    expected = [sampler.batch(iteration, 8).T_world_cpf for iteration in range(8)]
    wrong: list[int] = []

    def work() -> None:
        wrong.extend(i for i in range(8) if not torch.equal(sampler.batch(i, 8).T_world_cpf, expected[i]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and not any(thread.is_alive() for thread in threads)


# EgoAllo's own reader


@pytest.fixture(scope="module")
def golden_dataset() -> Path:
    return golden_file("dataset/*.hdf5")


def golden_part(file: Path, splits: list[str]) -> Hdf5Motion:
    motion = open_hdf5(file, sort=False)
    wanted = subsets_named("+".join(splits), [entry.subset for entry in motion.sequences], option="splits")
    return motion.part(lambda entry: entry.subset in wanted)


@pytest.mark.golden
def test_items_of_egoallo(golden_dataset: Path) -> None:
    """Length, order and slices. A start was recorded as the first frame with the slice's first pose: where somebody
    stands still, several frames have it."""
    cases = json.loads((golden_dataset.parent / "expected.json").read_text())["reader"]
    assert cases
    for case in cases:
        motion, length = golden_part(golden_dataset, case["splits"]), case["subseq_len"]
        index = ItemIndex(motion.frames, length)
        assert len(index) == case["length"]
        assert [motion.names[row] for row in index.sequences] == case["groups"]
        for item, name, start in case["items_index_group_start"]:
            chosen = index.deterministic(item)
            assert motion.names[chosen.sequence] == name
            poses = motion.item(
                Slice(chosen.sequence, 0, motion.frames[chosen.sequence]), motion.frames[chosen.sequence]
            )
            assert np.array_equal(poses["T_world_root"][start], poses["T_world_root"][chosen.start])


@pytest.mark.golden
def test_numbers_of_egoallos_items(golden_dataset: Path) -> None:
    with np.load(golden_file("dataset/reader_items*.npz")) as archive:
        recorded: dict[str, dict[str, np.ndarray]] = {}
        for key in archive.files:
            item, _, field = key.partition(".")
            recorded.setdefault(item, {})[field] = archive[key]
    train = golden_part(golden_dataset, ["train"])
    kinds = set()
    for item, values in recorded.items():
        length = len(values["mask"])
        if item.startswith("random_variable_len_seed"):
            seed = int(item.removeprefix("random_variable_len_seed"))
            motion, index = train, ItemIndex(train.frames, length)
            random = np.random.RandomState(seed)
            chosen = index.replayed(seed % len(index.sequences), "random_variable_len", random, short_share=0.7)
        else:
            motion = golden_part(golden_dataset, [item.split("_")[0]])
            index = ItemIndex(motion.frames, length)
            chosen = index.replayed(len(index) - 1, "deterministic", np.random.RandomState(0))
        ours = motion.item(chosen, length)
        kinds.add(item.split("_")[0])
        for field, value in values.items():
            assert np.array_equal(ours[field], value), f"{item}.{field}"
    assert kinds and kinds <= {"train", "test", "random"}


@pytest.mark.golden
def test_windows_of_egoallos_file(golden_dataset: Path) -> None:
    """On the body that it was made with, joints lie where the file has them."""
    import h5py

    body = load_smplh(golden_file("body/*.npz"), with_mesh=False).body_only().to(dtype=torch.float32)
    motion = open_hdf5(golden_dataset)
    motion.check_body(body)
    windows = motion.windows(strided_slices(motion, 50, 50), 50, body)
    with h5py.File(golden_dataset) as stored:
        for row, name in enumerate(windows.names[:1]):
            head = windows.T_world_cpf[row]
            joints = rotation_to_cpf(head) @ (windows.joints[row, :, 1:] - head[:, None, 4:]).unsqueeze(-1)
            np.testing.assert_allclose(joints.squeeze(-1).numpy(), stored[name]["joints_wrt_cpf"][:50], atol=5e-5)
