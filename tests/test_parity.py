"""Where what people use today differs from ours, and why; and equal in every shape and reduction.

Settings that give equal numbers are the rows of docs/equal_settings.md, which has tests of its own.
"""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import ops

from denseloss import functional
from tests.comparison import REDUCTIONS, same, value_and_gradient

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what these warn about on import is not ours
    import kornia.losses
    import monai.losses
    import torchmetrics.functional.classification as classification
    import torchmetrics.functional.segmentation as segmentation

SPACES = [(7,), (5, 6), (3, 4, 2)]
spaces = pytest.mark.parametrize("space", SPACES, ids=lambda space: f"{len(space)}d")
reductions = pytest.mark.parametrize("reduction", REDUCTIONS)


def labelled(*space: int, classes: int = 3, images: int = 2) -> tuple[Tensor, Tensor]:
    """Logits and labels; every image has every class."""
    logits = torch.randn(images, classes, *space, dtype=torch.float64)
    target = torch.randint(classes, (images, *space))
    target.flatten(1)[:, :classes] = torch.arange(classes)
    return logits, target


def masked(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(shape, dtype=torch.float64), torch.randint(2, shape).double()


def boxes(count: int = 40) -> tuple[Tensor, Tensor]:
    low, size = torch.rand(2, count, 2).double() * 300, torch.rand(2, count, 2).double() * 200 + 5
    first, second = torch.cat([low, low + size], -1)
    return first, second


def equal(ours, theirs, inputs, tolerance=1e-10, **options) -> None:
    """Same value and gradient."""
    value, gradient = value_and_gradient(ours, *inputs, **options)
    expected, slope = value_and_gradient(theirs, *inputs)
    same(value, expected.reshape(value.shape), tolerance)
    same(gradient, slope, tolerance)


# --- torch.nn.functional --------------------------------------------------------------------------


@spaces
@reductions
def test_torch_cross_entropy(space, reduction):
    inputs = labelled(*space)
    void = inputs[1].clone()
    void[0, 1] = -100
    for target in (inputs[1], void):
        for class_weight in (None, torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)):
            for label_smoothing in (0.0, 0.2):
                equal(
                    functional.cross_entropy_loss,
                    lambda z, t, cw=class_weight, ls=label_smoothing: F.cross_entropy(
                        z, t, weight=cw, label_smoothing=ls, reduction=reduction
                    ),
                    (inputs[0], target),
                    class_weight=class_weight,
                    label_smoothing=label_smoothing,
                    reduction=reduction,
                )


@spaces
@reductions
def test_torch_cross_entropy_of_probabilities(space, reduction):
    logits, _ = labelled(*space)
    target = torch.randn_like(logits).softmax(1)
    class_weight = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    for weight in (None, class_weight):
        equal(
            functional.cross_entropy_loss,
            lambda z, t, w=weight: F.cross_entropy(
                z, t, weight=w, label_smoothing=0.1, reduction=reduction
            ),
            (logits, target),
            class_weight=weight,
            label_smoothing=0.1,
            reduction=reduction,
        )


def test_torch_cross_entropy_of_void_alone_is_nan_and_ours_is_zero():
    """torch divides 0 by 0."""
    logits, target = torch.randn(1, 3, 4), torch.full((1, 4), -100)
    assert F.cross_entropy(logits, target).isnan()
    same(functional.cross_entropy_loss(logits, target), 0, 0)


def test_torch_cross_entropy_wants_int64_and_ours_takes_any_integer():
    logits, target = labelled(5)
    with pytest.raises(RuntimeError):
        F.cross_entropy(logits, target.int())
    for dtype in (torch.int32, torch.int16, torch.uint8):
        same(
            functional.cross_entropy_loss(logits, target.to(dtype)),
            F.cross_entropy(logits, target),
            1e-12,
        )


@reductions
def test_torch_binary_cross_entropy(reduction):
    logits, target = masked(2, 3, 4, 5)
    pos_weight = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)
    for weighed in (False, True):
        equal(
            functional.binary_cross_entropy_loss,
            lambda z, t, weighed=weighed: F.binary_cross_entropy_with_logits(
                z, t, pos_weight=pos_weight[:, None, None] if weighed else None, reduction=reduction
            ),
            (logits, target),
            pos_weight=pos_weight if weighed else None,
            reduction=reduction,
        )


def test_torch_binary_cross_entropy_mean_divides_by_elements_and_ours_by_weight():
    """Equal in "none" and "sum"; in the mean torch divides by numel, we by Σ w."""
    logits, target = masked(2, 3, 4)
    weight = torch.rand(2, 1, 4, dtype=torch.float64)
    ours, theirs = (
        {r: f(logits, target, weight=weight, reduction=r) for r in REDUCTIONS}
        for f in (functional.binary_cross_entropy_loss, F.binary_cross_entropy_with_logits)
    )
    same(ours["none"], theirs["none"], 1e-12)
    same(ours["sum"], theirs["sum"], 1e-12)
    assert (ours["mean"] - theirs["mean"]).abs() > 0.01
    same(ours["mean"] * weight.expand_as(logits).mean(), theirs["mean"], 1e-12)


# --- torchvision ----------------------------------------------------------------------------------


@reductions
def test_torchvision_focal(reduction):
    inputs = masked(2, 3, 5)
    for gamma, alpha in ((2, 0.25), (0, 0.25), (1.5, 0.9)):
        equal(
            functional.binary_focal_loss,
            lambda z, t, g=gamma, a=alpha: ops.sigmoid_focal_loss(z, t, a, g, reduction),
            inputs,
            gamma=gamma,
            alpha=alpha,
            reduction=reduction,
        )
    equal(
        functional.binary_focal_loss,
        lambda z, t: ops.sigmoid_focal_loss(z, t, -1, 2, reduction),
        inputs,
        alpha=None,
        reduction=reduction,
    )


def test_torchvision_focal_has_a_nan_gradient_below_gamma_one_and_ours_is_finite():
    """It differentiates (1 − p_t)^γ at 0, where the slope is infinite; we stay in log space."""
    logits, target = torch.full((1, 1, 1), 40.0), torch.ones(1, 1, 1)
    _, theirs = value_and_gradient(ops.sigmoid_focal_loss, logits, target, gamma=0.5)
    _, ours = value_and_gradient(functional.binary_focal_loss, logits, target, gamma=0.5)
    assert theirs.isnan().all()
    assert ours.isfinite().all()


def test_torchvision_focal_of_half_precision_rounds_and_ours_does_not():
    """It computes in float16, where the true p of a sure miss is already 1."""
    logits, target = torch.full((1, 1, 1), -9.0).half(), torch.zeros(1, 1, 1).half()
    theirs = ops.sigmoid_focal_loss(logits, target, reduction="mean")
    ours = functional.binary_focal_loss(logits, target)
    exact = functional.binary_focal_loss(logits.double(), target)
    assert (theirs.dtype, ours.dtype) == (torch.float16, torch.float32)
    same(ours / exact, 1, 1e-4)
    assert (theirs.double() / exact - 1).abs() > 0.1


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("giou_loss", ops.generalized_box_iou_loss),
        ("diou_loss", ops.distance_box_iou_loss),
        ("ciou_loss", ops.complete_box_iou_loss),
    ],
)
@reductions
def test_torchvision_box_losses(ours, theirs, reduction):
    """Equal up to its absolute eps of 1e-7, which is nothing beside an area of pixels."""
    equal(
        getattr(functional, ours),
        lambda a, b: theirs(a, b, reduction=reduction),
        boxes(),
        1e-8,
        reduction=reduction,
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("giou_loss", ops.generalized_box_iou_loss),
        ("diou_loss", ops.distance_box_iou_loss),
    ],
)
def test_torchvision_eps_biases_small_boxes_and_ours_do_not_move(ours, theirs):
    """At a side of 1e-3 its eps is a tenth of the area: a perfect match costs 0.09."""
    first, second = (b / b.max() for b in boxes())
    exact = getattr(functional, ours)
    same(exact(first, second), theirs(first, second, reduction="mean", eps=0), 1e-12)
    small = torch.tensor([[0.5, 0.5, 0.501, 0.501]])
    same(theirs(small, small, reduction="mean"), 0.09, 0.01)
    same(exact(small, small), 0, 0)
    same(theirs(small, small, reduction="mean", eps=0), 0, 0)


def test_torchvision_giou_of_inverted_boxes_is_perfect_and_ours_is_not():
    """Its area of a box turned in both axes is (−10)(−10) = 100."""
    inverted, proper = torch.tensor([[10.0, 10, 0, 0]]), torch.tensor([[0.0, 0, 10, 10]])
    assert ops.generalized_box_iou_loss(inverted, proper) <= 0
    assert functional.giou_loss(inverted, proper) >= 1


def test_torchvision_giou_of_one_point_is_one_and_ours_is_zero():
    """0/eps is 0 there; two identical boxes are a match here, whatever their area."""
    point = torch.tensor([[5.0, 5, 5, 5]])
    same(ops.generalized_box_iou_loss(point, point, reduction="mean"), 1)
    same(functional.giou_loss(point, point), 0, 0)


def test_torchvision_ciou_of_flat_boxes_is_nan_and_ours_is_finite():
    """Its atan(w/h) is 0/0 for a point, and has a NaN gradient at h = 0."""
    target_boxes = torch.tensor([[1.0, 1, 3, 3]])
    point, flat = torch.tensor([[2.0, 2, 2, 2]]), torch.tensor([[1.0, 2, 3, 2]])
    assert ops.complete_box_iou_loss(point, target_boxes).isnan()
    _, gradient = value_and_gradient(ops.complete_box_iou_loss, flat, target_boxes)
    assert gradient.isnan().any()
    for box in (point, flat):
        value, gradient = value_and_gradient(functional.ciou_loss, box, target_boxes)
        assert value.isfinite()
        assert gradient.isfinite().all()


# --- MONAI ----------------------------------------------------------------------------------------


@spaces
@pytest.mark.parametrize("pool", ["image", "batch"])
@reductions
def test_monai_dice(space, pool, reduction):
    """Its smooth_nr and smooth_dr are our one `smooth`, its batch our pool."""
    options = {"batch": pool == "batch", "smooth_nr": 0.5, "smooth_dr": 0.5, "reduction": reduction}
    dice = monai.losses.DiceLoss(softmax=True, to_onehot_y=True, **options)
    equal(
        functional.dice_loss,
        lambda z, t: dice(z, t[:, None]),
        labelled(*space, images=3),
        smooth=0.5,
        pool=pool,
        reduction=reduction,
    )
    sigmoid = monai.losses.DiceLoss(sigmoid=True, **options)
    equal(
        functional.binary_dice_loss,
        sigmoid,
        masked(3, 2, *space),
        smooth=0.5,
        pool=pool,
        reduction=reduction,
    )


def test_monai_jaccard_has_half_of_our_smoothing():
    """It is (2 I + s) / (2 U + s): ours with s / 2."""
    jaccard = monai.losses.DiceLoss(sigmoid=True, jaccard=True, smooth_nr=1, smooth_dr=1)
    inputs = masked(2, 3, 8)
    equal(functional.binary_jaccard_loss, jaccard, inputs, smooth=0.5)
    assert (functional.binary_jaccard_loss(*inputs) - jaccard(*inputs)).abs() > 1e-3


def test_monai_dice_mean_divides_by_classes_and_ours_by_class_weight():
    """Equal in "none"; a weight of 2 for all doubles its mean and leaves ours."""
    logits, target = labelled(5, 5)
    weight = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)
    options = {"softmax": True, "to_onehot_y": True, "smooth_nr": 1, "smooth_dr": 1}
    theirs = monai.losses.DiceLoss(weight=weight, **options)(logits, target[:, None])
    ours = functional.dice_loss(logits, target, class_weight=weight)
    same(ours * weight.mean(), theirs)
    each = monai.losses.DiceLoss(weight=weight, reduction="none", **options)
    same(
        functional.dice_loss(logits, target, class_weight=weight, reduction="none"),
        each(logits, target[:, None]).flatten(1),
        1e-10,
    )


def test_monai_dice_without_weights_counts_an_absent_class_as_ours_does():
    logits, target = labelled(5, 5)
    target[target == 2] = 1
    theirs = monai.losses.DiceLoss(softmax=True, to_onehot_y=True, smooth_nr=1, smooth_dr=1)
    same(functional.dice_loss(logits, target), theirs(logits, target[:, None]), 1e-10)
    assert functional.dice_loss(logits, target, absent="skip") < theirs(logits, target[:, None])


@spaces
def test_monai_dice_with_an_ignored_label(space):
    logits, target = labelled(*space)
    target[:, -1] = 255
    theirs = monai.losses.DiceLoss(
        softmax=True, to_onehot_y=True, smooth_nr=1, smooth_dr=1, ignore_index=255
    )
    same(
        functional.dice_loss(logits, target, ignore_index=255),
        theirs(logits, target[:, None]),
        1e-10,
    )
    logits[:, :, -1] = float("nan")
    assert functional.dice_loss(logits, target, ignore_index=255).isfinite()
    assert theirs(logits, target[:, None]).isnan()  # NaN · 0


@spaces
@pytest.mark.parametrize("pool", ["image", "batch"])
@reductions
def test_monai_tversky(space, pool, reduction):
    """Its alpha prices false positives and its beta false negatives, as ours."""
    options = {"alpha": 0.2, "beta": 0.9}
    tversky = monai.losses.TverskyLoss(
        softmax=True,
        to_onehot_y=True,
        smooth_nr=0.5,
        smooth_dr=0.5,
        batch=pool == "batch",
        reduction=reduction,
        **options,
    )
    inputs = labelled(*space, images=3)
    equal(
        functional.tversky_loss,
        lambda z, t: tversky(z, t[:, None]),
        inputs,
        smooth=0.5,
        pool=pool,
        reduction=reduction,
        **options,
    )


def test_monai_focal_sigmoid():
    inputs = masked(2, 3, 4, 5)
    for reduction in ("none", "mean"):
        for alpha in (None, 0.25):
            theirs = monai.losses.FocalLoss(gamma=1.5, alpha=alpha, reduction=reduction)
            ours = functional.binary_focal_loss(
                *inputs, gamma=1.5, alpha=alpha, reduction=reduction
            )
            same(ours, theirs(*inputs), 1e-5)  # it computes in float32


def test_monai_focal_sum_averages_over_space_and_ours_sums():
    inputs = masked(2, 3, 4, 5)
    theirs = monai.losses.FocalLoss(reduction="sum")(*inputs)
    ours = functional.binary_focal_loss(*inputs, alpha=None, reduction="sum")
    same(ours / (4 * 5), theirs, 1e-5)
    each = monai.losses.FocalLoss(reduction="none")(*inputs)
    same(ours, each.sum(), 1e-5)


def test_monai_focal_softmax_mean_divides_by_classes_too_and_ours_by_pixels():
    """Its mean runs over [n c *s], where all but the target's class are 0: ours is c times that."""
    logits, target = labelled(4, 5)
    theirs = monai.losses.FocalLoss(use_softmax=True, to_onehot_y=True)(logits, target[:, None])
    same(functional.focal_loss(logits, target), 3 * theirs, 1e-5)
    each = monai.losses.FocalLoss(use_softmax=True, to_onehot_y=True, reduction="none")
    same(
        functional.focal_loss(logits, target, reduction="none"),
        each(logits, target[:, None]).sum(1),
        1e-5,
    )


def test_monai_focal_number_alpha_spares_the_background_and_ours_multiplies_all():
    """Its 0.8 is 0.2 for class 0; a weight for each class means the same in both."""
    logits, target = labelled(4, 5)
    options = {"use_softmax": True, "to_onehot_y": True, "reduction": "none"}
    theirs = monai.losses.FocalLoss(alpha=0.8, **options)(logits, target[:, None]).sum(1)
    number = functional.focal_loss(logits, target, alpha=0.8, reduction="none")
    same(number / theirs, torch.where(target == 0, 4.0, 1.0), 1e-4)
    alpha = torch.tensor([0.2, 0.8, 0.8])
    same(functional.focal_loss(logits, target, alpha=alpha, reduction="none"), theirs, 1e-5)


# --- kornia ---------------------------------------------------------------------------------------


def test_kornia_focal_mean_divides_by_classes_too_and_ours_by_pixels():
    """Its elements are [n c h w], of which one class per pixel counts."""
    logits, target = labelled(4, 5)
    each = kornia.losses.focal_loss(logits, target, alpha=None, gamma=2.0, reduction="none")
    same(functional.focal_loss(logits, target, reduction="none"), each.sum(1), 1e-8)
    mean = kornia.losses.focal_loss(logits, target, alpha=None, gamma=2.0, reduction="mean")
    same(functional.focal_loss(logits, target), 3 * mean, 1e-8)


def test_kornia_dice_macro_skips_absent_classes_as_ours_does_when_asked():
    logits, target = labelled(6, 7)
    target[target == 2] = 0
    theirs = kornia.losses.dice_loss(logits, target, average="macro", eps=0.0)
    same(functional.dice_loss(logits, target, smooth=0, absent="skip"), theirs, 1e-8)
    assert functional.dice_loss(logits, target, smooth=0) > theirs


# --- torchmetrics ---------------------------------------------------------------------------------


def test_torchmetrics_dice_score_of_a_class_nowhere():
    """A class that is neither there nor predicted has no score, and is left out of the mean."""
    logits, target = labelled(6, 7)
    logits[:, 2], target = -20, target.clamp(max=1)
    found = logits.argmax(1)
    options = {"num_classes": 3, "input_format": "index", "aggregation_level": "global"}
    theirs = segmentation.dice_score(found, target, average="none", **options)[0]
    ours = functional.f_score(logits, target, smooth=0, reduction="none")
    same(ours[:2], theirs[:2])
    assert theirs[2].isnan()
    assert ours[2].isnan()
    macro = segmentation.dice_score(found, target, average="macro", **options)
    same(functional.f_score(logits, target, smooth=0), macro.squeeze())
    f1 = classification.multiclass_f1_score(found, target, num_classes=3, average="macro")
    same(functional.f_score(logits, target, smooth=0), f1)


def test_torchmetrics_mean_iou_is_a_function_of_the_score():
    """IoU = F / (2 − F)."""
    logits, target = labelled(6, 7)
    found = logits.argmax(1)
    theirs = segmentation.mean_iou(
        found, target, num_classes=3, per_class=True, input_format="index"
    )
    f = functional.f_score(logits, target, smooth=0, pool="image", reduction="none")
    same(f / (2 - f), theirs)


def test_torchmetrics_takes_the_largest_class_and_so_do_we():
    logits, target = torch.tensor([[[0.45], [0.25], [0.3]]]).log(), torch.tensor([[0]])
    theirs = classification.multiclass_fbeta_score(
        logits, target, beta=1.0, num_classes=3, average="none"
    )
    same(theirs[0], 1)
    same(functional.f_score(logits, target, smooth=0, reduction="none")[0], 1)
    same(functional.f_score(logits, target, smooth=0, decision=0.5, reduction="none")[0], 0)
