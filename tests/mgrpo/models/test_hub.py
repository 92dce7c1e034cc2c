"""Models as folders to hand on: saved, loaded, refused; the Hub's package is needed for the Hub alone. No network."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from mgrpo.errors import InputError
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.hub import PretrainedModel, is_pretrained, read_pretrained
from mgrpo.models.perceptual import PerceptualConfig, PerceptualModel

ROOT = Path(__file__).resolve().parents[3]
DENOISER = DenoiserConfig(
    max_t=50, d_latent=16, d_feedforward=24, d_noise_emb=8, num_heads=2, encoder_layers=1, decoder_layers=1
)
PERCEPTUAL = PerceptualConfig(d_latent=16, blocks=1, heads=2, mlp_ratio=1.5, velocity_features=True)


def models() -> list[Any]:
    return [Denoiser(DENOISER, seed=3).eval(), PerceptualModel(PERCEPTUAL).eval()]


def equal(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    same = a.config == b.config and type(a) is type(b)
    return same and set(x) == set(y) and all(torch.equal(x[name], y[name]) for name in x)


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """Front matter and text of a model card."""
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


@pytest.mark.parametrize("model", models(), ids=lambda model: type(model).__name__)
def test_a_round_trip_is_exact(model: Any, tmp_path: Path) -> None:
    folder = model.save_pretrained(
        tmp_path / "deep" / "model", step=1200, training="GrpoConfig", license="cc-by-nc-4.0"
    )
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = type(model).from_pretrained(str(folder))
    assert equal(again, model) and not again.training and is_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    assert content["model"] == type(model).__name__ and (content["step"], content["training"]) == (1200, "GrpoConfig")
    front, text = card(folder)
    assert front["license"] == "cc-by-nc-4.0" and front["library_name"] == "mgrpo"
    assert {"mgrpo", "grpo", "egocentric", *model.card_tags} == set(front["tags"])
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters. Trained for 1,200 iterations." in text
    assert all(f"| `{field.name}` |" in text for field in dataclasses.fields(model.config))


def test_the_cards_example_loads_the_model(tmp_path: Path) -> None:
    for model in models():
        folder = model.save_pretrained(tmp_path / type(model).__name__)
        code = (folder / "README.md").read_text().split("```")[1].removeprefix("python\n")
        names: dict[str, Any] = {}
        exec(code.replace("user/name", str(folder)), names)
        assert equal(names["model"], model)
        front, text = card(folder)
        assert front["license"] == "mit" and "grpo" not in front["tags"] and "iterations" not in text


def test_saving_again_replaces_weights_and_keeps_the_card(tmp_path: Path) -> None:
    first, second = Denoiser(DENOISER, seed=1), Denoiser(dataclasses.replace(DENOISER, max_t=20), seed=2)
    folder = first.save_pretrained(tmp_path / "model")
    (folder / "README.md").write_text("my own words")
    second.save_pretrained(folder)
    assert equal(Denoiser.from_pretrained(folder), second.eval())
    assert (folder / "README.md").read_text() == "my own words"


def test_other_files_are_not_replaced(tmp_path: Path) -> None:
    model = Denoiser(DENOISER)
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(InputError, match=r"holds other files \(notes\.txt\)"):
        model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        model.save_pretrained(tmp_path / "notes.txt")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("of something else")
    with pytest.raises(InputError, match=r"no config\.json"):
        model.save_pretrained(tmp_path / "project")
    assert (tmp_path / "notes.txt").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    model.save_pretrained(tmp_path / "empty")


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    denoiser, perceptual = models()
    a, b = denoiser.save_pretrained(tmp_path / "a"), perceptual.save_pretrained(tmp_path / "b")
    with pytest.raises(InputError, match="holds a PerceptualModel, but a Denoiser is needed"):
        Denoiser.from_pretrained(b)
    with pytest.raises(InputError, match="holds a Denoiser, but a PerceptualModel is needed"):
        PerceptualModel.from_pretrained(a)


def test_wrapped_and_half_weights_load(tmp_path: Path) -> None:
    model = PerceptualModel(PERCEPTUAL)
    folder = model.save_pretrained(tmp_path / "m")
    halves = {f"_orig_mod.{name}": tensor.half() for name, tensor in model.state_dict().items()}
    save_file(halves, folder / "model.safetensors")
    again = PerceptualModel.from_pretrained(folder).state_dict()
    for name, tensor in model.state_dict().items():
        assert again[name].dtype == torch.float32 and torch.equal(again[name], tensor.half().float())


def change_config(folder: Path, **fields: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["config"].update(fields)
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"d_latent": 16 * 10**8}, r"d_latent = 1600000000, but the file of weights has only"),
        ({"blocks": 10**9}, r"blocks = 1000000000, but the file of weights has only [\d]+ tensors"),
        ({"mlp_ratio": 1e300}, "no network can be built"),
        ({"mlp_ratio": float("inf")}, "no network can be built"),
        ({"blocks": 2}, r"missing from the file: blocks\.1\."),
        ({"mlp_ratio": 2.0}, r"of another shape: blocks\.0\."),
        ({"class": "DenoiserConfig"}, "expected a PerceptualConfig, got a DenoiserConfig"),
        ({"wings": 2}, "has no field wings"),
        ({"d_latent": "16"}, "expected int, got '16'"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = PerceptualModel(PERCEPTUAL).save_pretrained(tmp_path / "m")
    change_config(folder, **fields)
    with pytest.raises(InputError, match=words):
        PerceptualModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("config.json", b"{", "not valid JSON"),
        ("config.json", b"[1]", "not what mgrpo writes"),
        ("config.json", b'{"model": "Denoiser", "config": 3}', "not what mgrpo writes"),
        ("config.json", b"[" * 100_000, "not valid JSON"),
        ("config.json", b" " * (2 << 20), r"longer than 1,048,576 bytes"),
        ("config.json", None, r"there is no file config\.json"),
        ("model.safetensors", b"\x00" * 50, "not a whole safetensors file"),
        ("model.safetensors", None, "does not exist"),
    ],
)
def test_damaged_folders_are_refused(name: str, data: bytes | None, words: str, tmp_path: Path) -> None:
    folder = Denoiser(DENOISER).save_pretrained(tmp_path / "m")
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=words):
        Denoiser.from_pretrained(folder)


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    folder = PerceptualModel(PERCEPTUAL).save_pretrained(tmp_path / "m")
    before = torch.random.get_rng_state()
    PerceptualModel.from_pretrained(folder)
    assert torch.equal(torch.random.get_rng_state(), before)


# The Hub


class FakeHub(ModuleType):
    """Stands in for huggingface_hub: repositories are folders."""

    def __init__(self, root: Path) -> None:
        super().__init__("huggingface_hub")
        self.root = root
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.HfApi = self.api

    def hf_hub_download(self, repo_id: str, filename: str, **options: Any) -> str:
        self.calls.append((filename, options))
        path = self.root / repo_id / filename
        if not path.exists():
            raise RuntimeError(f"404 for {filename}")
        return str(path)

    def api(self, token: Any = None) -> Any:
        def create_repo(repo_id: str, private: Any, exist_ok: bool) -> Any:
            self.calls.append(("create", {"private": private, "exist_ok": exist_ok, "token": token}))
            (self.root / repo_id).mkdir(parents=True, exist_ok=True)
            return SimpleNamespace(repo_id=repo_id)

        def file_exists(repo_id: str, filename: str, revision: Any) -> bool:
            return (self.root / repo_id / filename).exists()

        def upload_folder(repo_id: str, folder_path: Path, ignore_patterns: Any, **options: Any) -> str:
            self.calls.append(("upload", options))
            shutil.copytree(
                folder_path,
                self.root / repo_id,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns(*(ignore_patterns or [])),
            )
            return f"https://hub/{repo_id}/commit/1"

        return SimpleNamespace(create_repo=create_repo, file_exists=file_exists, upload_folder=upload_folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.chdir(tmp_path)
    return fake


def test_up_to_the_hub_and_down_again(hub: FakeHub) -> None:
    model = Denoiser(DENOISER, seed=4).eval()
    assert model.push_to_hub("us.er/na-me", private=True, token="secret", revision="dev", create_pr=True, step=5) == (
        "https://hub/us.er/na-me/commit/1"
    )
    assert hub.calls[0] == ("create", {"private": True, "exist_ok": True, "token": "secret"})
    uploaded = hub.calls[1][1]
    assert uploaded["revision"] == "dev" and uploaded["create_pr"] and "Denoiser" in uploaded["commit_message"]
    assert sorted(path.name for path in (hub.root / "us.er/na-me").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    hub.calls.clear()
    assert equal(Denoiser.from_pretrained("us.er/na-me", revision="dev", local_files_only=True), model)
    assert [name for name, _ in hub.calls] == ["config.json", "model.safetensors"]
    assert all(options["revision"] == "dev" and options["local_files_only"] for _, options in hub.calls)

    (hub.root / "us.er/na-me" / "README.md").write_text("edited there")
    model.push_to_hub("us.er/na-me")
    assert (hub.root / "us.er/na-me" / "README.md").read_text() == "edited there"


def test_failures_of_the_hub_are_explained(hub: FakeHub) -> None:
    with pytest.raises(InputError, match=r"no model at a/b: .*RuntimeError: 404 for config\.json"):
        Denoiser.from_pretrained("a/b")
    with pytest.raises(InputError, match=r"neither an existing folder nor a repository's name"):
        Denoiser.from_pretrained("runs/my model/last")
    with pytest.raises(InputError, match=r"neither an existing folder nor a repository's name"):
        Denoiser.from_pretrained("../b")
    with pytest.raises(InputError, match="repo_id must have the form user/name, got 'b'"):
        Denoiser(DENOISER).push_to_hub("b")
    hub.root.write_text("a file in the way")
    with pytest.raises(InputError, match="could not upload to a/b"):
        Denoiser(DENOISER).push_to_hub("a/b")


def test_without_the_package_folders_work_and_the_hub_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it now fails
    model = Denoiser(DENOISER).eval()
    assert equal(Denoiser.from_pretrained(model.save_pretrained(tmp_path / "m")), model)
    for call in (lambda: Denoiser.from_pretrained("a/b"), lambda: model.push_to_hub("a/b")):
        with pytest.raises(InputError, match=r"pip install 'mgrpo\[hub\]'"):
            call()


def test_the_package_itself_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package, offline, with an empty cache: its refusal becomes our message; its calls take our options."""
    package = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no model at a/b: .*the download from the Hub failed \(LocalEntryNotFound"):
        Denoiser.from_pretrained("a/b", cache_dir=tmp_path / "cache", local_files_only=True)
    import inspect

    upload = inspect.signature(package.HfApi.upload_folder).parameters
    assert {"repo_id", "folder_path", "commit_message", "revision", "create_pr", "ignore_patterns"} <= set(upload)
    assert {"repo_id", "private", "exist_ok"} <= set(inspect.signature(package.HfApi.create_repo).parameters)
    assert {"repo_id", "filename", "revision"} <= set(inspect.signature(package.HfApi.file_exists).parameters)
    download = set(inspect.signature(package.hf_hub_download).parameters)
    assert {"repo_id", "filename", "revision", "token", "cache_dir", "force_download", "local_files_only"} <= download


def test_importing_the_models_stays_light() -> None:
    code = (
        "import sys, mgrpo.models.denoiser, mgrpo.models.perceptual, mgrpo.models.egoallo; "
        "print({'huggingface_hub', 'tyro', 'rich', 'matplotlib', 'h5py', 'requests', 'httpx'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": ""}
    )
    assert done.stdout == "set()\n", done.stderr


def test_reading_names_the_kind_of_any_class(tmp_path: Path) -> None:
    class Other(nn.Module, PretrainedModel):
        config_class = DenoiserConfig

    folder = Denoiser(DENOISER).save_pretrained(tmp_path / "m")
    with pytest.raises(InputError, match="a Other is needed"):
        read_pretrained(folder, Other)
    assert set(load_file(folder / "model.safetensors")) == set(Denoiser(DENOISER).state_dict())
