"""One training run, from its settings to its finished folder."""

import logging
import os
import platform
import shlex
import signal
import sys
import time
import tomllib
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from rich.progress import track

from denseloss import compose
from denseloss.data import SegmentationData, open_data
from denseloss.train.criterion import TaskCriterion
from denseloss.train.errors import InputError, InterruptedRunError
from denseloss.train.folder import RunFolder, difference, to_toml
from denseloss.train.models import build_model
from denseloss.train.pictures import draw_curves, draw_samples
from denseloss.train.records import Records
from denseloss.train.segmentation import (
    Loading,
    SegmentationBatches,
    SegmentationTask,
    mixed,
    steps_per_epoch,
)
from denseloss.train.settings import (
    VALIDATIONS,
    TrainSettings,
    check_settings,
    default_out,
    plan_lines,
    resolved,
    schedule_of,
    with_validations,
    world_size,
)
from denseloss.train.timing import seconds_of_parts, steps_in

# What may differ when a run is resumed: it changes how fast the numbers come, not the numbers.
_FREE = ("workers", "logger")


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What came of a run.

    Attributes:
        folder: Where its files are.
        summary: What `summary.json` says.
    """

    folder: Path
    summary: dict[str, Any]


def train(settings: TrainSettings, *, console: Console | None = None) -> TrainResult:
    """Train a network on a folder of images with one loss.

    Args:
        settings: What to do.
        console: Where to say what is going on; None says nothing.

    Returns:
        The finished run.

    Raises:
        InputError: A setting cannot be used, or the loss became NaN or infinite.
        DataError: The data cannot be used.
        InterruptedRunError: Training was stopped from outside; the same call goes on with it.
    """
    check_settings(settings)
    first = is_first_process()
    console = console if console and first else Console(quiet=True)
    weighted_sum = compose.parse(settings.loss, mixed=True)
    settings = replace(settings, loss=str(weighted_sum))
    folder = RunFolder(settings.out or default_out(settings))
    # The other processes of a run start when the first has written the configuration.
    before = folder.unfinished() if first else folder.config()
    data = opened(settings, console=console)
    settings = resolved(settings, data)
    with _quiet_lightning(), _explained():
        task, loading = _prepared(settings, weighted_sum, data)
        if settings.steps is None:
            settings = replace(settings, steps=_steps(settings, before, task, loading))
        settings = with_validations(settings, images=len(data.train))
        task.schedule = schedule_of(settings)
        trainer, records = _trainer(settings, folder, loading, console)
        if first:
            _start(folder, before, _config(settings, data))
        for line in (
            *plan_lines(settings, data, task.model, task.criterion),
            f"out: {folder.path}",
        ):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        with _stoppable(trainer, folder, records):
            summary = _fit(trainer, folder, task, loading, records, loss=settings.loss)
    return TrainResult(folder=folder.path, summary=summary)


def step_times(settings: TrainSettings) -> tuple[float, float]:
    """Time a training step and a whole validation of a run, without leaving anything behind.

    Args:
        settings: Of the run; how long it is to be does not matter.

    Returns:
        Seconds of a step and of a validation, on this machine as busy as it is now.

    Raises:
        InputError: A setting cannot be used.
        DataError: The data cannot be used.
    """
    check_settings(settings)
    data = opened(settings)
    settings = resolved(settings, data)
    with _quiet_lightning(), _explained():
        task, loading = _prepared(settings, compose.parse(settings.loss, mixed=True), data)
        return seconds_of_parts(task, loading, trainer_options=_trainer_options(settings))


def _prepared(
    settings: TrainSettings, weighted_sum: compose.WeightedSum, data: SegmentationData
) -> tuple[SegmentationTask, Loading]:
    """Build the network and what it is fed; the same seed gives the same weights to every loss."""
    criterion = TaskCriterion(weighted_sum, task=data.task, num_classes=data.num_classes)
    torch.set_num_threads(settings.threads or 1)
    torch.manual_seed(mixed(settings.seed))
    model = build_model(
        settings.model,
        num_outputs=criterion.num_outputs,
        deep_supervision=settings.deep_supervision,
    )
    loading = Loading(
        data=data,
        size=settings.size or 0,
        batch_size=settings.batch_size,
        seed=settings.seed,
        workers=settings.workers or 0,
        # On the CPU it would open a context on a GPU that nobody asked for.
        pin_memory=settings.accelerator in ("cuda", "gpu"),
    )
    task = SegmentationTask(
        model,
        criterion,
        task=data.task,
        class_names=data.class_names,
        seed=settings.seed,
        accumulate=settings.accumulate,
    )
    return task, loading


def is_first_process() -> bool:
    """Whether this is the process of a run on several devices that speaks and writes."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def opened(settings: TrainSettings, *, console: Console | None = None) -> SegmentationData:
    """Open the data of a run, and say what was found.

    Args:
        settings: Of the run.
        console: Where to say it; None says nothing.

    Raises:
        DataError: The data cannot be used.
    """
    console = console or Console(quiet=True)

    def progress(items: Iterable[Any]) -> Iterable[Any]:
        return track(items, "looking at the data", console=console, transient=True)

    data = open_data(
        settings.data,
        task=settings.task,
        classes=settings.classes,
        ignore_index=settings.ignore_index,
        seed=settings.seed if settings.split_seed is None else settings.split_seed,
        val_share=settings.val_share,
        test_share=settings.test_share,
        progress=progress if console.is_terminal else None,
    )
    for line in data.describe():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return data


def _steps(
    settings: TrainSettings,
    before: dict[str, Any] | None,
    task: SegmentationTask,
    loading: Loading,
) -> int:
    """Plan the steps of a time, once: a resumed run keeps its plan."""
    assert settings.minutes is not None
    known = (before or {}).get("settings", {})
    if known.get("minutes") == settings.minutes and "steps" in known:
        return int(known["steps"])
    return steps_in(
        settings.minutes,
        task,
        loading,
        validations=VALIDATIONS,
        trainer_options=_trainer_options(settings),
    )


def _config(settings: TrainSettings, data: SegmentationData) -> dict[str, dict[str, Any]]:
    asked = asdict(replace(settings, out=None))
    config = {
        "settings": {key: value for key, value in asked.items() if value is not None},
        "data": {
            "found": data.source,
            "task": data.task,
            "class_names": data.class_names,
            "values": data.values,
            "ignore_value": data.ignore_value,
            "train": len(data.train),
            "val": len(data.val),
            "test": len(data.test),
            "split": data.split_note,
        },
        "run": {
            "command": shlex.join(["denseloss", *sys.argv[1:]]),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "machine": platform.platform(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("denseloss", "torch", "lightning", "monai")},
        },
    }
    # As it will be read back: a tuple becomes a list, None disappears.
    return tomllib.loads(to_toml(config))


def _start(folder: RunFolder, before: dict[str, Any] | None, config: dict[str, Any]) -> None:
    if before is None:
        folder.begin(config)
        folder.log("started")
        return
    comparable = [
        {
            # Runs from before there was an option were made with its default.
            "settings": {"accumulate": 1}
            | {k: v for k, v in c.get("settings", {}).items() if k not in _FREE},
            "data": {k: v for k, v in c.get("data", {}).items() if k != "found"},
        }
        for c in (before, config)
    ]
    changed = difference(*comparable)
    if changed is not None:
        raise InputError(
            f"{folder.path}: holds an unfinished run with other settings: {changed}; set it back "
            "to go on with that run, choose another --out, or remove the folder"
        )
    folder.log("resumed")


def _trainer_options(settings: TrainSettings) -> dict[str, Any]:
    several = world_size(settings) > 1
    return {
        # One process is one process: in a job of Slurm, Lightning would expect one per task.
        "plugins": [] if several else [LightningEnvironment()],
        "accelerator": settings.accelerator,
        "devices": settings.devices if "," in settings.devices else int(settings.devices),
        # "auto" would take something slower than DDP in a notebook.
        "strategy": "ddp" if several else "auto",
        "precision": settings.precision,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "log_every_n_steps": 1,
    }


def _trainer(
    settings: TrainSettings, folder: RunFolder, loading: Loading, console: Console
) -> tuple[L.Trainer, Records]:
    schedule = schedule_of(settings)
    images = settings.batch_size * world_size(settings)
    records = Records(
        folder,
        console=console,
        steps=schedule.steps,
        steps_per_epoch=steps_per_epoch(len(loading.data.train), images),
        seconds=60 * settings.minutes if settings.minutes else None,
    )
    callbacks: list[Callback] = [
        records,
        ModelCheckpoint(
            folder.path,
            filename="best",
            monitor="mean_dice",
            mode="max",
            save_last=True,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
    ]
    if settings.patience is not None:
        callbacks.append(
            EarlyStopping("mean_dice", mode="max", patience=settings.patience, check_finite=False)
        )
    trainer = L.Trainer(
        # What Lightning calls an epoch is here the stretch of steps up to a validation.
        max_epochs=-(-schedule.steps // schedule.val_every),
        callbacks=callbacks,
        logger=_logger(settings, folder),
        **_trainer_options(settings),
    )
    return trainer, records


def _fit(
    trainer: L.Trainer,
    folder: RunFolder,
    task: SegmentationTask,
    loading: Loading,
    records: Records,
    *,
    loss: str,
) -> dict[str, Any]:
    batches = SegmentationBatches(loading, task.schedule)
    trainer.fit(task, batches, ckpt_path=folder.last_file if folder.last_file.exists() else None)
    best = torch.load(folder.best_file, map_location="cpu", weights_only=True)
    task.load_state_dict(best["state_dict"])
    test = None
    if loading.data.test:
        trainer.test(task, datamodule=batches, verbose=False)
        test = task.row
    summary = {"loss": loss, **records.summary(loading.data, test=test)}
    if trainer.is_global_zero:
        # Once more: a run that was killed after its last step has nothing left to train.
        folder.write_metrics(records.rows)
        draw_curves(records.rows, loading.data.class_names, path=folder.curves_file)
        draw_samples(task, loading.data, path=folder.samples_file)
        folder.log("finished", step=summary["steps"])
        folder.finish(summary)
    return summary


@contextmanager
def _stoppable(trainer: L.Trainer, folder: RunFolder, records: Records) -> Iterator[None]:
    """Turn an interruption into one error that says how to go on."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except (KeyboardInterrupt, SIGTERMException, SystemExit) as stop:
        # Lightning answers Ctrl-C with sys.exit(1), and leaves Ctrl-C switched off.
        if isinstance(stop, SystemExit) and not trainer.interrupted:
            raise
        folder.log("interrupted", saved=records.saved_step)
        raise InterruptedRunError(
            f"stopped; the same command goes on from step {records.saved_step} of {records.steps}",
            exit_code=143 if isinstance(stop, SIGTERMException) else 130,
        ) from None
    except InputError as error:
        folder.log("failed", error=str(error))
        raise
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _explained() -> Iterator[None]:
    """Say in one line what is the user's to change, though it is found deep inside a library."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise InputError(
            "the accelerator's memory is full; make --batch-size or --size smaller"
        ) from None
    except MisconfigurationException as error:
        raise InputError(f"Lightning cannot train so: {' '.join(str(error).split())}") from error
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise InputError(
                "this model has a batch norm over single values; make --batch-size 2 or larger"
            ) from error
        raise


def _logger(settings: TrainSettings, folder: RunFolder) -> Logger | Literal[False]:
    name = settings.logger
    if name == "none":
        return False
    from lightning.pytorch import loggers

    try:
        if name == "tensorboard":
            return loggers.TensorBoardLogger(folder.path, name=None, version="tensorboard")
        if name == "wandb":
            return loggers.WandbLogger(name=folder.path.name, save_dir=folder.path)
        return loggers.MLFlowLogger(
            experiment_name="denseloss",
            run_name=folder.path.name,
            tracking_uri=f"file:{folder.path / 'mlruns'}",
        )
    except ModuleNotFoundError:
        raise InputError(f"--logger {name} needs {name}: pip install {name}") from None


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's remarks about hardware, tips and workers, and nothing else."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            ".*Checkpoint directory .* exists and is not empty.*",
            ".*number of training batches .* is smaller than the logging interval.*",
            ".*GPU available but not used.*",
            ".*MPS available but not used.*",
            # Lightning's own use of torch and of itself.
            ".*treespec, LeafSpec.*",
            ".*all_gather is deprecated.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
