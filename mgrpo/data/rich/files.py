"""RICH as released: which bodies a download has, one person's SMPL-X parameters over time, the SMPL-X model's joints.

A body is one pickle per frame, ``<split>_body/<sequence>/<frame>/<subject>.pkl``, 30 frames per second, in the world of
the capture's first camera. Splits, subjects and genders: the release's own tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mgrpo.body.skeleton import BODY_JOINT_NAMES
from mgrpo.data.safe_pickle import load_pickle
from mgrpo.errors import InputError
from mgrpo.npz import read_npz

FPS = 30.0
"""Frames per second of the release."""

SPLITS = ("train", "val", "test")

TEST_SEQUENCES: tuple[str, ...] = (
    *(f"Gym_010_{name}" for name in ("cooking1", "dips1", "dips2", "lunge1", "lunge2", "mountainclimber1",
                                     "mountainclimber2", "pushup1", "pushup2")),
    *(f"Gym_011_{name}" for name in ("burpee2", "cooking1", "cooking2", "dips1", "dips2", "dips3", "dips4", "pushup1",
                                     "pushup2")),
    *(f"Gym_012_{name}" for name in ("cooking2", "lunge1", "lunge2", "pushup2")),
    *(f"Gym_013_{name}" for name in ("burpee4", "dips1", "dips2", "dips3", "lunge1", "lunge2", "pushup1", "pushup2")),
    "LectureHall_009_021_reparingprojector1", "LectureHall_009_sidebalancerun1", "LectureHall_010_plankjack1",
    "LectureHall_010_sidebalancerun1", "LectureHall_019_wipingchairs1", "LectureHall_021_plankjack1",
    "LectureHall_021_sidebalancerun1",
    *(f"ParkingLot2_009_{name}" for name in ("burpeejump1", "burpeejump2", "impro1", "impro2", "impro5", "overfence1",
                                             "overfence2", "spray1")),
    *(f"ParkingLot2_017_{name}" for name in ("burpeejump1", "burpeejump2", "eating1", "overfence1", "overfence2",
                                             "pushup1", "pushup2")),
)  # fmt: skip
"""The 52 sequences of the official test split."""

TEST_GENDERS = {"011": "male"} | dict.fromkeys(("009", "010", "012", "013", "017", "019", "021"), "female")
"""Gender of the SMPL-X model that each subject of the test split was fitted with."""

_SIZES = {"transl": (3,), "global_orient": (3,), "body_pose": (63,)}
_MAX_FRAMES = 200_000


class RichTrack(NamedTuple):
    """One person in one sequence."""

    sequence: str
    subject: str
    frames: tuple[int, ...]
    """Frame numbers, increasing."""
    files: tuple[Path, ...]
    """Their pickles."""


class SmplxMotion(NamedTuple):
    """SMPL-X parameters of a person over time, float64, axis-angle in radians, metres, in the release's world."""

    frames: np.ndarray
    """Frame numbers ``(F,)``."""
    transl: np.ndarray
    """``(F, 3)``; the pelvis joint is at this plus its place in the zero pose."""
    global_orient: np.ndarray
    """``(F, 3)``."""
    body_pose: np.ndarray
    """``(F, 21, 3)``."""
    betas: np.ndarray
    """Mean over the frames, ``(n,)``."""
    hands: np.ndarray | None
    """Left, then right hand ``(F, 2, n)``: n = 45 axis-angle numbers or fewer PCA numbers; None where absent."""


class SmplxJoints(NamedTuple):
    """What is needed of a SMPL-X model: joints linear in betas, and the hands' bases."""

    J_template: np.ndarray
    """``(22, 3)`` metres, root first."""
    J_shapedirs: np.ndarray
    """``(22, 3, B)``."""
    hand_mean: np.ndarray
    """Left and right ``(2, 45)``."""
    hand_components: np.ndarray
    """``(2, 45, 45)``, a component per row."""


def find_tracks(folder: Path, split: str, *, partial: bool = False) -> list[RichTrack]:
    """Everyone in every sequence of a split.

    Args:
        folder: the download; holds ``<split>_body``.
        split: train, val or test.
        partial: take what is there although sequences of the test split are missing.
    Raises:
        InputError: not a download, a part of it missing (which), or names that are not the release's.
    """
    if split not in SPLITS:
        raise InputError(f"--split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that holds {split}_body")
    root = folder / f"{split}_body"
    if not root.is_dir():
        raise InputError(_what_is_missing(folder, split))
    sequences = sorted(path for path in root.iterdir() if path.is_dir())
    if not sequences:
        raise InputError(f"{root}: there are no sequences in it; unpack {split}_body again")
    missing = sorted(set(TEST_SEQUENCES) - {path.name for path in sequences}) if split == "test" else []
    if missing and not partial:
        raise InputError(
            f"{root}: {len(missing)} of the {len(TEST_SEQUENCES)} test sequences are missing: {', '.join(missing[:8])}"
            f"{' ...' if len(missing) > 8 else ''}. Numbers of a part are not those of the split: get the rest, or "
            "take what is there with --partial"
        )
    tracks = [track for path in sequences for track in _tracks_of(path)]
    if not tracks:
        raise InputError(f"{root}: there are no bodies (<sequence>/<frame>/<subject>.pkl); unpack {split}_body again")
    return tracks


def _what_is_missing(folder: Path, split: str) -> str:
    there = sorted(path.name for path in folder.iterdir())
    packed = [name for name in there if name.startswith(f"{split}_body") and not (folder / name).is_dir()]
    text = f"{folder}: the fitted bodies ({split}_body) are missing"
    if packed:
        return f"{text}; {packed[0]} is there: unpack it"
    others = [name for name in there if name.endswith("_body")]
    if others:
        return f"{text}; there are {', '.join(others)}: choose with --split"
    if f"{split}_hsc" in there:
        return f"{text}; {split}_hsc, which is there, holds contact labels only. Download the bodies (SMPL-X) too"
    if folder.name.endswith("_body"):
        return f"{text}; give the folder above it"
    return f"{text}. There are: {', '.join(there[:12]) or 'nothing'}. Download the bodies (SMPL-X) of the split"


def _tracks_of(sequence: Path) -> list[RichTrack]:
    frames = sorted(path for path in sequence.iterdir() if path.is_dir() and re.fullmatch(r"\d{1,9}", path.name))
    if len(frames) > _MAX_FRAMES:
        raise InputError(f"{sequence}: more than {_MAX_FRAMES} frames")
    found: dict[str, list[tuple[int, Path]]] = {}
    for frame in frames:
        for file in frame.glob("*.pkl"):
            found.setdefault(file.stem, []).append((int(frame.name), file))
    tracks = []
    for subject, entries in sorted(found.items()):
        entries.sort()
        tracks.append(
            RichTrack(sequence.name, subject, tuple(number for number, _ in entries), tuple(p for _, p in entries))
        )
    return tracks


def read_track(track: RichTrack, callback: Callable[[], None] | None = None) -> SmplxMotion:
    """Read all frames of a person. ``callback`` is called after each file.

    Raises:
        InputError: a damaged file, missing or badly shaped parameters, values that are not finite.
    """
    rows: dict[str, list[np.ndarray]] = {key: [] for key in (*_SIZES, "betas", "left_hand_pose", "right_hand_pose")}
    for path in track.files:
        content = load_pickle(path, "SMPL-X parameters of a body")
        if not isinstance(content, dict):
            raise InputError(f"{path}: expected a dictionary of SMPL-X parameters, got {type(content).__name__}")
        for key, store in rows.items():
            if key in _SIZES or key in content:
                store.append(_parameter(path, content, key))
        if callback is not None:
            callback()
    count = len(track.files)
    uneven = [
        key for key, values in rows.items() if values and (len(values) < count or len({len(v) for v in values}) > 1)
    ]
    if uneven:
        raise InputError(f"{track.files[0].parents[1]}: {uneven[0]} of subject {track.subject} differs between frames")
    arrays = {key: np.stack(values) for key, values in rows.items() if values}
    hands = None
    if "left_hand_pose" in arrays and "right_hand_pose" in arrays:
        left, right = arrays["left_hand_pose"], arrays["right_hand_pose"]
        hands = np.stack((left, right), axis=1) if left.shape == right.shape else None
    return SmplxMotion(
        frames=np.array(track.frames),
        transl=arrays["transl"],
        global_orient=arrays["global_orient"],
        body_pose=arrays["body_pose"].reshape(count, -1, 3),
        betas=arrays["betas"].mean(0) if "betas" in arrays else np.zeros(10),
        hands=hands,
    )


def _parameter(path: Path, content: dict[object, object], key: str) -> np.ndarray:
    value = content.get(key)
    if value is None:
        raise InputError(f"{path}: no {key} in it; it has: {', '.join(map(str, list(content)[:20]))}")
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{path}: {key} must be numbers, got {array.dtype}")
    array = array.astype(np.float64).reshape(-1)
    wanted = _SIZES.get(key)
    if (wanted and array.shape != wanted) or not 1 <= array.size <= 400:
        raise InputError(f"{path}: {key} must hold {wanted[0] if wanted else '1 to 400'} numbers, got {array.size}")
    if not np.isfinite(array).all():
        raise InputError(f"{path}: {key} is not finite (NaN or infinity); leave this frame out")
    return array


def find_smplx(place: Path, gender: str) -> Path:
    """The SMPL-X file of a gender: ``place`` itself, or ``SMPLX_<GENDER>.npz`` in it or in its folder ``smplx``.
    Raises InputError."""
    if place.is_file():
        return place
    names = [place / f"SMPLX_{gender.upper()}.npz", place / "smplx" / f"SMPLX_{gender.upper()}.npz"]
    names += [place / "models" / "smplx" / f"SMPLX_{gender.upper()}.npz"]
    for path in names:
        if path.is_file():
            return path
    raise InputError(
        f"{place}: no SMPL-X model for {gender} bodies; looked for {', '.join(map(str, names))}. Get it from "
        "https://smpl-x.is.tue.mpg.de, or leave --smplx away for approximate bodies"
    )


def read_smplx(path: Path, num_betas: int) -> SmplxJoints:
    """Joints and hand bases of a SMPL-X model. Raises InputError for another file."""
    hands = ("hands_meanl", "hands_meanr", "hands_componentsl", "hands_componentsr")
    arrays = read_npz(path, "SMPL-X model", ("v_template", "shapedirs", "J_regressor", *hands))
    numbers = {key: value.astype(np.float64) for key, value in arrays.items() if value.dtype.kind in "fiu"}
    if len(numbers) != len(arrays):
        raise InputError(f"{path}: a SMPL-X model holds numbers; some arrays of this file don't")
    template, regressor, shapedirs = numbers["v_template"], numbers["J_regressor"], numbers["shapedirs"]
    vertices = template.shape[0] if template.ndim == 2 else 0
    joints = len(BODY_JOINT_NAMES) + 1
    good = template.shape == (vertices, 3) and regressor.ndim == 2 and regressor.shape[1] == vertices
    good = good and regressor.shape[0] >= joints and shapedirs.ndim == 3 and shapedirs.shape[:2] == (vertices, 3)
    good = (
        good
        and all(numbers[key].size == 45 for key in hands[:2])
        and all(numbers[key].shape == (45, 45) for key in hands[2:])
    )
    if not good:
        shapes = ", ".join(f"{key} {value.shape}" for key, value in arrays.items())
        raise InputError(f"{path}: shapes that are not a SMPL-X model's: {shapes}")
    if shapedirs.shape[2] < num_betas:
        raise InputError(f"{path}: {shapedirs.shape[2]} shape numbers; the bodies have {num_betas}")
    regressor = regressor[:joints]
    return SmplxJoints(
        regressor @ template,
        np.einsum("jv,vxb->jxb", regressor, shapedirs[:, :, :num_betas]),
        np.stack((numbers["hands_meanl"].reshape(45), numbers["hands_meanr"].reshape(45))),
        np.stack((numbers["hands_componentsl"], numbers["hands_componentsr"])),
    )


def read_ply_points(path: Path, most: int = 2_000_000) -> np.ndarray:
    """Vertices ``(P, 3)`` of a PLY file (text or binary), every k-th of a large one. Raises InputError."""
    try:
        with path.open("rb") as stream:
            head, kind, count, fields, counting = b"", "", 0, [], False
            if stream.readline(200).strip() != b"ply":
                raise InputError(f"{path}: not a PLY file")
            while True:
                line = stream.readline(1000)
                head += line
                words = line.decode("latin-1").split()
                if not line or len(head) > 1 << 16:
                    raise InputError(f"{path}: the header of the PLY file has no end; the file is damaged")
                if words[:1] == ["end_header"]:
                    break
                if words[:1] == ["format"]:
                    kind = words[1] if len(words) > 1 else ""
                elif words[:1] == ["element"]:
                    if fields and counting:
                        counting = False
                    elif words[1:2] == ["vertex"] and len(words) == 3 and words[2].isdigit() and len(words[2]) < 11:
                        count, counting = int(words[2]), True
                    elif not fields:
                        raise InputError(f"{path}: vertices must come first in the PLY file")
                elif words[:1] == ["property"] and counting:
                    fields.append(_ply_field(path, words, kind))
            names = [name for name, _ in fields]
            if not {"x", "y", "z"} <= set(names) or not count or len(set(names)) != len(names):
                raise InputError(f"{path}: the PLY file has no vertices with x, y and z")
            if kind == "ascii":
                rows = [stream.readline(10000).split()[: len(names)] for _ in range(min(count, 20_000_000))]
                table = np.array(rows, float)
                points = table[:, [names.index(axis) for axis in "xyz"]]
            else:
                dtype = np.dtype(fields)
                size = path.stat().st_size - stream.tell()
                if count * dtype.itemsize > size:
                    raise InputError(f"{path}: {count} vertices are declared, the file ends before; download it again")
                step = max(1, -(-count // most))
                mapped = np.memmap(path, dtype, "r", stream.tell(), (count,))[::step]
                points = np.stack([mapped[axis].astype(np.float64) for axis in "xyz"], axis=1)
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"{path}: can't be read as a PLY file ({error})") from error
    if not np.isfinite(points).all():
        raise InputError(f"{path}: vertices that are not finite")
    return points


def _ply_field(path: Path, words: Sequence[str], kind: str) -> tuple[str, str]:
    types = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
             "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
             "float32": "f4", "float64": "f8"}  # fmt: skip
    orders = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "<"}
    if len(words) != 3 or words[1] not in types or kind not in orders:
        raise InputError(f"{path}: this kind of PLY file is not read ({' '.join(words)[:60]}, format {kind[:30]})")
    return words[2], orders[kind] + types[words[1]]
