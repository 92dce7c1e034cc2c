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
    # per joint three numbers of 16 bits for its place and four for its turn; the rest is small; all in base64
    needed = sum((14 * len(actor.parents) + 40) * actor.samples for actor in stage.actors) * stage.frames * 4 // 3
    if needed > MOST_PAGE_BYTES:
        raise InputError(
            f"a page with {frames:,} posed bodies would have {needed / 1e6:.0f} MB, more than "
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
    meshes: list[Surface] = []
    return {
        "title": stage.title,
        "fps": stage.fps,
        "frames": stage.frames,
        "start": stage.start,
        "parents": list(max((actor.parents for actor in stage.actors), key=len)),
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
            _packed_actor(actor, shapes, meshes)
            | {"centers": _base64(centers.astype("<f4")), "head": _head_index(stage, actor)}
            for actor, centers in zip(stage.actors, stage.own_centers)
        ],
        "shapes": [_packed_shape(shape, meshes) for shape in shapes],
        "meshes": [_packed_mesh(mesh) for mesh in meshes],
    }


def _packed_actor(actor: Actor, shapes: list[Surface], meshes: list[Surface]) -> dict[str, Any]:
    curve = None
    if actor.error_mm is not None:
        curves = [error_curve(values, 900) for values in actor.error_mm]
        curve = [
            [round(float(x), 1) for x in curves[0][0]],
            [[_number(value) for value in values] for _, values in curves],
        ]
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
        "count": len(actor.parents),
        "samples": actor.samples,
        "numbers": list(actor.numbers),
        "shapes": [_shape_index(surface, shapes, meshes) for surface in actor.surfaces],
        "curve": curve,
        "error": None if actor.error_mm is None else _base64(actor.error_mm.astype("<f4")),
        "means": [_number(value) for value in actor.mean_errors_mm],
    }


def _head_index(stage: Stage, actor: Actor) -> int | None:
    """Which of the page's heads is the actor's."""
    paths = [one.T_world_cpf for one in stage.heads(stage.actors)]
    return next((index for index, path in enumerate(paths) if path is actor.T_world_cpf), None)


def _shape_index(surface: Surface, shapes: list[Surface], meshes: list[Surface]) -> int:
    """Which of the page's shapes a surface is; one that is new is added, and its weights where these are new."""
    if not any(_same_mesh(known, surface) for known in meshes):
        meshes.append(surface)
    for index, known in enumerate(shapes):
        if _same_mesh(known, surface) and np.array_equal(known.rest_vertices, surface.rest_vertices):
            return index
    shapes.append(surface)
    return len(shapes) - 1


def _same_mesh(a: Surface, b: Surface) -> bool:
    """Whether two surfaces differ in shape alone: one body, with or without fingers."""
    return np.array_equal(a.weights, b.weights) and np.array_equal(a.faces, b.faces)


def _packed_shape(surface: Surface, meshes: list[Surface]) -> dict[str, Any]:
    return {
        "mesh": next(index for index, known in enumerate(meshes) if _same_mesh(known, surface)),
        "rest": _base64(_steps(surface.rest_vertices)),
        "joints": [[round(float(value), 5) for value in joint] for joint in surface.rest_joints],
    }


def _packed_mesh(surface: Surface) -> dict[str, Any]:
    """What bodies of all shapes share."""
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
