"""Bodies while the head is still moving: poses go in one at a time, frames come out with a known delay.

Every ``hop`` new frames at 30 Hz, the last window is sampled anew; frames that were handed out already enter it as
known, so the result goes on where it stood. A frame is handed out when ``lookahead`` later ones are known, because the
model guesses a frame better with what follows. The delay of a frame is therefore

    between lookahead and lookahead + hop - 1 frames, plus the time that one window takes to compute

which keeps up as long as computing takes less than ``hop`` frames last. Guidance is a part of computing a window: it
corrects the frames that are still open and goes on from those that were handed out, so that a foot stands where it
stood.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mgrpo.body.model import BodyModel
from mgrpo.data.pose_track import sample_poses
from mgrpo.data.rate import TARGET_FPS
from mgrpo.diffusion.sampler import NoiseKeys
from mgrpo.errors import InputError
from mgrpo.guidance import GuidanceConfig, SamplingGuidance
from mgrpo.infer.resampling import FRAME_NS
from mgrpo.infer.sampling import Known, SamplingSettings, fade, sample_window
from mgrpo.models.denoiser import Denoiser
from mgrpo.models.inference import InferenceDenoiser
from mgrpo.models.motion import PredictedMotion, decode_motion
from mgrpo.options import option


def require_live(guidance: GuidanceConfig) -> None:
    """Raise InputError for guidance that needs more than the head's poses, which are all that comes in live."""
    terms = guidance.terms
    if guidance.enabled and (terms.wrists or terms.fingers):
        needed = "tracked wrists" if terms.wrists == "tracks" else "HaMeR's hands"
        raise InputError(
            f"{option(guidance, 'mode')} {guidance.mode} needs {needed}, but live input has the head's poses alone; "
            "take no_hands or off, or record the hands too and use mgrpo infer"
        )


@dataclass(frozen=True, eq=False)
class LiveFrames:
    """Frames that are final."""

    frame_nums: np.ndarray
    """Numbers ``(F,)`` int64, 0 being the first pose."""
    times_ns: np.ndarray
    """Times ``(F,)`` int64."""
    T_world_cpf: np.ndarray
    """Head poses ``(F, 7)``, floor at z = 0."""
    motion: PredictedMotion
    """Motions ``(1, S, F, …)``, floor at z = 0."""
    seconds: float
    """Time that computing took, with guidance."""


class LiveInference:
    """Takes head poses as they come and hands out frames. One instance for one recording."""

    def __init__(
        self,
        denoiser: Denoiser,
        body: BodyModel,
        settings: SamplingSettings,
        *,
        guidance: GuidanceConfig | None = None,
        hop: int = 8,
        lookahead: int = 4,
        floor_m: float = 0.0,
        max_gap_s: float = 0.2,
    ) -> None:
        """
        Args:
            denoiser: in evaluation mode.
            body: on its device.
            settings: sampler, window, samples, seed; ``chunk`` is not used.
            guidance: costs and phases; a mode without observed hands, because poses alone come in. None: off.
            hop: new frames for which a window is sampled.
            lookahead: frames that must be known after one that is handed out.
            floor_m: height of the floor in the poses' world.
            max_gap_s: longest time between two poses that is interpolated; after a longer one, motion begins anew.
        Raises:
            InputError: hop and lookahead leave nothing of a window, or guidance needs hands.
        """
        window = settings.stitching.window
        if hop < 1 or lookahead < 0 or hop + lookahead >= window:
            raise InputError(
                f"--hop {hop} and --lookahead {lookahead} must be together less than the window of {window} frames, "
                "and --hop at least 1"
            )
        self.denoiser = InferenceDenoiser(denoiser, settings.precision)
        self.body, self.settings = body, settings
        self.guidance = GuidanceConfig("off") if guidance is None else guidance
        require_live(self.guidance)
        self.hop, self.lookahead, self.floor_m = hop, lookahead, floor_m
        self._gap_ns = round(max_gap_s * 1e9)
        self._device = self.denoiser.device
        self._begin: int | None = None
        self._last: tuple[int, np.ndarray] | None = None
        self._runs = 0
        self.late = 0
        """Poses that were passed over, because one with a later time had come before."""
        self.gaps = 0
        """Times that motion began anew, because poses were further apart than is interpolated."""
        self._reset(0)

    @property
    def latency_s(self) -> tuple[float, float]:
        """Shortest and longest time from a moment to its frame, without computing, seconds."""
        return self.lookahead / TARGET_FPS, (self.lookahead + self.hop - 1) / TARGET_FPS

    def _reset(self, first: int) -> None:
        """Begin anew with frame ``first`` as the pose before the first frame."""
        self._first = first
        self._poses: list[np.ndarray] = []
        self._states: Tensor | None = None  # of the frames from _start on, as last sampled
        self._start = first + 1  # number of the frame that _states begins with
        self._final = first + 1  # the next frame to hand out

    @property
    def _next(self) -> int:
        """Number of the next frame that there is no pose for."""
        return self._first + len(self._poses)

    def push(self, time_ns: int, T_world_cpf: np.ndarray) -> Iterator[LiveFrames]:
        """Take a pose ``(7,)`` at a time later than all before; yields the frames that become final by it.

        Poses that are not later are passed over.

        Raises:
            InputError: a pose that is none.
        """
        pose = np.asarray(T_world_cpf, np.float64)
        if pose.shape != (7,) or not np.isfinite(pose).all() or abs(np.linalg.norm(pose[:4]) - 1) > 1e-2:
            raise InputError(f"a pose must be 7 finite numbers, a unit quaternion wxyz and xyz, got {pose.tolist()}")
        pose = np.concatenate((pose[:4] / np.linalg.norm(pose[:4]), pose[4:]))
        if self._last is None or self._begin is None:
            self._begin, self._last = time_ns, (time_ns, pose)
            self._poses.append(pose)
            return
        before_ns, before = self._last
        if time_ns <= before_ns:
            self.late += time_ns < before_ns  # recorders write one twice
            return
        self._last = (time_ns, pose)
        frame = int(np.floor((time_ns - self._begin) / FRAME_NS + 1e-6))
        if time_ns - before_ns > self._gap_ns:
            self.gaps += 1
            yield from self.flush()
            self._reset(int(np.ceil((time_ns - self._begin) / FRAME_NS - 1e-6)))
            if abs((time_ns - self._begin) / FRAME_NS - self._first) < 1e-6:
                self._poses.append(pose)
            return
        if self._next <= frame:
            numbers = np.arange(self._next, frame + 1)
            times = self._begin + np.rint(numbers * FRAME_NS).astype(np.int64)
            both = np.stack((before, pose))
            for sampled in sample_poses(np.array([before_ns, time_ns]), both, times):
                self._poses.append(sampled)
                if self._next - self._final >= self.hop + self.lookahead:
                    yield self._sample(self._next - self.lookahead)

    def flush(self) -> Iterator[LiveFrames]:
        """Hand out what is left, at the end or before a gap."""
        if self._next > self._final:
            yield self._sample(self._next)

    @torch.no_grad()
    def _sample(self, final: int) -> LiveFrames:
        """Sample the last window and hand out the frames before ``final``."""
        began = time.perf_counter()
        stop = self._next
        start = max(self._first + 1, stop - self.settings.stitching.window)
        poses = np.stack(self._poses[start - 1 - self._first :])
        head = torch.from_numpy(poses).clone()
        head[:, 6] -= self.floor_m
        head = head.to(self._device, torch.float32)
        keys = NoiseKeys(
            self.settings.seed,
            self._runs,
            torch.zeros(1, dtype=torch.int64, device=self._device),
            self.settings.samples,
            share_initial=False,
        )
        self._runs += 1
        guide = None
        if self.guidance.enabled:
            guide = SamplingGuidance(self.guidance, self.denoiser.layout, self.body, head[None, 1:])
        states = sample_window(self.denoiser, head, keys, self.settings, known=self._known(start), guide=guide)
        self._states, self._start = states, start
        part = slice(self._final - start, final - start)
        cpf = head[1:][part]
        motion = decode_motion(self.denoiser.layout, states[None, :, part], cpf[None, None], self.body)
        numbers = np.arange(self._final, final)
        self._final = final
        self._forget(max(self._first, stop - self.settings.stitching.window - 1))
        assert self._begin is not None
        return LiveFrames(
            numbers,
            self._begin + np.rint(numbers * FRAME_NS).astype(np.int64),
            cpf.cpu().numpy(),
            motion,
            time.perf_counter() - began,
        )

    def _known(self, start: int) -> Known | None:
        """What earlier windows say of the frames from ``start`` on: those handed out stay, the guess of later ones
        fades."""
        if self._states is None:
            return None
        states = self._states[:, start - self._start :]
        done = self._final - start
        later = states.shape[1] - done
        weight = torch.cat((torch.ones(done), fade(later)))
        return Known(states, weight)

    def _forget(self, first: int) -> None:
        """Drop poses before frame ``first``, so that memory stays bounded."""
        if first > self._first:
            self._poses = self._poses[first - self._first :]
            self._first = first
