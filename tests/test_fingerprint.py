"""The fingerprint of a data set, and the losses that it proposes."""

import math
import re
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from denseloss import compose
from denseloss.data import VOID
from denseloss.tasks import Candidate
from denseloss.tasks.segmentation import open_data
from denseloss.tasks.segmentation import recommend as rules
from denseloss.tasks.segmentation.criterion import SegmentationCriterion
from denseloss.tasks.segmentation.fingerprint import (
    Fingerprint,
    Shapes,
    boundary_pixels,
    edge_distance,
    fingerprint,
    shape_factor,
)
from denseloss.tasks.segmentation.labels import Mode
from denseloss.tasks.segmentation.recommend import recommended

Mask = np.ndarray


def factor_of(mask: Mask) -> float:
    area = np.array([mask.sum()])
    return float(shape_factor(area, edge_distance(mask)[mask].mean())[0])


def drawn(size: int = 160) -> tuple[Mask, np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:size, :size]
    return np.zeros((size, size), dtype=bool), rows, columns


def folder(root: Path, masks: Sequence[Mask], *, split: bool = True) -> Path:
    """Masks to train on, and one to validate on that must not be looked at."""
    for i, mask in enumerate(masks):
        for kind, array in (("images", np.full((*mask.shape, 3), 90)), ("masks", mask)):
            path = root / "train" / kind / f"f{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(path)
            if split:
                other = root / "val" / kind / "v.png"
                other.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.ones_like(array, dtype=np.uint8)).save(other)
    return root


# Shapes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [10, 20, 60])
def test_a_disc_has_the_shape_factor_1(radius: int) -> None:
    _, rows, columns = drawn()
    disc = (rows - 80) ** 2 + (columns - 80) ** 2 <= radius**2
    assert factor_of(disc) == pytest.approx(1, abs=0.6 / math.sqrt(radius))
    assert factor_of(disc) >= 0.99
    assert edge_distance(disc)[disc].mean() == pytest.approx(radius / 3, rel=0.1)


def test_a_square_has_four_over_pi() -> None:
    mask, _, _ = drawn()
    mask[30:110, 30:110] = True
    assert factor_of(mask) == pytest.approx(4 / math.pi, rel=0.01)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8, 9])
def test_a_strip_is_a_quarter_of_its_width_from_its_edges(width: int) -> None:
    mask, _, _ = drawn()
    mask[40 : 40 + width, :] = True
    assert edge_distance(mask)[mask].mean() == pytest.approx(width / 4, rel=0.05)
    expected = 16 / (9 * math.pi) * mask.shape[1] / width
    assert factor_of(mask) == pytest.approx(expected, rel=0.1)


def test_a_slanted_line_is_nearly_as_thin_as_a_straight_one() -> None:
    _, rows, columns = drawn()
    angle = math.radians(30)
    across = np.abs((columns - 80) * math.sin(angle) - (rows - 80) * math.cos(angle))
    along = np.abs((columns - 80) * math.cos(angle) + (rows - 80) * math.sin(angle))
    mask = (across <= 3) & (along <= 60)
    # Its nearest outside centre is less than half a pixel off a slanted edge.
    assert factor_of(mask) == pytest.approx(16 / (9 * math.pi) * 120 / 6, rel=0.25)


def test_a_tree_of_lines_is_as_thin_as_its_branches_in_a_row() -> None:
    tree, _, _ = drawn()
    tree[10:150, 79:82] = True
    for row in (30, 60, 90, 120):
        tree[row : row + 3, 30:130] = True
    width, length = 3, 140 + 4 * 97
    assert factor_of(tree) == pytest.approx(16 / (9 * math.pi) * length / width, rel=0.1)


def test_the_shape_factor_does_not_know_the_scale() -> None:
    small, _, _ = drawn(60)
    small[10:30, 10:14] = True
    large = np.kron(small, np.ones((4, 4), dtype=bool))
    assert factor_of(large) == pytest.approx(factor_of(small), rel=0.1)


def test_the_border_of_the_image_is_an_edge() -> None:
    mask = np.ones((9, 9), dtype=bool)
    inside = np.pad(mask, 5)
    assert factor_of(mask) == factor_of(inside)
    assert edge_distance(mask).max() == 4.25  # the centre pixel, on a ridge
    assert not edge_distance(np.zeros((4, 4), dtype=bool)).any()


# Boundaries ---------------------------------------------------------------------------------------


def test_boundary_pixels_are_those_within_two_pixels_of_another_class() -> None:
    mask = np.zeros((9, 12), dtype=np.uint8)
    mask[:, 6:] = 1
    expected = np.zeros_like(mask, dtype=bool)
    expected[:, 4:8] = True
    np.testing.assert_array_equal(boundary_pixels(mask), expected)


def test_boundary_pixels_equal_a_slow_search() -> None:
    rng = np.random.default_rng(4)
    mask = np.kron(rng.choice([0, 1, 2, VOID], (5, 6)), np.ones((4, 3))).astype(np.uint8)
    expected = np.zeros(mask.shape, dtype=bool)
    for y, x in np.ndindex(mask.shape):
        for v, u in np.ndindex(mask.shape):
            if (v - y) ** 2 + (u - x) ** 2 <= 4 and VOID not in (mask[y, x], mask[v, u]):
                expected[y, x] |= mask[y, x] != mask[v, u]
    assert expected.any()
    assert not expected.all()
    np.testing.assert_array_equal(boundary_pixels(mask), expected)


def test_void_and_the_border_of_the_image_make_no_boundary() -> None:
    mask = np.full((8, 8), 3, dtype=np.uint8)
    mask[2:4] = VOID
    assert not boundary_pixels(mask).any()
    assert not boundary_pixels(np.full((5, 5), VOID, dtype=np.uint8)).any()


# The fingerprint ----------------------------------------------------------------------------------


def test_every_number_of_hand_made_masks(tmp_path: Path) -> None:
    first, second = np.zeros((2, 20, 40), dtype=np.uint8)
    first[2:6, 2:6] = 1  # 16 px
    first[6:8, 6:8] = 1  # touches it at a corner: the same object, 20 px
    first[2:4, 30:32] = 1  # 4 px
    first[2:4, 34:39] = 2  # 10 px, 2 px away from the 4 px
    first[15:20] = VOID  # 200 px
    data = open_data(folder(tmp_path, [first, second]), classes=3, ignore_index=VOID)
    seen = fingerprint(data, square=20)

    assert (seen.images, seen.total, seen.height, seen.width) == (2, 2, 20, 40)
    assert seen.void_share == 200 / 1600
    assert seen.class_share == (1366 / 1400, 24 / 1400, 10 / 1400)
    assert seen.class_images == (1.0, 0.5, 0.5)
    assert seen.class_squares == (1.0, 0.5, 0.25)
    assert (seen.empty_images, seen.empty_squares) == (0.5, 0.5)
    assert seen.boundary_share == boundary_pixels(first).sum() / 1400
    one, two = seen.shapes
    assert (one.index, one.name, one.objects, one.crowded) == (1, "class 1", 2.0, 0.5)
    assert one.area == pytest.approx((5.6, 12.0, 18.4))
    assert (two.index, two.objects, two.crowded, two.area) == (2, 1.0, 1.0, (10.0, 10.0, 10.0))
    assert two.width == pytest.approx(4 * 0.5)  # two rows, each half a pixel from its edge
    assert two.thinness == pytest.approx(10 / (9 * math.pi * 0.25))
    assert two.boundary_share == 1.0
    assert one.boundary_share == boundary_pixels(first)[first == 1].sum() / 24


def test_objects_on_both_sides_of_void_are_not_crowded(tmp_path: Path) -> None:
    mask = np.zeros((12, 20), dtype=np.uint8)
    mask[4:8, 2:5] = mask[4:8, 15:18] = 1
    mask[4:8, 5:15] = VOID
    root = folder(tmp_path, [mask])
    seen = fingerprint(open_data(root, classes=2, ignore_index=VOID))
    assert seen.shapes[0].objects == 2
    assert seen.shapes[0].crowded == 0


def test_the_thinness_is_that_of_half_of_the_pixels(tmp_path: Path) -> None:
    mask = np.zeros((60, 120), dtype=np.uint8)
    mask[4:24, 4:24] = 1  # 400 px, a square
    for row in (30, 36, 42, 48):
        mask[row, 5:105] = 1  # 400 px in four lines
    lines = fingerprint(open_data(folder(tmp_path / "a", [mask])))
    assert lines.shapes[0].thinness == pytest.approx(56.6, rel=0.01)
    mask[48] = 0
    square = fingerprint(open_data(folder(tmp_path / "b", [mask])))
    assert square.shapes[0].thinness == pytest.approx(4 / math.pi, rel=0.03)


def test_only_training_masks_count_and_at_most_as_many_as_allowed(tmp_path: Path) -> None:
    masks = [np.zeros((8, 8), dtype=np.uint8) for _ in range(11)]
    for i in (0, 5, 10):
        masks[i][:4] = 1
    data = open_data(folder(tmp_path, masks))
    every = fingerprint(data)
    assert (every.images, every.total) == (11, 11)
    assert every.class_images == (1.0, 3 / 11)
    some = fingerprint(data, limit=3)  # the first, the middle and the last
    assert (some.images, some.total) == (3, 11)
    assert some.class_share == (0.5, 0.5)
    assert "3 of 11 training masks" in some.lines()[0]
    assert fingerprint(data, limit=1).images == 1


def test_of_huge_masks_fewer_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[2:4] = 1
    data = open_data(folder(tmp_path, [mask] * 30))
    monkeypatch.setattr("denseloss.tasks.segmentation.fingerprint._MOST_PIXELS", 64 * 12)
    assert fingerprint(data).images == 12
    monkeypatch.setattr("denseloss.tasks.segmentation.fingerprint._MOST_PIXELS", 1)
    assert fingerprint(data).images == 10


def test_masks_without_foreground_have_no_shapes(tmp_path: Path) -> None:
    empty = np.zeros((8, 8), dtype=np.uint8)
    all_void = np.full((8, 8), VOID, dtype=np.uint8)
    root = folder(tmp_path, [empty, all_void])
    seen = fingerprint(open_data(root, classes=3, ignore_index=VOID))
    assert seen.shapes == ()
    assert seen.empty_images == 1.0
    assert seen.class_share == (1.0, 0.0, 0.0)
    assert seen.void_share == 0.5
    proposed = recommended(seen, mode="multiclass")
    assert [c.loss for c in proposed] == ["cross_entropy", "cross_entropy + dice"]
    void_alone = fingerprint(open_data(root, classes=3, ignore_index=VOID), limit=1)
    assert void_alone.void_share == 0.0


def test_a_limit_or_square_below_1_is_refused() -> None:
    data = open_data("synthetic:blobs?n=3&size=32")
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        fingerprint(data, limit=0)
    with pytest.raises(ValueError, match="square must be at least 1, got 0"):
        fingerprint(data, square=0)
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        recommended(fingerprint(data), mode="binary", limit=0)


def test_a_fingerprint_is_frozen_and_the_same_every_time() -> None:
    data = open_data("synthetic:void?n=12&size=64")
    seen = fingerprint(data)
    assert seen == fingerprint(data)
    assert seen.class_share == pytest.approx(data.class_share)
    assert seen.void_share == pytest.approx(data.void_share)
    with pytest.raises(FrozenInstanceError):
        seen.images = 3  # type: ignore[misc]


def test_the_masks_are_counted_for_a_progress_bar() -> None:
    counted: list[int] = []

    def progress(samples: Sequence[object]) -> Sequence[object]:
        counted.append(len(samples))
        return samples

    fingerprint(open_data("synthetic:blobs?n=9&size=32"), progress=progress)  # type: ignore[arg-type]
    assert counted == [6]


def test_scenes_look_as_they_were_drawn() -> None:
    blobs = fingerprint(open_data("synthetic:blobs?n=24"))
    vessels = fingerprint(open_data("synthetic:vessels?n=24"))
    void = fingerprint(open_data("synthetic:void?n=24"))
    blob, vessel = blobs.shapes[0], vessels.shapes[0]
    assert vessel.thinness > 20 * blob.thinness
    assert vessel.width < blob.width < 8
    assert 0.9 < blob.thinness < 2
    assert 5 < blob.objects < 15
    assert blob.area[0] < blob.area[1] < blob.area[2] < math.pi * 6**2 * 1.5
    assert vessels.boundary_share > 2 * blobs.boundary_share
    assert blobs.void_share == vessels.void_share == 0
    assert void.void_share > 0.02


def test_squares_miss_what_images_have() -> None:
    data = open_data("synthetic:blobs?n=9&size=128&objects=0.5")
    whole, squares = fingerprint(data), fingerprint(data, square=32)
    assert whole.class_squares == whole.class_images
    assert squares.class_images == whole.class_images == (1.0, 1.0)
    assert 0 < squares.class_squares[1] < 1
    assert squares.empty_squares == pytest.approx(1 - squares.class_squares[1])
    assert replace(squares, square=0, class_squares=(1.0, 1.0), empty_squares=0.0) == whole


def test_the_lines_say_it_in_plain_words() -> None:
    text = "\n".join(fingerprint(open_data("synthetic:void?n=12&size=64"), square=32).lines())
    for words in (
        "of 8 training masks, usually 64x64",
        "which no loss of labels counts",
        "void between two classes hides",
        "32 px training squares",
        "objects of disc",
        "a disc has 1",
    ):
        assert words in text
    text = "\n".join(fingerprint(open_data("synthetic:blobs?n=6&size=64")).lines())
    assert "void: none" in text
    assert "empty masks: none of the images" in text
    assert "squares" not in text


# The candidates -----------------------------------------------------------------------------------

PLAIN = Shapes(
    index=1,
    name="foreground",
    objects=1.5,
    area=(4000.0, 9000.0, 16000.0),
    thinness=1.3,
    width=60.0,
    boundary_share=0.05,
    crowded=0.0,
)
BALANCED = Fingerprint(
    images=40,
    total=40,
    height=256,
    width=256,
    square=0,
    class_names=("background", "foreground"),
    class_share=(0.7, 0.3),
    class_images=(1.0, 1.0),
    class_squares=(1.0, 1.0),
    empty_images=0.0,
    empty_squares=0.0,
    void_share=0.0,
    boundary_share=0.03,
    shapes=(PLAIN,),
)
THREE = replace(
    BALANCED,
    class_names=("background", "oxide", "crack"),
    class_share=(0.5, 0.3, 0.2),
    class_images=(1.0, 1.0, 1.0),
    class_squares=(1.0, 1.0, 1.0),
    shapes=(replace(PLAIN, name="oxide"), replace(PLAIN, index=2, name="crack")),
)
TVERSKY = "cross_entropy + tversky(alpha=0.3, beta=0.7)"


def shaped(seen: Fingerprint, **changes: object) -> Fingerprint:
    """The last class with another shape."""
    return replace(seen, shapes=(*seen.shapes[:-1], replace(seen.shapes[-1], **changes)))  # type: ignore[arg-type]


def proposed(seen: Fingerprint, mode: Mode = "binary", limit: int = 20) -> dict[str, str]:
    return {c.loss: c.reason for c in recommended(seen, mode=mode, limit=limit)}


def test_plain_data_gets_the_baseline_and_the_robust_choice_alone() -> None:
    for seen, task in ((BALANCED, "binary"), (THREE, "multiclass")):
        found = proposed(seen, task)  # type: ignore[arg-type]
        assert list(found) == ["cross_entropy", "cross_entropy + dice"]
    assert "70.0 % of the weight is on the background" in proposed(BALANCED)["cross_entropy"]
    assert "30.0 % of the pixels" in proposed(BALANCED)["cross_entropy + dice"]
    assert '"crack" with 20.0 %' in proposed(THREE, "multiclass")["cross_entropy + dice"]


def test_a_thin_class_gets_tversky_for_what_is_missed() -> None:
    thin = shaped(BALANCED, thinness=14.0, width=3.2)
    found = proposed(thin)
    assert list(found)[2:] == [TVERSKY]
    assert "3.2 px" in found[TVERSKY]
    assert "factor of 14" in found[TVERSKY]
    for changes in ({"thinness": 4.9, "width": 3.2}, {"thinness": 14.0, "width": 8.1}):
        assert TVERSKY not in proposed(shaped(BALANCED, **changes))


def test_a_small_foreground_gets_tversky_and_balance() -> None:
    found = proposed(replace(BALANCED, class_share=(0.957, 0.043)))
    assert "only 4.30 % of the pixels" in found[TVERSKY]
    assert "4.30 % of the pixels, the commonest class 22.3 times" in found["balanced_cross_entropy"]
    found = proposed(replace(BALANCED, class_share=(0.949, 0.051)))
    assert TVERSKY not in found
    assert "balanced_cross_entropy" not in found


def test_a_small_background_gets_balance_but_not_tversky() -> None:
    found = proposed(replace(BALANCED, class_share=(0.03, 0.97)))
    assert "the background is 3.00 %" in found["balanced_cross_entropy"].lower()
    assert TVERSKY not in found


def test_classes_too_uneven_for_a_full_balance_get_its_square_root() -> None:
    found = proposed(replace(THREE, class_share=(0.8, 0.198, 0.002)), "multiclass")
    assert "balanced_cross_entropy" not in found
    weighted = "cross_entropy(class_weight=[1.0, 2.0, 20.0])"
    assert "400 times as many" in found[weighted]
    assert "20 for it" in found[weighted]
    absent = replace(THREE, class_share=(0.999, 0.0, 0.001), shapes=THREE.shapes[1:])
    assert "cross_entropy(class_weight=[1.0, 1.0, 31.6])" in proposed(absent, "multiclass")


def test_focal_is_for_easy_pixels_and_leaves_the_positives_their_weight() -> None:
    most = replace(BALANCED, class_share=(0.92, 0.08))
    found = proposed(most)
    assert "92.0 % of the pixels, and 97.0 % lie away" in found["focal"]
    assert "focal" in proposed(replace(THREE, class_share=(0.9, 0.06, 0.04)), "multiclass")
    vanishing = proposed(replace(THREE, class_share=(0.8, 0.191, 0.009)), "multiclass")
    assert 'all but 0.90 % of the pixels are not "crack"' in vanishing["focal"].lower()
    assert "focal" not in proposed(replace(THREE, class_share=(0.8, 0.18, 0.02)), "multiclass")
    assert "focal" not in proposed(replace(BALANCED, class_share=(0.89, 0.11)))
    assert "boundary" not in proposed(replace(most, boundary_share=0.0))["focal"]


def test_classes_that_most_squares_lack_are_left_out_of_dice_there() -> None:
    skip = "cross_entropy + dice(absent='skip')"
    seen = replace(THREE, square=128, class_squares=(1.0, 0.45, 0.15))
    assert '"Crack"' not in proposed(seen, "multiclass")[skip]
    assert proposed(seen, "multiclass")[skip].startswith(
        '"crack" is in 15.0 % of the 128 px training squares'
    )
    assert "of the images" in proposed(replace(seen, square=0), "multiclass")[skip]
    enough = replace(seen, class_squares=(1.0, 0.5, 0.5))
    assert skip not in proposed(enough, "multiclass")
    assert skip not in proposed(replace(BALANCED, class_squares=(1.0, 0.2)), "binary")


def test_empty_squares_of_a_binary_task_are_pooled_with_the_batch() -> None:
    pooled = "cross_entropy + dice(pool='batch')"
    found = proposed(replace(BALANCED, empty_squares=0.12, square=96))
    assert "12.0 % of the 96 px training squares" in found[pooled]
    assert pooled not in proposed(replace(BALANCED, empty_squares=0.09))
    assert pooled not in proposed(replace(THREE, empty_squares=0.5), "multiclass")


def test_objects_that_are_mostly_edge_get_the_structure_loss_on_binary_tasks() -> None:
    rich = shaped(BALANCED, boundary_share=0.41, crowded=0.18)
    assert "41.0 % of the pixels of the foreground" in proposed(rich)["structure"]
    assert "18.0 % of its objects" in proposed(rich)["structure"]
    assert "objects nearly" not in proposed(shaped(BALANCED, boundary_share=0.4))["structure"]
    assert "structure" not in proposed(shaped(BALANCED, boundary_share=0.19))
    assert "structure" not in proposed(shaped(THREE, boundary_share=0.9), "multiclass")


def test_many_small_objects_get_tversky_and_focal_with_dice() -> None:
    small = {"objects": 26.6, "area": (54.0, 143.0, 426.0)}
    found = proposed(shaped(BALANCED, **small))
    assert "26.6 objects" in found[TVERSKY]
    assert "below 143 px (0.22 % of an image)" in found["focal + dice"]
    assert "focal + dice" in proposed(shaped(THREE, **small), "multiclass")
    for fewer in ({"objects": 4.9}, {"area": (54.0, 300.0, 426.0)}, {"thinness": 9, "width": 3}):
        assert "focal + dice" not in proposed(shaped(BALANCED, **{**small, **fewer}))


def test_void_changes_no_candidate() -> None:
    assert proposed(replace(BALANCED, void_share=0.4)) == proposed(BALANCED)


def test_the_limit_keeps_the_first() -> None:
    seen = shaped(BALANCED, objects=30, area=(9.0, 20.0, 60.0), boundary_share=0.8)
    seen = replace(seen, class_share=(0.98, 0.02), empty_squares=0.3)
    every = recommended(seen, mode="binary", limit=20)
    assert len(every) == 8
    assert len(recommended(seen, mode="binary")) == 6
    for limit in range(1, 9):
        assert recommended(seen, mode="binary", limit=limit) == every[:limit]


def fingerprints() -> list[tuple[Fingerprint, Mode]]:
    """What fires every rule on both tasks."""
    found: list[tuple[Fingerprint, Mode]] = []
    for name in ("blobs", "vessels", "classes", "void"):
        data = open_data(f"synthetic:{name}?n=12&size=96")
        found += [(fingerprint(data), data.mode), (fingerprint(data, square=48), data.mode)]
    small = {"objects": 30, "area": (9.0, 20.0, 60.0), "boundary_share": 0.8}
    for share in ((0.999, 0.001), (0.97, 0.03)):
        binary = shaped(BALANCED, **small)
        found.append((replace(binary, class_share=share, empty_squares=0.3), "binary"))
    for shares in ((0.95, 0.049, 0.001), (0.92, 0.05, 0.03)):
        seen = replace(shaped(THREE, **small), class_share=shares, class_squares=(1.0, 0.3, 0.2))
        found.append((seen, "multiclass"))
    return found


ALL = fingerprints()


def test_candidates_are_different_losses_that_quote_a_number_and_promise_nothing() -> None:
    fired: set[tuple[str, Mode]] = set()
    for seen, task in ALL:
        found = recommended(seen, mode=task, limit=20)
        assert found[0].loss == "cross_entropy"
        assert found[1].loss == "cross_entropy + dice"
        assert len({str(compose.parse(c.loss)) for c in found}) == len(found)
        for candidate in found:
            assert candidate.loss == str(compose.parse(candidate.loss))
            assert re.search(r"\d (%|px|objects)", candidate.reason), candidate
            assert re.fullmatch(r'["A-Z0-9][^\n]+\w\.', candidate.reason), candidate
            assert not re.search(r"\b(best|better|wins?|improves?|will)\b", candidate.reason)
            fired.add((candidate.loss.partition("=[")[0], task))
    assert len(rules._RULES) == 6
    assert {loss for loss, task in fired if task == "binary"} == {
        "cross_entropy",
        "cross_entropy + dice",
        TVERSKY,
        "balanced_cross_entropy",
        "cross_entropy(class_weight",
        "focal",
        "cross_entropy + dice(pool='batch')",
        "structure",
        "focal + dice",
    }
    assert {loss for loss, task in fired if task == "multiclass"} == {
        "cross_entropy",
        "cross_entropy + dice",
        TVERSKY,
        "balanced_cross_entropy",
        "cross_entropy(class_weight",
        "focal",
        "cross_entropy + dice(absent='skip')",
        "focal + dice",
    }


def test_every_candidate_can_be_trained_with() -> None:
    generator = torch.Generator().manual_seed(3)
    tried: set[tuple[str, Mode, int]] = set()
    for seen, task in ALL:
        count = len(seen.class_share)
        classes = torch.randint(count, (3, 24, 24), generator=generator)
        classes[:, :2] = VOID
        classes[0, 2:] = 0
        image = torch.randn(3, 3, 24, 24, generator=generator)
        for candidate in recommended(seen, mode=task, limit=20):
            if (candidate.loss, task, count) in tried:
                continue
            tried.add((candidate.loss, task, count))
            criterion = SegmentationCriterion(
                compose.parse(candidate.loss), mode=task, num_classes=count
            )
            shape = (3, criterion.num_outputs, 24, 24)
            logits = torch.randn(shape, generator=generator, requires_grad=True)
            value = criterion([logits], {"mask": classes, "image": image}).sum()
            value.backward()  # type: ignore[no-untyped-call]
            assert value.isfinite(), candidate
            assert value > 0, candidate
            assert logits.grad is not None
            assert logits.grad[:, :, 2:].abs().sum() > 0, candidate
            assert logits.grad.isfinite().all(), candidate
            assert not logits.grad[:, :, :2].any(), candidate
    assert len(tried) > 15


def test_focal_on_a_binary_task_does_not_fade_the_foreground() -> None:
    # The trap of `binary_focal`, whose default weighs positives 1 to 3, as detectors need it.
    classes, image = torch.tensor([[[0, 1]]]), torch.zeros(1, 3, 1, 2)
    slopes = {}
    for loss in ("focal", "binary_focal"):
        criterion = SegmentationCriterion(compose.parse(loss), mode="binary", num_classes=2)
        logits = torch.zeros(1, 1, 1, 2, requires_grad=True)
        criterion([logits], {"mask": classes, "image": image}).sum().backward()
        assert logits.grad is not None
        slopes[loss] = float(-logits.grad[0, 0, 0, 1] / logits.grad[0, 0, 0, 0])
    assert slopes == {"focal": pytest.approx(1), "binary_focal": pytest.approx(1 / 3)}


def test_a_candidate_is_plain() -> None:
    assert Candidate("dice", "because") == Candidate(loss="dice", reason="because")
