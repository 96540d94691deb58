"""Logits that losses share: who meets them finds what a tensor would be, and the right value."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import denseloss
from denseloss import (
    AtTargetSize,
    BinaryCrossEntropyLoss,
    BinaryDiceLoss,
    CrossEntropyLoss,
    DeepSupervision,
    DiceLoss,
    FocalLoss,
    WeightedSum,
)
from denseloss.compose import parse
from denseloss.contract import ClassMap, Logits, Reduction, checked
from denseloss.module import loss_module
from denseloss.primitives.shared import SharedLogits
from tests.comparison import value_and_gradient

f = denseloss.functional
SMALL = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(3))
LABELS = torch.randint(0, 3, (2, 9, 8), generator=torch.Generator().manual_seed(4))
FULL = F.interpolate(SMALL, size=(9, 8), mode="bilinear")


def full(z: Tensor) -> Tensor:
    return F.interpolate(z, size=(9, 8), mode="bilinear")


def agrees(criterion, reference) -> None:
    """In a sum of full size and inside AtTargetSize: value and gradient of the reference."""
    for shared, z, other in (
        (criterion, FULL, lambda z, t: reference(z, t)),
        (AtTargetSize(criterion), SMALL, lambda z, t: reference(full(z), t)),
    ):
        for _ in range(2):  # the second call knows what the first was asked for
            torch.testing.assert_close(
                value_and_gradient(shared, z, LABELS), value_and_gradient(other, z, LABELS)
            )


# ---------------------------------------------------------------- the object itself


@pytest.fixture(params=["same size", "resized", "half"])
def pair(request) -> tuple[SharedLogits, Tensor, Tensor]:
    """Shared logits, the tensor they stand for, and the leaf that both come from."""
    leaf = (SMALL.half() if request.param == "half" else SMALL).clone().requires_grad_()
    if request.param == "same size":
        return SharedLogits(leaf), leaf, leaf
    return SharedLogits(leaf, (9, 8)), full(leaf.float()), leaf


def test_it_has_what_a_tensor_has(pair) -> None:
    shared, tensor, _ = pair
    assert torch.equal(shared.tensor, tensor)
    assert shared.shape == tensor.shape
    assert shared.size() == tensor.size()
    assert shared.size(1) == 3
    assert shared.ndim == shared.dim() == 4
    assert shared.dtype == shared.tensor.dtype == tensor.dtype
    assert shared.device == tensor.device
    assert shared.requires_grad
    assert shared.numel() == tensor.numel()
    assert len(shared) == 2
    assert repr(shared).startswith("SharedLogits(float32[2, 3, ")


@pytest.mark.parametrize(
    "of",
    [
        lambda z: 2 * z,
        lambda z: z * 2 + z / 3 - 1,
        lambda z: -z,
        lambda z: z**2 + abs(z) + (1 - z) + 2**z,
        lambda z: z @ z.mT,
        lambda z: z[:, 0] + z[..., :1].mean(),
        lambda z: torch.stack(list(z)),
        lambda z: torch.softmax(z, 1),
        lambda z: torch.cat([z, 2 * z]),
        lambda z: torch.where(z > 0, z, torch.zeros(())),
        lambda z: torch.add(input=z, other=z),
        lambda z: F.log_softmax(z, dim=1),
        lambda z: F.interpolate(z, scale_factor=2),
        lambda z: torch.einsum("nchw->nhw", z),
        lambda z: z.softmax(1).sum((2, 3)),
        lambda z: z.float().double(),
        lambda z: z.detach() * z.logsumexp(1, keepdim=True),
        lambda z: ((z > 0) & (z <= 1)) * z,
    ],
)
def test_what_is_done_with_it_is_done_with_the_tensor(pair, of) -> None:
    shared, tensor, leaf = pair
    ours, wanted = of(shared), of(tensor)
    assert isinstance(ours, Tensor)
    assert torch.equal(ours, wanted)
    (grad,) = torch.autograd.grad(ours.sum(), leaf)
    (expected,) = torch.autograd.grad(wanted.sum(), leaf)
    torch.testing.assert_close(grad, expected)


def test_a_loss_takes_it_in_place_of_logits() -> None:
    for shared, tensor in ((SharedLogits(FULL), FULL), (SharedLogits(SMALL, (9, 8)), FULL)):
        for name in ("cross_entropy", "dice", "focal", "balanced_cross_entropy", "tversky"):
            loss = getattr(f, f"{name}_loss")
            torch.testing.assert_close(loss(shared, LABELS), loss(tensor, LABELS))
        masks = f.one_hot(LABELS, 3)
        for name in ("cross_entropy", "focal", "dice", "jaccard"):
            loss = getattr(f, f"binary_{name}_loss")
            torch.testing.assert_close(loss(shared, masks), loss(tensor, masks))
        torch.testing.assert_close(f.structure_loss(shared, masks), f.structure_loss(tensor, masks))
        torch.testing.assert_close(f.f_score(shared, LABELS), f.f_score(tensor, LABELS))
        with pytest.raises(ValueError, match=r"dice_loss: target .* got int64\[2, 8, 8\]"):
            f.dice_loss(shared, LABELS[:, 1:])
    with pytest.raises(TypeError, match=r"scores\) must be .* got SharedLogits float32\[2, 3"):
        f.quality_focal_loss(SharedLogits(SMALL), SMALL)


# ---------------------------------------------------------------- hooks


def test_hooks_of_inner_losses_see_the_logits() -> None:
    seen: list[tuple[torch.Size, Tensor]] = []
    loss = DiceLoss()
    loss.register_forward_pre_hook(lambda _, args: seen.append((args[0].shape, 2 * args[0])))
    loss.register_forward_hook(lambda _, args, __: seen.append((args[0].shape, args[0].tensor)))
    agrees(
        WeightedSum(a=CrossEntropyLoss(), b=loss), lambda z, t: parse("cross_entropy + dice")(z, t)
    )
    assert len(seen) == 8
    assert {shape for shape, _ in seen} == {FULL.shape}
    for before, after in zip(seen[::2], seen[1::2], strict=True):
        torch.testing.assert_close(before[1], 2 * FULL)
        torch.testing.assert_close(after[1], FULL)


def test_a_hook_may_change_the_logits_of_its_loss_alone() -> None:
    loss = DiceLoss()
    loss.register_forward_pre_hook(lambda _, args: (2 * args[0], args[1]))
    for terms in ({"a": CrossEntropyLoss(), "b": loss}, {"b": loss, "a": CrossEntropyLoss()}):
        agrees(
            WeightedSum(**terms), lambda z, t: f.cross_entropy_loss(z, t) + f.dice_loss(2 * z, t)
        )


def test_a_hook_that_computes_without_gradients_takes_none_away() -> None:
    loss = CrossEntropyLoss()

    @torch.no_grad()
    def look(_: nn.Module, args: tuple[Tensor, Tensor]) -> None:
        f.dice_loss(*args)

    loss.register_forward_pre_hook(look)
    agrees(WeightedSum(a=loss, b=DiceLoss()), lambda z, t: parse("cross_entropy + dice")(z, t))


def test_a_backward_hook_gets_the_gradient_of_the_logits() -> None:
    loss, seen = DiceLoss(), []
    loss.register_full_backward_hook(lambda _, given, __: seen.append(given[0]))
    criterion = WeightedSum(a=CrossEntropyLoss(), b=loss)
    z = FULL.clone().requires_grad_()
    criterion(z, LABELS).backward()
    (wanted,) = torch.autograd.grad(f.dice_loss(z, LABELS), z)
    torch.testing.assert_close(seen[0], wanted)


# ---------------------------------------------------------------- what users write


class Plain(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        assert type(logits) is Tensor
        return logits.softmax(1).square().mean() + (target == 0).float().mean()


@checked
def peak_loss(logits: Logits, target: ClassMap, *, reduction: Reduction = "mean") -> Tensor:
    """Made of the logits themselves."""
    p = logits.softmax(1)
    hot = F.one_hot(target, logits.size(1)).movedim(-1, 1)
    return (p * (1 - hot)).amax(1).mean() + F.softplus(logits).mean() * logits.ndim


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, save):
        if save:
            ctx.save_for_backward(x)
        return 2 * x

    @staticmethod
    def backward(ctx, grad):  # noqa: ARG004
        return 2 * grad, None


@checked
def doubled_loss(logits: Logits, target: ClassMap, *, save: bool = False) -> Tensor:
    """Made by an autograd Function, which takes tensors only."""
    return Doubled.apply(logits, save).square().mean() + 0 * target.sum()


@torch.library.custom_op("tests::squared", mutates_args=())
def squared(x: Tensor) -> Tensor:
    return x.square()


squared.register_autograd(
    lambda ctx, grad: 2 * ctx.saved_tensors[0] * grad,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),  # noqa: ARG005
)


@checked
def operator_loss(logits: Logits, target: ClassMap) -> Tensor:
    return squared(logits).mean() + 0 * target.sum()


PeakLoss, DoubledLoss = loss_module(peak_loss), loss_module(doubled_loss)


@pytest.mark.parametrize(
    ("term", "function"),
    [
        (Plain(), lambda z, t: Plain()(z, t)),
        (PeakLoss(), peak_loss),
        (DoubledLoss(), doubled_loss),
        (DoubledLoss(save=True), doubled_loss),
        (loss_module(operator_loss)(), operator_loss),
        (nn.CrossEntropyLoss(), F.cross_entropy),
        (AtTargetSize(DiceLoss()), f.dice_loss),
        (parse("focal + dice"), lambda z, t: f.focal_loss(z, t) + f.dice_loss(z, t)),
    ],
)
def test_a_users_term_in_a_sum(term, function) -> None:
    def wanted(z: Tensor, t: Tensor) -> Tensor:
        return f.cross_entropy_loss(z, t) + 0.5 * function(z, t) + f.dice_loss(z, t)

    agrees(WeightedSum(a=CrossEntropyLoss(), b=(0.5, term), c=DiceLoss()), wanted)


def test_an_error_of_a_term_is_told_once_and_in_its_words() -> None:
    with pytest.raises(TypeError, match="cross_entropy_loss: unknown keyword 'gama'") as caught:
        parse("cross_entropy + dice")(FULL, LABELS, gama=1)
    assert caught.value.__context__ is None


# ---------------------------------------------------------------- what differs is not mixed


@pytest.mark.parametrize("order", [1, -1])
def test_terms_with_options_of_their_own_do_not_mix(order) -> None:
    weight, cw = torch.rand(2, 9, 8), torch.tensor([1.0, 2.0, 0.5])
    cases = [
        (CrossEntropyLoss, f.cross_entropy_loss, {"ignore_index": 0}),
        (CrossEntropyLoss, f.cross_entropy_loss, {"ignore_index": 1, "class_weight": cw}),
        (CrossEntropyLoss, f.cross_entropy_loss, {"label_smoothing": 0.1}),
        (CrossEntropyLoss, f.cross_entropy_loss, {"label_smoothing": 0.2, "class_weight": cw}),
        (CrossEntropyLoss, f.cross_entropy_loss, {"label_smoothing": 0.3, "class_weight": 2 * cw}),
        (FocalLoss, f.focal_loss, {"gamma": 1.5, "weight": weight}),
        (DiceLoss, f.dice_loss, {"ignore_index": 0}),
        (DiceLoss, f.dice_loss, {"weight": weight.clone()}),
        (DiceLoss, f.dice_loss, {"weight": weight, "pool": "batch"}),
    ][::order]
    terms = {f"t{i}": make(**options) for i, (make, _, options) in enumerate(cases)}
    agrees(
        WeightedSum(**terms),
        lambda z, t: sum(loss(z, t, **options) for _, loss, options in cases),
    )


@pytest.mark.parametrize("order", [1, -1])
def test_channels_with_weights_of_their_own_do_not_mix(order) -> None:
    cases = [
        *({"pos_weight": b} for b in (None, 3, 2, 2.5, 0, torch.tensor([1.0, 2.0, 3.0]))),
        {"ignore_index": 1},
        {"weight": torch.rand(2, 3, 9, 8)},
    ][::order]
    masks = f.one_hot(LABELS, 3)
    terms = {f"t{i}": BinaryCrossEntropyLoss(**options) for i, options in enumerate(cases)}
    criterion = WeightedSum(**terms, dice=BinaryDiceLoss())
    for _ in range(2):
        for name, options in zip(terms, cases, strict=True):
            wanted = f.binary_cross_entropy_loss(FULL, masks, **options)
            torch.testing.assert_close(criterion.terms(FULL, masks)[name], wanted)


def test_each_term_has_a_gradient_of_its_own() -> None:
    z = FULL.clone().requires_grad_()
    for criterion in (parse("cross_entropy + dice + focal"), parse("dice + jaccard")):
        terms = criterion.terms(z, LABELS)
        for name, value in terms.items():
            (grad,) = torch.autograd.grad(value, z, retain_graph=True)
            (wanted,) = torch.autograd.grad(getattr(f, f"{name}_loss")(z, LABELS), z)
            torch.testing.assert_close(grad, wanted)


# ---------------------------------------------------------------- copies, moves, compilation


def test_copies_after_calls() -> None:
    cw = torch.tensor([1.0, 2.0, 0.5])
    criterion = WeightedSum(a=CrossEntropyLoss(class_weight=cw, label_smoothing=0.1), b=DiceLoss())
    at_size = AtTargetSize(criterion)
    learned = cw.clone().requires_grad_()
    for made, z in ((criterion, FULL), (at_size, SMALL)):
        keys = list(made.state_dict())
        wanted = made(z, LABELS)
        made(z, LABELS, class_weight=2 * learned).backward()
        for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), made):
            torch.testing.assert_close(other(z, LABELS), wanted)
            assert list(other.state_dict()) == keys
            assert repr(other) == repr(made)
    assert learned.grad is not None


def test_a_criterion_may_be_moved_after_a_call() -> None:
    cw = torch.tensor([1.0, 2.0, 0.5])
    criterion = WeightedSum(b=DiceLoss(), a=CrossEntropyLoss(class_weight=cw, label_smoothing=0.1))
    masks = WeightedSum(b=BinaryDiceLoss(), a=BinaryCrossEntropyLoss(pos_weight=cw))
    for made, target in ((criterion, LABELS), (masks, f.one_hot(LABELS, 3))):
        made(FULL, target)
        moved = made.to("meta")
        assert moved(FULL.to("meta"), target.to("meta")).shape == ()


def test_what_was_seen_in_inference_mode_is_not_kept() -> None:
    criterion = WeightedSum(b=DiceLoss(), a=CrossEntropyLoss(label_smoothing=0.1))
    with torch.inference_mode():
        criterion(FULL, LABELS, class_weight=torch.ones(3))
    z = FULL.clone().requires_grad_()
    criterion(z, LABELS).backward()
    assert z.grad is not None


MAPS = [torch.randn(2, 3, size, size + 1) for size in (9, 4, 2)]


@pytest.mark.parametrize(
    ("criterion", "logits"),
    [
        (parse("cross_entropy + 0.5*dice + focal"), FULL),
        (parse("cross_entropy(class_weight=[1, 2, 3], label_smoothing=0.1) + dice"), FULL),
        (WeightedSum(a=CrossEntropyLoss(), b=PeakLoss(), c=Plain()), FULL),
        (AtTargetSize(parse("cross_entropy + dice")), SMALL),
        (AtTargetSize(DiceLoss()), SMALL),
        (AtTargetSize(PeakLoss()), SMALL),
        (DeepSupervision(parse("cross_entropy + dice")), MAPS),
        (DeepSupervision(CrossEntropyLoss(), weights=[1, 2, 3]), MAPS),
    ],
)
@pytest.mark.parametrize("called", [False, True])
def test_compiled(criterion, logits, called) -> None:
    torch._dynamo.reset()
    criterion = copy.deepcopy(criterion)
    if called:  # what a call remembers must not get into the way
        criterion(logits, LABELS)

    def leaves():
        given = [logits] if isinstance(logits, Tensor) else logits
        return [z.clone().requires_grad_() for z in given]

    def outcome(call):
        made = leaves()
        value = call(made if isinstance(logits, list) else made[0], LABELS)
        return value.detach(), *torch.autograd.grad(3.7 * value, made)

    wanted = outcome(criterion)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(outcome(compiled), wanted)
    torch.testing.assert_close(outcome(compiled), wanted)
    torch.testing.assert_close(outcome(criterion), wanted)
    torch._dynamo.reset()
