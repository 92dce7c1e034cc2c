"""Pickles, joblib files and npy files of objects: opened within bounds, unpacked, and read."""

from __future__ import annotations

import io
import tokenize
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from mgrpo.errors import InputError

from .arrays import numeric_array
from .finishing import Finisher
from .instructions import run
from .machine import Machine
from .refusal import MAX_BYTES, MAX_INSTRUCTIONS, Refused

HEADER_ERRORS = (ValueError, KeyError, EOFError, OSError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)
"""What numpy raises for a damaged npy header, which it reads as a Python literal."""


def _object(data: bytes, start: int = 0, instructions: int | None = None) -> Any:
    instructions = MAX_INSTRUCTIONS if instructions is None else instructions
    return Finisher(instructions).finish(run(Machine(data, start, instructions)))


def loads_safely(data: bytes | memoryview, what: str = "pickle", *, most_instructions: int | None = None) -> Any:
    """The object that a pickle or joblib stream describes, built without running anything.

    Args:
        data: the bytes, uncompressed.
        what: what they should be, for messages.
        most_instructions: bound on the pickle's instructions and objects; None: :data:`MAX_INSTRUCTIONS`.

    Returns:
        Numbers, strings, bytes, lists, tuples, dictionaries, sets and numpy arrays; numpy's scalars become Python's,
        default and ordered dictionaries plain ones. Numeric arrays may be read-only views of the bytes.

    Raises:
        InputError: the stream is damaged, asks for anything else, or is out of bounds (see the module).
    """
    try:
        return _object(bytes(data), instructions=most_instructions)
    except Refused as refusal:
        raise InputError(f"{what}: not read: {refusal}.") from None


def load_pickle(path: str | Path, what: str = "pickle", *, most_instructions: int | None = None) -> Any:
    """The object in a pickle or joblib file, plain or compressed by zlib or gzip, without running it.

    Returns what :func:`loads_safely` does. Raises InputError for a missing or damaged file and for what isn't read.
    """
    data = _read(Path(path), what)
    if data[:2] == b"\x1f\x8b" or (data[:1] == b"\x78" and len(data) > 1 and int.from_bytes(data[:2], "big") % 31 == 0):
        data = _unpacked(data, path)
    for head, kind in ((b"BZ", "bz2"), (b"\xfd7zXZ", "xz"), (b"]\x00\x00", "lzma"), (b"\x04\x22M\x18", "lz4")):
        if data[: len(head)] == head:
            raise InputError(
                f"{path}: compressed by {kind}, which is not read. Write it again uncompressed or with zlib: "
                "joblib.dump(joblib.load(FILE), NEW_FILE, compress=('zlib', 3)), where you trust the file."
            )
    if data[:4] == b"PK\x03\x04":
        raise InputError(f"{path}: a zip archive (npz or a torch file), not the {what} expected here.")
    if not data:
        raise InputError(f"{path}: the file is empty; expected a {what}.")
    return loads_safely(data, str(path), most_instructions=most_instructions)


def load_object_npy(path: str | Path, what: str = "npy file") -> Any:
    """The contents of an npy file of dtype object, as ``np.save`` writes a dictionary or a list, without running it.

    Returns the object itself for an array of shape () or (1,), otherwise the array of objects. A numeric npy gives its
    array. Raises InputError as :func:`load_pickle` does.
    """
    data = _read(Path(path), what)
    stream = io.BytesIO(data[: 1 << 16])
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read_header(stream)
    except HEADER_ERRORS as error:
        raise InputError(f"{path}: not an npy file, or a damaged one ({error}); expected a {what}.") from error
    try:
        if not dtype.hasobject:
            return numeric_array(memoryview(data)[stream.tell() :], dtype, shape, fortran)
        if dtype != np.dtype(object):
            raise Refused("it has a structured array; save its columns as arrays of their own")
        value = _object(data, stream.tell())
    except Refused as refusal:
        raise InputError(f"{path}: not read: {refusal}.") from None
    single = isinstance(value, np.ndarray) and value.dtype == object and value.size == 1 and value.ndim <= 1
    return value.reshape(())[()] if single else value


def _read(path: Path, what: str) -> bytes:
    if path.is_dir():
        raise InputError(f"{path}: expected a {what}, got a folder")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{path}: {size / 1e9:.1f} GB; a {what} of at most {MAX_BYTES / 1e9:.1f} GB is read")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected a {what}") from error
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or error})") from error


def _unpacked(data: bytes, path: str | Path) -> bytes:
    """Zlib or gzip undone, stopped where it grows beyond bounds."""
    machine = zlib.decompressobj(wbits=47)
    parts, total, rest = [], 0, data
    try:
        while rest and not machine.eof:
            part = machine.decompress(rest, 1 << 24)
            rest = machine.unconsumed_tail
            total += len(part)
            if total > min(MAX_BYTES, 100 * len(data) + (1 << 28)):
                raise InputError(f"{path}: unpacks to more than {total / 1e9:.2f} GB; damaged, or made to fill memory")
            parts.append(part)
            if not part and not rest:
                break
    except zlib.error as error:
        raise InputError(f"{path}: its compression is damaged ({error}); get or write it again") from error
    if not machine.eof:
        raise InputError(f"{path}: its compression ends too early; get or write it again")
    return b"".join(parts)
