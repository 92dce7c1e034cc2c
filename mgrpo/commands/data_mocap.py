"""`mgrpo data mocap`: a folder of BVH or ASF/AMC files to a motion pack, with a report of every file."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mgrpo.body import BodyModel, resolve_body
from mgrpo.config_record import differences
from mgrpo.data.clip import save_clip
from mgrpo.data.mocap.convert import ConvertOptions, FileResult, assemble, convert_to_part, find_files, part_path
from mgrpo.data.mocap.retarget import parse_floor
from mgrpo.data.packs.fitting import fit_pack
from mgrpo.data.packs.pack import MotionPack
from mgrpo.data.packs.writing import write_pack
from mgrpo.errors import InputError
from mgrpo.storage import atomic_write_json, json_text, make_folder, read_json, storage_error
from mgrpo.terminal.progress import Progress, notice

PACK_NAME = "mocap.npz"
REPORT_NAME = "mocap-report.json"
_PARTS = ".parts"
_CLIPS = "clips"
_FEW_FILES = 8


@dataclass(frozen=True)
class MocapConfig:
    """Convert motion capture files (BVH, ASF/AMC) to motion that `--data.motion` takes.

    Every BVH and AMC file below the folder becomes a clip of OUT/mocap.npz at 30 frames per second, z up. Forward
    kinematics of what is stored is compared with the source's own joints, and the largest error printed per file.
    OUT/mocap-report.json tells of every file what became of it. Files that can't be used are skipped and named; a run
    that was stopped goes on where it was. The same command brings its output up to date; another folder or other
    options are refused where OUT holds motion already, unless --overwrite replaces it.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder with the files, at any depth. An AMC file's skeleton (ASF) is looked for beside it."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder to write to."""
    joint_map: Annotated[str, tyro.conf.arg(name="map")] = "auto"
    """Which joint is which: `auto`, `bandai` (Bandai-Namco), `acclaim` (CMU, HDM05), `generic` (by name patterns), or a
    JSON file with overrides such as {"joints": {"left_foot": "LeftToeBase"}}."""
    unit: str = "auto"
    """Unit of lengths: `auto` (what the file says, else by the length of the legs), `m`, `cm`, `mm`, `inch`, or metres
    per unit as a number."""
    up: Literal["auto", "y", "z"] = "auto"
    """Axis that points up in the files."""
    floor: str = "auto"
    """Height of the floor in the files in metres; `auto`: found per skeleton from slow toes; `keep`: zero."""
    amc_fps: float = 120.0
    """Frames per second of AMC files, which don't say it (CMU and HDM05: 120, some CMU subjects 60)."""
    asf: str = ""
    """Skeleton file of all AMC files; empty: found beside each."""
    max_error_mm: float = 1.0
    """Files whose joints are missed by more than this many millimetres are skipped."""
    format: Literal["pack", "clips"] = "pack"
    """`pack`: one file OUT/mocap.npz, fitted to a body when it is loaded. `clips`: one file per clip in OUT/clips,
    already on `--body`, with contact labels."""
    body: str = "default"
    """Body for `--format clips`: `default`, `smplh`, or the path of an SMPL-H npz."""
    workers: int = 0
    """Processes that convert; 0: one per processor (one in all for a few files)."""
    overwrite: bool = False
    """Replace motion in OUT that was made from another folder or with other options."""

    def __post_init__(self) -> None:
        if self.body != "default" and self.format == "pack":
            raise InputError(
                f"--body {self.body} says nothing about --format pack, which is fitted to a body when it is loaded; "
                "leave it out, or take --format clips"
            )
        if self.workers < 0:
            raise InputError(f"--workers must be at least 0, got {self.workers}")
        parse_floor(self.floor)
        self.options()

    def options(self) -> ConvertOptions:
        """How files are read."""
        return ConvertOptions(
            joint_map=self.joint_map,
            unit=self.unit,
            up=self.up,
            amc_fps=self.amc_fps,
            asf=self.asf,
            max_error_mm=self.max_error_mm,
        )


def run_data_mocap(config: MocapConfig) -> int:
    """Convert. Returns 0, or 2 where no file could be used. Raises InputError and StorageError."""
    files = find_files(config.folder)
    earlier = _earlier(config)
    body = resolve_body(config.body, with_mesh=False) if config.format == "clips" else None
    parts = config.out / _PARTS
    make_folder(parts)
    tasks = []
    for path in files:
        name = path.relative_to(config.folder).as_posix()
        tasks.append((path, name, part_path(parts, name), config.options()))
    results: dict[str, FileResult] = {}
    with Progress("mocap", len(tasks), "files") as progress:
        for result in _converted(tasks, config.workers):
            results[result.file] = result
            notice(describe(result))
            progress.update(skipped=sum(other.status == "skipped" for other in results.values()))
    ordered = [results[task[1]] for task in tasks]
    used = [(task, result) for task, result in zip(tasks, ordered) if result.status != "skipped"]
    report = {
        **_settings(config),
        "converted": len(used),
        "skipped": len(ordered) - len(used),
        "frames": sum(result.frames for _, result in used),
        "largest_error_mm": max((result.error_mm for _, result in used), default=None),
        "files": [asdict(result) for result in ordered],
    }
    if not used:
        if not earlier:  # otherwise the report of what is there stays with it
            atomic_write_json(config.out / REPORT_NAME, report)
        raise InputError(
            f"none of the {len(files)} files in {config.folder} could be used; the first: {ordered[0].reason}."
            + ("" if earlier else f" All reasons are in {config.out / REPORT_NAME}")
        )
    pack, extra = assemble([task[2] for task, _ in used], _clip_names([result for _, result in used]), config.floor)
    outputs = [PACK_NAME] if body is None else [f"{_CLIPS}/{name}.npz" for name in pack.names]
    # with what is still there: a run killed from here on leaves nothing that nobody knows
    atomic_write_json(config.out / REPORT_NAME, report | {"outputs": sorted({*earlier, *outputs})})
    if body is None:
        write_pack(config.out / PACK_NAME, pack, extra)
        print(config.out / PACK_NAME)
    else:
        _write_clips(config.out / _CLIPS, pack, body)
    _remove(config.out, set(earlier) - set(outputs))
    atomic_write_json(config.out / REPORT_NAME, report | {"outputs": outputs})
    print(
        f"{report['converted']} clips, {report['frames']} frames ({report['frames'] / 30 / 60:.1f} min), largest "
        f"forward kinematics error {report['largest_error_mm']:.3f} mm; {report['skipped']} files skipped"
        + (f", reasons in {config.out / REPORT_NAME}" if report["skipped"] else "")
    )
    return 0


def _settings(config: MocapConfig) -> dict[str, Any]:
    """All that the output depends on, but for the files themselves."""
    return {
        "folder": str(config.folder.resolve()),
        "format": config.format,
        "body": config.body,
        "options": asdict(config.options()) | {"floor": config.floor},
    }


def _earlier(config: MocapConfig) -> list[str]:
    """Files of motion below OUT that an earlier run says to have written. Raises InputError where OUT holds motion that
    this run would replace by that of other files or options."""
    report: dict[str, Any] = {}
    with contextlib.suppress(InputError):  # none there, or damaged
        found = read_json(config.out / REPORT_NAME, "report")
        report = found if isinstance(found, dict) else {}
    there = sorted(path.relative_to(config.out).as_posix() for path in (config.out / _CLIPS).rglob("*.npz"))
    there += [PACK_NAME] if (config.out / PACK_NAME).exists() else []
    settings = json.loads(json_text(_settings(config)))
    changed = differences({name: report.get(name) for name in settings}, settings)
    if there and changed and not config.overwrite:
        listed = "; ".join(f"{name}: {old} there, {new} now" for name, old, new in changed)
        told = listed if report else f"it has no {REPORT_NAME}, which would say how it was made"
        raise InputError(
            f"{config.out} holds motion already ({there[-1]}) that was made in another way: {told}. Choose another "
            "folder, or --overwrite to replace it"
        )
    recorded = report.get("outputs", [])
    return [name for name in there if name == PACK_NAME or (isinstance(recorded, list) and name in recorded)]


def _remove(out: Path, names: Iterable[str]) -> None:
    """Delete motion of an earlier run that this one doesn't have: a reader of the folder would take it for ours."""
    for name in names:
        try:
            (out / name).unlink(missing_ok=True)
        except OSError as error:
            raise storage_error("delete", out / name, error) from error


def describe(result: FileResult) -> str:
    """One line about a file."""
    if result.status == "skipped":
        return f"skipped    {result.file}: {result.reason}"
    notes = f"; {'; '.join(result.notes)}" if result.notes else ""
    return (
        f"{result.status:<10} {result.file}: {result.frames} frames from {result.source_fps:g} fps, "
        f"{result.joint_map}, {result.metres_per_unit:.4g} m/unit, error {result.error_mm:.3f} mm{notes}"
    )


def _clip_names(results: Sequence[FileResult]) -> list[str]:
    """Names without the files' ends, unless that makes two the same (walk.bvh and walk.amc)."""
    plain = [result.clip for result in results]
    return [result.file if plain.count(result.clip) > 1 else result.clip for result in results]


def _write_clips(folder: Path, pack: MotionPack, body: BodyModel) -> None:
    clips = fit_pack(pack, body)
    with Progress("clips", len(clips), "files") as progress:
        for clip in clips:
            path = folder / f"{clip.name}.npz"
            make_folder(path.parent)
            save_clip(path, clip)
            progress.update()
    print(folder)


def _converted(tasks: Sequence[tuple[Path, str, Path, ConvertOptions]], workers: int) -> Iterator[FileResult]:
    """Results as they come. Parts already written stay when this is stopped."""
    workers = workers or (1 if len(tasks) <= _FEW_FILES else os.cpu_count() or 1)
    workers = min(workers, len(tasks))
    if workers == 1:
        yield from map(convert_to_part, tasks)
        return
    # new processes rather than copies of this one, which has threads
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_interrupts_to_parent)
    try:
        for future in as_completed([pool.submit(convert_to_part, task) for task in tasks]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _leave_interrupts_to_parent() -> None:
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
