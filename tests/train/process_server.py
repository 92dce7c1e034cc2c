"""The processes of a training, started as a launcher would; run by launcher.py.

A request names {"processes", "port", "words", "log", "masked", "keep"}: each process runs `mgrpo <words>`, its output
goes to `<log>.<rank>` and, with "keep", its first rollouts to `<log>.<rank>.pt`.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from mgrpo.cli import main
from mgrpo.models import denoiser
from mgrpo.train import prior  # noqa: F401  (imported once, here)
from tests.train import motion_files as files
from tests.train import rollout_files as rollouts
from tests.train.forking import import_all_of_torch, serve


def child(rank: int, request: dict[str, Any]) -> int:
    log = os.open(f"{request['log']}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(request["processes"]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(request["port"]),
    }
    if request["masked"]:
        files.mask_batches()
    if request["keep"]:
        rollouts.keep_rollouts(Path(f"{request['log']}.{rank}.pt"))
    # A test that fails must not leave processes behind.
    threading.Thread(target=lambda: (time.sleep(120), os._exit(99)), daemon=True).start()
    return main(request["words"])


if __name__ == "__main__":
    denoiser.DENOISER_PRESETS["test"] = files.TINY_DENOISER
    import_all_of_torch()
    serve(child)
