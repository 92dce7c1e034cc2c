"""From what a user writes after ``--body`` to a body."""

from __future__ import annotations

from pathlib import Path

from mgrpo.body.default import default_body
from mgrpo.body.model import BodyModel
from mgrpo.body.smplh import find_smplh, load_smplh
from mgrpo.errors import InputError


def resolve_body(spec: str | Path = "default", *, with_mesh: bool = True) -> BodyModel:
    """The body that ``spec`` names.

    Args:
        spec: ``"default"`` (ships with the package), ``"smplh"`` (the user's SMPL-H file, found as :func:`find_smplh`
            says), or the path of an SMPL-H ``model.npz`` or of a folder that holds one.
        with_mesh: whether SMPL-H's vertices are kept for display.
    Raises:
        InputError: no such file, or not a body.
    """
    text = str(spec)
    if text == "default":
        return default_body()
    if text != "smplh" and not Path(text).expanduser().exists() and Path(text).name == text and not Path(text).suffix:
        raise InputError(
            f"unknown body '{text}': choose 'default', 'smplh', or the path of an SMPL-H model.npz (no file or "
            "folder has that name)"
        )
    return load_smplh(find_smplh(None if text == "smplh" else text), with_mesh=with_mesh)
