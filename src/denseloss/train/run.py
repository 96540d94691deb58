"""One training run, from its settings to its finished folder."""

import hashlib
import logging
import os
import platform
import shlex
import signal
import sys
import threading
import time
import tomllib
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
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
from denseloss.tasks import Data, Split, Task, asked, named, pretrained
from denseloss.train.checkpoint import WholeCheckpoints, load_checkpoint, misfit
from denseloss.train.curves import draw_curves
from denseloss.train.errors import InterruptedRunError
from denseloss.train.folder import FORMAT, RunFolder, bound, difference, to_toml
from denseloss.train.lines import say_line
from denseloss.train.loading import Batches, Loading
from denseloss.train.module import TrainingModule
from denseloss.train.own_code import as_trained, changed, keep, look_at, record
from denseloss.train.plan import (
    TrainPlan,
    options_of,
    plan_in,
    plan_lines,
    plan_of,
    read_options,
    split_of,
)
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

_LONG_SECONDS = 5.0
# What may differ when a run is resumed: it changes how fast the numbers come, not the numbers.
_FREE = ("workers", "logger")
# What the data is called and where it lies: what it holds is told by its digest.
_PLACE = ("name", "found", "digest")


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
    first = is_first_process()
    with _before_training(), _alone(folder, console):
        # The other processes of a run start when the first has written the configuration.
        before = folder.unfinished() if first else folder.config_of_first()
        known = plan_in(before, folder.config_file) if before is not None else None
        data = opened(settings, task, split_of(settings), console=console)
        say = _speaker(console)
        for note in look_at(loss, task, data, settings):
            say(f"note: {note}")
        with _quiet_lightning(), _explained():
            plan = plan_of(
                settings,
                task,
                task_name,
                data,
                known=known,
                clock=lambda plan: _times(plan, task, data),
                say=say,
            )
        return run(plan, data, folder=folder, console=console)


def run(
    plan: TrainPlan,
    data: Data,
    *,
    folder: RunFolder,
    console: Console | None = None,
    patience: float = 0.0,
) -> TrainResult:
    """Train as planned, from where an interrupted run of the same plan has come.

    Args:
        plan: What to do.
        data: That was opened.
        folder: Where to.
        console: Where to say what is going on; None says nothing.
        patience: Seconds to wait for another process that has the folder.

    Raises:
        InputError: The folder holds something else, another process has it, or the loss became NaN
            or infinite.
        InterruptedRunError: Training was stopped from outside; the same call goes on with it.
    """
    first = is_first_process()
    console = console if console and first else Console(quiet=True)
    task = named(plan.task)
    with _quiet_lightning(), _explained(), _alone(folder, console, patience=patience):
        before = folder.unfinished() if first else folder.config_of_first()
        module, loading = _prepared(plan, task, data)
        notes = _begun_with(module, plan, task, data)
        trainer, records = _trainer(plan, task, folder, loading, console)
        if first:
            code = record([plan.loss])
            config = _config(plan, task, data, module.criterion)
            records.run = _start(folder, before, {**config, "code": code})
            keep([plan.loss], code, folder.path)
            _check_checkpoints(folder, module, run=records.run)
        for line in (
            *plan_lines(plan, task, data, module.model, module.criterion, notes=notes),
            f"out: {folder.path}",
        ):
            say_line(console, line)
        with _stoppable(folder, records):
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
        plan = plan_in(config, folder.config_file)
        task = named(plan.task)
        known = task.facts(data)
        other = known and difference(config, _as_read({"data": known}), only=tuple(known))
        if other:
            raise InputError(f"{path}: was trained on other data: {other}")
        loss = as_trained(plan.loss, config.get("code", {}), path)
        # The weights are overwritten; whoever draws from the generator next must not notice.
        with torch.random.fork_rng(devices=[]):
            module, _ = _prepared(replace(plan, loss=loss), task, data)
        module.load_state_dict(load_checkpoint(folder.best_file)["state_dict"])
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
        if console.is_terminal:
            return track(items, "looking at the data", console=console, transient=True)
        return _told(items, _speaker(console))

    data = task.open(
        settings.data,
        options_of(task, settings),
        split=split,
        progress=progress,
    )
    for line in data.describe():
        say_line(console, line)
    return data


def _told(items: Collection[Any], say: Callable[[str], None]) -> Iterator[Any]:
    """Yield items; a log hears once that it takes a while."""
    start: float | None = time.monotonic()
    for place, item in enumerate(items):
        if start is not None and time.monotonic() - start > _LONG_SECONDS:
            say(f"looking at the data: {place} of {len(items)} after {_LONG_SECONDS:g} seconds")
            start = None
        yield item


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
    task.try_out(module.model, data, module.criterion, model=plan.model, size=plan.size)
    with _interruptible():
        return seconds_of_parts(module, loading, trainer_options=_trainer_options(plan))


def _begun_with(module: TrainingModule, plan: TrainPlan, task: Task, data: Data) -> tuple[str, ...]:
    """Load the weights that a plan begins with, try the network, and return what is to be said.

    Args:
        module: With random weights.
        plan: Of the run.
        task: Of the data.
        data: That was opened.

    Raises:
        InputError: The weights do not fit, or the network does not give what the loss takes.
    """
    notes: tuple[str, ...] = ()
    if plan.weights:
        if pretrained.digest(plan.weights) != plan.weights_digest:
            raise InputError(
                f"--weights {plan.weights}: the file was changed since the run was planned; put it "
                "back, or begin another run"
            )
        notes = task.pretrain(module.model, plan.weights, model=plan.model)
    tried = task.try_out(module.model, data, module.criterion, model=plan.model, size=plan.size)
    return (*notes, *tried)


def try_plan(plan: TrainPlan, data: Data) -> tuple[str, ...]:
    """Build the network of a plan, load its weights and try it; nothing is left behind.

    Returns:
        What is to be said about it.

    Raises:
        InputError: It cannot be trained.
    """
    task, threads = named(plan.task), torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]):
            module, _ = _prepared(plan, task, data)
            return _begun_with(module, plan, task, data)
    finally:
        torch.set_num_threads(threads)


def facts(task: Task, data: Data) -> dict[str, Any]:
    """Return what a configuration says of the data."""
    return {
        "name": data.name,
        "found": data.source,
        **task.facts(data),
        "train": len(data.train),
        "val": len(data.val),
        "test": len(data.test),
        "split": data.split_note,
    }


def _config(plan: TrainPlan, task: Task, data: Data, criterion: Any) -> dict[str, dict[str, Any]]:
    config = {
        "settings": plan.to_table(),
        "data": {**facts(task, data), "digest": task.digest(data)},
        "outputs": task.outputs(criterion),
        "run": {
            "format": FORMAT,
            "id": uuid.uuid4().hex,
            "command": shlex.join(["denseloss", *sys.argv[1:]]),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "machine": platform.platform(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("denseloss", "torch", "lightning", "monai")},
        },
    }
    return _as_read(config)


def _as_read(config: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return a configuration as it will be read back: a tuple becomes a list."""
    return tomllib.loads(to_toml(config))


def _start(folder: RunFolder, before: dict[str, Any] | None, config: dict[str, Any]) -> str:
    """Begin a run or go on with it, and return its id."""
    if before is None:
        folder.write_config(config)
        folder.log("started")
        return str(config["run"]["id"])
    other = difference(_binding(before), _binding(config)) or changed(
        before.get("code", {}), config["code"]
    )
    if other is not None:
        raise InputError(
            f"{folder.path}: holds an unfinished run with other settings: {other}; set it back "
            "to go on with that run, choose another --out, or remove the folder"
        )
    if before["data"].get("digest") != config["data"]["digest"]:
        raise InputError(
            f"{folder.path}: holds an unfinished run on other data: images or masks were added, "
            "removed, renamed or changed since it began; set them back to go on with that run, "
            "choose another --out, or remove the folder"
        )
    # The data may lie elsewhere now.
    folder.write_config({**config, "run": before["run"]})
    folder.log("resumed")
    return str(before["run"].get("id", ""))


def _binding(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what must be as it was when a run goes on, besides the digest of the data."""
    settings, data = config.get("settings", {}), config.get("data", {})
    return {
        "settings": {k: v for k, v in bound(settings).items() if k not in _FREE},
        "data": {k: v for k, v in data.items() if k not in _PLACE},
    }


def _check_checkpoints(folder: RunFolder, module: TrainingModule, *, run: str) -> None:
    """Refuse to go on from what is damaged, or of another run.

    Raises:
        InputError: With the file and the way out.
    """
    if not folder.last_file.exists():
        return
    way_out = f"remove {folder.last_file} and the same command begins this run anew"
    for file in (folder.last_file, folder.best_file):
        try:
            found = load_checkpoint(file)
        except FileNotFoundError:
            raise InputError(f"{file}: is missing; {way_out}") from None
        except ValueError as error:
            raise InputError(f"{error}; {way_out}") from None
        wrong = misfit(found, module.state_dict())
        state = found["callbacks"].get("Records")
        if not isinstance(state, dict) or state.get("run") != run:
            wrong = "it is a checkpoint of another run"
        if wrong is not None:
            raise InputError(f"{file}: does not fit ({wrong}); {way_out}")


def _trainer_options(
    plan: TrainPlan, *, saved: Callable[[str], None] | None = None
) -> dict[str, Any]:
    several = world_size(plan.devices) > 1
    return {
        # One process is one process: in a job of Slurm, Lightning would expect one per task.
        "plugins": [WholeCheckpoints(saved), *([] if several else [LightningEnvironment()])],
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
        # The last one by itself: `save_last` keeps it only where the best has changed, too. It
        # comes second, as it holds what is known of the best.
        *(
            ModelCheckpoint(
                folder.path,
                filename=file.stem,
                monitor=monitor,
                mode=mode,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            )
            for file, monitor in ((folder.best_file, "score"), (folder.last_file, None))
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
        **_trainer_options(plan, saved=records.saved),
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
    module.load_state_dict(load_checkpoint(folder.best_file)["state_dict"])
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


def _speaker(console: Console) -> Callable[[str], None]:
    """Return what says a line, in the first process of a run."""

    def say(line: str) -> None:
        if is_first_process():
            say_line(console, line)

    return say


@contextmanager
def _alone(folder: RunFolder, console: Console, *, patience: float = 0.0) -> Iterator[None]:
    """Keep the folder to this run; of the processes of a run, the first has the lock."""
    first, say = is_first_process(), _speaker(console)
    try:
        with folder.locked(patience=patience, say=say) if first else nullcontext():
            yield
    except BrokenPipeError:  # of the screen
        raise
    except OSError as error:
        what = error.strerror or " ".join(str(error).split())
        raise InputError(
            f"{error.filename or folder.path}: {what}; mend this and give the same command again"
        ) from error


@contextmanager
def _before_training() -> Iterator[None]:
    """Turn SIGTERM before the first step into one error, so that nothing is left behind."""
    try:
        with _sigterm_raises():
            yield
    except (SIGTERMException, RuntimeError) as stop:
        if isinstance(stop, RuntimeError) and not _is_of_a_stopped_worker(stop):
            raise
        raise InterruptedRunError(
            "stopped before training began; the same command begins it", exit_code=143
        ) from None


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise what Lightning raises for it, where Lightning is not at work."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _on_sigterm(*_: Any) -> None:
    # Lightning's own calls this one, too, and stops after the step.
    if signal.getsignal(signal.SIGTERM) is _on_sigterm:
        raise SIGTERMException


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C be Ctrl-C: Lightning answers it with sys.exit(1), and leaves it switched off."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _stoppable(folder: RunFolder, records: Records) -> Iterator[None]:
    """Turn what ends training from outside into one error that says how to go on."""
    goes_on = f"the same command goes on from step {{}} of {records.steps}"
    try:
        with _sigterm_raises(), _interruptible():
            yield
    except (KeyboardInterrupt, SIGTERMException, RuntimeError) as stop:
        # Schedulers send SIGTERM to all processes of a job: a loading worker may be gone first.
        worker = _is_of_a_stopped_worker(stop)
        if isinstance(stop, RuntimeError) and not worker:
            raise
        _log(folder, "interrupted", saved=records.saved_step)
        raise InterruptedRunError(
            f"stopped; {goes_on.format(records.saved_step)}",
            exit_code=143 if worker or isinstance(stop, SIGTERMException) else 130,
        ) from None
    except InputError as error:
        _log(folder, "failed", error=str(error))
        raise
    except BrokenPipeError:  # of the screen
        raise
    except OSError as error:
        _log(folder, "failed", error=str(error))
        what = error.strerror or " ".join(str(error).split())
        where = f" ({error.filename})" if error.filename else ""
        raise InputError(
            f"{folder.path}: {what}{where}; mend this, and {goes_on.format(records.saved_step)}"
        ) from error


def _log(folder: RunFolder, event: str, **facts: Any) -> None:
    """Note how a run ended, if there is a disk to write to."""
    with suppress(OSError):
        folder.log(event, **facts)


def _is_of_a_stopped_worker(error: BaseException | None) -> bool:
    """Whether an error, or what it came of, is that a loading worker got SIGTERM."""
    while error is not None and "killed by signal: Terminated" not in str(error):
        error = error.__cause__ or error.__context__
    return isinstance(error, RuntimeError)


_FULL_MEMORY = "the memory is full; make --batch-size or --size smaller, or give fewer --workers"


@contextmanager
def _explained() -> Iterator[None]:
    """Say in one line what is the user's to change, though it is found deep inside a library."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise InputError(
            "the accelerator's memory is full; make --batch-size or --size smaller"
        ) from None
    except MemoryError:
        raise InputError(_FULL_MEMORY) from None
    except RuntimeError as error:
        text = str(error)
        if "can't allocate memory" in text:
            raise InputError(_FULL_MEMORY) from None
        if "unable to write to file </torch" in text or "DataLoader worker (pid" in text:
            raise InputError(
                "a process that loads images was stopped "
                f"({' '.join(text.split())[-200:]}); its memory may have been too small: give "
                "fewer --workers, or 0"
            ) from error
        raise
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
            # The plan says it.
            ".*This DataLoader will create .* worker processes.*",
            ".*GPU available but not used.*",
            ".*MPS available but not used.*",
            # Of the thread that keeps the lock of the folder; a loading process does not use it.
            ".*use of fork\\(\\) may lead to deadlocks.*",
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
