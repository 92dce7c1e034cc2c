"""Shapes that broadcast, by torch's rule."""

from __future__ import annotations

import itertools

import pytest
import torch

from mgrpo.kernels._shapes import broadcast_shape

SHAPES = [(), (1,), (0,), (3,), (2, 1), (2, 3), (1, 1, 3), (4, 2, 1), (0, 3), (5, 1, 0)]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_it_is_torchs_rule(count: int) -> None:
    for shapes in itertools.product(SHAPES, repeat=count):
        try:
            expected = tuple(torch.broadcast_shapes(*shapes)) if shapes else ()
        except RuntimeError:
            with pytest.raises(ValueError, match="don't broadcast"):
                broadcast_shape(*shapes)
        else:
            assert broadcast_shape(*(torch.Size(shape) for shape in shapes)) == expected
