"""`ClassScores` stand for a dense target."""

from __future__ import annotations

import pytest
import torch

from denseloss import ClassScores, backend
from denseloss import functional as F

LABEL = torch.tensor([[0, -1, 2], [-100, 1, 1]])
SCORE = torch.tensor([[0.5, 0.9, 1.0], [0.3, 0.0, 0.25]])
LOSSES = [F.binary_focal_loss, F.quality_focal_loss, F.varifocal_loss]


@pytest.mark.parametrize("version", ["reference", None])
@pytest.mark.parametrize("loss", LOSSES)
def test_equal_to_the_dense_target(loss, version) -> None:
    z = torch.randn(2, 3, 4)
    label = LABEL.clamp(min=-1)
    dense = torch.zeros(2, 3, 4)
    for i, j in ((0, 0), (0, 2), (1, 1), (1, 2)):  # (0, 1) and (1, 0) are background
        dense[i, j, label[i, j]] = SCORE[i, j]
    with backend.use(version):
        torch.testing.assert_close(loss(z, ClassScores(label, SCORE)), loss(z, dense))
        w = torch.rand(2, 3, 1)
        torch.testing.assert_close(
            loss(z, ClassScores(label, SCORE), weight=w, reduction="none"),
            loss(z, dense, weight=w.expand(2, 3, 4), reduction="none"),
        )
        every = loss(z, ClassScores(label))
        torch.testing.assert_close(every, loss(z, ClassScores(label, torch.ones(2, 3))))


@pytest.mark.parametrize("version", ["reference", None])
def test_void_places(version) -> None:
    z = torch.randn(2, 3, 4)
    z[1, 0] = torch.nan
    z.requires_grad_()
    with backend.use(version):
        value = F.binary_focal_loss(z, ClassScores(LABEL, SCORE), ignore_index=-100)
        value.backward()
        keep = torch.tensor([0, 1, 2, 4, 5])
        rest = F.binary_focal_loss(
            z.detach().reshape(6, 4)[keep],
            ClassScores(LABEL.reshape(6)[keep], SCORE.reshape(6)[keep]),
        )
    torch.testing.assert_close(value, rest)
    assert not z.grad[1, 0].any()


@pytest.mark.parametrize("version", ["reference", None])
@pytest.mark.parametrize("bad", [4, -2, -100])
def test_labels_that_are_no_class(bad, version) -> None:
    label = LABEL.clamp(min=-1).clone()
    label[0, 1] = bad
    with backend.use(version):
        values = F.quality_focal_loss(
            torch.randn(2, 3, 4), ClassScores(label, SCORE), reduction="none"
        )
    assert values[0, 1].isnan().all()
    assert values.isnan().sum() == 4


def test_errors_name_the_part() -> None:
    z = torch.zeros(2, 3, 4)
    for target, error, text in (
        (
            ClassScores(torch.zeros(2, 4, dtype=torch.long)),
            ValueError,
            r"quality\.label .*\[2, 4\]",
        ),
        (ClassScores(torch.zeros(2, 3)), TypeError, r"quality\.label .*float32\[2, 3\]"),
        (ClassScores(LABEL, LABEL), TypeError, r"quality\.score .*int64\[2, 3\]"),
        (ClassScores(LABEL, SCORE[:1]), ValueError, r"quality\.score .*float32\[1, 3\]"),
        (ClassScores([1]), TypeError, r"quality\.label .*list"),
    ):
        with pytest.raises(error, match=text):
            F.quality_focal_loss(z, target)


def test_a_loss_of_masks_does_not_take_them() -> None:
    with pytest.raises(TypeError, match=r"binary_dice_loss: target .*got ClassScores"):
        F.binary_dice_loss(torch.zeros(2, 3, 4), ClassScores(LABEL))
