"""What the losses look at: gradient and weight maps, their files, and the image that is shown."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from denseloss import compose
from denseloss.data import VOID, Sample, normalise
from denseloss.data.errors import InputError
from denseloss.tasks.segmentation import SegmentationData, open_data
from denseloss.tasks.segmentation.criterion import SegmentationCriterion
from denseloss.tasks.segmentation.gradient_maps import (
    GradientMaps,
    gradient_maps,
    load,
    save,
    usual_image,
)
from denseloss.tasks.segmentation.measure import Measured, measure

SIDE = 40


def truth_of(classes: int, *, void: bool = False) -> np.ndarray:
    """Squares of the classes from 1, each smaller than the one before."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for index in range(1, classes):
        at, side = 12 * (index - 1) + 2, 16 - 4 * index
        mask[at : at + side, at : at + side] = index
    if void:
        mask[-4:] = VOID
        mask[6:8, 0:20] = VOID
    return mask


def one_image(root: Path, truth: np.ndarray, *, classes: int) -> tuple[SegmentationData, Sample]:
    rng = np.random.default_rng(1)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    every = np.tile(np.arange(classes, dtype=np.uint8), (4, 1))
    for i, mask in enumerate((truth, every)):
        Image.fromarray(mask).save(root / "masks" / f"i{i}.png")
        colours = rng.integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
        Image.fromarray(colours).save(root / "images" / f"i{i}.png")
    names = ["background", *(f"class {c}" for c in range(1, classes))]
    void = VOID if (truth == VOID).any() else None
    data = open_data(root, classes=names, ignore_index=void)
    return data, min((*data.train, *data.val), key=lambda sample: sample.name)


class Network:
    """Stands for a trained network: it says the logits that it was given."""

    def __init__(self, logits: np.ndarray, *, loss: str, classes: int) -> None:
        self.device = torch.device("cpu")
        self.logits = torch.from_numpy(logits).float()[None]
        self.criterion = criterion_of(loss, classes)

    def outputs(self, image: Tensor) -> list[Tensor]:
        assert image.shape[-2:] == self.logits.shape[-2:]
        return [self.logits]


def criterion_of(loss: str, classes: int) -> SegmentationCriterion:
    mode = "binary" if classes == 2 else "multiclass"
    terms = compose.parse(loss, mixed=True)
    return SegmentationCriterion(terms, mode=mode, num_classes=classes)  # type: ignore[arg-type]


def look_at(network: Network, data: SegmentationData, sample: Sample, *losses: str) -> GradientMaps:
    criteria = {loss: criterion_of(loss, data.num_classes) for loss in losses}
    return gradient_maps(criteria, network, data, sample, predicted_by="cross_entropy, seed 0")


def unsure(truth: np.ndarray, classes: int) -> np.ndarray:
    """Logits that are mostly right, more or less sure."""
    rng = np.random.default_rng(2)
    if classes == 2:
        return (3 * np.where(truth == 1, 1, -1) + 2 * rng.normal(size=truth.shape))[None]
    right = truth[None] == np.arange(classes)[:, None, None]
    return 3 * right + rng.normal(size=right.shape)


def looked(root: Path, *losses: str, classes: int = 2, void: bool = False) -> GradientMaps:
    truth = truth_of(classes, void=void)
    data, sample = one_image(root, truth, classes=classes)
    network = Network(unsure(truth, classes), loss="cross_entropy", classes=classes)
    return look_at(network, data, sample, *losses)


def wrongness(found: GradientMaps) -> np.ndarray:
    truth = (found.truth == int(found.class_name[-1])).astype(float)
    return np.abs(found.probability - truth)


# ---------------------------------------------------------------- the maps


@pytest.mark.parametrize("void", [False, True])
@pytest.mark.parametrize(
    ("classes", "loss"),
    [(2, "cross_entropy"), (2, "binary_cross_entropy"), (3, "cross_entropy"),
     (3, "binary_cross_entropy")],
)  # fmt: skip
def test_every_pixel_counts_the_same_for_cross_entropy(
    classes: int, loss: str, void: bool, tmp_path: Path
) -> None:
    found = looked(tmp_path, loss, classes=classes, void=void)
    weight, known = found.weights[loss], found.truth != VOID
    np.testing.assert_allclose(weight[known], 1, rtol=1e-5)
    assert np.isnan(weight[~known]).all()
    gradient = found.gradients[loss]
    assert (gradient[~known] == 0).all()
    np.testing.assert_allclose(np.abs(gradient[known]).mean(), 1, rtol=1e-5)
    inside = found.truth == int(found.class_name[-1])
    assert (gradient[inside] < 0).all()
    assert (gradient[known & ~inside] > 0).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_focal_looks_away_from_what_is_right_already(classes: int, tmp_path: Path) -> None:
    found = looked(tmp_path, "focal(gamma=2)", "cross_entropy", classes=classes, void=True)
    weight, wrong = found.weights["focal(gamma=2)"], wrongness(found)
    known = found.truth != VOID
    assert weight[known & (wrong < 0.1)].mean() < 0.1 * weight[known & (wrong > 0.5)].mean()


def test_focal_weights_are_those_of_its_formula(tmp_path: Path) -> None:
    found = looked(tmp_path, "binary_focal(gamma=2, alpha=None)")
    right = 1 - wrongness(found).astype(np.float64)
    # d/dz of (1-q)² (-log q), q the probability of what is true, over that of -log q.
    expected = (1 - right) * ((1 - right) - 2 * right * np.log(right))
    weight = found.weights["binary_focal(gamma=2, alpha=None)"]
    np.testing.assert_allclose(weight, expected / expected.mean(), rtol=1e-3)


def test_structure_looks_at_edges(tmp_path: Path) -> None:
    found = looked(tmp_path, "structure(window=7)")
    weight, truth = found.weights["structure(window=7)"], found.truth
    edge = np.zeros(truth.shape, bool)
    edge[1:-1, 1:-1] = (
        (truth[1:-1, 1:-1] != truth[:-2, 1:-1])
        | (truth[1:-1, 1:-1] != truth[2:, 1:-1])
        | (truth[1:-1, 1:-1] != truth[1:-1, :-2])
        | (truth[1:-1, 1:-1] != truth[1:-1, 2:])
    )
    far = np.zeros(truth.shape, bool)
    far[22:, 22:] = True
    assert np.nanmean(weight[edge]) > 2 * np.nanmean(weight[far])


@pytest.mark.parametrize("loss", ["dice", "cross_entropy + 2*jaccard", "ncut(radius=2)"])
@pytest.mark.parametrize("classes", [2, 3])
def test_gradients_are_the_slopes_of_the_loss(loss: str, classes: int, tmp_path: Path) -> None:
    truth = truth_of(classes)
    data, sample = one_image(tmp_path, truth, classes=classes)
    network = Network(unsure(truth, classes), loss="dice", classes=classes)
    found = look_at(network, data, sample, loss)
    criterion = criterion_of(loss, classes)
    pixels, _ = data.read(sample)

    def value(place: tuple[int, int], step: float) -> float:
        logits = network.logits.double()
        channel = 0 if classes == 2 else int(found.class_name[-1])
        logits[0, channel, place[0], place[1]] += step
        target = torch.from_numpy(truth).long()[None]
        return float(criterion([logits], {"image": normalise(pixels)[None], "mask": target}).sum())

    places = [(3, 4), (2, 13), (15, 16), (38, 1)]
    slopes = [(value(place, 1e-4) - value(place, -1e-4)) / 2e-4 for place in places]
    ours = [found.gradients[loss][place] for place in places]
    scale = ours[0] / slopes[0]
    assert scale > 0
    np.testing.assert_allclose(ours, np.multiply(slopes, scale), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_every_loss_that_can_be_trained_has_a_look(classes: int, tmp_path: Path) -> None:
    losses = []
    for name in compose.names():
        try:
            criterion_of(name, classes)
        except InputError:
            continue
        losses.append(name)
    assert len(losses) > 10
    found = looked(tmp_path, *losses, classes=classes, void=True)
    known = found.truth != VOID
    assert list(found.gradients) == list(found.weights) == losses
    for name in losses:
        gradient, weight = found.gradients[name], found.weights[name]
        assert gradient.dtype == weight.dtype == np.float32
        assert gradient.shape == weight.shape == found.truth.shape
        assert np.isfinite(gradient).all()
        np.testing.assert_allclose(np.abs(gradient[known]).mean(), 1, rtol=1e-5)
        np.testing.assert_allclose(np.nanmean(weight), 1, rtol=1e-4)
        assert np.isnan(weight[~known]).all()
        if name != "ncut":  # it looks at the image alone
            assert (gradient[~known] == 0).all()


def test_a_sure_network_leaves_pixels_without_a_weight(tmp_path: Path) -> None:
    truth = truth_of(2)
    data, sample = one_image(tmp_path, truth, classes=2)
    logits = unsure(truth, 2)
    logits[0, :10] = np.where(truth[:10] == 1, 50, -50)
    network = Network(logits, loss="dice", classes=2)
    found = look_at(network, data, sample, "cross_entropy")
    assert np.isnan(found.weights["cross_entropy"][:10]).all()
    np.testing.assert_allclose(found.weights["cross_entropy"][10:], 1, rtol=1e-5)


def test_the_part_of_a_large_image_is_where_the_errors_are(tmp_path: Path) -> None:
    truth = np.zeros((300, 420), np.uint8)
    truth[40:60, 20:40] = 1
    truth[280:300, 400:420] = 1
    truth[285:290, 405:410] = VOID
    data, sample = one_image(tmp_path, truth, classes=2)
    logits = np.where(truth == 1, 4.0, -4.0)[None]
    logits[0, 280:300, 400:420] = -4  # missed
    network = Network(logits, loss="dice", classes=2)
    found = look_at(network, data, sample, "dice")
    assert found.image.shape == (256, 256, 3)
    assert found.truth.shape == found.probability.shape == found.gradients["dice"].shape
    assert (found.truth == truth[44:, 164:]).all()
    pixels, _ = data.read(sample)
    assert (found.image == pixels[:, 44:, 164:].permute(1, 2, 0).numpy()).all()


def test_on_several_classes_the_rarest_is_looked_at(tmp_path: Path) -> None:
    found = looked(tmp_path, "dice", classes=4)
    assert found.class_name == "class 3"
    z = unsure(truth_of(4), 4)
    np.testing.assert_allclose(
        found.probability, (np.exp(z) / np.exp(z).sum(0))[3], rtol=1e-4, atol=1e-7
    )


def test_a_loss_that_the_task_cannot_take_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="giou is a loss of pairs of boxes"):
        looked(tmp_path, "giou")


# ---------------------------------------------------------------- which image


def measured(confusions: list[list[list[int]]]) -> Measured:
    n, c = len(confusions), len(confusions[0])
    return Measured(
        mode="binary" if c == 2 else "multiclass",
        class_names=tuple(map(str, range(c))),
        names=tuple(map(str, range(n))),
        confusion=np.array(confusions, dtype=np.int64),
        boundary=np.zeros((n, c, 4), np.int64),
        hd95=np.zeros((n, c)),
        objects=np.zeros((n, c, 3, 2), np.int64),
        reliability=np.zeros((n, 15, 3)),
        histogram=np.zeros((c, 2, 100), np.int64),
        predictions={},
    )


def test_the_usual_image_has_the_median_dice_of_those_with_foreground() -> None:
    void, empty, false = [[0, 0], [0, 0]], [[9, 0], [0, 0]], [[5, 4], [0, 0]]
    good, bad, middle = [[5, 0], [0, 4]], [[5, 0], [4, 0]], [[5, 0], [2, 2]]
    assert usual_image(measured([void, empty, good, false, bad, middle])) == 5
    assert usual_image(measured([good, empty, middle])) == 2
    assert usual_image(measured([good])) == 0
    assert usual_image(measured([void, empty, false])) == 2
    with pytest.raises(ValueError, match="nothing to look at"):
        usual_image(measured([void]))


def test_the_usual_image_of_a_network(tmp_path: Path) -> None:
    truth = truth_of(3, void=True)
    data, sample = one_image(tmp_path, truth, classes=3)
    network = Network(unsure(truth, 3), loss="dice", classes=3)
    found = measure(network, data, [sample], size_limits=None, keep=0)
    assert usual_image(found) == 0


# ---------------------------------------------------------------- files


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    one = looked(tmp_path / "a", "dice", "2*focal(gamma=1.5) + ncut", void=True)
    other = looked(tmp_path / "b", "cross_entropy", classes=3)
    path = tmp_path / "gradient_maps.npz"
    save([one, replace(other, name="größer/ä b")], path)
    loaded = load(path)
    assert len(loaded) == 2
    for a, b in zip((one, other), loaded, strict=True):
        assert (a.predicted_by, a.class_name) == (b.predicted_by, b.class_name)
        assert list(a.gradients) == list(b.gradients)
        for loss in a.gradients:
            np.testing.assert_array_equal(a.gradients[loss], b.gradients[loss])
            np.testing.assert_array_equal(a.weights[loss], b.weights[loss])
        for name in ("image", "truth", "probability"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
            assert getattr(a, name).dtype == getattr(b, name).dtype
    assert loaded[0].name == one.name
    assert loaded[1].name == "größer/ä b"
    save([], path)
    assert load(path) == ()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gradient_maps.npz"
    save([looked(tmp_path / "a", "dice")], path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"gradient_maps\.npz: is damaged"):
        load(path)
    np.savez(path, version=np.array(1), count=np.array(1))
    with pytest.raises(ValueError, match=r"gradient_maps\.npz: holds no gradient maps"):
        load(path)
