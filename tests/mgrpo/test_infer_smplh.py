"""An SMPL-H file from end to end: inferred on it with guidance, exported, shown, as a user types it."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mgrpo import geometry
from mgrpo.body import default_body, load_smplh
from mgrpo.body.placement import cpf_of, place_on_root
from mgrpo.cli import main
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.npz import read_npz
from mgrpo.runs.run_dir import RunDir
from tests.mgrpo import head_files as files
from tests.mgrpo.smplh_file import write_smplh

TINY = DenoiserConfig(
    d_latent=16, d_feedforward=32, d_noise_emb=8, num_heads=2, encoder_layers=1, decoder_layers=1, include_hands=True
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a body, a prior, a recording with wrists, and what is inferred from them."""
    folder = tmp_path_factory.mktemp("smplh")
    write_smplh(folder / "model.npz")
    with RunDir.create(folder / "prior", TINY) as run:
        run.save(1, model=Denoiser(TINY, seed=1), model_config=TINY)
    times = np.arange(46) / 30
    poses = files.head(times)
    wrist = poses[:, 4:] + [0.2, 0.3, -0.5]
    np.savez(folder / "walk.npz", t=times, T_world_cpf=poses, right_wrist=wrist)
    words = ["infer", str(folder / "walk.npz"), "--model", str(folder / "prior"), "-o", str(folder / "out.npz")]
    words += ["--body", str(folder / "model.npz"), "--kernel", "ddim", "--steps", "2", "--window", "32", "--amass"]
    assert main([*words, "--guidance.mode", "aria_wrist_only", "--guidance.inner", "--check-wrists"]) == 0
    return folder


def test_the_file_is_taken_for_a_body(made: Path) -> None:
    """Proportions are the default body's, shape numbers count."""
    body, standard = load_smplh(made / "model.npz"), default_body()
    mean, other = torch.zeros(16), torch.tensor([1.0, -2.0] + [0.0] * 14)
    assert torch.allclose(body.t_parent_joint(mean).float(), standard.t_parent_joint(mean), atol=1e-5)
    assert torch.allclose(body.t_head_cpf(mean).float(), standard.t_head_cpf(mean), atol=1e-5)
    assert torch.allclose(body.t_parent_joint(other).float(), standard.t_parent_joint(other), atol=1e-5)
    assert (body.t_parent_joint(other) - body.t_parent_joint(mean)).abs().max() > 0.005


def test_eyes_are_the_recorded_ones_and_wrists_are_drawn(made: Path) -> None:
    arrays = {name: torch.from_numpy(value) for name, value in read_npz(made / "out.npz", "result").items()}
    body = load_smplh(made / "model.npz").body_only()
    rotmats = geometry.quat_to_rotmat(arrays["body_quats"])
    placed = place_on_root(body, rotmats, arrays["betas"], arrays["Ts_world_root"])
    eyes = cpf_of(body, placed, arrays["betas"])[0]
    assert (eyes[:, 4:] - arrays["Ts_world_cpf"][:, 4:]).abs().max() < 1e-4
    assert arrays["betas"].abs().max() > 0.01 and arrays["left_hand_quats"].shape == (1, 45, 15, 4)
    errors = json.loads((made / "out_wrists.json").read_text())
    assert errors["frames"] == {"left": 0, "right": 45} and errors["mean"] < 0.1
    record = yaml.safe_load((made / "out_args.yaml").read_text())
    assert record["options"]["body"] == str(made / "model.npz")


def test_amass_has_the_shape(made: Path) -> None:
    """Unlike those of the default body, the shape numbers are SMPL-H's and are written."""
    amass, arrays = read_npz(made / "out_amass.npz", "AMASS"), read_npz(made / "out.npz", "result")
    assert np.allclose(amass["betas"], arrays["betas"][0].mean(0), atol=1e-6) and amass["betas"].any()
    assert amass["poses"].shape == (45, 156) and np.abs(amass["poses"][:, 66:]).max() > 0.1, "fingers of the model"


@pytest.mark.parametrize("to", ["glb", "bvh", "amass", "csv", "npz"])
def test_it_is_exported_with_the_body_that_the_options_name(made: Path, to: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["export", str(made / "out.npz"), "--to", to, "-o", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "as out_args.yaml says" in captured.err and "WARNING" not in captured.err
    (path,) = map(Path, captured.out.split())
    data = path.read_bytes()
    if to == "glb":
        document = json.loads(data[20 : 20 + struct.unpack("<I", data[12:16])[0]])
        vertices = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["POSITION"]]["count"]
        assert vertices == 6890 and len(document["skins"][0]["joints"]) == 52
    elif to == "amass":
        with np.load(path) as amass, np.load(made / "out_amass.npz") as beside:
            for name in ("poses", "trans", "betas"):
                np.testing.assert_allclose(amass[name], beside[name], rtol=0, atol=1e-5)
    elif to == "npz":
        with np.load(path) as again, np.load(made / "out.npz") as first:
            for name in first.files:
                np.testing.assert_allclose(again[name], first[name], rtol=0, atol=1e-6, err_msg=name)
    else:
        assert data.count(b"right_pinky") > 0, "fingers"


def test_it_is_shown(made: Path, tmp_path: Path) -> None:
    words = ["view", str(made / "out.npz"), "--body"]
    assert main([*words, str(made / "model.npz"), "--html", str(tmp_path / "a.html")]) == 0
    found = re.search(r'id="data">(.*?)</script>', (tmp_path / "a.html").read_text())
    assert found is not None and json.loads(found[1])
    assert main([*words, str(made / "none.npz"), "--html", str(tmp_path / "b.html")]) == 2
    assert not (tmp_path / "b.html").exists()
