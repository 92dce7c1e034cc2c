"""How long the windows were that a model was trained with: what sampling should not go beyond."""

from __future__ import annotations

from pathlib import Path

import yaml


def trained_length(checkpoint: Path) -> int | None:
    """Frames of the training windows, from the run folder around a checkpoint folder.

    None where nothing tells: a checkpoint that was copied out of its run folder, or one that something else wrote.
    """
    if checkpoint.parent.name != "checkpoints":
        return None
    try:
        settings = yaml.safe_load((checkpoint.parent.parent / "config.resolved.yaml").read_text("utf-8"))
        length = settings["data"]["length"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return None
    return length if isinstance(length, int) and length > 1 else None
