"""Guidance of the packed states that samplers work on."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mgrpo.body.model import BodyModel
from mgrpo.guidance.config import GuidanceConfig, Phase
from mgrpo.guidance.guide import GuidedMotion, guide
from mgrpo.guidance.observations import HamerHands, HandObservations, WristTracks
from mgrpo.models.state import StateLayout, pack_state, unpack_state


class SamplingGuidance:
    """Corrects states ``(B, G, T, D)`` of B head trajectories, each group with its own: within the steps of sampling,
    and after them.

    ``sample(..., guidance=g.hook(steps))`` corrects within the steps, ``g.finish(result.x0)`` the samples: so a sampler
    that need not stop in its steps doesn't.
    """

    def __init__(
        self,
        config: GuidanceConfig,
        layout: StateLayout,
        body: BodyModel,
        T_world_cpf: Tensor,
        *,
        mask: Tensor | None = None,
        observations: HandObservations | None = None,
        backend: str | None = None,
    ) -> None:
        """
        Args:
            config: costs and phases.
            layout: of the states.
            body: the skeleton; with fingers for a layout that has them and a mode that moves them.
            T_world_cpf: head poses ``(B, T, 7)``, as for sampling.
            mask: ``(B, T)`` bool, True = a real frame.
            observations: of the hands, leading axes ``(B,)`` or none (the same for all).
            backend: see :func:`~mgrpo.guidance.guide.guide`.
        """
        self.config = config
        self.layout = layout
        self.body = body
        self._T_world_cpf = T_world_cpf.unsqueeze(1)
        self._mask = None if mask is None else mask.unsqueeze(1)
        self._observations = None if observations is None else _for_groups(observations)
        self._backend = backend

    def hook(self, steps: int, held: int = 0) -> Callable[[Tensor, int], Tensor] | None:
        """What samplers of so many steps take as ``guidance``; None where nothing is corrected within the steps. The
        result, of which they ask as well, is left to :meth:`finish`. ``held``: first frames that stay as they are."""
        if not (self.config.enabled and self.config.inner):
            return None

        def correct(states: Tensor, done: int) -> Tensor:
            return self.guided(states, "inner", held)[0] if done < steps else states

        return correct

    def finish(self, states: Tensor, held: int = 0) -> Tensor:
        """The samples ``(B, G, T, D)``, corrected if the configuration has a ``post`` phase, but for the first ``held``
        frames."""
        if not (self.config.enabled and self.config.post):
            return states
        return self.guided(states, "post", held)[0]

    def guided(self, states: Tensor, phase: Phase, held: int = 0) -> tuple[Tensor, GuidedMotion]:
        """States with corrected rotations, and how guidance went. Shapes and contacts stay; fingers that have no cost
        stay as they are, and so do the first ``held`` frames (see :func:`~mgrpo.guidance.guide.guide`)."""
        parts = unpack_state(self.layout, states)
        moves_fingers = parts.hand_rotmats is not None and self.config.terms.hands
        guided = guide(
            self.body,
            parts.body_rotmats,
            parts.betas,
            parts.contacts,
            self._T_world_cpf,
            hand_rotmats=parts.hand_rotmats if moves_fingers else None,
            mask=self._mask,
            held=held,
            observations=self._observations,
            config=self.config,
            phase=phase,
            backend=self._backend,
        )
        hands = guided.hand_rotmats if moves_fingers else parts.hand_rotmats
        packed = pack_state(
            self.layout,
            parts.betas,
            guided.body_rotmats.to(states.dtype),
            parts.contacts,
            None if hands is None else hands.to(states.dtype),
        )
        return packed, guided


def _for_groups(observations: HandObservations) -> HandObservations:
    """The observations with an axis for the members of a group, where they have one for the trajectories."""
    wrists, hamer = observations.wrists, observations.hamer
    if wrists is not None and wrists.confidence.ndim > 2:
        wrists = WristTracks(wrists.T_world_wrist.unsqueeze(1), wrists.confidence.unsqueeze(1))
    if hamer is not None and hamer.seen.ndim > 2:
        hamer = HamerHands(
            finger_rotmats=hamer.finger_rotmats.unsqueeze(1),
            R_cam_wrist=hamer.R_cam_wrist.unsqueeze(1),
            keypoints_cam=hamer.keypoints_cam.unsqueeze(1),
            seen=hamer.seen.unsqueeze(1),
            T_cpf_cam=hamer.T_cpf_cam.unsqueeze(1) if hamer.T_cpf_cam.ndim > 1 else hamer.T_cpf_cam,
        )
    return HandObservations(wrists, hamer)
