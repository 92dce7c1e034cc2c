"""`mgrpo` command lines in processes that can be killed; run by test_evaluation_folder.py.

A request names {"words", "output", "die_at"}: what the child prints goes to the file "output". With "die_at": n it ends
without any clean-up just before its n-th file operation.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

import mgrpo.commands.evaluate
import mgrpo.eval.protocol_table  # noqa: F401  (imported before the forks, to save their time)
from mgrpo.cli import main
from tests.train.forking import serve
from tests.train.killable_training import die_before_operation


def child(_: int, request: dict[str, Any]) -> int:
    descriptor = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(os.dup(1), "w")
    if request.get("die_at"):
        die_before_operation(request["die_at"])
    return main(request["words"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(child)
