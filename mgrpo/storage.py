"""Files that are whole or absent, folders that one process holds, and disk errors a person can act on.

Everything that mgrpo writes goes through here. A file (or a checkpoint folder) is first written under a hidden
temporary name in the folder where it belongs, pushed to the disk, and only then renamed; a process killed at any moment
leaves the old one or the new one, and `remove_leftovers` clears the hidden remains at the next start of whoever holds
the folder by a `FileLock`. Only the standard library is used, so that every part of mgrpo may come here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mgrpo.errors import InputError, MgrpoError

try:
    import fcntl
except ImportError:  # no file locks of this kind on Windows: two processes in one folder are not noticed there
    fcntl = None  # type: ignore[assignment]

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
        cause += "" if free is None else f" ({free:.1f} MB free there without the unfinished file)"
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


def file_stem(name: str, *, unique: bool = True) -> str:
    """``name`` as a file's name: letters and digits of any script, and ``._-``; the rest becomes ``_``, and with
    ``unique`` six digits of a hash then keep names apart that would look alike."""
    stem = re.sub(r"[^\w.-]+", "_", name)
    if stem == name or not unique:
        return stem
    return f"{stem}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"


def _free_megabytes(path: Path) -> float | None:
    for folder in (path, *path.parents):
        try:
            return shutil.disk_usage(folder).free / 1e6
        except OSError:
            continue
    return None


@contextlib.contextmanager
def folder_for_results(path: Path) -> Iterator[None]:
    """Make a folder now, so that one that can't be written to is known before the work in the block; if that raises,
    what was made goes again where nothing was put into it. Raises `StorageError` when the disk refuses."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    make_folder(path)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in missing:
                folder.rmdir()
        raise


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


@contextlib.contextmanager
def replacing(path: Path, *, grow_in: Path | None = None) -> Iterator[Path]:
    """Replace the file `path` in one step by one that the block writes: readers see the old file or the whole new one.

    Yields where to write: a hidden name with another ending, in the same folder or in `grow_in` (of the same disk),
    whose owner then clears what a killed process left. When the block ends, that file is pushed to the disk and
    renamed; when it raises, `path` stays as it was and nothing is left behind. An `OSError` is passed on.
    """
    with replacing_together() as place:
        yield place(path, grow_in)


@contextlib.contextmanager
def replacing_together() -> Iterator[Callable[..., Path]]:
    """Replace files that belong together: none of them before all are whole and on the disk.

    Yields a function that takes the path of a file (and optionally `grow_in`) and gives the place to write it, as
    `replacing` does. The file that was asked for first gets its name last: who sees it sees the others. When the block
    raises, all files stay as they were and nothing is left behind. An `OSError` is passed on.
    """
    temporaries: dict[Path, Path] = {}

    def place(path: Path, grow_in: Path | None = None) -> Path:
        return temporaries.setdefault(path, _temporary_name(path, grow_in))

    try:
        yield place
        for temporary in temporaries.values():
            _sync_file(temporary)
        for path in reversed(temporaries):
            os.replace(temporaries[path], path)
        for folder in {path.parent for path in temporaries}:
            sync_folder(folder)
    except BaseException:
        for temporary in temporaries.values():
            _remove_quietly(temporary)
        raise


def _temporary_name(path: Path, folder: Path | None = None) -> Path:
    # without the file's ending: who looks for *.npz, say, must not find what a killed process left
    return (folder or path.parent) / f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}"


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)  # Windows syncs only what may be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Replace the file `path` by `data` (text as UTF-8) in one step: readers see the old file or the new one.

    Raises `StorageError` when the disk refuses; the old file is then untouched and nothing is left behind.
    """
    payload = data.encode() if isinstance(data, str) else data
    try:
        with replacing(path) as temporary:
            write_and_sync(temporary, payload)
    except OSError as error:
        raise storage_error("write", path, error) from error


def atomic_write_parts(path: Path, parts: Iterable[bytes | str]) -> None:
    """The same of a file whose content comes piece by piece, of which no more than one is in memory."""
    try:
        with replacing(path) as temporary, open(temporary, "wb") as stream:
            for part in parts:
                stream.write(part.encode() if isinstance(part, str) else part)
    except OSError as error:
        raise storage_error("write", path, error) from error


def atomic_create(path: Path, data: bytes | str) -> bool:
    """Write the file `path` unless it exists; whether it was written. Of several processes one does, and all see the
    whole file afterwards. Raises `StorageError` when the disk refuses."""
    if path.exists():
        return False
    temporary = _temporary_name(path)
    try:
        write_and_sync(temporary, data.encode() if isinstance(data, str) else data)
        try:
            os.link(temporary, path)  # unlike a rename, it never replaces what another process has just written
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            os.replace(temporary, path)
        sync_folder(path.parent)
        return True
    except OSError as error:
        raise storage_error("write", path, error) from error
    finally:
        _remove_quietly(temporary)


class FileLock:
    """What one process at a time may do, held by this one until `release` or its end. Also a context manager.

    The lock is of the system (it goes with the process, even a killed one) on a file that stays, and that names the
    holder for the message to others.
    """

    def __init__(self, path: Path, what: str, advice: str = "Wait for it to end.", *, wait: bool = False) -> None:
        """Take the lock.

        Args:
            path: the file of the lock, made if absent.
            what: what is held, for messages: "run folder x".
            advice: last sentence of the message to who comes second.
            wait: wait for the holder instead of refusing.
        Raises:
            InputError: another process holds it.
            StorageError: the file can't be made.
        """
        self.missing: str | None = None
        """Why nothing is locked (no locks on this system or file system); None where it is."""
        try:
            self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise storage_error("lock", path, error) from error
        if fcntl is None:
            self.missing = "this system has no file locks"
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            owner = os.read(self._descriptor, 32).decode(errors="replace").strip() or "unknown"
            self.release()
            raise InputError(f"{what} is in use by another process (pid {owner}). {advice}") from None
        except OSError as error:  # some network disks
            self.missing = f"its file system has no locks ({error.strerror})"
            return
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            self.release()
            raise storage_error("write", path, error) from error

    def release(self) -> None:
        """Let others in. Does nothing the second time."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


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
    temporary = _temporary_name(path)
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


def read_json(
    path: Path, what: str, *, limit: int | None = None, advice: str = "Use another checkpoint, or restore the file."
) -> Any:
    """Read a JSON file; `InputError` when it is missing, damaged or longer than `limit` bytes, naming it as `what`;
    `advice` says what to do about a damaged one."""
    data = read_bytes(path, what, limit=limit)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is damaged: {path} is not valid JSON ({error}). {advice}") from error
