"""AMASS to the base model's training file, in parallel, resumable, one bad recording at a time.

Every recording becomes a part (:mod:`mgrpo.data.amass.parts`); when all are there, the parts are written into the HDF5
file in sorted order. So the result does not depend on the number of processes or on interruptions.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import multiprocessing
import os
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait as wait_for_end
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from mgrpo.body.model import BodyModel
from mgrpo.data.amass.clip_rules import skip_reason
from mgrpo.data.amass.gender import BetasConversion
from mgrpo.data.amass.layout import Layout, SourceFile, Split, find_recordings
from mgrpo.data.amass.parts import (
    PartInfo,
    PartsFolder,
    part_key,
    part_path,
    read_part,
    read_part_info,
    write_part,
)
from mgrpo.data.amass.process import ClipRules, float64_body, prepare_recording
from mgrpo.data.amass.recording import file_stamp, read_recording
from mgrpo.data.amass.writer import list_path, list_text, write_hdf5
from mgrpo.errors import InputError
from mgrpo.storage import replacing

VERSION = 1
"""Counts changes of the preparation: parts of another version are not used."""

Conversions = Mapping[str, BetasConversion]

_QUEUED_PER_WORKER = 4


@dataclass(frozen=True)
class Outcome:
    """What came of one recording."""

    file: SourceFile
    status: Literal["written", "skipped", "failed", "defect"]
    """Used; left out by a rule; not usable; stopped by a defect of mgrpo."""
    reason: str = ""
    """Why it was not used."""
    frames: tuple[int, ...] = ()
    """Frames at 30 fps of the clip and its mirror image."""
    floor_found: bool = True
    """False where there was nothing to find the floor from: the clip then stands as it was recorded."""
    reused: bool = False
    """Whether an earlier, interrupted run had done it."""


@dataclass(frozen=True)
class Plan:
    """What is to be done, before anything is read."""

    layout: Layout
    skipped: tuple[Outcome, ...]
    """Recordings left out by their names."""
    todo: tuple[SourceFile, ...]
    """The others, sorted by name."""


class Task(NamedTuple):
    """All that a worker needs for one recording."""

    file: SourceFile
    folder: Path
    settings: Mapping[str, Any]


class _Tools(NamedTuple):
    body: BodyModel
    rules: ClipRules
    conversions: Conversions | None


def make_plan(folder: Path, splits: Sequence[Split]) -> Plan:
    """Find the recordings and sort out those that are left out by their names. Raises InputError like
    :func:`find_recordings`."""
    layout = find_recordings(folder, splits)
    skipped, todo = [], []
    for file in layout.files:
        reason = skip_reason(file.name)
        if reason is None:
            todo.append(file)
        else:
            skipped.append(Outcome(file, "skipped", reason))
    skipped += [Outcome(file, "skipped", "a file of the same name and another ending") for file in layout.doubles]
    return Plan(layout, tuple(skipped), tuple(todo))


def prepare_dataset(
    plan: Plan,
    out: Path,
    body: BodyModel,
    rules: ClipRules,
    conversions: Conversions | None,
    parts: PartsFolder,
    *,
    workers: int,
    on_recording: Callable[[Outcome], None] = lambda outcome: None,
    on_written: Callable[[int], None] = lambda groups: None,
) -> list[Outcome]:
    """Prepare all recordings of a plan and write ``out`` and the list of its groups.

    Args:
        plan: from :func:`make_plan`.
        out: the HDF5 file; the list goes beside it (:func:`mgrpo.data.amass.writer.list_path`).
        body: the neutral body.
        rules: how recordings are prepared.
        conversions: shape numbers to the neutral body by gender; None takes them as they are.
        parts: folder of finished work, entered; the caller removes it when all is done.
        workers: processes; 1 works in this one.
        on_recording: called after each recording that needed work or was found done.
        on_written: called with the number of groups after each recording that was written to ``out``.
    Returns:
        What came of each recording, sorted by name, those left out by their names included.
    Raises:
        InputError: nothing usable came of it; a worker died.
        OSError: the disk refused. Finished parts stay, so running again goes on.
    """
    tools = _Tools(float64_body(body), rules, conversions)
    settings = settings_of(tools)
    outcomes: dict[str, Outcome] = {}
    tasks = [Task(file, parts.path, settings) for file in plan.todo]
    with contextlib.closing(_outcomes(tasks, tools, workers)) as coming:
        for outcome in coming:
            outcomes[outcome.file.name] = outcome
            on_recording(outcome)
    written = [outcomes[name] for name in sorted(outcomes) if outcomes[name].status == "written"]
    if not written:
        why = sorted({outcome.reason for outcome in (*outcomes.values(), *plan.skipped)})
        raise InputError(f"none of {len(plan.layout.files)} recordings can be used: {'; '.join(why[:5])}")
    groups = sorted(
        (name, outcome.file.name, index)
        for outcome in written
        for index, (name, frames) in enumerate(zip((outcome.file.name, outcome.file.mirrored_name), outcome.frames))
        if frames
    )
    _check_space(out, parts.path, written)
    # the list before the file: whoever finds a new file finds its list
    with replacing(list_path(out), grow_in=parts.path) as temporary:
        temporary.write_bytes(list_text(name for name, _, _ in groups).encode())
    write_hdf5(out, _groups(groups, parts.path, on_written), grow_in=parts.path)
    return sorted((*outcomes.values(), *plan.skipped), key=lambda outcome: (outcome.file.name, str(outcome.file.path)))


def _check_space(out: Path, folder: Path, written: Sequence[Outcome]) -> None:
    """HDF5 notices a full disk late; the parts have nearly the size of the file."""
    needed = sum(part_path(folder, outcome.file.name).stat().st_size for outcome in written)
    if shutil.disk_usage(out.parent).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))


def _groups(
    groups: Sequence[tuple[str, str, int]], folder: Path, on_written: Callable[[int], None]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Names and arrays in sorted order. A clip and its mirror image are neighbours nearly always, so the part that was
    read last is kept."""
    last_source, arrays = "", []
    for number, (name, source, index) in enumerate(groups, 1):
        if source != last_source:
            last_source, arrays = source, read_part(part_path(folder, source))
        yield name, arrays[index]
        on_written(number)


def settings_of(tools: _Tools) -> dict[str, Any]:
    """Everything but the recording that the arrays of a clip depend on."""
    body, digest = tools.body, hashlib.sha256()
    for tensor in (body.J_template, body.J_shapedirs, body.cpf_template, body.cpf_shapedirs):
        digest.update(tensor.numpy().tobytes())
    betas: Any = "as-is"
    if tools.conversions is not None:
        betas = {
            gender: hashlib.sha256(one.A.tobytes() + one.b.tobytes()).hexdigest()
            for gender, one in tools.conversions.items()
        }
    return {"version": VERSION, "rules": asdict(tools.rules), "body": digest.hexdigest(), "betas": betas}


def prepare_part(task: Task, tools: _Tools) -> Outcome:
    """Make the part of one recording, or find it made. Whatever is wrong with the recording is in the outcome; an
    OSError means that the part could not be written."""
    file = task.file
    try:
        _check_name(file.name)
        key = part_key(task.settings, file.name, _stamp(file.path))
        path = part_path(task.folder, file.name)
        info = read_part_info(path, key)
        if info is not None:
            return _outcome(file, info, reused=True)
        recording = read_recording(file.path)
        conversions = None if tools.conversions is None else dict(tools.conversions)
        clips, skipped = prepare_recording(recording, file.name, tools.body, tools.rules, conversions)
    except InputError as error:
        return Outcome(file, "failed", str(error))
    except MemoryError as error:
        return Outcome(file, "failed", f"{file.path}: out of memory ({error}); use fewer workers")
    except Exception as error:  # a defect must not cost the other recordings their work
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome(
            file, "defect", f"{file.path}: {type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        )
    return _outcome(file, write_part(path, key, clips, skipped), reused=False)


def _outcome(file: SourceFile, info: PartInfo, *, reused: bool) -> Outcome:
    if info.skipped is not None:
        return Outcome(file, "skipped", info.skipped, reused=reused)
    return Outcome(file, "written", frames=info.frames, floor_found=info.floor_found, reused=reused)


def _check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name!a}: the file name is not UTF-8, so it can't name a group; rename it") from None
    if any(character in name for character in "\n\r\0"):
        raise InputError(f"{name!a}: the file name has a line break, which the list can't hold; rename it")


def _stamp(path: Path) -> tuple[int, int]:
    try:
        return file_stamp(path)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or error})") from error


def _outcomes(tasks: list[Task], tools: _Tools, workers: int) -> Iterator[Outcome]:
    """The outcomes, in the order in which they come."""
    workers = min(workers, len(tasks))
    if workers <= 1:
        # these tensors are small: a second thread makes it three times as expensive and no faster
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for task in tasks:
                yield prepare_part(task, tools)
        finally:
            torch.set_num_threads(threads)
        return
    # fresh processes: a forked one would inherit torch's threads in the middle of whatever they do
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (_packed(tools),))
    waiting = iter(tasks)
    running: set[Future[Outcome]] = set()
    try:
        for task in waiting:
            running.add(pool.submit(_work, task))
            if len(running) >= _QUEUED_PER_WORKER * workers:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool:
        raise InputError(
            "a worker process ended by itself, most likely because memory ran out; run the same command again with "
            "fewer --workers: it goes on where it was"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker_tools: _Tools | None = None


def _packed(tools: _Tools) -> dict[str, Any]:
    """The tools as numpy arrays: a few kilobytes, without torch's shared memory."""
    body = tools.body
    return {
        "name": body.name,
        "parents": body.parents,
        "tensors": {
            key: getattr(body, key).numpy() for key in ("J_template", "J_shapedirs", "cpf_template", "cpf_shapedirs")
        },
        "rules": tools.rules,
        "conversions": None if tools.conversions is None else dict(tools.conversions),
    }


def _start_worker(packed: dict[str, Any]) -> None:
    global _worker_tools
    # Ctrl-C reaches the whole group of processes; the first one decides, and this one finishes its recording
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    tensors = {key: torch.from_numpy(value) for key, value in packed["tensors"].items()}
    body = BodyModel(name=packed["name"], parents=packed["parents"], **tensors)
    _worker_tools = _Tools(body, packed["rules"], packed["conversions"])
    threading.Thread(target=_end_with_parent, name="mgrpo-parent", daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent can't stop its workers, which would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_end([parent.sentinel])
        os._exit(1)


def _work(task: Task) -> Outcome:
    assert _worker_tools is not None
    return prepare_part(task, _worker_tools)
