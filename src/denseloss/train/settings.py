"""What the user asks of a run. These classes are the command line: each option is written once."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from denseloss.data.errors import InputError

Accelerator = Literal["auto", "cpu", "cuda", "mps"]
Logger = Literal["none", "tensorboard", "wandb", "mlflow"]
Precision = Literal["auto", "bf16-mixed", "16-mixed", "32-true"]

MOST = 10**9
"""Above this a count is a slip of the hand."""
_MOST_PROCESSES = 1024
_SEEDS = 2**63
"""What torch takes."""


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """What every training run is asked, alone or in a comparison.

    Attributes:
        data: A folder of images and masks, a Pascal VOC folder, or synthetic:NAME.
        task: What is trained: a task of denseloss, or file.py:Name of your own; auto looks at the
            data.
        out: Where the results go.
        steps: How many steps to train; by default 500.
        epochs: How many passes over the training images instead.
        size: Side of the training squares in pixels; by default up to 192, as the images allow.
        batch_size: Images per step and device; by default 8.
        accumulate: Parts in which each batch goes through the network; the gradient is the same.
        weight_decay: Weight decay of AdamW.
        average: Decay of an average of the weights, such as 0.999, which is then what is
            validated; 0 for none.
        model: The network; for segmentation dynunet, smp:ARCH:ENCODER
            (segmentation-models-pytorch), or file.py:name of your own: a function of the numbers of
            input channels and outputs that returns a Module, which gives logits [n c h w].
        weights: What the network starts from: a file of weights, such as best.ckpt of a run, or
            imagenet with smp:ARCH:ENCODER; by default random weights.
        val_share: Share of the images to validate on where the data has no split.
        test_share: Share of the images to hold out where the data has no test split.
        val_every: Steps between validations; by default about 20 validations in all.
        precision: Of the network; losses are always computed in float32.
        accelerator: What to train on.
        options: The task's own options, an instance of its `settings`.
    """

    data: str = "synthetic:blobs"
    task: str = "auto"
    out: Path | None = None
    steps: int | None = None
    epochs: int | None = None
    size: int | None = None
    batch_size: int | None = None
    accumulate: int = 1
    weight_decay: float = 1e-4
    average: float | None = None
    model: str | None = None
    weights: str | None = None
    val_share: float = 0.2
    test_share: float = 0.0
    val_every: int | None = None
    precision: Precision = "auto"
    accelerator: Accelerator = "auto"
    options: Any = None


@dataclass(frozen=True, kw_only=True)
class TrainSettings(TrialSettings):
    """Train a network on your data with the loss you name.

    A run that was interrupted goes on when the same command is given again.

    Attributes:
        loss: Weighted sum of losses, such as "dice + 0.5*focal(gamma=2)". `denseloss ls` lists
            them; file.py:name is one of your own. By default the task's: cross_entropy + dice for
            segmentation.
        out: Run folder; by default runs/DATA-LOSS-SEED.
        seed: Decides weights, order, augmentation, and the split where the data has none.
        minutes: How many minutes to train instead of steps; the steps are planned by timing a few.
        lr: Highest learning rate of AdamW; by default the task's: 0.005 for dynunet, 0.002 for smp.
        split_seed: Decides the split where the data has none; by default the seed does.
        patience: Stop after this many validations without a better score.
        workers: Processes that load images; by default as many as there are cores to spare.
        threads: Threads of torch; by default 1 on a CPU, which is the fastest for small networks.
        devices: How many devices, or which (0,3).
        logger: A logger besides metrics.csv.
    """

    loss: str | None = None
    seed: int = 0
    minutes: float | None = None
    lr: float | None = None
    split_seed: int | None = None
    patience: int | None = None
    workers: int | None = None
    threads: int | None = None
    devices: str = "1"
    logger: Logger = "none"


def command(verb: str, settings: TrialSettings) -> str:
    """Return the command line that asks for the same."""
    return shlex.join(
        ["denseloss", verb, settings.data, *given(settings), *given(settings.options)]
    )


def given(options: Any) -> Iterator[str]:
    """Yield the words of a command line for all options that differ from their defaults."""
    for field in fields(options) if options is not None else ():
        value = getattr(options, field.name)
        if value == field.default or field.name in ("data", "options"):
            continue
        for one in value if isinstance(value, tuple) else (value,):
            yield f"--{field.name.replace('_', '-')}"
            if one is not True:
                yield str(one)


def check_trial(settings: TrialSettings) -> None:
    """Refuse what no run can take, before anything is looked at.

    Raises:
        InputError: With the option, what it takes and what came.
    """
    one_of(settings, "steps", "epochs")
    counts(settings, "steps", "epochs", "size", "batch_size", "accumulate", "val_every")
    if not 0 <= settings.weight_decay < float("inf"):
        raise InputError(f"--weight-decay {settings.weight_decay:g}: must be 0 or larger")
    if settings.average is not None and not 0 <= settings.average < 1:
        raise InputError(f"--average {settings.average:g}: must be 0 or larger, and below 1")
    if not 0 < settings.val_share < 1:
        raise InputError(f"--val-share {settings.val_share:g}: must lie between 0 and 1")
    if not 0 <= settings.test_share < 1 - settings.val_share:
        raise InputError(
            f"--test-share {settings.test_share:g}: must lie between 0 and "
            f"{1 - settings.val_share:g}, the rest beside --val-share"
        )


def check_train(settings: TrainSettings) -> None:
    """Refuse what cannot be, before anything is looked at.

    Raises:
        InputError: With the option, what it takes and what came.
    """
    check_trial(settings)
    one_of(settings, "steps", "epochs", "minutes")
    positive(settings, "minutes", "lr")
    counts(settings, "patience")
    counts(settings, "threads", most=_MOST_PROCESSES)
    seeds(settings, "seed", "split_seed")
    processes(settings, "workers")
    world_size(settings.devices)
    if settings.minutes is not None and settings.devices != "1":
        raise InputError("--minutes works with one device; give --steps or --epochs with several")


def one_of(settings: Any, *names: str) -> None:
    """Refuse two options that say the same thing."""
    given = [_option(name) for name in names if getattr(settings, name) is not None]
    if len(given) > 1:
        raise InputError(f"{given[0]} and {given[1]} both say how long to train; give one")


def positive(settings: Any, *names: str) -> None:
    """Refuse numbers that are not above 0."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not 0 < value < float("inf"):
            shown = value if isinstance(value, int) else f"{value:g}"
            raise InputError(f"{_option(name)} {shown}: must be larger than 0, and finite")


def counts(settings: Any, *names: str, most: int = MOST) -> None:
    """Refuse counts that are below 1, or absurd."""
    positive(settings, *names)
    for name in names:
        _refuse_above(settings, name, most)


def seeds(settings: Any, *names: str) -> None:
    """Refuse what is no seed."""
    for name in names:
        _refuse_negative(settings, name)
        _refuse_above(settings, name, _SEEDS - 1)


def processes(settings: Any, *names: str) -> None:
    """Refuse numbers of processes that are below 0, or absurd."""
    for name in names:
        _refuse_negative(settings, name)
        _refuse_above(settings, name, _MOST_PROCESSES)


def _refuse_negative(settings: Any, name: str) -> None:
    value = getattr(settings, name)
    if value is not None and value < 0:
        raise InputError(f"{_option(name)} {value}: must be 0 or larger")


def _refuse_above(settings: Any, name: str, most: int) -> None:
    value = getattr(settings, name)
    if value is not None and value > most:
        raise InputError(f"{_option(name)} {value}: must be at most {most}")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def world_size(devices: str) -> int:
    """Return on how many devices each step is made.

    Raises:
        InputError: It is neither a number nor a list.
    """
    if devices.isdecimal():
        if int(devices) < 1:
            raise InputError(f"--devices {devices}: must be 1 or larger")
        return int(devices)
    if all(part.strip().isdecimal() for part in devices.split(",")):
        return len(devices.split(","))
    raise InputError(f"--devices {devices}: give a number (2) or a list (0,3)")


def data_name(data: str) -> str:
    """Return what the data is called in the name of a folder."""
    name = data.partition("?")[0] if "synthetic:" in data else data
    return slug(Path(name).resolve().name)


def slug(text: str) -> str:
    """Return a text as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")
