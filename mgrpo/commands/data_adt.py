"""`mgrpo data adt`: an Aria Digital Twin sequence to motion with the device's own head trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mgrpo.body import resolve_body
from mgrpo.data.adt.files import find_adt
from mgrpo.data.adt.sequence import adt_pack, head_arrays, load_adt
from mgrpo.data.aria_device import read_device_cpf
from mgrpo.data.packs.writing import write_pack
from mgrpo.errors import InputError
from mgrpo.npz import write_npz
from mgrpo.storage import make_folder
from mgrpo.terminal.progress import Progress, notice


@dataclass(frozen=True)
class AdtConfig:
    """Convert one Aria Digital Twin sequence to motion that `--data.motion` takes.

    Ground-truth device poses and the wearer's skeleton are brought to one clock at 30 Hz and to a world with z up and
    the floor at 0. OUT/SEQUENCE.npz is a pack on the wearer's own bones; it also holds the device's central pupil
    frame (T_world_cpf), timestamps_ns and the motion capture's joints (source_joints22).
    """

    sequence: Annotated[Path, tyro.conf.Positional]
    """Folder of one sequence: aria_trajectory.csv and Skeleton_*.json; the mps folder with points serves for the
    floor."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder to write to."""
    skeleton: str = "auto"
    """Skeleton of the wearer, such as `T` for Skeleton_T.json; `auto`: the only one, or the one associated with the
    device; `none`: the head alone."""
    device_cpf: str = ""
    """JSON file with the pose of the central pupil frame in the device's from the recording's calibration (7 numbers
    wxyz and metres, or a 4x4 matrix); empty: the nominal one."""
    floor: str = "auto"
    """Height of the floor in the ground-truth world, metres; `auto`: from points, else the world's zero or toes."""
    body: str = "default"
    """Body whose rest pose the rotations are relative to: `default`, `smplh`, or the path of an SMPL-H npz."""


def run_data_adt(config: AdtConfig) -> int:
    """Convert. Returns 0. Raises InputError and StorageError."""
    files = find_adt(config.sequence, config.skeleton)
    device_cpf = read_device_cpf(Path(config.device_cpf)) if config.device_cpf else None
    name = config.sequence.resolve().name
    with Progress("adt", 3, "steps") as progress:
        sequence = load_adt(files, T_device_cpf=device_cpf, floor=config.floor)
        progress.update()
        make_folder(config.out)
        frames = sum(len(clip.times_ns) for clip in sequence.clips)
        told = f"{len(sequence.clips)} clip(s), {frames} frames at 30 Hz"
        if files.skeleton is None:
            path = config.out / f"{name}-head.npz"
            progress.update()
            write_npz(path, head_arrays(sequence))
        else:
            path = config.out / f"{name}.npz"
            pack, extra, error = adt_pack(sequence, name, resolve_body(config.body, with_mesh=False))
            if error > 0.05:
                raise InputError(
                    f"{files.skeleton}: with bones of one length, joints miss the recorded ones by up to {error:.3f} "
                    "m; the skeleton is damaged or lost for some frames"
                )
            told += f", joints within {error * 1000:.2f} mm of the recorded ones"
            progress.update()
            write_pack(path, pack, extra)
        progress.update()
    for note in sequence.notes:
        notice(note)
    print(path)
    print(f"{told}; floor at {sequence.floor_m:+.3f} m of the recording (from {sequence.floor_from})")
    return 0
