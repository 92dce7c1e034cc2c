"""Every C++ operator with the vectors of narrower processors: within the tolerances of its spec, and noise and steps
with the same bits. Nothing here names an operator but those that promise bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mgrpo import kernels
from mgrpo.kernels._spec import all_specs

SAME_BITS = ("perlin_noise", "philox_normal", "philox_uniform", "sde_step")
SCRIPT = """if True:
    import hashlib, os, torch
    from mgrpo.kernels._spec import all_specs
    from tests.kernels import test_instruction_sets as t

    def run(spec, case, inputs, backend):
        leaves = [x.detach().clone().requires_grad_(spec.differentiable and x.is_floating_point()) for x in inputs]
        results = spec.call(case, *leaves, backend=backend)
        smooth = [result for result in results if result.requires_grad]
        if smooth:
            torch.autograd.backward(smooth, [torch.ones_like(result) for result in smooth])
        return [x.detach() for x in results], [leaf.grad for leaf in leaves]

    calls = []
    for spec in all_specs():
        for case in spec.cases:
            inputs = spec.make_inputs(case, torch.float32, torch.device("cpu"), 5)
            exact = [x.double() if x.is_floating_point() else x for x in inputs]
            calls.append((spec, case, inputs, run(spec, case, exact, "reference")))
    for isa in ("v4", "v3", "baseline"):
        if os.fork():  # after the references and before the first C++ operator, which reads the variable
            assert os.wait()[1] == 0, isa
            continue
        os.environ["MGRPO_ISA"] = isa
        everything = hashlib.sha1()
        for spec, case, inputs, (wanted, wanted_grads) in calls:
            results, grads = run(spec, case, inputs, "cpp")
            everything.update(b"".join(x.contiguous().numpy().tobytes() for x in results))
            tolerance = spec.tolerances[torch.float32]
            for pairs, error in ((zip(results, wanted, strict=True), tolerance.forward),
                                 (zip(grads, wanted_grads, strict=True), tolerance.gradient)):
                for got, expected in pairs:
                    if expected is None or not expected.is_floating_point():
                        assert got is None or torch.equal(got, expected), (isa, spec.name, case.name)
                        continue
                    finite = expected[torch.isfinite(expected)]
                    scale = max(1.0, finite.abs().max().item()) if finite.numel() else 1.0
                    torch.testing.assert_close(
                        got.double(), expected.double(), rtol=0, atol=error * scale, equal_nan=True,
                        msg=lambda text: f"{isa} {spec.name} {case.name}: {text}",
                    )
            if spec.name in t.SAME_BITS:
                bits = b"".join(x.contiguous().numpy().tobytes() for x in results)
                print(isa, spec.name, case.name, hashlib.sha1(bits).hexdigest(), flush=True)
        print(isa, "everything", everything.hexdigest(), flush=True)
        os._exit(0)
"""


def instruction_sets() -> int:
    """How many of the three the extension holds and this processor runs."""
    extension = Path(kernels.__file__).with_name("_C.abi3.so")
    if b"x86_64_v4" not in extension.read_bytes():  # another compiler or architecture, or no symbols
        return 1
    return {"AVX512": 3, "AVX2": 2}.get(torch.backends.cpu.get_cpu_capability(), 1)


@pytest.mark.skipif("cpp" not in kernels.available_backends("project_so3"), reason="the native extension is not built")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_every_instruction_set() -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found: dict[str, list[str]] = {}
    for isa, *digest in map(str.split, result.stdout.splitlines()):
        found.setdefault(isa, []).append(" ".join(digest))
    # Sums over lanes differ in their last bits between vectors of different widths: else one set was tested thrice.
    assert len({of_one.pop() for of_one in found.values()}) >= instruction_sets()
    assert found["v4"] == found["v3"] == found["baseline"]
    assert len(found["v4"]) == sum(len(spec.cases) for spec in all_specs() if spec.name in SAME_BITS)
