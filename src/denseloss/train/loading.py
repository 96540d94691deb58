"""How samples become batches: the same for every loss, network and number of workers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from denseloss.tasks import Data, Task
from denseloss.tasks.task import Items
from denseloss.train.schedule import Key, SampleStream, Schedule


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Where batches come from, and how."""

    task: Task
    data: Data
    size: int
    batch_size: int
    seed: int
    workers: int
    pin_memory: bool = False

    def items(self, samples: Sequence[Any], *, train: bool) -> Items:
        """Return samples as the task makes items of them."""
        return self.task.dataset(self.data, samples, size=self.size, train=train, seed=self.seed)


class _AtEpoch(Dataset[dict[str, Any]]):
    """Training items by (epoch, index), so that nobody need be told when an epoch begins."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self._items: Items | None = None

    def __getitem__(self, key: Key) -> dict[str, Any]:
        # Made in the process that uses it: the epoch of a data set is shared among processes, and
        # around the turn of an epoch two workers are at different ones.
        if self._items is None:
            self._items = self.loading.items(self.loading.data.train, train=True)
        epoch, index = key
        self._items.set_epoch(epoch)
        return dict(self._items[index])


class Shard(Dataset[dict[str, Any]]):
    """Every `world`-th item; all ranks have equally many, for which some repeat and count 0."""

    def __init__(self, items: Items, *, rank: int, world: int) -> None:
        self.items = items
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        return -(-len(self.items) // self.world)

    def __getitem__(self, place: int) -> dict[str, Any]:
        index = place * self.world + self.rank
        item = dict(self.items[index % len(self.items)])
        # Of a Python number the batch would be float64, which Apple's GPUs do not have.
        item["counts"] = torch.tensor(float(index < len(self.items)), dtype=torch.float32)
        return item


class Batches(L.LightningDataModule):
    """The loaders of one data set."""

    def __init__(self, loading: Loading, schedule: Schedule, *, turns: int = 1) -> None:
        super().__init__()
        self.loading = loading
        self.schedule = schedule
        self.turns = turns

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return what is trained on, from the trainer's current step to the next validation."""
        trainer = self.trainer
        return train_loader(
            self.loading,
            self.schedule,
            # Lightning counts the steps of every optimiser.
            step=lambda: trainer.global_step // self.turns if trainer else 0,
            rank=trainer.global_rank if trainer else 0,
            world=trainer.world_size if trainer else 1,
        )

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return every validation image at its own size, one at a time."""
        return self._whole(self.loading.data.val)

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return every test image at its own size, one at a time."""
        return self._whole(self.loading.data.test)

    def _whole(self, samples: Sequence[Any]) -> DataLoader[dict[str, Any]]:
        trainer = self.trainer
        shard = Shard(
            self.loading.items(samples, train=False),
            rank=trainer.global_rank if trainer else 0,
            world=trainer.world_size if trainer else 1,
        )
        return _loader(shard, self.loading, batch_size=1)


def train_loader(
    loading: Loading,
    schedule: Schedule,
    *,
    step: Callable[[], int],
    rank: int = 0,
    world: int = 1,
) -> DataLoader[dict[str, Any]]:
    """Return the batches that follow the current step, until the next validation."""
    stream = SampleStream(
        images=len(loading.data.train),
        batch_size=loading.batch_size,
        seed=loading.seed,
        schedule=schedule,
        step=step,
        rank=rank,
        world=world,
    )
    return _loader(_AtEpoch(loading), loading, batch_sampler=stream)


def _loader(
    items: Dataset[dict[str, Any]], loading: Loading, **options: Any
) -> DataLoader[dict[str, Any]]:
    return DataLoader(
        items,
        num_workers=loading.workers,
        persistent_workers=loading.workers > 0,
        pin_memory=loading.pin_memory,
        collate_fn=loading.task.collate,
        # Without its own, every pass would draw from the generator that dropout draws from.
        generator=torch.Generator().manual_seed(loading.seed),
        **options,
    )
