"""The Triton kernels of `column` and `association`: interpreted, and compiled without a GPU."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")


def test_cases() -> None:
    """In a process of its own: triton reads TRITON_INTERPRET when a kernel is defined."""
    cases = Path(__file__).with_name("triton_column_cases.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(cases)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=cases.parents[1],
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="nothing is compiled")
@pytest.mark.parametrize("classes", [2, 21, 64, 150, 1000])
@pytest.mark.parametrize("capability", [80, 90])
def test_registers(capability: int, classes: int) -> None:
    """Enough warps fit on a processor of 65536 registers."""
    dtype = torch.float32 if capability == 80 else torch.bfloat16
    sums, _, slope = compiled(capability, classes, [], dtype)
    assert sums.registers <= 192
    assert slope.registers <= 128
    sums, _, slope, _ = compiled(capability, classes, [256, 256], dtype)
    assert max(sums.registers, slope.registers) <= 208


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="nothing is compiled")
def test_association_registers() -> None:
    from denseloss.primitives.cuda.association import association, association_backward
    from tests.offline import compiling

    for classes in (4, 20):
        with compiling(90) as kernels:
            p = torch.zeros(2, classes, 64, 64)
            within, total, filtered, degree = association(p, p[:, :3], 5.0, 10.0, 4.0)
            association_backward(filtered, degree, within, total)
        assert all(kernel.stack == 0 and kernel.registers <= 128 for kernel in kernels), kernels


def compiled(capability: int, classes: int, size: list[int], dtype: torch.dtype) -> list[Any]:
    """The kernels of cross entropy with smoothing beside Dice, forward and backward."""
    from denseloss.primitives.cuda.column import column, column_backward
    from tests.offline import compiling

    logits = torch.zeros(2, classes, 64, 64, dtype=dtype)
    target = torch.zeros(2, *(size or (64, 64)), dtype=torch.int64)
    options = (target, None, None, (0.0,), (0.1,), -100)
    slopes = (torch.zeros(2, 1), torch.zeros(2, classes, 2), None)
    with compiling(capability) as kernels:
        column(logits, *options, True, False, size, False)
        column_backward(logits, *options, *slopes, size, False)
    # ptxas takes 128 or 168 registers where that lets one more block run and costs the spill of a
    # few numbers outside the loops. Tiles that are too large spill hundreds of bytes.
    assert all(kernel.stack <= 32 for kernel in kernels), kernels
    return kernels
