"""`mgrpo` command lines in processes that can be killed; run as a script by test_evaluation_folder.py.

It imports everything once, then forks a child for every line on standard input. Commands, one JSON object a line:
{"words", "output", "die_at"}; replies {"pid"} at once, and after another line {"code"}, the exit code. What the child
prints goes to the file "output". With "die_at": n it ends without any clean-up just before its n-th file operation.
"""

from __future__ import annotations

import json
import os
import sys

import torch
from killable_training import die_before_operation

import mgrpo.commands.evaluate
import mgrpo.eval.protocol_table  # noqa: F401  (imported before the forks, to save their time)
from mgrpo.cli import main


def serve() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        command = json.loads(line)
        pid = os.fork()
        if pid == 0:
            descriptor = os.open(command["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout = os.fdopen(os.dup(1), "w")
            if command.get("die_at"):
                die_before_operation(command["die_at"])
            code = 1
            try:
                code = main(command["words"])
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(json.dumps({"pid": pid}), flush=True)
        sys.stdin.readline()  # until the child is waited for, its number can't become another process's
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    serve()
