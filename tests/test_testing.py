"""The battery catches a loss that is broken, one of each kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from denseloss import functional
from denseloss.contract import ClassMap, Logits, PixelWeight, Reduction, Share, checked
from denseloss.testing import LossError, check_loss, diagnose

CE = functional.cross_entropy_loss


def like_ce(broken: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function that calls itself cross entropy: same tensors, same keywords."""

    @checked
    def cross_entropy_loss(
        logits: Logits,
        target: ClassMap,
        *,
        label_smoothing: Share = 0.0,
        weight: PixelWeight | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> Tensor:
        options = {
            "label_smoothing": label_smoothing,
            "weight": weight,
            "ignore_index": ignore_index,
            "reduction": reduction,
        }
        return broken(logits, target, **options)

    return cross_entropy_loss


def ignored_keyword(logits, target, *, label_smoothing, **options):
    return CE(logits, target, **options)


def leaking_void_in_value(logits, target, *, ignore_index, weight, reduction, **options):
    values = CE(logits, target, ignore_index=ignore_index, weight=weight, reduction="none")
    if reduction == "none":
        return values
    return values.sum() if reduction == "sum" else values.mean()


def leaking_void_by_product(logits, target, *, weight, ignore_index, reduction, **options):
    # the usual way: compute everywhere, multiply by 0 afterwards
    w = (target != ignore_index).to(logits.dtype)
    if weight is not None:
        w = w * weight
    safe = torch.where(target == ignore_index, 0, target).clamp(0, logits.shape[1] - 1)
    values = w * F.cross_entropy(logits, safe, reduction="none")
    if reduction == "none":
        return values
    return values.sum() if reduction == "sum" else values.sum() / w.sum().clamp_min(1e-9)


class _NoUpstream(torch.autograd.Function):
    """A backward pass that forgets what comes from above (as fused kernels have done)."""

    @staticmethod
    def forward(ctx, logits, value):
        ctx.save_for_backward(logits)
        return value.clone()

    @staticmethod
    def backward(ctx, above):  # noqa: ARG004
        (logits,) = ctx.saved_tensors
        return torch.ones_like(logits), None


def missing_upstream(logits, target, **options):
    return _NoUpstream.apply(logits, CE(logits.detach(), target, **options))


def in_place_write(logits, target, *, ignore_index, **options):
    value = CE(logits, target, ignore_index=ignore_index, **options)
    target[target == ignore_index] = 0
    return value


def in_place_same_values(logits, target, **options):
    with torch.no_grad():
        logits.mul_(1)
    return CE(logits, target, **options)


def host_read(logits, target, **options):
    if target.max() < 0:
        return logits.sum() * 0
    return CE(logits, target, **options)


def mean_over_all(logits, target, *, reduction, **options):
    if reduction == "mean":
        return CE(logits, target, reduction="sum", **options) / target[0].numel()
    return CE(logits, target, reduction=reduction, **options)


def half_precision_sum(logits, target, **options):
    return CE(logits, target, **options).to(logits.dtype)


def nan_at_saturation(logits, target, *, weight, ignore_index, reduction, **options):
    p = logits.softmax(1)
    values = CE(logits, target, ignore_index=ignore_index, weight=weight, reduction="none")
    values = values - 0.1 * (p * p.log()).sum(1)
    return values if reduction == "none" else getattr(values, reduction)()


def grad_mode(logits, target, **options):
    torch.set_grad_enabled(True)
    return CE(logits, target, **options)


def doubled_mean(logits, target, *, reduction, **options):
    value = CE(logits, target, reduction=reduction, **options)
    return 2 * value if reduction == "mean" else value


def cleared_of_nan_only(logits, target, *, weight, **options):
    w = 1 if weight is None else weight.unsqueeze(1)
    return CE(torch.nan_to_num(logits, posinf=1e4, neginf=-1e4) * (w != 0), target, **options)


def random_state(logits, target, **options):
    torch.rand(1)
    return CE(logits, target, **options)


def wrong_gradient(logits, target, **options):
    return CE(logits + 0.5 * (logits - logits.detach()), target, **options)


def contiguous_only(logits, target, **options):
    logits.view(-1)
    return CE(logits, target, **options)


def two_dimensions_only(logits, target, **options):
    assert logits.ndim == 4
    return CE(logits, target, **options)


def nan_when_empty(logits, target, *, reduction, **options):
    if reduction == "mean":
        return CE(logits, target, reduction="none", **options).mean()
    return CE(logits, target, reduction=reduction, **options)


class _OldStyle(torch.autograd.Function):
    """A context in forward, as functorch cannot take it."""

    @staticmethod
    def forward(ctx, logits):  # noqa: ARG004
        return logits.clone()

    @staticmethod
    def backward(ctx, above):  # noqa: ARG004
        return above


def old_style_function(logits, target, **options):
    return CE(_OldStyle.apply(logits), target, **options)


def recompiled_for_each_batch(logits, target, **options):
    return CE(logits, target, **options) + 0 * sum(range(logits.shape[0]))


def prints(logits, target, **options):
    print("loss")
    return CE(logits, target, **options)


BROKEN = {
    "layout": [contiguous_only],
    "dimensions": [two_dimensions_only],
    "empty": [nan_when_empty],
    "func": [old_style_function],
    "keywords": [ignored_keyword],
    "void": [
        leaking_void_in_value,
        leaking_void_by_product,
        mean_over_all,
        cleared_of_nan_only,
    ],
    "upstream": [missing_upstream],
    "purity": [in_place_write, in_place_same_values, grad_mode, random_state, prints],
    "no_host_read": [host_read],
    "compile": [host_read, recompiled_for_each_batch],
    "reductions": [doubled_mean, mean_over_all, leaking_void_in_value],
    "precision": [half_precision_sum],
    "extremes": [nan_at_saturation],
    "gradient": [wrong_gradient, missing_upstream],
    "oracle": [wrong_gradient, ignored_keyword],
}


@pytest.mark.parametrize(
    ("check", "broken"), [(check, broken) for check, many in BROKEN.items() for broken in many]
)
def test_a_broken_loss_is_caught(check: str, broken: Callable[..., Tensor]) -> None:
    with pytest.raises(LossError, match=rf"1 checks failed\s+{check}: "):
        check_loss(like_ce(broken), oracle=_plain_ce, only=[check])
    torch.set_grad_enabled(True)


def _plain_ce(logits, target, *, label_smoothing=0.0, weight=None, **options):
    return CE(logits, target, label_smoothing=label_smoothing, weight=weight, **options)


def test_swapped_keywords_are_caught() -> None:
    def tversky_loss(logits, target, *, alpha=0.5, beta=0.5, **options):
        # kornia's slip: both prices act on the sum of both errors
        return functional.tversky_loss(logits, target, alpha=alpha + beta, beta=alpha + beta)

    tversky_loss.__signature__ = inspect.signature(functional.tversky_loss)
    with pytest.raises(LossError, match=r"alpha and beta are interchangeable|changes nothing"):
        check_loss(tversky_loss, like=functional.tversky_loss, only=["keywords"])


def test_unchecked_shapes_are_caught() -> None:
    def cross_entropy_loss(logits, target, **options):
        return F.cross_entropy(
            logits,
            target.reshape(logits.shape[0], -1)[:, :1]
            .expand(logits.shape[0], logits[0, 0].numel())
            .reshape(logits[:, 0].shape),
        )

    with pytest.raises(LossError, match="errors: "):
        check_loss(cross_entropy_loss, like=CE, only=["errors"])


def test_a_right_loss_passes() -> None:
    check_loss(like_ce(_plain_ce), oracle=_plain_ce)


def test_unknown_check_is_named() -> None:
    with pytest.raises(ValueError, match="unknown check 'speed'"):
        check_loss(CE, only=["speed"])


def test_diagnose_says_what_is_wrong() -> None:
    logits = torch.full((1, 2, 4), 0.5)
    target = torch.tensor([[0, 1, -100, 9]])
    said = "\n".join(diagnose(CE, logits, target))
    assert "probabilities" in said
    assert "1 of 4 labels are outside 0 to 1 and are not ignore_index: 9" in said
    assert diagnose(CE, torch.randn(1, 2, 4), torch.tensor([[0, 1, -100, 1]])) == []
    assert diagnose(CE, torch.randn(1, 2, 4), target, ignore_index=9) != []

    boxes = torch.tensor([[0.0, 0, 1, 1], [2.0, 0, 1, 1], [0.0, 0, 0, 1]])
    said = "\n".join(diagnose(functional.giou_loss, boxes, boxes * torch.nan))
    assert "boxes: 1 boxes are inverted" in said
    assert "boxes: 1 boxes have no width or no height" in said
    assert "target_boxes: 12 of 12 values are NaN or infinite" in said

    said = "\n".join(diagnose(functional.ncut_loss, torch.randn(1, 2, 4), torch.rand(1, 3, 4)))
    assert "expected 0 to 255" in said
    masks = torch.tensor([[[0.0, 1.0, 255.0, 0.0]]])
    assert "outside 0 to 1: 255" in diagnose(functional.binary_dice_loss, logits[:, :1], masks)[1]
    z = torch.randn(1, 1, 4)
    assert diagnose(functional.binary_dice_loss, z, masks, ignore_index=255) == []
    bins = diagnose(functional.distribution_focal_loss, torch.randn(2, 4), torch.tensor([1.0, 5.0]))
    assert bins == ["target: 1 of 2 positions are outside 0 to 3 and are clamped"]
