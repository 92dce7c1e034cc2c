"""`mgrpo view`: motion files in the browser, as a page that plays offline, as a film or as pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mgrpo.body import resolve_body
from mgrpo.data.rate import require_fps
from mgrpo.errors import InputError
from mgrpo.eval.formats import ReadOptions
from mgrpo.eval.formats.tracks import Unit, Up
from mgrpo.options import require
from mgrpo.storage import atomic_write, folder_for_results, storage_error
from mgrpo.terminal.progress import Progress, notice
from mgrpo.viz.film import SIZES, Layout, Look, Show, StagePainter, write_film, write_still
from mgrpo.viz.live import LiveViewer, require_port, require_viser
from mgrpo.viz.mp4 import have_mp4_encoder
from mgrpo.viz.page import Theme, render_stage_page
from mgrpo.viz.stage import Stage

from .destination import refuse_run_folder
from .view_files import read_stage

MOST_FILES = 16
"""Most motions beside each other; beyond that nobody sees anything."""


@dataclass(frozen=True)
class ViewConfig:
    """Look at motion: mgrpo view FILE [FILE ...] [--truth FILE].

    Opens a server for the browser (needs the extra `viewer`), until Ctrl-C; or, with --html, --video or --png, writes
    files instead, which needs neither a display nor a browser. Formats are recognised by their contents: `mgrpo
    sample`'s and EgoAllo's output, AMASS, this package's clips and packs, HumanML3D and MDM joints, WHAM, GVHMR, or an
    npz with joints (T, 22, 3); `demo` is the motion that ships with the package. Nothing in a file is run.
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE [FILE ...]")]
    """Motions to show. One sample of each is solid, its others are pale."""
    truth: str = ""
    """File of the recorded motion: shown first, and errors are measured against it."""
    names: tuple[str, ...] = ()
    """Names of the files, in the same order; default: from the paths. `prior` and names that begin with `post` get the
    colours that they have in all of mgrpo's pictures."""
    clip: str = ""
    """Which motion of a file that holds several: its name or a pattern; empty: the first."""
    body: str = "default"
    """Body for files that hold rotations: `default` (ships with the package), `smplh` (searched for), or the path of an
    SMPL-H npz."""
    sample: int = 0
    """Which sample of the files is solid, counted from 0; in the browser another can be chosen at any time."""
    samples: int = 8
    """Most samples of a file that are shown: the solid one, then the others in their order."""
    start: float = 0.0
    """Where to begin, seconds from the beginning."""
    seconds: float = 0.0
    """How much to show, seconds; 0: to the end."""
    fps: float = 0.0
    """Frames per second of the files, where they don't tell or tell wrong; 0: as they tell."""
    up: Up = "auto"
    """Axis that points up in the files; auto: that of the format, or looked for in the motion."""
    unit: Unit = "auto"
    """Unit of the files' positions; auto: found by the length of the legs."""
    truth_fps: float = 0.0
    """The same as --fps for the truth."""
    truth_up: Up = "auto"
    """The same as --up for the truth."""
    truth_unit: Unit = "auto"
    """The same as --unit for the truth."""
    show: Show = "mesh"
    """What is drawn of a body at first: its surface, its skeleton, or both. Files of joints have no surface."""
    layout: Layout = "side"
    """Whether motions stand beside each other at first, or in one place."""
    theme: Theme = "auto"
    """Background; auto: for --html as the reader's system has it, otherwise light."""
    html: Path | None = None
    """Write one page that plays by itself, without network, here. It holds the body's mesh: mind its licence (SMPL-H's)
    before you pass it on."""
    video: Path | None = None
    """Write a film (mp4) here."""
    png: Path | None = None
    """Write a picture here; with several --at, each gets its time in its name."""
    at: tuple[float, ...] = ()
    """Times of the pictures of --png, seconds as the viewer's clock shows them; default: the middle."""
    width: int = 1280
    """Width of film and pictures, pixels."""
    height: int = 720
    """Height of film and pictures, pixels."""
    host: str = "127.0.0.1"
    """Address that the server listens on; 0.0.0.0 lets other machines in."""
    port: int = 8080
    """Port that the server listens on."""

    def __post_init__(self) -> None:
        if not self.files:
            raise InputError("mgrpo view: give a file to show, or `demo`")
        if len(self.files) > MOST_FILES:
            raise InputError(f"mgrpo view shows at most {MOST_FILES} files at once, got {len(self.files)}")
        if self.names and len(self.names) != len(self.files):
            raise InputError(
                f"--names: {len(self.names)} names for {len(self.files)} files; give one for each, or none "
                "(the truth needs none)"
            )
        if len(set(self.names)) < len(self.names):
            raise InputError(f"--names: the names must differ, got {' '.join(self.names)}")
        if any(not name.strip() for name in self.names):
            raise InputError("--names: a name is empty")
        require(self, "sample", at_least=0)
        require(self, "samples", at_least=1, at_most=64)
        require(self, "start", "seconds", at_least=0)
        require(self, "width", "height", at_least=SIZES[0], at_most=SIZES[1], unit="pixels")
        require(self, "port", at_least=1, at_most=65535)
        for option in ("fps", "truth_fps"):
            if getattr(self, option) != 0:  # which leaves it to the files
                require_fps(getattr(self, option), f"--{option.replace('_', '-')}")
        for option, suffix in (("html", (".html", ".htm")), ("video", (".mp4",)), ("png", (".png",))):
            path = getattr(self, option)
            if path is not None and path.suffix.lower() not in suffix:
                raise InputError(f"--{option} {path}: the name must end in {' or '.join(suffix)}")
        # Not at_least: NaN has to be refused too.
        if any(not 0 <= moment < 1e9 for moment in self.at):
            raise InputError(f"--at takes times in seconds from 0 on, got {' '.join(map(str, self.at))}")

    @property
    def writes(self) -> bool:
        """Whether files are asked for instead of the server."""
        return any(path is not None for path in (self.html, self.video, self.png))

    def unused_options(self) -> Mapping[str, str]:
        """Options without effect beside the others."""
        unused = {}
        if self.writes:
            unused |= dict.fromkeys(("host", "port"), "where a file is written instead of starting the server")
        if self.video is None and self.png is None:
            unused |= dict.fromkeys(("width", "height"), "without --video or --png")
        if self.png is None:
            unused["at"] = "without --png"
        if not self.truth:
            unused |= dict.fromkeys(("truth_fps", "truth_up", "truth_unit"), "without --truth")
        return unused


def run_view(config: ViewConfig) -> int:
    """Show, or write. Returns the exit code 0, also when the server is ended by Ctrl-C.

    Raises InputError for files that can't be read or shown together, a missing package and a port in use, MgrpoError
    when the disk refuses.
    """
    # Before the work: what is missing, or can't be written to, should be known now.
    if not config.writes:
        require_viser()
        require_port(config.host, config.port)
    if config.video is not None and not have_mp4_encoder():
        raise InputError("--video needs the package imageio-ffmpeg: pip install imageio-ffmpeg")
    for option in ("html", "video", "png"):
        path = getattr(config, option)
        if path is not None:
            if path.is_dir():
                raise InputError(f"--{option} {path}: a folder; name a file")
            refuse_run_folder(path.parent, f"--{option}")
    if not config.writes:
        serve(load(config), config)
        return 0
    with contextlib.ExitStack() as folders:
        for path in (config.html, config.video, config.png):
            if path is not None:
                folders.enter_context(folder_for_results(path.parent))
        written = write(load(config), config)
    for path in written:
        print(path)
    return 0


def load(config: ViewConfig) -> Stage:
    """The motions, posed on one time line; what was assumed about the files is told."""
    with Progress("read motion", None, "frames") as progress:
        stage = read_stage(
            config.files,
            config.names,
            config.truth,
            resolve_body(config.body),
            options=ReadOptions(fps=config.fps or None, up=config.up, unit=config.unit),
            truth_options=ReadOptions(
                fps=config.truth_fps or None, up=config.truth_up, unit=config.truth_unit, side="truth"
            ),
            clip=config.clip,
            samples=config.samples,
            sample=config.sample,
            start=config.start,
            seconds=config.seconds,
            say=notice,
            progress=progress.update,
        )
    for note in stage.notes:
        notice(note)
    return stage


def look_of(config: ViewConfig) -> Look:
    """How the stage is drawn."""
    return Look(config.show, config.layout, config.theme == "dark", config.width, config.height)


def write(stage: Stage, config: ViewConfig) -> list[Path]:
    """Write what is asked for. Returns the files. Raises InputError before anything is written where a time of --at is
    not in the motion, or the panels don't fit the picture."""
    look, written = look_of(config), []
    if config.png is not None or config.video is not None:
        StagePainter(stage, look)
    pictures = stills(stage, config) if config.png is not None else {}
    if config.html is not None:
        atomic_write(config.html, render_stage_page(stage, look, config.theme))
        written.append(config.html)
    for path, frame in pictures.items():
        with _onto_disk(path):
            write_still(stage, look, path, frame)
        written.append(path)
    if config.video is not None:
        with _onto_disk(config.video), Progress("draw", stage.frames, "frames") as progress:
            write_film(stage, look, config.video, on_frame=progress.update)
        written.append(config.video)
    return written


@contextlib.contextmanager
def _onto_disk(path: Path) -> Iterator[None]:
    """Say which file it was where the disk, or the encoder, refuses."""
    try:
        yield
    except OSError as error:
        raise storage_error("write", path, error) from error


def stills(stage: Stage, config: ViewConfig) -> dict[Path, int]:
    """Files of --png and the frame of each. Raises InputError for a time that the motion doesn't have."""
    assert config.png is not None
    first, last = stage.seconds(0), stage.seconds(stage.frames - 1)
    for moment in config.at:
        if not first - 0.5 / stage.fps <= moment <= last + 0.5 / stage.fps:
            raise InputError(f"--at {moment:g}: the motion shown has {first:.2f} to {last:.2f} s")
    if len(config.at) <= 1:
        return {config.png: stage.frame_at(config.at[0]) if config.at else (stage.frames - 1) // 2}
    frames = {stage.frame_at(moment) for moment in config.at}
    return {
        config.png.with_name(f"{config.png.stem}_{stage.seconds(frame):07.2f}s{config.png.suffix}"): frame
        for frame in sorted(frames)
    }


def serve(stage: Stage, config: ViewConfig) -> None:
    """Show the stage in the browser until Ctrl-C."""
    viewer = LiveViewer(stage, look_of(config), host=config.host, port=config.port)
    try:
        print(f"{viewer.url} shows {stage.title}; Ctrl-C ends", flush=True)
        viewer.run()
    except KeyboardInterrupt:
        print("ended")
    finally:
        viewer.close()
