"""The colours of mgrpo's pictures: one for each of ground truth, prior and post-trained model, the same in every
figure.

Grey, orange and blue differ in lightness as well as in hue, so they stay apart for every kind of colour blindness and
in a grey print. The light and the dark scheme hold the same roles; the HTML page takes both from here (as CSS
variables), PNGs and films the light one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Palette:
    """Colours by role, each as ``#rrggbb``."""

    ground_truth: str
    """Recorded motion."""
    prior: str
    """The diffusion prior before post-training."""
    post_trained: str
    """The model after GRPO."""
    accent: str
    """Curves that belong to none of the three (perceptual model, diversity, group health)."""
    prior_text: str
    """The prior's colour, dark (or light) enough for text on the surface."""
    warning: str
    """Things that got worse."""
    ink: str
    """Text."""
    muted: str
    """Secondary text."""
    line: str
    """Rules, grids and borders."""
    page: str
    """Background of the page."""
    surface: str
    """Background of cards, figures and the player."""

    def of(self, role: str) -> str:
        """The colour of a role by name; a role that doesn't exist is a programming error (AttributeError)."""
        return str(getattr(self, role))

    def css_variables(self) -> str:
        """The palette as CSS custom properties, ``--ground-truth: #…;`` and so on."""
        return " ".join(f"--{field.name.replace('_', '-')}: {self.of(field.name)};" for field in fields(self))


LIGHT = Palette(
    ground_truth="#56606f",
    prior="#e07b12",
    post_trained="#1f6fb5",
    accent="#0f7b6c",
    prior_text="#a5530a",
    warning="#b3261e",
    ink="#1c2127",
    muted="#5b6470",
    line="#e3e0d8",
    page="#faf8f4",
    surface="#ffffff",
)

DARK = Palette(
    ground_truth="#c5ccd6",
    prior="#f4a04a",
    post_trained="#62b2f2",
    accent="#4fc3a8",
    prior_text="#f6b06a",
    warning="#ff8f85",
    ink="#e8ebef",
    muted="#a0a9b5",
    line="#303741",
    page="#12151a",
    surface="#1a1f26",
)


def rgb(color: str) -> Rgb:
    """``#rrggbb`` as three integers 0 to 255."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def mix(a: Rgb, b: Rgb, amount: float) -> Rgb:
    """From colour ``a`` (amount 0) to ``b`` (amount 1), linear in sRGB."""
    return (
        round(a[0] + (b[0] - a[0]) * amount),
        round(a[1] + (b[1] - a[1]) * amount),
        round(a[2] + (b[2] - a[2]) * amount),
    )
