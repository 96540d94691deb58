"""Training with Lightning: a network, a loss and a score, of whatever task."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torchmetrics import MeanMetric

from denseloss import distributed
from denseloss.data.transforms import mixed
from denseloss.tasks import Turn
from denseloss.train.errors import DivergedError
from denseloss.train.precision import AUTOCAST
from denseloss.train.schedule import Schedule

# Asking a GPU for a value makes it wait, so its losses are looked at in groups of this many steps.
_FINITE_CHECK_STEPS = 20


class TrainingModule(L.LightningModule):
    """A network, a criterion and the scores.

    Args:
        network: Maps a batch of images to outputs.
        criterion: Maps outputs and a batch to weighted terms, whose names are its `names`.
        meter: Scores a split, as `Task.meter`.
        turns: The optimisers' steps for each batch.
        seed: What dropout depends on, with the step.
        accumulate: In how many parts a batch goes through the network.
        precision: As Lightning names it; what `outputs` predicts under.
    """

    def __init__(
        self,
        network: nn.Module,
        criterion: nn.Module,
        meter: nn.Module,
        *,
        turns: Sequence[Turn],
        seed: int,
        accumulate: int = 1,
        precision: str = "32-true",
    ) -> None:
        super().__init__()
        self.accumulate = accumulate
        self.automatic_optimization = accumulate == 1 and len(turns) == 1
        self.model = network.to(memory_format=torch.channels_last)
        self.criterion: Any = criterion
        self.turns = tuple(turns)
        # Set before training: for a budget in minutes, it takes the module to plan it.
        self.schedule = Schedule(steps=1, val_every=1, lr=1e-3, weight_decay=0.0)
        self.seed = seed
        self.precision = precision
        self.row: dict[str, float] = {}
        self._meter: Any = meter
        self._val_loss = MeanMetric(nan_strategy="disable")
        self._first_step = 1
        self._terms: list[Tensor] = []
        self._known_finite = 0

    def forward(self, image: Tensor) -> Any:
        """Return what the network gives for a batch of images."""
        if image.ndim == 4:
            image = image.contiguous(memory_format=torch.channels_last)
        return self.model(image)

    @torch.no_grad()
    def outputs(self, image: Tensor) -> Any:
        """Return the same without a graph, under the precision of the training."""
        with self._autocast():
            return self(image)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext()

    def on_train_epoch_start(self) -> None:
        """Start the stretch of steps up to the next validation."""
        torch.manual_seed(mixed(self.seed, self.trainer.global_step, self.global_rank))
        self._first_step = self.step_count + 1
        self._terms = []
        self._known_finite = 0

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch: a mean over all devices, which may hold unequal shares."""
        if self.automatic_optimization:
            with distributed.exact():
                terms = self.weighted_terms(self(batch["image"]), batch)
        else:
            terms = self._trained_by_turns(batch)
        self._terms.append(terms.detach())
        if self.device.type == "cpu" or (batch_idx + 1) % _FINITE_CHECK_STEPS == 0:
            self._stop_unless_finite()
        return terms.sum()

    def _trained_by_turns(self, batch: dict[str, Any]) -> Tensor:
        """Take the step of each optimiser; parts of the batch go through the network one by one."""
        names = list(self.criterion.names)
        seen = torch.zeros(len(names), device=self.device)
        for turn, optimizer, schedule in zip(
            self.turns, _listed(self.optimizers()), _listed(self.lr_schedulers()), strict=True
        ):
            chosen = torch.tensor(
                [float(turn.terms is None or name in turn.terms) for name in names],
                device=self.device,
            )
            optimizer.zero_grad()
            parts = [(part["image"], part) for part in _parts(batch, self.accumulate)]
            for terms in distributed.accumulate(self, self.weighted_terms, parts):
                self.manual_backward((terms * chosen).sum())
                seen = seen + (terms * chosen).detach()
            optimizer.step()
            schedule.step()
        return seen

    def validation_step(self, batch: dict[str, Any]) -> None:
        """Score one image."""
        outputs = self(batch["image"])
        loss = self.weighted_terms(outputs, batch).sum()
        counts = batch["counts"].sum()
        # What repeats for the sake of equal ranks may be NaN; 0 times NaN would count.
        self._val_loss.update(torch.where(counts > 0, loss, torch.zeros_like(loss)), counts)
        self._meter.update(outputs, batch)

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

    def configure_optimizers(self) -> Any:
        """Return AdamW with a learning rate that follows the schedule, for every turn."""
        optimizers = [
            torch.optim.AdamW(
                turn.parameters, lr=self.schedule.lr, weight_decay=self.schedule.weight_decay
            )
            for turn in self.turns
        ]
        return [
            {
                "optimizer": optimizer,
                "lr_scheduler": {
                    "scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule.factor),
                    "interval": "step",
                },
            }
            for optimizer in optimizers
        ]

    def weighted_terms(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return the terms of the loss, in float32 whatever the network gives."""
        # Sums over many pixels need more digits than bfloat16 has.
        with torch.autocast(self.device.type, enabled=False):
            outputs = tree_map_only(Tensor, _whole_float, outputs)
            terms: Tensor = self.criterion(outputs, batch)
            return terms

    @property
    def step_count(self) -> int:
        """How many batches have been trained on; Lightning counts the steps of every optimiser."""
        return self.trainer.global_step // len(self.turns)

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
        scores: dict[str, float] = self._meter.compute()
        loss = float(self._val_loss.compute())
        self._meter.reset()
        self._val_loss.reset()
        return {"val_loss": loss, **scores}

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


def _parts(batch: Mapping[str, Any], count: int) -> Iterable[dict[str, Any]]:
    """Cut what a batch holds into so many parts along the images."""
    if count == 1:
        return [dict(batch)]
    columns = {
        name: value.chunk(count) if isinstance(value, Tensor) else _chunked(value, count)
        for name, value in batch.items()
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _chunked(values: Sequence[Any], count: int) -> list[Sequence[Any]]:
    size = -(-len(values) // count)
    return [values[i : i + size] for i in range(0, len(values), size)]


def _listed(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found]


def _whole_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
