"""Reading pickles of other projects without running them.

A pickle is a small program, and Python's own reader obeys it: it imports what the file names and calls it. This package
reads the same bytes with a machine of its own that knows no import and no call. It builds numbers, strings, bytes,
lists, tuples, dictionaries, sets and numeric numpy arrays, nothing else; every other name in the file is refused, with
the name. What numpy and joblib write as calls (`_reconstruct`, `scalar`, `_frombuffer`, `NumpyArrayWrapper`) is
answered by stand-ins of its own.

Also bounded: the size of the file and of what it unpacks to, the number of instructions, the depth of nesting; an
array's shape must fit the bytes that are there before anything is allocated, and memo numbers are keys, not sizes.

Read by it: pickles of protocol 0 to 5, `joblib.dump` (plain, or compressed by zlib or gzip), and npy files of dtype
object. Not read: bz2, xz, lz4, torch files, instances of classes, out-of-band buffers, structured arrays.
"""

from .files import HEADER_ERRORS, load_object_npy, load_pickle, loads_safely
from .refusal import MAX_BYTES, MAX_DEPTH, MAX_INSTRUCTIONS

__all__ = [
    "HEADER_ERRORS",
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_INSTRUCTIONS",
    "load_object_npy",
    "load_pickle",
    "loads_safely",
]
