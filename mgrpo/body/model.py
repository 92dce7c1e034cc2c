"""A body whose joints are linear in 16 shape numbers, and its optional display mesh."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mgrpo.body.skeleton import BODY_JOINT_NAMES, HEAD, PARENTS_BODY
from mgrpo.errors import InputError
from mgrpo.kernels import joint_offsets

NUM_BETAS = 16
"""Shape coefficients of a body."""

_NUM_BODY = len(BODY_JOINT_NAMES)


@dataclass(frozen=True, eq=False, repr=False)
class BodyMesh:
    """A surface that follows the joints by linear blend skinning; for display only.

    Rest axes and metres as the joints of the :class:`BodyModel` that holds it, but relative to the origin of that file
    (for SMPL-H the pelvis is not at the origin).
    """

    v_template: Tensor
    """Vertices of the mean body in the zero pose, ``(V, 3)`` metres."""
    shapedirs: Tensor
    """Change of the vertices per unit of each shape number, ``(V, 3, 16)`` metres."""
    weights: Tensor
    """Skinning weights, ``(V, J + 1)``, root first; each row sums to one."""
    faces: Tensor
    """Triangles, ``(F, 3)`` int64 vertex indices."""
    posedirs: Tensor | None = None
    """Pose-dependent correction, ``(V, 3, 9 * J)`` metres per entry of (local rotation - identity); None: none."""

    def __repr__(self) -> str:
        return f"BodyMesh({len(self.v_template)} vertices, {len(self.faces)} faces)"

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> BodyMesh:
        """The same mesh on another device or in another floating dtype."""
        return BodyMesh(
            v_template=self.v_template.to(device=device, dtype=dtype),
            shapedirs=self.shapedirs.to(device=device, dtype=dtype),
            weights=self.weights.to(device=device, dtype=dtype),
            faces=self.faces.to(device=device),
            posedirs=None if self.posedirs is None else self.posedirs.to(device=device, dtype=dtype),
        )


@dataclass(frozen=True, eq=False, repr=False)
class BodyModel:
    """A skeleton with ``J`` joints below the root, linear in 16 shape numbers: ``J(betas) = J_template + J_shapedirs
    betas``.

    Rest axes: +x the body's left, +y up, +z forward; metres. This is all that training needs of SMPL-H: 52 x 3 x 17
    numbers in the place of a mesh of 6,890 vertices (the joint regressor is linear, so regressing the blended vertices
    gives exactly these joints).
    """

    name: str
    """Shown in messages, for example ``"default"`` or ``"smplh"``."""
    parents: tuple[int, ...]
    """Parent of each of the ``J`` joints, -1 for children of the root; the first 21 are the body joints in SMPL-H
    order."""
    J_template: Tensor
    """Joints of the mean body in the zero pose, ``(J + 1, 3)``, root first."""
    J_shapedirs: Tensor
    """Change of the joints per unit of each shape number, ``(J + 1, 3, 16)``."""
    cpf_template: Tensor
    """Central pupil (midpoint of the eyes) minus head joint of the mean body in the zero pose, ``(3,)``."""
    cpf_shapedirs: Tensor
    """Its change per unit of each shape number, ``(3, 16)``."""
    mesh: BodyMesh | None = None
    """Surface for display, if there is one."""
    toe_clearance: float = 0.01
    """Height of the toe joint above the sole of a planted foot, metres. The base model's preprocessing takes 0.01 for
    SMPL-H (toes of planted feet end up at z = 0.01); a body with thicker feet has more."""

    def __post_init__(self) -> None:
        joints = len(self.parents)
        expected = {
            "J_template": (joints + 1, 3),
            "J_shapedirs": (joints + 1, 3, NUM_BETAS),
            "cpf_template": (3,),
            "cpf_shapedirs": (3, NUM_BETAS),
        }
        for field, shape in expected.items():
            value = getattr(self, field)
            if tuple(value.shape) != shape:
                raise InputError(f"body '{self.name}': {field} must have shape {shape}, got {tuple(value.shape)}")
            if not bool(torch.isfinite(value).all()):
                raise InputError(f"body '{self.name}': {field} has non-finite values (NaN or infinity)")
        if tuple(self.parents[:_NUM_BODY]) != PARENTS_BODY:
            raise InputError(
                f"body '{self.name}': the first {_NUM_BODY} joints below the root must form SMPL-H's tree "
                f"{PARENTS_BODY}, "
                f"got parents {tuple(self.parents[:_NUM_BODY])}"
            )
        for joint, parent in enumerate(self.parents):
            if not -1 <= parent < joint:
                raise InputError(
                    f"body '{self.name}': joint {joint} has parent {parent}, but parents must come first (-1 is the "
                    "root)"
                )

    def __repr__(self) -> str:
        mesh = "no mesh" if self.mesh is None else repr(self.mesh)
        return f"BodyModel('{self.name}', {self.num_joints} joints, {mesh})"

    @property
    def num_joints(self) -> int:
        """Joints below the root, ``J``: 21 or 51."""
        return len(self.parents)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.J_template.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the tensors."""
        return self.J_template.dtype

    @cached_property
    def _parent_rows(self) -> Tensor:
        return torch.tensor([parent + 1 for parent in self.parents], device=self.device)

    @cached_property
    def offset_template(self) -> Tensor:
        """Bone offsets of the mean body ``(J, 3)``, each in its parent's rest axes, metres."""
        return self.J_template[1:] - self.J_template[self._parent_rows]

    @cached_property
    def offset_shapedirs(self) -> Tensor:
        """Their change per unit of each shape number, ``(J, 3, 16)``."""
        return self.J_shapedirs[1:] - self.J_shapedirs[self._parent_rows]

    def t_parent_joint(self, betas: Tensor) -> Tensor:
        """Bone offsets ``(*b, J, 3)`` in metres, each in its parent's rest axes, for shape numbers ``betas (*b, 16)``.

        Fewer than 16 numbers leave the rest at zero. Raises InputError where there are more.
        """
        return self._linear(self.offset_template, self.offset_shapedirs, betas)

    def t_head_cpf(self, betas: Tensor) -> Tensor:
        """Origin of the central pupil frame in the head joint's axes, ``(*b, 3)`` metres, for ``betas (*b, 16)``.

        The frame is rigid with the head and has its orientation, so this is the whole of ``T_head_cpf``.
        """
        return self._linear(self.cpf_template, self.cpf_shapedirs, betas)

    def rest_joints(self, betas: Tensor) -> Tensor:
        """Joints in the zero pose ``(*b, J + 1, 3)`` in metres, root first, in the axes and origin of the body's own
        file."""
        return self._linear(self.J_template, self.J_shapedirs, betas)

    def leg_length(self, betas: Tensor) -> Tensor:
        """Thigh plus shin ``(*b)`` in metres, mean of both legs: the measure by which root paths are scaled between
        bodies."""
        bones = self.t_parent_joint(betas)[..., (3, 4, 6, 7), :].norm(dim=-1)
        return bones.sum(-1) / 2

    def _linear(self, template: Tensor, shapedirs: Tensor, betas: Tensor) -> Tensor:
        count = betas.shape[-1]
        if count > NUM_BETAS:
            raise InputError(
                f"body '{self.name}' has {NUM_BETAS} shape numbers, got betas of shape {tuple(betas.shape)}"
            )
        # Not torch's matrix product: on some processors it adds in an order that depends on the number of rows, and the
        # same shape would have other bones in another batch.
        shapedirs = shapedirs[..., :count]
        if template.ndim == 1:
            return joint_offsets(template[None], shapedirs[None], betas.to(shapedirs.dtype))[..., 0, :]
        return joint_offsets(template, shapedirs, betas.to(shapedirs.dtype))

    @cached_property
    def _body_only(self) -> BodyModel:
        if self.num_joints == _NUM_BODY:
            return self
        mesh = self.mesh
        if mesh is not None:
            owner = list(range(_NUM_BODY + 1))
            for joint in range(_NUM_BODY, self.num_joints):
                owner.append(owner[self.parents[joint] + 1])
            weights = torch.zeros_like(mesh.weights[:, : _NUM_BODY + 1])
            weights.index_add_(1, torch.tensor(owner, device=weights.device), mesh.weights)
            posedirs = None if mesh.posedirs is None else mesh.posedirs[..., : 9 * _NUM_BODY]
            mesh = replace(mesh, weights=weights, posedirs=posedirs)
        return replace(
            self,
            parents=self.parents[:_NUM_BODY],
            J_template=self.J_template[: _NUM_BODY + 1],
            J_shapedirs=self.J_shapedirs[: _NUM_BODY + 1],
            mesh=mesh,
        )

    def body_only(self) -> BodyModel:
        """The same body with the 21 body joints only; fingers stay straight and their skin follows the wrist."""
        return self._body_only

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> BodyModel:
        """The same body on another device or in another floating dtype (mesh included); itself where nothing
        changes."""
        moved = self.J_template.to(device=device, dtype=dtype)
        if moved is self.J_template:
            return self
        return replace(
            self,
            J_template=moved,
            J_shapedirs=self.J_shapedirs.to(device=device, dtype=dtype),
            cpf_template=self.cpf_template.to(device=device, dtype=dtype),
            cpf_shapedirs=self.cpf_shapedirs.to(device=device, dtype=dtype),
            mesh=None if self.mesh is None else self.mesh.to(device=device, dtype=dtype),
        )


HEAD_ROW = HEAD + 1
"""Row of the head in arrays that have the root first."""
