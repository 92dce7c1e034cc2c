"""Motions to the files of other tools: AMASS, .smpl, BVH, GLB, EgoAllo's npz, CSV.

Every format's axes and units come from :mod:`mgrpo.export.frames`; docs/export.md shows them in one picture.
"""

from __future__ import annotations

from mgrpo.export.amass import amass_arrays, write_amass
from mgrpo.export.bvh import write_bvh
from mgrpo.export.csv_table import write_csv
from mgrpo.export.egoallo import egoallo_arrays, write_egoallo
from mgrpo.export.frames import FileFrame
from mgrpo.export.glb import write_glb
from mgrpo.export.motion import PosedMotion
from mgrpo.export.smpl_file import write_smpl
from mgrpo.export.targets import TARGETS, Target

__all__ = [
    "TARGETS",
    "FileFrame",
    "PosedMotion",
    "Target",
    "amass_arrays",
    "egoallo_arrays",
    "write_amass",
    "write_bvh",
    "write_csv",
    "write_egoallo",
    "write_glb",
    "write_smpl",
]
