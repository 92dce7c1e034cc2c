"""`mgrpo data info`: what HDF5 files of motion hold."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from mgrpo.data.amass.names import splits_of
from mgrpo.data.hdf5.dataset import BLOCK_FRAMES, FPS, Hdf5Motion, hdf5_files
from mgrpo.errors import InputError
from mgrpo.terminal.progress import Progress
from mgrpo.train.hdf5_parts import open_with_progress


@dataclass(frozen=True)
class DataInfoConfig:
    """Show what HDF5 files of motion (EgoAllo's layout) hold: subsets and their splits, sequences, minutes, fingers.

    The structure of everything that training reads is checked, with --check its values too.
    """

    file: Annotated[Path, tyro.conf.Positional]
    """HDF5 file, or a folder of them."""
    file_list: str = ""
    """Text file with the names of the sequences to use. Empty: NAME_files.txt beside NAME.hdf5 where there is one;
    `none`: every sequence of the file."""
    check: bool = False
    """Read everything once, and refuse the first sequence with NaN, quaternions that are not unit, or damage."""
    format: Literal["table", "json"] = "table"
    """What to print on standard output."""


@dataclass
class SubsetInfo:
    """Totals of one subset."""

    subset: str
    """AMASS's name of the older release, or the folder's."""
    splits: tuple[str, ...]
    """EgoAllo's splits that it is in."""
    sequences: int = 0
    mirrored: int = 0
    """Sequences that are mirrored copies (names ending in ``_reflect.npz``)."""
    frames: int = 0
    minutes: float = 0.0
    """At 30 frames per second."""
    with_hands: int = 0
    """Sequences with fingers."""
    bytes: int = 0
    """Size in the file, without its bookkeeping."""


def run_data_info(config: DataInfoConfig) -> int:
    """Print the table. Returns the exit code 0. Raises InputError for a file that can't be used."""
    if not config.file.expanduser().exists():
        raise InputError(
            f"{config.file}: no such file or folder; expected an HDF5 file (*.hdf5, *.h5), or a folder of them"
        )
    if not hdf5_files(config.file):
        raise InputError(f"{config.file}: expected an HDF5 file (*.hdf5, *.h5), or a folder of them")
    motion = open_with_progress(str(config.file), config.file_list, cache_mb=0)
    subsets = subset_table(motion)
    if config.check:
        check_values(motion)
    if config.format == "json":
        print(json.dumps({"file": str(config.file), "subsets": [asdict(subset) for subset in subsets]}, indent=2))
    else:
        Console().print(_to_rich(str(config.file), subsets, checked=config.check))
    return 0


def subset_table(motion: Hdf5Motion) -> list[SubsetInfo]:
    """Totals by subset, in alphabetical order."""
    found: dict[str, SubsetInfo] = {}
    sizes: dict[str, int] = defaultdict(int)
    with Progress("sizes", len(motion), "sequence") as progress:
        for entry in motion.sequences:
            sizes[entry.subset] += motion.files[entry.file].stored_bytes(entry.name)
            progress.update()
    for entry in motion.sequences:
        info = found.setdefault(entry.subset, SubsetInfo(entry.subset, splits_of(entry.subset)))
        info.sequences += 1
        info.mirrored += Path(entry.name).stem.endswith("_reflect")
        info.frames += entry.frames
        info.with_hands += entry.info.hands
    for subset, info in found.items():
        info.minutes, info.bytes = info.frames / FPS / 60, sizes[subset]
    return [found[subset] for subset in sorted(found)]


def check_values(motion: Hdf5Motion) -> None:
    """Read everything once. Raises InputError for the first value that is wrong."""
    with Progress("values", sum(motion.frames), "frame") as progress:
        for row, entry in enumerate(motion.sequences):
            motion.betas(row)
            for start in range(0, entry.frames, BLOCK_FRAMES):
                stop = min(start + BLOCK_FRAMES, entry.frames)
                motion.rows(row, start, stop)
                progress.update(stop - start)


def _to_rich(title: str, subsets: list[SubsetInfo], *, checked: bool) -> Table:
    note = "every value was checked" if checked else "structure checked; --check reads every value too"
    table = Table(
        title=title, caption=note, title_justify="left", caption_justify="left", box=SIMPLE, padding=(0, 1, 0, 0)
    )
    table.add_column("subset", no_wrap=True)
    table.add_column("splits", min_width=11)
    for heading in ("clips", "mirrored", "frames", "minutes", "hands", "MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    total = SubsetInfo("total", ())
    for info in subsets:
        table.add_row(*_cells(info))
        for field in ("sequences", "mirrored", "frames", "minutes", "with_hands", "bytes"):
            setattr(total, field, getattr(total, field) + getattr(info, field))
    table.add_section()
    table.add_row(*_cells(total))
    return table


def _cells(info: SubsetInfo) -> tuple[str, ...]:
    hands = {0: "no", info.sequences: "yes"}.get(info.with_hands, "some")
    return (
        info.subset or "(no folder)",
        ", ".join(info.splits),
        f"{info.sequences:,}",
        f"{info.mirrored:,}",
        f"{info.frames:,}",
        f"{info.minutes:,.1f}",
        hands,
        f"{info.bytes / 1e6:,.1f}",
    )
