"""Weight maps and the encodings of labels."""

from math import nan

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from denseloss import functional
from tests.comparison import DTYPES, assert_value, places, proof, randoms, same, spaces

# --- oracles --------------------------------------------------------------------------------------


def box_mean(image, window, border):
    """Mean of one image over the window around each pixel; `image` is a tensor of space alone."""
    reach = window // 2
    mean = torch.zeros(image.shape, dtype=torch.float64)
    for here in places(image.shape):
        inside = [
            float(image[there])
            for there in places(image.shape)
            if all(abs(a - b) <= reach for a, b in zip(here, there, strict=True))
        ]
        size = {"zero": window**image.ndim, "valid": len(inside)}[border]
        mean[here] = sum(inside) / size
    return mean


def edge_weight(target, *, gamma=5.0, window=31, border="zero"):
    """1 + γ |box mean of t − t|."""
    weight = torch.zeros(target.shape, dtype=torch.float64)
    for image, channel in places(target.shape[:2]):
        t = target[image, channel].double()
        weight[image, channel] = 1 + gamma * (box_mean(t, window, border) - t).abs()
    return weight


def inverse_frequency(target, num_classes, *, ignore_index=-100):
    """1/count of each class, 0 for an absent one."""
    weight = torch.zeros(num_classes, dtype=torch.float64)
    labels = [int(label) for label in target.flatten() if label != ignore_index]
    for c in range(num_classes):
        if c in labels:
            weight[c] = 1 / labels.count(c)
    return weight


def one_hot(target, num_classes, *, ignore_index=-100):
    """1 at the label's class, 0 elsewhere; all 0 where void, all NaN under a label that is none."""
    images, *space = target.shape
    encoded = torch.zeros(images, num_classes, *space, dtype=torch.float64)
    for image, *position in places(target.shape):
        label = int(target[(image, *position)])
        if label == ignore_index:
            continue
        if 0 <= label < num_classes:
            encoded[(image, label, *position)] = 1
        else:
            encoded[(image, slice(None), *position)] = nan
    return encoded


ORACLES = {
    "edge_weight": edge_weight,
    "inverse_frequency": inverse_frequency,
    "one_hot": one_hot,
}

# --- edge_weight ----------------------------------------------------------------------------------

borders = st.sampled_from(["zero", "valid"])


@proof
@given(
    randoms,
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    spaces,
    st.sampled_from([*DTYPES, torch.bool, torch.uint8, torch.int64]),
    st.sampled_from([0.0, 1.0, 5.0]),
    st.sampled_from([1, 3, 5, 31]),
    borders,
)
def test_edge_weight(random, batch, space, dtype, gamma, window, border):
    target = random.uniform(*batch, *space)
    target = (target if dtype.is_floating_point else target.round()).to(dtype)
    options = {"gamma": gamma, "window": window, "border": border}
    expected = edge_weight(target, **options)
    assert_value(functional.edge_weight(target, **options), expected, dtype)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_edge_weight_is_the_published_pooling(dimensions):
    """F3Net: 1 + 5 |avg_pool(m, 31, stride 1, padding 15) − m|, zero padding counted."""
    mask = (torch.rand(2, 1, *[{1: 90, 2: 40, 3: 9}[dimensions]] * dimensions) < 0.3).double()
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[dimensions]

    def mean(image):
        return pool(F.pad(image, (15, 15) * dimensions), 31, stride=1)

    same(functional.edge_weight(mask), 1 + 5 * (mean(mask) - mask).abs(), 1e-12)
    inside = mean(mask) / mean(torch.ones_like(mask))
    same(functional.edge_weight(mask, border="valid"), 1 + 5 * (inside - mask).abs(), 1e-12)
    if dimensions == 2:
        padded = F.avg_pool2d(mask, 31, stride=1, padding=15)
        same(functional.edge_weight(mask), 1 + 5 * (padded - mask).abs(), 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_full_mask_has_edges_only_under_zero_padding(dtype):
    """Inside the image nothing changes, so every weight is exactly 1."""
    full = torch.ones(1, 1, 40, 37, dtype=dtype)
    valid = functional.edge_weight(full, border="valid")
    assert (valid == 1).all()
    zero = functional.edge_weight(full)
    same(zero[0, 0, 0, 0], 1 + 5 * (1 - (16 / 31) ** 2))
    same(zero[0, 0, 20, 18], 1)
    for border in ("zero", "valid"):
        assert (functional.edge_weight(torch.zeros_like(full), border=border) == 1).all()


def test_edge_weight_by_hand():
    """One foreground pixel, window 3: 1/9 around it, 1 − 1/9 on it."""
    mask = torch.zeros(1, 1, 5, 5)
    mask[..., 2, 2] = 1
    expected = torch.ones(5, 5)
    expected[1:4, 1:4] = 1 + 5 / 9
    expected[2, 2] = 1 + 5 * 8 / 9
    for border in ("zero", "valid"):
        same(functional.edge_weight(mask, window=3, border=border), expected[None, None])
    assert (functional.edge_weight(mask, window=1) == 1).all()
    assert (functional.edge_weight(torch.rand(1, 1, 9, 9), window=1) == 1).all()
    assert (functional.edge_weight(mask, gamma=0) == 1).all()


def test_edge_weight_keeps_its_digits_on_a_large_image():
    """Running sums over thousands of pixels would lose them in float32."""
    mask = torch.rand(1, 1, 3000, 40)
    mean = F.avg_pool2d(mask.double(), 31, stride=1, padding=15)
    same(functional.edge_weight(mask), 1 + 5 * (mean - mask).abs(), 3e-5)


# --- inverse_frequency ----------------------------------------------------------------------------

labels = st.sampled_from(
    [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
)


@proof
@given(randoms, spaces, labels, st.integers(2, 6), st.sampled_from([None, -100, 0, 1]))
def test_inverse_frequency(random, space, dtype, num_classes, ignore_index):
    high = 2 if dtype == torch.bool else num_classes
    target = random.integers(high, 2, *space).to(dtype)
    options = {} if ignore_index is None else {"ignore_index": ignore_index}
    actual = functional.inverse_frequency(target, num_classes, **options)
    assert_value(actual, inverse_frequency(target, num_classes, **options), torch.float32)


def test_inverse_frequency_by_hand():
    target = torch.tensor([[0, 0, 0, 2], [0, 255, 255, 2]])
    weight = functional.inverse_frequency(target, 4, ignore_index=255)
    same(weight, [1 / 4, 0, 1 / 2, 0])
    void = torch.full((1, 5), -100)
    assert (functional.inverse_frequency(void, 3) == 0).all()


def test_inverse_frequency_counts_more_than_float32_can():
    """Counts above 2²⁴ stay exact."""
    target = torch.zeros(1, 2**24 + 2, dtype=torch.uint8)
    target[0, 0] = 1
    weight = functional.inverse_frequency(target, 2).double()
    same(weight * torch.tensor([2**24 + 1, 1]), [1, 1], 1.2e-7)


# --- one_hot --------------------------------------------------------------------------------------


@proof
@given(randoms, spaces, labels, st.integers(2, 5), st.sampled_from([None, -100, 0, 1]))
def test_one_hot(random, space, dtype, num_classes, ignore_index):
    high = 2 if dtype == torch.bool else num_classes
    target = random.integers(high, 2, *space).to(dtype)
    options = {} if ignore_index is None else {"ignore_index": ignore_index}
    actual = functional.one_hot(target, num_classes, **options)
    assert actual.is_floating_point()
    same(actual, one_hot(target, num_classes, **options), 0)


def test_one_hot_is_torchs_with_classes_second():
    target = torch.randint(4, (2, 3, 5))
    same(functional.one_hot(target, 4), F.one_hot(target, 4).movedim(-1, 1), 0)


def test_one_hot_of_void_is_zero_and_of_no_class_is_not_finite():
    target = torch.tensor([[0, 255, 2, 9]])
    encoded = functional.one_hot(target, 3, ignore_index=255)
    same(encoded[0, :, :3], [[1, 0, 0], [0, 0, 0], [0, 0, 1]], 0)
    assert encoded[0, :, 3].isnan().all()
    assert functional.one_hot(torch.tensor([[-1]]), 3).isnan().all()
