"""The Triton kernels of `softmax` and `association`: interpreted, and compiled without a GPU."""

import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from tests import interpreted
from tests.offline import frugal


def test_cases() -> None:
    interpreted.passes("triton_softmax_cases.py")


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="nothing is compiled")
@frugal
@pytest.mark.parametrize("classes", [2, 21, 64, 150, 1000])
@pytest.mark.parametrize("capability", [80, 90])
def test_registers(capability: int, classes: int) -> None:
    """Enough warps fit on a processor of 65536 registers."""
    dtype = torch.float32 if capability == 80 else torch.bfloat16
    found = compiled(capability, classes, [], dtype)
    assert found["_softmax"].registers <= 192
    assert found["_slope"].registers <= 128
    found = compiled(capability, classes, [256, 256], dtype)
    # Above 512 classes one block of 8 warps has a processor to itself, up to 255 registers.
    most = 208 if classes <= 512 else 224
    assert max(found["_softmax"].registers, found["_slope"].registers) <= most


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="nothing is compiled")
def test_launches() -> None:
    """Small inputs wait for their launches more than for the arithmetic."""
    from denseloss.primitives.cuda.softmax import softmax, softmax_backward
    from tests.offline import compiling

    for space, size, forward, backward in [
        ((64, 64), (), 1, 1),
        ((256, 256), (), 2, 1),
        ((1, 4), (2, 8), 1, 1),
        ((16, 16), (64, 64), 2, 2),
    ]:
        logits = torch.zeros(2, 3, *space)
        inputs = (logits, torch.zeros(2, *(size or space), dtype=torch.uint8), None, None, 255)
        with compiling(90) as kernels:
            maps = softmax(*inputs, True, 3, size, False)
        assert len(kernels) == forward
        with compiling(90) as kernels:
            softmax(*inputs, True, 0, size, False)
        assert len(kernels) == 1
        with compiling(90) as kernels:
            softmax_backward(*inputs, *maps[:2], None, maps[4], size, False)
        assert len(kernels) == backward


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="nothing is compiled")
@frugal
def test_association_registers() -> None:
    from denseloss.primitives.cuda.affinity import association, association_backward
    from tests.offline import compiling

    for classes in (4, 20):
        with compiling(90) as kernels:
            p = torch.zeros(2, classes, 64, 64)
            within, total, filtered, degree = association(p, p[:, :3], 5.0, 10.0, 4.0)
            association_backward(filtered, degree, within, total)
        assert all(kernel.stack == 0 and kernel.registers <= 128 for kernel in kernels), kernels


def compiled(capability: int, classes: int, size: list[int], dtype: torch.dtype) -> dict[str, Any]:
    """The kernels of all results at once, forward and backward."""
    from denseloss.primitives.cuda.softmax import softmax, softmax_backward
    from tests.offline import compiling

    logits = torch.zeros(2, classes, 64, 64, dtype=dtype)
    target = torch.zeros(2, *(size or (64, 64)), dtype=torch.int64)
    options = (target, None, torch.zeros(classes), -100)
    up = torch.zeros(target.shape)
    with compiling(capability) as kernels:
        softmax(logits, *options, True, 3, size, False)
        softmax_backward(logits, *options, up, up, up, torch.zeros(2, classes, 3), size, False)
    # ptxas takes 128 or 168 registers where that lets one more block run and costs the spill of a
    # few numbers outside the inner loop. Tiles that are too large spill hundreds of bytes.
    assert all(kernel.stack <= (48 if size else 32) for kernel in kernels), kernels
    return {kernel.name: kernel for kernel in kernels}
