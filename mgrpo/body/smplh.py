"""SMPL-H from its npz file: found in the usual places, reduced to what is needed, with the eyes' offset."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from mgrpo.body.model import NUM_BETAS, BodyMesh, BodyModel
from mgrpo.body.skeleton import HEAD, PARENTS_FULL
from mgrpo.errors import InputError
from mgrpo.npz import read_npz

SMPLH_ENV = "MGRPO_SMPLH"
"""Environment variable with the path of the SMPL-H file, or of a folder that holds it."""

LEFT_EYE_VERTICES = (2800, 2802)
"""SMPL-H vertices whose mean is the base model's left eye."""

RIGHT_EYE_VERTICES = (6260, 6262)
"""SMPL-H vertices whose mean is the base model's right eye."""

_DOWNLOAD_PAGE = "https://mano.is.tue.mpg.de"
_IN_FOLDER = (
    "model.npz",
    "neutral/model.npz",
    "smplh/neutral/model.npz",
    "SMPLH_NEUTRAL.npz",
    "smplh/SMPLH_NEUTRAL.npz",
)
_USUAL_FOLDERS = (
    "data/smplh",
    "data",
    "data/body_models",
    "body_models",
    "models",
    "~/data/smplh",
    "~/data",
    "~/data/body_models",
    "~/body_models",
    "~/models",
    "~/.cache/mgrpo",
)
_FOR_JOINTS = ("v_template", "shapedirs", "J_regressor", "kintree_table")
_FOR_DISPLAY = ("posedirs", "weights", "f")


def find_smplh(explicit: str | Path | None = None) -> Path:
    """Path of the user's SMPL-H file.

    Looked for in this order: ``explicit`` (a file, or a folder that holds it); the environment variable
    ``MGRPO_SMPLH`` (likewise); the layouts that the base model and smplx use, such as
    ``./data/smplh/neutral/model.npz`` and ``~/body_models/smplh/SMPLH_NEUTRAL.npz``. A place that was named but holds
    no file is an error: nothing else is taken in its stead.

    Raises:
        InputError: none found. The text says what is missing, where it was looked for, where to get it and what to do
        next.
    """
    named = [(explicit, "the path given")] if explicit is not None else []
    if explicit is None and os.environ.get(SMPLH_ENV):
        named = [(os.environ[SMPLH_ENV], f"the environment variable {SMPLH_ENV}")]
    if named:
        place, origin = named[0]
        path = Path(str(place)).expanduser()
        folder = path.is_dir() or not (path.exists() or path.suffix)
        candidates = [path / name for name in _IN_FOLDER] if folder else [path]
        introduction = f"The SMPL-H body model was not found where {origin} says"
    else:
        candidates = [Path(folder).expanduser() / name for folder in _USUAL_FOLDERS for name in _IN_FOLDER]
        introduction = "The SMPL-H body model was not found"
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    looked = "\n".join(f"  {_absolute(candidate)}" for candidate in dict.fromkeys(candidates))
    if not named:
        looked = f"  (the environment variable {SMPLH_ENV} is not set)\n" + looked
    raise InputError(
        f"{introduction}. Looked for:\n{looked}\n"
        f"It is licensed, so it can't be shipped or fetched for you. Register at {_DOWNLOAD_PAGE}, open Downloads "
        "and take "
        '"Extended SMPL+H model" (the one used for AMASS, 16 betas; not the MANO or the 10-beta SMPL+H models). '
        "Then:\n"
        f"  mkdir -p data/smplh && tar -xf smplh.tar.xz -C data/smplh    # gives data/smplh/neutral/model.npz\n"
        f"or keep it elsewhere and say where:\n"
        f"  export {SMPLH_ENV}=/path/to/smplh/neutral/model.npz\n"
        f'Nothing licensed is needed for a first try: the body "default" ships with this package.'
    )


def _absolute(path: Path) -> str:
    return str(path if path.is_absolute() else Path.cwd() / path)


def load_smplh(path: str | Path, *, with_mesh: bool = True, dtype: torch.dtype = torch.float32) -> BodyModel:
    """Read SMPL-H and reduce it to joints linear in the 16 betas, the eyes' offset and, if wanted, the display mesh.

    The file's numbers are rounded to float32 as in the base model; the joint regression is then computed in float64
    and given in ``dtype``. The eyes' offset is the mean of four vertices of the face minus the head joint (the base
    model's central pupil frame); pose corrections and skinning don't move it.

    Args:
        path: ``model.npz`` of the Extended SMPL+H model. Arrays beyond those needed are not looked at.
        with_mesh: also keep vertices, pose corrections and skinning weights (about 45 MB); not needed for training.
        dtype: floating dtype of the result.
    Raises:
        InputError: not an npz, wrong or missing arrays, fewer than 16 shape directions, NaN, pickled objects, another
            tree.
    """
    path = Path(path)
    arrays = read_npz(
        path, "SMPL-H model (Extended SMPL+H, 16 betas)", _FOR_JOINTS + (_FOR_DISPLAY if with_mesh else ())
    )
    joints = len(PARENTS_FULL) + 1
    vertices = arrays["v_template"].shape[0] if arrays["v_template"].ndim else 0
    expected: dict[str, tuple[int | str, ...]] = {
        "v_template": ("V", 3),
        "shapedirs": (vertices, 3, f">={NUM_BETAS}"),
        "J_regressor": (joints, vertices),
        "weights": (vertices, joints),
        "kintree_table": (2, joints),
        "f": ("F", 3),
        "posedirs": (vertices, 3, 9 * (joints - 1)),
    }
    for key, shape in expected.items():
        if key in arrays:
            _check_shape(path, key, arrays[key], shape)
    if vertices <= max(LEFT_EYE_VERTICES + RIGHT_EYE_VERTICES):
        raise InputError(
            f"{path}: v_template has {vertices} vertices, SMPL-H has 6890; the eye vertices {RIGHT_EYE_VERTICES} "
            "are not there. "
            "Is this another body model?"
        )
    floats = {}
    for key in ("v_template", "shapedirs", "J_regressor", "weights", "posedirs"):
        if key not in arrays:
            continue
        if arrays[key].dtype.kind not in "fiu":
            raise InputError(f"{path}: {key} must be numeric, got dtype {arrays[key].dtype}")
        # Rounded to float32 (what the base model reads), then widened: the sums below keep their digits.
        floats[key] = arrays[key].astype(np.float32)
        if not np.isfinite(floats[key]).all():
            raise InputError(
                f"{path}: {key} has NaN or infinite values; the file is damaged, get it again from {_DOWNLOAD_PAGE}"
            )
    # The root's parent is stored as 4294967295, which is -1 in 32 bits.
    parents = tuple(int(parent) - 1 for parent in arrays["kintree_table"][0].astype(np.uint32).astype(np.int32)[1:])
    if parents != PARENTS_FULL:
        raise InputError(
            f"{path}: kintree_table is not SMPL-H's tree of 52 joints; is this SMPL (24 joints) or SMPL-X (55)? "
            "mgrpo reads the Extended SMPL+H model"
        )
    regressor = floats["J_regressor"].astype(np.float64)
    template = floats["v_template"].astype(np.float64)
    directions = floats["shapedirs"][..., :NUM_BETAS].astype(np.float64)
    J_template = regressor @ template
    J_shapedirs = (regressor @ directions.reshape(vertices, -1)).reshape(joints, 3, NUM_BETAS)
    eyes = list(RIGHT_EYE_VERTICES + LEFT_EYE_VERTICES)
    cpf_template = template[eyes].mean(0) - J_template[HEAD + 1]
    cpf_shapedirs = directions[eyes].mean(0) - J_shapedirs[HEAD + 1]
    mesh = None
    if with_mesh:
        faces = arrays["f"].astype(np.int64)
        if faces.size and (faces.min() < 0 or faces.max() >= vertices):
            raise InputError(f"{path}: f must index the {vertices} vertices, got {faces.min()} to {faces.max()}")
        mesh = BodyMesh(
            v_template=torch.from_numpy(template).to(dtype),
            shapedirs=torch.from_numpy(floats["shapedirs"][..., :NUM_BETAS]).to(dtype),
            weights=torch.from_numpy(floats["weights"]).to(dtype),
            faces=torch.from_numpy(faces),
            posedirs=torch.from_numpy(floats["posedirs"]).to(dtype),
        )
    return BodyModel(
        name="smplh",
        parents=parents,
        J_template=torch.from_numpy(J_template).to(dtype),
        J_shapedirs=torch.from_numpy(J_shapedirs).to(dtype),
        cpf_template=torch.from_numpy(cpf_template).to(dtype),
        cpf_shapedirs=torch.from_numpy(cpf_shapedirs).to(dtype),
        mesh=mesh,
    )


def _check_shape(path: Path, key: str, array: np.ndarray, shape: tuple[int | str, ...]) -> None:
    fits = array.ndim == len(shape)
    for actual, wanted in zip(array.shape, shape):
        if isinstance(wanted, int):
            fits = fits and actual == wanted
        elif wanted.startswith(">="):
            fits = fits and actual >= int(wanted[2:])
    if fits:
        return
    hint = ""
    if key == "shapedirs" and array.ndim == 3 and array.shape[-1] < NUM_BETAS:
        hint = (
            f". It has {array.shape[-1]} shape directions: this is the older SMPL+H; take the Extended SMPL+H model "
            "with "
            f"{NUM_BETAS} from {_DOWNLOAD_PAGE}"
        )
    wanted = ", ".join(str(size) for size in shape)
    raise InputError(f"{path}: {key} must have shape ({wanted}), got {tuple(array.shape)}{hint}")
