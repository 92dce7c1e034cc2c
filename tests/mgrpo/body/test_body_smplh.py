"""SMPL-H files: reference values of a made-up one, search places, and what is said about bad ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mgrpo import geometry as g
from mgrpo.body import (
    PARENTS_FULL,
    BodyModel,
    cpf_of,
    find_smplh,
    load_smplh,
    place_on_cpf,
    place_on_root,
    resolve_body,
    skin,
)
from mgrpo.body.smplh import SMPLH_ENV
from mgrpo.errors import InputError
from tests.golden import golden_file, golden_files

VERTICES = 6300


def made_up_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """A small file of the right layout; the numbers mean nothing."""
    random = np.random.default_rng(seed)
    regressor = np.zeros((52, VERTICES))
    regressor[np.arange(52), random.integers(0, VERTICES, 52)] = 1.0
    weights = np.zeros((VERTICES, 52), np.float32)
    weights[np.arange(VERTICES), random.integers(0, 52, VERTICES)] = 1.0
    kintree = np.stack([np.array([0, *(parent + 1 for parent in PARENTS_FULL)]), np.arange(52)]).astype(np.uint32)
    kintree[0, 0] = 4294967295
    return {
        "v_template": random.normal(size=(VERTICES, 3)),
        "shapedirs": random.normal(size=(VERTICES, 3, 16)).astype(np.float32),
        "J_regressor": regressor,
        "posedirs": np.zeros((VERTICES, 3, 459), np.float32),
        "weights": weights,
        "kintree_table": kintree,
        "f": random.integers(0, VERTICES, (10, 3)).astype(np.uint32),
    }


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return made_up_arrays()


def write(path: Path, arrays: dict[str, np.ndarray], **changes: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    merged = {key: value for key, value in {**arrays, **changes}.items() if value is not None}
    np.savez(path, **merged)
    return path


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def golden_body() -> BodyModel:
    return load_smplh(golden_file("body/*.npz"), dtype=torch.float64)


@pytest.fixture(scope="module")
def golden_fk() -> list[dict[str, Tensor]]:
    cases = []
    for path in golden_files("fk/fk*.npz"):
        with np.load(path, allow_pickle=False) as archive:
            cases.append({key: torch.from_numpy(archive[key]) for key in archive.files})
    return cases


def close_poses(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Equal rigid transforms, whatever the sign of the quaternions."""
    close(actual[..., 4:], expected[..., 4:], tolerance)
    close(g.quat_to_rotmat(actual[..., :4]), g.quat_to_rotmat(expected[..., :4]), tolerance)


@pytest.mark.golden
def test_linear_joints(golden_body: BodyModel, golden_fk: list[dict[str, Tensor]]) -> None:
    for case in golden_fk:
        close(golden_body.J_template, case["J_template_f64"])
        close(golden_body.J_shapedirs, case["J_shape_f64"])
        # The reference arrays hold the eyes themselves, ours their place relative to the head joint.
        close(golden_body.cpf_template + golden_body.J_template[15], case["cpf_template_f64"])
        close(golden_body.cpf_shapedirs + golden_body.J_shapedirs[15], case["cpf_shape_f64"])
        betas = case["betas"]
        close(golden_body.t_parent_joint(betas), case["t_parent_joint_f64"])
        close(golden_body.t_head_cpf(betas), case["T_head_cpf_f64"][:, 4:])
        close(case["T_head_cpf_f64"][:, :4], torch.tensor([1.0, 0, 0, 0]).expand(len(betas), 4))
        rest = golden_body.rest_joints(betas)
        close(rest[:, 1:] - rest[:, :1], case["joints_zero_f64"])
        close(rest[:, 0], case["root_offset_f64"].reshape(-1, 3))
        ten = golden_body.rest_joints(betas[:, :10])
        close(ten[:, 1:] - ten[:, :1], case["betas10_joints_zero_f64"])


@pytest.mark.golden
def test_kinematics_and_placement(golden_body: BodyModel, golden_fk: list[dict[str, Tensor]]) -> None:
    for case in golden_fk:
        betas, rotmats = case["betas"], g.quat_to_rotmat(case["local_quats"])
        placed = place_on_root(golden_body, rotmats, betas, case["T_world_root"])
        expected = case["Ts_world_joint_f64"]
        close(placed.joints[:, 1:], expected[..., 4:])
        close(placed.R_world_joint[:, 1:], g.quat_to_rotmat(expected[..., :4]))
        close_poses(cpf_of(golden_body, placed, betas), case["T_world_cpf_f64"])
        on_cpf = place_on_cpf(golden_body, rotmats, betas, case["Ts_world_cpf_target"])
        close_poses(on_cpf.T_world_root, case["T_world_root_from_cpf_f64"])
        close(on_cpf.joints[:, 1:], case["Ts_world_joint_from_cpf_f64"][..., 4:])
        close(on_cpf.R_world_joint[:, 1:], g.quat_to_rotmat(case["Ts_world_joint_from_cpf_f64"][..., :4]))
        # Body joints only, and the same with straight fingers.
        straight = case["Ts_world_joint_nohands_f64"]
        body_only = place_on_root(golden_body, rotmats[:, :21], betas, case["T_world_root"])
        close(body_only.joints[:, 1:], straight[:, :21, 4:])
        eye = torch.eye(3, dtype=torch.float64).expand(len(betas), 30, 3, 3)
        fingers = torch.cat((rotmats[:, :21], eye), 1)
        full = place_on_root(golden_body, fingers, betas, case["T_world_root"])
        close(full.joints[:, 1:], straight[..., 4:])


@pytest.mark.golden
def test_single_precision(golden_body: BodyModel, golden_fk: list[dict[str, Tensor]]) -> None:
    body = golden_body.to(dtype=torch.float32)
    for case in golden_fk:
        betas, rotmats = case["betas"].float(), g.quat_to_rotmat(case["local_quats"].float())
        placed = place_on_root(body, rotmats, betas, case["T_world_root"].float())
        close(placed.joints[:, 1:], case["Ts_world_joint_f32"][..., 4:], 2e-5)
        close(cpf_of(body, placed, betas)[:, 4:], case["T_world_cpf_f32"][:, 4:], 2e-5)
        close(body.t_parent_joint(betas), case["t_parent_joint_f32"], 2e-6)
        close(body.t_head_cpf(betas), case["T_head_cpf_f32"][:, 4:], 2e-6)
        rest = body.rest_joints(betas)
        close(rest[:, 1:] - rest[:, :1], case["joints_zero_f32"], 2e-6)
        close(rest[:, 0], case["root_offset_f32"].reshape(-1, 3), 2e-6)
        on_cpf = place_on_cpf(body, rotmats, betas, case["Ts_world_cpf_target"].float())
        close(on_cpf.joints[:, 1:], case["Ts_world_joint_from_cpf_f32"][..., 4:], 2e-5)


@pytest.mark.golden
def test_skinning(golden_body: BodyModel, golden_fk: list[dict[str, Tensor]]) -> None:
    for case in golden_fk:
        rows = slice(2, 4)
        betas, rotmats = case["betas"][rows], g.quat_to_rotmat(case["local_quats"][rows])
        placed = place_on_root(golden_body, rotmats, betas, case["T_world_root"][rows])
        vertices = skin(golden_body, placed, rotmats, betas)
        close(vertices, case["lbs_verts_items2_3"], 2e-6)
        plain = replace(golden_body, mesh=replace(golden_body.mesh, posedirs=None))
        without = skin(plain, placed, rotmats, betas)
        assert float((without - vertices).norm(dim=-1).max()) > 1e-3, "the pose corrections of this file should matter"


def test_loading_needs_only_what_it_uses(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    extras = {"J": np.zeros((52, 3)), "bs_style": np.array(b"lbs"), "names": np.array(["a", "b"])}
    full = load_smplh(write(tmp_path / "full.npz", arrays, **extras))
    assert full.name == "smplh" and full.dtype == torch.float32 and full.mesh.posedirs.shape == (VERTICES, 3, 459)
    joints_only = write(tmp_path / "joints.npz", arrays, posedirs=None, weights=None, f=None)
    small = load_smplh(joints_only, with_mesh=False)
    assert small.mesh is None
    torch.testing.assert_close(small.J_shapedirs, full.J_shapedirs)
    with pytest.raises(InputError, match="missing: posedirs, weights, f"):
        load_smplh(joints_only)


def test_more_than_16_shape_directions_are_cut(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    wide = np.concatenate([arrays["shapedirs"], np.ones((VERTICES, 3, 284), np.float32)], axis=2)
    body = load_smplh(write(tmp_path / "wide.npz", arrays, shapedirs=wide), with_mesh=False)
    assert body.J_shapedirs.shape == (52, 3, 16)


def _bad_tree(arrays: dict[str, np.ndarray]) -> np.ndarray:
    tree = arrays["kintree_table"].copy()
    tree[0, 10] = 3
    return tree


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("J_regressor", lambda a: a["J_regressor"][:24], r"J_regressor must have shape \(52, 6300\)"),
        ("shapedirs", lambda a: a["shapedirs"][..., :10], r"10 shape directions.*Extended SMPL\+H"),
        ("v_template", lambda a: a["v_template"][:, :2], r"v_template must have shape \(V, 3\)"),
        ("kintree_table", _bad_tree, "not SMPL-H's tree"),
        ("v_template", lambda a: a["v_template"] * np.where(np.arange(VERTICES) == 7, np.nan, 1)[:, None], "has NaN"),
        ("f", lambda a: a["f"] + VERTICES, "must index the 6300 vertices"),
        ("weights", lambda a: np.full((VERTICES, 52), "x"), "weights must be numeric"),
        ("J_regressor", lambda a: np.array([{"sparse": 1}], dtype=object), "pickled Python objects"),
    ],
)  # fmt: skip
def test_bad_files_are_explained(
    tmp_path: Path, arrays: dict[str, np.ndarray], key: str, change: object, message: str
) -> None:
    path = write(tmp_path / "bad.npz", arrays, **{key: change(arrays)})
    with pytest.raises(InputError, match=message) as error:
        load_smplh(path)
    assert str(path) in str(error.value)


def test_object_arrays_that_are_not_needed_do_no_harm(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = write(tmp_path / "extra.npz", arrays, hands_mean=np.array([{"a": 1}], dtype=object))
    assert load_smplh(path, with_mesh=False).num_joints == 51


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.pkl", b"\x80\x04\x95abc", "this is a pickle"),
        ("model.npz", b"\x80\x04\x95abc", "this is a pickle"),
        ("model.npz", b"\x93NUMPY\x01\x00", "single array"),
        ("model.npz", b"hello", "not an npz file"),
        ("model.npz", b"", "not an npz file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_smplh(path)


def test_a_cut_off_download_is_explained(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = write(tmp_path / "model.npz", arrays)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError):
        load_smplh(path)


class TestFind:
    """Where the file is looked for."""

    @pytest.fixture(autouse=True)
    def _elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(SMPLH_ENV, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")

    @staticmethod
    def put(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        return path

    @pytest.mark.parametrize(
        "place",
        [
            "work/data/smplh/neutral/model.npz",
            "work/models/smplh/SMPLH_NEUTRAL.npz",
            "work/body_models/smplh/neutral/model.npz",
            "home/body_models/smplh/SMPLH_NEUTRAL.npz",
            "home/data/smplh/neutral/model.npz",
        ],
    )
    def test_usual_folders(self, tmp_path: Path, place: str) -> None:
        expected = self.put(tmp_path / place)
        assert find_smplh().resolve() == expected.resolve()

    def test_flag_beats_environment_beats_folders(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usual = self.put(tmp_path / "work/data/smplh/neutral/model.npz")
        named = self.put(tmp_path / "named/neutral/model.npz")
        given = self.put(tmp_path / "given/some_name.npz")
        assert find_smplh().resolve() == usual
        monkeypatch.setenv(SMPLH_ENV, str(tmp_path / "named"))
        assert find_smplh() == named
        assert find_smplh(given) == given
        assert find_smplh(str(given)) == given
        dotted = self.put(tmp_path / "smplh.v1.2" / "model.npz")
        assert find_smplh(dotted.parent) == dotted
        plain = self.put(tmp_path / "given" / "without_ending")
        assert find_smplh(plain) == plain

    def test_a_named_place_without_file_is_an_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.put(tmp_path / "work/data/smplh/neutral/model.npz")
        with pytest.raises(InputError, match="the path given"):
            find_smplh(tmp_path / "nowhere" / "model.npz")
        monkeypatch.setenv(SMPLH_ENV, str(tmp_path / "nowhere"))
        with pytest.raises(InputError, match=SMPLH_ENV) as error:
            find_smplh()
        assert str(tmp_path / "nowhere" / "neutral" / "model.npz") in str(error.value)

    def test_the_message_says_all_that_is_needed(self, tmp_path: Path) -> None:
        with pytest.raises(InputError) as error:
            find_smplh()
        text = str(error.value)
        for part in (
            str(tmp_path / "work/data/smplh/neutral/model.npz"),
            str(tmp_path / "home/body_models/smplh/SMPLH_NEUTRAL.npz"),
            f"{SMPLH_ENV} is not set",
            "https://mano.is.tue.mpg.de",
            "Extended SMPL+H model",
            "16 betas",
            "tar -xf smplh.tar.xz -C data/smplh",
            f"export {SMPLH_ENV}=",
            '"default"',
        ):
            assert part in text

    def test_resolve_body_takes_a_path(self, tmp_path: Path) -> None:
        path = write(tmp_path / "mine" / "model.npz", made_up_arrays())
        assert resolve_body(path, with_mesh=False).name == "smplh"
        assert resolve_body(str(tmp_path / "mine"), with_mesh=False).mesh is None
        with pytest.raises(InputError, match="Looked for"):
            resolve_body("smplh")
