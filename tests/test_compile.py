"""torch.compile(fullgraph=True) of what the battery does not compile: words, tensors, sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denseloss import AtTargetSize, ClassScores, backend
from denseloss import functional as F
from denseloss.compose import parse
from denseloss.contract import arguments
from tests.calls import LOSSES, SUMS, drawn, optional_tensors, said, worded


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def agrees(call: Callable[..., Tensor], *many: list[Any], **options: Any) -> None:
    """Compiled, the call has the value and the gradient that it has otherwise."""
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for first, *rest in many:
        outcomes = []
        for run in (call, compiled):
            leaf = first.clone().requires_grad_()
            value = run(leaf, *rest, **options)
            outcomes.append((value.detach(), *torch.autograd.grad(3.7 * value.sum(), leaf)))
        wanted, found = outcomes
        torch.testing.assert_close(found, wanted, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), [call for call in worded() if call[1]], ids=said)
def test_words(name: str, options: dict[str, Any]) -> None:
    agrees(getattr(F, name), list(drawn(name, 3).values()), **options)


def strided(x: Tensor) -> Tensor:
    """The same numbers, not one after the other."""
    return torch.stack([x, x], dim=-1)[..., 0] if x.ndim else x


@pytest.mark.parametrize("change", [strided, Tensor.clone], ids=["strided", "contiguous"])
@pytest.mark.parametrize(
    "reduction", ["mean", *(pytest.param(x, marks=pytest.mark.slow) for x in ("sum", "none"))]
)
@pytest.mark.parametrize("name", [name for name in LOSSES if optional_tensors(name)])
def test_all_optional_tensors_at_once(
    name: str, reduction: str, change: Callable[[Tensor], Tensor]
) -> None:
    options = [x for x in optional_tensors(name) if reduction == "mean" or x != "count"]
    tensors = drawn(name, 3, options=options)
    named = {x: change(tensors.pop(x)) for x in options}
    if "ignore_index" in arguments(getattr(F, name)):
        named["ignore_index"] = 1
    if "label_smoothing" in arguments(getattr(F, name)):
        named["label_smoothing"] = 0.1
    first, *rest = tensors.values()
    inputs = [first, *map(change, rest)]
    agrees(getattr(F, name), inputs, reduction=reduction, **named)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), worded(), ids=said)
def test_definitions(name: str, options: dict[str, Any]) -> None:
    with backend.use("reference"):
        agrees(getattr(F, name), list(drawn(name, 3).values()), **options)


@pytest.mark.parametrize("text", SUMS)
def test_sums_over_batch_sizes(text: str) -> None:
    many = [list(drawn(SUMS[text], batch, seed=batch).values()) for batch in (2, 3, 5)]
    agrees(parse(text), *many)
    agrees(AtTargetSize(parse(text)), *([z[..., :3, :4].contiguous(), t] for z, t in many))


@pytest.mark.parametrize(
    "criterion",
    [parse("cross_entropy + dice"), parse("focal"), parse("jaccard(absent='skip')")],
    ids=str,
)
def test_class_probabilities(criterion: nn.Module) -> None:
    logits = drawn("dice_loss", 3)["logits"]
    agrees(criterion, [logits, logits.roll(1, 0).softmax(1)])


@pytest.mark.parametrize("name", ["binary_focal_loss", "quality_focal_loss", "varifocal_loss"])
def test_class_scores(name: str) -> None:
    target = ClassScores(torch.tensor([0, 1, -1, 2]), torch.tensor([0.3, 0.9, 0, 1]))
    agrees(getattr(F, name), [torch.linspace(-2, 2, 12).reshape(4, 3), target])
