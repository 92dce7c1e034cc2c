"""Fixtures that several tests of the loops share."""

from __future__ import annotations

import pytest

from mgrpo.models import denoiser as denoiser_module
from mgrpo.train.motion_data import MotionDataConfig
from mgrpo.train.prior import PriorConfig
from tests.train import motion_files as _files


@pytest.fixture(scope="module")
def made_up_clips(tmp_path_factory):
    """A folder of made-up clips."""
    return _files.write_clips(tmp_path_factory.mktemp("made_up") / "clips")


@pytest.fixture
def prior_config(made_up_clips, tmp_path, monkeypatch):
    """Six iterations of a tiny prior (preset ``test``), every feature of the loop in use."""
    monkeypatch.setitem(denoiser_module.DENOISER_PRESETS, "test", _files.TINY_DENOISER)
    return PriorConfig(
        output=tmp_path / "run",
        preset="test",
        data=MotionDataConfig(motion=str(made_up_clips), length=8, validation=("made_up_3",), held_out=("made_up_4",)),
        iterations=6,
        batch_size=4,
        learning_rate=3e-3,
        warmup=2,
        validate_every=2,
        checkpoint_every=2,
        device="cpu",
    )
