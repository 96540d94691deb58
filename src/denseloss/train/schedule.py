"""The steps of a run: how the learning rate goes, and which images each step sees."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from denseloss.data.transforms import mixed

Key = tuple[int, int]
"""(epoch, index): all that a training item depends on besides the seed."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The optimisation that is planned, in steps."""

    steps: int
    val_every: int
    lr: float
    weight_decay: float

    def factor(self, step: int) -> float:
        """Return what the learning rate is multiplied by: a short warm-up, then half a cosine."""
        warmup = max(1, min(100, self.steps // 20))
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class SampleStream(Sampler[list[Key]]):
    """The batches from the current step to the next validation.

    Which images make up step s depends on (seed, s) alone, so that a resumed run sees what an
    uninterrupted one sees, and two losses see the same. An epoch is one pass over the images in a
    new order, without the few that fill no batch; with fewer images than a batch they repeat.
    """

    def __init__(
        self,
        *,
        images: int,
        batch_size: int,
        seed: int,
        schedule: Schedule,
        step: Callable[[], int],
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.schedule = schedule
        self.step = step
        self.rank = rank
        self.world = world
        self._epoch = -1
        self._order: list[int] = []

    def __iter__(self) -> Iterator[list[Key]]:
        first = self.step()
        every = self.schedule.val_every
        for step in range(first, min(self.schedule.steps, (first // every + 1) * every)):
            yield self.batch(step)

    def batch(self, step: int) -> list[Key]:
        """Return the (epoch, index) of each image of a step, on this rank."""
        epoch, place = divmod(step, steps_per_epoch(self.images, self.batch_size * self.world))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mixed(self.seed, epoch))
            self._order = torch.randperm(self.images, generator=generator).tolist()
            self._epoch = epoch
        first = (place * self.world + self.rank) * self.batch_size
        places = range(first, first + self.batch_size)
        return [(epoch, self._order[i % self.images]) for i in places]


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return how many steps one pass over the images takes."""
    return max(1, images // batch_size)
