"""One clip as the pictures need it: the recorded body and the predicted ones over the same frames, with the head path
that was the input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mgrpo.errors import InputError

ROLES = ("ground_truth", "prior", "post_trained")
ROLE_LABELS = {"ground_truth": "Ground truth", "prior": "Prior", "post_trained": "Post-trained"}

BODY_PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19)
"""Parent of each of SMPL-H's 22 body joints, root first."""

PARENTS = BODY_PARENTS + tuple(
    (20 + hand) if segment == 0 else 22 + 15 * hand + 3 * finger + segment - 1
    for hand in (0, 1)
    for finger in range(5)
    for segment in range(3)
)
"""Parent of each of its 52 joints, the fingers of the left hand before those of the right."""


def _as_float(values: object, where: str, what: str, ndim: int, tail: tuple[int, ...]) -> np.ndarray:
    """A float32 copy of an array, checked for its number of axes and its last axes; InputError says where it came
    from."""
    array = np.array(values, dtype=np.float32)
    if array.ndim != ndim or (tail and array.shape[ndim - len(tail) :] != tail):
        raise InputError(f"{where}: {what} must have {ndim} axes ending in {tail}, got shape {array.shape}")
    array.setflags(write=False)
    return array


@dataclass(frozen=True)
class SkeletonTrack:
    """One body over time. The first sample is the one shown; further samples appear as ghosts behind it."""

    joints: np.ndarray
    """Joint positions in the world, metres, z up, root first: (S, T, J, 3), or (T, J, 3) for one sample. A frame with
    NaN isn't drawn."""
    contacts: np.ndarray | None = None
    """Contact of each joint without the root with its surroundings, 0 to 1, of the first sample: (T, J-1)."""
    error_mm: np.ndarray | None = None
    """Mean joint position error of the first sample in each frame, millimetres: (T,)."""

    def __post_init__(self) -> None:
        joints = np.array(self.joints, dtype=np.float32)
        if joints.ndim == 3:
            joints = joints[None]
        joints = _as_float(joints, "SkeletonTrack", "joints", 4, (3,))
        object.__setattr__(self, "joints", joints)
        frames, count = joints.shape[1], joints.shape[2]
        if joints.shape[0] == 0 or frames == 0:
            raise InputError(f"SkeletonTrack: joints must hold a sample and a frame at least, got shape {joints.shape}")
        if self.contacts is not None:
            contacts = _as_float(self.contacts, "SkeletonTrack", "contacts", 2, (frames, count - 1))
            object.__setattr__(self, "contacts", contacts)
        if self.error_mm is not None:
            object.__setattr__(self, "error_mm", _as_float(self.error_mm, "SkeletonTrack", "error_mm", 1, (frames,)))

    @property
    def frames(self) -> int:
        """Number of frames T."""
        return int(self.joints.shape[1])


@dataclass(frozen=True)
class MotionComparison:
    """A clip as recorded and as recovered from its head path by the prior and by the post-trained model.

    Raises InputError if tracks differ in frames or joints.
    """

    name: str
    fps: float
    """Frames per second."""
    ground_truth: SkeletonTrack
    prior: SkeletonTrack | None = None
    post_trained: SkeletonTrack | None = None
    T_world_cpf: np.ndarray | None = None
    """The head path given to the models, wxyz + xyz (T, 7): CPF axes x left, y up, z forward. Positions only, (T, 3),
    are fine too."""
    parents: tuple[int, ...] = BODY_PARENTS
    """Parent index of each joint, root first (-1)."""
    caption: str = ""
    """A line under the player: where the window comes from, how it was chosen."""

    def __post_init__(self) -> None:
        if not self.fps > 0:
            raise InputError(f"MotionComparison '{self.name}': fps must be above 0, got {self.fps}")
        object.__setattr__(self, "parents", tuple(int(p) for p in self.parents))
        shape = self.ground_truth.joints.shape[1:]
        if len(self.parents) != shape[1]:
            raise InputError(
                f"MotionComparison '{self.name}': {shape[1]} joints need as many parents, got {len(self.parents)}"
            )
        for joint, parent in enumerate(self.parents):
            if not -1 <= parent < joint:
                raise InputError(
                    f"MotionComparison '{self.name}': parents must come before their children (root -1), joint "
                    f"{joint} has parent {parent}"
                )
        for role, track in self.tracks().items():
            if track.joints.shape[1:] != shape:
                raise InputError(
                    f"MotionComparison '{self.name}': every track must have the ground truth's (frames, joints, 3) = "
                    f"{shape}, "
                    f"{role} has {track.joints.shape[1:]}"
                )
        if self.T_world_cpf is not None:
            path = np.array(self.T_world_cpf, dtype=np.float32)
            if path.shape not in ((shape[0], 7), (shape[0], 3)):
                raise InputError(
                    f"MotionComparison '{self.name}': T_world_cpf must have shape ({shape[0]}, 7) or ({shape[0]}, "
                    f"3), got {path.shape}"
                )
            path.setflags(write=False)
            object.__setattr__(self, "T_world_cpf", path)

    @property
    def frames(self) -> int:
        """Number of frames T."""
        return self.ground_truth.frames

    def tracks(self) -> dict[str, SkeletonTrack]:
        """The tracks that exist, in the fixed order of ROLES."""
        found = {"ground_truth": self.ground_truth, "prior": self.prior, "post_trained": self.post_trained}
        return {role: track for role, track in found.items() if track is not None}

    def head_positions(self) -> np.ndarray | None:
        """Head positions (T, 3) in metres, or None without a head path."""
        return None if self.T_world_cpf is None else self.T_world_cpf[:, -3:]

    def gaze(self) -> np.ndarray | None:
        """Unit view directions (T, 3), the CPF's z axis in the world; None where only positions are known."""
        if self.T_world_cpf is None or self.T_world_cpf.shape[1] != 7:
            return None
        w, x, y, z = np.moveaxis(self.T_world_cpf[:, :4].astype(np.float64), 1, 0)
        scale = np.maximum(w * w + x * x + y * y + z * z, 1e-12)
        forward = np.stack((2 * (x * z + w * y), 2 * (y * z - w * x), w * w - x * x - y * y + z * z), axis=1)
        return (forward / scale[:, None]).astype(np.float32)


def frame_errors_mm(predicted: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Mean joint position error of each frame in millimetres, without alignment: (…, T, J, 3) against (T, J, 3) gives
    (…, T)."""
    return 1000.0 * np.linalg.norm(np.asarray(predicted) - np.asarray(target), axis=-1).mean(axis=-1)
