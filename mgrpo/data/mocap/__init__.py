"""Motion capture from other skeletons: BVH and ASF/AMC files to packs."""

from __future__ import annotations

from mgrpo.data.mocap.asf import read_amc, read_asf
from mgrpo.data.mocap.bvh import read_bvh
from mgrpo.data.mocap.joint_map import choose_map, read_map
from mgrpo.data.mocap.retarget import MappedMotion, retarget
from mgrpo.data.mocap.source import SourceMotion

__all__ = [
    "MappedMotion",
    "SourceMotion",
    "choose_map",
    "read_amc",
    "read_asf",
    "read_bvh",
    "read_map",
    "retarget",
]
