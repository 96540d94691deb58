"""Whole losses on the Triton operators: interpreted, and their launches counted without a GPU."""

import os

import pytest
import torch

pytest.importorskip("triton")

from denseloss import backend
from denseloss.compose import parse
from denseloss.primitives.fused import VERSIONS, ops
from tests import interpreted


def test_cases() -> None:
    interpreted.passes("triton_losses_cases.py")


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Triton operators in place of those in C, for tensors of the CPU."""
    import denseloss.primitives.cuda  # noqa: F401 - implements them

    backend.missing()  # whatever else there is, is loaded before
    monkeypatch.setitem(ops._direct, "cpu", ops._direct["cuda"])
    for name, version in VERSIONS.items():
        monkeypatch.setitem(backend.table[name], "cpu", version)


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="nothing is compiled")
@pytest.mark.parametrize(
    ("text", "side", "forward", "backward"),
    [
        ("cross_entropy + dice", 64, 4, 4),  # the pass, two means and a ratio, each way
        ("cross_entropy + dice", 256, 6, 4),  # the pass and the mean of its map end in one more
        ("binary_cross_entropy + binary_dice", 64, 4, 4),
        ("binary_cross_entropy + binary_dice", 256, 5, 4),
    ],
)
def test_launches(triton: None, text: str, side: int, forward: int, backward: int) -> None:
    """Of the operators of a whole loss, beside which torch adds up the terms."""
    from tests.offline import compiling

    binary = text.startswith("binary")
    logits = torch.zeros(2, 3, side, side, requires_grad=True)
    target = torch.zeros(2, *[3] * binary, side, side, dtype=torch.uint8)
    criterion = parse(text)
    with compiling(90) as kernels:
        loss = criterion(logits, target)
    assert len(kernels) == forward, kernels
    with compiling(90) as kernels:
        loss.backward()
    assert len(kernels) == backward, kernels
