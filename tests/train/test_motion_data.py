"""Which clips each loop may see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mgrpo.body import default_body
from mgrpo.commands.evaluate import EvaluateConfig, evaluation_windows
from mgrpo.data import (
    DEMO_HELD_OUT,
    DEMO_POST_TRAINING,
    DEMO_VALIDATION,
    WindowSampler,
    load_motion,
    mirror,
    save_clip,
)
from mgrpo.errors import InputError
from mgrpo.train.motion_data import MotionDataConfig, load_motion_data, torn_recordings
from tests.train import motion_files as files


def drawn(sampler: WindowSampler) -> set[str]:
    return {name for iteration in range(8) for name in sampler.batch(iteration, 100).names}


def test_the_demo_motion_keeps_clips_for_post_training() -> None:
    data = load_motion_data(MotionDataConfig(), seed=0)
    prior, post_training = drawn(data.train), drawn(data.post_training)
    assert post_training == set(DEMO_POST_TRAINING) == set(data.clip_names["post_training"])
    assert len(prior) == 7 and not prior & {*DEMO_POST_TRAINING, *DEMO_VALIDATION, *DEMO_HELD_OUT}
    assert drawn(data.both) == prior | post_training


def test_without_such_clips_post_training_uses_the_priors() -> None:
    config = MotionDataConfig(validation=("punch",), held_out=("run", "kick"))
    data = load_motion_data(config, seed=0)
    assert data.clip_names["post_training"] == () and len(data.clip_names["train"]) == 12
    assert drawn(data.post_training) == drawn(data.train) == drawn(data.both) == set(data.clip_names["train"])


def test_naming_clips_for_post_training_alone_is_refused() -> None:
    with pytest.raises(InputError, match=r"--data\.validation is empty .* name clips for validation and held-out"):
        load_motion_data(MotionDataConfig(post_training=("walk",)), seed=0)


def test_evaluation_knows_the_part() -> None:
    windows = evaluation_windows(EvaluateConfig(checkpoint=(Path("unused"),), part="post_training"))
    assert set(windows.names) == set(DEMO_POST_TRAINING)
    named = {"validation": ("punch",), "held_out": ("run",)}
    with pytest.raises(InputError, match="post_training: no clip is kept for it"):
        evaluation_windows(EvaluateConfig(checkpoint=(Path("unused"),), part="post_training", **named))
    windows = evaluation_windows(
        EvaluateConfig(checkpoint=(Path("unused"),), part="post_training", post_training=("walk",), **named)
    )
    assert set(windows.names) == {"walk"}


def test_mirror_images_of_known_motion_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever names clips for the evaluation may forget their mirrored copies, or name these alone."""
    folder = files.write_clips(tmp_path / "clips")
    body = default_body()
    for name in ("made_up_3", "made_up_4"):
        (clip,) = (clip for clip in load_motion(str(folder), body) if clip.name == name)
        save_clip(folder / f"{name}_reflect.npz", replace(mirror(clip, body), name=f"{name}_reflect"))
    config = MotionDataConfig(motion=str(folder), length=8, validation=("made_up_2",), held_out=("made_up_3",))
    data = load_motion_data(config, seed=0)
    (told,) = torn_recordings(data.clip_names)
    assert told == (
        "the held-out part has mirror images of train clips (1, such as made_up_3 of made_up_3_reflect), so it is no "
        "unknown motion; name both for --data.held-out"
    )
    assert told in " ".join(capsys.readouterr().err.split())
    load_motion_data(replace(config, held_out=("made_up_3*",)), seed=0)  # the other pair is trained on, both of it
    assert "mirror images" not in capsys.readouterr().err
    names = {"train": ("a", "b"), "post_training": (), "validation": ("a", "b_reflect"), "held_out": ("c",)}
    assert len(torn_recordings(names)) == 1, "what is validated on though it is trained on, was asked for"
