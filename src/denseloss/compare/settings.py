"""What the user asks of a comparison."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from denseloss.data.samples import Task
from denseloss.train import InputError, TrainSettings
from denseloss.train.settings import Precision, check_settings, slug

EngineName = Literal["local", "ray"]

# Neighbouring learning rates are this factor apart: three of them span a decade.
LR_FACTOR = 10**0.5
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """What the user asks for; None is left to the tool, which says what it chose.

    Attributes:
        data: As in `denseloss train`, and so is all that is not named here.
        losses: Expressions; the first is the baseline. `"auto"` proposes some.
        out: The comparison's folder.
        seeds: How many networks are trained with each loss.
        lr: How many learning rates every loss may try.
        lr_seeds: On how many of the seeds it tries them.
        base_lr: The rate in the middle; None for the one that `denseloss train` takes.
        steps: Training steps of each trial.
        epochs: Passes over the training images instead.
        budget: Seconds for all trials together instead.
        test_share: Share of the images to hold out where the folder has no test split.
        split_seed: Decides the split where the folder has none; the same for all trials.
        metric: Key of the metric of the verdict.
        pooled: Whether the verdict is about all held-out pixels together, not about images.
        effect: The smallest difference that matters in the metric of the verdict; None for 0.01,
            or 1 pixel.
        level: Of the confidence intervals; a difference counts as shown where the corrected p is
            below one minus it.
        engine: Where the trials run.
        jobs: How many at a time; None for one per GPU, or one per core.
        address: Of the Ray cluster; None starts Ray on this machine.
        retry: Whether trials are run again that failed for a reason of their own.
    """

    data: str
    losses: tuple[str, ...]
    out: Path | None = None
    seeds: int = 5
    lr: int = 3
    lr_seeds: int = 1
    base_lr: float | None = None
    steps: int | None = None
    epochs: int | None = None
    budget: float | None = None
    size: int | None = None
    batch_size: int = 8
    weight_decay: float = 1e-4
    model: str = "dynunet"
    deep_supervision: bool = False
    task: Task | None = None
    classes: tuple[str, ...] | int | None = None
    ignore_index: int | None = None
    val_share: float = 0.2
    test_share: float = 0.2
    split_seed: int = 0
    val_every: int | None = None
    precision: Precision = "auto"
    accelerator: str = "auto"
    workers: int = 0
    metric: str = "dice"
    pooled: bool = False
    effect: float | None = None
    level: float = 0.95
    engine: EngineName = "local"
    jobs: int | None = None
    address: str | None = None
    retry: bool = False

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """Return the settings that were written as JSON or TOML, which know no tuple and no path.

        Raises:
            TypeError: A value is of no setting.
        """
        known = dict(values)
        for name in ("losses", "classes"):
            if isinstance(known.get(name), list):
                known[name] = tuple(known[name])
        if known.get("out") is not None:
            known["out"] = Path(known["out"])
        return cls(**known)

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that every loss tries.

        Raises:
            TypeError: `base_lr` is not decided yet.
        """
        if self.base_lr is None:
            raise TypeError("base_lr is not decided")
        return learning_rates(self.base_lr, self.lr)

    @property
    def trials(self) -> int:
        """How many trials there are, if every loss has a learning rate that can be used."""
        return len(self.losses) * (self.lr * self.lr_seeds + self.seeds - self.lr_seeds)

    def trial(self, *, loss: str, seed: int = 0, lr: float | None = None) -> TrainSettings:
        """Return the settings of the training run of a trial."""
        return TrainSettings(
            data=self.data,
            loss=loss,
            seed=seed,
            steps=self.steps,
            epochs=self.epochs,
            size=self.size,
            batch_size=self.batch_size,
            lr=self.base_lr if lr is None else lr,
            weight_decay=self.weight_decay,
            val_every=self.val_every,
            val_share=self.val_share,
            test_share=self.test_share,
            split_seed=self.split_seed,
            model=self.model,
            deep_supervision=self.deep_supervision,
            task=self.task,
            classes=self.classes,
            ignore_index=self.ignore_index,
            workers=self.workers,
            threads=1,
            precision=self.precision,
            accelerator=self.accelerator,
        )


def check(settings: CompareSettings, *, metrics: Sequence[str]) -> None:
    """Refuse what cannot be, before anything is looked at.

    Raises:
        InputError: With the option, what it takes and what came.
    """
    if not settings.losses:
        raise InputError(
            '--loss is missing; give two or more, such as --loss "cross_entropy" '
            '--loss "cross_entropy + dice", or --loss auto'
        )
    counts = {
        "seeds": settings.seeds,
        "lr": settings.lr,
        "lr-seeds": settings.lr_seeds,
        "jobs": settings.jobs,
    }
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"--{name} {count}: must be 1 or larger")
    positive = {"base-lr": settings.base_lr, "effect": settings.effect}
    for name, value in positive.items():
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name} {value:g}: must be larger than 0")
    budgets = {"steps": settings.steps, "epochs": settings.epochs, "budget": settings.budget}
    given = [name for name, value in budgets.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"--{given[0]} and --{given[1]} both say how long to train; give one")
    if settings.budget is not None and settings.budget <= 0:
        raise InputError("--budget: must be longer than nothing, such as 30m")
    if not 0.5 <= settings.level < 1:
        raise InputError(f"--level {settings.level:g}: must lie between 0.5 and 1, such as 0.95")
    if settings.metric not in metrics:
        raise InputError(f"--metric {settings.metric}: there are {', '.join(metrics)}")
    if settings.lr_seeds > settings.seeds:
        raise InputError(
            f"--lr-seeds {settings.lr_seeds}: there are only {settings.seeds} seeds (--seeds)"
        )
    if settings.address is not None and settings.engine != "ray":
        raise InputError("--address is of a Ray cluster; give --engine ray, too")
    check_settings(settings.trial(loss=settings.losses[0]))


def learning_rates(middle: float, count: int) -> tuple[float, ...]:
    """Return so many rates around one, the middle one first, then the nearest, lower first.

    All but the middle one have two digits, so that their names are short: 0.005, 0.0016, 0.016.
    """
    places = [sign * distance for distance in range(1, count) for sign in (-1, 1)]
    others = (float(f"{middle * LR_FACTOR**place:.2g}") for place in places[: count - 1])
    return (middle, *others)


def seconds(text: str) -> float:
    """Return the seconds of a time such as `90s`, `30m`, `1.5h` or `1h30m`.

    Raises:
        InputError: It is no such time.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not parts or "".join(a + b for a, b in parts) != text:
        raise InputError(f"--budget {text}: write a time such as 30m, 1.5h or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def default_out(settings: CompareSettings) -> Path:
    """Return the folder of a comparison for which none was named."""
    synthetic = settings.data.startswith("synthetic:")
    name = settings.data.partition("?")[0] if synthetic else Path(settings.data).resolve().name
    return Path("runs") / f"compare-{slug(name)}"
