"""The folder of reference values, and what its absence means.

One rule for every test marked ``golden``. The default folder holds every family of :data:`FAMILIES`: where it is there,
a missing family is a failure, and where it is not, the tests skip. A folder that ``MGRPO_GOLDEN`` names was asked for:
it must be there and hold something, but it may hold some families only, and the tests of the others skip.

Results in the default folder that no test compares:

* ``fk.npz`` ``T_world_cpf_from_mesh_*``, ``lie.npz`` ``se3_tangent``: the CPF comes from the skeleton here, and nothing
  needs the exponential of a twist. ``lie.npz`` ``matrices_kind``: a label.
* ``guidance`` ``terms_*_np64``, ``lambda_history``: the optimiser reports total costs, which are compared;
  ``total_final_jaxls`` is a bound from above.
* ``loss/author_grpo_*`` ``log_probs_old``, ``grad_norm_old_policy``: of a network whose weights are not recorded; the
  former is an input.
* ``rewards`` ``*_stub_critic_raw``: of inputs that are not recorded; an input.
* ``dataset/processed_selected`` ``floor_height``: that of ``expected.json`` is compared.
* ``schedule`` ``beta_coeff_weights``: 1 / (i + 1); they act in ``loss_term_betas_*``, which is compared.
* ``body`` ``J``, and names: not used.

Inputs that reach no result: ``fps`` of most ``floor_cases`` and the joints of the one without a still frame,
``hand_rotmats_in`` of ``guidance``; ``T_world_root``, ``hand_quats`` and ``joints_wrt_cpf`` of ``denoising_nohands``;
roots, hands, shapes and contacts of the recordings (``label_*``) in ``rewards``, and ``pred_hand_rotmats``. The
sampler's ``timesteps`` in ``stitched_*`` are those of ``schedule``, which are compared.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

VARIABLE = "MGRPO_GOLDEN"
DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "golden"

FAMILIES = (
    "body/*.npz",
    "cond/make_cond*.npz",
    "dataset/*.hdf5",
    "dataset/floor_cases*.npz",
    "dataset/processed_selected/**/*.npz",
    "dataset/reader_items*.npz",
    "fk/fk*.npz",
    "fk/lie*.npz",
    "guidance/no_hands_*.npz",
    "loss/author_grpo_*.npz",
    "loss/denoising_*.npz",
    "metrics/author_metrics*.npz",
    "metrics/metrics*.npz",
    "metrics/procrustes*.npz",
    "network/checkpoint_layout/model_config.yaml",
    "network/configs.json",
    "network/full_config_names.json",
    "network/net_*.npz",
    "rewards/rewards*.npz",
    "sampler/author_logprob_*.npz",
    "sampler/author_stitched_*.npz",
    "sampler/stitched_*.npz",
    "schedule/schedule*.npz",
)
"""Every pattern that a test may ask for; the cases of a family are the files that it finds."""


def golden_folder() -> Path:
    """The folder; skips the test where there is none, fails it where one was named and is missing or of no use."""
    named = os.environ.get(VARIABLE)
    folder = Path(named).expanduser() if named else DEFAULT
    if not folder.is_dir():
        if named:
            pytest.fail(f"{VARIABLE} names {folder}, which is no folder; expected one that {_layout()}", pytrace=False)
        pytest.skip(f"{folder} does not exist; set {VARIABLE} to a folder that {_layout()}")
    if not any(_found(folder, pattern) for pattern in FAMILIES):
        pytest.fail(f"{folder} holds no reference values; expected a folder that {_layout()}", pytrace=False)
    return folder


def golden_files(pattern: str) -> list[Path]:
    """The files of a family, sorted, at least one; without any, the test skips or fails by the rule above."""
    if pattern not in FAMILIES:
        raise ValueError(f"{pattern} is not one of FAMILIES")
    folder = golden_folder()
    return _found(folder, pattern) or _missing(folder, pattern)


def golden_file(pattern: str) -> Path:
    """The only file of a family of which a folder holds one. Raises as :func:`golden_files`."""
    found = golden_files(pattern)
    if len(found) > 1:
        pytest.fail(f"one {pattern} was expected, found {', '.join(path.name for path in found)}", pytrace=False)
    return found[0]


def listed_files(pattern: str) -> list[Path]:
    """The files of a family for parameters of tests, none where something is missing: never skips, never fails."""
    if pattern not in FAMILIES:
        raise ValueError(f"{pattern} is not one of FAMILIES")
    return _found(Path(os.environ.get(VARIABLE) or DEFAULT).expanduser(), pattern)


def _found(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))


def _missing(folder: Path, pattern: str) -> NoReturn:
    if DEFAULT.is_dir() and folder.samefile(DEFAULT):
        pytest.fail(f"{folder} holds no {pattern}; the default folder must hold every family", pytrace=False)
    pytest.skip(f"{folder} holds no {pattern}")


def _layout() -> str:
    return f"holds some of {', '.join(FAMILIES)}"
