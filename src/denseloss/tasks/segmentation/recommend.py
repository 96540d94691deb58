"""Losses worth trying on a data set, each with the measured number that speaks for it."""

from collections.abc import Iterator

from denseloss.tasks.segmentation.data import percent
from denseloss.tasks.segmentation.fingerprint import Fingerprint, Shapes
from denseloss.tasks.segmentation.labels import Mode
from denseloss.tasks.task import Candidate

SMALL_CLASS = 0.05
"""A class below this share is rare: who never predicts it is right on 95 % of the pixels."""
DOMINANT_CLASS = 0.9
"""From this share on a class is most of the loss: nine pixels to each one of the others."""
VANISHING_CLASS = 0.01
"""Below this share all other pixels drown a class, even if no single class dominates."""
VERY_UNEVEN = 100
"""Shares that differ more are not balanced in full: a rare pixel would weigh above a hundred."""
THIN_FACTOR = 5.0
"""Shape factor from which a class is thin: that of a strip nine times as long as wide."""
THIN_WIDTH = 8.0
"""A thin class is at most this wide, in pixels: one pixel lost on both sides is a quarter of it."""
MANY_OBJECTS = 5.0
"""From so many objects in an image on, one that is missed hardly shows in the sum over pixels."""
SMALL_OBJECT = 32**2 / (640 * 480)
"""A median object below this share of the image is small: COCO's limit in COCO's usual image."""
BOUNDARY_RICH = 0.2
"""Boundary share of a class from which edges decide. A disc of radius 19 has it: with a contour
that is one pixel off it loses 5 % of Dice."""
OFTEN_ABSENT = 0.5
"""A class in fewer of the training squares is absent from most terms of a Dice per image."""
OFTEN_EMPTY = 0.1
"""From this share of squares without foreground on, most batches of 8 hold such a one."""

# The setting that Salehi et al. (2017) found best on small lesions.
_FALSE, _MISSED = 0.3, 0.7


def recommended(fingerprint: Fingerprint, *, mode: Mode, limit: int = 6) -> tuple[Candidate, ...]:
    """Propose losses from what the training masks look like.

    The first is the baseline, the second is robust nearly everywhere. The others come only where a
    number of the fingerprint speaks for them.

    Args:
        fingerprint: Of the training masks.
        mode: What the masks mean; `SegmentationCriterion` takes every proposed loss for it.
        limit: How many are proposed, at most.

    Raises:
        ValueError: `limit` is below 1.
    """
    if limit < 1:
        raise ValueError(f"recommended: limit must be at least 1, got {limit}")
    found = [each for rule in (_usual, *_RULES) for each in rule(fingerprint, mode)]
    return tuple(Candidate(loss, why[0].upper() + why[1:]) for loss, why in found[:limit])


Proposed = Iterator[tuple[str, str]]
"""Losses and what speaks for them."""


def _usual(seen: Fingerprint, mode: Mode) -> Proposed:
    common, rare = _commonest(seen), _rarest(seen)
    yield (
        "cross_entropy",
        "The baseline that everybody starts from: every pixel counts alike, so that "
        f"{percent(seen.class_share[common])} of the weight is on {_class(seen, common)}.",
    )
    what = (
        f"the overlap of the foreground, which is {percent(sum(seen.class_share[1:]))} of the "
        "pixels, counts as much as all pixels together"
        if mode == "binary"
        else f"the overlap of every class counts alike, {_class(seen, rare)} with "
        f"{percent(seen.class_share[rare])} of the pixels, too"
    )
    yield (
        "cross_entropy + dice",
        f"The usual robust choice: with Dice {what}, while cross entropy keeps up the gradient "
        "where Dice is flat, and the probabilities near the frequencies.",
    )


def _missed_pixels(seen: Fingerprint, mode: Mode) -> Proposed:
    """Tversky, where what is missed is easily overlooked: thin, rare or many and small."""
    del mode
    rare, small = _rarest(seen, first=1), _smallest(seen)
    thin = max(filter(_is_thin, seen.shapes), key=lambda s: s.thinness, default=None)
    if thin is not None:
        why = (
            f"{_called(thin.name)} is thin, {thin.width:.1f} px wide on average with a shape "
            f"factor of {thin.thinness:.3g} where a disc has 1, so that a lost branch is few pixels"
        )
    elif 0 < seen.class_share[rare] < SMALL_CLASS:
        why = (
            f"{_class(seen, rare)} is only {percent(seen.class_share[rare])} of the pixels, and is "
            "easily left out"
        )
    elif small is not None:
        why = (
            f"{_called(small.name)} comes as {small.objects:.3g} objects in an image, half of them "
            f"below {small.area[1]:.0f} px, of which one is easily missed"
        )
    else:
        return
    yield (
        f"cross_entropy + tversky(alpha={_FALSE}, beta={_MISSED})",
        f"{why}; Tversky prices a missed pixel {_MISSED} and a false one {_FALSE}, where Dice "
        "prices both 0.5: it leans towards finding all, at the price of false pixels.",
    )


def _balance(seen: Fingerprint, mode: Mode) -> Proposed:
    """Weights per class, where the rarest class is rare."""
    del mode
    shares, rare = seen.class_share, _rarest(seen)
    ratio = max(shares) / shares[rare]
    if shares[rare] >= SMALL_CLASS:
        return
    times = f"{ratio:.3g}" if ratio < VERY_UNEVEN else f"{ratio:.0f}"
    what = (
        f"{_class(seen, rare)} is {percent(shares[rare])} of the pixels, the commonest class "
        f"{times} times as many"
    )
    if ratio <= VERY_UNEVEN:
        yield (
            "balanced_cross_entropy",
            f"{what}: here all classes in a batch weigh the same, which leans towards "
            "finding all of the rare one, at the price of false pixels.",
        )
        return
    # A class that never occurs needs no weight.
    weights = [round((max(shares) / s) ** 0.5, 1) if s > 0 else 1.0 for s in shares]
    yield (
        f"cross_entropy(class_weight={weights})",
        f"{what}: a full balance would let each of its pixels outweigh as many others, right "
        f"or wrong; here the weights are the square roots of that, {weights[rare]:g} for it.",
    )


def _easy_pixels(seen: Fingerprint, mode: Mode) -> Proposed:
    """Focal, where pixels that are soon right outnumber the rest."""
    del mode
    shares, common, rare = seen.class_share, _commonest(seen), _rarest(seen)
    if rare == common:
        return
    if shares[common] >= DOMINANT_CLASS:
        why = f"{_class(seen, common)} is {percent(shares[common])} of the pixels"
    elif shares[rare] < VANISHING_CLASS:
        why = f"all but {percent(shares[rare])} of the pixels are not {_class(seen, rare)}"
    else:
        return
    if seen.boundary_share:
        why += f", and {percent(1 - seen.boundary_share)} lie away from any boundary"
    yield (
        "focal",
        f"{why}: focal loss (γ = 2) fades the pixels that are already right, so that the hard "
        "ones lead, at the price of probabilities that are less sure.",
    )


def _absent_classes(seen: Fingerprint, mode: Mode) -> Proposed:
    """How Dice counts an image without the class, where there are many of them."""
    often = [s for s in seen.shapes if seen.class_squares[s.index] < OFTEN_ABSENT]
    if mode == "binary" and seen.empty_squares >= OFTEN_EMPTY:
        yield (
            "cross_entropy + dice(pool='batch')",
            f"{percent(seen.empty_squares)} of the {seen.place} have no foreground: the Dice of "
            "such a one is near its worst as soon as anything is painted, whereas over the "
            "batch as one image its false pixels add to those of all others.",
        )
    elif mode == "multiclass" and often:
        least = min(often, key=lambda s: seen.class_squares[s.index])
        yield (
            "cross_entropy + dice(absent='skip')",
            f"{_called(least.name)} is in {percent(seen.class_squares[least.index])} of the "
            f"{seen.place}: in the others its Dice is near its worst as soon as a little is "
            "painted; here an absent class is left to cross entropy alone.",
        )


def _edges(seen: Fingerprint, mode: Mode) -> Proposed:
    """The structure loss, where objects are mostly edge; it is one of binary masks."""
    for shape in seen.shapes:
        if mode == "binary" and shape.boundary_share >= BOUNDARY_RICH:
            crowd = f" and {percent(shape.crowded)} of its objects nearly touch another"
            yield (
                "structure",
                f"{percent(shape.boundary_share)} of the pixels of {_called(shape.name)} are at a "
                f"boundary{crowd if shape.crowded else ''}: the structure loss weighs edges, "
                "thin parts and small objects up to 6 times as much as plain areas, in cross "
                "entropy and in IoU.",
            )


def _small_objects(seen: Fingerprint, mode: Mode) -> Proposed:
    """Focal with Dice, where objects are many and small."""
    del mode
    small = _smallest(seen)
    if small is not None:
        yield (
            "focal + dice",
            f"An image has {small.objects:.3g} objects of {_called(small.name)}, half of them "
            f"below {small.area[1]:.0f} px "
            f"({percent(small.area[1] / (seen.height * seen.width))} of an "
            "image): focal loss keeps to the pixels that are still wrong, such as a missed "
            "object's, and Dice weighs them against the class, not against the image.",
        )


_RULES = (_missed_pixels, _balance, _easy_pixels, _absent_classes, _edges, _small_objects)


def _commonest(seen: Fingerprint) -> int:
    return max(range(len(seen.class_share)), key=lambda i: seen.class_share[i])


def _rarest(seen: Fingerprint, *, first: int = 0) -> int:
    """The rarest class that occurs, from the first one on; the first one if none does."""
    there = [i for i in range(first, len(seen.class_share)) if seen.class_share[i] > 0]
    return min(there, key=lambda i: seen.class_share[i], default=first)


def _is_thin(shape: Shapes) -> bool:
    return shape.thinness >= THIN_FACTOR and shape.width <= THIN_WIDTH


def _smallest(seen: Fingerprint) -> Shapes | None:
    """The class of many small objects; the pieces of a thin class are no objects to be counted."""
    limit = SMALL_OBJECT * seen.height * seen.width
    many = [s for s in seen.shapes if s.objects >= MANY_OBJECTS and not _is_thin(s)]
    small = [s for s in many if s.area[1] < limit]
    return min(small, key=lambda s: s.area[1], default=None)


def _called(name: str) -> str:
    return f"the {name}" if name in ("background", "foreground") else f'"{name}"'


def _class(seen: Fingerprint, index: int) -> str:
    return _called(seen.class_names[index])
