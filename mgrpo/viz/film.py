"""Pictures and films of a stage without a display: panels side by side or one for all, with the errors below."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from mgrpo.errors import InputError
from mgrpo.storage import replacing
from mgrpo.viz.camera import Camera
from mgrpo.viz.comparison import BODY_PARENTS, PARENTS
from mgrpo.viz.mannequin import Limb, Mannequin, mannequin_for
from mgrpo.viz.mp4 import Mp4Writer
from mgrpo.viz.painter import Skin, paint_silhouette, paint_skins
from mgrpo.viz.palette import Rgb, mix, rgb
from mgrpo.viz.raster import Panel
from mgrpo.viz.scene import ELEVATION, SUPERSAMPLING, drawable, font
from mgrpo.viz.stage import CONTACT, JOINTS, Actor, Stage, color_of, error_curve, palette_of, thinned
from mgrpo.viz.surface import rotation_matrices

Show = Literal["mesh", "skeleton", "both"]
"""What is drawn of a body."""

Layout = Literal["side", "overlay"]
"""Whether motions stand beside each other or in one place."""

SIZES = (320, 3840)
"""Least and most pixels along an edge."""

_ROD, _FINGER = 0.021, 0.007
_FRUSTUM = (0.075, 0.055, 0.14)
"""Half width, half height and length of the pyramid before the eyes, metres."""


@lru_cache
def skeleton_of(joints: int) -> Mannequin:
    """Thin limbs between the joints of a body with 22 or 52 of them, thinner ones along the fingers."""
    limbs = []
    for joint, parent in enumerate(PARENTS[:joints]):
        radius = _ROD if joint < JOINTS else _FINGER
        if parent >= 0:
            limbs.append(Limb(parent, joint, radius, radius * 0.8))
    return Mannequin(joints, (), tuple(limbs))


def frustum_corners(quat: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """The pyramid that shows where a head looks: its tip and its four far corners in the world, (5, 3) metres."""
    width, height, length = _FRUSTUM
    corners = [
        (0, 0, 0),
        *((x, y, length) for x, y in ((width, height), (-width, height), (-width, -height), (width, -height))),
    ]
    return np.array(corners) @ rotation_matrices(quat).T + origin


@dataclass(frozen=True)
class Look:
    """How a stage is drawn."""

    show: Show = "mesh"
    layout: Layout = "side"
    dark: bool = False
    width: int = 1280
    """Pixels; rounded up to an even number, which films need."""
    height: int = 720
    """Pixels; rounded up to an even number."""


class StagePainter:
    """Draws frames of a stage, one after the other, skinning what is shown. Raises InputError for a picture too small
    for its panels."""

    def __init__(self, stage: Stage, look: Look) -> None:
        self.stage = stage
        self.look = look
        self.width, self.height = look.width + look.width % 2, look.height + look.height % 2
        self.palette = palette_of(look.dark)
        self.background = rgb(self.palette.surface)
        self.head = 70
        self.foot = 118 if stage.compared else 46
        self.groups = [[actor] for actor in stage.actors] if look.layout == "side" else [list(stage.actors)]
        if self.width / len(self.groups) < 160 or self.height - self.head - self.foot < 120:
            raise InputError(
                f"{len(self.groups)} panels don't fit a picture of {look.width} x {look.height} pixels; a panel needs "
                "160 pixels across, and 310 in height are the least: make it larger, or draw all in one place"
            )

    def color(self, actor: Actor) -> Rgb:
        """An actor's colour in this scheme."""
        return rgb(color_of(actor.color, self.look.dark))

    def camera(self, frame: int, panel_width: int, group: Sequence[Actor] = ()) -> Camera:
        """The camera of a panel with these actors, in pixels of the larger picture that is averaged down."""
        framing = self.stage.framing
        alone = len(group) == 1
        centers = self.stage.own_centers[self.stage.actors.index(group[0])] if alone else framing.centers
        panel_height = self.height - self.head - self.foot
        return Camera(
            target=np.array((*centers[frame], framing.height), dtype=np.float64),
            azimuth=framing.azimuth,
            elevation=ELEVATION,
            distance=framing.distance(panel_width / panel_height),
            width=panel_width * SUPERSAMPLING,
            height=panel_height * SUPERSAMPLING,
        )

    def picture(self, frame: int) -> Image.Image:
        """One frame, RGB."""
        picture = self._still.copy()
        edges = self._edges()
        for left, right, group in zip(edges, edges[1:], self.groups):
            picture.paste(self._panel(frame, right - left, group), (left, self.head))
        draw = ImageDraw.Draw(picture)
        for left, group in zip(edges, self.groups):
            self._captions(draw, frame, left, group)
        if len(self.groups) > 1:
            for edge in edges[1:-1]:
                draw.line((edge, 18, edge, self.height - self.foot), fill=rgb(self.palette.line), width=1)
        self._cursor(draw, frame)
        return picture

    def _edges(self) -> list[int]:
        return [round(self.width * column / len(self.groups)) for column in range(len(self.groups) + 1)]

    def _panel(self, frame: int, width: int, group: Sequence[Actor]) -> Image.Image:
        camera = self.camera(frame, width, group)
        palette, background = self.palette, self.background
        panel = Panel(camera, background, mix(background, rgb(palette.line), 0.9))
        there = [actor for actor in group if actor.present[frame]]
        shadow = mix(background, (0, 0, 0), 0.4) if self.look.dark else mix(background, rgb(palette.line), 0.85)
        figure = mannequin_for(BODY_PARENTS)
        for actor in there:
            panel.shadow(figure, actor.joints[0, frame, :JOINTS], shadow)
        panel.floor()
        for actor in there:
            self._footprints(panel, actor, frame)
        heads = self.stage.heads(group)
        for actor in heads:
            self._head_path(panel, actor, frame)
        truth = self.stage.truth
        if truth is not None and truth not in group and truth.present[frame]:
            self._ghost(panel, truth, 0, frame, 0.27)
        for actor in there:
            for sample in range(actor.samples - 1, 0, -1):
                self._ghost(panel, actor, sample, frame, 0.2)
        self._bodies(panel, there, frame)
        for actor in heads:
            self._frustum(panel, actor, frame)
        return panel.image.reduce(SUPERSAMPLING)

    def _bodies(self, panel: Panel, actors: Sequence[Actor], frame: int) -> None:
        mark = rgb(CONTACT[self.look.dark])
        skins = []
        for actor in actors:
            vertices = actor.vertices(0, frame) if self.look.show != "skeleton" else None
            if vertices is not None:
                surface = actor.surfaces[0]
                marks = np.clip(surface.weights @ actor.marks(0, frame) * 1.2, 0, 1) * 0.85
                skins.append(Skin(vertices, surface.faces, self.color(actor), marks, mark))
        if self.look.show == "both":
            for skin in skins:
                paint_silhouette(panel.draw, panel.camera, skin._replace(color=mix(self.background, skin.color, 0.3)))
        else:
            paint_skins(panel.draw, panel.camera, skins)
        for actor in actors:
            if self.look.show == "mesh" and actor.surfaces:
                continue
            joints = actor.joints[0, frame]
            self._limbs(panel.body, joints, self.color(actor))
            xs, ys, scale = panel.camera.project(joints)
            for joint in np.flatnonzero(actor.touching(0, frame) > 0.5):
                radius = 0.038 * scale[joint]
                box = (xs[joint] - radius, ys[joint] - radius, xs[joint] + radius, ys[joint] + radius)
                panel.draw.ellipse(box, fill=mark)

    def _ghost(self, panel: Panel, actor: Actor, sample: int, frame: int, strength: float) -> None:
        color = mix(self.background, self.color(actor), strength)
        vertices = actor.vertices(sample, frame) if self.look.show == "mesh" else None
        if vertices is not None:
            paint_silhouette(panel.draw, panel.camera, Skin(vertices, actor.surfaces[sample].faces, color))
        else:
            self._limbs(panel.ghost, actor.joints[sample, frame], color)

    def _limbs(self, draw: Callable[[Mannequin, np.ndarray, Rgb], None], joints: np.ndarray, color: Rgb) -> None:
        """A body of limbs: those of flesh where a surface is asked for that it doesn't have, else the skeleton's."""
        if self.look.show == "mesh":
            draw(mannequin_for(BODY_PARENTS), joints[:JOINTS], color)
        else:
            draw(skeleton_of(len(joints)), joints, color)

    def _footprints(self, panel: Panel, actor: Actor, frame: int) -> None:
        color = mix(self.background, rgb(CONTACT[self.look.dark]), 0.45)
        for joint in np.flatnonzero(actor.touching(0, frame) > 0.5):
            point = actor.joints[0, frame, joint]
            if abs(point[2]) < 0.2:
                panel.disc(point, 0.095, color)

    def _head_path(self, panel: Panel, actor: Actor, frame: int) -> None:
        path = actor.T_world_cpf
        if path is None:
            return
        width, reach = panel.camera.height / 190, round(10 * self.stage.fps)
        muted, ink = rgb(self.palette.muted), rgb(self.palette.ink)
        for part, color in (
            (slice(frame, frame + reach), mix(self.background, muted, 0.3)),
            (slice(max(0, frame - reach), frame + 1), mix(self.background, ink, 0.55)),
        ):
            points = path[part, 4:]
            panel.path(points[thinned(len(points), 300)], color, width)

    def _frustum(self, panel: Panel, actor: Actor, frame: int) -> None:
        gaze = actor.gaze(frame)
        if gaze is None:
            return
        corners = frustum_corners(*gaze)
        order = (0, 1, 2, 0, 3, 4, 0, 1, 4, 3, 2)
        panel.path(corners[list(order)], mix(self.background, rgb(self.palette.ink), 0.8), panel.camera.height / 260)

    def _captions(self, draw: ImageDraw.ImageDraw, frame: int, left: int, group: Sequence[Actor]) -> None:
        step = (self.width - 40) // len(group) if len(group) > 1 else 0
        ink, muted = rgb(self.palette.ink), rgb(self.palette.muted)
        room = (self.width // len(self.groups) if len(group) == 1 else step) - 52
        for column, actor in enumerate(group):
            x = left + 20 + column * step
            draw.rectangle((x, 18, x + 4, 56), fill=self.color(actor))
            draw.text((x + 15, 16), _fitted(draw, actor.name, room, 19), fill=ink, font=font(19))
            draw.text((x + 15, 40), _fitted(draw, self._subtitle(actor, frame), room, 15), fill=muted, font=font(15))

    def _subtitle(self, actor: Actor, frame: int) -> str:
        if not actor.present[frame]:
            return "no frame here"
        others = "" if actor.samples == 1 else f"sample {actor.numbers[0]}, {actor.samples - 1} more pale"
        if actor.error_mm is not None and np.isfinite(actor.error_mm[0, frame]):
            return f"error {actor.error_mm[0, frame]:.0f} mm" + (f"; {others}" if others else "")
        return others or (self.stage.title if self.stage.title != actor.name else "")

    @cached_property
    def _chart(self) -> tuple[float, float, float, float, float]:
        """Left, right, top and bottom of the curves in pixels, and the error at the top in millimetres."""
        values = [np.nanmax(actor.error_mm[0]) for actor in self.stage.compared if np.isfinite(actor.error_mm[0]).any()]
        top = _round_up(float(max(values, default=0.0)))
        return 74.0, self.width - 150.0, self.height - self.foot + 34.0, self.height - 24.0, top

    @cached_property
    def _still(self) -> Image.Image:
        """Background, and the curves of all frames."""
        picture = Image.new("RGB", (self.width, self.height), self.background)
        if not self.stage.compared:
            return picture
        left, right, top, bottom, most = self._chart
        factor, height = 3, self.foot
        strip = Image.new("RGB", (self.width * factor, height * factor), self.background)
        draw, above = ImageDraw.Draw(strip), self.height - height
        for share in (0.0, 0.5, 1.0):
            y = (bottom + (top - bottom) * share - above) * factor
            draw.line((left * factor, y, right * factor, y), fill=rgb(self.palette.line), width=factor)
        for actor in self.stage.compared:
            frames, values = error_curve(actor.error_mm[0], 800)
            xs = left + (right - left) * frames / max(self.stage.frames - 1, 1)
            ys = bottom + (top - bottom) * values / most - above
            points = [(x * factor, y * factor) for x, y in zip(xs, ys)]
            for part in _unbroken(points):
                draw.line(part, fill=self.color(actor), width=2 * factor, joint="curve")
        picture.paste(strip.reduce(factor), (0, above))
        draw = ImageDraw.Draw(picture)
        muted = rgb(self.palette.muted)
        for share in (0.0, 0.5, 1.0):
            draw.text(
                (left - 10, bottom + (top - bottom) * share),
                f"{most * share:g}",
                fill=muted,
                font=font(14),
                anchor="rm",
            )
        draw.text((left, above + 14), "mean joint error, mm", fill=muted, font=font(14), anchor="lm")
        return picture

    def _cursor(self, draw: ImageDraw.ImageDraw, frame: int) -> None:
        ink, muted, line = rgb(self.palette.ink), rgb(self.palette.muted), rgb(self.palette.line)
        share = frame / max(self.stage.frames - 1, 1)
        if self.stage.compared:
            left, right, top, bottom, most = self._chart
            x = left + (right - left) * share
            draw.line((x, top - 6, x, bottom + 4), fill=ink, width=2)
            for actor in self.stage.compared:
                value = actor.error_mm[0, frame]
                if np.isfinite(value):
                    y = bottom + (top - bottom) * float(value) / most
                    draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=self.color(actor), outline=self.background, width=2)
        else:
            left, right, bottom = 20.0, self.width - 150.0, self.height - 24.0
            x = left + (right - left) * share
            draw.line((left, bottom, right, bottom), fill=line, width=4)
            draw.line((left, bottom, x, bottom), fill=muted, width=4)
            draw.ellipse((x - 6, bottom - 6, x + 6, bottom + 6), fill=ink)
        right_edge = self.width - 20
        middle = (self._chart[2] + self._chart[3]) / 2 if self.stage.compared else self.height - 24.0
        draw.text((right_edge, middle), f"{self.stage.seconds(frame):.2f} s", fill=ink, font=font(19), anchor="rm")


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 5, 8 times a power of ten: an even end of an axis."""
    if value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return next(float(step * power) for step in (1, 2, 4, 5, 8, 10) if step * power >= value * (1 - 1e-9))


def _unbroken(points: Sequence[tuple[float, float]]) -> Iterator[list[tuple[float, float]]]:
    """Stretches of points without NaN; a lone point becomes a short stroke."""
    part: list[tuple[float, float]] = []
    for point in [*points, (np.nan, np.nan)]:
        if np.isfinite(point).all():
            part.append(point)
        elif part:
            yield part if len(part) > 1 else [part[0], (part[0][0] + 1, part[0][1])]
            part = []


def _fitted(draw: ImageDraw.ImageDraw, text: str, room: float, size: int) -> str:
    """The text, cut with an ellipsis where it doesn't fit."""
    text = drawable(text)
    if draw.textlength(text, font=font(size)) <= room:
        return text
    while text and draw.textlength(text + "…", font=font(size)) > room:
        text = text[:-1]
    return text.rstrip() + "…"


def write_film(stage: Stage, look: Look, path: Path, *, on_frame: Callable[[int], None] = lambda done: None) -> None:
    """Every frame of a stage as an mp4, put in place in one move.

    Raises OSError if the file can't be written, ImportError without imageio-ffmpeg.
    """
    painter = StagePainter(stage, look)
    with replacing(path) as temporary:
        writer = Mp4Writer(temporary, stage.fps)
        try:
            for frame in range(stage.frames):
                writer.add(painter.picture(frame))
                on_frame(1)
        finally:
            writer.close()
        writer.check()


def write_still(stage: Stage, look: Look, path: Path, frame: int) -> None:
    """One frame of a stage as a PNG, put in place in one move. Raises OSError if the file can't be written."""
    picture = StagePainter(stage, look).picture(frame)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)
