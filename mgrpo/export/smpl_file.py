"""``.smpl`` files, by Meshcapade's smplcodec."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np

from mgrpo.errors import InputError
from mgrpo.export.frames import FileFrame
from mgrpo.export.motion import PosedMotion
from mgrpo.export.smpl_parameters import smpl_parameters
from mgrpo.storage import atomic_write


def write_smpl(path: str | Path, motion: PosedMotion, frame: FileFrame | None = None) -> None:
    """Write a motion as a .smpl file of an SMPL-H body: float32, metres, radians.

    The format doesn't say which axis is up; default is y, that of SMPL's rest pose and of the scenes (MCS, which is
    glTF) that such files are put into.

    Args:
        path: file to write.
        motion: of one shape (:meth:`PosedMotion.with_one_shape`) and with frames at equal distances.
        frame: up axis; its unit must be metres.
    Raises:
        InputError: the package smplcodec is missing, or the gender is none of its.
        StorageError: the disk refuses.
    """
    codec = load_codec()
    poses, trans, betas = smpl_parameters(motion, (frame or FileFrame("y", "m")).up)
    try:
        gender = codec.SMPLGender.from_string(motion.gender)
    except ValueError as error:
        raise InputError(f"a .smpl file knows the genders neutral, male and female, not {motion.gender!r}") from error
    content = codec.SMPLCodec(
        smpl_version=codec.SMPLVersion.SMPLH,
        gender=gender,
        shape_parameters=betas.astype(np.float32),
        frame_count=len(motion),
        frame_rate=float(motion.fps),
        body_translation=trans.astype(np.float32),
        body_pose=poses[:, :22].astype(np.float32),
        left_hand_pose=poses[:, 22:37].astype(np.float32),
        right_hand_pose=poses[:, 37:].astype(np.float32),
    )
    stream = io.BytesIO()
    content.write_to_buffer(stream)
    atomic_write(Path(path), stream.getvalue())


def load_codec() -> Any:
    """The module smplcodec.codec; InputError that says how to install it where it is missing."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        from smplcodec import codec
    except ImportError as error:
        raise InputError(
            f"--to smpl needs the package smplcodec, which can't be loaded ({error}). Install it: "
            "pip install 'mgrpo[smpl]' (Python 3.11 or later)"
        ) from error
    finally:
        # importing it sets up the logging of the whole process, which is not a library's to do
        root.setLevel(level)
        root.handlers[:] = handlers
    return codec
