"""Soft normalized cut: the one loss without a target."""

from math import exp, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from denseloss import functional
from tests.comparison import agree, dtypes, finite, places, proof, randoms, reduced, same

# --- oracle ---------------------------------------------------------------------------------------


def ncut_loss(
    logits,
    image,
    *,
    radius=5.0,
    sigma_intensity=10.0,
    sigma_space=4.0,
    variant="paper",
    count=None,
    reduction="mean",
):
    """K − Σ_k [Σ_u p_uk Σ_v w_uv p_vk] / [Σ_u p_uk Σ_v w_uv], with a dense matrix w per image."""
    images, classes, *space = logits.shape
    p = logits.double().softmax(1).flatten(2)  # [n c pixel]
    colour = image.double().flatten(2)  # [n i pixel]
    if variant == "class_mean":
        value = classes - sum(class_mean_ratios(p, colour, sigma_intensity))
        values = {(n,): value for n in range(images)}
    else:
        values = {}
        for n in range(images):
            w = affinity(colour[n], space, radius, sigma_intensity, sigma_space)
            values[n,] = classes - sum(
                ratio(p[n, k] @ w @ p[n, k], (p[n, k] @ w).sum()) for k in range(classes)
            )
    counts = dict.fromkeys(values, 1.0)
    return reduced(values, counts, (images,), logits, reduction, count)


def affinity(colour, space, radius, sigma_intensity, sigma_space):
    """w[u, v] of one image."""
    pixel_places = list(places(space))
    w = torch.zeros(len(pixel_places), len(pixel_places), dtype=torch.float64)
    for u, here in enumerate(pixel_places):
        for v, there in enumerate(pixel_places):
            distance2 = sum((a - b) ** 2 for a, b in zip(here, there, strict=True))
            if sqrt(distance2) < radius:
                difference2 = float(((colour[:, u] - colour[:, v]) ** 2).sum())
                w[u, v] = exp(-difference2 / sigma_intensity**2 - distance2 / sigma_space**2)
    return w


def class_mean_ratios(p, colour, sigma_intensity):
    """Σ p p w / Σ p w of each class over the batch, w = exp(−(‖F − μ_k‖²)² / σ²)."""
    images, classes, size = p.shape
    for k in range(classes):
        numerator = denominator = p.sum() * 0
        for n in range(images):
            if p[n, k].sum() == 0:
                continue
            mean = (p[n, k] * colour[n]).sum(1) / p[n, k].sum()
            for u in range(size):
                difference2 = ((colour[n, :, u] - mean) ** 2).sum()
                w = torch.exp(-(difference2**2) / sigma_intensity**2)
                numerator = numerator + p[n, k, u] * p[n, k, u] * w
                denominator = denominator + p[n, k, u] * w
        yield ratio(numerator, denominator)


def ratio(numerator, denominator):
    """A class that no pixel has contributes 0."""
    return numerator / denominator if denominator != 0 else numerator


ORACLES = {"ncut_loss": ncut_loss}

# --- equal to the oracle --------------------------------------------------------------------------

spaces = st.one_of(
    st.tuples(st.integers(1, 12)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)


@st.composite
def scenes(draw):
    """Logits and an image with a few intensities close enough to matter."""
    images, classes, space = draw(st.integers(1, 2)), draw(st.integers(2, 3)), draw(spaces)
    random, dtype = draw(randoms), draw(dtypes)
    logits = random.normal(images, classes, *space) * 2
    image = random.uniform(images, draw(st.integers(1, 3)), *space) * 12 + 8
    kinds = [torch.uint8, torch.float32, torch.float64, dtype]
    return logits.to(dtype), image.to(draw(st.sampled_from(kinds)))


@proof
@given(
    scenes(),
    st.sampled_from([1, 1.5, 2, 3, 5]),
    st.sampled_from([4.0, 10.0]),
    st.sampled_from([1.0, 4.0]),
)
def test_paper(scene, radius, sigma_intensity, sigma_space):
    options = {
        "radius": radius,
        "sigma_intensity": sigma_intensity,
        "sigma_space": sigma_space,
    }
    agree(functional.ncut_loss, ncut_loss, *scene, **options)


@proof
@given(scenes(), st.sampled_from([10.0, 60.0]))
def test_class_mean(scene, sigma_intensity):
    options = {"sigma_intensity": sigma_intensity, "variant": "class_mean"}
    agree(functional.ncut_loss, ncut_loss, *scene, **options)


# --- values that can be checked by hand -----------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("variant", ["paper", "class_mean"])
def test_no_opinion_costs_all_classes_but_one(classes, variant):
    """With p = 1/K everywhere each ratio is 1/K."""
    image = torch.randint(250, 253, (2, 3, 6, 7)).to(torch.uint8)
    loss = functional.ncut_loss(torch.zeros(2, classes, 6, 7), image, variant=variant)
    same(loss, classes - 1)


def test_two_flat_regions_too_different_to_be_linked_cost_nothing():
    image = torch.zeros(1, 1, 6, 8)
    image[..., 4:] = 255
    left = torch.full((1, 1, 6, 8), -1e4)
    left[..., :4] = 1e4
    right_answer = torch.cat([left, -left], 1)
    same(functional.ncut_loss(right_answer, image), 0)
    wrong = torch.cat([left, -left], 1).flip(-2).roll(4, -1).roll(2, -1)
    assert functional.ncut_loss(wrong, image) > 0.5


def test_hard_assignments_give_the_normalized_cut():
    """Shi & Malik 2000: Σ_k cut(A_k, V − A_k) / assoc(A_k, V)."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(100, 120, (1, 1, 5, 6), generator=generator)
    labels = torch.randint(3, (30,), generator=generator)
    logits = (torch.nn.functional.one_hot(labels, 3).T.reshape(1, 3, 5, 6) * 2 - 1) * 1e4
    w = affinity(image[0].double().flatten(1), (5, 6), 5, 10, 4)
    expected = sum(w[labels == k][:, labels != k].sum() / w[labels == k].sum() for k in range(3))
    same(functional.ncut_loss(logits.double(), image.double()), expected, 1e-12)


@pytest.mark.parametrize(
    ("space", "radius", "neighbours"),
    [
        (
            (11, 11),
            5,
            69,
        ),  # the discs of integer points strictly inside the radius, with the centre
        ((11, 11), 1, 1),
        ((11, 11), 2, 9),
        ((15,), 5, 9),
        ((5, 5, 5), 1.5, 19),
    ],
)
def test_the_window_is_a_disc(space, radius, neighbours):
    """A pixel alone in its class on a flat image: its ratio is 1 over its neighbours."""
    centre = tuple(size // 2 for size in space)
    alone = torch.full((1, 1, *space), -1e4, dtype=torch.float64)
    alone[(0, 0, *centre)] = 1e4
    logits = torch.cat([alone, -alone], 1)
    image = torch.full((1, 1, *space), 7, dtype=torch.uint8)
    loss = functional.ncut_loss(logits, image, radius=radius, sigma_space=1e9)
    links = sum(
        sum((a - b) ** 2 for a, b in zip(u, v, strict=True)) < radius**2
        for u in places(space)
        for v in places(space)
    )
    rest = (links - 2 * neighbours + 1) / (links - neighbours)
    same(loss, 2 - 1 / neighbours - rest, 1e-12)


def test_affinity_by_hand():
    """Two pixels at distance 1, colours 0 and (6, 8): w = exp(−100/100 − 1/16)."""
    w = exp(-1 - 1 / 16)
    image = torch.tensor([[[0.0, 6.0], [0.0, 8.0]]])
    one_each = torch.tensor([[[1e4, -1e4], [-1e4, 1e4]]])
    same(functional.ncut_loss(one_each, image), 2 * w / (1 + w))


def test_classes_apart_from_their_mean_colour():
    """Class means: two pixels of 0 and 2 in one class lie 1 from their mean, squared twice."""
    image = torch.tensor([[[0.0, 2.0, 50.0]]])
    logits = torch.tensor([[[0.0, 0.0, -1e4], [0.0, 0.0, 1e4]]])
    # Class 0 has half of the first two pixels, μ = 1 and equal weights: Σ p p w / Σ p w = 1/2.
    # Class 1 has the other half and the third, μ = (0/2 + 2/2 + 50) / 2 = 25.5.
    far = [exp(-((25.5**2) ** 2) / 100), exp(-((23.5**2) ** 2) / 100), exp(-((24.5**2) ** 2) / 100)]
    assert max(far) == 0.0  # a class whose weights all vanish contributes 0
    same(functional.ncut_loss(logits, image, variant="class_mean"), 2 - 1 / 2)


# --- what counts ----------------------------------------------------------------------------------


def test_images_are_cut_apart_in_the_paper_and_together_by_class_means():
    logits = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    image = torch.rand(3, 1, 4, 5, dtype=torch.float64) * 10
    loss = functional.ncut_loss
    each = loss(logits, image, reduction="none")
    assert each.shape == (3,)
    alone = [loss(logits[n : n + 1], image[n : n + 1]) for n in range(3)]
    same(each, torch.stack(alone), 1e-12)

    options = {"variant": "class_mean", "sigma_intensity": 100.0}
    together = loss(logits, image, **options)
    same(loss(logits, image, reduction="none", **options), together.expand(3), 1e-12)
    same(loss(logits, image, reduction="sum", **options), 3 * together, 1e-12)
    alone = [loss(logits[n : n + 1], image[n : n + 1], **options) for n in range(3)]
    assert (together - torch.stack(alone).mean()).abs() > 1e-6


@pytest.mark.parametrize("variant", ["paper", "class_mean"])
def test_the_ends_of_the_range(variant):
    image = torch.tensor([0, 255, 0, 128, 128, 255]).reshape(1, 1, 6).to(torch.uint8)
    for z in (0.0, 1.0, 100.0, 1e4):
        for signs in ([1, 1, 1, 1, 1, 1], [1, -1, 1, -1, 0, 0]):
            logits = torch.tensor(signs).float() * z
            logits = torch.stack([logits, -logits, torch.zeros(6)])[None]
            finite(functional.ncut_loss, logits, image, variant=variant)
            agree(functional.ncut_loss, ncut_loss, logits[:, :2], image, variant="paper")


@pytest.mark.parametrize("variant", ["paper", "class_mean"])
def test_no_image_is_zero_with_a_graph(variant):
    logits, image = torch.zeros(0, 3, 4, 4), torch.zeros(0, 1, 4, 4)
    finite(functional.ncut_loss, logits, image, variant=variant)
    same(functional.ncut_loss(logits, image, variant=variant), 0)
