"""Compile Triton kernels for a GPU that is not there, and read what they need of it.

with compiling(90) as kernels:
    softmax(...)  # on tensors of the CPU: each launch is compiled as it stands, and not run
print(kernels)   # [Kernel(name='_softmax', registers=118, stack=0, shared=2048)]
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

# That of torch 2.6: the kernels compile and are right, but take up to 255 registers of a thread.
frugal = pytest.mark.skipif(
    triton.__version__.startswith("3.2."), reason="Triton 3.2 is less thrifty with registers"
)

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Kernel(NamedTuple):
    name: str
    registers: int  # of a thread, at most 255
    stack: int  # bytes of a thread; 0 means that nothing spills
    shared: int  # bytes of a block
    asm: Mapping[str, str]  # what it was compiled to: ttir, ttgir, llir, ptx, ...

    def __repr__(self) -> str:
        return f"{self.name}: {self.registers} registers, stack {self.stack}, shared {self.shared}"


class _Driver:
    """As much of a driver as a compilation asks for."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return f"offline sm_{self.target.arch}"  # a key of Triton's cache that no real device has

    def get_current_stream(self, device: str) -> int:
        return 0


@contextmanager
def compiling(capability: int) -> Iterator[list[Kernel]]:
    """Launches compile for that compute capability; the list holds what came of them, in order."""
    kernels: list[Kernel] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        compiled = run(self, *args, grid=grid, warmup=True, **options)
        kernels.append(_needs(compiled.metadata.name, compiled.asm))

    before = dict(vars(driver))
    with mock.patch.object(JITFunction, "run", compile_only):
        driver.set_active(_Driver(capability))
        try:
            yield kernels
        finally:
            vars(driver).update(before)


def _needs(name: str, asm: Mapping[str, Any]) -> Kernel:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage = subprocess.check_output([CUOBJDUMP, "-res-usage", file.name], text=True)
    registers, stack, shared = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)[0]
    return Kernel(name, int(registers), int(stack), int(shared), asm)
