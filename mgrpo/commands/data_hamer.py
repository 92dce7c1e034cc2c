"""`mgrpo data hamer`: the pickle of HaMeR's hands that EgoAllo saves, to an npz, without running the pickle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from mgrpo.data.safe_pickle import load_pickle
from mgrpo.errors import InputError
from mgrpo.infer.hamer import detections_from_pickle, hamer_arrays
from mgrpo.infer.trajectory import SIDES
from mgrpo.npz import write_npz
from mgrpo.terminal.progress import Progress

MOST_INSTRUCTIONS = 20_000_000
"""Instructions of a pickle of hands: some hundred for each hand, so that half an hour of both is read."""


@dataclass(frozen=True)
class HamerConfig:
    """Convert HaMeR's hands (hamer_outputs.pkl, as EgoAllo's scripts save them) to the npz that `mgrpo infer` reads.

    A pickle can run any code when Python opens it. Here it is read by a machine that builds numbers, texts and arrays
    and nothing else. Vertices and faces, which are most of the file and used by nothing here, are left out.
    """

    src: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """The pickle."""
    dst: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """The npz to write."""

    def __post_init__(self) -> None:
        if self.dst.suffix.lower() != ".npz":
            raise InputError(f"DST {self.dst}: the file must end in .npz")


def run_data_hamer(config: HamerConfig) -> int:
    """Convert. Returns 0. Raises InputError and StorageError."""
    with Progress("hamer", 3, "steps") as progress:
        content = load_pickle(config.src, "pickle of HaMeR's hands", most_instructions=MOST_INSTRUCTIONS)
        progress.update()
        detections = detections_from_pickle(content, str(config.src))
        progress.update()
        write_npz(config.dst, hamer_arrays(detections))
        progress.update()
    print(config.dst)
    for side, hands in zip(SIDES, detections.hands):
        seconds = float(np.ptp(hands.times_ns)) / 1e9 if len(hands.times_ns) else 0.0
        print(f"{side}: {len(hands.frame)} hands in {len(hands.times_ns)} images, {seconds:.1f} s")
    return 0
