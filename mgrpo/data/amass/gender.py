"""Shape numbers of the female and male body as shape numbers of the neutral one (facts, section J).

AMASS fits each person with the body of their gender; the base model has the neutral body alone. Between two bodies the
conversion is affine, ``betas_b = A betas_a + b``, fitted so that the vertices of the zero pose differ least.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path

import numpy as np

from mgrpo.body.model import NUM_BETAS
from mgrpo.errors import InputError
from mgrpo.npz import read_npz

GENDERS = ("female", "male", "neutral")


@dataclass(frozen=True, eq=False)
class BetasConversion:
    """``betas_b = A betas_a + b``."""

    A: np.ndarray
    """``(16, 16)`` float64."""
    b: np.ndarray
    """``(16,)`` float64."""

    def __call__(self, betas: np.ndarray) -> np.ndarray:
        """Convert ``betas (16,)``."""
        return self.A @ betas + self.b


def conversion_file(source: str, target: str) -> str:
    """Name of the file for one direction."""
    return f"{source}_to_{target}.npz"


def load_conversions(folder: Path) -> dict[str, BetasConversion]:
    """The conversions to neutral, by gender, from a folder of npz files with ``A (16, 16)`` and ``b (16,)``, such as
    the base model's ``female_to_neutral.npz``.

    Raises:
        InputError: a file is missing or holds something else.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; it should hold {' and '.join(map(_to_neutral, GENDERS[:2]))}")
    return {gender: _load(folder / _to_neutral(gender)) for gender in GENDERS[:2]}


def _to_neutral(gender: str) -> str:
    return conversion_file(gender, "neutral")


def _load(path: Path) -> BetasConversion:
    if path.is_file() and path.stat().st_size > 1_000_000:
        raise InputError(f"{path}: {path.stat().st_size} bytes; a gender conversion has a few thousand")
    arrays = read_npz(path, "gender conversion", ("A", "b"))
    for key, shape in (("A", (NUM_BETAS, NUM_BETAS)), ("b", (NUM_BETAS,))):
        value = arrays[key]
        if value.shape != shape or value.dtype.kind not in "fiu" or not np.isfinite(value).all():
            raise InputError(f"{path}: {key} must be finite numbers of shape {shape}, got {value.dtype} {value.shape}")
    return BetasConversion(arrays["A"].astype(np.float64), arrays["b"].astype(np.float64))


def fit_conversions(models: Mapping[str, Path]) -> dict[tuple[str, str], BetasConversion]:
    """Conversions between any two of the given SMPL-H models, by (from, to), by least squares over the vertices.

    ``template_a + S_a betas_a = template_b + S_b betas_b`` is solved for ``betas_b``. The fits of the two directions
    are not inverse to each other: each drops what the other body can't show.

    Args:
        models: npz file of the Extended SMPL+H model by gender.
    Raises:
        InputError: a file that is no such model, two models that are the same, or models with different vertices.
    """
    meshes = {gender: _mesh(path) for gender, path in models.items()}
    for one, other in combinations(meshes, 2):
        if all(np.array_equal(a, b) for a, b in zip(meshes[one], meshes[other])):
            raise InputError(
                f"the {one} and the {other} model are the same ({models[one]} and {models[other]}): the conversion "
                "would change nothing. Give the model of each body"
            )
    shapes = {gender: template.shape for gender, (template, _) in meshes.items()}
    if len(set(shapes.values())) > 1:
        raise InputError(f"the models have different numbers of vertices: {shapes}")
    result = {}
    for source, target in permutations(meshes, 2):
        (template_a, S_a), (template_b, S_b) = meshes[source], meshes[target]
        right = np.concatenate((S_a, (template_a - template_b)[:, None]), axis=1)
        solution, _, rank, _ = np.linalg.lstsq(S_b, right, rcond=None)
        if rank < NUM_BETAS:
            raise InputError(f"{models[target]}: only {rank} of the {NUM_BETAS} shape directions are independent")
        result[source, target] = BetasConversion(solution[:, :NUM_BETAS], solution[:, NUM_BETAS])
    return result


def _mesh(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices ``(3V,)`` and shape directions ``(3V, 16)`` in float64."""
    arrays = read_npz(path, "SMPL-H model (Extended SMPL+H, 16 betas)", ("v_template", "shapedirs"))
    template, directions = arrays["v_template"], arrays["shapedirs"]
    if (
        template.ndim != 2
        or template.shape[1] != 3
        or directions.ndim != 3
        or directions.shape[:2] != template.shape
        or directions.shape[2] < NUM_BETAS
    ):
        raise InputError(
            f"{path}: v_template must have shape (V, 3) and shapedirs (V, 3, >={NUM_BETAS}), got {template.shape} and "
            f"{directions.shape}"
        )
    for key, value in arrays.items():
        if value.dtype.kind not in "fiu" or not np.isfinite(value).all():
            raise InputError(f"{path}: {key} must hold finite numbers")
    return template.astype(np.float64).reshape(-1), directions[..., :NUM_BETAS].astype(np.float64).reshape(
        -1, NUM_BETAS
    )
