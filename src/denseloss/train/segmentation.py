"""Semantic segmentation with Lightning: what is drawn, what is learned, what is scored."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from denseloss import distributed
from denseloss.data import VOID, Sample, SegmentationData, SegmentationDataset
from denseloss.data.samples import Task
from denseloss.train.criterion import TaskCriterion
from denseloss.train.errors import DivergedError
from denseloss.train.models import Segmenter

Key = tuple[int, int]
"""(epoch, index): all that a training item depends on besides the seed."""

# Asking a GPU for a value makes it wait, so its losses are looked at in groups of this many steps.
_FINITE_CHECK_STEPS = 20


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


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The overlap of a prediction with the truth, pooled over the pixels of a whole split.

    A class that neither the truth nor the prediction holds has no score: NaN.
    """

    dice: tuple[float, ...]
    iou: tuple[float, ...]
    mean_dice: float
    mean_iou: float

    @classmethod
    def from_confusion(cls, confusion: Tensor, *, task: Task) -> "Scores":
        """Read the scores off a confusion matrix [truth, prediction].

        On a binary task the means are the scores of the foreground: the background is easy, and
        would hide a bad foreground.
        """
        counts = confusion.cpu().double()
        hit, truth, guess = counts.diagonal(), counts.sum(1), counts.sum(0)
        dice = 2 * hit / (truth + guess)
        iou = hit / (truth + guess - hit)
        return cls(
            dice=tuple(dice.tolist()),
            iou=tuple(iou.tolist()),
            mean_dice=float(dice[1] if task == "binary" else dice.nanmean()),
            mean_iou=float(iou[1] if task == "binary" else iou.nanmean()),
        )

    def row(self, class_names: tuple[str, ...]) -> dict[str, float]:
        """Return the scores by the names that `metrics.csv` has for them."""
        return {
            "mean_dice": self.mean_dice,
            "mean_iou": self.mean_iou,
            **{f"dice/{name}": v for name, v in zip(class_names, self.dice, strict=True)},
            **{f"iou/{name}": v for name, v in zip(class_names, self.iou, strict=True)},
        }


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


def mixed(*numbers: int) -> int:
    """Return one well-mixed seed for several small numbers."""
    state = 0
    for number in numbers:  # splitmix64
        state = (state ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1  # torch takes 63 bits


class _AtEpoch(Dataset[dict[str, Any]]):
    """Training items by (epoch, index), so that nobody need be told when an epoch begins."""

    def __init__(self, loading: "Loading") -> None:
        self.loading = loading
        self._items: SegmentationDataset | None = None

    def __getitem__(self, key: Key) -> dict[str, Any]:
        # Made in the process that uses it: the epoch of a data set is shared among processes, and
        # around the turn of an epoch two workers are at different ones.
        if self._items is None:
            loading = self.loading
            self._items = SegmentationDataset(
                loading.data, loading.data.train, size=loading.size, train=True, seed=loading.seed
            )
        epoch, index = key
        self._items.set_epoch(epoch)
        return dict(self._items[index])


class Shard(Dataset[dict[str, Any]]):
    """Every `world`-th item; all ranks have equally many, for which some repeat as void."""

    def __init__(self, items: SegmentationDataset, *, rank: int, world: int) -> None:
        self.items = items
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        return -(-len(self.items) // self.world)

    def __getitem__(self, place: int) -> dict[str, Any]:
        index = place * self.world + self.rank
        item: dict[str, Any] = dict(self.items[index % len(self.items)])
        # Of a Python number the batch would be float64, which Apple's GPUs do not have.
        item["counts"] = torch.tensor(float(index < len(self.items)), dtype=torch.float32)
        if index >= len(self.items):
            item["mask"] = torch.full_like(item["mask"], VOID)
        return item


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How images become batches."""

    data: SegmentationData
    size: int
    batch_size: int
    seed: int
    workers: int
    pin_memory: bool = False


class SegmentationBatches(L.LightningDataModule):
    """The loaders of one data set, the same for every loss, model and number of workers."""

    def __init__(self, loading: Loading, schedule: Schedule) -> None:
        super().__init__()
        self.loading = loading
        self.schedule = schedule

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return what is trained on, from the trainer's current step."""
        trainer = self.trainer
        return train_loader(
            self.loading,
            self.schedule,
            step=lambda: trainer.global_step if trainer else 0,
            rank=trainer.global_rank if trainer else 0,
            world=trainer.world_size if trainer else 1,
        )

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return every validation image at its own size, one at a time."""
        return self._whole(self.loading.data.val)

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return every test image at its own size, one at a time."""
        return self._whole(self.loading.data.test)

    def _whole(self, samples: tuple[Sample, ...]) -> DataLoader[dict[str, Any]]:
        loading = self.loading
        trainer = self.trainer
        items = SegmentationDataset(
            loading.data, samples, size=loading.size, train=False, seed=loading.seed
        )
        shard = Shard(
            items,
            rank=trainer.global_rank if trainer else 0,
            world=trainer.world_size if trainer else 1,
        )
        return _loader(shard, loading, batch_size=1)


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
        # Without its own, every pass would draw from the generator that dropout draws from.
        generator=torch.Generator().manual_seed(loading.seed),
        **options,
    )


class SegmentationTask(L.LightningModule):
    """A network, a criterion and the scores.

    Args:
        model: The network.
        criterion: The loss as this task takes it.
        task: What the classes mean.
        class_names: Background included.
        seed: What dropout depends on, with the step.
        accumulate: In how many parts a batch goes through the network.
    """

    def __init__(
        self,
        model: Segmenter,
        criterion: TaskCriterion,
        *,
        task: Task,
        class_names: tuple[str, ...],
        seed: int,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.accumulate = accumulate
        self.automatic_optimization = accumulate == 1
        self.model = model.to(memory_format=torch.channels_last)
        self.criterion = criterion
        # Set before training: for a budget in minutes, it takes the task to plan it.
        self.schedule = Schedule(steps=1, val_every=1, lr=1e-3, weight_decay=0.0)
        self.task: Task = task
        self.class_names = class_names
        self.seed = seed
        self.row: dict[str, float] = {}
        self._confusion = MulticlassConfusionMatrix(
            len(class_names), ignore_index=VOID, validate_args=False
        )
        self._val_loss = MeanMetric(nan_strategy="disable")
        self._first_step = 1
        self._terms: list[Tensor] = []
        self._known_finite = 0

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the logits of a batch of images, the largest first."""
        return self.model(image.contiguous(memory_format=torch.channels_last))  # type: ignore[no-any-return]

    def predict(self, image: Tensor, *, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the logits at a given size and the classes they say."""
        logits = self(image)[0].float()
        if logits.shape[-2:] != size:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        if self.task == "binary":
            return logits, (logits[:, 0] > 0).long()
        return logits, logits.argmax(1)

    def on_train_epoch_start(self) -> None:
        """Start the stretch of steps up to the next validation."""
        torch.manual_seed(mixed(self.seed, self.global_step, self.global_rank))
        self._first_step = self.global_step + 1
        self._terms = []
        self._known_finite = 0

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch: a mean over all devices, which may hold unequal shares."""
        if self.accumulate > 1:
            terms = self._trained_in_parts(batch)
        else:
            with distributed.exact():
                terms = self._weighted_terms(self(batch["image"]), batch)
        self._terms.append(terms.detach())
        if self.device.type == "cpu" or (batch_idx + 1) % _FINITE_CHECK_STEPS == 0:
            self._stop_unless_finite()
        return terms.sum()

    def _trained_in_parts(self, batch: dict[str, Any]) -> Tensor:
        """Take the step of a batch whose parts go through the network one by one."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(schedule, torch.optim.lr_scheduler.LRScheduler)
        images, masks = (batch[name].chunk(self.accumulate) for name in ("image", "mask"))
        parts = [(x, {"mask": y, "image": x}) for x, y in zip(images, masks, strict=True)]
        optimizer.zero_grad()
        whole = torch.zeros((), device=self.device)
        for terms in distributed.accumulate(self, self._weighted_terms, parts):
            self.manual_backward(terms.sum())
            whole = whole + terms.detach()
        optimizer.step()
        schedule.step()
        return whole

    def validation_step(self, batch: dict[str, Any]) -> None:
        """Score one image."""
        mask = batch["mask"]
        logits, guess = self.predict(batch["image"], size=(mask.shape[-2], mask.shape[-1]))
        loss = self._weighted_terms([logits], batch).sum()
        self._val_loss.update(loss, batch["counts"].sum())
        self._confusion.update(guess, mask)

    def test_step(self, batch: dict[str, Any]) -> None:
        """Score one image."""
        self.validation_step(batch)

    def on_validation_epoch_end(self) -> None:
        """Put together what `metrics.csv` says of this stretch of steps."""
        self.row = {**self._trained(), **self._scored()}
        self.log_dict(self.row, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Keep the scores of the test split."""
        self.row = self._scored()

    def last_loss(self) -> float:
        """Return the loss of the last step, for the progress bar."""
        return float(self._terms[-1].sum()) if self._terms else math.nan

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with a learning rate that follows the schedule."""
        optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.schedule.lr,
            weight_decay=self.schedule.weight_decay,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule.factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _weighted_terms(self, outputs: list[Tensor], batch: dict[str, Any]) -> Tensor:
        # Sums over many pixels need more digits than bfloat16 has.
        with torch.autocast(self.device.type, enabled=False):
            outputs = [logits.float() for logits in outputs]
            terms: Tensor = self.criterion(outputs, batch["mask"], image=batch["image"])
            return terms

    def _trained(self) -> dict[str, float]:
        if not self._terms:
            return {}
        self._stop_unless_finite()
        per_step = torch.stack(self._terms)
        if self.trainer.world_size > 1:
            gathered = self.all_gather(per_step)
            assert isinstance(gathered, Tensor)
            per_step = gathered.flatten(0, 1)
        terms = per_step.cpu().double().mean(0)
        names = self.criterion.names
        by_term = dict(zip((f"loss/{name}" for name in names), terms.tolist(), strict=True))
        return {"loss": float(terms.sum()), **by_term}

    def _scored(self) -> dict[str, float]:
        scores = Scores.from_confusion(self._confusion.compute(), task=self.task)
        loss = float(self._val_loss.compute())
        self._confusion.reset()
        self._val_loss.reset()
        return {"val_loss": loss, **scores.row(self.class_names)}

    def _stop_unless_finite(self) -> None:
        if self._known_finite == len(self._terms):
            return
        finite = torch.stack(self._terms[self._known_finite :]).isfinite()
        if bool(finite.all()):
            self._known_finite = len(self._terms)
            return
        index = self._known_finite + int((~finite.all(1)).nonzero()[0])
        terms = self._terms[index].tolist()
        bad = [
            f"{name} is {value}"
            for name, value in zip(self.criterion.names, terms, strict=True)
            if not math.isfinite(value)
        ]
        raise DivergedError(
            f"training stopped at step {self._first_step + index}: the loss term {', '.join(bad)}",
            lr=self.schedule.lr,
        )
