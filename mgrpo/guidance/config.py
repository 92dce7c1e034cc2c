"""Which costs guidance minimises, and how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal, NamedTuple, get_args

from mgrpo.errors import InputError
from mgrpo.kernels import GuidanceWeights
from mgrpo.options import option, require

GuidanceMode = Literal["off", "no_hands", "aria_wrist_only", "aria_hamer", "hamer_wrist", "hamer_reproj2"]
Phase = Literal["inner", "post"]
GUIDANCE_MODES: tuple[str, ...] = get_args(GuidanceMode)


class ModeTerms(NamedTuple):
    """Costs of a mode besides those of the body."""

    wrists: Literal["", "tracks", "hamer"] = ""
    """Where wrist poses come from, if they have a cost."""
    fingers: bool = False
    """Cost of HaMeR's finger rotations."""
    hands: bool = False
    """Costs of the fingers' start and smoothness, where HaMeR saw hands at all."""
    reprojection: bool = False
    """Cost of HaMeR's image points, after sampling only."""


Optimisation = Literal["off", "post", "inner"]
"""Guidance where no hands are observed, as one option: none, after sampling, or within the steps as well."""

MODE_TERMS: dict[str, ModeTerms] = {
    "no_hands": ModeTerms(),
    "aria_wrist_only": ModeTerms(wrists="tracks", hands=True),
    "aria_hamer": ModeTerms(wrists="tracks", fingers=True, hands=True),
    "hamer_wrist": ModeTerms(wrists="hamer", fingers=True, hands=True),
    "hamer_reproj2": ModeTerms(wrists="hamer", fingers=True, hands=True, reprojection=True),
}


@dataclass(frozen=True)
class GuidanceConfig:
    """Guidance of sampled motions: feet that stand are kept from sliding, motion is smoothed, hands are drawn to where
    they were seen."""

    mode: GuidanceMode = "no_hands"
    """Costs: `off`; `no_hands` (feet and smoothness, the paper's rows with optimisation); with observed hands
    `aria_wrist_only` (tracked wrists), `aria_hamer` (tracked wrists and HaMeR's fingers), `hamer_wrist` (HaMeR's wrists
    and fingers), `hamer_reproj2` (the same and, after sampling, its image points)."""
    inner: bool = False
    """Also correct the prediction in every sampling step."""
    post: bool = True
    """Correct the sampled motion."""
    inner_iterations: int = 5
    """Most iterations within a sampling step."""
    post_iterations: int = 20
    """Most iterations after sampling."""
    damping: Literal["adaptive", "egoallo"] = "adaptive"
    """Rule of the damping: `egoallo` is the original's, which wastes steps on hard problems."""
    weights: GuidanceWeights = field(default_factory=GuidanceWeights)
    """Factors of the residuals."""
    hamer_wrist_position: float = 20.0
    """Factor of the position of HaMeR's wrists, in the place of that of tracked ones."""
    hamer_wrist_orientation: float = 5.0
    """Factor of their orientation."""

    def __post_init__(self) -> None:
        if self.mode not in GUIDANCE_MODES:
            raise InputError(f"{option(self, 'mode')} must be one of {', '.join(GUIDANCE_MODES)}, got {self.mode!r}")
        require(self, "inner_iterations", at_least=1, at_most=1000)
        require(self, "post_iterations", at_least=1, at_most=1000)

    @property
    def enabled(self) -> bool:
        """Whether anything is corrected."""
        return self.mode != "off" and (self.inner or self.post)

    @property
    def phases(self) -> str:
        """The phases by name, such as ``inner and post``; ``off``."""
        names = [name for name in ("inner", "post") if getattr(self, name)]
        return " and ".join(names) if self.enabled else "off"

    @property
    def terms(self) -> ModeTerms:
        """The mode's costs besides those of the body."""
        return MODE_TERMS.get(self.mode, ModeTerms())

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        mode = f"with {option(self, 'mode')} {self.mode}"
        if self.mode == "off":
            return {one.name: mode for one in fields(self) if one.name != "mode"}
        if not self.enabled:
            nothing = f"with {option(self, 'no_post')} and without {option(self, 'inner')}, which corrects nothing"
            return {one.name: nothing for one in fields(self) if one.name not in ("inner", "post")}
        unused: dict[str, str] = {}
        if not self.inner:
            unused["inner_iterations"] = f"without {option(self, 'inner')}"
        if not self.post:
            unused["post_iterations"] = f"with {option(self, 'no_post')}"
        if self.terms.wrists != "hamer":
            why = f"{mode}, which doesn't take HaMeR's wrists"
            unused |= {"hamer_wrist_position": why, "hamer_wrist_orientation": why}
        for costs, has in (
            (("wrist_position", "wrist_orientation"), self.terms.wrists == "tracks"),
            (("hand_prior", "hand_smoothness"), self.terms.hands),
            (("hand_rotations",), self.terms.fingers),
            (("keypoints",), self.terms.reprojection and self.post),
        ):
            if not has:
                unused |= {f"weights.{name}": f"{mode}, which has no such cost" for name in costs}
        return unused

    def iterations(self, phase: Phase) -> int:
        """Most iterations of a phase."""
        return self.inner_iterations if phase == "inner" else self.post_iterations

    def weights_for(self, hamer_was_there: bool) -> GuidanceWeights:
        """Factors of the mode, for motions whose hands HaMeR saw or not."""
        weights = self.weights
        if self.terms.wrists == "hamer":
            weights = replace(
                weights, wrist_position=self.hamer_wrist_position, wrist_orientation=self.hamer_wrist_orientation
            )
        if not (self.terms.hands and hamer_was_there):
            weights = replace(weights, hand_prior=0.0, hand_smoothness=0.0)
        return weights


def optimisation(wanted: Optimisation) -> GuidanceConfig:
    """The configuration of an option ``--guidance off|post|inner``."""
    return GuidanceConfig(mode="off" if wanted == "off" else "no_hands", inner=wanted == "inner")
