"""Guidance of inferred motion: what the recording saw of the hands, in the form that :mod:`mgrpo.guidance` takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mgrpo.body.model import BodyModel
from mgrpo.data.rate import TARGET_FPS
from mgrpo.errors import InputError
from mgrpo.geometry import quat_normalize, rotmat_to_quat
from mgrpo.guidance import GuidanceConfig, HamerHands, HandObservations, SamplingGuidance, WristTracks
from mgrpo.infer.detections import HamerDetections
from mgrpo.infer.resampling import HeadMotion
from mgrpo.infer.trajectory import Floor, HeadTrajectory
from mgrpo.models.state import StateLayout


class RecordingGuidance:
    """Makes the guidance of parts of a recording: a :data:`mgrpo.infer.pipeline.GuideMaker`."""

    def __init__(
        self,
        config: GuidanceConfig,
        layout: StateLayout,
        body: BodyModel,
        trajectory: HeadTrajectory,
        motions: tuple[HeadMotion, ...],
        floor: Floor,
        hide_s: float = 0.0,
    ) -> None:
        """
        Args:
            config: costs and phases.
            layout: of the states.
            body: the skeleton, with fingers; on the device of the sampling.
            trajectory, motions, floor: what is sampled.
            hide_s: keep tracked wrists from guidance in every other ``hide_s`` seconds, see :func:`hidden`; 0: never.
        Raises:
            InputError: the mode needs hands that the recording doesn't have.
        """
        self._layout, self._body, self._floor = layout, body, floor
        self._hamer, self._hide_s = trajectory.hamer, hide_s
        terms = config.terms
        tracked = any(np.isfinite(motion.wrists).any() for motion in motions)
        if terms.wrists == "tracks" and not tracked:
            raise InputError(
                f"--guidance.mode {config.mode}: {trajectory.name} has no tracked wrists in these frames; give them "
                "by --wrists, or take no_hands"
            )
        if (terms.wrists == "hamer" or terms.fingers) and trajectory.hamer is None:
            raise InputError(
                f"--guidance.mode {config.mode}: {trajectory.name} has no hands of HaMeR; give them by --hamer, or "
                "take " + ("aria_wrist_only" if tracked else "no_hands")
            )
        if terms.wrists == "tracks" and all(motion.R_world_wrist is None for motion in motions):
            # controllers and plain tracks tell where a wrist is, not how it is turned
            config = replace(config, weights=replace(config.weights, wrist_orientation=0.0))
        self._config = config

    def __call__(self, motion: HeadMotion, T_world_cpf: Tensor, frames: slice) -> SamplingGuidance:
        """Guidance of some frames of a stretch, whose head poses ``(1, T, 7)`` have the floor at zero."""
        seen = HandObservations(
            wrists=wrist_observations(motion, frames, self._floor, self._hide_s),
            hamer=None if self._hamer is None else hamer_observations(self._hamer, motion, frames),
        )
        return SamplingGuidance(self._config, self._layout, self._body, T_world_cpf, observations=seen.to(T_world_cpf))


def hidden(frame_nums: np.ndarray, hide_s: float) -> np.ndarray:
    """Frames ``(T,)`` bool in which wrists are kept from guidance, so that a check can count them: of the recording's
    time, every second piece of ``hide_s`` seconds; none for 0."""
    if hide_s <= 0:
        return np.zeros(len(frame_nums), bool)
    return (frame_nums / TARGET_FPS // hide_s).astype(np.int64) % 2 == 1


def wrist_observations(motion: HeadMotion, frames: slice, floor: Floor, hide_s: float = 0.0) -> WristTracks:
    """Tracked wrists of some frames with the floor at zero; without orientation they stand as at rest. ``hide_s`` as of
    :func:`hidden`."""
    places = torch.from_numpy(motion.wrists[frames].copy())
    places[..., 2] -= floor.height
    quats = torch.zeros(*places.shape[:-1], 4, dtype=places.dtype)
    quats[..., 0] = 1.0
    confidence = torch.from_numpy(motion.wrist_confidence[frames].copy())
    confidence[torch.from_numpy(hidden(motion.frame_nums[frames], hide_s))] = 0.0
    if motion.R_world_wrist is not None:
        R = torch.from_numpy(motion.R_world_wrist[frames].copy())
        known = torch.isfinite(R).all(-1).all(-1)
        quats = torch.where(known[..., None], quat_normalize(rotmat_to_quat(torch.nan_to_num(R))), quats)
        confidence = torch.where(known, confidence, 0.0)
    return WristTracks(torch.cat((quats, places), dim=-1), confidence)


def hamer_observations(detections: HamerDetections, motion: HeadMotion, frames: slice) -> HamerHands:
    """HaMeR's hands of some frames."""
    assert motion.hands is not None
    rows = motion.hands[frames]
    count = len(rows)
    fingers, turns = np.tile(np.eye(3), (count, 2, 15, 1, 1)), np.tile(np.eye(3), (count, 2, 1, 1))
    points = np.zeros((count, 2, 21, 3))
    for side, hands in enumerate(detections.hands):
        found = rows[:, side] >= 0
        row = rows[found, side]
        fingers[found, side] = hands.mano_hand_pose[row]
        turns[found, side] = hands.mano_hand_global_orient[row]
        points[found, side] = hands.keypoints_3d[row]
    return HamerHands(
        finger_rotmats=torch.from_numpy(fingers),
        R_cam_wrist=torch.from_numpy(turns),
        keypoints_cam=torch.from_numpy(points),
        seen=torch.from_numpy(rows >= 0),
        T_cpf_cam=torch.from_numpy(detections.T_cpf_cam),
    )


def hamer_wrists(detections: HamerDetections, motion: HeadMotion) -> np.ndarray:
    """HaMeR's wrists in the frames of a stretch ``(F, 2, 3)``, metres in the trajectory's world, NaN where not seen."""
    found = hamer_observations(detections, motion, slice(None))
    tracks = found.wrists(torch.from_numpy(motion.T_world_cpf))
    seen = tracks.confidence[..., None] > 0
    return torch.where(seen, tracks.T_world_wrist[..., 4:], torch.nan).numpy()
