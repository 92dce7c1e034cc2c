"""One self-contained HTML page that plays a stage offline: the browser skins and draws it with WebGL."""

from __future__ import annotations

import base64
import json
from html import escape
from importlib import resources
from string import Template
from typing import Any, Literal

import numpy as np

from mgrpo.errors import InputError
from mgrpo.viz.comparison import BODY_PARENTS
from mgrpo.viz.film import Look
from mgrpo.viz.palette import DARK, LIGHT
from mgrpo.viz.stage import CONTACT, Actor, Stage, color_of, error_curve
from mgrpo.viz.surface import Surface

Theme = Literal["auto", "light", "dark"]
"""Background; auto: as the reader's system has it."""

MOST_PAGE_BYTES = 200_000_000
"""Larger pages take a browser too long to open."""

_STEP = 1e-4
"""Positions relative to the pelvis, and of the mesh, are kept in tenths of a millimetre."""


def render_stage_page(stage: Stage, look: Look, theme: Theme = "auto") -> str:
    """The page's text; ``look`` says what it shows at first, and its scheme is not used: the page has both.

    Raises InputError for a stage that would make a page of more than :data:`MOST_PAGE_BYTES`.
    """
    frames = sum(actor.samples for actor in stage.actors) * stage.frames
    if frames * 420 > MOST_PAGE_BYTES:
        raise InputError(
            f"a page with {frames:,} posed bodies would have {frames * 420 / 1e6:.0f} MB, more than "
            f"{MOST_PAGE_BYTES / 1e6:.0f}; take a part by --start and --seconds, or fewer samples by --samples"
        )
    data = json.dumps(_packed(stage, look), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    notes = "".join(f"<li>{escape(note)}</li>" for note in stage.notes)
    return Template(_asset("viewer.html")).substitute(
        title=escape(stage.title),
        theme=theme,
        style=_asset("viewer.css")
        .replace("/*light*/", LIGHT.css_variables())
        .replace("/*dark*/", DARK.css_variables()),
        script=_asset("viewer.js"),
        data=data,
        notes=notes,
    )


def _asset(name: str) -> str:
    return (resources.files("mgrpo.viz") / name).read_text("utf-8")


def _packed(stage: Stage, look: Look) -> dict[str, Any]:
    framing = stage.framing
    shapes: list[Surface] = []
    return {
        "title": stage.title,
        "fps": stage.fps,
        "frames": stage.frames,
        "start": stage.start,
        "parents": list(BODY_PARENTS),
        "show": look.show,
        "layout": look.layout,
        "contact": list(CONTACT),
        "step": _STEP,
        "view": {
            "centers": _base64(framing.centers.astype("<f4")),
            "azimuth": framing.azimuth,
            "height": framing.height,
            "across": framing.reach_across,
            "up": framing.reach_up,
        },
        "heads": [_base64(actor.T_world_cpf.astype("<f4")) for actor in stage.heads(stage.actors)],
        "actors": [
            _packed_actor(actor, shapes)
            | {"centers": _base64(centers.astype("<f4")), "head": _head_index(stage, actor)}
            for actor, centers in zip(stage.actors, stage.own_centers)
        ],
        "shapes": [_packed_shape(shape) for shape in shapes],
        "mesh": _packed_mesh(shapes[0]) if shapes else None,
    }


def _packed_actor(actor: Actor, shapes: list[Surface]) -> dict[str, Any]:
    curve = None
    if actor.error_mm is not None:
        frames, values = error_curve(actor.error_mm[0], 900)
        curve = [[round(float(x), 1) for x in frames], [_number(value) for value in values]]
    return {
        "name": actor.name,
        "color": [color_of(actor.color, False), color_of(actor.color, True)],
        "truth": actor.color == 0,
        "root": _base64(actor.joints[:, :, 0].astype("<f4")),
        "joints": _base64(_steps(actor.joints[:, :, 1:] - actor.joints[:, :, :1])),
        "quats": None if actor.quats is None else _base64(_steady(actor.quats)),
        "contacts": None
        if actor.contacts is None
        else _base64(np.round(255 * np.clip(np.nan_to_num(actor.contacts), 0, 1)).astype(np.uint8)),
        "samples": actor.samples,
        "shapes": [_shape_index(surface, shapes) for surface in actor.surfaces],
        "curve": curve,
        "error": None if actor.error_mm is None else _base64(actor.error_mm[0].astype("<f4")),
        "mean": _number(actor.mean_error_mm),
    }


def _head_index(stage: Stage, actor: Actor) -> int | None:
    """Which of the page's heads is the actor's."""
    paths = [one.T_world_cpf for one in stage.heads(stage.actors)]
    return next((index for index, path in enumerate(paths) if path is actor.T_world_cpf), None)


def _shape_index(surface: Surface, shapes: list[Surface]) -> int:
    for index, known in enumerate(shapes):
        if np.array_equal(known.rest_vertices, surface.rest_vertices):
            return index
    shapes.append(surface)
    return len(shapes) - 1


def _packed_shape(surface: Surface) -> dict[str, Any]:
    return {
        "rest": _base64(_steps(surface.rest_vertices)),
        "joints": [[round(float(value), 5) for value in joint] for joint in surface.rest_joints],
    }


def _packed_mesh(surface: Surface) -> dict[str, Any]:
    """What all shapes share: the body is one, whatever its shape."""
    bones, weights = surface.strongest
    return {"bones": _base64(bones), "weights": _base64(weights), "faces": _base64(surface.faces.astype("<u4"))}


def _steady(quats: np.ndarray) -> np.ndarray:
    """Quaternions (S, T, J, 4) in 16 bits, with the signs that make each the nearer of two to the one before it: what
    lies between two frames is then their mean."""
    products = (quats[:, 1:] * quats[:, :-1]).sum(axis=-1, keepdims=True)
    signs = np.cumprod(np.where(products < 0, -1.0, 1.0), axis=1)
    steady = np.concatenate((quats[:, :1], signs * quats[:, 1:]), axis=1)
    return np.round(32767 * np.nan_to_num(steady)).astype("<i2")


def _steps(metres: np.ndarray) -> np.ndarray:
    return np.clip(np.round(np.nan_to_num(metres) / _STEP), -32767, 32767).astype("<i2")


def _number(value: float) -> float | None:
    return round(float(value), 1) if np.isfinite(value) else None


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
