"""Starts the processes of a training as a launcher would; run as a script by test_distributed.py.

It imports everything once, then forks, so that a group of processes starts in milliseconds. Requests, one JSON object
a line: {"world", "port", "words", "log", "masked", "keep"} starts `mgrpo <words>` in `world` processes, their output in
`<log>.<rank>` and, with `keep`, their first rollouts in `<log>.<rank>.pt`; the reply is {"pids"}. After another line:
{"codes"}, the exit codes.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import motion_files as files  # beside this script
import rollout_files as rollouts
import torch

from mgrpo.cli import main
from mgrpo.models import denoiser
from mgrpo.train import prior  # noqa: F401  (imported once, here)


def child(rank: int, request: dict[str, object]) -> int:
    log = os.open(f"{request['log']}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(request["world"]),
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


def serve() -> None:
    torch.set_num_threads(1)
    denoiser.DENOISER_PRESETS["test"] = files.TINY_DENOISER
    # torch imports much on the first optimiser step; done here, the children inherit it
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    torch.optim.AdamW([weight]).step()
    for line in sys.stdin:
        request = json.loads(line)
        pids = []
        for rank in range(request["world"]):
            pid = os.fork()
            if pid == 0:
                code = 70
                try:
                    code = child(rank, request)
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            pids.append(pid)
        print(json.dumps({"pids": pids}), flush=True)
        sys.stdin.readline()  # until a child is waited for, its number can't become another process's
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps({"codes": codes}), flush=True)


if __name__ == "__main__":
    serve()
