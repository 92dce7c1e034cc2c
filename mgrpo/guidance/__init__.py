"""Guidance: sampled motions corrected by an optimiser, during sampling (*inner*) and after it (*post*).

Feet that are predicted to stand are kept from sliding, the motion is smoothed, and wrists and fingers are drawn to
where a device saw them; the head stays exactly where it was recorded. :func:`guide` corrects motions,
:class:`SamplingGuidance` is what the samplers take.
"""

from mgrpo.guidance.config import GUIDANCE_MODES, GuidanceConfig, GuidanceMode, Optimisation, Phase, optimisation
from mgrpo.guidance.guide import GuidedMotion, guide
from mgrpo.guidance.observations import HamerHands, HandObservations, WristTracks
from mgrpo.guidance.sampling import SamplingGuidance

__all__ = [
    "GUIDANCE_MODES",
    "GuidanceConfig",
    "GuidanceMode",
    "GuidedMotion",
    "HamerHands",
    "HandObservations",
    "Optimisation",
    "Phase",
    "SamplingGuidance",
    "WristTracks",
    "guide",
    "optimisation",
]
