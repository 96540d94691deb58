"""Settings become the plan of a comparison, once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from denseloss.compare.settings import CompareSettings
from denseloss.compose import short_names
from denseloss.data.errors import InputError
from denseloss.tasks import Candidate, Metric, Pooling, Task, named
from denseloss.train.plan import TrainPlan, typed

# Neighbouring learning rates are this factor apart: three of them span a decade.
LR_FACTOR = 10**0.5

# What `compare.toml` has of what was asked.
_ASKED: Mapping[str, Any] = {
    "losses": list, "seeds": int, "rates": list, "lr_seeds": int, "budget": str, "metric": str,
    "pooling": str, "effect": float, "level": float,
}  # fmt: skip
# What one trial has and another has not.
_OWN = ("loss", "seed", "lr")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run: a loss, a seed, a learning rate."""

    loss: str
    seed: int
    lr: float


@dataclass(frozen=True, kw_only=True)
class ComparePlan:
    """A whole comparison, as `compare.toml` holds it.

    Attributes:
        common: A trial's plan, with the loss of the baseline and the middle learning rate.
        candidates: The losses, the baseline first.
        seeds: How many networks are trained with each loss.
        rates: The learning rates that every loss tries, the middle one first.
        lr_seeds: On how many of the seeds it tries them.
        budget: The time that was asked for, as text; empty where steps were.
        metric: Key of the metric of the verdict.
        pooling: How its score is taken.
        effect: The smallest difference that matters in it.
        level: Of the confidence intervals; a difference counts as shown where the corrected p is
            below one minus it.
    """

    common: TrainPlan
    candidates: tuple[Candidate, ...]
    seeds: int
    rates: tuple[float, ...]
    lr_seeds: int
    budget: str
    metric: str
    pooling: Pooling
    effect: float
    level: float

    @property
    def losses(self) -> tuple[str, ...]:
        """The expressions."""
        return tuple(candidate.loss for candidate in self.candidates)

    @property
    def names(self) -> dict[str, str]:
        """What people read in place of each expression: code of their own without its path."""
        return dict(zip(self.losses, short_names(self.losses), strict=True))

    @property
    def trials(self) -> int:
        """How many trials there are, if every loss has a learning rate that can be used."""
        tried = len(self.rates) * self.lr_seeds
        return len(self.candidates) * (tried + self.seeds - self.lr_seeds)

    @property
    def task(self) -> Task:
        """The task of the data."""
        return named(self.common.task)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All metrics of the task, that of the verdict first."""
        return tuple(sorted(self.task.metrics, key=lambda metric: metric.key != self.metric))

    def effect_of(self, metric: Metric) -> float:
        """Return the smallest difference that matters in a metric."""
        return self.effect if metric.key == self.metric else metric.effect

    def of(self, trial: Trial) -> TrainPlan:
        """Return the plan of one trial."""
        return replace(self.common, loss=trial.loss, seed=trial.seed, lr=trial.lr)

    def to_tables(self) -> dict[str, dict[str, Any]]:
        """Return plain values: what may change when it goes on, and what may not."""
        common = {k: v for k, v in self.common.to_table().items() if k not in _OWN}
        return {
            "asked": {
                "losses": list(self.losses),
                "seeds": self.seeds,
                "rates": list(self.rates),
                "lr_seeds": self.lr_seeds,
                "budget": self.budget,
                "metric": self.metric,
                "pooling": self.pooling,
                "effect": self.effect,
                "level": self.level,
            },
            "reasons": {c.loss: c.reason for c in self.candidates if c.reason},
            # The rates around it may become more, the middle one stays.
            "common": {**common, "base_lr": self.common.lr},
        }

    @classmethod
    def from_tables(cls, tables: Mapping[str, Any]) -> "ComparePlan":
        """Read `to_tables`.

        Raises:
            KeyError: A value is missing.
            TypeError: A value is another thing.
        """
        asked, reasons = tables["asked"], tables.get("reasons", {})
        for key, kind in _ASKED.items():
            typed(asked, key, kind)
        for key, kind in (("losses", str), ("rates", float)):
            if not asked[key]:
                raise TypeError(f"{key} is empty")
            for one in asked[key]:
                typed({key: one}, key, kind)
        common = dict(tables["common"])
        own = {"loss": asked["losses"][0], "seed": 0, "lr": common.pop("base_lr")}
        return cls(
            common=TrainPlan.from_table({**common, **own}),
            candidates=tuple(Candidate(x, reasons.get(x, "")) for x in asked["losses"]),
            seeds=asked["seeds"],
            rates=tuple(asked["rates"]),
            lr_seeds=asked["lr_seeds"],
            budget=asked["budget"],
            metric=asked["metric"],
            pooling=asked["pooling"],
            effect=asked["effect"],
            level=asked["level"],
        )


def metric_of(settings: CompareSettings, metrics: Sequence[Metric]) -> Metric:
    """Return the metric of the verdict, the first of the task's where none is named.

    Raises:
        InputError: The task has no such metric, or it is not pooled.
    """
    metric = next((m for m in metrics if settings.metric in (None, m.key)), None)
    if metric is None:
        there = ", ".join(m.key for m in metrics)
        raise InputError(f"--metric {settings.metric}: there are {there}")
    if settings.pooled and "pooled" not in metric.poolings:
        raise InputError(f"--pooled: {metric.key} is of single images; leave it out")
    return metric


def plan_of(
    settings: CompareSettings, common: TrainPlan, candidates: Sequence[Candidate], metric: Metric
) -> ComparePlan:
    """Put together what was asked and what was decided.

    Args:
        settings: What was asked.
        common: The plan of a trial, with everything decided.
        candidates: The losses, the baseline first.
        metric: Of the verdict.
    """
    return ComparePlan(
        common=replace(common, loss=candidates[0].loss, seed=0),
        candidates=tuple(candidates),
        seeds=settings.seeds,
        rates=learning_rates(common.lr, settings.lr),
        lr_seeds=settings.lr_seeds,
        budget=settings.budget or "",
        metric=metric.key,
        pooling="pooled" if settings.pooled else "image",
        effect=settings.effect or metric.effect,
        level=settings.level,
    )


def learning_rates(middle: float, count: int) -> tuple[float, ...]:
    """Return so many rates around one, the middle one first, then the nearest, lower first.

    All but the middle one have two digits, so that their names are short: 0.005, 0.0016, 0.016.
    """
    places = [sign * distance for distance in range(1, count) for sign in (-1, 1)]
    others = (float(f"{middle * LR_FACTOR**place:.2g}") for place in places[: count - 1])
    return (middle, *others)
