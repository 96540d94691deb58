"""Mistakes that people make, and the sentence that each is answered with.

An answer names the function and the argument in the caller's words, what was expected, what came,
and how to mend it. It is one line.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import denseloss as dl
from denseloss import functional as F
from denseloss.compose import ParseError, parse

Z, T = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.long)
M, ONE = torch.zeros(2, 3, 4, 5), torch.zeros(2, 1, 4, 5)
B = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
PLAIN = ["cross_entropy", "balanced_cross_entropy", "focal", "dice", "jaccard", "tversky"]
deep = dl.DeepSupervision(dl.CrossEntropyLoss())


def answer(call) -> str:
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    assert "<locals>" not in said
    return said


# ---------------------------------------------------------------- a shape that makes it a constant


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    "target", [torch.zeros(2, 4, 5).long(), torch.zeros(2, 1, 4, 5).long(), ONE]
)
def test_one_channel_has_no_exclusive_classes(name: str, target: torch.Tensor) -> None:
    loss = getattr(F, f"{name}_loss")
    said = answer(lambda: loss(ONE, target))
    assert said.startswith(
        f"{name}_loss: logits (scores) must have c >= 2, got float32[2, 1, 4, 5]"
    )
    assert "binary_" in said
    for criterion in (
        parse(f"{name} + cross_entropy"),
        dl.AtTargetSize(parse(name)),
        dl.AtTargetSize(parse(f"cross_entropy + {name}")),
        dl.DeepSupervision(parse(name)),
    ):
        given = [ONE[:, :, ::2]] if isinstance(criterion, dl.DeepSupervision) else ONE
        assert "must have c >= 2" in answer(lambda c=criterion, g=given: c(g, target))


def test_nor_have_scores_and_segments_and_bins() -> None:
    assert "f_score: logits" in answer(lambda: F.f_score(ONE, T))
    assert "segment" in answer(lambda: F.ncut_loss(ONE, 255 * M))
    said = answer(lambda: F.distribution_focal_loss(torch.zeros(4, 1), torch.zeros(4)))
    assert "k >= 2" in said
    assert "must have c >= 2" in answer(lambda: F.dice_loss(torch.zeros(2, 0, 4), T[:, 0, :4]))
    mixed = parse("dice + binary_cross_entropy")
    assert "must have c >= 2" in answer(lambda: mixed(ONE, ONE))


# ---------------------------------------------------------------- sums


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "varifocal + 2*giou",
            "varifocal takes scores and a quality in [0, 1] per score, giou box",
        ),
        ("giou + varifocal", "take the same tensors"),
        ("cross_entropy + iou", "the IoU of masks is jaccard"),
        ("ciou + binary_dice", "the IoU of masks is jaccard"),
        ("cross_entropy + ncut", "an image, intensities 0 to 255"),
        ("distribution_focal + giou", "take the same tensors"),
        ("cross_entropy + quality_focal", "take the same tensors"),
        ("dice(reduction='none') + cross_entropy", "dice and cross_entropy cannot be added: one"),
        ("dice + focal(reduction='none')", "has reduction='none'"),
    ],
)
def test_a_sum_over_different_inputs_is_refused_when_read(text: str, said: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert said in str(caught.value)
    assert text in str(caught.value)
    names = list(parse(text, mixed=True).losses)
    assert len(names) == 2
    with pytest.raises(TypeError, match="call them one by one"):
        parse(text, mixed=True)(Z, T)


def test_a_sum_made_by_hand_is_checked_too() -> None:
    with pytest.raises(ValueError, match=r"WeightedSum: a takes scores and .*, b boxes and boxes"):
        dl.WeightedSum(a=dl.VarifocalLoss(), b=dl.GIoULoss())
    none = dl.WeightedSum(a=dl.DiceLoss(reduction="none"), b=dl.CrossEntropyLoss(reduction="none"))
    said = answer(lambda: none(Z, T))
    assert "a [2, 3], b [2, 4, 5]" in said
    pixels = parse("cross_entropy(reduction='none') + focal(reduction='none')")
    assert pixels(Z, T).shape == T.shape


@pytest.mark.parametrize(
    "text",
    [
        "giou + ciou",
        "binary_focal + varifocal",
        "quality_focal + varifocal",
        "cross_entropy + binary_dice",
        "binary_cross_entropy + structure",
        "dice(reduction='sum') + cross_entropy",
    ],
)
def test_sums_over_the_same_inputs_are_read(text: str) -> None:
    assert len(parse(text).losses) == 2


# ---------------------------------------------------------------- deep supervision


@pytest.mark.parametrize(
    ("maps", "said"),
    [
        (
            torch.zeros(2, 2, 3, 8, 8),
            "got one tensor float32[2, 2, 3, 8, 8]; pass list(maps.unbind",
        ),
        (Z, "maps must be a list of logits"),
        ([], "got an empty list"),
        ({"out": Z, "aux": Z}, "dict of out, aux; pass list(maps.values())"),
        ([Z, None], "maps must be a list of logits"),
        ("maps", "maps must be a list of logits"),
        (None, "maps must be a list of logits"),
    ],
)
def test_deep_supervision_takes_a_list_of_maps(maps: object, said: str) -> None:
    found = answer(lambda: deep(maps, T))
    assert found.startswith("DeepSupervision: ")
    assert said in found


def test_weights_of_deep_supervision() -> None:
    for weights in ([0, 0], [], [1, -1], [1, float("nan")], [float("inf")]):
        said = answer(lambda w=weights: dl.DeepSupervision(dl.DiceLoss(), weights=w))
        assert "weights must be numbers >= 0, one per map, and not all 0" in said
    assert "one map per weight, 2, got 1" in answer(
        lambda: dl.DeepSupervision(dl.DiceLoss(), weights=[1, 1])([Z], T)
    )
    assert "target must be one tensor, or a list of one for each of 2 maps, got 1" in answer(
        lambda: deep([Z, Z], [T])
    )
    assert "unknown preset 'nnUnet'; did you mean 'nnunet'?" in answer(
        lambda: dl.DeepSupervision.preset("nnUnet", dl.DiceLoss())
    )
    assert "resize must be 'logits' or 'target'" in answer(
        lambda: dl.DeepSupervision(dl.DiceLoss(), resize="labels")
    )


# ---------------------------------------------------------------- tensors of other makes


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_tensor_that_is_not_dense_is_a_type_error() -> None:
    sparse = Z.to_sparse()
    assert "focal_loss: logits must be an ordinary dense tensor, got one with layout" in answer(
        lambda: F.focal_loss(sparse, T)
    )
    assert "target.to_dense()" in answer(lambda: F.focal_loss(Z, T.to_sparse()))
    assert "weight must be an ordinary dense" in answer(
        lambda: F.focal_loss(Z, T, weight=torch.ones(2, 4, 5).to_sparse())
    )
    rows = [torch.zeros(3, 4), torch.zeros(3, 5)]
    for layout in (torch.jagged, torch.strided):
        nested = torch.nested.nested_tensor([r.t() for r in rows], layout=layout)
        for loss in (F.binary_focal_loss, F.dice_loss, F.quality_focal_loss):
            with pytest.raises(TypeError, match="ordinary dense tensor, got a nested one"):
                loss(nested, nested)


# ---------------------------------------------------------------- words and shapes


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: F.binary_focal_loss(Z[:, 0, 0, 0], Z[:, 0, 0, 0]), ["logits.unsqueeze(1)"]),
        (lambda: F.binary_cross_entropy_loss(Z[0, 0, 0], Z[0, 0, 0]), ["[n 1]", "unsqueeze(1)"]),
        (lambda: F.cross_entropy_loss(Z.long(), T), ["logits.float()"]),
        (lambda: F.cross_entropy_loss(T, Z), ["scores come first"]),
        (lambda: F.cross_entropy_loss(Z.movedim(1, -1)[:1], T[:1]), ["logits.movedim(-1, 1)"]),
        (lambda: F.binary_dice_loss(Z.movedim(1, -1), M.movedim(1, -1)[..., :1]), ["channels"]),
        (lambda: F.cross_entropy_loss(Z[0], T[0]), ["add the axis of images"]),
        (lambda: F.binary_dice_loss(Z[0, :1], M[0, 0]), ["add the axis of images"]),
        (lambda: F.dice_loss(Z, T.unsqueeze(-1)), ["target.squeeze(-1)"]),
        (lambda: F.quality_focal_loss(Z[0, 0], T[0, 0, :4]), ["ClassScores(label, score)"]),
        (
            lambda: F.varifocal_loss(Z[0, 0], (T[0, 0, :4], torch.zeros(4))),
            ["ClassScores(label, score)"],
        ),
        (lambda: F.binary_focal_loss(Z[0, 0], T[0, 0, :4]), ["ClassScores(label, score)"]),
        (lambda: F.dice_loss({"out": Z}, T), ["logits['out']"]),
        (lambda: F.dice_loss([Z], T), ["logits[0]"]),
        (lambda: F.dice_loss(Z, T, mode="multiclass"), ["plain names take labels"]),
        (lambda: F.dice_loss(Z, T, from_logits=True), ["losses take logits"]),
        (lambda: F.dice_loss(Z, T, to_onehot_y=True), ["labels are taken as they are"]),
        (lambda: F.focal_loss(Z, T, alpha=[0.25, 1, 1]), ["torch.as_tensor(alpha)"]),
        (lambda: F.dice_loss(Z, T, class_weight=np.ones(3)), ["torch.as_tensor(class_weight)"]),
        (lambda: F.giou_loss(B, B, fmt="xyhw"), ["did you mean 'xywh'?"]),
        (lambda: F.giou_loss(B[:, :3], B[:, :3]), ["float[*m 4]"]),
        (lambda: F.giou_loss(B, B, weight=torch.ones(1, 4)), ["weight", "real[*#m]"]),
        (lambda: F.giou_loss(B, torch.zeros(3, 4)), ["target_boxes", "*m=(1,)"]),
        (lambda: F.dice_loss(Z.numpy(), T), ["torch.as_tensor(logits)"]),
        (lambda: F.dice_loss(Z, T.numpy()), ["torch.as_tensor(target)"]),
        (lambda: F.cross_entropy_loss(Z.to(torch.complex64), T), ["float[n c *s]"]),
        (lambda: dl.AtTargetSize(F.dice_loss), ["the Module of dice_loss is DiceLoss()"]),
        (lambda: dl.DeepSupervision(F.focal_loss), ["the Module of focal_loss is FocalLoss()"]),
        (lambda: dl.AtTargetSize("dice"), ['compose.parse("dice")']),
        (lambda: dl.WeightedSum(a=F.dice_loss), ["the Module of dice_loss is DiceLoss()"]),
        (lambda: dl.AtTargetSize(dl.DiceLoss()), []),
    ],
)
def test_an_answer_says_how_to_mend_it(call, parts: list[str]) -> None:
    if not parts:
        call()
        return
    said = answer(call)
    for part in parts:
        assert part in said, said


@pytest.mark.parametrize("name", PLAIN)
def test_no_label_may_be_ignored(name: str) -> None:
    loss, labels = getattr(F, f"{name}_loss"), T.clone()
    labels[0, 0, 0] = 1
    z = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float64):
        none = loss(z.to(dtype), labels, ignore_index=None)
        torch.testing.assert_close(none, loss(z.to(dtype), labels))
    labels[0, 0, 0] = -100
    assert loss(z, labels, ignore_index=None).isnan()
    assert F.inverse_frequency(labels, 3, ignore_index=None).isnan().all()
    assert F.one_hot(labels, 3, ignore_index=None).isnan().any()
    assert F.f_score(z, labels, ignore_index=None).isnan()
