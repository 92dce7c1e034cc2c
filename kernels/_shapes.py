"""Shapes that broadcast."""

from __future__ import annotations

from collections.abc import Sequence


def broadcast_shape(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape that tensors of these shapes have in common. Raises ValueError where they don't broadcast.

    In place of ``torch.broadcast_shapes``, whose first call imports torch's symbolic shapes and with them sympy: two
    seconds of processor time, more than most commands need for all they do.
    """
    common = [1] * max([0, *[len(shape) for shape in shapes]])  # in words that torch.compile traces
    for shape in shapes:
        for axis in range(1, len(shape) + 1):
            size = shape[-axis]
            if size != 1 and common[-axis] != size:
                if common[-axis] != 1:
                    raise ValueError(f"shapes don't broadcast: {', '.join(str(tuple(one)) for one in shapes)}")
                common[-axis] = size
    return tuple(common)
