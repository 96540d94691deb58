"""The row-wise Triton kernels, without a GPU: their numbers, and what they need of one."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from denseloss.primitives.cuda.bins import bins
from denseloss.primitives.cuda.boxes import boxes
from denseloss.primitives.cuda.elementwise import elementwise
from denseloss.primitives.cuda.labels import class_values, label_count
from denseloss.primitives.cuda.mean import weighted_mean, weighted_mean_backward
from denseloss.primitives.cuda.ratio import ratio, ratio_backward
from denseloss.primitives.cuda.rescale import rescale
from denseloss.primitives.cuda.sigmoid import sigmoid, sigmoid_backward
from denseloss.primitives.cuda.windows import edge
from tests import interpreted
from tests.offline import compiling, frugal


def test_numbers() -> None:
    interpreted.passes("triton_rows_cases.py")


SHAPE = (2, 32, 64, 64)
Z, T, W = torch.zeros(SHAPE), torch.zeros(SHAPE, dtype=torch.uint8), torch.zeros(SHAPE)
SCORES, LABELS = torch.zeros(8400, 80), torch.zeros(8400, dtype=torch.int64)
ONE, POSITIVE = torch.ones(()), torch.zeros(32)
BOXES, ROWS = torch.zeros(8400, 4), torch.zeros(8400)


def inner(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


FOCAL = (0.25, 1.5, 255.0, None, 1.0, True, False, True)
CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "bce": (
        elementwise,
        (Z, T, None, W, POSITIVE, 0, 1.0, 0.0, 255.0, None, 1.0, True, False, True),
    ),
    "focal": (elementwise, (Z.bfloat16(), T, None, None, None, 1, *FOCAL)),
    "focal with everything": (
        elementwise,
        (Z, T, None, W, None, 1, 0.25, 1.5, 255.0, W, 1.0, True, True, True),
    ),
    "quality, labels": (elementwise, (SCORES, LABELS, ROWS, ROWS, None, 2, *FOCAL)),
    "varifocal": (elementwise, (Z, W, None, W, None, 3, *FOCAL)),
    "ciou": (boxes, (BOXES, BOXES, ROWS, 3, 2, None, 1.0, True, False, True)),
    "ciou as released": (boxes, (BOXES, BOXES, ROWS, 4, 0, None, 1.0, True, False, True)),
    "bins": (bins, (SCORES[:, :17].contiguous(), ROWS, ROWS, None, 1.0, True, False, True)),
    "sigmoid": (sigmoid, (Z, T, W, POSITIVE, 255.0, 5, True)),
    "sigmoid, channels last": (sigmoid, (inner(Z), inner(T), inner(W), None, 255.0, 5, True)),
    "sigmoid backward": (
        sigmoid_backward,
        (Z, T, W, POSITIVE, 255.0, torch.zeros(2, 32, 5), torch.zeros(2, 32)),
    ),
    "label count, many": (label_count, (LABELS, ROWS, 255, 5000)),
    "class values": (class_values, (LABELS, torch.zeros(80))),
    "weighted mean": (weighted_mean, (W, W, W, True)),
    "weighted mean backward": (weighted_mean_backward, (ONE, ONE, W, True)),
    "ratio": (ratio, (torch.zeros(2, 32, 5), [1.0] * 6, [1.0] * 6, 0.0)),
    "ratio backward": (
        ratio_backward,
        (torch.zeros(2, 32), torch.zeros(2, 32, 5), [1.0] * 6, [1.0] * 6),
    ),
    "rescale": (rescale, (Z.clone(), torch.tensor(2.0))),
    "edge": (edge, (T, W, 255.0, 5.0, 31, True)),
    "label count": (label_count, (LABELS, ROWS, 255, 21)),
}


@frugal
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("name", CALLS)
def test_resources(name: str, arch: int) -> None:
    call, args = CALLS[name]
    with compiling(arch) as kernels:
        call(*args)
    assert kernels
    for kernel in kernels:
        assert kernel.stack == 0, kernel
        assert kernel.registers <= 128, kernel


def test_sizes_of_one_compile() -> None:
    """Triton takes an integer argument of 1 for a constant, which the interpreter does not."""
    one, label = torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.int64)
    with compiling(90) as kernels:
        elementwise(one, label, None, None, None, 1, *FOCAL)
        elementwise(one, one, None, None, torch.zeros(1), 0, *FOCAL)
        boxes(torch.zeros(1, 4), torch.zeros(1, 4), None, 1, 1, one[0, 0], 1.0, True, True, True)
        bins(one[0], one[0, 0], None, None, 1.0, True, True, True)
        sigmoid(one, one, None, None, 1.0, 5, True)
        sigmoid_backward(one, one, None, None, 1.0, torch.zeros(1, 1, 3), one[0])
        edge(one[None], None, None, 5.0, 3, True)
        label_count(label, None, 1, 1)
        class_values(label, one[0, 0])
        weighted_mean(one, one, None, True)
        weighted_mean_backward(ONE, ONE, one, True)
        ratio(one, [1.0, 0.0], [0.0, 1.0], 1.0)
        ratio_backward(one[0], one, [1.0, 0.0], [0.0, 1.0])
    assert len(kernels) == 14


def launches(call: Callable[..., Any], *args: Any) -> int:
    with compiling(90) as kernels:
        call(*args)
    return len(kernels)


def test_launches() -> None:
    """Small inputs wait for their launches more than for the arithmetic."""
    sums, forms = torch.zeros(8, 2, 3), ([2.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0])
    small, large = torch.zeros(2, 1, 64, 64), torch.zeros(8, 1, 512, 512)
    assert launches(ratio, sums, *forms, 1.0) == 1
    assert launches(ratio_backward, ONE.expand(8, 2), sums, *forms) == 1
    assert launches(weighted_mean, small, small, None, True) == 1
    assert launches(weighted_mean, large, large, large, True) == 2
    assert launches(weighted_mean_backward, ONE, ONE, large, True) == 1
    assert launches(sigmoid, small, small, None, None, None, 3, True) == 1
    assert launches(sigmoid, large, large, None, None, None, 3, True) == 2
    assert launches(label_count, LABELS, ROWS, 255, 21) == 1
    assert launches(label_count, torch.zeros(8, 512, 512, dtype=torch.uint8), None, 255, 21) == 2
    assert launches(class_values, LABELS, ROWS) == 1
    assert launches(elementwise, large, large, None, None, None, 1, *FOCAL) == 2


def test_boxes_round_each_operation() -> None:
    """Fused, A + B - I of two boxes that are the same would not be A."""
    call, args = CALLS["ciou"]
    with compiling(90) as kernels:
        call(*args)
    assert "fma.rn" not in kernels[0].asm["ptx"]
    assert re.search(r"div\.rn(\.ftz)?\.f32", kernels[0].asm["ptx"])
