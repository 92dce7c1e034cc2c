"""Pictures to an mp4 file, by the ffmpeg that comes with the imageio-ffmpeg package."""

from __future__ import annotations

import importlib.util
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
        """Encode one more picture; all must have the first one's size."""
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
        self._writer.send(np.asarray(picture).tobytes())

    def close(self) -> None:
        """Let the encoder finish the file, if it still runs."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def check(self) -> None:
        """Raise OSError if the encoder, which doesn't tell, wrote nothing."""
        if not self.path.is_file() or self.path.stat().st_size == 0:
            raise OSError(f"the video encoder wrote nothing to {self.path}")
