"""One training run, from its settings to its finished folder."""

import hashlib
import logging
import os
import platform
import shlex
import signal
import sys
import time
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from denseloss.data.errors import InputError
from denseloss.data.files import UNREADABLE
from denseloss.data.transforms import mixed
from denseloss.tasks import Data, Split, Task, asked, named
from denseloss.train.curves import draw_curves
from denseloss.train.errors import InterruptedRunError
from denseloss.train.folder import FORMAT, RunFolder, difference, to_toml
from denseloss.train.loading import Batches, Loading
from denseloss.train.module import TrainingModule
from denseloss.train.own_code import as_trained, changed, keep, look_at, record
from denseloss.train.plan import TrainPlan, options_of, plan_lines, plan_of, read_options, split_of
from denseloss.train.records import Records
from denseloss.train.schedule import steps_per_epoch
from denseloss.train.settings import (
    TrainSettings,
    TrialSettings,
    check_train,
    data_name,
    slug,
    world_size,
)
from denseloss.train.timing import seconds_of_parts

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
    """Train a network on data with one loss.

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
    check_train(settings)
    console = console or Console(quiet=True)
    task, task_name = asked(settings.task, settings.data)
    loss = str(compose.parse(settings.loss or task.defaults.loss, mixed=True))
    folder = RunFolder(settings.out or default_out(replace(settings, loss=loss)))
    # The other processes of a run start when the first has written the configuration.
    before = folder.unfinished() if is_first_process() else folder.config()
    known = TrainPlan.from_table(before["settings"]) if before is not None else None
    data = opened(settings, task, split_of(settings), console=console)
    for note in look_at(loss, task, data, settings):
        if is_first_process():
            console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    with _quiet_lightning(), _explained():
        plan = plan_of(
            settings,
            task,
            task_name,
            data,
            known=known,
            clock=lambda plan: _times(plan, task, data),
        )
    return run(plan, data, folder=folder, console=console)


def run(
    plan: TrainPlan, data: Data, *, folder: RunFolder, console: Console | None = None
) -> TrainResult:
    """Train as planned, from where an interrupted run of the same plan has come.

    Args:
        plan: What to do.
        data: That was opened.
        folder: Where to.
        console: Where to say what is going on; None says nothing.

    Raises:
        InputError: The folder holds something else, or the loss became NaN or infinite.
        InterruptedRunError: Training was stopped from outside; the same call goes on with it.
    """
    first = is_first_process()
    console = console if console and first else Console(quiet=True)
    task = named(plan.task)
    with _quiet_lightning(), _explained():
        before = folder.unfinished() if first else folder.config()
        module, loading = _prepared(plan, task, data)
        trainer, records = _trainer(plan, task, folder, loading, console)
        if first:
            code = record([plan.loss])
            _start(folder, before, {**_config(plan, data), "code": code})
            keep([plan.loss], code, folder.path)
        for line in (
            *plan_lines(plan, task, data, module.model, module.criterion),
            f"out: {folder.path}",
        ):
            console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)
        with _stoppable(trainer, folder, records):
            summary = _fit(trainer, folder, module, loading, records, loss=plan.loss)
    return TrainResult(folder=folder.path, summary=summary)


def step_times(plan: TrainPlan, data: Data) -> tuple[float, float]:
    """Time a training step and a whole validation, without leaving anything behind.

    Args:
        plan: Of the run; how long it is to be does not matter.
        data: That was opened.

    Returns:
        Seconds of a step and of a validation, on this machine as busy as it is now.

    Raises:
        InputError: The plan cannot be run.
    """
    with _quiet_lightning(), _explained():
        return _times(plan, named(plan.task), data)


def load_run(
    path: Path, data: Data, *, device: torch.device | str | None = None
) -> tuple[TrainPlan, TrainingModule]:
    """Load the network of a finished run, with the weights of `best.ckpt`, ready to predict.

    Args:
        path: The run's folder.
        data: What it was trained on.
        device: Where it predicts; None is the accelerator of the run.

    Raises:
        InputError: A file is missing or cannot be read, the data is other data, or the accelerator
            of the run is not there.
    """
    folder = RunFolder(path)
    try:
        config = folder.config()
        plan = TrainPlan.from_table(config["settings"])
        other = difference({"data": config["data"]}, {"data": facts(data)}, only=("classes",))
        if other is not None:
            raise InputError(f"{path}: was trained on other data: {other}")
        loss = as_trained(plan.loss, config.get("code", {}), path)
        # The weights are overwritten; whoever draws from the generator next must not notice.
        with torch.random.fork_rng(devices=[]):
            module, _ = _prepared(replace(plan, loss=loss), named(plan.task), data)
        best = torch.load(folder.best_file, map_location="cpu", weights_only=True)
        module.load_state_dict(best["state_dict"])
    except (InputError, compose.ParseError):
        raise
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: is missing; this run is not finished") from None
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: its config.toml or best.ckpt cannot be read ({reason}); remove the folder "
            "and train again"
        ) from error
    return plan, module.to(torch.device(device or _device(plan, path))).eval()


def _device(plan: TrainPlan, path: Path) -> str:
    if plan.accelerator in ("cuda", "gpu") and torch.cuda.is_available():
        return f"cuda:{int(plan.devices.split(',')[0])}" if "," in plan.devices else "cuda"
    if plan.accelerator in ("mps", "gpu") and torch.backends.mps.is_available():
        return "mps"
    if plan.accelerator == "cpu":
        return "cpu"
    raise InputError(f"{path}: was trained on {plan.accelerator}, which torch does not find here")


def default_out(settings: TrainSettings) -> Path:
    """Return the run folder of a run for which none was named."""
    loss = settings.loss or ""
    short = compose.folder_name(loss)
    parts = [data_name(settings.data), slug(short[:80])]
    if short != loss:
        # Files of one name in two folders are two losses.
        parts.append(hashlib.blake2b(loss.encode(), digest_size=2).hexdigest())
    parts.append(str(settings.seed))
    return Path("runs") / "-".join(parts)


def is_first_process() -> bool:
    """Whether this is the process of a run on several devices that speaks and writes."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def opened(
    settings: TrialSettings, task: Task, split: Split, *, console: Console | None = None
) -> Data:
    """Open the data of a run, and say what was found.

    Args:
        settings: Of the run.
        task: Of the data.
        split: How to divide it.
        console: Where to say it; None says nothing.

    Raises:
        DataError: The data cannot be used.
    """
    console = console if console and is_first_process() else Console(quiet=True)

    def progress(items: Any) -> Any:
        return track(items, "looking at the data", console=console, transient=True)

    data = task.open(
        settings.data,
        options_of(task, settings),
        split=split,
        progress=progress if console.is_terminal else None,
    )
    for line in data.describe():
        console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)
    return data


def _prepared(plan: TrainPlan, task: Task, data: Data) -> tuple[TrainingModule, Loading]:
    """Build the network and what it is fed; the same seed gives the same weights to every loss."""
    criterion = task.criterion(compose.parse(plan.loss, mixed=True), data)
    torch.set_num_threads(plan.threads)
    torch.manual_seed(mixed(plan.seed))
    network = task.network(plan.model, data, criterion, read_options(plan))
    loading = Loading(
        task=task,
        data=data,
        size=plan.size,
        batch_size=plan.batch_size,
        seed=plan.seed,
        workers=plan.workers,
        # On the CPU it would open a context on a GPU that nobody asked for.
        pin_memory=plan.accelerator in ("cuda", "gpu"),
    )
    module = TrainingModule(
        network,
        criterion,
        task.meter(data),
        turns=task.turns(network, criterion),
        seed=plan.seed,
        accumulate=plan.accumulate,
        precision=plan.precision,
    )
    module.schedule = plan.schedule
    return module, loading


def _times(plan: TrainPlan, task: Task, data: Data) -> tuple[float, float]:
    module, loading = _prepared(plan, task, data)
    return seconds_of_parts(module, loading, trainer_options=_trainer_options(plan))


def facts(data: Data) -> dict[str, Any]:
    """Return what a configuration says of the data."""
    return {
        "name": data.name,
        "found": data.source,
        "classes": list(getattr(data, "class_names", ())),
        "train": len(data.train),
        "val": len(data.val),
        "test": len(data.test),
        "split": data.split_note,
    }


def _config(plan: TrainPlan, data: Data) -> dict[str, dict[str, Any]]:
    config = {
        "settings": plan.to_table(),
        "data": facts(data),
        "run": {
            "format": FORMAT,
            "command": shlex.join(["denseloss", *sys.argv[1:]]),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "machine": platform.platform(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("denseloss", "torch", "lightning", "monai")},
        },
    }
    # As it will be read back: a tuple becomes a list.
    return tomllib.loads(to_toml(config))


def _start(folder: RunFolder, before: dict[str, Any] | None, config: dict[str, Any]) -> None:
    if before is None:
        folder.begin(config)
        folder.log("started")
        return
    comparable = [
        {
            "settings": {k: v for k, v in c.get("settings", {}).items() if k not in _FREE},
            "data": {k: v for k, v in c.get("data", {}).items() if k != "found"},
        }
        for c in (before, config)
    ]
    other = difference(*comparable) or changed(before.get("code", {}), config["code"])
    if other is not None:
        raise InputError(
            f"{folder.path}: holds an unfinished run with other settings: {other}; set it back "
            "to go on with that run, choose another --out, or remove the folder"
        )
    folder.log("resumed")


def _trainer_options(plan: TrainPlan) -> dict[str, Any]:
    several = world_size(plan.devices) > 1
    return {
        # One process is one process: in a job of Slurm, Lightning would expect one per task.
        "plugins": [] if several else [LightningEnvironment()],
        "accelerator": plan.accelerator,
        "devices": plan.devices if "," in plan.devices else int(plan.devices),
        # "auto" would take something slower than DDP in a notebook.
        "strategy": "ddp" if several else "auto",
        "precision": plan.precision,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "log_every_n_steps": 1,
    }


def _trainer(
    plan: TrainPlan, task: Task, folder: RunFolder, loading: Loading, console: Console
) -> tuple[L.Trainer, Records]:
    mode = "max" if task.metrics[0].higher_is_better else "min"
    records = Records(
        folder,
        console=console,
        steps=plan.steps,
        steps_per_epoch=steps_per_epoch(len(loading.data.train), plan.images_per_step),
        metrics=task.metrics,
        seconds=60 * plan.minutes if plan.minutes else None,
    )
    callbacks: list[Callback] = [
        records,
        ModelCheckpoint(
            folder.path,
            filename="best",
            monitor="score",
            mode=mode,
            save_last=True,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
    ]
    if plan.average:
        callbacks.insert(0, _averaging(plan.average))
    if plan.patience:
        callbacks.append(
            EarlyStopping("score", mode=mode, patience=plan.patience, check_finite=False)
        )
    trainer = L.Trainer(
        # What Lightning calls an epoch is here the stretch of steps up to a validation.
        max_epochs=-(-plan.steps // plan.val_every),
        callbacks=callbacks,
        logger=_logger(plan.logger, folder),
        **_trainer_options(plan),
    )
    return trainer, records


def _averaging(decay: float) -> Callback:
    try:
        from lightning.pytorch.callbacks import EMAWeightAveraging
    except ImportError:
        raise InputError(
            f"--average {decay:g}: this lightning cannot average weights; pip install -U lightning"
        ) from None
    return EMAWeightAveraging(decay=decay)


def _fit(
    trainer: L.Trainer,
    folder: RunFolder,
    module: TrainingModule,
    loading: Loading,
    records: Records,
    *,
    loss: str,
) -> dict[str, Any]:
    batches = Batches(loading, module.schedule, turns=len(module.turns))
    trainer.fit(module, batches, ckpt_path=folder.last_file if folder.last_file.exists() else None)
    best = torch.load(folder.best_file, map_location="cpu", weights_only=True)
    module.load_state_dict(best["state_dict"])
    test = None
    if loading.data.test:
        trainer.test(module, datamodule=batches, verbose=False)
        test = module.row
    summary = {"loss": loss, "task": loading.task.name, **records.summary(loading.data, test=test)}
    if trainer.is_global_zero:
        # Once more: a run that was killed after its last step has nothing left to train.
        folder.write_metrics(records.rows)
        draw_curves(
            records.rows, loading.task.metrics, part=loading.task.part, path=folder.curves_file
        )
        loading.task.draw_samples(module.eval(), loading.data, folder.samples_file)
        folder.log("finished", step=summary["steps"])
        folder.finish(summary)
    return summary


@contextmanager
def _stoppable(trainer: L.Trainer, folder: RunFolder, records: Records) -> Iterator[None]:
    """Turn an interruption into one error that says how to go on."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except (KeyboardInterrupt, SIGTERMException, SystemExit, RuntimeError) as stop:
        # Schedulers send SIGTERM to all processes of a job: a loading worker may be gone first.
        worker = _is_of_a_stopped_worker(stop)
        if isinstance(stop, RuntimeError) and not worker:
            raise
        # Lightning answers Ctrl-C with sys.exit(1), and leaves Ctrl-C switched off.
        if isinstance(stop, SystemExit) and not trainer.interrupted:
            raise
        folder.log("interrupted", saved=records.saved_step)
        raise InterruptedRunError(
            f"stopped; the same command goes on from step {records.saved_step} of {records.steps}",
            exit_code=143 if worker or isinstance(stop, SIGTERMException) else 130,
        ) from None
    except InputError as error:
        folder.log("failed", error=str(error))
        raise
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)


def _is_of_a_stopped_worker(error: BaseException | None) -> bool:
    """Whether an error, or what it came of, is that a loading worker got SIGTERM."""
    while error is not None and "killed by signal: Terminated" not in str(error):
        error = error.__cause__ or error.__context__
    return isinstance(error, RuntimeError)


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


def _logger(name: str, folder: RunFolder) -> Logger | Literal[False]:
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
