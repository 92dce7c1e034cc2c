"""Bad arguments of the geometry ops: every message, word for word, in error_messages.json.

After a wanted change of wording: ``MGRPO_UPDATE_MESSAGES=1 pytest tests/kernels/test_kernel_errors.py``, then read the
difference.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from mgrpo import kernels
from mgrpo.kernels import _dispatch, forward_kinematics, procrustes_align, project_so3

SNAPSHOT = Path(__file__).with_name("error_messages.json")
eye, zeros = torch.eye(3), torch.zeros
J3 = eye.expand(4, 3, 3, 3)
offsets = zeros(3, 3)


def without_gpu_backends(op: str, call: Callable[[], object]) -> object:
    """``call``, in a version of the package that has no Triton and no CUDA kernels for ``op``."""
    entry = _dispatch._ops[op]
    fewer = _dispatch.OpEntry({"cpp": entry.implementations["cpp"]}, entry.auto_order)
    with mock.patch.dict(_dispatch._ops, {op: fewer}):
        return call()


CALLS: dict[str, Callable[[], object]] = {
    "project_so3: a list": lambda: project_so3([[1.0]]),
    "project_so3: numpy": lambda: project_so3(np.eye(3)),
    "project_so3: one axis": lambda: project_so3(zeros(3)),
    "project_so3: flat matrices": lambda: project_so3(zeros(4, 9)),
    "project_so3: 3x4": lambda: project_so3(zeros(2, 3, 4)),
    "project_so3: int64": lambda: project_so3(torch.eye(3, dtype=torch.int64)),
    "project_so3: bfloat16": lambda: project_so3(eye.bfloat16()),
    "project_so3: unknown backend": lambda: project_so3(eye, backend="jax"),
    "project_so3: backend not written": lambda: without_gpu_backends(
        "project_so3", lambda: project_so3(eye, backend="cuda")
    ),
    "use_backend: unknown": lambda: kernels.use_backend("fast").__enter__(),
    "forward_kinematics: flat matrices": lambda: forward_kinematics(zeros(4, 22, 9), zeros(22, 3), [-1] * 22),
    "forward_kinematics: other J in offsets": lambda: forward_kinematics(J3, zeros(4, 3), [-1, 0, 1]),
    "forward_kinematics: offsets of 2 numbers": lambda: forward_kinematics(J3, zeros(3, 2), [-1, 0, 1]),
    "forward_kinematics: offsets do not broadcast": lambda: forward_kinematics(J3, zeros(2, 3, 3), [-1, 0, 1]),
    "forward_kinematics: more offsets than poses": lambda: forward_kinematics(J3, zeros(5, 4, 3, 3), [-1, 0, 1]),
    "forward_kinematics: offsets of other dtype": lambda: forward_kinematics(J3, offsets.double(), [-1, 0, 1]),
    "forward_kinematics: offsets elsewhere": lambda: forward_kinematics(J3, offsets.to("meta"), [-1, 0, 1]),
    "forward_kinematics: too few parents": lambda: forward_kinematics(J3, offsets, [-1, 0]),
    "forward_kinematics: child before parent": lambda: forward_kinematics(J3, offsets, [-1, 2, 0]),
    "forward_kinematics: own parent": lambda: forward_kinematics(J3, offsets, [-1, 0, 2]),
    "forward_kinematics: parent below -1": lambda: forward_kinematics(J3, offsets, [-2, 0, 1]),
    "forward_kinematics: first joint has a parent": lambda: forward_kinematics(J3, offsets, [0, 0, 1]),
    "forward_kinematics: parents a tensor": lambda: forward_kinematics(J3, offsets, torch.tensor([-1, 0, 1])),
    "forward_kinematics: parents a number": lambda: forward_kinematics(J3, offsets, 3),
    "forward_kinematics: parents fractional": lambda: forward_kinematics(J3, offsets, [-1, 0.0, 1]),
    "forward_kinematics: parents bool": lambda: forward_kinematics(J3, offsets, [-1, False, 1]),
    "forward_kinematics: no joints": lambda: forward_kinematics(zeros(2, 0, 3, 3), zeros(0, 3), []),
    "forward_kinematics: root as a matrix": lambda: forward_kinematics(J3, offsets, [-1, 0, 1], zeros(4, 4, 4)),
    "forward_kinematics: root does not broadcast": lambda: forward_kinematics(J3, offsets, [-1, 0, 1], zeros(3, 7)),
    "forward_kinematics: root of other dtype": lambda: forward_kinematics(J3, offsets, [-1, 0, 1], zeros(7).double()),
    "forward_kinematics: root None as 0": lambda: forward_kinematics(J3, offsets, [-1, 0, 1], 0),
    "procrustes_align: 2-D points": lambda: procrustes_align(zeros(5, 2), zeros(5, 2)),
    "procrustes_align: other N": lambda: procrustes_align(zeros(5, 3), zeros(6, 3)),
    "procrustes_align: batches do not broadcast": lambda: procrustes_align(zeros(2, 5, 3), zeros(3, 5, 3)),
    "procrustes_align: other dtype": lambda: procrustes_align(zeros(5, 3), zeros(5, 3).double()),
    "procrustes_align: other device": lambda: procrustes_align(zeros(5, 3), zeros(5, 3, device="meta")),
    "procrustes_align: weights per coordinate": lambda: procrustes_align(zeros(5, 3), zeros(5, 3), zeros(5, 3)),
    "procrustes_align: weights of other N": lambda: procrustes_align(zeros(5, 3), zeros(5, 3), zeros(4)),
    "procrustes_align: weights do not broadcast": lambda: procrustes_align(zeros(2, 5, 3), zeros(5, 3), zeros(3, 5)),
    "procrustes_align: boolean weights": lambda: procrustes_align(zeros(5, 3), zeros(5, 3), zeros(5).bool()),
    "procrustes_align: half precision": lambda: procrustes_align(zeros(5, 3).half(), zeros(5, 3).half()),
}


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises((ValueError, TypeError, kernels.BackendError)) as caught:
        call()
    return f"{caught.type.__name__}: {caught.value}"


@pytest.mark.parametrize("name", CALLS)
def test_message(name: str) -> None:
    message = message_of(CALLS[name])
    # What this machine lacks (the extension, triton, a GPU) is not what this test is about.
    message = re.sub(r"cpp: (can serve it|the native extension [^;]*)", "cpp: <this machine>", message)
    lacks = "triton is not installed|there is no CUDA device|needs tensors on a CUDA device"
    message = re.sub(rf"triton: (can serve it|({lacks})[^;]*)", "triton: <this machine>", message)
    pinned = json.loads(SNAPSHOT.read_text()) if SNAPSHOT.exists() else {}
    if os.environ.get("MGRPO_UPDATE_MESSAGES") == "1":
        SNAPSHOT.write_text(json.dumps({**pinned, name: message}, indent=2, sort_keys=True) + "\n")
        return
    assert message == pinned[name]


def test_snapshot_holds_nothing_else() -> None:
    assert set(json.loads(SNAPSHOT.read_text())) == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_messages_have_the_house_form(name: str) -> None:
    message = json.loads(SNAPSHOT.read_text())[name]
    assert re.match(r"\w+: \w+\(\): .*(must .*, got |cannot serve this call)", message), message


def test_negative_weights_are_found_in_debug_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    points, weights = torch.rand(5, 3), torch.tensor([1.0, 1, -2, 1, 1])
    procrustes_align(points, points, weights)
    monkeypatch.setenv("MGRPO_DEBUG", "1")
    with pytest.raises(ValueError, match=r"procrustes_align\(\): weights must be >= 0 everywhere, got .* -2"):
        procrustes_align(points, points, weights)
