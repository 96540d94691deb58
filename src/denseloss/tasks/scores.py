"""Metrics, and scores as functionals of weighted images: all that intervals and tests ask for."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Pooling = Literal["image", "pooled"]
"""`"image"`: the mean over the held-out images of each image's score; `"pooled"`: one score of all
of them together."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score of the held-out images.

    Attributes:
        key: As in `results.csv`.
        name: As a reader knows it.
        higher_is_better: False for a distance or an error.
        unit: Such as `"px"`; empty for a share of 1.
        definition: In a sentence, with what an image without anything to find scores.
        poolings: How it can be taken over the images.
        effect: The smallest difference that matters, where the user names none.
        highest: No score lies above it.
    """

    key: str
    name: str
    higher_is_better: bool
    definition: str
    unit: str = ""
    poolings: tuple[Pooling, ...] = ("image",)
    effect: float = 0.01
    highest: float = 1.0


class Scored(Protocol):
    """The score of each network that was trained with one loss, as a functional of image weights.

    An image of weight 2 counts as if it were there twice, one of weight 0 as if it were not there.
    A score that can do this can be asked for draws of the images, whether it is made of sums over
    images (`Additive`) or sorts all that was detected in them, as average precision does. All
    networks of a loss are asked together, since they are scored on the same draws.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """How many networks there are, one per seed, and how many images, the same for all."""

    @property
    def width(self) -> int:
        """About how many numbers one draw takes, which limits how many draws are made at once."""

    def of(self, rows: Sequence[int]) -> Self:
        """The networks of some seeds only, in this order.

        Args:
            rows: Places of the seeds.
        """

    def on(self, images: NDArray[np.bool_]) -> Self:
        """The scores on some of the images only.

        Args:
            images: bool[images].
        """

    def value(self, weights: Array | None = None) -> Array:
        """The score of every network.

        Args:
            weights: float64[draws images], not negative; None is one draw, each image once.

        Returns:
            float64[draws seeds], or float64[seeds] without weights; NaN where it is undefined.
        """


@dataclass(frozen=True)
class Additive:
    """A score made of sums over images, a `Scored`.

    It serves the mean over images (k = 2, the image's score and 1, whose sums are divided) and one
    score of all images (k numbers, such as pixels of each kind, whose sums make it).

    Attributes:
        counts: float64[seeds images k], what each image adds.
        score: Maps sums `[... k]` to scores `[...]`; NaN or infinite where there is none.

    Raises:
        ValueError: `counts` is not 3-dimensional.
    """

    counts: Array
    score: Callable[[Array], Array]

    def __post_init__(self) -> None:
        if self.counts.ndim != 3:
            raise ValueError(f"counts must be [seeds images k], got {self.counts.shape}")

    @property
    def shape(self) -> tuple[int, int]:
        """Seeds and images."""
        return self.counts.shape[0], self.counts.shape[1]

    @property
    def width(self) -> int:
        """A draw takes one sum of each kind for each seed."""
        return int(self.counts[:, 0].size)

    def of(self, rows: Sequence[int]) -> "Additive":
        """The networks of some seeds only."""
        return replace(self, counts=self.counts[list(rows)])

    def on(self, images: NDArray[np.bool_]) -> "Additive":
        """The scores on some of the images only."""
        return replace(self, counts=self.counts[:, images])

    def value(self, weights: Array | None = None) -> Array:
        """The score of weighted sums."""
        return self._scored(
            self.counts.sum(1) if weights is None else self._summed(self.counts, weights)
        )

    @staticmethod
    def _summed(counts: Array, weights: Array) -> Array:
        """Weighted sums over the images, [draws seeds k], in one product for all seeds."""
        seeds, images, k = counts.shape
        flat = counts.transpose(1, 0, 2).reshape(images, seeds * k)
        return (weights @ flat).reshape(len(weights), seeds, k)

    def _scored(self, sums: Array) -> Array:
        # 0 / 0 is a score that is not defined, which is handled; numpy need not say so.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)
            values = np.asarray(self.score(sums), dtype=np.float64)
        if values.shape != sums.shape[:-1]:
            raise ValueError(
                f"the score of sums {sums.shape} must be {sums.shape[:-1]}, got {values.shape}"
            )
        return np.where(np.isfinite(values), values, np.nan)


def mean_over_images(scores: Sequence[Array]) -> Additive:
    """The mean of each image's score, of several networks.

    Args:
        scores: float64[images] of each network, NaN for an image that has no score.
    """
    every = np.array(scores, dtype=np.float64)
    there = ~np.isnan(every)
    counts = np.stack([np.where(there, every, 0.0), there.astype(np.float64)], axis=-1)
    return Additive(counts, quotient)


def quotient(sums: Array) -> Array:
    """The first of two sums over the second; NaN where that is 0."""
    return divided(sums[..., 0], sums[..., 1])


def divided(a: Array, b: Array) -> Array:
    """A / b; NaN where b is 0."""
    return np.where(b > 0, a / np.where(b > 0, b, 1.0), np.nan)
