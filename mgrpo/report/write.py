"""Writing a report to a folder: pictures, film, numbers, and at the very end the page."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mgrpo.errors import InputError
from mgrpo.report.data import ReportData
from mgrpo.report.figures import save_figures, save_panels
from mgrpo.report.findings import compute_findings
from mgrpo.report.json_form import report_to_json
from mgrpo.report.page import render_page
from mgrpo.report.training import PICTURES as TRAINING_PICTURES
from mgrpo.report.training import TrainingReport
from mgrpo.report.training_page import render_training_page
from mgrpo.storage import replacing
from mgrpo.viz.animation import write_animation
from mgrpo.viz.filmstrip import render_filmstrip
from mgrpo.viz.mp4 import have_mp4_encoder

PICTURES = ("results", "rewards", "training", "health", "diversity", "filmstrip")
"""Names of the PNGs a report may hold."""

OUR_FILES = ("report.html", "report.json", "motion.mp4", "motion.gif", *(f"{name}.png" for name in PICTURES))
"""Everything that ``write_report`` writes, and replaces in a folder that has it already."""


@dataclass(frozen=True)
class ReportFiles:
    """What ``write_report`` wrote."""

    html: Path
    json: Path
    """Every number, read back by :func:`mgrpo.report.read_report`."""
    pngs: dict[str, Path] = field(default_factory=dict)
    """Pictures by name (of PICTURES), those that had numbers."""
    mp4: Path | None = None
    gif: Path | None = None
    skipped: tuple[str, ...] = ()
    """What was left out, each with the reason."""


def _write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is whole or not there; an OSError is passed on."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_report(data: ReportData, out_dir: Path, *, progress: Callable[[str], None] | None = None) -> ReportFiles:
    """Write ``report.html``, ``report.json``, PNGs, ``motion.mp4`` and ``motion.gif`` into ``out_dir`` (made if
    needed).

    The page is written last and each file appears whole, so a page that is there has everything beside it. ``progress``
    is called with a few words before each step and during the film. Without the imageio-ffmpeg package the mp4 is left
    out (``skipped`` says so). Raises InputError if the folder can't be written or the disk is full.
    """
    say = progress or (lambda text: None)
    with _folder(Path(out_dir), OUR_FILES):
        return _write(data, Path(out_dir), say)


def write_training_report(report: TrainingReport, out_dir: Path) -> ReportFiles:
    """Write ``report.html``, ``report.json`` and PNGs about training runs into ``out_dir`` (made if needed), the page
    last. Raises InputError if the folder can't be written or the disk is full."""
    with _folder(Path(out_dir), ("report.html", "report.json", *(f"{name}.png" for name in TRAINING_PICTURES))):
        groups = report.panels()
        pngs = save_panels({name: groups[name] for name in TRAINING_PICTURES if groups.get(name)}, out_dir)
        numbers, page = out_dir / "report.json", out_dir / "report.html"
        _write_bytes(numbers, json.dumps(report.to_json(), allow_nan=False, ensure_ascii=False, indent=1).encode())
        _write_bytes(page, render_training_page(report).encode())
    return ReportFiles(html=page, json=numbers, pngs=pngs)


@contextmanager
def _folder(out_dir: Path, files: Sequence[str]) -> Iterator[None]:
    """Make the folder, and take an earlier report of these files out of it; say what is wrong with the disk."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        # an earlier report goes first: its page must not stand beside newer pictures, nor the other way round
        # (its numbers stay until the new ones replace them in one move: they may be the only copy)
        for name in files:
            if name != "report.json":
                (out_dir / name).unlink(missing_ok=True)
        yield
    except OSError as error:
        reason = {
            errno.ENOSPC: "the disk is full; free some space or choose another folder",
            errno.EACCES: "no permission to write there; choose another folder or change its permissions",
            errno.EROFS: "that file system is read-only; choose another folder",
            errno.ENOTDIR: "a part of that path is a file; choose another folder",
            errno.EEXIST: "a file of that name is in the way; choose another folder",
        }.get(error.errno or 0, error.strerror or str(error))
        raise InputError(f"could not write the report to {out_dir}: {reason}") from error


def _write(data: ReportData, out_dir: Path, say: Callable[[str], None]) -> ReportFiles:
    skipped: list[str] = []
    say("drawing charts")
    pngs = save_figures(data, out_dir)

    strip: bytes | None = None
    mp4: Path | None = None
    gif: Path | None = None
    if data.motions:
        first = data.motions[0]
        say("drawing the film strip")
        buffer = io.BytesIO()
        render_filmstrip(first).save(buffer, format="PNG", optimize=True)
        strip = buffer.getvalue()
        pngs["filmstrip"] = out_dir / "filmstrip.png"
        _write_bytes(pngs["filmstrip"], strip)

        gif = out_dir / "motion.gif"
        if have_mp4_encoder():
            mp4 = out_dir / "motion.mp4"
        else:
            skipped.append("motion.mp4: the package imageio-ffmpeg is not installed (pip install imageio-ffmpeg)")

        def on_frame(done: int, total: int) -> None:
            if done == 1 or done % 25 == 0 or done == total:
                say(f"rendering the film, frame {done} of {total}")

        write_animation(data.motions, mp4=mp4, gif=gif, on_frame=on_frame)
    else:
        skipped.append("motion.mp4, motion.gif, filmstrip.png: the report holds no motion")

    say("writing the numbers")
    numbers = out_dir / "report.json"
    tree = report_to_json(data) | {
        "computed_findings": [{"tone": finding.tone, "text": finding.text} for finding in compute_findings(data)]
    }
    _write_bytes(numbers, json.dumps(tree, allow_nan=False, ensure_ascii=False, indent=1).encode())

    say("writing the page")
    page = out_dir / "report.html"
    _write_bytes(page, render_page(data, filmstrip=strip).encode())
    return ReportFiles(html=page, json=numbers, pngs=pngs, mp4=mp4, gif=gif, skipped=tuple(skipped))
