"""The headers that every C++ file of ours reads first, compiled once: a second less for each of them.

Only a matter of time: where this cannot be done, or the compiler does not take what came of it, the files read the
headers themselves.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

PRELUDE = """\
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>
"""


def flags(command: Sequence[str], version: str, folder: Path) -> list[str]:
    """The flags to add to ``command`` (the compiler with all its other flags), or none.

    ``version`` is that of the headers. The flags name it, so that a build that goes by its commands compiles anew when
    the headers change. ``folder`` is ours alone: what lies in it from other commands is removed.
    """
    said = subprocess.run([command[0], "--version"], capture_output=True, text=True).stdout
    if "Free Software Foundation" not in said:  # other compilers want other flags
        return []
    digest = hashlib.sha256("\0".join([*command, version, said, PRELUDE]).encode()).hexdigest()[:16]
    header = folder / digest / "prelude.h"
    if not header.with_suffix(".h.gch").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        header.parent.mkdir(parents=True)
        header.write_text(PRELUDE)
        part = header.with_suffix(".part")
        compiled = subprocess.run([*command, "-x", "c++-header", str(header), "-o", str(part)], capture_output=True)
        if compiled.returncode != 0:
            return []
        part.rename(header.with_suffix(".h.gch"))
    return ["-include", str(header)]
