"""Motion files of this field, each recognised by its contents and read into the same tracks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mgrpo.errors import InputError, in_file

from . import amass, egoallo, gvhmr, humanml3d, own, wham
from .container import Container, open_container
from .rotations import RotationMotion
from .tracks import MotionTracks, ReadOptions

__all__ = ["FORMATS", "Format", "MotionTracks", "ReadOptions", "RotationMotion", "read_motions", "read_tracks"]


@dataclass(frozen=True)
class Format:
    """One format: how to know it and how to read it."""

    name: str
    """For messages and tables."""
    summary: str
    """What is in such a file."""
    matches: Callable[[Container], bool]
    """Whether a file has this format's contents; its name does not matter."""
    read: Callable[[Container, ReadOptions], Sequence[MotionTracks | RotationMotion]]
    """Its motions, as rotations where it has them."""


FORMATS: tuple[Format, ...] = (
    Format("clip", "npz of mgrpo.data.save_clip", own.matches_clip, own.read_clip),
    Format("pack", "npz with several clips", own.matches_pack, own.read_pack_tracks),
    Format("EgoAllo output", "npz of EgoAllo's inference or mgrpo sample", egoallo.matches, egoallo.read),
    Format("AMASS", "npz with trans and poses, or root_orient and pose_body", amass.matches, amass.read),
    Format("joints npz", "npz with joints (T, 22, 3) or (S, T, 22, 3)", own.matches_joints, own.read_joints),
    Format("joints npy", "npy of (T, 22, 3) or (S, T, 22, 3)", humanml3d.matches_joints, humanml3d.read_joints),
    Format("MDM results", "results.npy with motion (B, 22, 3, T)", humanml3d.matches_results, humanml3d.read_results),
    Format("WHAM output", "wham_output.pkl", wham.matches, wham.read),
    Format("GVHMR results", "hmr4d_results.pt", gvhmr.matches, gvhmr.read),
)
"""Every format that is read; the first that matches is taken."""


def read_motions(path: str | Path, options: ReadOptions | None = None) -> list[MotionTracks | RotationMotion]:
    """The motions in a file of any of :data:`FORMATS` as it holds them: positions, or rotations that are yet to be
    posed.

    Raises:
        InputError: no such file, none of the formats, or damaged; the message begins with the path.
    """
    path = Path(path)
    file = open_container(path)
    options = options or ReadOptions()
    found = next((entry for entry in FORMATS if entry.matches(file)), None)
    if found is None:
        there = f"It has the arrays {', '.join(sorted(file.keys)[:20])}. " if file.keys else ""
        raise InputError(
            f"{path}: not a motion file of a known format. {there}Known: "
            + "; ".join(f"{entry.name} ({entry.summary})" for entry in FORMATS)
            + (". mgrpo data mocap makes a pack of it" if path.suffix.lower() in (".bvh", ".amc") else "")
        )
    with in_file(path):
        motions = found.read(file, options)
    if not motions:
        raise InputError(f"{path}: a file of the format {found.name} without any motion")
    return [one if one.format == found.name else replace(one, format=found.name) for one in motions]


def read_tracks(path: str | Path, options: ReadOptions | None = None) -> list[MotionTracks]:
    """The motions in a file of any of :data:`FORMATS`, posed.

    Raises:
        InputError: as :func:`read_motions`, or a body is needed and none was given; the message begins with the path.
    """
    motions = read_motions(path, options)
    with in_file(path):
        return [one.tracks() if isinstance(one, RotationMotion) else one for one in motions]
