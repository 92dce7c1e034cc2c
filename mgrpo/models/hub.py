"""Models as folders to hand on: ``config.json``, ``model.safetensors`` and a model card, ``README.md``; locally, or on
the Hugging Face Hub.

The methods carry the Hub's usual names. They are our own rather than those of ``huggingface_hub``'s mixin, because
loading has to be strict about every tensor, never falls back to pickles, and reading or writing a folder must work
without that package: it is imported for uploads and downloads alone (``pip install 'mgrpo[hub]'``).
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import yaml

from mgrpo import __version__
from mgrpo.config_record import CLASS_KEY, from_plain, to_plain
from mgrpo.errors import InputError
from mgrpo.models.weights import load_network
from mgrpo.storage import atomic_write_folder, json_text, make_folder, read_bytes, read_json
from mgrpo.tensor_files import tensors_to_bytes

if TYPE_CHECKING:
    from torch import nn

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "README.md"

_MAX_CONFIG_BYTES = 1 << 20
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

ModelT = TypeVar("ModelT", bound="PretrainedModel")


class PretrainedModel:
    """Saving to and loading from folders and the Hub, for networks that are made from one configuration dataclass.

    A class that has it as a base is built by ``cls(config)`` and keeps the configuration as ``self.config``.
    """

    config: Any
    config_class: ClassVar[type]
    """Class of the configuration."""
    layer_counts: ClassVar[tuple[str, ...]] = ()
    """Its fields that count layers."""
    card_summary: ClassVar[str]
    """What the model is and does, for its card."""
    card_tags: ClassVar[tuple[str, ...]] = ()
    """Tags of the card, besides mgrpo's own."""

    def save_pretrained(
        self, folder: str | Path, *, step: int | None = None, training: str | None = None, license: str = "mit"
    ) -> Path:
        """Write ``config.json``, ``model.safetensors`` and ``README.md`` in one step; returns the folder.

        Args:
            folder: a new or empty folder, or one written by this method, whose weights and configuration are then
                replaced while its card is kept (people edit cards).
            step: iterations the weights were trained for, if known.
            training: name of the training's configuration, such as GrpoConfig, if known.
            license: licence of these weights, in the Hub's spelling; goes into the card.

        Raises:
            InputError: the folder holds other files, or is a file.
            StorageError: the disk refuses; what was there is then still there.
        """
        folder = Path(folder).expanduser()
        files = self._files(step=step, training=training, license=license)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"save_pretrained(): {folder} is a file. Give a folder.")
        if folder.exists():
            there = {entry.name for entry in folder.iterdir()}
            if there and (there - set(files) or CONFIG_NAME not in there):
                others = ", ".join(sorted(there - set(files))[:5]) or f"no {CONFIG_NAME}"
                raise InputError(
                    f"save_pretrained(): {folder} holds other files ({others}), which are not replaced. Give a new "
                    "or empty folder."
                )
            if CARD_NAME in there:
                files[CARD_NAME] = read_bytes(folder / CARD_NAME, "model card")
        make_folder(folder.parent)
        atomic_write_folder(folder, files)
        return folder

    @classmethod
    def from_pretrained(
        cls: type[ModelT],
        source: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> ModelT:
        """The model in a folder, or of the Hub's repository ``user/name``: on the CPU, float32, in evaluation mode.

        Args:
            source: folder written by :meth:`save_pretrained`; if there is none of that name, a repository's name.
            revision: branch, tag or commit of the repository.
            token: access token, or whether to use the stored one; None: the stored one where needed.
            cache_dir: where downloads are kept; None: the Hub's usual place.
            force_download: download also what is in the cache.
            local_files_only: use the cache alone, never the network.

        Raises:
            InputError: nothing there, another kind of model, damaged or unfitting files; for the Hub also: the package
                ``huggingface_hub`` is missing, or the download failed.
        """
        folder = Path(source).expanduser()
        if not folder.exists():
            name = str(source)
            if not _HUB_ID.fullmatch(name):
                raise InputError(
                    f"no model at {name}: it is neither an existing folder nor a repository's name (user/name)."
                )
            folder = _download(
                name,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
            )
        return read_pretrained(folder, cls)[0]

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        step: int | None = None,
        training: str | None = None,
        license: str = "mit",
    ) -> str:
        """Upload the model to the Hub's repository ``repo_id`` (``user/name``), which is created if absent, in one
        commit; returns the commit's address. A card that is there already is kept.

        Args:
            repo_id: ``user/name``.
            private: whether a new repository is private; None: the account's default.
            token: access token, or whether to use the stored one.
            revision: branch to commit to; None: the main one.
            create_pr: propose the commit instead of making it.
            commit_message: its first line; None: names the model's class.
            step: as in :meth:`save_pretrained`, like the next two.
            training: see there.
            license: see there.

        Raises:
            InputError: not a repository's name, ``huggingface_hub`` is missing, or the upload failed.
        """
        if not _HUB_ID.fullmatch(repo_id):
            raise InputError(f"push_to_hub(): repo_id must have the form user/name, got {repo_id!r}")
        hub = _hub_package()
        with tempfile.TemporaryDirectory() as temporary:
            folder = self.save_pretrained(Path(temporary) / "model", step=step, training=training, license=license)
            try:
                api = hub.HfApi(token=token)
                repo_id = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
                kept = [CARD_NAME] if api.file_exists(repo_id, CARD_NAME, revision=revision) else None
                commit = api.upload_folder(
                    repo_id=repo_id,
                    folder_path=folder,
                    commit_message=commit_message or f"{type(self).__name__} of mgrpo {__version__}",
                    revision=revision,
                    create_pr=create_pr,
                    ignore_patterns=kept,
                )
            except Exception as error:  # whatever network, account and Hub may say
                raise InputError(f"could not upload to {repo_id}: {type(error).__name__}: {error}") from error
        return str(commit)

    def _files(self, *, step: int | None, training: str | None, license: str) -> dict[str, bytes]:
        content: dict[str, Any] = {"model": type(self).__name__, "config": to_plain(self.config)}
        content |= {name: value for name, value in (("step", step), ("training", training)) if value is not None}
        return {
            CONFIG_NAME: json_text({**content, "mgrpo_version": __version__}).encode(),
            WEIGHTS_NAME: tensors_to_bytes(cast("nn.Module", self).state_dict()),
            CARD_NAME: self._card(step, training, license).encode(),
        }

    def _card(self, step: int | None, training: str | None, license: str) -> str:
        """The model card: front matter for the Hub, then what a reader wants to know."""
        name = type(self).__name__
        post_trained = training == "GrpoConfig"
        tags = ["mgrpo", *self.card_tags, *(["grpo"] if post_trained else [])]
        front = yaml.safe_dump({"license": license, "library_name": "mgrpo", "tags": tags}, sort_keys=False)
        numbers = sum(parameter.numel() for parameter in cast("nn.Module", self).parameters())
        rows = [f"| `{key}` | {value} |" for key, value in to_plain(self.config).items() if key != CLASS_KEY]
        facts = [f"{numbers:,} parameters."]
        facts += [f"Trained for {step:,} iterations."] if step is not None else []
        facts += ["Post-trained with GRPO."] if post_trained else []
        return "\n".join(
            [
                f"---\n{front}---\n",
                f"# {name}\n",
                f"{self.card_summary}\n",
                " ".join(facts) + "\n",
                "```python",
                f"from {type(self).__module__} import {name}\n",
                f'model = {name}.from_pretrained("user/name")  # or a folder',
                "```\n",
                "`pip install 'mgrpo[hub]'` brings what downloading needs. Shapes, units and frames stand in the "
                "docstrings.\n",
                "The licence above is that of the weights as they are given here. Weights learnt from motion data may "
                "not be used for more than that data's licence allows (AMASS, for example, is for research alone).\n",
                "| configuration | |\n|---|---|",
                *rows,
                "",
            ]
        )


def is_pretrained(path: str | Path) -> bool:
    """Whether ``path`` is a folder as :meth:`PretrainedModel.save_pretrained` writes it, or a file in one."""
    given = Path(path).expanduser()
    folder = given.parent if given.name in (CONFIG_NAME, WEIGHTS_NAME) and given.is_file() else given
    return (folder / CONFIG_NAME).is_file() and not (folder / "state.json").exists()


def read_pretrained(path: str | Path, model_class: type[ModelT]) -> tuple[ModelT, dict[str, Any]]:
    """The model in a folder (or the folder of a file in it), and the content of its ``config.json``.

    Raises:
        InputError: another kind of model, damaged or unfitting files.
    """
    folder = Path(path).expanduser()
    if folder.is_file():
        folder = folder.parent
    what = f"model {folder}"
    config_file = folder / CONFIG_NAME
    if not config_file.is_file():
        raise InputError(f"{what}: there is no file {CONFIG_NAME}; expected a folder that save_pretrained() wrote.")
    content = read_json(config_file, f"{what}: {CONFIG_NAME}", limit=_MAX_CONFIG_BYTES)
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict) or "model" not in content:
        raise InputError(f"{what}: {CONFIG_NAME} is not what mgrpo writes (it needs the fields model and config).")
    if content["model"] != model_class.__name__:
        raise InputError(
            f"{what}: holds a {content['model']}, but a {model_class.__name__} is needed here. Give another folder."
        )
    config = from_plain(model_class.config_class, content["config"], where=f"{what}: {CONFIG_NAME}")
    model = load_network(
        lambda: cast(Any, model_class)(config),
        config,
        folder / WEIGHTS_NAME,
        what=what,
        layer_counts=model_class.layer_counts,
    )
    return model, content


def _hub_package() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(
            f"the Hub needs the package huggingface_hub, which is not installed for {sys.executable}: "
            "pip install 'mgrpo[hub]'. Folders on this machine can be read and written without it."
        ) from None
    return huggingface_hub


def _download(repo_id: str, **options: Any) -> Path:
    """The folder in the cache that holds a repository's configuration and weights, downloaded if needed."""
    hub = _hub_package()
    try:
        files = [hub.hf_hub_download(repo_id, filename=name, **options) for name in (CONFIG_NAME, WEIGHTS_NAME)]
    except Exception as error:  # whatever network, account and Hub may say
        raise InputError(
            f"no model at {repo_id}: there is no such folder here, and the download from the Hub failed "
            f"({type(error).__name__}: {error})."
        ) from error
    return Path(files[-1]).parent
