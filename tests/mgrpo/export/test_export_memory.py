"""Export of long motion: what is written goes to the disk piece by piece, and the pieces are what they were in one."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mgrpo import geometry
from mgrpo.export import TARGETS, PosedMotion
from mgrpo.export import motion as motion_module
from mgrpo.npz import read_npz
from tests.mgrpo.export.export_motion import make_motion

ROOT = Path(__file__).resolve().parents[3]
FRAMES = 12_288

GROWTH = """
import json, resource, sys
from pathlib import Path
import torch
from mgrpo.export import TARGETS
from tests.mgrpo.export.export_motion import make_motion

torch.set_num_threads(1)
short, long = make_motion(2049, size=0.1), make_motion(int(sys.argv[2]), size=0.1)
found = {}
for name in ("glb", "csv", "bvh"):
    target = TARGETS[name]
    peaks = []
    for motion in (short, long):
        path = Path(sys.argv[1]) / f"a{target.suffix}"
        target.write(path, [motion], target.frame)
        peaks.append(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    found[name] = {"bytes": path.stat().st_size, "growth": peaks[1] - peaks[0]}
print(json.dumps(found))
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """What a process takes at most while it writes a long motion, against a short one: a part of the file's size."""
    words = [str(tmp_path), str(FRAMES)]
    done = subprocess.run([sys.executable, "-c", GROWTH, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name, found in json.loads(done.stdout).items():
        assert found["bytes"] > 9e6, name
        assert found["growth"] < 0.5 * found["bytes"], f"{name}: {found}"


@pytest.mark.parametrize("name", ["glb", "csv", "bvh", "amass", "npz"])
def test_pieces_make_the_same_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    motion, target = make_motion(50), TARGETS[name]
    motion = replace(motion, local_quats=motion.local_quats.float())
    paths = []
    for chunk in (1024, 7):
        monkeypatch.setattr(motion_module, "_CHUNK", chunk)
        paths.append(tmp_path / f"{chunk}{target.suffix}")
        target.write(paths[-1], [motion.at_even_rate(60.0)[0]], target.frame)
    if target.ending == ".npz":
        first, second = (read_npz(path, "file") for path in paths)
        for key, values in first.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(second[key], values, rtol=0, atol=1e-12, err_msg=key)
    else:
        first, second = (path.read_bytes() for path in paths)
        assert first == second and len(first) > 10_000


def test_float32_rotations_stay_short_and_exact_enough() -> None:
    motion = make_motion(40)
    short = replace(motion, local_quats=motion.local_quats.float())
    assert short.local_quats.dtype == torch.float32 and short.rotations().dtype == torch.float64
    assert torch.equal(short.rotations(slice(3, 5)), short.rotations()[3:5])
    assert (short.rotations().norm(dim=-1) - 1).abs().max() < 1e-12
    assert (short.placed().joints - motion.placed().joints).norm(dim=-1).max() < 1e-5, "a hundredth of a millimetre"
    far = short.at_even_rate(45.0)[0]
    wanted = motion.at_even_rate(45.0)[0]
    angle = geometry.geodesic_angle(*(geometry.quat_to_rotmat(one.rotations()) for one in (far, wanted)))
    assert far.local_quats.dtype == torch.float32 and angle.max() < 1e-5


def test_unit_quaternions_are_not_copied() -> None:
    motion = make_motion(30)
    assert replace(motion).local_quats.data_ptr() == motion.local_quats.data_ptr()
    scaled = replace(motion, local_quats=3.0 * motion.local_quats)
    assert torch.allclose(scaled.local_quats, motion.local_quats, atol=1e-15, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_broken_numbers_are_found(dtype: torch.dtype) -> None:
    for value, said in ((float("nan"), "not finite .* frame 17"), (float("-inf"), "not finite .* frame 17")):
        motion: PosedMotion = make_motion(30)
        quats = motion.local_quats.to(dtype).clone()
        quats[17, 3, 2] = value
        with pytest.raises(motion_module.InputError, match=said):
            replace(motion, local_quats=quats)
    quats = make_motion(30).local_quats.to(dtype).clone()
    quats[5, 2] = 0.0
    with pytest.raises(motion_module.InputError, match="length zero, first in frame 5"):
        replace(make_motion(30), local_quats=quats)


def test_lengths_in_a_glb_file_add_up(tmp_path: Path) -> None:
    """The header is written before the arrays are made."""
    target = TARGETS["glb"]
    target.write(tmp_path / "a.glb", [make_motion(37)], target.frame)
    data = (tmp_path / "a.glb").read_bytes()
    _, _, total, length, _ = struct.unpack("<IIIII", data[:20])
    assert total == len(data)
    document = json.loads(data[20 : 20 + length])
    views = document["bufferViews"]
    assert all(view["byteOffset"] % 4 == 0 for view in views)
    ends = np.cumsum([-(-view["byteLength"] // 4) * 4 for view in views])
    assert [view["byteOffset"] for view in views[1:]] == ends[:-1].tolist()
    assert document["buffers"][0]["byteLength"] == ends[-1] == len(data) - 20 - length - 8
