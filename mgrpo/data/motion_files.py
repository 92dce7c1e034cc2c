"""Motion from files: clip files; packs, fitted to the body; HDF5 files; folders of these; the shipped demo."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path

from mgrpo.body.model import BodyModel
from mgrpo.data.augment import resample
from mgrpo.data.clip import CLIP_KEYS, MotionClip, check_unique_names, load_clip
from mgrpo.data.hdf5.dataset import hdf5_files, load_hdf5_clips
from mgrpo.data.packs.fitting import fit_pack
from mgrpo.data.packs.pack import PACK_KEYS
from mgrpo.data.packs.reading import read_pack
from mgrpo.data.rate import TARGET_FPS
from mgrpo.errors import InputError, in_file
from mgrpo.npz import npz_keys

DEMO = "demo"
"""Name of the motion that ships with the package."""

DEMO_ASSET = "deepmimic.npz"
"""Its file in ``mgrpo/assets``."""


def load_motion(path: str | Path, body: BodyModel) -> list[MotionClip]:
    """Motion clips on ``body`` at 30 fps, in a fixed order (files by name, clips as in the file).

    Args:
        path: ``"demo"`` (15 clips that ship with the package), a pack, a clip file that ``save_clip`` wrote (taken as
            it is, it must have been made for this body), a folder in which every ``*.npz``, at any depth, is one of
            these; or an HDF5 file in EgoAllo's layout, or a folder of them, if it is small
            (:func:`mgrpo.data.hdf5.dataset.load_hdf5_clips`).
        body: the body to fit packs to: rotations are realigned to its rest directions, root paths scaled by leg
            length, planted toes put at ``body.toe_clearance`` above z = 0, contacts labelled. Betas are zero.
    Raises:
        InputError: nothing there, an empty folder, an unknown layout, missing arrays, wrong shapes, NaN, quaternions
            that are not unit, two clips of one name.
    """
    if str(path) == DEMO:
        with resources.as_file(resources.files("mgrpo") / "assets" / DEMO_ASSET) as asset:
            return fit_pack(read_pack(asset), body)
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(
            f"{path}: no such file or folder; give '{DEMO}', a motion npz, an HDF5 file, or a folder of them"
        )
    if hdf5_files(path):
        return load_hdf5_clips(path, body)
    if not path.is_dir():
        return _load_file(path, body)
    files = sorted(file for file in path.rglob("*.npz") if file.is_file())
    if not files:
        kinds = sorted({file.suffix or "(none)" for file in path.rglob("*") if file.is_file()})
        there = f"only files ending in {', '.join(kinds[:6])}" if kinds else "nothing"
        raise InputError(
            f"{path}: the folder has no motion files (*.npz, *.hdf5), it holds {there}; give a folder with "
            f"packs or clips, or '{DEMO}'"
        )
    groups = [(file, _load_file(file, body)) for file in files]
    names = [clip.name for _, clips in groups for clip in clips]
    if len(set(names)) != len(names):
        # Several packs may use the same names; the file's name tells them apart.
        groups = [
            (
                file,
                [
                    replace(clip, name=f"{file.relative_to(path).with_suffix('').as_posix()}/{clip.name}")
                    for clip in clips
                ],
            )
            for file, clips in groups
        ]
    clips = [clip for _, group in groups for clip in group]
    with in_file(path):
        check_unique_names(clips)
    return clips


def _load_file(path: Path, body: BodyModel) -> list[MotionClip]:
    keys = set(npz_keys(path, "motion file"))
    with in_file(path):
        if keys.issuperset(PACK_KEYS):
            return fit_pack(read_pack(path), body)
        if keys.issuperset(CLIP_KEYS):
            return [resample(load_clip(path), TARGET_FPS)]
    layouts = {"pack": PACK_KEYS, "clip": CLIP_KEYS}
    nearest = max(layouts, key=lambda kind: len(keys.intersection(layouts[kind])))
    missing = [key for key in layouts[nearest] if key not in keys]
    raise InputError(
        f"{path}: not a motion file. A pack has the arrays {', '.join(PACK_KEYS)}; a clip {', '.join(CLIP_KEYS)}. "
        f"This file has: {', '.join(sorted(keys)) or 'nothing'}. Nearest to a {nearest}, missing: {', '.join(missing)}"
    )
