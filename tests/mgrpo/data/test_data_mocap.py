"""BVH and ASF/AMC: joints against other formulas in float64, damaged files, joint maps, units, axes, missing frames."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from mgrpo.body import default_body
from mgrpo.data.mocap import choose_map, read_amc, read_asf, read_bvh, read_map, retarget, text
from mgrpo.data.mocap.convert import ConvertOptions, convert_file, convert_to_part, skeleton_of
from mgrpo.data.mocap.joint_map import JOINT_NAMES, apply_map
from mgrpo.data.mocap.retarget import PARENT_ROWS, MappedMotion
from mgrpo.data.packs.fitting import fit_pack
from mgrpo.data.packs.pack import MotionPack
from mgrpo.data.packs.reading import read_pack
from mgrpo.data.packs.writing import write_pack
from mgrpo.errors import InputError
from tests.mgrpo.data import mocap_files as made

Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])


def fk(motion: MappedMotion) -> np.ndarray:
    """Joints ``(F, 22, 3)`` in float64, by 3x3 matrices."""
    w, x, y, z = np.moveaxis(motion.quats, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    local = np.stack([np.stack(row, -1) for row in rows], -2)
    R, joints = local.copy(), np.empty((len(local), 22, 3))
    joints[:, 0] = motion.trans
    for row, parent in enumerate(PARENT_ROWS[1:], 1):
        bone = motion.rest_joints[row] - motion.rest_joints[parent]
        joints[:, row] = joints[:, parent] + R[:, parent] @ bone
        R[:, row] = R[:, parent] @ local[:, row]
    return joints


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture(scope="module")
def values() -> dict[str, np.ndarray]:
    return made.bvh_values(25, 60.0, still_legs=False)


@pytest.fixture(scope="module")
def good_bvh(values: dict[str, np.ndarray]) -> str:
    return made.bvh_text(values, "0.0166667")


# --- readers


def test_bvh_joints_are_where_other_formulas_put_them(
    values: dict[str, np.ndarray], good_bvh: str, tmp_path: Path
) -> None:
    source = read_bvh(write(tmp_path / "a.bvh", good_bvh))
    assert source.fps == 60.0 and len(source.times) == 25
    for frame in (0, 7, 24):
        expected = made.bvh_joints(values, frame)
        assert set(expected) == set(source.names)
        ours = dict(zip(source.names, source.positions[frame]))
        assert max(np.abs(ours[name] - expected[name]).max() for name in expected) < 1e-6  # cm; the text has 9 digits


def test_acclaim_joints_are_where_other_formulas_put_them(tmp_path: Path) -> None:
    values = made.amc_values(9)
    skeleton = read_asf(write(tmp_path / "01.asf", made.asf_text()))
    source = read_amc(write(tmp_path / "01_01.amc", made.amc_text(values)), skeleton, 120.0)
    assert source.metres == pytest.approx(0.0254 / 0.45)
    for frame in (0, 8):
        expected = made.acclaim_joints(values, frame)
        ours = dict(zip(source.names, source.positions[frame]))
        assert max(np.abs(ours[name] - place).max() for name, place in expected.items()) < 1e-7


def test_bvh_layouts_that_writers_use(good_bvh: str, values: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Braces on the line of the joint, CR LF, a byte order mark, tabs, small letters, blank lines at the end."""
    changed = good_bvh.replace("\n\t{\n", " {\n").replace("Zrotation", "zrotation") + "\n  \n"
    changed = changed.replace("\t", "  ").replace("\n", "\r\n")
    one = read_bvh(write(tmp_path / "a.bvh", good_bvh))
    other = read_bvh(write(tmp_path / "b.bvh", b"\xef\xbb\xbf" + changed.encode()))
    assert one.names == other.names and np.array_equal(one.positions, other.positions)


@pytest.mark.parametrize(
    ("written", "fps"),
    [("0.0333333", 30), ("0.033", 30), ("0.0083333", 120), ("0.008333", 120), ("0.04", 25), ("0.0333667", 29.97003),
     ("0.01001", 99.9001), ("8.33333e-03", 120)],
)  # fmt: skip
def test_frame_rates(written: str, fps: float, values: dict[str, np.ndarray], tmp_path: Path) -> None:
    source = read_bvh(write(tmp_path / "a.bvh", made.bvh_text({k: v[:2] for k, v in values.items()}, written)))
    assert source.fps == pytest.approx(fps, rel=1e-6)


def _line(content: str, part: str) -> int:
    return next(number for number, line in enumerate(content.split("\n"), 1) if part in line)


BVH_DAMAGE = {
    "no header": (lambda s: s.replace("HIERARCHY", "HIERARKY"), "line 1: a BVH file begins with HIERARCHY"),
    "unknown channel": (lambda s: s.replace("Xrotation Zrotation\n", "Xrotation Wrotation\n"), "unknown channel 'Wrot"),
    "channel twice": (lambda s: s.replace("3 Yrotation Zrotation Xr", "3 Yrotation Zrotation Zr"), "named twice"),
    "too few channels": (lambda s: s.replace("CHANNELS 1 Yrotation", "CHANNELS 2 Yrotation"), "declares 2 but names 1"),
    "count not a number": (lambda s: s.replace("CHANNELS 1 ", "CHANNELS x "), "must be a whole number, got 'x'"),
    "joint twice": (lambda s: s.replace("JOINT mixamorig:Spine1", "JOINT mixamorig:Spine"), "already defined in line"),
    "second root": (lambda s: s.replace("JOINT mixamorig:Neck", "ROOT mixamorig:Neck"), "a second ROOT"),
    "brace missing": (lambda s: s.replace("}\nMOTION", "MOTION"), "before the closing brace"),
    "brace too many": (lambda s: s.replace("}\nMOTION", "}\n}\nMOTION"), "closes that was not opened"),
    "offset not a number": (lambda s: s.replace("OFFSET 0.0 98.0", "OFFSET 0.0 9eight"), "got '9eight'"),
    "offset short": (lambda s: s.replace("OFFSET 0.0 98.0 0.0", "OFFSET 0.0 98.0"), "needs 3 numbers, got 2"),
    "offset missing": (lambda s: s.replace("\tOFFSET 0.0 98.0 0.0\n", ""), "has no OFFSET"),
    "NaN": (lambda s: s[: s.rindex(" ")] + " nan\n", "must be finite, got 'nan'"),
    "infinity": (lambda s: s[: s.rindex(" ")] + " inf\n", "must be finite"),
    "underscore": (lambda s: s[: s.rindex(" ")] + " 1_0\n", "must be a number"),
    "frames missing": (lambda s: s.replace("Frames: 25", "Frames: 26"), "26 frames are declared, but there are 25"),
    "frames too many": (lambda s: s.replace("Frames: 25", "Frames: 24"), "24 frames are declared, but there are 25"),
    "no frames": (lambda s: s.replace("Frames: 25", "Frames: 0"), "declares no frames"),
    "frames absurd": (lambda s: s.replace("Frames: 25", "Frames: 999999999"), "at most 1000000 are read"),
    "frame time zero": (lambda s: s.replace("0.0166667", "0"), "must be between"),
    "frame time lost": (lambda s: s.replace("Frame Time: 0.0166667\n", ""), "expected 'Frame time:'"),
    "cut in the last line": (lambda s: s[:-200], "values; the 25 joints need"),
    "cut in the hierarchy": (lambda s: s[:700], "cut off"),
    "word": (lambda s: s.replace("OFFSET 0.0 98.0 0.0", "OFFSIDE 0.0 98.0 0.0"), "got 'OFFSIDE'"),
    "line too long": (lambda s: s + " " * 300000, "the line has 300000 characters"),
    "empty": (lambda s: "", "cut off"),
}  # fmt: skip


@pytest.mark.parametrize("damage", BVH_DAMAGE)
def test_damaged_bvh_is_refused_with_the_line(damage: str, good_bvh: str, tmp_path: Path) -> None:
    change, said = BVH_DAMAGE[damage]
    changed = change(good_bvh)
    assert changed != good_bvh
    with pytest.raises(InputError, match=r"a\.bvh, line \d+: ") as caught:
        read_bvh(write(tmp_path / "a.bvh", changed))
    assert said in str(caught.value)


def test_errors_name_the_right_line(good_bvh: str, tmp_path: Path) -> None:
    changed = good_bvh.replace("CHANNELS 1 Yrotation", "CHANNELS 1 Yrotations")
    with pytest.raises(InputError, match=rf"line {_line(changed, 'Yrotations')}: unknown channel"):
        read_bvh(write(tmp_path / "a.bvh", changed))


@pytest.mark.parametrize("content", [b"\x00\x01BVH" * 50, bytes(range(1, 32)) * 20])
def test_binary_garbage_is_refused(content: bytes, tmp_path: Path) -> None:
    for reader in (read_bvh, read_asf):
        with pytest.raises(InputError, match="binary data"):
            reader(write(tmp_path / "a.bvh", content))


def test_limits(good_bvh: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.bvh", good_bvh)
    monkeypatch.setattr(text, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match=r"is read\. Cut it"):
        read_bvh(path)
    monkeypatch.undo()
    monkeypatch.setattr(text, "MAX_JOINT_FRAMES", 100)
    with pytest.raises(InputError, match="25 frames of 25 joints are too much"):
        read_bvh(path)
    with pytest.raises(InputError, match="can't be read"):
        read_bvh(tmp_path / "none.bvh")
    deep = "HIERARCHY\n" + "".join(f"{'JOINT' if k else 'ROOT'} j{k}\n{{\n" for k in range(2000))
    with pytest.raises(InputError, match="more than 1024 joints"):
        read_bvh(write(tmp_path / "deep.bvh", deep))


def test_reading_takes_linear_time(tmp_path: Path) -> None:
    """Twice the file takes about twice the time, also where nothing is as expected."""

    def seconds(content: str) -> float:
        path = write(tmp_path / "a.bvh", content)
        began = time.perf_counter()
        with pytest.raises(InputError):
            read_bvh(path)
        return time.perf_counter() - began

    def hostile(size: int) -> str:
        return "HIERARCHY\nROOT a\n{\nOFFSET 0 0 0\nCHANNELS 0\n" + "\n" * size + ("} { " * 50 + "\n") * (size // 50)

    small, large = (min(seconds(hostile(size)) for _ in range(3)) for size in (20000, 160000))
    assert large < 40 * small + 0.2


AMC_DAMAGE = {
    "bone unknown": (lambda s: s.replace("lhand ", "lpaw "), "bone 'lpaw' is not in 01.asf"),
    "too few values": (lambda s: s.replace("\nltoes ", "\nltoes 1.0 "), "has 2 values; 01.asf gives it 1"),
    "NaN": (lambda s: s.replace("\nltoes ", "\nltoes nan\nltoes "), "must be finite"),
    "no number": (lambda s: s.replace("\nltoes ", "\nltoes x\nltoes "), "must be a number, got 'x'"),
    "bone twice": (lambda s: s.replace("\nltoes ", "\nltoes 0\nltoes ", 1), "comes twice in frame"),
    "bone lost in the end": (lambda s: s[: s.rindex("\nrhand")], "no values for bone 'rhand'"),
    "bone lost in the middle": (lambda s: s.replace("\nltoes ", "\n#", 1), "bone 'ltoes' is missing from frames"),
    "frames backwards": (lambda s: s.replace("\n3\n", "\n1\n"), "frame 1 comes after frame 2"),
    "frames lost": (lambda s: s.replace("\n3\n", "\n300\n").replace("\n4\n", "\n301\n"), "frames 3 to 299 are missing"),
    "values first": (lambda s: s.replace("\n1\nroot", "\nroot"), "expected the number of the first frame"),
    "no root": (lambda s: "\n".join(l for l in s.split("\n") if not l.startswith("root")), "no values for root"),
    "empty": (lambda s: ":DEGREES\n", "there are no frames"),
}  # fmt: skip


@pytest.mark.parametrize("damage", AMC_DAMAGE)
def test_damaged_amc_is_refused(damage: str, tmp_path: Path) -> None:
    change, said = AMC_DAMAGE[damage]
    skeleton = read_asf(write(tmp_path / "01.asf", made.asf_text()))
    with pytest.raises(InputError) as caught:
        read_amc(write(tmp_path / "01_01.amc", change(made.amc_text(made.amc_values(4)))), skeleton, 120.0)
    assert said in str(caught.value) and "01_01.amc" in str(caught.value)


ASF_DAMAGE = {
    "unit": (lambda s: s.replace("length 0.45", "length 0"), "unit of length must be positive"),
    "bone twice": (lambda s: s.replace("name rhand", "name lhand"), "defined twice"),
    "no direction": (lambda s: s.replace("     direction 1 0 0\n", "", 1), "needs a name, a direction and a length"),
    "zero direction": (lambda s: s.replace("direction 1 0 0", "direction 0 0 0", 1), "can't be zero"),
    "axis order": (lambda s: s.replace("0 0 20 XYZ", "0 0 20 XXZ", 1), "must be such as XYZ"),
    "freedom": (lambda s: s.replace("dof ry\n", "dof tz\n", 1), "'tz' is not read"),
    "no end": (lambda s: s.replace("  end\n  begin", "  begin", 1), "begins inside the one of line"),
    "unknown in hierarchy": (lambda s: s.replace("    lwrist lhand", "    lwrist lpaw"), "names bone 'lpaw'"),
    "lost bone": (lambda s: s.replace("    lwrist lhand\n", ""), "bone 'lhand' has no place"),
    "two places": (lambda s: s.replace("    lwrist lhand", "    lwrist lhand rhand"), "two places"),
    "a ring": (lambda s: s.replace("    lwrist lhand", "    lwrist lhand\n    lhand lwrist")
               .replace("    lradius lwrist\n", ""), "has no place"),
    "no order": (lambda s: s.replace("   order", "   orders"), "has no order"),
    "order": (lambda s: s.replace("TY TX", "TY TY"), "may name each of"),
    "cut": (lambda s: s[: s.index(":hierarchy")], "there is no :hierarchy"),
    "cut in a bone": (lambda s: s[: s.index("name rhand")], "ends inside :bonedata"),
}  # fmt: skip


@pytest.mark.parametrize("damage", ASF_DAMAGE)
def test_damaged_asf_is_refused_with_the_line(damage: str, tmp_path: Path) -> None:
    change, said = ASF_DAMAGE[damage]
    changed = change(made.asf_text())
    assert changed != made.asf_text()
    with pytest.raises(InputError, match=r"01\.asf, line \d+: ") as caught:
        read_asf(write(tmp_path / "01.asf", changed))
    assert said in str(caught.value)


def test_radians_and_bones_without_values(tmp_path: Path) -> None:
    values = made.amc_values(4)
    skeleton = read_asf(write(tmp_path / "01.asf", made.asf_text()))
    degrees = read_amc(write(tmp_path / "a.amc", made.amc_text(values)), skeleton, 120.0)
    radians = {name: np.radians(block) for name, block in values.items()}
    radians["root"][:, :3] = values["root"][:, :3]
    other = made.amc_text(radians).replace(":DEGREES", ":RADIANS")
    assert np.allclose(read_amc(write(tmp_path / "b.amc", other), skeleton, 120.0).positions, degrees.positions)
    del values["lhand"]
    less = read_amc(write(tmp_path / "c.amc", made.amc_text(values)), skeleton, 120.0)
    assert "no values for lhand" in less.notes[0]


# --- to our joints


def test_bvh_to_our_joints(values: dict[str, np.ndarray], good_bvh: str, tmp_path: Path) -> None:
    source = read_bvh(write(tmp_path / "a.bvh", good_bvh))
    joint_map = choose_map(source)
    assert joint_map.name == "generic"
    assert {name: joint_map.joints[name].at for name in JOINT_NAMES} == made.OURS
    motion = retarget(source, joint_map)
    assert motion.metres == 0.01 and motion.error_m < 2e-4
    joints = fk(motion)
    assert len(joints) == 13  # 25 frames at 60 per second
    for frame in (0, 5, 12):
        expected = made.bvh_joints(values, 2 * frame)
        for row, name in enumerate(JOINT_NAMES):
            assert np.abs(joints[frame, row] - Z_UP @ expected[made.OURS[name]] * 0.01).max() < 1e-6
    assert motion.rest_joints[JOINT_NAMES.index("left_wrist"), 0] > 0.6  # T-pose: x left, y up, z forward
    assert motion.rest_joints[JOINT_NAMES.index("head"), 1] > 0.5
    assert motion.rest_joints[JOINT_NAMES.index("left_foot"), 2] > 0.05


def test_acclaim_to_our_joints(tmp_path: Path) -> None:
    values = made.amc_values(41)
    skeleton = read_asf(write(tmp_path / "01.asf", made.asf_text()))
    source = read_amc(write(tmp_path / "01_01.amc", made.amc_text(values)), skeleton, 120.0)
    motion = retarget(source, choose_map(source))
    assert motion.error_m < 1e-3 and len(motion.trans) == 11
    joints = fk(motion)
    for frame in (0, 4, 10):
        expected = made.acclaim_joints(values, 4 * frame)
        for row, name in enumerate(JOINT_NAMES):
            place = Z_UP @ expected[made.ACCLAIM_OURS[name]] * 0.0254 / 0.45
            assert np.abs(joints[frame, row] - place).max() < 1e-3


def test_feet_are_flat_on_straight_legs(tmp_path: Path) -> None:
    """The Acclaim zero pose spreads the legs; on a body with straight legs the soles must not be tilted."""
    values = {name: np.zeros_like(block) for name, block in made.amc_values(40).items()}
    values["root"][:, 0] = 17.3
    values["lfemur"][:, 2], values["rfemur"][:, 0] = -20.0, 20.0  # rz: legs straight down
    values["rfemur"][:, 1] = 0.0
    skeleton = read_asf(write(tmp_path / "01.asf", made.asf_text()))
    source = read_amc(write(tmp_path / "01_01.amc", made.amc_text(values)), skeleton, 120.0)
    ankles = [JOINT_NAMES.index(f"{side}_ankle") for side in ("left", "right")]
    motion = retarget(source, choose_map(source))
    bones = [motion.rest_joints[a] - motion.rest_joints[PARENT_ROWS[a]] for a in ankles]
    assert all(abs(bone[0]) > 0.1 for bone in bones)  # the rest pose spreads them
    joints = fk(motion)
    for ankle in ankles:
        way = joints[0, ankle + 3] - joints[0, ankle]
        assert abs(way[0]) < 0.01 and way[1] < -0.1  # toes ahead, not to the side
    pack = MotionPack(("a",), np.array([len(motion.trans)]), motion.trans.astype(np.float32),
                      motion.quats.astype(np.float32), motion.rest_joints[None].astype(np.float32), 30.0,
                      np.array([False]))  # fmt: skip
    (clip,) = fit_pack(pack, default_body())
    local = clip.body_quats[0, [a - 1 for a in ankles]]
    assert bool((local[:, 1:].abs() < 0.06).all())  # within 7 degrees of the body's own flat feet


@pytest.mark.parametrize(
    ("scale", "metres"), [(0.01, 1.0), (10.0, 0.001), (1 / 2.54, 0.0254), (0.01 * 0.45 / 0.0254, 0.0564444)]
)
def test_units_are_told_by_the_legs(scale: float, metres: float, values: dict[str, np.ndarray], tmp_path: Path) -> None:
    source = read_bvh(write(tmp_path / "a.bvh", made.bvh_text(values, "0.0166667", scale)))
    motion = retarget(source, choose_map(source))
    assert motion.metres == pytest.approx(metres, rel=1e-4) and motion.error_m < 2e-4
    assert np.linalg.norm(motion.rest_joints[4] - motion.rest_joints[1]) == pytest.approx(0.42, abs=0.01)


def test_units_that_fit_nobody(values: dict[str, np.ndarray], tmp_path: Path) -> None:
    source = read_bvh(write(tmp_path / "a.bvh", made.bvh_text(values, "0.0166667", 0.1)))
    with pytest.raises(InputError, match=r"legs are 8\.4\d* units long.*--unit"):
        retarget(source, choose_map(source))
    assert retarget(source, choose_map(source), unit="0.1").metres == 0.1
    with pytest.raises(InputError, match="--unit must be"):
        retarget(source, choose_map(source), unit="feet")


def test_z_up_files(values: dict[str, np.ndarray], good_bvh: str, tmp_path: Path) -> None:
    """The same motion written with z up (every offset and rotation turned) gives the same motion."""
    source = read_bvh(write(tmp_path / "a.bvh", good_bvh))
    turned = source._replace(
        R_world_joint=Z_UP @ source.R_world_joint @ Z_UP.T,
        positions=source.positions @ Z_UP.T,
        zero_positions=source.zero_positions @ Z_UP.T,
    )
    one, other = retarget(source, choose_map(source)), retarget(turned, choose_map(turned))
    assert np.abs(fk(one) - fk(other)).max() < 1e-9 and np.abs(one.rest_joints - other.rest_joints).max() < 1e-9
    assert np.abs((one.quats * other.quats).sum(-1)).min() > 1 - 1e-9


def test_a_first_frame_in_the_reference_pose_is_left_out(values: dict[str, np.ndarray], tmp_path: Path) -> None:
    changed = {name: block.copy() for name, block in values.items()}
    for name, _, _, channels in made.MIXAMO:
        for column, word in enumerate(channels.split()):
            if word.endswith("rotation"):
                changed[name][0, column] = 0.0
    source = read_bvh(write(tmp_path / "a.bvh", made.bvh_text(changed, "0.0166667")))
    motion = retarget(source, choose_map(source))
    assert len(motion.trans) == 12 and "first frame left out" in motion.notes[0]
    assert np.abs(fk(motion)[0, 15] - Z_UP @ made.bvh_joints(changed, 1)["mixamorig:Head"] * 0.01).max() < 1e-6


def test_a_file_whose_zero_pose_is_no_t_pose(values: dict[str, np.ndarray], tmp_path: Path) -> None:
    """The first frame then serves if it is one; otherwise the message says what to give."""
    source = read_bvh(write(tmp_path / "a.bvh", made.bvh_text(values, "0.0166667")))
    joint_map = choose_map(source)
    bad = source.zero_positions.copy()
    bad[source.names.index("mixamorig:LeftForeArm")] = bad[source.names.index("mixamorig:LeftArm")] - [0, 27, 0]
    motion = retarget(source._replace(zero_positions=bad), joint_map)
    assert "reference pose: first" in motion.notes and motion.error_m < 2e-4 and len(motion.trans) == 12
    down = source.positions.copy()
    down[:, source.names.index("mixamorig:LeftForeArm")] = down[:, source.names.index("mixamorig:LeftArm")] - [0, 27, 0]
    with pytest.raises(InputError, match="zero, the left arm does not point to the side; in the first frame, the left"):
        retarget(source._replace(zero_positions=bad, positions=down), joint_map)


def test_missing_frames_are_bridged(tmp_path: Path) -> None:
    values = made.amc_values(81)
    skeleton = read_asf(write(tmp_path / "01.asf", made.asf_text()))
    whole = read_amc(write(tmp_path / "a.amc", made.amc_text(values, first=5)), skeleton, 120.0)
    holes = made.amc_text(values, first=5, leave_out=(10, 25, 26, 27, 28, 29, 30))
    source = read_amc(write(tmp_path / "b.amc", holes), skeleton, 120.0)
    assert "7 missing frame(s) interpolated" in source.notes and len(source.times) == 74
    one, other = (retarget(motion, choose_map(motion)) for motion in (whole, source))
    assert len(one.trans) == len(other.trans) == 21
    apart = np.abs(fk(one) - fk(other)).max((1, 2))
    assert apart.max() < 0.02 and apart[[0, 3, 4, 8, 20]].max() < 1e-4 and apart.max() > 0


def test_bones_that_stretch_are_measured(values: dict[str, np.ndarray], tmp_path: Path) -> None:
    changed = {name: block.copy() for name, block in values.items()}
    changed["mixamorig:LeftHand"][10, 3] += 2.0  # x of its position, cm
    path = write(tmp_path / "a.bvh", made.bvh_text(changed, "0.0166667"))
    source = read_bvh(path)
    assert retarget(source, choose_map(source)).error_m == pytest.approx(0.02 * 24 / 25, rel=0.01)
    with pytest.raises(InputError, match=r"by up to 19\.\d\d mm, more than --max-error-mm 1 allows"):
        convert_file(path, ConvertOptions())
    assert convert_file(path, ConvertOptions(max_error_mm=25.0))[1] == "generic"


# --- joint maps


NAMES = {
    "motionbuilder": "Hips LeftUpLeg LeftLeg LeftFoot LeftToeBase RightUpLeg RightLeg RightFoot RightToeBase Spine "
    "Spine1 Spine2 Neck Head LeftShoulder LeftArm LeftForeArm LeftHand RightShoulder RightArm RightForeArm RightHand",
    "old": "Hips LeftHip LeftKnee LeftAnkle LeftToe RightHip RightKnee RightAnkle RightToe Chest Chest2 Chest3 Neck "
    "Head LeftCollar LeftShoulder LeftElbow LeftWrist RightCollar RightShoulder RightElbow RightWrist",
    "poser": "hip lThigh lShin lFoot lToe rThigh rShin rFoot rToe abdomen spine chest neck head "
    "lCollar lShldr lForeArm lHand rCollar rShldr rForeArm rHand",
    "biped": "Bip01 Bip01_L_Thigh Bip01_L_Calf Bip01_L_Foot Bip01_L_Toe0 Bip01_R_Thigh Bip01_R_Calf Bip01_R_Foot "
    "Bip01_R_Toe0",
    "blender": "pelvis thigh.L shin.L foot.L toe.L thigh.R shin.R foot.R toe.R spine spine.001 spine.002 neck head "
    "shoulder.L upper_arm.L forearm.L hand.L shoulder.R upper_arm.R forearm.R hand.R",
    "smpl": "pelvis left_hip left_knee left_ankle left_foot right_hip right_knee right_ankle right_foot spine1 spine2 "
    "spine3 neck head left_collar left_shoulder left_elbow left_wrist right_collar right_shoulder right_elbow "
    "right_wrist",
    "adt": "Skeleton LThigh LShin LFoot LToe RThigh RShin RFoot RToe Ab Chest Chest2 Neck Head "
    "LShoulder LUArm LFArm LHand RShoulder RUArm RFArm RHand",
}
OUR_ORDER = NAMES["smpl"].split()
TREE = (-1, 0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 11, 12, 11, 14, 15, 16, 11, 18, 19, 20)


@pytest.mark.parametrize("tool", [tool for tool in NAMES if tool != "biped"])
def test_names_of_many_tools_are_recognised(tool: str, good_bvh: str, tmp_path: Path) -> None:
    source = read_bvh(write(tmp_path / "a.bvh", good_bvh))
    names = tuple(NAMES[tool].split())
    source = source._replace(names=names, parents=TREE)
    chosen = choose_map(source)
    assert {ours: chosen.joints[ours].at for ours in OUR_ORDER} == dict(zip(OUR_ORDER, names))


def test_what_is_not_recognised_is_named(good_bvh: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.bvh", good_bvh.replace("mixamorig:LeftForeArm", "Tentacle"))
    with pytest.raises(InputError, match=r"no joint was recognised for left_elbow.*Tentacle.*--map"):
        convert_file(path, ConvertOptions())
    file = write(tmp_path / "map.json", json.dumps({"joints": {"left_elbow": "Tentacle"}}))
    motion, name, _ = convert_file(path, ConvertOptions(joint_map=str(file)))
    assert name == "map.json" and motion.error_m < 2e-4


def test_a_map_file_overrides(values: dict[str, np.ndarray], good_bvh: str, tmp_path: Path) -> None:
    source = read_bvh(write(tmp_path / "a.bvh", good_bvh))
    between = {"at": "mixamorig:LeftHand", "towards": "mixamorig:LeftHand.End", "part": 0.5}
    chosen = apply_map(read_map(write(tmp_path / "m.json", json.dumps({"joints": {"left_wrist": between}}))), source)
    place = fk(retarget(source, chosen))[3, JOINT_NAMES.index("left_wrist")]
    ends = made.bvh_joints(values, 6)
    expected = (ends["mixamorig:LeftHand"] + ends["mixamorig:LeftHand.End"]) / 2
    # half the hand stands away from the forearm and turns with it, so bones are not rigid: only nearly there
    assert np.linalg.norm(place - Z_UP @ expected * 0.01) < 0.03


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "a joint map is an object"),
        ("{", "not valid JSON"),
        ('{"joint": {}}', "a joint map is an object with some of"),
        ('{"joints": {"left_paw": "x"}}', "'left_paw' is none of our joints"),
        ('{"joints": {"head": 3}}', "head must be a joint's name"),
        ('{"joints": {"head": {"at": "x", "part": "y"}}}', "must be a number"),
        ('{"rest": "sitting"}', "rest must be"),
        ('{"rest": {"Hips": [[1,0,0],[0,1,0],[0,0,2]]}}', "3x3 rotation matrix"),
        ('{"rest": {"Hips": [[1,0,0],[0,1,0],[0,0,-1]]}}', "is a reflection"),
        ('{"feet_follow_shins": 1}', "true or false"),
        ("[" * 100000, "not valid JSON"),
    ],
)
def test_bad_map_files(content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        read_map(write(tmp_path / "m.json", content))


def test_a_map_for_another_skeleton(good_bvh: str, tmp_path: Path) -> None:
    source = read_bvh(write(tmp_path / "a.bvh", good_bvh))
    with pytest.raises(InputError, match=r"the joint map 'acclaim' names head.*which the file lacks"):
        choose_map(source, "acclaim")
    with pytest.raises(InputError, match="unknown joint map 'cmuu'"):
        choose_map(source, "cmuu")


def test_skeletons_are_found_beside_amc(tmp_path: Path) -> None:
    amc = write(tmp_path / "HDM_bd_squat_001_120.amc", "")
    with pytest.raises(InputError, match="no skeleton"):
        skeleton_of(amc)
    write(tmp_path / "HDM_bk.asf", "")
    assert skeleton_of(amc).name == "HDM_bk.asf"
    write(tmp_path / "HDM.asf", "")
    write(tmp_path / "HDM_bd.asf", "")
    assert skeleton_of(amc).name == "HDM_bd.asf"


# --- packs


def test_packs_are_written_and_read(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    quats = generator.normal(size=(7, 22, 4))
    quats /= np.linalg.norm(quats, axis=-1, keepdims=True)
    rest = (default_body().rest_joints(default_body().J_template.new_zeros(16))[:22]).numpy()
    pack = MotionPack(("a", "b"), np.array([3, 4]), generator.normal(size=(7, 3)).astype(np.float32), quats,
                      np.stack((rest, rest)), 30.0, np.array([False, True]))  # fmt: skip
    write_pack(tmp_path / "p.npz", pack, {"floor_m": np.zeros(2)})
    again = read_pack(tmp_path / "p.npz")
    assert again.names == pack.names and again.loop.tolist() == [False, True]
    assert np.abs(np.abs((again.quats * quats).sum(-1)) - 1).max() < 1e-6
    assert np.array_equal(again.trans, pack.trans)
    for change, said in (
        ({"lengths": np.array([3, 3])}, "trans must have shape"),
        ({"trans": pack.trans * np.nan}, "not finite"),
        ({"quats": quats * 2}, "unit quaternions"),
    ):
        with pytest.raises(InputError, match=said):
            write_pack(tmp_path / "q.npz", pack._replace(**change))
    with pytest.raises(InputError, match="extra can't hold names"):
        write_pack(tmp_path / "q.npz", pack, {"names": np.zeros(2)})
    assert not (tmp_path / "q.npz").exists()


# --- real recordings


def test_real_recordings_keep_their_joints(shared_data_dir: Path, tmp_path: Path) -> None:
    files = sorted(path for path in (shared_data_dir / "raw").rglob("*") if path.suffix in (".bvh", ".amc"))
    if not files:
        pytest.skip("no raw recordings there")
    for path in files:
        motion, name, _ = convert_file(path, ConvertOptions())
        assert motion.error_m < 2e-4, path
        assert name == ("bandai" if path.suffix == ".bvh" else "acclaim")


def test_real_recordings_agree_with_the_packs_made_before(shared_data_dir: Path, tmp_path: Path) -> None:
    pack, raw = shared_data_dir / "motion" / "bandai1.npz", shared_data_dir / "raw" / "bandai"
    path = raw / "dataset-1_kick_normal_001.bvh"
    if not (pack.exists() and path.exists()):
        pytest.skip("no such recording there")
    result = convert_to_part((path, path.name, tmp_path / "a.part", ConvertOptions()))
    assert result.status == "converted" and result.error_mm < 0.1
    motion, _, _ = convert_file(path, ConvertOptions())
    known = read_pack(pack)
    index = known.names.index("kick_normal_001")
    rows = slice(int(known.lengths[:index].sum()), int(known.lengths[: index + 1].sum()))
    body = default_body()
    ours = MotionPack(("a",), np.array([len(motion.trans)]), motion.trans.astype(np.float32),
                      motion.quats.astype(np.float32), motion.rest_joints[None].astype(np.float32), 30.0,
                      np.array([False]))  # fmt: skip
    theirs = MotionPack(("a",), known.lengths[index : index + 1], known.trans[rows], known.quats[rows],
                        known.rest_joints[index : index + 1], 30.0, np.array([False]))  # fmt: skip
    (one,), (other,) = fit_pack(ours, body), fit_pack(theirs, body)
    assert float((one.T_world_root[:, 4:] - other.T_world_root[:, 4:]).abs().max()) < 1e-4
    assert float((one.body_quats * other.body_quats).sum(-1).abs().min()) > np.cos(np.radians(0.5))
