"""Link the library of CUDA kernels where torch has no CUDA: it cannot run, but no symbol that it needs is missing."""

from __future__ import annotations

from pathlib import Path

import cuda_resources
import emulation
import nvcc
import precompiled_header
from cached_build import BuildError, Compiled, compile_object, in_parallel, link, locked

# What a CUDA build of torch exports besides, since 2.11.
STUBS = """
int aoti_torch_get_current_cuda_stream(int device, void** stream) { *stream = 0; return 0; }
void torch_c10_cuda_check_msg(int error, const char* file, const char* function, unsigned line, int sync, char** text) {
  *text = 0;
}
void torch_c10_cuda_free_error_msg(char* text) {}
"""
FLAGS = ["-O0", "-g0", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-DUSE_CUDA"]
FLAGS += ["-DTORCH_TARGET_VERSION=0x020b000000000000"]


def build_for_link_check() -> Path:
    """Compile every CUDA source and its glue as the real build does, and link them so that no symbol is missing.

    The library's path. Raises :class:`BuildError`.
    """
    import torch

    compiler = nvcc.find()
    if compiler is None:
        raise BuildError("there is no nvcc")
    home, torch_folder = nvcc.toolkit(compiler), Path(torch.__file__).parent
    folder = cuda_resources.FOLDER / "link_check"
    command = [*emulation.compiler(), *FLAGS, "-isystem", str(torch_folder / "include")]
    command += ["-isystem", str(home / "include")]

    def compile_one(source: Path) -> Compiled:
        if source.suffix == ".cu":
            return cuda_resources.compile_source(source, cuda_resources.architectures_to_check(source))
        return compile_object(command, source, folder / f"{source.stem}.o")

    with locked(folder):
        command += precompiled_header.flags(command, torch.__version__, folder / "prelude")
        stubs = folder / "torch_cuda_stubs.c"
        stubs.write_text(STUBS)
        objects = in_parallel(compile_one, emulation.kernel_sources())
        objects.append(
            compile_object([*emulation.compiler(), "-x", "c", "-fPIC"], stubs, folder / "torch_cuda_stubs.o")
        )
        library = folder / "lib_cuda.so"
        link(
            [*emulation.compiler(), "-shared", "-Wl,--no-undefined", "-Wl,-z,defs"],
            objects,
            [
                *(f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"),
                *(f"-L{home / 'lib64'}", "-lcudart_static", "-lpthread", "-ldl", "-lrt"),
            ],
            library,
        )
    return library
