"""What is measured of a trained network: hand-checked masks, slow oracles, other libraries."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_hausdorff_distance
from PIL import Image
from torch import Tensor
from torchmetrics.functional import classification

from denseloss import compose
from denseloss.data import VOID
from denseloss.data.errors import InputError
from denseloss.data.files import load_arrays, save_arrays
from denseloss.data.samples import evenly
from denseloss.explain import cost
from denseloss.explain.cost import Cost, loss_cost
from denseloss.tasks.segmentation import SegmentationData, SegmentationSettings, open_data
from denseloss.tasks.segmentation import measure as measuring
from denseloss.tasks.segmentation.criterion import SegmentationCriterion
from denseloss.tasks.segmentation.measure import (
    METRICS,
    THRESHOLDS,
    Measured,
    best_threshold,
    calibration_score,
    dice_at,
    dice_by_threshold,
    image_scores,
    measure,
    recall_score,
    score,
    size_limits,
)
from denseloss.tasks.segmentation.task import made_up
from denseloss.train import TrainSettings, train
from denseloss.train.run import load_run

LIMITS = (4.0, 9.0)
NAN = math.nan


def same(a: object, b: object, **options: float) -> None:
    np.testing.assert_allclose(a, b, **{"rtol": 1e-9, "atol": 1e-12, **options})


class Network:
    """Stands for a network: it says the logits that it was given, one image after the other."""

    def __init__(self, logits: list[np.ndarray], link: str = "softmax") -> None:
        self.device = torch.device("cpu")
        self.criterion = SimpleNamespace(link=link)
        self.logits = iter(logits)

    def outputs(self, image: Tensor) -> list[Tensor]:
        logits = torch.from_numpy(next(self.logits))[None].float()
        assert image.shape[-2:] == logits.shape[-2:]
        return [logits]


def value(found: Measured, metric: str, pooling: str, of: int | None = None) -> float:
    return score([found], metric, pooling, of=of).value().item()  # type: ignore[arg-type]


def says(guess: np.ndarray, classes: int, *, sure: float = 4.0) -> np.ndarray:
    """Logits of a class map: one channel of a binary task, or one per class."""
    if classes == 2:
        return np.where(guess == 1, sure, -sure)[None]
    return sure * (guess[None] == np.arange(classes)[:, None, None])


def written(root: Path, truths: list[np.ndarray], *, classes: int) -> SegmentationData:
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    # Two more, for a data set needs images to train on and every class somewhere.
    extra = [np.tile(np.arange(classes, dtype=np.uint8), (4, 1))] * 2
    for i, mask in enumerate([*truths, *extra]):
        Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / f"i{i:03}.png")
        Image.new("RGB", mask.shape[::-1]).save(root / "images" / f"i{i:03}.png")
    names = ["background", *(f"class {c}" for c in range(1, classes))]
    void = VOID if any((mask == VOID).any() for mask in truths) else None
    return open_data(root, classes=names, ignore_index=void)


def measured(
    root: Path,
    truths: list[np.ndarray],
    logits: list[np.ndarray],
    *,
    classes: int,
    link: str = "softmax",
    limits: tuple[float, float] | None = LIMITS,
    keep: int = 0,
) -> Measured:
    data = written(root, truths, classes=classes)
    samples = sorted((*data.train, *data.val), key=lambda sample: sample.name)[: len(truths)]
    return measure(Network(logits, link), data, samples, size_limits=limits, keep=keep)


def square(shape: tuple[int, int], top: int, left: int, side: int, index: int = 1) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[top : top + side, left : left + side] = index
    return mask


def random_maps(
    seed: int, *, classes: int, shape: tuple[int, int], void: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A truth of some rectangles and a prediction of others."""
    rng = np.random.default_rng(seed)
    maps = []
    for _ in range(2):
        one = np.zeros(shape, np.uint8)
        for _ in range(int(rng.integers(0, 5))):
            top, left = (int(rng.integers(0, n)) for n in shape)
            high, wide = rng.integers(1, 7, 2)
            one[top : top + high, left : left + wide] = rng.integers(0, classes)
        noise = rng.random(shape) < 0.03
        one[noise] = rng.integers(0, classes, noise.sum())
        maps.append(one)
    truth, guess = maps
    if void:
        truth[rng.random(shape) < 0.05] = VOID
        truth[: int(rng.integers(0, 3))] = VOID
    return truth, guess


# ---------------------------------------------------------------- values checked by hand


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Square of 16 pixels: moved by 1, by 2, missed, imagined, neither, and all void."""
    there, nothing = square((8, 8), 2, 2, 4), np.zeros((8, 8), np.uint8)
    pairs = [
        (there, square((8, 8), 2, 3, 4)),
        (there, square((8, 8), 2, 4, 4)),
        (there, nothing),
        (nothing, there),
        (nothing, nothing),
        (np.full((8, 8), VOID, np.uint8), there),
    ]
    root = tmp_path_factory.mktemp("data") / "hand"
    logits = [says(guess, 2) for _, guess in pairs]
    return measured(root, [truth for truth, _ in pairs], logits, classes=2, limits=(9, 20), keep=2)


def test_pixels_are_counted_by_truth_and_prediction(by_hand: Measured) -> None:
    assert by_hand.confusion[:2].tolist() == [[[44, 4], [4, 12]], [[40, 8], [8, 8]]]
    assert by_hand.confusion[5].sum() == 0
    assert by_hand.names == tuple(f"i{i:03}" for i in range(6))


def test_boundary_pixels_and_their_distances(by_hand: Measured) -> None:
    # Within 1 pixel: all of a square that moved by 1; of one that moved by 2 all but 4.
    assert by_hand.boundary[:, 1].tolist() == [
        [12, 12, 12, 12],
        [12, 8, 12, 8],
        [12, 0, 0, 0],
        [0, 0, 12, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    diagonal = math.hypot(8, 8)
    same(by_hand.hd95[:, 1], [1, 2, diagonal, diagonal, 0, 0])
    assert by_hand.hd95[4, 0] == 0


def test_scores_of_each_image(by_hand: Measured) -> None:
    def of(metric: str) -> np.ndarray:
        return image_scores(by_hand, metric)[:, 1]

    same(of("dice"), [0.75, 0.5, 0, 0, 1, NAN])
    same(of("iou"), [0.6, 1 / 3, 0, 0, 1, NAN])
    for metric in ("precision", "recall", "f2"):
        same(of(metric), [0.75, 0.5, 0, 0, 1, NAN])
    same(of("boundary_f"), [1, 2 / 3, 0, 0, 1, NAN])
    same(of("hd95"), [1, 2, 8 * math.sqrt(2), 8 * math.sqrt(2), 0, NAN])


def test_scores_of_all_images(by_hand: Measured) -> None:
    def score(metric: str, pooling: str, of: int | None = None) -> float:
        return value(by_hand, metric, pooling, of)

    same(score("dice", "image"), 2.25 / 5)  # without the void image
    same(score("hd95", "image"), (3 + 16 * math.sqrt(2)) / 5)
    # TP 20; FN 4 + 8 + 16; FP 4 + 8 + 16.
    same(score("dice", "pooled"), 40 / 96)
    same(score("iou", "pooled"), 20 / 76)
    same(score("dice", "pooled", of=1), 40 / 96)
    same(score("dice", "pooled", of=0), 2 * 244 / (2 * 244 + 28 + 28))
    same(score("boundary_f", "pooled"), 20 / 36)


def test_an_object_is_found_if_half_of_it_is(by_hand: Measured) -> None:
    # 16 pixels are of medium size; 12 of them, 8 and 0 were predicted.
    assert by_hand.objects[:, 1, 1].tolist() == [[1, 1], [1, 1], [1, 0], [0, 0], [0, 0], [0, 0]]
    assert by_hand.objects.sum() == 5
    assert by_hand.objects[:, 0].sum() == 0
    same(recall_score([by_hand], of=1, size="medium").value(), 2 / 3)
    assert math.isnan(recall_score([by_hand], of=1, size="large").value().item())


def test_predictions_of_some_images_are_kept(by_hand: Measured) -> None:
    assert set(by_hand.predictions) == {0, 5}
    assert (by_hand.predictions[0] == square((8, 8), 2, 3, 4)).all()
    assert (by_hand.predictions[5] == square((8, 8), 2, 2, 4)).all()
    assert evenly(3, of=7) == (0, 3, 6)
    assert evenly(9, of=2) == (0, 1)
    assert evenly(1, of=2) == (0,)
    assert evenly(0, of=2) == ()


def test_sizes_are_divided_at_the_limits(tmp_path: Path) -> None:
    truth = np.zeros((12, 20), np.uint8)
    truth[0, :4] = 1  # 4: small, up to the limit
    truth[2, :5] = 1  # 5: medium
    truth[4:7, 0:3] = 1  # 9: medium
    truth[8:10, 0:5] = 1  # 10: large
    truth[0, 10] = truth[1, 11] = truth[2, 10] = 1  # corners touch: one object of 3
    guess = truth.copy()
    guess[0, 10] = 0  # 2 of 3 remain
    guess[4:6, 0:3] = 0  # 3 of 9 remain
    found = measured(tmp_path, [truth], [says(guess, 2)], classes=2)
    assert found.objects[0, 1].tolist() == [[2, 2], [2, 1], [1, 1]]


def test_exclusive_classes_with_void(tmp_path: Path) -> None:
    truth = np.array([[0, 0, 1, 1], [0, 2, 2, VOID]], np.uint8)
    guess = np.array([[0, 1, 1, 1], [0, 2, 0, 2]], np.uint8)
    absent = np.array([[0, 0, 0, 0], [0, 0, 0, 0]], np.uint8)
    found = measured(tmp_path, [truth, absent], [says(guess, 3), says(absent, 3)], classes=3)
    assert found.confusion[0].tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 1]]
    dice = [[4 / 6, 4 / 5, 2 / 3], [1, 1, 1]]
    same(image_scores(found, "dice"), dice)
    same(value(found, "dice", "image"), np.mean(dice))
    same(value(found, "dice", "image", 2), (2 / 3 + 1) / 2)
    pooled = [20 / 22, 4 / 5, 2 / 3]
    same(value(found, "dice", "pooled"), np.mean(pooled))
    same([value(found, "dice", "pooled", c) for c in range(3)], pooled)


def test_a_class_that_is_nowhere_has_no_pooled_score(tmp_path: Path) -> None:
    truth, guess = np.eye(4, dtype=np.uint8), np.ones((4, 4), np.uint8)
    found = measured(tmp_path, [truth], [says(guess, 3)], classes=3)
    for metric in ("dice", "iou", "precision", "recall", "f2", "boundary_f"):
        assert math.isnan(value(found, metric, "pooled", 2))
        scores = [value(found, metric, "pooled", c) for c in (0, 1)]
        assert scores[0] == 0
        same(value(found, metric, "pooled"), np.mean(scores))
        same(value(found, metric, "image", 2), 1)
    empty = replace(found, confusion=np.zeros_like(found.confusion))
    assert math.isnan(value(empty, "dice", "pooled"))
    assert math.isnan(value(empty, "dice", "image"))


def test_scores_of_any_draw_of_images(by_hand: Measured) -> None:
    draws = np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), size=21).astype(float)
    half = replace(by_hand, confusion=by_hand.confusion // 2, hd95=by_hand.hd95 / 2)
    for metric in METRICS:
        for pooling in metric.poolings:
            found = score([by_hand, half], metric.key, pooling)
            assert found.shape == (2, 6)
            many = found.value(draws)
            assert many.shape == (21, 2)
            for one, expected in zip((by_hand, half), many.T, strict=True):
                alone = score([one], metric.key, pooling)
                repeated = [np.repeat(alone.counts, draw.astype(int), axis=1) for draw in draws]
                same(
                    expected, [replace(alone, counts=counts).value().item() for counts in repeated]
                )


def test_what_cannot_be_asked(by_hand: Measured) -> None:
    with pytest.raises(ValueError, match="unknown metric 'dise'"):
        score([by_hand], "dise", "image")
    with pytest.raises(ValueError, match="hd95 has no 'pooled' score"):
        score([by_hand], "hd95", "pooled")
    with pytest.raises(ValueError, match="class 2 of 2"):
        score([by_hand], "dice", "image", of=2)
    with pytest.raises(ValueError, match=r"multiple of 0\.01"):
        dice_at(by_hand.histogram, of=1, threshold=0.505)


def test_logits_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    logits = says(np.eye(4, dtype=np.uint8), 2)
    logits[0, 1, 2] = NAN
    with pytest.raises(ValueError, match="i000: the network's logits are not finite"):
        measured(tmp_path, [np.eye(4, dtype=np.uint8)], [logits], classes=2)


# ---------------------------------------------------------------- slow oracles


def boundary_of(mask: np.ndarray) -> list[tuple[int, int]]:
    places = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    steps = ((0, 1), (1, 0), (0, -1), (-1, 0))
    return [(y, x) for y, x in places if any((y + a, x + b) not in places for a, b in steps)]


def objects_of(mask: np.ndarray) -> Iterator[set[tuple[int, int]]]:
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    while left:
        grown, queue = set(), [left.pop()]
        while queue:
            y, x = queue.pop()
            grown.add((y, x))
            near = {(y + a, x + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & left
            left -= near
            queue += near
        yield grown


@given(seed=st.integers(0, 10**6), void=st.booleans(), wide=st.sampled_from([1, 2, 17]))
@settings(max_examples=30, deadline=None)
def test_boundaries_and_objects_are_those_of_a_slow_oracle(
    seed: int, void: bool, wide: int
) -> None:
    classes, shape = 3, (13, wide)
    truth, guess = random_maps(seed, classes=classes, shape=shape, void=void)
    guess_seen = np.where(truth == VOID, VOID, guess).astype(np.uint8)
    confusion = measuring._confusion(truth[truth != VOID], guess[truth != VOID], classes=classes)
    boundary, hd95 = measuring._boundaries(truth, guess_seen, confusion)
    found = measuring._objects(truth, guess_seen, LIMITS, classes=classes)
    expected = np.zeros_like(found)
    for c in range(classes):
        a, b = boundary_of(truth == c), boundary_of(guess_seen == c)
        if not a or not b:
            assert boundary[c].tolist() == [len(a), 0, len(b), 0]
            assert hd95[c] == (math.hypot(*shape) if a or b else 0)
        else:
            away = [min(math.dist(p, q) for q in b) for p in a]
            back = [min(math.dist(p, q) for q in a) for p in b]
            near = [sum(d <= 1 for d in away), sum(d <= 1 for d in back)]
            assert boundary[c].tolist() == [len(a), near[0], len(b), near[1]]
            same(hd95[c], max(np.percentile(away, 95), np.percentile(back, 95)))
        for grown in objects_of(truth == c) if c else ():
            size = sum(len(grown) > limit for limit in LIMITS)
            hit = sum(guess[place] == c for place in grown)
            expected[c, size] += [1, hit >= len(grown) / 2]
    assert (found == expected).all()


def test_the_tolerance_grows_with_the_image(tmp_path: Path) -> None:
    # The diagonal of 300 x 400 is 500: 3.75 pixels.
    pairs = [(square((300, 400), 50, 50, 40), square((300, 400), 50, 50 + k, 40)) for k in (3, 4)]
    found = measured(tmp_path, [a for a, _ in pairs], [says(b, 2) for _, b in pairs], classes=2)
    near, far = found.boundary[:, 1]
    assert near.tolist() == [156, 156, 156, 156]
    # Too far are the 40 pixels of the side that is left behind and, of the side that is now inside,
    # those that are not near the upper or lower side.
    assert far.tolist() == [156, 156 - 40 - 32] * 2


# ---------------------------------------------------------------- other libraries


@pytest.fixture(scope="module", params=[2, 3])
def many(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Measured, Tensor, Tensor]:
    """Random images with void: what was measured, all probabilities [m, C], all labels [m]."""
    classes = request.param
    rng = np.random.default_rng(3)
    truths, logits = [], []
    for i in range(6):
        truth, guess = random_maps(i, classes=classes, shape=(20, 24), void=i % 2 == 0)
        noise = rng.normal(size=(1 if classes == 2 else classes, 20, 24))
        truths.append(truth)
        logits.append((says(guess, classes, sure=1.5) + noise).astype(np.float32))
    found = measured(
        tmp_path_factory.mktemp("data") / "many", truths, logits, classes=classes, keep=6
    )
    z = torch.from_numpy(np.stack(logits)).double().movedim(1, -1).flatten(0, 2)
    p = torch.cat([1 - z.sigmoid(), z.sigmoid()], 1) if classes == 2 else z.softmax(1)
    t = torch.from_numpy(np.stack(truths)).long().flatten()
    return found, p[t != VOID], t[t != VOID]


def test_pooled_scores_are_those_of_torchmetrics(many: tuple[Measured, Tensor, Tensor]) -> None:
    found, p, t = many
    guess, classes = p.argmax(1), p.shape[1]
    options = {"num_classes": classes, "average": "none"}
    expected = {
        "dice": classification.multiclass_f1_score(guess, t, **options),
        "iou": classification.multiclass_jaccard_index(guess, t, **options),
        "precision": classification.multiclass_precision(guess, t, **options),
        "recall": classification.multiclass_recall(guess, t, **options),
        "f2": classification.multiclass_fbeta_score(guess, t, beta=2.0, **options),
    }
    for metric, scores in expected.items():
        ours = [value(found, metric, "pooled", c) for c in range(classes)]
        same(ours, scores, rtol=1e-5)
        whole = ours[1] if classes == 2 else np.mean(ours)
        same(value(found, metric, "pooled"), whole)


def test_calibration_is_that_of_torchmetrics(many: tuple[Measured, Tensor, Tensor]) -> None:
    found, p, t = many
    if p.shape[1] == 2:
        expected = classification.binary_calibration_error(p[:, 1].contiguous(), t, n_bins=15)
    else:
        expected = classification.multiclass_calibration_error(p, t, p.shape[1], n_bins=15)
    same(calibration_score([found]).value().item(), expected, rtol=1e-5)
    bins = found.reliability.sum(0)
    assert bins[:, 0].sum() == len(t)
    filled = bins[:, 0] > 0
    mean = bins[filled, 1] / bins[filled, 0]
    edges = np.arange(16) / 15
    assert (mean > edges[:-1][filled]).all()
    assert (mean <= edges[1:][filled]).all()


def test_dice_at_each_threshold(many: tuple[Measured, Tensor, Tensor]) -> None:
    found, p, t = many
    for c in range(p.shape[1]):
        dice = dice_by_threshold(found.histogram, of=c)
        expected = []
        for threshold in THRESHOLDS:
            guess, truth = p[:, c] > threshold, t == c
            expected.append(2 * int((guess & truth).sum()) / int(guess.sum() + truth.sum()))
        same(dice, expected)
        assert dice_at(found.histogram, of=c, threshold=0.29) == dice[29]
        best = best_threshold(dice)
        assert dice[round(best * 100)] == dice.max()
    if p.shape[1] == 2:  # p > 0.5 is the usual decision
        usual = value(found, "dice", "pooled")
        same(dice_at(found.histogram, of=1, threshold=0.5), usual)


def test_of_equal_thresholds_the_one_nearest_to_a_half_is_best() -> None:
    dice = np.zeros(100)
    dice[[10, 40, 70]] = 0.8
    assert best_threshold(dice) == 0.4
    assert math.isnan(best_threshold(np.full(100, NAN)))


@pytest.mark.filterwarnings("ignore:monai.metrics.utils:FutureWarning")
@pytest.mark.parametrize("classes", [2, 3])
def test_distances_are_those_of_monai(classes: int) -> None:
    for seed in range(25):
        truth, guess = random_maps(seed, classes=classes, shape=(22, 19), void=False)
        confusion = measuring._confusion(truth.ravel(), guess.ravel(), classes=classes)
        _, hd95 = measuring._boundaries(truth, guess, confusion)
        one_hot = [
            torch.from_numpy(np.stack([m == c for c in range(classes)])[None])
            for m in (guess, truth)
        ]
        there = [c for c in range(classes) if (truth == c).any() and (guess == c).any()]
        theirs = compute_hausdorff_distance(
            one_hot[0][:, there], one_hot[1][:, there], include_background=True, percentile=95
        )
        same(hd95[there], theirs[0], rtol=1e-6)


def test_probabilities_of_independent_channels(tmp_path: Path) -> None:
    logits = np.zeros((3, 4, 4), np.float32)
    logits[0], logits[1], logits[2] = 2, -1, 0.5
    found = measured(tmp_path, [np.zeros((4, 4), np.uint8)], [logits], classes=3, link="sigmoid")
    p = 1 / (1 + np.exp(-np.array([2, -1, 0.5])))
    assert [found.histogram[c].sum(0).argmax() for c in range(3)] == [88, 26, 62]
    same(found.reliability.sum((0, 1)), [16, 16 * p[0], 16])


@pytest.mark.parametrize(
    ("loss", "mode", "link"),
    [
        ("cross_entropy", "binary", "sigmoid"),
        ("balanced_cross_entropy", "binary", "sigmoid"),
        ("cross_entropy", "multiclass", "softmax"),
        ("binary_focal + 2*binary_dice", "multiclass", "sigmoid"),
        ("binary_focal + dice", "multiclass", "softmax"),
        ("ncut", "multiclass", "softmax"),
    ],
)
def test_the_link_is_the_one_that_the_loss_trains(loss: str, mode: str, link: str) -> None:
    classes = 2 if mode == "binary" else 3
    criterion = SegmentationCriterion(compose.parse(loss), mode=mode, num_classes=classes)  # type: ignore[arg-type]
    assert criterion.link == link


# ---------------------------------------------------------------- sizes of objects


def test_size_limits_are_the_terciles_of_the_training_objects(tmp_path: Path) -> None:
    truths = []
    for side in range(1, 8):
        one = square((12, 12), 0, 0, side)
        one[9, 0] = VOID
        truths.append(one)
    data = written(tmp_path, truths, classes=2)
    areas = [side * side for side in range(1, 8)]
    data = replace(
        data,
        train=tuple(s for s in (*data.train, *data.val) if s.name < "i007"),
        val=(),
    )
    assert size_limits(data) == tuple(np.quantile(areas, [1 / 3, 2 / 3]))
    assert size_limits(replace(data, train=())) is None
    network = Network([says(truths[0], 2)])
    found = measure(network, data, data.train[:1], size_limits=None, keep=0)
    assert found.objects.sum() == 0


# ---------------------------------------------------------------- files


def save(measured: Measured, path: Path) -> None:
    save_arrays(path, measured.to_arrays())


def load(path: Path) -> Measured:
    return Measured.from_arrays(load_arrays(path))


def equal(a: Measured, b: Measured) -> None:
    assert (a.mode, a.class_names, a.names) == (b.mode, b.class_names, b.names)
    for name in ("confusion", "boundary", "hd95", "objects", "reliability", "histogram"):
        assert getattr(a, name).dtype == getattr(b, name).dtype
        assert (getattr(a, name) == getattr(b, name)).all()
    assert set(a.predictions) == set(b.predictions)
    for place, classes in a.predictions.items():
        assert (classes == b.predictions[place]).all()
        assert b.predictions[place].dtype == np.uint8


def test_what_was_saved_is_loaded(
    by_hand: Measured, many: tuple[Measured, Tensor, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "held_out.npz"
    for one in (many[0], by_hand):
        save(one, path)
        equal(one, load(path))
    assert [file.name for file in tmp_path.iterdir()] == ["held_out.npz"]


def test_a_damaged_file_is_named(by_hand: Measured, tmp_path: Path) -> None:
    path = tmp_path / "held_out.npz"
    save(by_hand, path)
    sound = path.read_bytes()
    other = tmp_path / "other.npz"
    np.savez(other, version=np.array(2), mode=np.array("binary"))
    texts = [b"", b"no archive", sound[:-40], sound[: len(sound) // 2], other.read_bytes()]
    for place in range(40, len(sound) - 40, len(sound) // 60):
        texts.append(sound[:place] + bytes([sound[place] ^ 0x5A]) + sound[place + 1 :])
    told = 0
    for text in texts:
        path.write_bytes(text)
        found = error = None
        try:
            found = load(path)
        except ValueError as raised:
            error = raised
        if found is None:
            told += 1
            assert re.match(r".*held_out.npz: is damaged|holds no measurements", str(error))
        else:  # a byte that says nothing, such as a time stamp
            equal(by_hand, found)
    assert told > len(texts) // 2
    np.savez(path, **{**dict(np.load(other)), "version": np.array(99)})
    with pytest.raises(ValueError, match=r"holds no measurements of this version .*format 99"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing.npz")


def test_a_failed_write_leaves_the_old_file(
    by_hand: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "held_out.npz"
    save(by_hand, path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(replace(by_hand, names=tuple("abcdef")), path)
    assert [file.name for file in tmp_path.iterdir()] == ["held_out.npz"]
    equal(by_hand, load(path))


# ---------------------------------------------------------------- a run


BINARY = "synthetic:blobs?n=18&size=48"
RUNS = {
    "binary": {"data": BINARY, "loss": "dice + focal", "precision": "bf16-mixed"},
    "multiclass": {
        "data": "synthetic:void?n=12&size=48",
        "loss": "cross_entropy",
        "precision": "32-true",
        "options": SegmentationSettings(deep_supervision=True),
    },
}


@pytest.fixture(scope="module", params=RUNS)
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, SegmentationData, dict[str, object]]:
    out = tmp_path_factory.mktemp("runs") / request.param
    options = RUNS[request.param]
    result = train(
        TrainSettings(
            out=out, steps=12, val_every=6, size=32, batch_size=2, workers=0, accelerator="cpu",
            lr=1e-2, seed=3, **options,  # type: ignore[arg-type]
        )
    )  # fmt: skip
    return out, open_data(str(options["data"])), result.summary


def test_held_out_scores_are_those_that_train_reports(
    run: tuple[Path, SegmentationData, dict[str, object]], tmp_path: Path
) -> None:
    out, data, summary = run
    before = torch.get_rng_state()
    _, trained = load_run(out, data)
    assert (torch.get_rng_state() == before).all()
    assert not trained.training
    assert trained.device.type == "cpu"
    found = measure(trained, data, data.test, size_limits=size_limits(data), keep=2)
    test = summary["test"]
    assert isinstance(test, dict)
    assert 0 < test["score"] < 1
    same(value(found, "dice", "pooled"), test["score"], atol=1e-6)
    same(value(found, "iou", "pooled"), test["iou"], atol=1e-6)
    for c, name in enumerate(data.class_names):
        same(value(found, "dice", "pooled", c), test[f"dice/{name}"], atol=1e-6)
    save(found, tmp_path / "m.npz")
    equal(found, load(tmp_path / "m.npz"))
    again = measure(trained, data, data.test, size_limits=size_limits(data), keep=2)
    equal(found, again)


def test_a_run_that_cannot_be_restored_says_why(
    run: tuple[Path, SegmentationData, dict[str, object]], tmp_path: Path
) -> None:
    out, data, _ = run
    with pytest.raises(InputError, match=r"config.toml: is missing"):
        load_run(tmp_path, data)
    for name in ("config.toml", "best.ckpt"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    classes = replace(data, labels=replace(data.labels, names=("a",) * data.num_classes))
    with pytest.raises(InputError, match=r"was trained on other data: classes was .* now it is"):
        load_run(tmp_path, classes)
    load_run(tmp_path, data)
    best = tmp_path / "best.ckpt"
    sound = best.read_bytes()
    for text in (b"", b"nothing", sound[: len(sound) // 2]):
        best.write_bytes(text)
        with pytest.raises(InputError, match=r"best.ckpt cannot be read .*train again"):
            load_run(tmp_path, data)
    best.unlink()
    with pytest.raises(InputError, match=r"best.ckpt: is missing"):
        load_run(tmp_path, data)
    best.write_bytes(sound)
    config = tmp_path / "config.toml"
    config.write_text(config.read_text().replace('"cpu"', '"tpu"'))
    with pytest.raises(InputError, match="was trained on tpu"):
        load_run(tmp_path, data)


# ---------------------------------------------------------------- the cost of a loss


def cost_of(loss: str, shape: tuple[int, ...], *, device: str = "cpu", repeats: int = 1) -> Cost:
    shares = (0.9, 0.1) if shape[1] == 1 else (0.5, 0.3, 0.2)
    mode = "binary" if shape[1] == 1 else "multiclass"
    weighted_sum = compose.parse(loss, mixed=True)
    criterion = SegmentationCriterion(weighted_sum, mode=mode, num_classes=len(shares))
    outputs, batch = made_up(shape, shares=shares)  # type: ignore[arg-type]
    return loss_cost(criterion, outputs, batch, device=device, repeats=repeats)


def test_the_cost_of_a_loss_is_a_time_and_a_memory() -> None:
    small = cost_of("dice + focal", (2, 1, 32, 32), repeats=3)
    large = cost_of("dice + focal", (2, 1, 128, 128), repeats=3)
    assert large.shape == (2, 1, 128, 128)
    threads = torch.get_num_threads()
    assert large.device == ("CPU, 1 thread" if threads == 1 else f"CPU, {threads} threads")
    assert 0 < small.milliseconds < 1e4
    gradient = 4 * 2 * 128 * 128 / 2**20
    assert gradient <= large.mebibytes < 100 * gradient
    assert 12 * small.mebibytes < large.mebibytes < 20 * small.mebibytes


def test_cost_is_above_what_the_step_is_given() -> None:
    # Nothing is kept of a product with a number but the gradient, 4 bytes an element.
    logits = torch.zeros(50_000, requires_grad=True)

    def step() -> None:
        kept = [torch.empty(1_000_000, dtype=torch.uint8) for _ in range(3)]
        del kept[0]
        kept.append(torch.empty(500_000, dtype=torch.uint8))
        torch.autograd.grad((2 * logits).sum(), logits)

    assert 3_000_000 <= cost._peak_cpu(step) < 3_100_000
    assert torch.zeros(7).numel() * 4 <= cost._peak_cpu(lambda: torch.zeros(7).fill_(1)) < 500


def test_the_made_up_step_has_the_shares() -> None:
    for c, shares in ((1, (0.93, 0.07)), (4, (0.5, 0.0, 0.3, 0.2))):
        (logits,), batch = made_up((3, c, 40, 50), shares=shares)
        classes, image = batch["mask"], batch["image"]
        assert logits.shape == (3, c, 40, 50)
        assert image.shape == (3, 3, 40, 50)
        counts = torch.bincount(classes.flatten(), minlength=len(shares))
        same(counts / counts.sum(), shares, rtol=0, atol=1e-3)
        guess = logits.argmax(1) if c > 1 else (logits[:, 0] > 0).long()
        assert 0.6 < (guess == classes).float().mean() < 0.99


def test_what_has_no_cost_is_told() -> None:
    with pytest.raises(ValueError, match="not on mps"):
        cost_of("dice", (1, 3, 8, 8), device="mps")
    with pytest.raises(InputError, match="pairs of boxes"):
        cost_of("giou", (1, 3, 8, 8))
