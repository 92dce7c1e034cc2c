"""Bodies: skeleton, shape, the central pupil frame, placement in the world, skinning."""

from __future__ import annotations

from mgrpo.body.default import default_body
from mgrpo.body.model import NUM_BETAS, BodyMesh, BodyModel
from mgrpo.body.placement import PlacedBody, cpf_of, place_on_cpf, place_on_root
from mgrpo.body.resolve import resolve_body
from mgrpo.body.skeleton import BODY_JOINT_NAMES, HAND_JOINT_NAMES, PARENTS_BODY, PARENTS_FULL
from mgrpo.body.skinning import skin
from mgrpo.body.smplh import find_smplh, load_smplh

__all__ = [
    "BODY_JOINT_NAMES",
    "HAND_JOINT_NAMES",
    "NUM_BETAS",
    "PARENTS_BODY",
    "PARENTS_FULL",
    "BodyMesh",
    "BodyModel",
    "PlacedBody",
    "cpf_of",
    "default_body",
    "find_smplh",
    "load_smplh",
    "place_on_cpf",
    "place_on_root",
    "resolve_body",
    "skin",
]
