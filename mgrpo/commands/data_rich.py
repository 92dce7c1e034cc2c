"""`mgrpo data rich`: RICH's SMPL-X bodies, as downloaded, to clips on our body."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from mgrpo.body import BodyModel, resolve_body
from mgrpo.data.clip import save_clip
from mgrpo.data.rich.bodies import (
    BodyFit,
    Gravity,
    PosedTrack,
    fit_betas,
    fit_gravity,
    gravity_of_table,
    pose_track,
    read_gravity,
    scene_gravity,
    to_clips,
)
from mgrpo.data.rich.files import (
    TEST_GENDERS,
    RichTrack,
    SmplxJoints,
    SmplxMotion,
    find_smplx,
    find_tracks,
    read_ply_points,
    read_smplx,
    read_track,
)
from mgrpo.errors import InputError
from mgrpo.npz import read_npz, write_npz
from mgrpo.storage import atomic_write_json, make_folder
from mgrpo.terminal.progress import Progress, notice

_PARTS = ".parts"
_PART_KEYS = ("fingerprint", "frames", "transl", "global_orient", "body_pose", "betas")


@dataclass(frozen=True)
class RichConfig:
    """Convert RICH's fitted bodies (SMPL-X, one pickle per frame) to clips that `--data.motion` takes.

    Pickles are read without running them. The 21 body joints keep their rotations, shape is fitted to our body, gravity
    and floor are found per capture. OUT/SPLIT holds a clip per person and sequence, OUT/rich-SPLIT-report.json how each
    came about. A run that was stopped doesn't read again what it had read.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of the download; holds SPLIT_body/SEQUENCE/FRAME/SUBJECT.pkl."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder to write to."""
    split: Literal["train", "val", "test"] = "test"
    """Split of the release."""
    partial: bool = False
    """Go on although sequences of the test split are missing."""
    smplx: str = ""
    """SMPL-X model (npz), or the folder that holds SMPLX_MALE.npz and SMPLX_FEMALE.npz: gives shapes and fingers.
    Empty: our body's mean shape, no fingers, pelvis heights right to some centimetres before the floor is fitted."""
    genders: str = ""
    """JSON file from subjects to male, female or neutral (the release's gender.json); empty: known for the test
    split."""
    gravity: str = "fitted"
    """Which way is up: `fitted` (to planted toes of all sequences of a capture), `scene` (to the scan,
    scan_calibration/CAPTURE/*.ply), or a JSON file {capture: 4x4 matrix to z up, floor at 0}."""
    body: str = "default"
    """Body: `default`, `smplh` (rotations and shapes then mean the same as in the release), or the path of an SMPL-H
    npz."""

    def __post_init__(self) -> None:
        if self.gravity not in ("fitted", "scene") and not self.gravity.endswith(".json"):
            raise InputError(f"--gravity must be fitted, scene, or a JSON file, got {self.gravity!r}")


def run_data_rich(config: RichConfig) -> int:
    """Convert. Returns 0. Raises InputError and StorageError."""
    tracks = find_tracks(config.folder, config.split, partial=config.partial)
    genders = _genders(config)
    table = read_gravity(Path(config.gravity)) if config.gravity.endswith(".json") else None
    body = resolve_body(config.body, with_mesh=False)
    parts = config.out / _PARTS
    make_folder(parts)
    make_folder(config.out / config.split)
    if not config.smplx:
        notice(
            "WARNING: without --smplx bodies have our mean shape and straight fingers; joints then differ from the "
            "release's by centimetres"
        )
    posed: dict[str, list[PosedTrack]] = {}
    fits: dict[str, BodyFit] = {}
    models: dict[str, SmplxJoints | None] = {}
    total = sum(len(track.files) for track in tracks)
    with Progress(f"rich {config.split}", total, "frames") as progress:
        for track in tracks:
            name = f"{track.sequence}_{track.subject}"
            motion = _read(parts, config.split, track, progress)
            model = _model(config, genders, track.subject, len(motion.betas), models)
            fits[name] = fit_betas(model, motion.betas, body)
            capture = track.sequence.partition("_")[0]
            posed.setdefault(capture, []).append(pose_track(name, motion, fits[name], model, body))
    report: dict[str, Any] = {"split": config.split, "gravity": {}, "tracks": []}
    clips = 0
    with Progress("clips", len(tracks), "tracks") as progress:
        for capture, group in sorted(posed.items()):
            gravity = _gravity(config, table, capture, group, body)
            report["gravity"][capture] = {
                "up": gravity.up.tolist(),
                "floor_m": gravity.floor_m,
                "source": gravity.source,
            }
            tilt = np.degrees(np.arccos(np.clip(-gravity.up[1], -1, 1)))
            notice(f"{capture}: up is {tilt:.1f} degrees off the camera's, from {gravity.source}")
            for track in group:
                made = to_clips(track, gravity, body)
                for clip in made:
                    save_clip(config.out / config.split / f"{clip.name}.npz", clip)
                clips += len(made)
                report["tracks"].append(
                    {
                        "name": track.name,
                        "clips": [{"name": clip.name, "frames": len(clip)} for clip in made],
                        "bones_rms_m": fits[track.name].rms_m,
                    }
                )
                progress.update()
    atomic_write_json(config.out / f"rich-{config.split}-report.json", report)
    print(config.out / config.split)
    sequences = len({track.sequence for track in tracks})
    print(f"{clips} clips of {len(tracks)} people in {sequences} sequences, {total} frames")
    return 0


def _genders(config: RichConfig) -> dict[str, str]:
    if not config.genders:
        return dict(TEST_GENDERS)
    path = Path(config.genders)
    try:
        content = json.loads(path.read_text("utf-8"))
        genders = {str(subject).zfill(3): str(gender).lower() for subject, gender in content.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: can't be read as genders by subject ({error})") from error
    odd = set(genders.values()) - {"male", "female", "neutral"}
    if odd:
        raise InputError(f"{path}: genders are male, female or neutral, got {', '.join(sorted(odd))}")
    return genders


def _model(
    config: RichConfig, genders: dict[str, str], subject: str, num_betas: int, known: dict[str, SmplxJoints | None]
) -> SmplxJoints | None:
    if not config.smplx:
        return None
    place = Path(config.smplx).expanduser()
    gender = genders.get(subject.zfill(3))
    if gender is None and not place.is_file():
        raise InputError(
            f"the gender of subject {subject} is not known, so which SMPL-X model the body has; give the release's "
            "gender.json with --genders"
        )
    path = find_smplx(place, gender or "neutral")
    key = f"{path}:{num_betas}"
    if key not in known:
        known[key] = read_smplx(path, num_betas)
    return known[key]


def _gravity(
    config: RichConfig, table: dict[str, np.ndarray] | None, capture: str, group: Sequence[PosedTrack], body: BodyModel
) -> Gravity:
    if table is not None:
        return gravity_of_table(table, capture)
    if config.gravity == "fitted":
        return fit_gravity(group, body.toe_clearance)
    scans = sorted((config.folder / "scan_calibration" / capture).glob("*.ply"))
    if not scans:
        raise InputError(
            f"{config.folder / 'scan_calibration' / capture}: the scanned scene (*.ply) is missing; download "
            "scan_calibration, or use --gravity fitted"
        )
    return scene_gravity(read_ply_points(scans[0]), group, body.toe_clearance)


def _read(parts: Path, split: str, track: RichTrack, progress: Progress) -> SmplxMotion:
    """A track's parameters, from an earlier run where its files are the same."""
    mark = hashlib.sha256()
    for path in track.files:
        stat = path.stat()
        mark.update(f"{path.parent.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    part = parts / f"{split}-{track.sequence}-{track.subject}.part"
    if part.exists():
        try:
            arrays = read_npz(part, "read bodies", _PART_KEYS, ("hands",))
            if str(arrays["fingerprint"]) == mark.hexdigest():
                progress.update(len(track.files))
                return SmplxMotion(*(arrays[key] for key in _PART_KEYS[1:]), arrays.get("hands"))
        except InputError:
            pass  # damaged: read anew
    motion = read_track(track, progress.update)
    arrays = {key: np.asarray(getattr(motion, key)) for key in _PART_KEYS[1:]}
    arrays["fingerprint"] = np.array(mark.hexdigest())
    write_npz(part, arrays if motion.hands is None else arrays | {"hands": motion.hands})
    return motion
