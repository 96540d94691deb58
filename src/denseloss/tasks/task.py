"""What a task is: all that training, comparison and report ask of it."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import default_collate

from denseloss.compose import WeightedSum
from denseloss.data.errors import DataError, InputError
from denseloss.report.sections import Section
from denseloss.tasks import pretrained
from denseloss.tasks.criterion import Batch, CriterionByKinds, Feed
from denseloss.tasks.evidence import Evidence
from denseloss.tasks.predictor import Predictor
from denseloss.tasks.scores import Metric, Pooling, Scored, mean_over_images

Progress = Callable[[Iterable[Any]], Iterable[Any]]
"""Wraps a loop, as `rich.progress.track` does."""


class Sample(Protocol):
    """One image with its truth."""

    @property
    def name(self) -> str:
        """It is unique within the data."""


class Data(Protocol):
    """A data set that was opened: what is in it. It is a plain value that can be pickled."""

    @property
    def name(self) -> str:
        """A short name, of the folder or of the scenes."""

    @property
    def source(self) -> str:
        """What was found where, in words."""

    @property
    def train(self) -> Sequence[Any]:
        """The samples to train on."""

    @property
    def val(self) -> Sequence[Any]:
        """The samples to validate on."""

    @property
    def test(self) -> Sequence[Any]:
        """The samples that are held out, often none."""

    @property
    def split_note(self) -> str:
        """How the samples were divided."""

    def describe(self) -> list[str]:
        """What was found, in plain words, one thing on a line."""


class Trained(Protocol):
    """A network with the loss that trained it."""

    @property
    def criterion(self) -> Any:
        """The loss, as the task's `criterion` made it."""

    @property
    def device(self) -> torch.device:
        """Where the network is."""

    def outputs(self, image: Tensor) -> Any:
        """Return what the network gives for a batch of images, without a graph."""


class Items(Protocol):
    """A data set whose augmentation depends on the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation is drawn."""

    def __len__(self) -> int:
        """How many samples there are."""

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """Return what a batch is collated from."""


@dataclass(frozen=True)
class NoSettings:
    """The options of a task that has none of its own."""


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a task trains with where the user names nothing.

    Attributes:
        loss: The expression.
        model: The network.
        lr: Highest learning rate of AdamW.
        batch_size: Images of a step.
        average: Decay of the average of the weights; 0 for no average.
    """

    loss: str
    model: str = "default"
    lr: float = 1e-3
    batch_size: int = 8
    average: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Split:
    """How samples are divided where the data has no split.

    Attributes:
        seed: Decides which samples go where.
        val_share: Share of the samples to validate on.
        test_share: Share of the samples to hold out.
    """

    seed: int = 0
    val_share: float = 0.2
    test_share: float = 0.0


@dataclass(frozen=True)
class Candidate:
    """A loss to be tried.

    Attributes:
        loss: The expression.
        reason: What was measured and what the loss would change; empty if the user named it.
    """

    loss: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """What the truth of a split holds.

    Attributes:
        images: How many images can be scored.
        unscored: How many cannot, because nothing in them counts.
        missing: Names of the parts, such as classes, that occur in none of them.
    """

    images: int
    unscored: int = 0
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Turn:
    """A step of one optimiser; a task may take several in turn for each batch.

    Attributes:
        parameters: That it changes.
        terms: Names of the loss's terms whose sum it lowers; None for all.
    """

    parameters: tuple[nn.Parameter, ...]
    terms: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What a check of a data set saw.

    Attributes:
        where: What was checked.
        data: The data set of all good samples, None if there are too few.
        problems: One line for each bad file, with its name and what to do.
    """

    where: str
    data: Any
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the data can be trained on as it is."""
        return self.data is not None and not self.problems

    def lines(self) -> list[str]:
        """The report in plain words, the verdict last."""
        found = [] if self.data is None else self.data.describe()
        bad = [f"bad: {problem}" for problem in self.problems]
        verdict = "good to train on" if self.ok else "problems to repair before training"
        return [*found, *bad, f"verdict: {verdict}"]

    def draw(self, path: Path) -> Path | None:
        """Draw some samples to a PNG and return its path, None where there is no such picture."""
        del path
        return None


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What is there once all trials have ended, for what a task keeps to show in the report.

    Attributes:
        folder: Of the comparison.
        data: That was opened.
        losses: The criteria of the losses that a network could be trained with, by expression.
        baseline: The baseline's first network and its measurements of the held-out images; None
            where no trial of it finished.
        predicted_by: The loss and the seed of that network, in words.
        keep: How many held-out images are kept.
    """

    folder: Path
    data: Any
    losses: Mapping[str, Any]
    baseline: Callable[[], tuple[Any, Any]] | None
    predicted_by: str
    keep: int


class Task:
    """One kind of problem: its data, networks, losses, scores and pictures.

    A task is a subclass with a name, metrics and defaults, and at least `open`, `dataset`,
    `network`, `image_scores` and either `feeds` or `criterion`. All else has a plain version here.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    """The first picks checkpoints; its column in `metrics.csv` is `score`."""
    defaults: ClassVar[Defaults]
    settings: ClassVar[type] = NoSettings
    """A frozen dataclass of the task's own options, each with a default and a line in the
    `Attributes` of its docstring. They join the command line."""
    feeds: ClassVar[Mapping[tuple[str, ...], Feed]] = {}
    """What a loss is called with, by the kinds of its first two arguments."""
    part: ClassVar[str] = ""
    """What is scored one by one besides the whole, such as `"class"`."""

    # ------------------------------------------------------------------------------- data

    def claims(self, where: str) -> bool:
        """Whether a folder, file or `"synthetic:NAME"` looks like this task's, by names alone."""
        del where
        return False

    def place(self, options: Any) -> str | None:
        """Return the data's folder where the task's own options say it, for DATA left out."""
        del options
        return None

    def open(
        self, where: str, options: Any, *, split: Split, progress: Progress | None = None
    ) -> Data:
        """Open a data set.

        Args:
            where: The folder or file.
            options: The task's `settings`.
            split: How to divide it where it has no split.
            progress: Wraps the loop over the files.

        Raises:
            DataError: It cannot be used.
        """
        raise NotImplementedError

    def check(self, where: str, options: Any, *, progress: Progress | None = None) -> DataReport:
        """Look at every file, and collect all that is wrong."""
        try:
            data = self.open(where, options, split=Split(), progress=progress)
        except DataError as error:
            return DataReport(where=where, data=None, problems=(str(error),))
        return DataReport(where=where, data=data)

    def facts(self, data: Any) -> dict[str, Any]:
        """Return what a run keeps of its data, in `config.toml`: plain values.

        The keys are always the same; None stands for what the data does not have. A run is resumed
        only with data of the same facts, and predicts from them, without data.
        """
        del data
        return {}

    def digest(self, data: Any) -> str:
        """Return what changes when samples, their split or their truth change."""
        text = "\n\n".join(
            "\n".join(sample.name for sample in split)
            for split in (data.train, data.val, data.test)
        )
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def dataset(
        self, data: Any, samples: Sequence[Any], *, size: int, train: bool, seed: int
    ) -> Items:
        """Return samples as dicts of tensors, the image under `"image"`.

        Args:
            data: Where they come from.
            samples: Some of them.
            size: Side of a training square in pixels.
            train: Whether to augment; otherwise a sample is whole.
            seed: Of the augmentation.
        """
        raise NotImplementedError

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch."""
        batch: dict[str, Any] = default_collate(list(items))
        return batch

    def usual_side(self, data: Any) -> int:
        """Return the median of the images' shorter sides in pixels, 0 where that says nothing."""
        sizes: Mapping[tuple[int, int], int] = getattr(data, "sizes", {})
        sides = sorted(min(size) for size, count in sizes.items() for _ in range(count))
        return sides[len(sides) // 2] if sides else 0

    # --------------------------------------------------------------------------- training

    def learning_rate(self, model: str) -> float:
        """Return the learning rate that a network is trained with where none is named."""
        del model
        return self.defaults.lr

    def network(self, model: str, data: Any, criterion: Any, options: Any) -> nn.Module:
        """Build a network, which maps a batch of images to outputs; the seed is set before.

        Raises:
            InputError: There is no such network.
        """
        raise NotImplementedError

    def pretrain(self, network: nn.Module, weights: str, *, model: str) -> tuple[str, ...]:
        """Load the weights that a network starts from, and return what is to be said about them.

        Args:
            network: What `network` built.
            weights: A file, or the name of weights that come with networks of this task.
            model: What the network was built from.

        Raises:
            InputError: There are no such weights, they cannot be read, or they do not fit.
        """
        if not pretrained.is_file(weights):
            raise InputError(f"--weights {weights}: {self.name} has no such weights; give a file")
        del model
        return pretrained.load_file(network, weights)

    def try_out(
        self, network: nn.Module, data: Any, criterion: Any, *, model: str, size: int
    ) -> tuple[str, ...]:
        """Try a network before it is trained, and return what is to be said about it.

        Args:
            network: What `network` built.
            data: That was opened.
            criterion: The loss.
            model: What the network was built from.
            size: Side of a training square in pixels.

        Raises:
            InputError: It does not give what the loss takes.
        """
        del network, data, criterion, model, size
        return ()

    def criterion(self, weighted_sum: WeightedSum, data: Any) -> Any:
        """Return the loss: a Module that maps (outputs, batch) to its weighted terms.

        It has `names` (of the terms) and `notes` (what is told about them).

        Raises:
            InputError: A term cannot be used on such data.
        """
        del data
        return CriterionByKinds(weighted_sum, self.feeds, task=self.name)

    def turns(self, network: nn.Module, criterion: Any) -> tuple[Turn, ...]:
        """Return the optimisers' steps for each batch, in this order."""
        del criterion
        return (Turn(parameters=tuple(network.parameters())),)

    def meter(self, data: Any) -> nn.Module:
        """Return what scores a split: `update(outputs, batch)`, `compute()`, `reset()`.

        `compute` returns numbers by the names of columns of `metrics.csv`; `"score"` is the one
        that picks checkpoints. Items whose `"counts"` is 0 in a batch do not count.
        """
        from denseloss.tasks.meter import MeanScores  # torchmetrics takes seconds

        del data
        return MeanScores(self.image_scores, self.metrics)

    def image_scores(self, outputs: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Return the score of each image of a batch, float[n] by the key of the metric.

        An image that has no score is NaN.
        """
        raise NotImplementedError

    def example(
        self, data: Any, criterion: Any, *, batch_size: int, size: int, model: str, options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Return a network's outputs, without a graph, and a batch, as a step could have them."""
        items = self.dataset(data, data.train, size=size, train=True, seed=0)
        batch = self.collate([items[i % len(items)] for i in range(batch_size)])
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            outputs = self.network(model, data, criterion, options)(batch["image"])
        return tree_map_only(Tensor, Tensor.detach, outputs), batch

    def outputs(self, criterion: Any) -> dict[str, Any]:
        """Return what a run keeps of how a network's outputs are read: plain values."""
        del criterion
        return {}

    def predictor(
        self, model: str, options: Any, facts: Mapping[str, Any], outputs: Mapping[str, Any]
    ) -> Predictor:
        """Return a network with its preprocessing, made from what a run keeps.

        Args:
            model: What the network is built from.
            options: The task's `settings`.
            facts: Of the function of that name.
            outputs: Of the function of that name.

        Raises:
            InputError: The task cannot predict, or the network cannot be built.
        """
        del model, options, facts, outputs
        raise InputError(f"the task {self.name} cannot predict: it has no `predictor`")

    def draw_samples(self, trained: Trained, data: Any, path: Path) -> None:
        """Draw what a network makes of some validation images; a task may have no such picture."""

    # ------------------------------------------------------------------------ measurement

    def context(self, data: Any) -> dict[str, Any]:
        """Return what measurements need to know of the training data: numbers, texts, lists."""
        del data
        return {}

    def measure(
        self,
        trained: Trained,
        data: Any,
        samples: Sequence[Any],
        *,
        context: Mapping[str, Any],
        keep: int,
    ) -> Any:
        """Measure a network on samples, each image whole.

        Args:
            trained: The network.
            data: That was opened.
            samples: Such as `data.test`.
            context: Of the function of that name.
            keep: Of how many images what was predicted may be kept.
        """
        del context, keep
        items = self.dataset(data, samples, size=1, train=False, seed=0)
        found: dict[str, list[float]] = {metric.key: [] for metric in self.metrics}
        for place in range(len(samples)):
            batch = self.collate([items[place]])
            batch = tree_map_only(Tensor, lambda tensor: tensor.to(trained.device), batch)
            for key, scores in self.image_scores(trained.outputs(batch["image"]), batch).items():
                found[key].append(float(scores[0]))
        names = np.array([sample.name for sample in samples], dtype=np.str_)
        return {"names": names, **{key: np.array(values) for key, values in found.items()}}

    def to_arrays(self, measured: Any) -> Mapping[str, NDArray[Any]]:
        """Return a measurement as arrays by name, to be saved."""
        return dict(measured)

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> Any:
        """Return a measurement that was saved.

        Raises:
            ValueError: It is damaged, or of another version.
        """
        if "names" not in arrays:
            raise ValueError("it has no names of images")
        return dict(arrays)

    def names(self, measured: Any) -> tuple[str, ...]:
        """Return the names of the images."""
        return tuple(measured["names"].tolist())

    def parts(self, measured: Any) -> tuple[str, ...]:
        """Return what is scored one by one besides the whole, such as the classes."""
        del measured
        return ()

    def per_image(
        self, measured: Any, metric: Metric, part: str | None = None
    ) -> NDArray[np.float64]:
        """Return the score of each image, float64[images], NaN where it has none."""
        del part
        return np.asarray(measured[metric.key], dtype=np.float64)

    def score(
        self, measured: Sequence[Any], metric: Metric, pooling: Pooling, part: str | None = None
    ) -> Scored:
        """Return the score of one or more networks as a functional of weighted images."""
        del pooling
        return mean_over_images([self.per_image(one, metric, part) for one in measured])

    def summary(self, data: Any, samples: Sequence[Any]) -> SplitSummary:
        """Return what the truth of a split holds, before anything is trained."""
        del data
        return SplitSummary(images=len(samples))

    def summary_of(self, measured: Any) -> SplitSummary:
        """Return the same of a split that was measured."""
        scores = self.per_image(measured, self.metrics[0])
        there = int((~np.isnan(scores)).sum())
        return SplitSummary(images=there, unscored=len(scores) - there)

    # ----------------------------------------------------------------------------- report

    def advise(self, data: Any, *, size: int) -> Iterable[Candidate]:
        """Propose losses for the data (`--loss auto`).

        Args:
            data: That was opened.
            size: Side of the training squares.
        """
        del data, size
        return ()

    def keep_artifacts(self, finished: Finished) -> Iterable[str]:
        """Keep in the comparison's folder what the report shows; say what could not be made."""
        del finished
        return ()

    def details(self, evidence: Evidence) -> tuple[Any, ...]:
        """Return what `results.jsonl` says of each loss besides its scores: a dataclass or dict."""
        return tuple({} for _ in evidence.losses)

    def sections(self, evidence: Evidence, details: Sequence[Any]) -> Iterator[Section]:
        """Return what the report shows besides the scores.

        Args:
            evidence: What the trials left behind.
            details: Of the function of that name.
        """
        del evidence, details
        return iter(())
