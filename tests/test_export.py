"""torch.export of every loss, of sums and of resized ones, with a batch of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denseloss import AtTargetSize, ClassScores, DeepSupervision, QualityFocalLoss
from denseloss import functional as F
from denseloss.compose import parse
from denseloss.contract import arguments
from tests.calls import LOSSES, SUMS, drawn, module, said, worded

BATCH = torch.export.Dim("batch")


class Called(nn.Module):
    """What users export: a Module of theirs that calls the loss."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Any, target: Tensor) -> Tensor:
        return self.loss(logits, target)


class Weighed(Called):
    def forward(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return self.loss(logits, target, weight=weight)


def built(name: str, **options: Any) -> nn.Module:
    if name == "ncut_loss":
        options["radius"] = 2  # each pair of neighbours is nodes of the graph
    return module(name)(**options)


def outcome(call: Callable[..., Tensor], tensors: list[Any], **named: Any) -> list[Tensor]:
    """The value, and the gradient by the first tensor (or the tensors of a first list)."""
    first, *rest = tensors
    leaves = [x.clone().requires_grad_() for x in (first if isinstance(first, list) else [first])]
    value = call(leaves if isinstance(first, list) else leaves[0], *rest, **named)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]


def agrees(loss: nn.Module, at: Callable[[int], list[Any]], *, strict: bool) -> None:
    """Exported at a batch of 4, the loss is itself at other sizes."""
    tensors = at(4)
    shapes = tuple([{0: BATCH}] * len(x) if isinstance(x, list) else {0: BATCH} for x in tensors)
    exported = torch.export.export(
        Called(loss), tuple(tensors), dynamic_shapes=shapes, strict=strict
    )
    # It runs where denseloss is not.
    assert not [node for node in exported.graph.nodes if "denseloss" in str(node.target)]
    made = exported.module()
    for batch in (3, 6):
        torch.testing.assert_close(outcome(made, at(batch)), outcome(loss, at(batch)))


def tensors_of(name: str) -> Callable[[int], list[Tensor]]:
    return lambda batch: list(drawn(name, batch, seed=batch).values())


def smaller(name: str) -> Callable[[int], list[Tensor]]:
    def at(batch: int) -> list[Tensor]:
        logits, target = drawn(name, batch, seed=batch).values()
        return [logits[..., :3, :4].contiguous(), target]

    return at


@pytest.mark.parametrize(("name", "options"), worded(), ids=said)
def test_a_loss(name: str, options: dict[str, Any]) -> None:
    agrees(built(name, **options), tensors_of(name), strict=False)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_strictly(name: str) -> None:
    agrees(built(name), tensors_of(name), strict=True)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [call for call in worded() if call[1]], ids=said)
def test_a_loss_with_words_strictly(name: str, options: dict[str, Any]) -> None:
    agrees(built(name, **options), tensors_of(name), strict=True)


@pytest.mark.parametrize("name", LOSSES)
def test_a_module_by_the_names_of_its_tensors(name: str) -> None:
    loss = built(name)
    tensors = drawn(name, 4)
    shapes = {key: {0: BATCH} for key in tensors}
    exported = torch.export.export(loss, (), tensors, dynamic_shapes=shapes, strict=False)
    other = drawn(name, 3, seed=3)
    torch.testing.assert_close(exported.module()(**other), loss(**other))


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [name for name in LOSSES if "weight" in arguments(getattr(F, name))]
)
def test_a_weight_by_names(name: str, strict: bool) -> None:
    def at(batch: int) -> dict[str, Tensor]:
        tensors = drawn(name, batch, seed=batch, options=["weight"]).values()
        return dict(zip(("logits", "target", "weight"), tensors, strict=True))

    loss = Weighed(module(name)())
    shapes = {key: {0: BATCH} for key in at(4)}
    exported = torch.export.export(loss, (), at(4), dynamic_shapes=shapes, strict=strict).module()
    other = at(3)
    first = [other.pop("logits")]
    torch.testing.assert_close(
        outcome(lambda z: exported(logits=z, **other), first),
        outcome(lambda z: loss(logits=z, **other), first),
    )


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("text", SUMS)
def test_a_sum(text: str, strict: bool) -> None:
    agrees(parse(text), tensors_of(SUMS[text]), strict=strict)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("text", [*SUMS, "cross_entropy"])
def test_at_target_size(text: str, strict: bool) -> None:
    agrees(AtTargetSize(parse(text)), smaller(SUMS.get(text, "dice_loss")), strict=strict)


@pytest.mark.parametrize("strict", [False, True])
def test_deep_supervision(strict: bool) -> None:
    def at(batch: int) -> list[Any]:
        logits, target = drawn("dice_loss", batch, seed=batch).values()
        return [[logits, logits[..., :3, :4].contiguous()], target]

    agrees(DeepSupervision(parse("cross_entropy + dice")), at, strict=strict)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("text", ["cross_entropy", "focal", "dice + balanced_cross_entropy"])
def test_class_probabilities(text: str, strict: bool) -> None:
    def at(batch: int) -> list[Tensor]:
        logits = drawn("dice_loss", batch, seed=batch)["logits"]
        return [logits, logits.roll(1, 0).softmax(1)]

    agrees(parse(text), at, strict=strict)


@pytest.mark.parametrize("strict", [False, True])
def test_options_that_are_tensors(strict: bool) -> None:
    text = "cross_entropy(class_weight=[1, 2, 3], label_smoothing=0.1) + focal(alpha=[1, 2, 3])"
    agrees(parse(text), tensors_of("dice_loss"), strict=strict)
    masks = "binary_cross_entropy(pos_weight=[1, 2, 3]) + binary_dice(class_weight=[3, 2, 1])"
    agrees(parse(masks), tensors_of("binary_dice_loss"), strict=strict)


class Scored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loss = QualityFocalLoss()

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        return self.loss(logits, ClassScores(label))


@pytest.mark.parametrize("strict", [False, True])
def test_class_scores(strict: bool) -> None:
    def at(batch: int) -> list[Tensor]:
        return [torch.linspace(-2, 2, 3 * batch).reshape(batch, 3), torch.arange(batch) % 4 - 1]

    agrees(Scored(), at, strict=strict)
