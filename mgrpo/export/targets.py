"""The formats that a motion can be written to: names, endings, and which options they know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgrpo.export.amass import write_amass
from mgrpo.export.bvh import write_bvh
from mgrpo.export.csv_table import write_csv
from mgrpo.export.egoallo import write_egoallo
from mgrpo.export.frames import FileFrame, Unit, Up
from mgrpo.export.glb import write_glb
from mgrpo.export.motion import PosedMotion
from mgrpo.export.smpl_file import load_codec, write_smpl


@dataclass(frozen=True)
class Target:
    """One format."""

    summary: str
    """What it is, for help and documentation."""
    suffix: str
    """End of its files' names."""
    write: Callable[[Path, Sequence[PosedMotion], FileFrame], None]
    """Writes samples; all but one format take exactly one."""
    frame: FileFrame
    """Up axis and unit where nothing is asked for."""
    ups: tuple[Up, ...] = ()
    """Up axes to choose from; none: the format has its own."""
    units: tuple[Unit, ...] = ()
    """Units to choose from; none: the format has its own."""
    all_samples: bool = False
    """Whether one file holds all samples."""
    one_shape: bool = True
    """Whether the body's shape is constant in it."""
    even: bool = True
    """Whether it needs frames at equal distances."""
    check: Callable[[], object] | None = None
    """Raises InputError where the format can't be written on this machine."""

    @property
    def ending(self) -> str:
        """Ending of its files, with the point."""
        return f".{self.suffix.rpartition('.')[2]}"


TARGETS: dict[str, Target] = {
    "amass": Target(
        "AMASS npz for SMPL+H",
        "_poses.npz",
        lambda path, motions, _: write_amass(path, motions[0]),
        FileFrame("z", "m"),
    ),
    "smpl": Target(
        ".smpl of smplcodec",
        ".smpl",
        lambda path, motions, frame: write_smpl(path, motions[0], frame),
        FileFrame("y", "m"),
        ups=("y", "z"),
        check=load_codec,
    ),
    "bvh": Target(
        "skeleton and Euler angles",
        ".bvh",
        lambda path, motions, frame: write_bvh(path, motions[0], frame),
        FileFrame("y", "cm"),
        ups=("y", "z"),
        units=("m", "cm"),
    ),
    "glb": Target(
        "skinned, animated mesh",
        ".glb",
        lambda path, motions, _: write_glb(path, motions[0]),
        FileFrame("y", "m"),
    ),
    "npz": Target(
        "EgoAllo's output npz",
        ".npz",
        lambda path, motions, _: write_egoallo(path, motions),
        FileFrame("z", "m"),
        all_samples=True,
        one_shape=False,
        even=False,
    ),
    "csv": Target(
        "table, one row a frame",
        ".csv",
        lambda path, motions, frame: write_csv(path, motions[0], frame),
        FileFrame("z", "m"),
        ups=("y", "z"),
        units=("m", "cm"),
        one_shape=False,
        even=False,
    ),
}
"""Formats by the name that `mgrpo export --to` takes."""
