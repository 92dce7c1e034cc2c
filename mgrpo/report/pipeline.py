"""The picture of what was run, as inline SVG: from recorded motion to the evaluated, post-trained model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape


def _box(x: float, y: float, width: float, height: float, color: str, head: str, lines: Sequence[str]) -> str:
    """A box with a coloured left edge, a heading and small lines."""
    texts = "".join(
        f'<text class="small" x="{x + 18:g}" y="{y + 48 + 17 * i:g}">{escape(line)}</text>'
        for i, line in enumerate(lines)
    )
    return (
        f'<rect class="box" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8"/>'
        f'<rect class="edge c-{color}" x="{x:g}" y="{y + 10:g}" width="5" height="{height - 20:g}" rx="2"/>'
        f'<text class="head" x="{x + 18:g}" y="{y + 27:g}">{escape(head)}</text>{texts}'
    )


def _arrow(
    points: Sequence[tuple[float, float]],
    label: str = "",
    at: tuple[float, float] | None = None,
    anchor: str = "middle",
) -> str:
    """A line through points with a head at its end, and a small label."""
    (x1, y1), (x2, y2) = points[-2], points[-1]
    angle = math.atan2(y2 - y1, x2 - x1)
    tip = [(x2, y2), *((x2 - 9 * math.cos(angle + turn), y2 - 9 * math.sin(angle + turn)) for turn in (-0.42, 0.42))]
    line = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
    head = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in tip) + "Z"
    text = (
        f'<text class="small" x="{at[0]:g}" y="{at[1]:g}" text-anchor="{anchor}">{escape(label)}</text>' if at else ""
    )
    return f'<path class="flow" d="{line}"/><path class="tipmark" d="{head}"/>{text}'


def _squiggle(x: float, y: float, width: float) -> str:
    """A smooth noise curve, as a sign for Perlin noise."""
    points = []
    for step in range(41):
        phase = step / 40
        value = math.sin(8.5 * phase + 0.6) + 0.6 * math.sin(17 * phase + 2) + 0.3 * math.sin(29 * phase)
        points.append(f"{x + width * phase:.1f} {y - 6.5 * value:.1f}")
    return f'<path class="noise" d="M{"L".join(points)}"/>'


_SPOKEN = (
    "Diagram: recorded motion trains the diffusion prior; the prior's samples and the recordings train the "
    "perceptual model; GRPO starts "
    "from the prior, sees the head path with Perlin noise, and is rewarded by the perceptual model and four joint "
    "errors; prior and "
    "post-trained model are compared on held-out clips."
)


def pipeline_svg() -> str:
    """The diagram twice: wide for screens and print, tall for phones; the stylesheet shows one of them."""
    wide = "".join(
        (
            _arrow([(172, 72), (226, 72)]),
            _arrow([(86, 122), (86, 262), (226, 262)], "recordings", (96, 251), "start"),
            _arrow([(330, 122), (330, 208)], "samples", (340, 170), "start"),
            _arrow([(436, 72), (506, 72)], "weights", (470, 62)),
            _arrow([(436, 262), (472, 262), (472, 104), (506, 104)], "visual reward", (480, 170), "start"),
            _arrow([(633, 208), (633, 138)], "shifts the head path", (643, 182), "start"),
            _arrow([(756, 72), (794, 72)]),
            _box(0, 22, 172, 100, "ground-truth", "Recorded motion", ("joints, contacts,", "path of the head")),
            _box(
                230,
                22,
                206,
                100,
                "prior",
                "Diffusion prior",
                ("learns to draw body motion", "from the head's path alone"),
            ),
            _box(
                230,
                212,
                206,
                100,
                "accent",
                "Perceptual model",
                ("learns to tell recordings", "from the prior's samples"),
            ),
            _box(
                510,
                22,
                246,
                112,
                "post-trained",
                "GRPO post-training",
                ("groups of samples per head path,", "visual + four joint rewards,", "advantage of each, then summed"),
            ),
            _box(510, 212, 246, 100, "accent", "Perlin noise", ("smooth, training only",)),
            _squiggle(532, 288, 200),
            _box(
                798,
                22,
                202,
                100,
                "ground-truth",
                "Evaluation",
                ("held-out clips, prior", "against post-trained,", "same sampler, same noise"),
            ),
        )
    )
    tall = "".join(
        (
            _arrow([(180, 92), (180, 120)]),
            _arrow([(180, 214), (180, 252)], "samples", (190, 237), "start"),
            _arrow([(180, 346), (180, 384)], "visual reward", (190, 369), "start"),
            _arrow([(30, 214), (30, 384)], "weights", (38, 237), "start"),
            _arrow([(180, 538), (180, 500)], "shifts the head path", (190, 524), "start"),
            _arrow([(330, 496), (330, 664)]),
            _box(0, 8, 360, 84, "ground-truth", "Recorded motion", ("joints, contacts, path of the head",)),
            _box(
                0,
                124,
                360,
                90,
                "prior",
                "Diffusion prior",
                ("learns to draw body motion", "from the head's path alone"),
            ),
            _box(
                60,
                256,
                300,
                90,
                "accent",
                "Perceptual model",
                ("learns to tell recordings", "from the prior's samples"),
            ),
            _box(
                0,
                388,
                360,
                108,
                "post-trained",
                "GRPO post-training",
                ("groups of samples per head path,", "visual + four joint rewards,", "advantage of each, then summed"),
            ),
            _box(0, 542, 300, 88, "accent", "Perlin noise", ("smooth, training only",)),
            _squiggle(22, 612, 250),
            _box(
                0,
                668,
                360,
                92,
                "ground-truth",
                "Evaluation",
                ("held-out clips, prior against post-trained,", "same sampler, same noise"),
            ),
        )
    )
    label = escape(_SPOKEN, quote=True)
    return (
        f'<svg class="wide" viewBox="0 0 1002 326" role="img" aria-label="{label}">{wide}</svg>'
        f'<svg class="tall" viewBox="0 0 362 768" role="img" aria-label="{label}">{tall}</svg>'
    )
