"""Slips that users make, and the edges that a battery of valid inputs does not reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import denseloss
from denseloss import functional as F
from denseloss.contract import kinds
from denseloss.testing import check_loss

KINDS = {n: [kind.name for kind in kinds(getattr(F, n)).values()][:2] for n in F.__all__}
BINARY = [name for name, pair in KINDS.items() if pair == ["Logits", "Masks"]]
SCORES = [name for name, pair in KINDS.items() if pair == ["Scores", "Quality"]]
BOXES = [name for name, pair in KINDS.items() if pair == ["Boxes", "Boxes"]]


@pytest.mark.parametrize("name", [*BINARY, *SCORES])
def test_a_mask_of_0_and_255_is_nan_and_never_a_good_score(name: str) -> None:
    masks = torch.tensor([[[0, 255, 255, 0]]], dtype=torch.uint8)
    assert getattr(F, name)(torch.full((1, 1, 4), 9.0), masks).isnan()
    if name in BINARY:
        logits = torch.ones(1, 1, 4)  # found: without a mask or a find there is no F score
        assert getattr(F, name)(logits, masks, ignore_index=255).isfinite()


@pytest.mark.parametrize("name", BINARY)
def test_masks_that_overshoot_a_little_are_taken(name: str) -> None:
    soft = torch.tensor([[[1.0000001, -1e-7, 1.1, 0.5]]])  # rounding, bicubic resampling
    assert getattr(F, name)(torch.zeros(1, 1, 4), soft).isfinite()


def test_nan_logits_have_no_score() -> None:
    nan = torch.full((1, 2, 4), torch.nan)
    assert F.binary_f_score(nan, torch.zeros(1, 2, 4)).isnan()
    assert F.f_score(nan, torch.zeros(1, 4, dtype=torch.long)).isnan()


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("fmt", ["xyxy", "xywh", "cxcywh"])
def test_all_boxes_on_a_grid_are_finite_and_bounded(name: str, scale: float, fmt: str) -> None:
    corners = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    boxes = scale * torch.cartesian_prod(corners, corners, corners, corners)
    a = boxes.repeat_interleave(len(boxes), 0).requires_grad_()
    b = boxes.repeat(len(boxes), 1)
    values = getattr(F, name)(a, b, fmt=fmt, reduction="none")
    assert values.isfinite().all()
    assert (values >= 0).all()
    (grad,) = torch.autograd.grad(values.sum(), a)
    assert grad.isfinite().all()
    xyxy = torch.stack([a.detach(), b])
    if fmt != "xyxy":
        xyxy = torch.cat([xyxy[..., :2], xyxy[..., :2] + xyxy[..., 2:]], -1)
    inverted = xyxy[..., 2:] < xyxy[..., :2]
    assert (values[inverted.any(-1).any(0)] >= 1 - 1e-6).all()
    # 1 - IoU <= 1, and at most 1 each for the distance, the aspect and each inverted side
    assert (values <= 3 + inverted[0].sum(-1) + 1e-6).all()


def test_no_pixels_and_no_space() -> None:
    for name in ("structure_loss", "ncut_loss"):
        assert getattr(F, name)(torch.zeros(2, 3, 0, 4), torch.zeros(2, 3, 0, 4)) == 0
        value = getattr(F, name)(torch.zeros(2, 3), torch.zeros(2, 3), reduction="none")
        assert value.shape[0] == 2


def test_numpy_scalars_are_numbers() -> None:
    logits, target = torch.zeros(1, 2, 3), torch.zeros(1, 3, dtype=torch.long)
    loss = denseloss.FocalLoss(gamma=np.float32(2), ignore_index=np.int64(255))
    assert loss(logits, target) == F.focal_loss(logits, target)


def test_narrow_integer_masks_do_not_wrap() -> None:
    masks = torch.tensor([[[0, 1, 1, 255]]], dtype=torch.uint8)
    values = F.binary_cross_entropy_loss(
        torch.zeros(1, 1, 4), masks, ignore_index=-1, reduction="none"
    )
    assert values.isnan().tolist() == [[[False, False, False, True]]]


def test_check_loss_says_when_nothing_is_annotated() -> None:
    with pytest.raises(ValueError, match="pass like="):
        check_loss(lambda logits, _: logits.sum())
