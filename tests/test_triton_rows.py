"""The row-wise Triton kernels, without a GPU: their numbers, and what they need of one."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from denseloss.primitives.cuda.bins import bins
from denseloss.primitives.cuda.boxes import boxes
from denseloss.primitives.cuda.edge import edge
from denseloss.primitives.cuda.labels import label_count
from denseloss.primitives.cuda.pointwise import pointwise
from denseloss.primitives.cuda.region import region, region_backward
from denseloss.primitives.cuda.rescale import rescale
from tests.offline import compiling


def test_numbers() -> None:
    """In Triton's interpreter, which must be asked for before triton is imported."""
    cases = Path(__file__).with_name("triton_rows_cases.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "ignore::RuntimeWarning", cases],
        cwd=cases.parent.parent,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


SHAPE = (2, 32, 64, 64)
Z, T, W = torch.zeros(SHAPE), torch.zeros(SHAPE, dtype=torch.uint8), torch.zeros(SHAPE)
SCORES, LABELS = torch.zeros(8400, 80), torch.zeros(8400, dtype=torch.int64)
BOXES, ROWS = torch.zeros(8400, 4), torch.zeros(8400)


def inner(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


FOCAL = (0.25, 1.5, 255.0, None, 1.0, True, False, True)
CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "bce": (
        pointwise,
        (Z, T, None, W, torch.zeros(32), 0, 1.0, 0.0, 255.0, None, 1.0, True, False, True),
    ),
    "focal": (pointwise, (Z.bfloat16(), T, None, None, None, 1, *FOCAL)),
    "focal with everything": (
        pointwise,
        (Z, T, None, W, None, 1, 0.25, 1.5, 255.0, W, 1.0, True, True, True),
    ),
    "quality, labels": (pointwise, (SCORES, LABELS, ROWS, ROWS, None, 2, *FOCAL)),
    "varifocal": (pointwise, (Z, W, None, W, None, 3, *FOCAL)),
    "ciou": (boxes, (BOXES, BOXES, ROWS, 3, 2, None, 1.0, True, False, True)),
    "bins": (bins, (SCORES[:, :17].contiguous(), ROWS, ROWS, None, 1.0, True, False, True)),
    "region": (region, (Z, T, W, 255.0, True)),
    "region, channels last": (region, (inner(Z), inner(T), inner(W), 255.0, True)),
    "region backward": (
        region_backward,
        (Z, T, W, 255.0, True, torch.zeros(2, 32, 3)),
    ),
    "rescale": (rescale, (Z.clone(), torch.tensor(2.0))),
    "edge": (edge, (T, W, 255.0, 5.0, 31, True)),
    "label count": (label_count, (LABELS, ROWS, 255, 21)),
}


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
        pointwise(one, label, None, None, None, 1, *FOCAL)
        pointwise(one, one, None, None, torch.zeros(1), 0, *FOCAL)
        boxes(torch.zeros(1, 4), torch.zeros(1, 4), None, 1, 1, one[0, 0], 1.0, True, True, True)
        bins(one[0], one[0, 0], None, None, 1.0, True, True, True)
        region(one, one, None, 1.0, False)
        region_backward(one, one, None, 1.0, True, torch.zeros(1, 1, 3))
        edge(one[None], None, None, 5.0, 3, True)
        label_count(label, None, 1, 1)
    assert len(kernels) == 10


def test_boxes_round_each_operation() -> None:
    """Fused, A + B - I of two boxes that are the same would not be A."""
    call, args = CALLS["ciou"]
    with compiling(90) as kernels:
        call(*args)
    assert "fma.rn" not in kernels[0].asm["ptx"]
    assert "div.rn.f32" in kernels[0].asm["ptx"]
