"""`mgrpo export`: recovered or recorded motion to the files of other tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
import yaml

from mgrpo.body import BodyModel, default_body, resolve_body
from mgrpo.body.model import NUM_BETAS
from mgrpo.data.motion_files import DEMO, DEMO_ASSET
from mgrpo.data.rate import require_fps
from mgrpo.errors import InputError, in_file
from mgrpo.eval.formats import MotionTracks, ReadOptions, RotationMotion, read_motions
from mgrpo.eval.formats.tracks import Unit as InputUnit
from mgrpo.eval.formats.tracks import Up as InputUp
from mgrpo.export import TARGETS, FileFrame, PosedMotion, Target
from mgrpo.export.smpl_parameters import has_smpl_shape
from mgrpo.storage import folder_for_results, storage_error
from mgrpo.terminal.progress import Progress, notice

from .destination import refuse_run_folder

TargetName = Literal["amass", "smpl", "bvh", "glb", "npz", "csv"]

_ARGS_SUFFIX = "_args.yaml"
_MOST_ARGS_BYTES = 1 << 20


@dataclass(frozen=True)
class ExportConfig:
    """Write motion as a file of another tool.

    amass: npz for SMPL+H, which the SMPL add-on of Blender, aitviewer and most research code read. smpl: a .smpl file.
    bvh: skeleton and Euler angles. glb: skinned mesh with animation, for Blender and browsers. npz: EgoAllo's output.
    csv: a table. Axes, units and columns of each: docs/export.md.
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """Motion to read: what mgrpo and EgoAllo write, a clip or pack of mgrpo, AMASS, WHAM, GVHMR, known by its contents;
    or `demo`, the clips that ship with the package."""
    to: TargetName
    """Format to write."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("exports")
    """File to write (with the format's ending), or a folder, where files get the name of FILE."""
    sample: int | None = None
    """Sample to write, from 0; default: all, one file each (npz: all in one file)."""
    clip: str = ""
    """Name (or pattern) of the motions to write, where FILE holds several; default: all, one file each."""
    body: str = "auto"
    """Body that the motion was made on: `default` (ships with the package), `smplh` (searched for), or the path of an
    SMPL-H npz. auto: as the FILE_args.yaml beside FILE says; the default body for clips and packs."""
    fps: float = 0.0
    """Frames per second to write; 0: those of FILE. Rotations are interpolated by the shorter way."""
    up: Literal["auto", "y", "z"] = "auto"
    """Axis that points up in the file (bvh, csv, smpl); auto: z for csv, y for the others."""
    units: Literal["auto", "m", "cm"] = "auto"
    """Unit of lengths in the file (bvh, csv); auto: cm for bvh, m for csv."""
    overwrite: bool = False
    """Replace files that exist; FILE itself never is."""
    input_fps: float = 0.0
    """Frames per second of FILE, where it doesn't tell; 0: as it tells, or as its format is."""
    input_up: InputUp = "auto"
    """Axis that points up in FILE; auto: that of its format."""
    input_unit: InputUnit = "auto"
    """Unit of positions in FILE; auto: metres."""

    def __post_init__(self) -> None:
        for name in ("fps", "input_fps"):
            if getattr(self, name) != 0:  # which leaves it to the file
                require_fps(getattr(self, name), f"--{name.replace('_', '-')}")
        if self.sample is not None and self.sample < 0:
            raise InputError(f"--sample counts from 0, got {self.sample}")

    def unused_options(self) -> Mapping[str, str]:
        """Options that the format leaves no choice about."""
        target = TARGETS[self.to]
        unused = {}
        if not target.ups:
            unused["up"] = f"with --to {self.to}, whose up axis is always {target.frame.up}"
        if not target.units:
            unused["units"] = f"with --to {self.to}, which is always in metres"
        return unused

    @property
    def target(self) -> Target:
        """The format."""
        return TARGETS[self.to]

    @property
    def frame(self) -> FileFrame:
        """Axes and unit of the files."""
        own = self.target.frame
        return FileFrame(own.up if self.up == "auto" else self.up, own.unit if self.units == "auto" else self.units)


def run_export(config: ExportConfig) -> int:
    """Read, convert, write, and print the files. Returns the exit code 0.

    Raises InputError for what can't be read, chosen or written, StorageError for the disk. Everything is read and
    checked before the first file is written, and each file appears whole or not at all.
    """
    target = config.target
    if target.check is not None:
        target.check()
    with Progress("read motion"):
        sources = choose(config, read(config))
    ending = config.out.suffix.lower()
    single = ending == target.ending
    if not single and ending in {one.ending for one in TARGETS.values()}:
        raise InputError(f"--out {config.out}: --to {config.to} writes {target.ending} files; change one of the two")
    folder = config.out.parent if single else config.out
    refuse_run_folder(folder, "--out")
    plan = plan_files(config, sources, single)
    del sources  # an hour takes a hundred megabytes: let it go with the file that is made of it
    paths = list(plan)
    for path in paths:
        _refuse_path(config, path)
    with folder_for_results(folder), Progress("write", len(plan), "files") as progress:
        if len(plan) > 1:  # what can't be written is known before there is any file
            for parts in plan.values():
                _prepared(config, list(parts))
        for path in paths:
            motions, notes = _prepared(config, plan.pop(path))
            for note in notes:
                notice(note)
            try:
                target.write(path, motions, config.frame)
            except OSError as error:
                raise storage_error("write", path, error) from error
            del motions
            progress.update()
    for path in paths:
        print(path)
    return 0


def _prepared(config: ExportConfig, parts: list[Part]) -> tuple[list[PosedMotion], list[str]]:
    """The motions of one file, and what was changed for it. Takes from ``parts``, so that what was read can go."""
    motions: list[PosedMotion] = []
    notes: list[str] = []
    while parts:
        motion, changed = prepare(config, posed(*parts.pop(0)))
        motions.append(motion)
        notes += changed
    return motions, notes


def read(config: ExportConfig) -> list[RotationMotion]:
    """The motions of the file.

    Raises InputError where it holds joints alone or can't be read.
    """
    options = ReadOptions(
        body=_body(config), fps=config.input_fps or None, up=config.input_up, unit=config.input_unit, side="input"
    )
    if str(config.file) == DEMO and not config.file.exists():
        with resources.as_file(resources.files("mgrpo") / "assets" / DEMO_ASSET) as asset:
            motions = read_motions(asset, options)
    else:
        motions = read_motions(config.file, options)
    found: list[RotationMotion] = []
    for one in motions:
        if isinstance(one, MotionTracks):
            raise InputError(
                f"{config.file}: holds joint positions alone ({one.format}); an export needs the rotations of a body, "
                "as EgoAllo's npz, AMASS, clips and packs have them"
            )
        found.append(one)
    with in_file(config.file):
        notes = [note for one in found for note in (*one.notes, *one.shape_notes)]
    for note in dict.fromkeys(notes):
        notice(f"{config.file.name}: {note}")
    return found


def _body(config: ExportConfig) -> BodyModel | None:
    """The body that is named, or recorded beside the file; None where neither is, and the format must know."""
    name = config.body
    if name == "auto":
        recorded = recorded_body(config.file)
        if recorded is None:
            return None
        notice(f"body '{recorded}', as {_args_file(config.file).name} says; --body names another")
        name = recorded
    return default_body() if name == "default" else resolve_body(name)


def _args_file(file: Path) -> Path:
    return file.parent / f"{file.stem}{_ARGS_SUFFIX}"


def recorded_body(file: Path) -> str | None:
    """The body named by the options beside a file that this package wrote (``<name>_args.yaml``); None: no such file,
    or it names none. ``mgrpo infer`` keeps its options in a part of that name.

    Raises InputError for one that can't be read.
    """
    path = _args_file(file)
    if not path.is_file():
        return None
    try:
        with path.open("rb") as stream:
            data = stream.read(_MOST_ARGS_BYTES)
        content: Any = yaml.load(data, Loader=_Plain)
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"{path}: can't be read ({str(error).splitlines()[0]}); name the body by --body, and this file is not used"
        ) from error
    options = content.get("options", content) if isinstance(content, dict) else None
    name = options.get("body") if isinstance(options, dict) else None
    return name if isinstance(name, str) and name else None


class _Plain(yaml.SafeLoader):
    """Plain values; what a tag of Python marks (EgoAllo's own files have them) is read as the values in it."""


def _untagged(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None


_Plain.add_multi_constructor("tag:yaml.org,2002:python/", _untagged)


def choose(config: ExportConfig, motions: list[RotationMotion]) -> list[RotationMotion]:
    """The motions that --clip names. Raises InputError where there are none, or --sample is beyond one's samples."""
    chosen = [
        one for one in motions if not config.clip or one.name == config.clip or fnmatchcase(one.name, config.clip)
    ]
    if not chosen:
        names = ", ".join(one.name or "(no name)" for one in motions[:40]) + (" ..." if len(motions) > 40 else "")
        raise InputError(f"--clip: no motion in {config.file} is called {config.clip!r}. Motions: {names}")
    for one in chosen:
        if config.sample is not None and config.sample >= one.samples:
            raise InputError(
                f"--sample {config.sample}: {config.file} holds {one.samples} sample(s), 0 to {one.samples - 1}"
            )
    return chosen


class Part(NamedTuple):
    """One motion of a file to write."""

    source: RotationMotion
    """What was read."""
    sample: int
    """Which of its samples."""
    name: str
    """Name of the motion in the file."""


def plan_files(config: ExportConfig, sources: list[RotationMotion], single: bool) -> dict[Path, list[Part]]:
    """Files to write and the motions of each. ``single``: --out names a file.

    Raises InputError for several files where one is named, or two of one name.
    """
    target = config.target
    stem = config.file.stem.removesuffix("_poses") if config.to == "amass" else config.file.stem
    plan: dict[Path, list[Part]] = {}
    for one in sources:
        name = f"{stem}_{_plain(one.name)}" if len(sources) > 1 else stem
        samples = range(one.samples) if config.sample is None else (config.sample,)
        names = {f"{name}_sample{sample}" if one.samples > 1 else name: sample for sample in samples}
        parts = [Part(one, sample, file) for file, sample in names.items()]
        files = {name: parts} if target.all_samples else {part.name: [part] for part in parts}
        for file, content in files.items():
            path = config.out if single else config.out / f"{file}{target.suffix}"
            if path in plan and single:
                raise InputError(
                    f"--out {path} names one file, but {config.file} has "
                    + (f"{len(sources)} motions" if len(sources) > 1 else f"{one.samples} samples")
                    + f"; choose one by --{'clip' if len(sources) > 1 else 'sample'}, or let --out be a folder"
                )
            if path in plan:
                raise InputError(f"two motions of {config.file} would be written to {path}; choose one by --clip")
            plan[path] = content
    return plan


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name) or "motion"


def _refuse_path(config: ExportConfig, path: Path) -> None:
    if path.exists() and config.file.exists() and path.samefile(config.file):
        raise InputError(f"{path} is the file that is read; choose another --out")
    if path.is_dir():
        raise InputError(f"{path} is a folder; choose another --out")
    if path.exists() and not config.overwrite:
        raise InputError(f"{path} exists already; choose another --out, or --overwrite to replace it")


def posed(source: RotationMotion, sample: int, name: str) -> PosedMotion:
    """One sample of the motion that was read."""
    frames = len(source)
    numbers = np.arange(frames) if source.frame_nums is None else source.frame_nums
    times = numbers / source.fps if source.times is None else source.times
    body = source.body
    quats = source.body_quats[sample]
    if source.hand_quats is not None and source.options.body is not None:
        full = source.options.body.to(dtype=torch.float64)
        if full.num_joints > quats.shape[-2]:
            body, quats = full, torch.cat((quats, source.hand_quats[sample].to(quats.dtype)), dim=-2)
            quats /= quats.norm(dim=-1, keepdim=True).clamp_min(1e-6)  # in place: PosedMotion then needs no copy
    betas = source.shape()[sample]
    return PosedMotion(
        name=name,
        fps=source.fps,
        body=body,
        T_world_root=source.T_world_root()[sample],
        local_quats=quats,
        betas=torch.nn.functional.pad(betas, (0, NUM_BETAS - betas.shape[-1])),
        times=torch.from_numpy(np.ascontiguousarray(times, dtype=np.float64)),
        frame_nums=torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.int64)),
        contacts=None if source.contacts is None else torch.from_numpy(source.contacts[sample]),
        T_world_cpf=source.head_poses(),
        gender=source.gender,
    )


def prepare(config: ExportConfig, motion: PosedMotion) -> tuple[PosedMotion, list[str]]:
    """The motion as the format can hold it, and what was changed."""
    target, notes = config.target, []
    if target.even or config.fps:
        motion, done = motion.at_even_rate(config.fps or None)
        if done:
            notes.append(f"{motion.name}: {done}")
    if target.one_shape:
        motion, moved = motion.with_one_shape()
        if moved:
            notes.append(
                f"{motion.name}: the body's shape changes from frame to frame, which {config.to} can't hold; its mean "
                f"is taken, which moves joints by up to {1000 * moved:.1f} mm"
            )
    if config.to in ("amass", "smpl") and not has_smpl_shape(motion.body):
        notes.append(
            f"{motion.name}: the shape of the default body means nothing to SMPL-H; betas are written as zeros, so "
            "limbs have SMPL-H's mean lengths when it is shown there"
        )
    return motion, notes
