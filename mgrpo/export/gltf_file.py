"""The container of glTF 2.0: arrays laid into one buffer with views and accessors, and the whole as a GLB file."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from mgrpo.errors import InputError

ARRAY_BUFFER = 34962
"""Target of views with vertex attributes."""

ELEMENT_ARRAY_BUFFER = 34963
"""Target of views with indices."""

_COMPONENTS = {np.dtype("<f4"): 5126, np.dtype("u1"): 5121, np.dtype("<u2"): 5123, np.dtype("<u4"): 5125}
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_MOST_BYTES = 2**32 - 1
_MAGIC, _JSON, _BIN = 0x46546C67, 0x4E4F534A, 0x004E4942


class GltfBuffer:
    """The one buffer of a file; every array has a view and an accessor of its own."""

    def __init__(self) -> None:
        self.accessors: list[dict[str, Any]] = []
        """Accessors in the order of :meth:`add`."""
        self.views: list[dict[str, Any]] = []
        """Their views."""
        self._parts: list[Callable[[], np.ndarray]] = []
        self._length = 0

    def add(
        self,
        array: np.ndarray,
        kind: Literal["SCALAR", "VEC3", "VEC4", "MAT4"],
        *,
        target: int | None = None,
        bounds: bool = False,
    ) -> int:
        """Append an array of shape ``(N,)`` or ``(N, width)`` and give the index of its accessor.

        ``bounds`` notes the least and greatest value of each component, which glTF requires of vertex positions and of
        the times of animations. Every view begins at a multiple of four bytes.
        """
        array = np.ascontiguousarray(array.reshape(-1, _WIDTHS[kind]))
        index = self.add_later(lambda: array, len(array), array.dtype, kind, target=target)
        if bounds:
            self.accessors[index] |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
        return index

    def add_later(
        self,
        make: Callable[[], np.ndarray],
        count: int,
        dtype: np.dtype,
        kind: Literal["SCALAR", "VEC3", "VEC4", "MAT4"],
        *,
        target: int | None = None,
    ) -> int:
        """The same of an array ``(count, width)`` that ``make`` gives when it is written, so that of many large ones
        only one is in memory."""
        size = count * _WIDTHS[kind] * dtype.itemsize
        view: dict[str, Any] = {"buffer": 0, "byteOffset": self._length, "byteLength": size}
        if target is not None:
            view["target"] = target
        self.views.append(view)
        self.accessors.append(
            {"bufferView": len(self.views) - 1, "componentType": _COMPONENTS[dtype], "count": count, "type": kind}
        )
        self._parts.append(make)
        self._length += _padded(size)
        return len(self.accessors) - 1

    def glb(self, document: dict[str, Any]) -> Iterator[bytes]:
        """A GLB file of ``document`` (everything of the JSON but buffers, views and accessors) and the buffer, piece by
        piece.

        Raises InputError where it would not fit into the four gigabytes that the format can count.
        """
        content = document | {
            "buffers": [{"byteLength": self._length}],
            "bufferViews": self.views,
            "accessors": self.accessors,
        }
        text = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + self._length
        if total > _MOST_BYTES:
            raise InputError(
                f"a GLB file has at most 4.3 GB, this motion needs {total / 1e9:.1f} GB; cut it, or lower --fps"
            )
        head = struct.pack("<III", _MAGIC, 2, total) + struct.pack("<II", len(text), _JSON) + text
        return self._pieces(head + struct.pack("<II", self._length, _BIN))

    def _pieces(self, head: bytes) -> Iterator[bytes]:
        yield head
        for view, make in zip(self.views, self._parts):
            data = make().tobytes()
            assert len(data) == view["byteLength"]
            yield data + bytes(_padded(len(data)) - len(data))


def _padded(size: int) -> int:
    return size + -size % 4
