"""Files that are whole or absent: atomic writing, safetensors with a checksum, and disk errors a person can act on.

Run folders and models in other layouts go through here. A file (or a checkpoint folder) is first written under a hidden
temporary name in the folder where it belongs, pushed to the disk, and only then renamed; a process killed at any moment
leaves the old one or the new one, and `remove_leftovers` clears the hidden remains at the next start.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save

from mgrpo.errors import InputError, MgrpoError

TEMPORARY_PREFIX = ".tmp-"
"""Start of the name of everything that is still being written."""

REPLACED_PREFIX = ".replaced-"
"""Start of the name of a folder that is being exchanged for a newer one of the same name."""


class StorageError(MgrpoError):
    """The disk refused: full, read-only, no permission. The text says which file, why, and what to do."""


def storage_error(action: str, path: Path, error: OSError, advice: str | None = None) -> StorageError:
    """Turn an `OSError` into a `StorageError` with the cause in words and the next step.

    `action` reads like "write the checkpoint"; `advice` overrides the last sentence.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = _free_megabytes(path)
        cause = "the disk is full" if error.errno == errno.ENOSPC else "the disk quota is used up"
        cause += "" if free is None else f" ({free:.1f} MB free there)"
        advice = advice or "Free some space there, or choose a folder on another disk."
    elif error.errno in (errno.EACCES, errno.EPERM):
        cause = "no permission to write there"
        advice = advice or "Choose another folder, or change its permissions."
    elif error.errno == errno.EROFS:
        cause = "that file system is read-only"
        advice = advice or "Choose a folder on another disk."
    elif error.errno in (errno.ENOTDIR, errno.EEXIST):
        cause = "a part of that path is a file, not a folder"
        advice = advice or "Choose another folder."
    else:
        cause = error.strerror or str(error)
        advice = advice or "Choose another folder, or look at the disk."
    return StorageError(f"could not {action} {path}: {cause}. {advice}")


def _free_megabytes(path: Path) -> float | None:
    for folder in (path, *path.parents):
        try:
            return shutil.disk_usage(folder).free / 1e6
        except OSError:
            continue
    return None


def make_folder(path: Path) -> None:
    """Create `path` and its parents if absent. Raises `StorageError` when the disk refuses."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error("create the folder", path, error) from error


def write_fully(descriptor: int, data: bytes) -> None:
    """Write all of `data` to an open file descriptor. `os.write` may take only a part; an `OSError` is passed on."""
    view = memoryview(data)
    while len(view):
        view = view[os.write(descriptor, view) :]


def write_and_sync(path: Path, data: bytes) -> None:
    """Write a new file and push it to the disk. Not atomic by itself: for files inside a temporary folder."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        write_fully(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Push a folder's list of names to the disk, so that a rename survives a power cut (where the system can do
    that)."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows cannot open folders; the rename is still atomic there
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some network disks refuse this on folders
            raise
    finally:
        os.close(descriptor)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Replace the file `path` by `data` (text as UTF-8) in one step: readers see the old file or the new one.

    Raises `StorageError` when the disk refuses; the old file is then untouched and nothing is left behind.
    """
    payload = data.encode() if isinstance(data, str) else data
    temporary = path.parent / f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}"
    try:
        write_and_sync(temporary, payload)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        _remove_quietly(temporary)
        raise storage_error("write", path, error) from error
    except BaseException:
        _remove_quietly(temporary)
        raise


def atomic_write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step (indented, NaN not allowed). Raises `StorageError` like `atomic_write`."""
    atomic_write(path, json_text(content))


def json_text(content: Any) -> str:
    """Indented JSON text with a newline at its end; `ValueError` for NaN and infinity, which JSON doesn't know."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def atomic_write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Create or replace the folder `path` holding exactly `files` (name to content), in one step. A name may contain
    slashes: the folders in between are made.

    When a folder of that name exists it is renamed to a hidden name first; a kill between the two renames is mended by
    `remove_leftovers` (which brings the old folder back) and seen through by `visible_folder`.
    Raises `StorageError` when the disk refuses; whatever was there before is then still there.
    """
    temporary = path.parent / f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}"
    replaced = path.parent / f"{REPLACED_PREFIX}{path.name}"
    try:
        _remove_quietly(temporary)
        temporary.mkdir()
        for name, data in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            write_and_sync(temporary / name, data)
        for folder in {temporary, *((temporary / name).parent for name in files)}:
            sync_folder(folder)
        if path.exists():
            _remove_quietly(replaced)
            os.rename(path, replaced)
        os.rename(temporary, path)
        sync_folder(path.parent)
        _remove_quietly(replaced)
    except BaseException as error:
        if replaced.exists() and not path.exists():
            os.rename(replaced, path)
        _remove_quietly(temporary)
        if isinstance(error, OSError):
            raise storage_error("write", path, error) from error
        raise


def visible_folder(path: Path) -> Path:
    """`path`, or the older folder of the same name if a kill happened in the middle of exchanging the two."""
    replaced = path.parent / f"{REPLACED_PREFIX}{path.name}"
    return replaced if not path.exists() and replaced.exists() else path


def remove_leftovers(folder: Path) -> None:
    """Clear what a killed process left half-written directly in `folder`, and bring back folders caught in an exchange.

    Only call it while holding the run folder's lock: it can't tell another living process's files from a dead one's.
    """
    if not folder.is_dir():
        return
    try:
        for entry in list(folder.iterdir()):
            if entry.name.startswith(TEMPORARY_PREFIX):
                _remove(entry)
            elif entry.name.startswith(REPLACED_PREFIX):
                original = folder / entry.name[len(REPLACED_PREFIX) :]
                if original.exists():
                    _remove(entry)
                else:
                    os.rename(entry, original)
    except OSError as error:
        raise storage_error("clean up", folder, error) from error


def remove_folder(path: Path) -> None:
    """Delete a folder so that it never shows half-deleted: it is renamed to a hidden name first."""
    hidden = path.parent / f"{TEMPORARY_PREFIX}deleted-{path.name}-{os.getpid()}"
    try:
        os.rename(path, hidden)
        _remove(hidden)
    except FileNotFoundError:
        return
    except OSError as error:
        raise storage_error("delete", path, error) from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_quietly(path: Path) -> None:
    with contextlib.suppress(OSError):
        _remove(path)


def tensors_to_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The content of a safetensors file. Values and dtypes are kept exactly; shared memory is stored twice."""
    storable: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        # safetensors refuses views of one storage, such as tied weights
        if storage.data_ptr() in seen or storage.nbytes() != plain.numel() * plain.element_size():
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        storable[name] = plain
    return safetensors_save(storable, metadata={"format": "pt"})


def checksum(data: bytes) -> str:
    """SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def read_bytes(path: Path, what: str, *, limit: int | None = None) -> bytes:
    """Read a whole file. `what` names it in the `InputError` raised when it is missing, unreadable, or longer than
    `limit` bytes (of which no more is then read)."""
    try:
        with path.open("rb") as stream:
            data = stream.read(-1 if limit is None else limit + 1)
        if limit is not None and len(data) > limit:
            raise InputError(f"{what} is not what it should be: {path} is longer than {limit:,} bytes.")
        return data
    except FileNotFoundError:
        raise InputError(f"{what} not found: {path} does not exist. Give the path of an existing one.") from None
    except OSError as error:
        raise InputError(f"{what} can't be read: {path}: {error.strerror or error}.") from error


def read_json(path: Path, what: str, *, limit: int | None = None) -> Any:
    """Read a JSON file; `InputError` when it is missing, damaged or longer than `limit` bytes, naming it as `what`."""
    data = read_bytes(path, what, limit=limit)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{what} is damaged: {path} is not valid JSON ({error}). Use another checkpoint, or restore the file."
        ) from error


def read_tensors(path: Path, what: str, expected_checksum: str | None = None) -> dict[str, torch.Tensor]:
    """Read a safetensors file to CPU tensors.

    Raises `InputError` when it is missing, truncated, not a safetensors file, or differs from `expected_checksum`.
    """
    data = read_bytes(path, what)
    advice = "Use another checkpoint of the run, or copy the file again from where it came."
    try:
        tensors = safetensors_load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(
            f"{what} is damaged: {path} ({len(data)} bytes) is not a whole safetensors file ({error}). {advice}"
        ) from error
    if expected_checksum is not None and checksum(data) != expected_checksum:
        raise InputError(f"{what} is damaged: the content of {path} differs from what was saved (checksum). {advice}")
    return tensors
