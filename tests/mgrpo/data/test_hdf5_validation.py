"""Bad and hostile HDF5 files: a clear error each, nothing followed out of the file, nothing large allocated."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from benchmarks.hdf5_files import made_up_sequence, write_sequences
from mgrpo.body import default_body
from mgrpo.data import load_motion, open_hdf5
from mgrpo.data.hdf5.file import Hdf5File, is_hdf5, read_file_list
from mgrpo.data.indexing import Slice
from mgrpo.errors import InputError

NAME = "CMU/01/walk_poses.npz"
Edit = Callable[[h5py.File, Path], None]


@pytest.fixture(scope="module")
def good() -> dict[str, np.ndarray]:
    return made_up_sequence(default_body(), 50, 0)


@pytest.fixture
def file(good: dict[str, np.ndarray], tmp_path: Path) -> Path:
    return write_sequences(tmp_path / "x.hdf5", {NAME: good, "CMU/02/other_poses.npz": good})


def read(path: Path) -> None:
    """All that training does with a file."""
    motion = open_hdf5(path)
    motion.check()
    motion.windows([Slice(row, 0, 32) for row in range(len(motion))], 32, default_body())


def set_to(key: str, where: tuple[int, ...], value: float) -> Edit:
    def edit(file: h5py.File, folder: Path) -> None:
        file[NAME][key][where] = value

    return edit


def replaced(key: str, **options: object) -> Edit:
    """The dataset made anew with other options."""

    def edit(file: h5py.File, folder: Path) -> None:
        del file[NAME][key]
        file[NAME].create_dataset(key, **options)

    return edit


def deleted(key: str) -> Edit:
    def edit(file: h5py.File, folder: Path) -> None:
        del file[NAME][key]

    return edit


def linked(key: str, link: object) -> Edit:
    def edit(file: h5py.File, folder: Path) -> None:
        del file[key]
        file[key] = link

    return edit


def externally_stored(file: h5py.File, folder: Path) -> None:
    (folder / "secret.bin").write_bytes(bytes(50 * 7 * 4))
    del file[NAME]["T_world_cpf"]
    file[NAME].create_dataset(
        "T_world_cpf", (50, 7), "f4", external=[(str(folder / "secret.bin"), 0, h5py.h5f.UNLIMITED)]
    )


def virtual(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "source.hdf5", "w") as source:
        source["x"] = np.zeros((50, 7), np.float32)
    layout = h5py.VirtualLayout((50, 7), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "source.hdf5"), "x", (50, 7))
    del file[NAME]["T_world_cpf"]
    file[NAME].create_virtual_dataset("T_world_cpf", layout)


def huge(file: h5py.File, folder: Path) -> None:
    """Terabytes that were never written, in every dataset."""
    shapes = {key: value.shape[1:] for key, value in file[NAME].items() if key != "betas"}
    for key, shape in shapes.items():
        del file[NAME][key]
        file[NAME].create_dataset(key, (9_000_000, *shape), "f4", chunks=(32, *shape))


def huge_compressed(file: h5py.File, folder: Path) -> None:
    del file[NAME]["body_quats"]
    created = file[NAME].create_dataset("body_quats", (50, 21, 4), "f4", chunks=(32, 21, 4), compression="gzip")
    created[:32] = file["CMU/02/other_poses.npz/body_quats"][:32]


BAD: dict[str, tuple[Edit, str]] = {
    "nan": (set_to("T_world_root", (7, 4), np.nan), r"walk_poses.npz: T_world_root is not finite .* at frame 7; leave"),
    "infinity": (set_to("body_quats", (9, 3, 1), np.inf), r"body_quats is not finite .* at frame 9"),
    "nan in betas": (set_to("betas", (0, 3), np.nan), r"walk_poses.npz: betas are not finite"),
    "not unit": (set_to("body_quats", (5, 2, 0), 3.0), r"body_quats must hold unit .*frame 5, joint 2 the length is 3"),
    "fingers not unit": (set_to("hand_quats", (5, 29, 0), 3.0), "hand_quats must hold unit"),
    "head not unit": (set_to("T_world_cpf", (1, 0), 3.0), r"T_world_cpf must hold unit .* at frame 1 the length"),
    "step not unit": (set_to("T_cpf_tm1_cpf_t", (1, 0), 3.0), "T_cpf_tm1_cpf_t must hold unit"),
    "contacts": (set_to("contacts", (4, 0), -0.5), r"contacts must lie in \[0, 1\], got -0.5 to 1 .first at frame 4"),
    "shape": (
        replaced("contacts", data=np.zeros((50, 22), "f4")),
        r"/contacts must have shape \(50, 21\), got \(50, 22\)",
    ),
    "frames": (
        replaced("body_quats", data=np.zeros((49, 21, 4), "f4")),
        r"must have shape \(50, 21, 4\), got \(49, 21",
    ),
    "root's shape": (
        replaced("T_world_root", data=np.zeros((50, 8), "f4")),
        r"of shape \(frames, 7\) .* got \(50, 8\)",
    ),
    "no frames": (replaced("T_world_root", data=np.zeros((0, 7), "f4")), r"with 1 to 10,000,000 frames, got \(0, 7\)"),
    "too many": (replaced("T_world_root", shape=(10**12, 7), dtype="f4", chunks=(32, 7)), r"1 to 10,000,000 frames"),
    "betas' shape": (replaced("betas", data=np.zeros(16, "f4")), r"/betas must have shape \(1, 16\), got \(16,\)"),
    "integers": (replaced("contacts", data=np.zeros((50, 21), "i4")), "contacts must hold float32 numbers, got int32"),
    "half": (replaced("contacts", data=np.zeros((50, 21), "f2")), "contacts must hold float32 numbers, got float16"),
    "text": (
        replaced("contacts", shape=(50, 21), dtype=h5py.string_dtype()),
        "contacts must hold float32 numbers, got object",
    ),
    "a group": (
        lambda file, folder: (deleted("contacts")(file, folder), file[NAME].create_group("contacts")),
        "is not a",
    ),
    "missing": (
        deleted("T_cpf_tm1_cpf_t"),
        r"walk_poses.npz has no T_cpf_tm1_cpf_t; EgoAllo's layout needs T_world_root",
    ),
    "no betas": (deleted("betas"), r"walk_poses.npz has no betas"),
    "external link": (
        linked(f"{NAME}/contacts", h5py.ExternalLink("/etc/passwd", "/x")),
        "contacts of sequence .* is a soft or external link, which is not followed",
    ),
    "soft link": (
        linked(f"{NAME}/contacts", h5py.SoftLink("/CMU/02/other_poses.npz/contacts")),
        "soft or external link",
    ),
    "external storage": (externally_stored, "T_world_cpf takes its data from other files, which is not followed"),
    "virtual": (virtual, "T_world_cpf takes its data from other files, which is not followed"),
    "never written": (huge, "declares 252,000,000 bytes of which the file holds 0"),
    "partly written": (huge_compressed, r"body_quats declares 16,800 bytes of which .* never written to its end"),
    "chunks": (
        replaced("contacts", shape=(50, 21), maxshape=(None, 21), dtype="f4", chunks=(10**6, 21)),
        r"has chunks of \(1000000, 21\) numbers; larger ones than 16 MiB are not read",
    ),
    "plug-in": (
        replaced("contacts", data=np.zeros((50, 21), "f4"), chunks=(32, 21), scaleoffset=4),
        "is compressed by a plug-in, which is not loaded",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sequences_are_refused(case: str, file: Path, tmp_path: Path) -> None:
    read(file)
    edit, message = BAD[case]
    with h5py.File(file, "r+") as opened:
        edit(opened, tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read(file)
    assert str(file) in str(caught.value) and "walk_poses" in str(caught.value)


def test_compressed_and_double_precision_files_are_read(good: dict[str, np.ndarray], file: Path) -> None:
    with h5py.File(file, "r+") as opened:
        for number, (key, array) in enumerate(good.items()):
            options = [{"compression": "gzip", "shuffle": True}, {"compression": "lzf"}, {"dtype": "f8"}, {}][
                number % 4
            ]
            del opened[NAME][key]
            opened[NAME].create_dataset(key, data=array, **options)
    read(file)
    motion = open_hdf5(file)
    for key in ("T_world_cpf", "body_quats", "hand_quats"):
        assert np.array_equal(motion.item(Slice(0, 3, 40), 40)[key], good[key][3:43]), key


def test_links_to_sequences_are_passed_over(file: Path, tmp_path: Path) -> None:
    """Without a list, links are no sequences; with one, naming them is an error; groups in a circle end."""
    other = tmp_path / "elsewhere.hdf5"
    file.rename(other)
    with h5py.File(other, "r+") as source, h5py.File(file, "w") as opened:
        source.copy("CMU", opened)
        opened["linked"] = h5py.ExternalLink(str(other), "/CMU")
        opened["soft"] = h5py.SoftLink("/CMU")
        opened["CMU/01/round"] = opened["CMU"]
    assert open_hdf5(file).names == (NAME, "CMU/02/other_poses.npz")
    for name in (f"linked/{NAME[4:]}", f"soft/{NAME[4:]}"):
        (tmp_path / "list.txt").write_text(f"{name}\n")
        with pytest.raises(InputError, match="is a soft or external link, which is not followed"):
            open_hdf5(file, file_list=tmp_path / "list.txt")


def test_files_that_are_none(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.hdf5: no such file; expected an HDF5 file"):
        open_hdf5(tmp_path / "nowhere.hdf5")
    for content in (b"", b"hello", b"\x80\x04pickle"):
        (tmp_path / "text.hdf5").write_bytes(content)
        with pytest.raises(InputError, match=r"text.hdf5: not an HDF5 file, or its beginning is damaged"):
            open_hdf5(tmp_path / "text.hdf5")
    whole = file.read_bytes()
    for share in (0.3, 0.9):
        file.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InputError, match=r"x.hdf5: the file is cut off \(.*\); get or write it again"):
            open_hdf5(file)
    with h5py.File(tmp_path / "empty.hdf5", "w"):
        pass
    with pytest.raises(InputError, match=r"empty.hdf5: no sequence .a group with T_world_root."):
        open_hdf5(tmp_path / "empty.hdf5")
    (tmp_path / "folder.hdf5").mkdir()
    with pytest.raises(InputError, match="expected an HDF5 file of motion, got a folder"):
        Hdf5File(tmp_path / "folder.hdf5")
    with pytest.raises(InputError, match="at least 0 MiB"):
        open_hdf5(tmp_path / "empty.hdf5", cache_mb=-1)


def test_damaged_bytes_are_an_error_or_other_values(good: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Wherever bytes are wrong, reading ends with an InputError or with checked values, never otherwise."""
    path = write_sequences(tmp_path / "y.hdf5", {NAME: good})
    whole = bytearray(path.read_bytes())
    random = np.random.RandomState(0)
    refused = 0
    for number in range(60):
        broken = bytearray(whole)
        # The first bytes hold the tree; later ones mostly numbers.
        start = int(random.randint(0, 8000 if number % 2 else len(whole) - 64))
        broken[start : start + 64] = random.bytes(64)
        copy = tmp_path / f"y{number}.hdf5"
        copy.write_bytes(broken)
        try:
            read(copy)
        except InputError:
            refused += 1
        copy.unlink()
    assert refused > 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the list of sequences is empty"),
        (b"\n \n", "the list of sequences is empty"),
        (b"\xff\xfe\x00", "it is not UTF-8 text"),
        (b"a/b\na/b\n", "a/b is listed twice"),
        (b"a/b\n../c\n", r"entry 2 \('../c'\) is not the name of a group"),
        (b"/a/b\n", "is not the name of a group"),
        (b"CMU/01/nobody.npz\n", r"there is no nobody.npz on the way to sequence CMU/01/nobody.npz"),
        (b"CMU/07/walk.npz\n", r"there is no 07 on the way to sequence CMU/07/walk.npz"),
        (b"CMU/01/walk_poses.npz/betas/x\n", "betas is not a group, so there is no sequence"),
        (b"CMU/01/walk_poses.npz/betas\n", "is not a group; a sequence is a group of datasets"),
        (b"CMU/01\n", r"sequence CMU/01 has no T_world_root"),
    ],
)
def test_bad_lists(text: bytes, message: str, file: Path) -> None:
    listing = file.with_name("x_files.txt")
    listing.write_bytes(text)
    with pytest.raises(InputError, match=message):
        open_hdf5(file)


def test_lists_of_absurd_size_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="the list of sequences can't be read: No such file"):
        read_file_list(tmp_path / "nowhere.txt")
    with (tmp_path / "large.txt").open("wb") as stream:
        stream.truncate(100 << 20)
    with pytest.raises(InputError, match="at most 64 MiB"):
        read_file_list(tmp_path / "large.txt")


def test_clips_are_for_small_files(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mgrpo.data.hdf5 import dataset

    monkeypatch.setattr(dataset, "MAX_CLIP_BYTES", 1000)
    with pytest.raises(InputError, match=r"2 sequences would take .* GiB as clips; .* read a file of any size"):
        load_motion(file, default_body())


def test_without_h5py_there_is_a_way_out(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"need the package h5py.*pip install h5py"):
        open_hdf5(file)


def test_endings() -> None:
    assert is_hdf5("a.hdf5") and is_hdf5("A.H5") and not is_hdf5("a.npz") and not is_hdf5("demo")
