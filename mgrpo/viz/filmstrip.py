"""The film strip: key frames of recorded, prior and post-trained body as one picture, for a README or a print."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from mgrpo.viz.camera import Framing, frame_clip
from mgrpo.viz.comparison import ROLE_LABELS, MotionComparison
from mgrpo.viz.mannequin import mannequin_for
from mgrpo.viz.palette import LIGHT, Palette, mix, rgb
from mgrpo.viz.scene import draw_panel, font


def key_frames(comparison: MotionComparison, count: int) -> list[int]:
    """Frames spread over the clip, both ends a little inside it."""
    frames = comparison.frames
    if frames <= count:
        return list(range(frames))
    return [int(frame) for frame in np.round(np.linspace(0.02, 0.98, count) * (frames - 1))]


def render_filmstrip(
    comparison: MotionComparison,
    *,
    columns: int = 7,
    cell_width: int = 190,
    cell_height: int = 250,
    palette: Palette = LIGHT,
) -> Image.Image:
    """Rows: the tracks; columns: key frames in time order. Below each prediction stands its error in that frame."""
    base = frame_clip(comparison)
    mannequin = mannequin_for(comparison.parents)
    tracks = comparison.tracks()
    chosen = key_frames(comparison, columns)
    margin, label, head, below = 28, 170, 40, 22
    row_height = cell_height + below
    width = margin * 2 + label + cell_width * len(chosen)
    height = margin * 2 + head + row_height * len(tracks)
    background, ink, muted = rgb(palette.surface), rgb(palette.ink), rgb(palette.muted)
    picture = Image.new("RGB", (width, height), background)
    draw = ImageDraw.Draw(picture)
    # the camera stands over the pelvis itself here: a still has no glide to protect, and cells stay filled
    pelvis = comparison.ground_truth.joints[0, :, 0, :2]
    centers = np.where(np.isfinite(pelvis), pelvis, base.centers)
    reach = comparison.ground_truth.joints[0, chosen, :, :2] - centers[chosen, None]
    across = np.linalg.norm(reach, axis=-1)
    framing = Framing(
        centers=centers,
        height=base.height,
        azimuth=base.azimuth,
        reach_across=float(across[np.isfinite(across)].max(initial=0.4)) + 0.05,
        reach_up=base.reach_up,
    )
    for column, frame in enumerate(chosen):
        x = margin + label + column * cell_width + cell_width // 2
        draw.text((x, margin + 12), f"{frame / comparison.fps:.2f} s", fill=muted, font=font(17), anchor="mm")
    for row, (role, track) in enumerate(tracks.items()):
        top = margin + head + row * row_height
        color = rgb(palette.of(role))
        draw.rectangle((margin, top + 18, margin + 6, top + (62 if role == "ground_truth" else 80)), fill=color)
        draw.text((margin + 16, top + 16), ROLE_LABELS[role], fill=ink, font=font(19))
        note = "recorded motion"
        if role != "ground_truth":
            note = ""
            if track.error_mm is not None and np.isfinite(track.error_mm).any():
                note = f"mean error {np.nanmean(track.error_mm):.0f} mm"
        draw.text((margin + 16, top + 42), note, fill=muted, font=font(16))
        if role != "ground_truth":
            draw.text((margin + 16, top + 64), "grey: ground truth", fill=muted, font=font(16))
        for column, frame in enumerate(chosen):
            panel = draw_panel(
                comparison,
                role,
                frame,
                framing=framing,
                mannequin=mannequin,
                width=cell_width,
                height=cell_height,
                head_path=False,
                palette=palette,
            )
            left = margin + label + column * cell_width
            picture.paste(panel, (left, top))
            if role != "ground_truth" and track.error_mm is not None and np.isfinite(track.error_mm[frame]):
                draw.text(
                    (left + cell_width // 2, top + cell_height + 8),
                    f"{track.error_mm[frame]:.0f} mm",
                    fill=mix(color, ink, 0.35),
                    font=font(16),
                    anchor="mm",
                )
    return picture
