"""The folder of an evaluation that can be interrupted, continued and shared: what was measured so far, line by line.

<folder>/
    evaluation_run.json         settings, checksums of models, body and windows; written once
    progress/shard_1_of_2.jsonl one line for each finished piece of work, of one process
    evaluation.md, .tex, .csv, .json, evaluation_windows.csv    the results, once every piece is there

A piece is one chunk of windows with one seed and one model. Pieces are the same however the work is shared, and a
process appends each as a whole line, so that a kill at any moment costs at most the pieces that were being computed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mgrpo.config_record import differences
from mgrpo.errors import InputError
from mgrpo.eval.evaluate import EvaluationResult
from mgrpo.storage import (
    FileLock,
    atomic_create,
    json_text,
    make_folder,
    read_json,
    remove_leftovers,
    storage_error,
    write_fully,
)

RECORD_NAME = "evaluation_run.json"
_MIXED = "the evaluation's progress mixes pieces with different measures; start in a new folder"
_KINDS = ("values", "group_values", "mean_of_samples", "ground_truth")


class Piece(NamedTuple):
    """The smallest part of the work."""

    model: int
    """Number of the model."""
    chunk: int
    """Number of the chunk of windows."""
    seed: int
    """Seed of the noise."""


def checksum_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values, in the order of the names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


class EvaluationFolder:
    """An evaluation's folder, held by this process for one shard. Use it as a context manager."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], shard: str) -> None:
        """Create the folder, or take up an existing one.

        Args:
            folder: the folder.
            settings: everything that the values depend on, ready for JSON; must equal the stored ones.
            shard: ``i/n``: which of the processes this is.
        Raises:
            InputError: the folder holds an evaluation with other settings, or another process works on this shard.
            StorageError: the disk refuses.
        """
        self.folder = folder
        make_folder(folder / "progress")
        _agree_on(folder / RECORD_NAME, settings)
        name = f"shard_{shard.replace('/', '_of_')}"
        self._path = folder / "progress" / f"{name}.jsonl"
        with contextlib.ExitStack() as held:
            advice = "Wait for it to end, or share the work with --shard i/n."
            held.enter_context(FileLock(folder / "progress" / f".{name}.lock", f"shard {shard} in {folder}", advice))
            self._descriptor = _open(self._path)
            held.callback(os.close, self._descriptor)
            _cut_torn_line(self._path, self._descriptor)
            self._held = held.pop_all()

    def __enter__(self) -> EvaluationFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def append(self, piece: Piece, result: EvaluationResult) -> None:
        """Note one finished piece, on the disk when this returns. Raises StorageError; a line is whole or absent."""
        content = {**piece._asdict(), **plain_result(result)}
        line = (json.dumps(content, allow_nan=False) + "\n").encode()
        before = os.fstat(self._descriptor).st_size
        try:
            write_fully(self._descriptor, line)
            os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, before)
            advice = "Free some space there, then give the command again."
            raise storage_error("write", self._path, error, advice) from error

    @contextlib.contextmanager
    def writing_results(self) -> Iterator[None]:
        """Hold the folder's results: one process at a time writes them, after clearing what a killed one left."""
        with FileLock(self.folder / "progress" / ".results.lock", f"the results in {self.folder}", wait=True):
            remove_leftovers(self.folder)
            yield

    def finished(self) -> dict[Piece, dict[str, Any]]:
        """Every piece that any process has finished in this folder. Raises InputError for a damaged line."""
        return read_pieces(self.folder)


def read_pieces(folder: Path) -> dict[Piece, dict[str, Any]]:
    """The finished pieces in ``folder/progress``; a last line that is being written, or was cut by a kill, is left out.

    Raises InputError naming file and line when another one isn't what mgrpo writes.
    """
    found: dict[Piece, dict[str, Any]] = {}
    for path in sorted((folder / "progress").glob("shard_*.jsonl")):
        try:
            lines = path.read_bytes().split(b"\n")[:-1]
        except OSError as error:
            raise storage_error("read", path, error) from error
        for number, line in enumerate(lines, start=1):
            try:
                content = json.loads(line)
                piece = Piece(*(int(content.pop(name)) for name in Piece._fields))
                if not {"settings", *_KINDS} <= set(content):
                    raise KeyError("values")
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InputError(
                    f"{path}, line {number} is damaged: not a finished piece of work. Delete that line; it is then "
                    "computed again."
                ) from None
            found.setdefault(piece, content)
    return found


def assemble(
    names: Sequence[str],
    window_names: tuple[str, ...],
    chunks: Sequence[Sequence[int]],
    seeds: tuple[int, ...],
    samples: int,
    pieces: Mapping[Piece, Mapping[str, Any]],
) -> list[EvaluationResult]:
    """The results of all models from all pieces of the work.

    Raises InputError where a piece holds other windows or measures than the rest.
    """
    results = []
    for model, name in enumerate(names):
        of_model = [[pieces[Piece(model, chunk, seed)] for seed in seeds] for chunk in range(len(chunks))]
        parts: dict[str, dict[str, Tensor]] = {}
        for kind in _KINDS:
            # What was recorded doesn't depend on the seed: the first one's will do.
            per_chunk = [_joined(row[:1] if kind == "ground_truth" else row, kind) for row in of_model]
            if any(found.keys() != per_chunk[0].keys() for found in per_chunk):
                raise InputError(_MIXED)
            parts[kind] = {key: torch.cat([found[key] for found in per_chunk]) for key in per_chunk[0]}
        parts["ground_truth"] = {key: value[:, 0] for key, value in parts["ground_truth"].items()}
        wanted = (len(window_names), len(seeds), samples)
        if any(tuple(value.shape) != wanted for value in parts["values"].values()):
            raise InputError("the evaluation's progress holds other windows than were asked for; start in a new folder")
        results.append(
            EvaluationResult(
                name=name,
                window_names=window_names,
                seeds=seeds,
                samples=samples,
                settings=dict(of_model[0][0]["settings"]),
                **parts,
            )
        )
    return results


def _joined(seeds: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Tensor]:
    """One kind of values of a chunk ``(B, R, …)`` from its pieces, one for each seed."""
    try:
        return {
            key: torch.stack([_tensor(piece[kind][key]) for piece in seeds], dim=1)
            if kind == "ground_truth"
            else torch.cat([_tensor(piece[kind][key]) for piece in seeds], dim=1)
            for key in seeds[0][kind]
        }
    except (KeyError, RuntimeError, ValueError, TypeError):
        raise InputError(_MIXED) from None


def plain_result(result: EvaluationResult) -> dict[str, Any]:
    """A piece's values and settings as lists and numbers for strict JSON; floats come back bit for bit."""
    return {"settings": dict(result.settings), **{kind: _plain(getattr(result, kind)) for kind in _KINDS}}


def _plain(values: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: _plain_number(value.tolist()) for name, value in values.items()}


def _plain_number(value: Any) -> Any:
    """NaN becomes None, infinity text."""
    if isinstance(value, list):
        return [_plain_number(item) for item in value]
    return None if math.isnan(value) else str(value) if math.isinf(value) else value


def _tensor(value: Any) -> Tensor:
    def number(item: Any) -> Any:
        if isinstance(item, list):
            return [number(inner) for inner in item]
        return math.nan if item is None else float(item)

    return torch.tensor(number(value), dtype=torch.float64)


def _agree_on(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings, or compare them with those that are there. The first of several processes writes."""
    atomic_create(path, json_text(dict(settings)))
    stored = read_json(path, "evaluation record")
    found = differences(stored, json.loads(json_text(dict(settings))))
    if found:
        listed = "\n".join(f"  {name}: {_short(old)} in the folder, {_short(new)} now" for name, old, new in found)
        counted = "1 setting differs" if len(found) == 1 else f"{len(found)} settings differ"
        raise InputError(
            f"{path.parent} holds an evaluation that can't be continued, {counted}:\n{listed}\n"
            "Give the same models, motion and options, or choose another --out."
        )


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 and text.isalnum() else text if len(text) <= 80 else f"{text[:77]}..."


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise storage_error("open", path, error) from error


def _cut_torn_line(path: Path, descriptor: int) -> None:
    """Cut what a killed process left of its last line, so that the next one starts on a line of its own."""
    try:
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(descriptor, whole)
    except OSError as error:
        raise storage_error("clean up", path, error) from error
