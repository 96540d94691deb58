"""What the user asks of a run, and what the tool decides where nothing was asked."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn

from denseloss.data import SegmentationData
from denseloss.data.samples import Task
from denseloss.train.criterion import TaskCriterion
from denseloss.train.errors import InputError
from denseloss.train.models import parameter_count
from denseloss.train.segmentation import Schedule, steps_per_epoch

LoggerName = Literal["none", "tensorboard", "wandb", "mlflow"]
Precision = Literal["auto", "bf16-mixed", "16-mixed", "32-true"]

DEFAULT_STEPS = 500
VALIDATIONS = 20

# Measured on budgets of some hundred steps. Instance norm makes DynUNet indifferent to the scale of
# its weights, so that it takes, and needs, large steps.
_LR = {"dynunet": 5e-3, "smp": 2e-3}
_SIZE_STEP = 32
_MUCH_SMALLER = 4
_SIZE_RANGE = (64, 192)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What the user asks for; None is left to the tool, which says what it chose."""

    data: str
    loss: str
    out: Path | None = None
    seed: int = 0
    steps: int | None = None
    epochs: int | None = None
    minutes: float | None = None
    size: int | None = None
    batch_size: int = 8
    accumulate: int = 1
    lr: float | None = None
    weight_decay: float = 1e-4
    val_every: int | None = None
    val_share: float = 0.2
    test_share: float = 0.0
    split_seed: int | None = None
    patience: int | None = None
    model: str = "dynunet"
    deep_supervision: bool = False
    task: Task | None = None
    classes: tuple[str, ...] | int | None = None
    ignore_index: int | None = None
    workers: int | None = None
    threads: int | None = None
    precision: Precision = "auto"
    accelerator: str = "auto"
    devices: str = "1"
    logger: LoggerName = "none"


def check_settings(settings: TrainSettings) -> None:
    """Refuse what cannot be, before anything is looked at."""
    budgets = {"steps": settings.steps, "epochs": settings.epochs, "minutes": settings.minutes}
    given = [name for name, value in budgets.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"--{given[0]} and --{given[1]} both say how long to train; give one")
    positive = {
        **budgets,
        "size": settings.size,
        "batch-size": settings.batch_size,
        "accumulate": settings.accumulate,
        "lr": settings.lr,
        "val-every": settings.val_every,
        "patience": settings.patience,
        "threads": settings.threads,
    }
    for name, value in positive.items():
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name} {value:g}: must be larger than 0")
    whole = {"seed": settings.seed, "split-seed": settings.split_seed, "workers": settings.workers}
    for name, value in whole.items():
        if value is not None and value < 0:
            raise InputError(f"--{name} {value}: must be 0 or larger")
    if not 0 <= settings.weight_decay < float("inf"):
        raise InputError(f"--weight-decay {settings.weight_decay:g}: must be 0 or larger")
    if not 0 < settings.val_share < 1:
        raise InputError(f"--val-share {settings.val_share:g}: must lie between 0 and 1")
    if not 0 <= settings.test_share < 1 - settings.val_share:
        raise InputError(
            f"--test-share {settings.test_share:g}: must lie between 0 and "
            f"{1 - settings.val_share:g}, the rest beside --val-share"
        )
    if settings.accumulate > settings.batch_size:
        raise InputError(
            f"--accumulate {settings.accumulate}: a batch of {settings.batch_size} images has no "
            "more parts than images"
        )
    if settings.minutes is not None and settings.devices != "1":
        raise InputError("--minutes works with one device; give --steps or --epochs with several")


def default_out(settings: TrainSettings) -> Path:
    """Return the run folder of a run for which none was named."""
    name = settings.data.partition("?")[0] if "synthetic:" in settings.data else settings.data
    parts = (Path(name).resolve().name, settings.loss[:80], str(settings.seed))
    return Path("runs") / "-".join(slug(part) for part in parts)


def slug(text: str) -> str:
    """Return a text as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def accelerator_here(asked: str) -> str:
    """Return the accelerator that is asked for; `"auto"` is the best there is."""
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolved(settings: TrainSettings, data: SegmentationData) -> TrainSettings:
    """Decide all that can be decided without a clock."""
    cpus = cores()
    accelerator = accelerator_here(settings.accelerator)
    if (accelerator == "cuda" and not torch.cuda.is_available()) or (
        accelerator == "mps" and not torch.backends.mps.is_available()
    ):
        raise InputError(f"--accelerator {accelerator}: torch {torch.__version__} finds none here")
    settings = replace(
        settings,
        accelerator=accelerator,
        precision=_precision(settings.precision, accelerator),
        size=settings.size or _size(data),
        lr=settings.lr or _LR.get(settings.model.partition(":")[0], 5e-3),
        workers=min(4, cpus - 1) if settings.workers is None else settings.workers,
        # Measured: small networks train several times faster with one thread than with many.
        threads=settings.threads or (1 if accelerator == "cpu" else min(4, cpus)),
    )
    if settings.minutes is None:
        images = settings.batch_size * world_size(settings)
        epoch = steps_per_epoch(len(data.train), images)
        steps = settings.epochs * epoch if settings.epochs else settings.steps or DEFAULT_STEPS
        settings = replace(settings, steps=steps)
    return settings


def _precision(asked: Precision, accelerator: str) -> Precision:
    if asked == "16-mixed" and accelerator == "cpu":
        raise InputError("--precision 16-mixed: a CPU has no such training; use bf16-mixed")
    if asked != "auto":
        return asked
    if accelerator in ("cuda", "gpu"):
        return (
            "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
        )
    if accelerator == "cpu":
        features: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        fast = features.get("avx512_bf16") or features.get("amx_bf16")
        return "bf16-mixed" if fast else "32-true"
    return "32-true"


def _size(data: SegmentationData) -> int:
    """Return the side of the training squares that most images can fill."""
    low, high = _SIZE_RANGE
    return max(low, min(high, _usual_side(data) // _SIZE_STEP * _SIZE_STEP))


def _usual_side(data: SegmentationData) -> int:
    """Return the median of the images' shorter sides."""
    sides = sorted(min(size) for size, count in data.sizes.items() for _ in range(count))
    return sides[len(sides) // 2]


def world_size(settings: TrainSettings) -> int:
    """Return on how many devices each step is made."""
    if settings.devices.isdecimal():
        return max(1, int(settings.devices))
    if "," in settings.devices:
        return len(settings.devices.split(","))
    raise InputError(f"--devices {settings.devices}: give a number (2) or a list (0,3)")


def with_validations(settings: TrainSettings, *, images: int) -> TrainSettings:
    """Decide how often to validate, once the number of steps is known."""
    steps = cast(int, settings.steps)
    if settings.val_every is not None:
        return replace(settings, val_every=min(settings.val_every, steps))
    every = min(steps, max(10, round(steps / VALIDATIONS)))
    epoch = steps_per_epoch(images, settings.batch_size * world_size(settings))
    # Whole epochs, where an epoch is short enough for that.
    if every >= epoch:
        every = every // epoch * epoch
    return replace(settings, val_every=every)


def plan_lines(
    settings: TrainSettings,
    data: SegmentationData,
    model: nn.Module,
    criterion: TaskCriterion,
) -> Iterator[str]:
    """Say in plain words what is going to be done."""
    heads = " with deep supervision" if settings.deep_supervision else ""
    millions = parameter_count(model) / 1e6
    yield f"model: {settings.model}{heads}, {millions:.2f} million parameters, random weights"
    yield f"loss: {settings.loss}"
    yield from (f"  {note}" for note in criterion.notes)
    epoch = steps_per_epoch(len(data.train), settings.batch_size * world_size(settings))
    epochs = cast(int, settings.steps) / epoch
    yield (
        f"budget: {settings.steps} steps of {settings.batch_size * world_size(settings)} images "
        f"({epochs:.4g} epochs), validation every {settings.val_every} steps"
        + (f", each in {settings.accumulate} parts" if settings.accumulate > 1 else "")
        + (f", at most {settings.minutes:g} minutes" if settings.minutes else "")
    )
    yield (
        f"training: squares of {settings.size} pixels; AdamW, learning rate {settings.lr:g} "
        f"(warm-up, then cosine to 0), weight decay {settings.weight_decay:g}; seed {settings.seed}"
    )
    side = _usual_side(data)
    if settings.size is not None and settings.size * _MUCH_SMALLER <= side:
        yield (
            f"  note: images of {side} pixels are seen in squares of {settings.size}; classes that "
            f"are told apart by their surroundings need more, such as --size {side // 2}"
        )
    yield (
        f"machine: {settings.accelerator}, {settings.devices} device(s), precision "
        f"{settings.precision} (losses in float32), {settings.threads} thread(s), "
        f"{settings.workers} loading worker(s)"
    )


def schedule_of(settings: TrainSettings) -> Schedule:
    """Return the planned optimisation of settings that are resolved."""
    return Schedule(
        steps=cast(int, settings.steps),
        val_every=cast(int, settings.val_every),
        lr=cast(float, settings.lr),
        weight_decay=settings.weight_decay,
    )
