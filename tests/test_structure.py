"""Structure loss: weighted cross entropy and weighted Jaccard with the emphasis on edges."""

from functools import partial
from math import log, nan

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from denseloss import functional
from tests.comparison import (
    agree,
    elements,
    finite,
    masks,
    places,
    proof,
    reduced,
    same,
    trained,
)
from tests.test_weights import box_mean

VARIANTS = ("corrected", "released", "equation")

# --- oracle ---------------------------------------------------------------------------------------


def structure_loss(
    logits,
    target,
    *,
    gamma=5.0,
    window=31,
    smooth=1.0,
    variant="corrected",
    weight=None,
    ignore_index=None,
    count=None,
    reduction="mean",
):
    """wBCE + wIoU per channel, w = 1 + γ |box mean of t − t|; void counts as 0 in that mean."""
    alive = list(elements(logits, target, weight, ignore_index))
    clean = torch.zeros(logits.shape, dtype=torch.float64)
    for place, _, t, _ in alive:
        clean[place] = t
    batch_bce = sum(w * bce(z, t) for _, z, t, w in alive)
    batch_weight = sum(w for *_, w in alive)

    values, counts = {}, {}
    for entry in places(logits.shape[:2]):
        own = [element for element in alive if element.place[:2] == entry]
        if not own:
            continue
        mean = box_mean(clean[entry], window, "zero")
        entropy = difference = both = total = edges = 0.0
        for place, z, t, w in own:
            edge = gamma * abs(float(mean[place[2:]]) - t)
            p = torch.sigmoid(z)
            entropy += w * (1 + edge) * bce(z, t)
            total += w * (1 + edge)
            edges += w * edge
            difference += w * (1 + edge) * abs(p - t)
            both += w * (1 + edge) * (p + t)
        if variant == "corrected":
            w_bce = entropy / total
        elif variant == "released":
            w_bce = batch_bce / batch_weight
        elif variant == "equation":
            w_bce = entropy / (edges if edges != 0 else total)
        intersection = (both - difference) / 2  # Σ w p t where t is 0 or 1
        denominator = both - intersection + smooth
        score = (intersection + smooth) / denominator if denominator != 0 else intersection + 1
        values[entry] = w_bce + 1 - score
        counts[entry] = 1.0
    return reduced(values, counts, tuple(logits.shape[:2]), logits, reduction, count)


def bce(z, t):
    return -t * F.logsigmoid(z) - (1 - t) * F.logsigmoid(-z)


ORACLES = {"structure_loss": structure_loss}

# --- tests ----------------------------------------------------------------------------------------


@proof
@given(
    masks(),
    st.sampled_from(VARIANTS),
    st.sampled_from([0.0, 1.0, 5.0]),
    st.sampled_from([1, 3, 5, 31]),
    st.sampled_from([0, 1, 2.5]),
)
def test_structure(case, variant, gamma, window, smooth):
    agree(
        functional.structure_loss,
        structure_loss,
        case.logits,
        case.target,
        void=case.void,
        variant=variant,
        gamma=gamma,
        window=window,
        smooth=smooth,
        **case.options,
    )


def example():
    """Logits and masks with a border region, 40 x 37, two images and two channels."""
    logits = torch.randn(2, 2, 40, 37, dtype=torch.float64)
    mask = torch.zeros(2, 2, 40, 37, dtype=torch.float64)
    mask[0, 0, :20, :10] = 1
    mask[0, 1, 10:25, 12:] = 1
    mask[1, 0, 5, 5] = 1
    return logits, mask


def published(logits, mask, cross_entropy):
    """The formula of F3Net's and PraNet's scripts, given the cross entropy of each pixel."""
    w = 1 + 5 * (F.avg_pool2d(mask, 31, stride=1, padding=15) - mask).abs()
    w_bce = (w * cross_entropy).sum((2, 3)) / w.sum((2, 3))
    p = logits.sigmoid()
    intersection, union = (w * p * mask).sum((2, 3)), (w * (p + mask)).sum((2, 3))
    return w_bce + 1 - (intersection + 1) / (union - intersection + 1)


def test_corrected_is_the_published_formula_with_a_cross_entropy_per_pixel():
    logits, mask = example()
    entropy = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    expected = published(logits, mask, entropy)
    same(functional.structure_loss(logits, mask, reduction="none"), expected, 1e-12)
    same(functional.structure_loss(logits, mask), expected.mean(), 1e-12)


def test_released_is_the_published_code_where_none_means_mean():
    """`reduce="none"` is torch's retired boolean: it is true, so the entropy is the batch mean."""
    logits, mask = example()
    with pytest.warns(UserWarning, match="reduction='mean'"):
        entropy = F.binary_cross_entropy_with_logits(logits, mask, reduce="none")
    assert entropy.ndim == 0
    expected = published(logits, mask, entropy)
    actual = functional.structure_loss(logits, mask, variant="released", reduction="none")
    same(actual, expected, 1e-12)
    plain = functional.binary_cross_entropy_loss(logits, mask)
    jaccard = functional.binary_jaccard_loss(
        logits, mask, weight=functional.edge_weight(mask), reduction="none"
    )
    same(actual, plain + jaccard, 1e-12)


def test_equation_divides_by_the_edges_alone():
    """The paper prints Σ γα below the fraction, the code Σ (1 + γα)."""
    logits, mask = example()
    edges = functional.edge_weight(mask)
    each = {
        variant: functional.structure_loss(logits, mask, variant=variant, reduction="none")
        for variant in VARIANTS
    }
    jaccard = functional.binary_jaccard_loss(logits, mask, weight=edges, reduction="none")
    ratio = edges.sum((2, 3)) / (edges - 1).sum((2, 3))
    ratio[1, 1] = 1  # an empty mask has no edge to divide by
    same(each["equation"] - jaccard, (each["corrected"] - jaccard) * ratio, 1e-12)


def test_structure_is_weighted_entropy_plus_weighted_jaccard():
    logits, mask = example()
    edges = functional.edge_weight(mask)
    for n, c in places((2, 2)):
        one = logits[n : n + 1, c : c + 1], mask[n : n + 1, c : c + 1]
        weight = edges[n : n + 1, c : c + 1]
        expected = functional.binary_cross_entropy_loss(
            *one, weight=weight
        ) + functional.binary_jaccard_loss(*one, weight=weight)
        same(functional.structure_loss(*one), expected, 1e-12)


def test_by_hand():
    """Three pixels, p = 1/2, mask 0 1 0, window 3: α = 1/3, 2/3, 1/3, so with γ = 3 w = 2, 3, 2.

    wBCE is ln 2, the intersection 1.5 and the union 3.5 + 3 − 1.5.
    """
    logits, mask = torch.zeros(1, 1, 3), torch.tensor([[[0, 1, 0]]])
    options = {"gamma": 3, "window": 3}
    jaccard = 1 - 2.5 / 6
    same(functional.structure_loss(logits, mask, **options), log(2) + jaccard)
    same(functional.structure_loss(logits, mask, variant="released", **options), log(2) + jaccard)
    # α sums to 4/3 · 3 = 4 of the 7 that w sums to
    expected = log(2) * 7 / 4 + jaccard
    same(functional.structure_loss(logits, mask, variant="equation", **options), expected)
    same(functional.structure_loss(logits, mask, smooth=0, **options), log(2) + 1 - 1.5 / 5)


def test_no_emphasis_is_plain_entropy_plus_jaccard():
    logits, mask = example()
    entropy = F.binary_cross_entropy_with_logits(logits, mask, reduction="none").mean((2, 3))
    jaccard = functional.binary_jaccard_loss(logits, mask, reduction="none")
    for options in ({"gamma": 0}, {"window": 1}):
        for variant in ("corrected", "equation"):
            actual = functional.structure_loss(
                logits, mask, variant=variant, reduction="none", **options
            )
            same(actual, entropy + jaccard, 1e-12)


def test_void_is_outside_the_image():
    """Void pixels around an image are the zero padding that the box mean sees anyway."""
    logits, mask = example()
    wider = F.pad(logits, (3, 5, 2, 4), value=nan)
    marked = F.pad(mask, (3, 5, 2, 4), value=255)
    for variant in VARIANTS:
        options = {"variant": variant, "reduction": "none"}
        expected = functional.structure_loss(logits, mask, **options)
        actual = functional.structure_loss(wider, marked, ignore_index=255, **options)
        same(actual, expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_overlap_of_soft_masks_is_perfect_at_the_mask(dtype):
    """What is left is the entropy of the mask, under the weights."""
    logits = torch.randn(2, 2, 9, 8, dtype=dtype)
    mask = logits.sigmoid()
    weight = functional.edge_weight(mask, window=3)
    entropy = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    expected = (weight * entropy).sum((2, 3)) / weight.sum((2, 3))
    options = {"window": 3, "smooth": 0, "reduction": "none"}
    same(functional.structure_loss(logits, mask, **options), expected, 1e-6)
    assert (functional.structure_loss(1.01 * logits, mask, **options) > expected).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_ends_at_the_target(variant):
    target = torch.full((1, 2, 6, 6), 0.3)
    end = trained(
        partial(functional.structure_loss, variant=variant), torch.randn(1, 2, 6, 6), target
    )
    same(end.sigmoid(), target, 5e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_ends_of_the_range(variant):
    logits = torch.tensor([[[1.0, -1.0, 0.0, 1.0]]]) * 1e4
    for mask in ([1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]):
        target = torch.tensor([[mask]])
        finite(functional.structure_loss, logits, target, variant=variant)
        finite(functional.structure_loss, logits, target, variant=variant, smooth=0)
        agree(functional.structure_loss, structure_loss, logits, target, variant=variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_that_counts_is_zero_with_a_graph(variant):
    logits, target = torch.full((2, 3, 4), nan), torch.full((2, 3, 4), 255)
    loss = functional.structure_loss
    for options in ({"ignore_index": 255}, {"weight": torch.zeros(2, 1, 4)}):
        void = torch.tensor(True)
        agree(loss, structure_loss, logits, target, void=void, variant=variant, **options)
    agree(loss, structure_loss, logits[:0], target[:0], variant=variant)
