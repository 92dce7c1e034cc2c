"""Evaluation protocols: everything that moves a published number, fixed under one name.

Section letters mean the fact sheet ``egoallo.md``; ``method.md`` 6 lists where published definitions differ from usual
ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mgrpo.diffusion.config import SamplerConfig, StitchingConfig

ProtocolName = Literal["egoallo", "paper", "mgrpo"]


@dataclass(frozen=True)
class Protocol:
    """One way of evaluating: which windows, which sampler, which measures. The data and the models stay free."""

    name: ProtocolName
    """Name on the command line."""
    title: str
    """Heading of its table."""
    source: str
    """Where it comes from, for the notes under its table."""
    lengths: tuple[int, ...]
    """Lengths T in frames (30 per second) that it is defined for; the first is taken where none is asked for."""
    slices: Literal["deterministic", "every"]
    """``deterministic``: EgoAllo's fixed slices of T + 1 poses (:func:`mgrpo.data.slices.slice_starts`);
    ``every``: every window of every clip, one after the other."""
    mirrored: bool
    """Whether the mirror image of each clip is evaluated too."""
    seeds: tuple[int, ...]
    """Runs: every window is sampled once with each seed."""
    samples: int
    """Samples for each window and seed."""
    groups: tuple[tuple[str, tuple[str, ...]], ...]
    """Columns in order, under their headings: names of measures."""
    family: Literal["standard", "paper"]
    """Definitions of the measures where published and usual ones differ."""
    sampler: SamplerConfig = field(
        default_factory=lambda: SamplerConfig(kernel="egoallo", eta=0.8, steps=30, project=True)
    )
    """EgoAllo's own sampler (D.2 to D.4): 30 steps, body rotations projected inside every step."""
    stitching: StitchingConfig | None = None
    """How motion is cut into windows for the sampler; None: left to the options."""
    floor_z_m: float = 0.0
    """Height of the floor in the world, for conditions and measures alike (G). The data are on it already."""
    betas: Literal["per_frame"] = "per_frame"
    """Body of the forward kinematics: the shape that was predicted for each frame (G); the truth has its own."""
    table: str | None = None
    """Key of the published rows that may stand beside its numbers (:mod:`mgrpo.eval.published`); None: no published
    number has these definitions."""
    remarks: tuple[str, ...] = ()
    """What is known to differ from the source, for the notes under the table."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the measures in the order of the table."""
        return tuple(name for _, names in self.groups for name in names)


_EGOALLO_WINDOWS = StitchingConfig(blend="egoallo", window=128, overlap=32)
"""128 frames are two windows there, blended at every step (D.5 c)."""

_JOINTS, _VISUAL = "Joint accuracy", "Visual quality"

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="egoallo",
            title="EgoAllo's evaluation",
            # Section G. Its documented numbers include guidance after sampling.
            source="EgoAllo's evaluation script: deterministic slices, mirrored copies too, one sample per window",
            lengths=(128, 32),
            slices="deterministic",
            mirrored=True,
            seeds=(0,),
            samples=1,
            groups=(("", ("mpjpe_mm", "pa_mpjpe_egoallo_mm", "head_position_mm", "gnd", "fs_egoallo_m")),),
            family="paper",
            table="egoallo",
            stitching=_EGOALLO_WINDOWS,
        ),
        Protocol(
            name="paper",
            title="Protocol of MotionGRPO's Table 1",
            # Section 4.1 and appendices C to E of the paper; definitions of the measures: method.md 6. The mirrored
            # copies are inferred: every pair of accuracy and wrong count that it prints fits 344 windows, which
            # EgoAllo's test split has with them only (section G).
            source="MotionGRPO, section 4.1 and appendices: 128 frames, EgoAllo's deterministic slices, mean of 5 "
            "runs; definitions as in its first author's early code",
            lengths=(128,),
            slices="deterministic",
            mirrored=True,
            seeds=(0, 1, 2, 3, 4),
            samples=1,
            groups=(
                (_JOINTS, ("mpjpe_mm", "pa_mpjpe_egoallo_mm", "mpjve_mm_s", "mpjre_paper_deg")),
                (_VISUAL, ("jitter_ratio", "gp_sum_m", "fs_egoallo_m")),
            ),
            family="paper",
            table="paper",
            stitching=_EGOALLO_WINDOWS,
        ),
        Protocol(
            name="mgrpo",
            title="mgrpo's evaluation",
            source="ours: the usual definitions, every window of every clip once, no mirrored copies (they are no new "
            "recordings), several samples, so that the mean of samples shows what averaging alone would gain",
            lengths=(128, 32),
            slices="every",
            mirrored=False,
            seeds=(0, 1, 2, 3, 4),
            samples=4,
            groups=(
                (_JOINTS, ("mpjpe_mm", "pa_mpjpe_mm", "mpjve_mm_s", "mpjre_geodesic_deg", "head_position_mm")),
                (_VISUAL, ("jitter_m_s3", "gp_mean_mm", "fs_mm_per_contact_frame")),
                ("Samples", ("diversity_joint_std_mm",)),
            ),
            family="standard",
        ),
    )
}
"""Every protocol by name."""
