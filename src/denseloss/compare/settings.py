"""What the user asks of a comparison."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from denseloss.data.errors import InputError
from denseloss.train.settings import (
    TrialSettings,
    check_trial,
    counts,
    data_name,
    one_of,
    positive,
    processes,
    seeds,
)

EngineName = Literal["local", "ray"]

_MOST_SEEDS = 1000
_MOST_RATES = 100
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, kw_only=True)
class CompareSettings(TrialSettings):
    """Train with several losses, several seeds each, and report which one suits the data.

    Every trial is a run of `denseloss train` in a folder of its own. A comparison that was
    interrupted goes on when the same command is given again; losses, seeds and learning rates can
    be added to one that is finished.

    Attributes:
        loss: Weighted sum of losses, of which file.py:name is one of your own; give it several
            times. auto proposes losses for the data, each with its reason.
        out: The comparison's folder; by default runs/compare-DATA.
        seeds: Networks to train with each loss.
        lr: How many learning rates every loss tries, the default in the middle; the best on
            validation is taken.
        lr_seeds: On how many of the seeds they are tried.
        base_lr: The learning rate in the middle; by default the task's: 0.005 for dynunet, 0.002
            for smp.
        budget: Time for all trials instead of steps, such as 30m or 1h30m; the steps are planned by
            timing a few.
        test_share: Share of the images to hold out where the data has no test split.
        split_seed: Decides the split where the data has none; the same for all trials.
        metric: What the verdict is about; for segmentation dice, iou, precision, recall, f2,
            boundary_f or hd95, by default dice.
        pooled: Judge all held-out images together, not image by image.
        effect: The smallest difference that matters to you; by default 0.01, or 1 pixel.
        level: Of confidence: in the intervals, and in what is ruled out.
        engine: Processes on this machine, or a Ray cluster with a shared file system.
        jobs: Trials at a time; by default one per GPU, or one per core.
        address: Of the Ray cluster; without it Ray starts on this machine.
        retry: Run trials again whose loss became NaN or infinite.
        workers: Processes that load images, for each trial.
    """

    loss: tuple[str, ...] = ()
    seeds: int = 5
    lr: int = 3
    lr_seeds: int = 1
    base_lr: float | None = None
    budget: str | None = None
    test_share: float = 0.2
    split_seed: int = 0
    metric: str | None = None
    pooled: bool = False
    effect: float | None = None
    level: float = 0.95
    engine: EngineName = "local"
    jobs: int | None = None
    address: str | None = None
    retry: bool = False
    workers: int = 0


def check_compare(settings: CompareSettings) -> None:
    """Refuse what cannot be, before anything is looked at.

    Raises:
        InputError: With the option, what it takes and what came.
    """
    if not settings.loss:
        raise InputError(
            '--loss is missing; give two or more, such as --loss "cross_entropy" '
            '--loss "cross_entropy + dice", or --loss auto'
        )
    for name in ("seeds", "lr", "lr_seeds", "jobs"):
        count = getattr(settings, name)
        if count is not None and count < 1:
            raise InputError(f"--{name.replace('_', '-')} {count}: must be 1 or larger")
    counts(settings, "seeds", "lr_seeds", most=_MOST_SEEDS)
    counts(settings, "lr", most=_MOST_RATES)
    processes(settings, "jobs", "workers")
    positive(settings, "base_lr", "effect")
    seeds(settings, "split_seed")
    one_of(settings, "steps", "epochs", "budget")
    if settings.budget is not None and seconds(settings.budget) <= 0:
        raise InputError("--budget: must be longer than nothing, such as 30m")
    if not 0.5 <= settings.level < 1:
        raise InputError(f"--level {settings.level:g}: must lie between 0.5 and 1, such as 0.95")
    if settings.lr_seeds > settings.seeds:
        raise InputError(
            f"--lr-seeds {settings.lr_seeds}: there are only {settings.seeds} seeds (--seeds)"
        )
    if settings.address is not None and settings.engine != "ray":
        raise InputError("--address is of a Ray cluster; give --engine ray, too")
    check_trial(settings)


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
    return Path("runs") / f"compare-{data_name(settings.data)}"
