"""The side-by-side film: recorded, prior and post-trained body over the same frames, as mp4 and as GIF."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mgrpo.storage import replacing
from mgrpo.viz.camera import frame_clip
from mgrpo.viz.comparison import ROLE_LABELS, ROLES, MotionComparison
from mgrpo.viz.mannequin import mannequin_for
from mgrpo.viz.mp4 import Mp4Writer
from mgrpo.viz.palette import LIGHT, Palette, mix, rgb
from mgrpo.viz.scene import draw_panel, drawable, font


def render_frames(
    comparison: MotionComparison,
    *,
    frames: Sequence[int] | None = None,
    panel_width: int = 352,
    panel_height: int = 400,
    palette: Palette = LIGHT,
) -> Iterator[Image.Image]:
    """Frames of the film, one panel for each track side by side, with names, the frame's error and a time bar."""
    framing = frame_clip(comparison)
    mannequin = mannequin_for(comparison.parents)
    tracks = comparison.tracks()
    background, ink, muted, line = (rgb(color) for color in (palette.surface, palette.ink, palette.muted, palette.line))
    head, foot = 64, 24
    width, height = panel_width * len(tracks), head + panel_height + foot
    title, detail = font(19), font(15)
    for frame in range(comparison.frames) if frames is None else frames:
        picture = Image.new("RGB", (width, height), background)
        draw = ImageDraw.Draw(picture)
        for column, (role, track) in enumerate(tracks.items()):
            left = column * panel_width
            panel = draw_panel(
                comparison,
                role,
                frame,
                framing=framing,
                mannequin=mannequin,
                width=panel_width,
                height=panel_height,
                palette=palette,
            )
            picture.paste(panel, (left, head))
            draw.rectangle((left + 18, 16, left + 23, 50), fill=rgb(palette.of(role)))
            draw.text((left + 34, 14), ROLE_LABELS[role], fill=ink, font=title)
            text = drawable(f"clip {comparison.name}") if role == "ground_truth" else "grey: ground truth"
            if track.error_mm is not None and role != "ground_truth":
                error = float(track.error_mm[frame])
                shown = f"error {error:.0f} mm" if np.isfinite(error) else "error not available"
                text = f"{shown}; {text}"
            draw.text((left + 34, 36), text, fill=muted, font=detail)
        bar = height - foot // 2
        draw.line((18, bar, width - 18, bar), fill=line, width=3)
        done = 18 + (width - 36) * frame / max(comparison.frames - 1, 1)
        draw.line((18, bar, done, bar), fill=muted, width=3)
        draw.ellipse((done - 5, bar - 5, done + 5, bar + 5), fill=ink)
        yield picture


REST_SECONDS = 0.4
"""How long the last frame of a clip stands."""


def _gif_table(palette: Palette) -> Image.Image:
    """A palette picture of up to 256 colours: ramps between the scheme's colours, which is all that the film holds."""
    black, white = (0, 0, 0), (255, 255, 255)
    background, ink = rgb(palette.surface), rgb(palette.ink)
    colors = [mix(background, ink, step / 23) for step in range(24)]
    colors += [mix(background, rgb(palette.line), step / 3) for step in range(1, 4)]
    for role in ROLES:
        color = rgb(palette.of(role))
        colors += [mix(background, color, step / 17) for step in range(1, 18)]
        colors += [mix(color, black, 0.7 * step / 40) for step in range(1, 41)]
        colors += [mix(color, white, 0.35 * step / 12) for step in range(1, 13)]
    table = Image.new("P", (1, 1))
    flat = [channel for color in colors[:256] for channel in color]
    table.putpalette(flat + list(background) * (256 - len(flat) // 3))
    return table


def _save_gif(path: Path, pictures: Sequence[Image.Image], durations: Sequence[float]) -> None:
    """Write paletted pictures, each shown for its duration in seconds, as a looping GIF, put in place in one move.

    GIF counts time in hundredths of a second.
    """
    with replacing(path) as temporary:
        pictures[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=list(pictures[1:]),
            duration=[max(20, round(100 * seconds) * 10) for seconds in durations],
            loop=0,
            optimize=False,
        )


def film_clips(comparisons: Sequence[MotionComparison], frame_limit: int) -> list[MotionComparison]:
    """The clips that one film shows after each other: the first, and those after it that share its frame rate and its
    tracks, as long as all their frames stay within the limit."""
    clips = list(comparisons[:1])
    for clip in comparisons[1:]:
        same = clip.fps == clips[0].fps and list(clip.tracks()) == list(clips[0].tracks())
        if same and sum(chosen.frames for chosen in clips) + clip.frames <= frame_limit:
            clips.append(clip)
    return clips


def write_animation(
    comparisons: Sequence[MotionComparison],
    *,
    mp4: Path | None,
    gif: Path | None,
    frame_limit: int = 128,
    palette: Palette = LIGHT,
    on_frame: Callable[[int, int], None] | None = None,
) -> None:
    """Render comparisons (at least one) one after the other and write an mp4 and a smaller GIF (either may be None).

    Of short clips the film shows as many as fit into ``frame_limit`` frames; a first clip longer than that keeps its
    length in seconds and drops frames evenly. ``on_frame(done, total)`` reports progress. Raises OSError if a file
    can't be written, ImportError if an mp4 is asked for without imageio-ffmpeg.
    """
    clips = film_clips(comparisons, frame_limit)
    stride = max(1, -(-clips[0].frames // frame_limit))
    chosen = [(clip, range(0, clip.frames, stride)) for clip in clips]
    total = sum(len(frames) for _, frames in chosen)
    pictures = chain.from_iterable(render_frames(clip, frames=frames, palette=palette) for clip, frames in chosen)
    last_of_clip = set(accumulate(len(frames) for _, frames in chosen))
    fps = clips[0].fps / stride
    gif_stride = 2 if fps > 16 else 1
    table = _gif_table(palette)
    gif_frames: list[Image.Image] = []
    gif_seconds: list[float] = []
    with contextlib.ExitStack() as writing:
        writer = None
        if mp4 is not None:
            writer = Mp4Writer(writing.enter_context(replacing(mp4)), fps)
            writing.callback(writer.close)
        for index, picture in enumerate(pictures):
            ends = index + 1 in last_of_clip
            if writer is not None:
                for _ in range(1 + (round(REST_SECONDS * fps) if ends else 0)):
                    writer.add(picture)
            if gif is not None and index % gif_stride == 0:
                small = picture.resize(
                    (picture.width * 2 // 3, picture.height * 2 // 3), Image.Resampling.BILINEAR, reducing_gap=1.0
                )
                gif_frames.append(small.quantize(palette=table, dither=Image.Dither.NONE))
                gif_seconds.append(gif_stride / fps)
            if gif is not None and ends:
                gif_seconds[-1] += REST_SECONDS
            if on_frame is not None:
                on_frame(index + 1, total)
        if writer is not None:
            writer.close()
            writer.check()
        if gif is not None:
            _save_gif(gif, gif_frames, gif_seconds)
