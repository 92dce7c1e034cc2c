"""Processes that import everything once and fork for what is asked of them, so that it starts in milliseconds: the
server's side, and that of the test which starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

ROOT = Path(__file__).resolve().parents[2]


class ForkingProcess:
    """A process that runs a module, which calls :func:`serve`."""

    def __init__(self, module: str, *words: str, stderr: int | IO[str] | None = None, **environment: str) -> None:
        """Start ``python -m tests.train.<module> <words>`` with these environment variables besides."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.train.{module}", *words],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        )

    def start(self, **request: object) -> list[int]:
        """Numbers of the processes that carry out a request: ``processes`` of them, or one."""
        return self._ask(request)["pids"]

    def wait(self) -> list[int]:
        """Exit codes of those that were started last; a killed one has that of its signal, negative."""
        return self._ask({})["codes"]

    def run(self, **request: object) -> list[int]:
        """Exit codes of the processes that carry out a request."""
        self.start(**request)
        return self.wait()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(timeout=60) == 0

    def _ask(self, request: dict[str, object]) -> dict[str, list[int]]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process ended"
        return json.loads(line)


def serve(child: Callable[[int, dict[str, Any]], int]) -> None:
    """Carry out requests until there are no more: each in processes of its own, which end with what ``child``, called
    with their number from 0 and the request, returns."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a child prints is no reply
    for line in sys.stdin:
        request = json.loads(line)
        pids = []
        for number in range(request.get("processes", 1)):
            pid = os.fork()
            if pid == 0:
                code = 70
                try:
                    code = child(number, request)
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            pids.append(pid)
        print(json.dumps({"pids": pids}), file=replies, flush=True)
        sys.stdin.readline()  # until a child is waited for, its number can't become another process's
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps({"codes": codes}), file=replies, flush=True)


def import_all_of_torch() -> None:
    """torch imports much on the first step of an optimiser, for seconds; done here, the children inherit it."""
    torch.set_num_threads(1)
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    torch.optim.AdamW([weight]).step()
