"""Pictures to an mp4 file, by the ffmpeg that comes with the imageio-ffmpeg package."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
from collections.abc import Generator
from pathlib import Path

import numpy as np
from PIL import Image


def have_mp4_encoder() -> bool:
    """Whether the imageio-ffmpeg package (which brings its own ffmpeg) is there."""
    return importlib.util.find_spec("imageio_ffmpeg") is not None


class Mp4Writer:
    """Feeds pictures to the ffmpeg of the imageio-ffmpeg wheel, which writes an mp4 file."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self.fps = fps
        self._writer: Generator[None, bytes, None] | None = None

    def add(self, picture: Image.Image) -> None:
        """Encode one more picture; all must have the first one's size. Raises OSError where the encoder has ended."""
        if self._writer is None:
            import imageio_ffmpeg

            self._writer = imageio_ffmpeg.write_frames(
                str(self.path),
                picture.size,
                fps=self.fps,
                codec="libx264",
                pix_fmt_out="yuv420p",
                macro_block_size=2,
                output_params=[
                    "-crf",
                    "21",
                    "-preset",
                    "veryfast",
                    "-threads",
                    "1",
                    "-movflags",
                    "+faststart",
                    "-f",
                    "mp4",
                ],
                ffmpeg_log_level="error",
            )
            self._writer.send(None)
        try:
            self._writer.send(np.asarray(picture).tobytes())
        except OSError as error:  # its text is a page of the encoder's own
            raise self._failure() from error

    def close(self) -> None:
        """Let the encoder finish the file, if it still runs."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def check(self) -> None:
        """Raise OSError if the encoder, which doesn't tell, wrote nothing or not all."""
        if not is_whole(self.path):
            raise self._failure()

    def _failure(self) -> OSError:
        """Why the encoder failed, as far as one can see."""
        if shutil.disk_usage(self.path.parent).free < _ROOM:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return OSError("the video encoder (ffmpeg of imageio-ffmpeg) ended before the film was whole")


_ROOM = 1 << 20  # a disk with less than that free was full a moment ago


def is_whole(path: Path) -> bool:
    """Whether an mp4 file has its index and its pictures, and ends where its last part does."""
    if not path.is_file():
        return False
    size, place, kinds = path.stat().st_size, 0, set()
    with path.open("rb") as stream:
        while place < size:
            stream.seek(place)
            head = stream.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:  # a part of more than 4 GB
                length = int.from_bytes(head[8:16], "big")
            if len(head) < 8 or length < 8:
                return False
            kinds.add(head[4:8])
            place += length
    return place == size and {b"ftyp", b"moov", b"mdat"} <= kinds
