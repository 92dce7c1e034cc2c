"""A folder of BVH and AMC files to one pack: which files there are, one file's conversion, and the pack of all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mgrpo.data.clip import MIN_FRAMES
from mgrpo.data.mocap.asf import AsfSkeleton, read_amc, read_asf
from mgrpo.data.mocap.bvh import read_bvh
from mgrpo.data.mocap.joint_map import apply_map, choose_map, read_map
from mgrpo.data.mocap.retarget import MappedMotion, floor_height, parse_floor, parse_unit, retarget
from mgrpo.data.packs.pack import MotionPack
from mgrpo.data.rate import TARGET_FPS, require_fps
from mgrpo.errors import InputError, in_file
from mgrpo.npz import read_npz, write_npz

SUFFIXES = (".bvh", ".amc")
"""Files that are converted, by the end of their names."""

_VERSION = 1
_PART_KEYS = ("fingerprint", "trans", "quats", "rest_joints", "planted_m", "facts")


@dataclass(frozen=True)
class ConvertOptions:
    """How files are read; part of what tells whether an earlier result still holds."""

    joint_map: str = "auto"
    """auto, bandai, acclaim, generic, or the path of a JSON file."""
    unit: str = "auto"
    """auto, m, cm, mm, inch, or metres per unit."""
    up: str = "auto"
    """auto, y or z."""
    amc_fps: float = 120.0
    """Frames per second of AMC files."""
    asf: str = ""
    """Skeleton of all AMC files; empty: found beside each."""
    max_error_mm: float = 1.0
    """Largest forward kinematics error at which a file is still taken, millimetres."""

    def __post_init__(self) -> None:
        if self.unit != "auto":
            parse_unit(self.unit)
        if self.up not in ("auto", "y", "z"):
            raise InputError(f"--up must be auto, y or z, got {self.up!r}")
        require_fps(self.amc_fps, "--amc-fps")
        if not self.max_error_mm > 0:
            raise InputError(f"--max-error-mm must be positive, got {self.max_error_mm:g}")
        if self.joint_map.endswith(".json"):
            read_map(self.joint_map)


@dataclass(frozen=True)
class FileResult:
    """What became of one file; a line of the report."""

    file: str
    """Path below the folder, with slashes."""
    status: str
    """``converted``, ``reused`` (from an earlier run) or ``skipped``."""
    reason: str = ""
    """Why it was skipped."""
    clip: str = ""
    """Name of its clip."""
    frames: int = 0
    """Frames at 30 per second."""
    source_fps: float = 0.0
    """Frames per second of the file."""
    error_mm: float = 0.0
    """Largest distance of a joint from the source's own, by forward kinematics of the stored numbers, millimetres."""
    metres_per_unit: float = 0.0
    """Unit that was used."""
    joint_map: str = ""
    """Map that was used."""
    notes: tuple[str, ...] = ()
    """What else a person should know."""


def find_files(folder: Path) -> list[Path]:
    """BVH and AMC files at any depth, in order. Raises InputError where there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that holds the BVH or ASF/AMC files")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        kinds = sorted({path.suffix or "(none)" for path in folder.rglob("*") if path.is_file()})
        raise InputError(
            f"{folder}: there are no BVH or AMC files; "
            + (f"it holds files ending in {', '.join(kinds[:8])}" if kinds else "it is empty")
        )
    return files


def skeleton_of(amc: Path) -> Path:
    """The ASF beside an AMC: the one whose name the AMC's begins with (the longest such), else the only one there.

    Raises:
        InputError: none, or several that could be it.
    """
    there = sorted(path for path in amc.parent.iterdir() if path.suffix.lower() == ".asf")
    fits = [path for path in there if amc.stem.lower().startswith(path.stem.lower())]
    if fits:
        return max(fits, key=lambda path: len(path.stem))
    if len(there) == 1:
        return there[0]
    problem = f"{len(there)} skeletons (ASF) beside it, none with its name" if there else "no skeleton (ASF) beside it"
    raise InputError(f"{amc}: {problem}; put the right one there, or name it with --asf")


@lru_cache(maxsize=8)
def _skeleton(path: str, fingerprint: tuple[int, int]) -> AsfSkeleton:
    return read_asf(path)


def fingerprint(path: Path, options: ConvertOptions) -> str:
    """Changes when the file, its skeleton, the joint map or an option does."""
    parts: list[Any] = [_VERSION, asdict(options)]
    files = [path]
    if path.suffix.lower() == ".amc":
        files.append(Path(options.asf) if options.asf else skeleton_of(path))
    if options.joint_map.endswith(".json"):
        files.append(Path(options.joint_map))
    for file in files:
        try:
            stat = file.stat()
        except OSError as error:
            raise InputError(f"{file}: can't be read ({error.strerror or error})") from error
        parts.append((file.name, stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def convert_file(path: Path, options: ConvertOptions) -> tuple[MappedMotion, str, float]:
    """One file's motion, the joint map's name and the source's frame rate.

    Raises:
        InputError: damaged, not understood, too short, or bones that change their lengths by more than
            ``options.max_error_mm`` shows.
    """
    if path.suffix.lower() == ".amc":
        asf = Path(options.asf) if options.asf else skeleton_of(path)
        stat = asf.stat() if asf.exists() else None
        key = (stat.st_size, stat.st_mtime_ns) if stat else (0, 0)
        source = read_amc(path, _skeleton(str(asf), key), options.amc_fps)
    else:
        source = read_bvh(path)
    if len(source.times) < MIN_FRAMES:
        raise InputError(f"{path}: {len(source.times)} frame(s); a clip needs at least {MIN_FRAMES}")
    with in_file(path):
        if options.joint_map.endswith(".json"):
            joint_map = apply_map(read_map(options.joint_map), source)
        else:
            joint_map = choose_map(source, options.joint_map)
        motion = retarget(source, joint_map, unit=options.unit, up=options.up)
    if not motion.error_m * 1000 <= options.max_error_mm:
        raise InputError(
            f"{path}: with bones of one length, joints miss the source's by up to {motion.error_m * 1000:.2f} mm, more "
            f"than --max-error-mm {options.max_error_mm:g} allows: bones change their length in this file, or joints "
            "between the mapped ones turn"
        )
    return motion, joint_map.name, source.fps


def convert_to_part(task: tuple[Path, str, Path, ConvertOptions]) -> FileResult:
    """Convert one file and keep the result in a part file; for worker processes. Bad files give a skipped result."""
    path, name, part, options = task
    try:
        mark = fingerprint(path, options)
        kept = read_part(part, mark)
        if kept is not None:
            return FileResult(**{**kept["facts"], "status": "reused", "file": name})
        motion, map_name, source_fps = convert_file(path, options)
    except InputError as error:
        return FileResult(file=name, status="skipped", reason=str(error))
    result = FileResult(
        file=name,
        status="converted",
        clip=name.rpartition(".")[0],
        frames=len(motion.trans),
        source_fps=source_fps,
        error_mm=motion.error_m * 1000,
        metres_per_unit=motion.metres,
        joint_map=map_name,
        notes=motion.notes,
    )
    write_npz(
        part,
        {
            "fingerprint": np.array(mark),
            "trans": motion.trans,
            "quats": motion.quats.astype(np.float32),
            "rest_joints": motion.rest_joints,
            "planted_m": motion.planted_m,
            "facts": np.array(json.dumps(asdict(result))),
        },
    )
    return result


def part_path(folder: Path, name: str) -> Path:
    """Where the part of the file called ``name`` is kept; not ending in npz, so that it isn't taken for motion."""
    return folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.part"


def read_part(path: Path, mark: str | None = None) -> dict[str, Any] | None:
    """The arrays of a part file; None where it is absent, damaged, or has another fingerprint than ``mark``."""
    if not path.exists():
        return None
    try:
        arrays: dict[str, Any] = dict(read_npz(path, "converted motion", _PART_KEYS))
        facts = json.loads(str(arrays["facts"]))
        arrays["facts"] = {**facts, "notes": tuple(facts["notes"])}
        FileResult(**arrays["facts"])
    except (InputError, ValueError, TypeError, KeyError):
        return None
    return None if mark is not None and str(arrays["fingerprint"]) != mark else arrays


def assemble(parts: Iterable[Path], names: Sequence[str], floor: str) -> tuple[MotionPack, Mapping[str, np.ndarray]]:
    """The pack of part files, in their order, and where each skeleton's floor was found (``floor_m``, per clip).

    ``floor``: ``auto`` (per skeleton, from slow toes of all its clips), ``keep`` (the files' zero), or a height.
    """
    kept = []
    for path in parts:
        arrays = read_part(path)
        if arrays is None:
            raise InputError(f"{path}: a result of this run is gone or damaged; start again")
        kept.append(arrays)
    rest = np.stack([arrays["rest_joints"] for arrays in kept])
    floors = np.full(len(kept), parse_floor(floor))
    if floor == "auto":
        # bones are means over a clip, so that clips of one skeleton differ in the last digits
        keys = [np.round(joints, 3).tobytes() for joints in rest]
        for key in set(keys):
            members = [index for index, other in enumerate(keys) if other == key]
            floors[members] = floor_height(np.concatenate([kept[index]["planted_m"] for index in members]))
    trans = [arrays["trans"] - np.array([0.0, 0.0, height]) for arrays, height in zip(kept, floors)]
    pack = MotionPack(
        names=tuple(names),
        lengths=np.array([len(part) for part in trans], np.int64),
        trans=np.concatenate(trans).astype(np.float32),
        quats=np.concatenate([arrays["quats"] for arrays in kept]),
        rest_joints=rest.astype(np.float32),
        fps=TARGET_FPS,
        loop=np.zeros(len(kept), bool),
    )
    return pack, {"floor_m": floors}
