"""Settings become a plan, once: in a plan nothing is left to be decided."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import nn

from denseloss import compose
from denseloss.data.errors import InputError
from denseloss.tasks import Data, Split, Task, full_name, named, pretrained
from denseloss.train.precision import faster
from denseloss.train.schedule import Schedule, steps_per_epoch
from denseloss.train.settings import MOST, Precision, TrainSettings, TrialSettings, world_size

DEFAULT_STEPS = 500
VALIDATIONS = 20

# What the length of a step depends on, besides the machine and the precision.
_KIND = ("task", "options", "model", "size", "batch_size", "threads")
_SIZE_STEP = 32
_SIZE_RANGE = (64, 192)
_MUCH_SMALLER = 4
# Of an image in float32.
_PIXEL_BYTES = 3 * 4


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """A whole training run, as `config.toml` holds it.

    Attributes:
        data: As it was named.
        task: Its full name.
        options: The task's own, by name.
        loss: The expression, in its one form.
        weights: That the network starts from: a file, or their name; empty for random ones.
        weights_digest: Of the contents of the file.
        minutes: After which to stop, 0 for no such limit; the steps are planned for it.
        patience: Validations without a better score after which to stop, 0 for no such limit.
    """

    data: str
    task: str
    options: Mapping[str, Any]
    loss: str
    seed: int
    split_seed: int
    val_share: float
    test_share: float
    steps: int
    val_every: int
    minutes: float
    patience: int
    size: int
    batch_size: int
    accumulate: int
    lr: float
    weight_decay: float
    average: float
    model: str
    weights: str
    weights_digest: str
    accelerator: str
    devices: str
    precision: str
    threads: int
    workers: int
    logger: str

    @property
    def schedule(self) -> Schedule:
        """The planned optimisation."""
        return Schedule(
            steps=self.steps,
            val_every=self.val_every,
            lr=self.lr,
            weight_decay=self.weight_decay,
        )

    @property
    def images_per_step(self) -> int:
        """Of all devices."""
        return self.batch_size * world_size(self.devices)

    def to_table(self) -> dict[str, Any]:
        """Return plain values, as TOML and JSON take them."""
        return asdict(self)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "TrainPlan":
        """Read `to_table`.

        Raises:
            KeyError: A value is missing.
            TypeError: A value is another thing.
        """
        kinds = get_type_hints(cls)
        return cls(**{f.name: typed(table, f.name, kinds[f.name]) for f in fields(cls)})

    def with_steps(self, steps: int, *, images: int, every: int | None) -> "TrainPlan":
        """Return the plan with other steps, and as many validations as they deserve.

        Args:
            steps: To train.
            images: To train on.
            every: Steps between validations, where the user says.
        """
        usual = validations_every(steps, images=images, per_step=self.images_per_step)
        return replace(self, steps=steps, val_every=usual if every is None else min(every, steps))


def typed(table: Mapping[str, Any], key: str, kind: Any) -> Any:
    """Return a value of a configuration that was read back.

    Raises:
        KeyError: It is missing.
        TypeError: It is another thing.
    """
    value = table[key]
    wanted: Any = {Mapping[str, Any]: dict, float: (int, float)}.get(kind, kind)
    if not isinstance(value, wanted) or isinstance(value, bool) is not (kind is bool):
        shown = getattr(kind, "__name__", str(kind))
        raise TypeError(f"{key} is {value!r}, and must be of the type {shown}")
    return value


def plan_in(config: Mapping[str, Any], file: Path) -> TrainPlan:
    """Return the plan that a run's configuration holds.

    Raises:
        InputError: It holds none.
    """
    try:
        return TrainPlan.from_table(config["settings"])
    except (KeyError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise InputError(
            f"{file}: is not what denseloss train writes ({what}); mend it, or remove the folder "
            "and train again"
        ) from None


def options_of(task: Task, settings: TrialSettings) -> Any:
    """Return the task's options, its defaults where none are given.

    Raises:
        InputError: The options are of another task.
    """
    if settings.options is None:
        return task.settings()
    if not isinstance(settings.options, task.settings):
        raise InputError(
            f"options: {task.name} takes {task.settings.__name__}, got "
            f"{type(settings.options).__name__}"
        )
    return settings.options


def read_options(plan: TrainPlan) -> Any:
    """Return the options of a plan as its task takes them."""
    return named(plan.task).settings(**plan.options)


def split_of(settings: TrainSettings) -> Split:
    """Return how the data is divided."""
    return Split(
        seed=settings.seed if settings.split_seed is None else settings.split_seed,
        val_share=settings.val_share,
        test_share=settings.test_share,
    )


def plan_of(
    settings: TrainSettings,
    task: Task,
    task_name: str,
    data: Data,
    *,
    clock: Callable[[TrainPlan], tuple[float, float]],
    known: TrainPlan | None = None,
    elsewhere: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> TrainPlan:
    """Decide all that the user left open.

    Args:
        settings: What was asked.
        task: Of the data.
        task_name: Its full name.
        data: That was opened.
        clock: Measures a step and a validation of a plan, in seconds, where that decides something.
        known: The plan of the run that is resumed: what was measured for it stays.
        elsewhere: Whether it runs on other machines, whose accelerators are not known here.
        say: Told what is odd about the plan, and what takes a while.

    Raises:
        InputError: Something cannot be.
    """
    defaults = task.defaults
    cpus = cores()
    accelerator: str = settings.accelerator
    if not elsewhere or accelerator == "auto":
        accelerator = accelerator_here(accelerator)
    model = full_name(settings.model or defaults.model)
    weights = pretrained.full_path(settings.weights or "")
    batch_size = settings.batch_size or defaults.batch_size
    if settings.accumulate > batch_size:
        raise InputError(
            f"--accumulate {settings.accumulate}: a batch of {batch_size} images has no more "
            "parts than images"
        )
    images = len(data.train)
    per_step = batch_size * world_size(settings.devices)
    epoch = steps_per_epoch(images, per_step)
    steps = settings.epochs * epoch if settings.epochs else settings.steps or DEFAULT_STEPS
    average = defaults.average if settings.average is None else settings.average
    if average and world_size(settings.devices) > 1:
        raise InputError(f"--average {average:g} works with one device; give --average 0")
    plan = TrainPlan(
        data=settings.data,
        task=task_name,
        options=_plain_options(options_of(task, settings)),
        loss=str(compose.parse(settings.loss or defaults.loss, mixed=True)),
        seed=settings.seed,
        split_seed=split_of(settings).seed,
        val_share=settings.val_share,
        test_share=settings.test_share,
        steps=steps,
        val_every=0,
        minutes=settings.minutes or 0.0,
        patience=settings.patience or 0,
        size=settings.size or default_size(task, data),
        batch_size=batch_size,
        accumulate=settings.accumulate,
        lr=settings.lr or task.learning_rate(model),
        weight_decay=settings.weight_decay,
        average=average,
        model=model,
        weights=weights,
        weights_digest=pretrained.digest(weights),
        accelerator=accelerator,
        devices=settings.devices,
        precision=_precision(settings.precision, accelerator),
        # Measured: small networks train several times faster with one thread than with many.
        threads=settings.threads or (1 if accelerator == "cpu" else min(4, cpus)),
        workers=min(4, cpus - 1) if settings.workers is None else settings.workers,
        logger=settings.logger,
    )
    if not elsewhere:
        check_devices(plan.devices, accelerator)
        _check_memory(plan)
    for note in _notes(plan, task, data):
        say(note)
    if plan.precision == "auto":
        plan = replace(plan, precision=known.precision if known else _faster(plan, clock, say))
    if settings.minutes is not None:
        again = known is not None and known.minutes == plan.minutes
        if not again:
            say("timing some steps, to plan as many as the minutes allow")
        plan = replace(plan, steps=known.steps if known and again else _steps_in(plan, clock))
    if plan.steps > MOST:
        raise InputError(f"--epochs {settings.epochs}: are {plan.steps} steps; at most {MOST}")
    return plan.with_steps(plan.steps, images=images, every=settings.val_every)


def _plain_options(options: Any) -> dict[str, Any]:
    return {key: value for key, value in asdict(options).items() if value is not None}


def validations_every(steps: int, *, images: int, per_step: int) -> int:
    """Return how often to validate."""
    every = min(steps, max(10, round(steps / VALIDATIONS)))
    epoch = steps_per_epoch(images, per_step)
    # Whole epochs, where an epoch is short enough for that.
    return every // epoch * epoch if every >= epoch else every


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def accelerator_here(asked: str) -> str:
    """Return the accelerator that is asked for; `"auto"` is the best there is.

    Raises:
        InputError: It is not there.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if asked == "auto":
        return next(name for name, is_there in there.items() if is_there)
    if not there.get(asked, True):
        raise InputError(f"--accelerator {asked}: torch {torch.__version__} finds none here")
    return asked


def check_devices(devices: str, accelerator: str) -> None:
    """Refuse more devices than there are, before a process is started for each.

    Raises:
        InputError: With how many there are.
    """
    asked = devices.split(",") if "," in devices else []
    if len({int(one) for one in asked}) < len(asked):
        raise InputError(f"--devices {devices}: names a device twice")
    if accelerator == "cpu":
        there = cores()
        if asked:
            raise InputError(
                f"--devices {devices}: the processes on a CPU have no numbers; give {len(asked)}"
            )
        if int(devices) > there:
            raise InputError(
                f"--devices {devices}: would start {devices} processes, and this CPU has {there} "
                f"core{'s' * (there > 1)} to use; give --devices {there} or fewer"
            )
        return
    there = torch.cuda.device_count() if accelerator in ("cuda", "gpu") else 1
    needed = max(map(int, asked)) + 1 if asked else int(devices)
    if needed > there:
        gpus = f"{there} GPU{'s' * (there != 1)}"
        known = f"; the first is 0, the last {there - 1}" if asked else ""
        raise InputError(f"--devices {devices}: torch finds {gpus} here{known}")


def _check_memory(plan: TrainPlan) -> None:
    """Refuse a step whose images alone are larger than the memory of this machine."""
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        return
    needed = plan.batch_size * plan.size**2 * _PIXEL_BYTES
    if needed > there:
        raise InputError(
            f"--batch-size {plan.batch_size} with --size {plan.size}: the images of one step need "
            f"{needed / 2**30:.4g} GiB, and this machine has {there / 2**30:.4g}; make one smaller"
        )


def _precision(asked: Precision, accelerator: str) -> str:
    """Return the precision that is asked for, `"auto"` where it has to be measured.

    Raises:
        InputError: The accelerator has no such training.
    """
    if asked == "16-mixed" and accelerator == "cpu":
        raise InputError("--precision 16-mixed: a CPU has no such training; use bf16-mixed")
    if asked != "auto":
        return asked
    if accelerator in ("cuda", "gpu"):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if native else "16-mixed"
    features: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    may_pay = accelerator == "cpu" and (features.get("avx512_bf16") or features.get("amx_bf16"))
    return "auto" if may_pay else "32-true"


def _faster(
    plan: TrainPlan,
    clock: Callable[[TrainPlan], tuple[float, float]],
    say: Callable[[str], None],
) -> str:
    table = plan.to_table()
    kind = {name: table[name] for name in _KIND}
    one = replace(plan, devices="1", accumulate=1, workers=0)
    told = False

    def seconds(precision: str) -> float:
        nonlocal told
        if not told:
            say("timing some steps, to take the faster precision")
            told = True
        return clock(replace(one, precision=precision))[0]

    return faster(kind, seconds)


def _steps_in(plan: TrainPlan, clock: Callable[[TrainPlan], tuple[float, float]]) -> int:
    """Return how many steps fit into the minutes of a plan, besides its validations."""
    step, validation = clock(plan)
    return min(MOST, max(1, int((60 * plan.minutes - VALIDATIONS * validation) / step)))


def default_size(task: Task, data: Data) -> int:
    """Return the side of the training squares that most images can fill."""
    low, high = _SIZE_RANGE
    return max(low, min(high, task.usual_side(data) // _SIZE_STEP * _SIZE_STEP))


def plan_lines(
    plan: TrainPlan,
    task: Task,
    data: Data,
    network: nn.Module,
    criterion: Any,
    *,
    notes: Sequence[str] = (),
) -> Iterator[str]:
    """Say in plain words what is going to be done.

    Args:
        plan: What it is.
        task: Of the data.
        data: That was opened.
        network: As it was built.
        criterion: The loss.
        notes: On the network and its weights.
    """
    told = [f"{k}={v}" for k, v in plan.options.items() if v != getattr(task.settings(), k)]
    count = sum(p.numel() for p in network.parameters() if p.requires_grad)
    size = f"{count / 1e6:.2f} million" if count > 1e4 else str(count)
    yield (
        f"model: {plan.model}, {size} parameters, "
        + (f"weights {plan.weights}" if plan.weights else "random weights")
    )
    yield from (f"  {note}" for note in notes)
    if told:
        yield f"options: {', '.join(told)}"
    yield f"loss: {compose.short_names([plan.loss])[0]}"
    yield from (f"  {note}" for note in criterion.notes)
    if plan.accumulate > 1 or world_size(plan.devices) > 1:
        for own in compose.user_losses(compose.parse(plan.loss, mixed=True)):
            yield f"  {own.name} is taken of each part of a batch; their mean is by images"
    epochs = plan.steps / steps_per_epoch(len(data.train), plan.images_per_step)
    yield (
        f"budget: {plan.steps} steps of {plan.images_per_step} images ({epochs:.4g} epochs), "
        f"validation every {plan.val_every} steps"
        + (f", each in {plan.accumulate} parts" if plan.accumulate > 1 else "")
        + (f", at most {plan.minutes:g} minutes" if plan.minutes else "")
    )
    yield (
        f"training: squares of {plan.size} pixels; AdamW, learning rate {plan.lr:g} "
        f"(warm-up, then cosine to 0), weight decay {plan.weight_decay:g}"
        + (f", average of the weights {plan.average:g}" if plan.average else "")
        + f"; seed {plan.seed}"
    )
    yield (
        f"machine: {plan.accelerator}, {plan.devices} device(s), precision {plan.precision} "
        f"(losses in float32), {plan.threads} thread(s), {plan.workers} loading worker(s)"
    )


def _notes(plan: TrainPlan, task: Task, data: Data) -> Iterator[str]:
    """Say what is odd about a plan, on this data."""
    side = task.usual_side(data)
    if plan.size * _MUCH_SMALLER <= side:
        yield (
            f"note: images of {side} pixels are seen in squares of {plan.size}; what is told "
            f"apart by its surroundings needs more, such as --size {side // 2}"
        )
    if side > 0 and plan.size > max(2 * side, _SIZE_RANGE[0]):
        yield (
            f"note: squares of {plan.size} pixels are much larger than the images, whose shorter "
            f"side is usually {side}; most of a square is empty or enlarged: try --size "
            f"{default_size(task, data)}"
        )
    images = len(data.train)
    if plan.images_per_step > images:
        yield (
            f"note: a step has {plan.images_per_step} images, and there are {images} to train "
            "on: they repeat within a step"
        )
    if plan.workers > cores():
        yield (
            f"note: {plan.workers} processes load images on {cores()} cores; --workers "
            f"{cores()} is enough"
        )
