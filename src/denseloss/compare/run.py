"""A whole comparison, from its settings to its report."""

import itertools
import platform
import signal
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from denseloss import compose
from denseloss.compare.aggregate import aggregate, find
from denseloss.compare.artifacts import make_artifacts
from denseloss.compare.budget import steps_within
from denseloss.compare.caveats import of_images
from denseloss.compare.contents import contents
from denseloss.compare.display import Display
from denseloss.compare.export import write_tables
from denseloss.compare.folder import ComparisonFolder
from denseloss.compare.local_engine import Engine, LocalEngine, visible_gpus
from denseloss.compare.plan import ComparePlan, Trial, metric_of, plan_of
from denseloss.compare.results import Results
from denseloss.compare.settings import (
    CompareSettings,
    check_compare,
    default_out,
    seconds,
)
from denseloss.compare.trials import Failed, Progress, TrialFolder, progress_of
from denseloss.compare.worker import Job
from denseloss.data.errors import InputError
from denseloss.report import write_report
from denseloss.report.numbers import duration
from denseloss.tasks import Candidate, Data, Split, Task, asked
from denseloss.train.errors import InterruptedRunError
from denseloss.train.folder import FORMAT, to_toml
from denseloss.train.lines import say_line
from denseloss.train.own_code import keep, look_at, record
from denseloss.train.plan import TrainPlan, accelerator_here, default_size, options_of
from denseloss.train.plan import plan_of as train_plan_of
from denseloss.train.run import facts, opened, step_times, try_plan
from denseloss.train.settings import TrainSettings, TrialSettings, command
from denseloss.user_code import full_name, is_user_code

_AUTO = "auto"
_TICK_SECONDS = 0.2
_SHOWN_IMAGES = 100
_EXAMPLE_SIDE = 32


@dataclass(frozen=True, kw_only=True)
class CompareResult:
    """What came of a comparison.

    Attributes:
        folder: Where its files are.
        report: The page.
        results: All that is in it.
    """

    folder: Path
    report: Path
    results: Results


def compare(settings: CompareSettings, *, console: Console | None = None) -> CompareResult:
    """Train with several losses, several seeds each, and report which one suits the data.

    What an earlier call with the same settings has done is not done again.

    Args:
        settings: What to do.
        console: Where to say what is going on; None says nothing.

    Returns:
        The finished comparison; trials that failed are reported in it.

    Raises:
        InputError: A setting cannot be used, or no trial of the baseline finished.
        DataError: The data cannot be used.
        InterruptedRunError: It was stopped from outside; the same call goes on with it.
    """
    check_compare(settings)
    settings = replace(settings, data=_absolute(settings.data))
    task, task_name = asked(settings.task, settings.data)
    metric = metric_of(settings, task.metrics)
    console = console or Console(quiet=True)
    say = _speaker(console)
    folder = ComparisonFolder(settings.out or default_out(settings))
    with _stoppable(folder), folder.locked(say=say), _writable(folder):
        before = folder.config()
        data = _open(settings, task, console)
        candidates, looked = _candidates(settings, task, data)
        engine = _engine(settings, before, folder)
        try:
            common = _common(
                settings, task, task_name, data, engine, folder, before, candidates, say
            )
            plan = plan_of(settings, common, candidates, metric)
            for note in try_plan(common, data):
                say(note)
            context = task.context(data)
            if plan.budget:
                steps = _known_steps(before, plan)
                every, images = settings.val_every, len(data.train)
                if steps is None:
                    say("measuring how long a step takes")
                    steps = _steps_in_budget(plan, engine, folder, data, context, every)
                common = plan.common.with_steps(steps, images=images, every=every)
                plan = replace(plan, common=common)
            code = {**({} if before is None else before.get("code", {})), **record(plan.losses)}
            notes = {loss: (*_notes(plan, loss, data), *looked[loss]) for loss in plan.losses}
            folder.write_config(
                {**_config(plan, settings, task, data, context, notes), "code": code}
            )
            keep(plan.losses, code, folder.code)
            for line in (*_plan_lines(plan, engine, notes), *_caveats(plan, data)):
                say(line)
            say(f"out: {folder.path}")
            progress = _progress(folder, plan, settings, say)
            job = _job_of(folder, plan, folder.write_data(data), context)
            _run(progress, engine, folder, job, console)
        finally:
            engine.stop()
        for note in make_artifacts(folder, plan, progress, data, keep=_SHOWN_IMAGES):
            say(note)
        return _reported(folder)


def make_report(path: Path) -> CompareResult:
    """Make the report of a comparison again, from its folder alone.

    Args:
        path: The comparison's folder.

    Raises:
        InputError: It is no such folder, or holds too little to report on.
    """
    folder = ComparisonFolder(path)
    if not folder.config_file.exists():
        raise InputError(
            f"{path}: holds no comparison (no {folder.config_file.name}); give the --out of a "
            "denseloss compare"
        )
    with folder.locked(), _writable(folder):
        return _reported(folder)


def _reported(folder: ComparisonFolder) -> CompareResult:
    found = find(folder)
    results, sections = aggregate(found)
    write_tables(found, results)
    page = write_report(contents(results, sections), folder.path)
    if not found.unfinished:
        folder.add_look(found.plan.seeds)
    return CompareResult(folder=folder.path, report=page, results=results)


def _absolute(data: str) -> str:
    """Return the data's path as every process sees it, in whichever folder it runs.

    Links stay as they are: other machines may not have what they lead to.
    """
    if data.startswith("synthetic:") or is_user_code(data):
        return full_name(data)
    return str(Path(data).expanduser().absolute())


def _speaker(console: Console) -> Callable[[str], None]:
    def say(line: str) -> None:
        say_line(console, line)

    return say


def _open(settings: CompareSettings, task: Task, console: Console) -> Data:
    split = Split(
        seed=settings.split_seed, val_share=settings.val_share, test_share=settings.test_share
    )
    data = opened(settings, task, split, console=console)
    if not data.test:
        raise InputError(
            f"{settings.data}: has no held-out images to compare on; give a --test-share above 0, "
            "or add a test split"
        )
    if not task.summary(data, data.test).images:
        raise InputError(
            f"{settings.data}: every held-out image is void everywhere, so that nothing can be "
            "scored; label some of them, or choose another --split-seed"
        )
    return data


def _candidates(
    settings: CompareSettings, task: Task, data: Data
) -> tuple[list[Candidate], dict[str, tuple[str, ...]]]:
    """Return the losses with their whole text, and what is odd about those of the user's own.

    Raises:
        InputError: One cannot be trained.
    """
    looked: dict[str, tuple[str, ...]] = {}
    found: list[Candidate] = []
    for text in settings.loss:
        if text.strip() == _AUTO:
            proposed = list(task.advise(data, size=settings.size or default_size(task, data)))
            if not proposed:
                raise InputError(f"--loss auto: {task.name} proposes no losses; name some")
            found += proposed
        else:
            found.append(Candidate(loss=text, reason=""))
    unique: dict[str, Candidate] = {}
    for candidate in found:
        weighted_sum = compose.parse(candidate.loss, mixed=True)
        loss = str(weighted_sum)
        looked[loss] = look_at(loss, task, data, settings)
        _try(task, data, weighted_sum, candidate, settings)
        if loss in unique and not candidate.reason and not unique[loss].reason:
            raise InputError(f"--loss {candidate.loss}: is given twice; leave one out")
        # A loss that is both named and proposed keeps the reason, and the earlier place.
        reason = candidate.reason or (unique[loss].reason if loss in unique else "")
        unique[loss] = Candidate(loss=loss, reason=reason)
    if len(unique) < 2:
        raise InputError(
            f"--loss {settings.loss[0]}: there is nothing to compare it with; give a second "
            "--loss, or --loss auto"
        )
    return [*unique.values()], looked


def _try(
    task: Task,
    data: Data,
    weighted_sum: compose.WeightedSum,
    candidate: Candidate,
    settings: CompareSettings,
) -> None:
    """Take a loss on a small batch: what can never be computed is told now, not after hours."""
    criterion = task.criterion(weighted_sum, data)
    outputs, batch = task.example(
        data,
        criterion,
        batch_size=2,
        # Code of the user's own may need as much as it will get.
        size=(
            settings.size or default_size(task, data)
            if compose.user_losses(weighted_sum)
            else _EXAMPLE_SIDE
        ),
        model=settings.model or task.defaults.model,
        options=options_of(task, settings),
    )
    try:
        criterion(outputs, batch)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())
        raise InputError(f"--loss {candidate.loss}: cannot be computed: {what}") from None


def _common(
    settings: CompareSettings,
    task: Task,
    task_name: str,
    data: Data,
    engine: Engine,
    folder: ComparisonFolder,
    before: dict[str, Any] | None,
    candidates: Sequence[Candidate],
    say: Callable[[str], None] = lambda _: None,
) -> TrainPlan:
    """Decide all that the trials have in common, once: a comparison that goes on keeps it."""
    known = None if before is None else folder.plan(before).common
    accelerator, precision = settings.accelerator, settings.precision
    if settings.engine == "ray":
        # A cluster's machines may have the accelerators that this one lacks.
        if accelerator == "auto":
            accelerator = "cuda" if engine.gpus else "cpu"
        if precision == "auto":
            precision = "32-true" if accelerator == "cpu" else "bf16-mixed"
    shared = {field.name: getattr(settings, field.name) for field in fields(TrialSettings)}
    own = {
        "loss": candidates[0].loss,
        "lr": settings.base_lr,
        "split_seed": settings.split_seed,
        "precision": precision,
        "accelerator": accelerator,
        "workers": settings.workers,
        "threads": 1,
        "out": None,
    }
    trial = TrainSettings(**{**shared, **own})
    return train_plan_of(
        trial,
        task,
        task_name,
        data,
        clock=lambda plan: step_times(plan, data),
        known=known,
        elsewhere=settings.engine == "ray",
        say=say,
    )


def _engine(
    settings: CompareSettings, before: dict[str, Any] | None, folder: ComparisonFolder
) -> Engine:
    if settings.engine == "ray":
        from denseloss.compare.ray_engine import RayEngine

        accelerator: str = settings.accelerator
        if before is not None and accelerator == "auto":
            # The machines of a cluster come and go.
            accelerator = before.get("common", {}).get("accelerator", "auto")
        return RayEngine(
            folder.path,
            address=settings.address,
            jobs=settings.jobs,
            accelerator=accelerator,
        )
    return LocalEngine(
        jobs=settings.jobs,
        gpus=visible_gpus(settings.accelerator),
        # A Mac has one GPU, which several trials would only share.
        alone=accelerator_here(settings.accelerator) == "mps",
    )


def _known_steps(before: dict[str, Any] | None, plan: ComparePlan) -> int | None:
    """Return the steps that were planned for the same budget before."""
    if before is None or before["asked"].get("budget") != plan.budget:
        return None
    return int(before["common"]["steps"])


def _steps_in_budget(
    plan: ComparePlan,
    engine: Engine,
    folder: ComparisonFolder,
    data: Data,
    context: dict[str, Any],
    every: int | None,
) -> int:
    """Return as many steps for each trial as the budget allows, by timing some."""
    started = time.monotonic()
    times = []
    # Where every machine sees it, and hidden: the folder may yet turn out to be another's.
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=folder.path) as place:
        aside = ComparisonFolder(Path(place))
        job_of = _job_of(aside, plan, aside.write_data(data), context)
        jobs = [job_of(Trial(loss=loss, seed=0, lr=plan.common.lr)) for loss in plan.losses]
        # All losses, and as many at a time as there will be.
        for first in range(0, len(jobs), engine.slots):
            wave = itertools.islice(itertools.cycle(jobs), first, first + engine.slots)
            times += engine.probe([*wave])
    return steps_within(
        seconds(plan.budget) - (time.monotonic() - started),
        times,
        trials=plan.trials,
        slots=engine.slots,
        plan=plan.common,
        images=len(data.train),
        every=every,
    )


def _config(
    plan: ComparePlan,
    settings: CompareSettings,
    task: Task,
    data: Data,
    context: dict[str, Any],
    notes: Mapping[str, Sequence[str]],
) -> dict[str, dict[str, Any]]:
    config = {
        **plan.to_tables(),
        "where": {
            "engine": settings.engine,
            "jobs": settings.jobs,
            "address": settings.address,
        },
        "data": {
            **facts(task, data),
            "lines": data.describe(),
            "files": task.digest(data),
        },
        "notes": {loss: list(said) for loss, said in notes.items() if said},
        "context": context,
        "run": {
            "format": FORMAT,
            "command": command("compare", settings),
            "machine": platform.platform(),
            "python": platform.python_version(),
            **{
                name: version(name)
                for name in ("denseloss", "torch", "torchvision", "lightning", "monai", "scipy")
            },
        },
    }
    # As it will be read back: a tuple becomes a list, None disappears.
    return tomllib.loads(to_toml(config))


def _plan_lines(
    plan: ComparePlan, engine: Engine, notes: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    yield f"losses: {len(plan.candidates)}"
    for candidate in plan.candidates:
        reason = f"  ({candidate.reason})" if candidate.reason else ""
        yield f"  {plan.names[candidate.loss]}{reason}"
        yield from (f"    {note}" for note in notes[candidate.loss])
    tried = ", ".join(f"{rate:g}" for rate in plan.rates)
    first = "the first seed" if plan.lr_seeds == 1 else f"{plan.lr_seeds} seeds"
    of_rates = (
        f"learning rates {tried} on {first}, the best on validation for the others"
        if len(plan.rates) > 1
        else f"learning rate {tried}"
    )
    yield (
        f"trials: {len(plan.candidates)} losses, {plan.seeds} seed{'s' * (plan.seeds > 1)}, "
        f"{of_rates}: {plan.trials} trials of {plan.common.steps} steps"
    )
    yield f"machine: {engine.name}, precision {plan.common.precision} (losses in float32)"


def _notes(plan: ComparePlan, loss: str, data: Data) -> tuple[str, ...]:
    """Return what a loss is taken as on this data, in plain words."""
    criterion = plan.task.criterion(compose.parse(loss, mixed=True), data)
    notes: tuple[str, ...] = criterion.notes
    return notes


def _caveats(plan: ComparePlan, data: Data) -> Iterator[str]:
    for caveat in of_images(
        validation=plan.task.summary(data, data.val),
        held_out=plan.task.summary(data, data.test),
    ):
        yield f"note: {caveat}"


def _progress(
    folder: ComparisonFolder,
    plan: ComparePlan,
    settings: CompareSettings,
    say: Callable[[str], None],
) -> Progress:
    """Return what is left to do; broken folders are set aside, chance failures forgotten."""
    # All that could be in the plan: which learning rate is chosen depends on what is sound.
    every = itertools.product(plan.losses, range(plan.seeds), plan.rates)
    for loss, seed, lr in every:
        files = TrialFolder(folder.path, Trial(loss=loss, seed=seed, lr=lr))
        problem = files.problem()
        if problem is not None:
            say(f"broken: {problem}; set aside as {files.set_aside()}, that trial runs again")
        failure = files.failure()
        if failure is not None and (settings.retry or not failure.own):
            files.forget_failure()
    return progress_of(folder.path, plan)


def _job_of(
    folder: ComparisonFolder, plan: ComparePlan, digest: str, context: dict[str, Any]
) -> Callable[[Trial], Job]:
    root = folder.path.expanduser().absolute()

    def job(trial: Trial) -> Job:
        return Job(
            root=root,
            trial=trial,
            plan=plan.of(trial),
            data=digest,
            context=context,
            keep=_SHOWN_IMAGES,
            code=record([trial.loss]),
            cwd=str(Path.cwd()),
        )

    return job


def _run(
    progress: Progress,
    engine: Engine,
    folder: ComparisonFolder,
    job_of: Callable[[Trial], Job],
    console: Console,
) -> None:
    """Run all that is left."""
    display = Display(console, progress, root=folder.path, slots=engine.slots)
    say = _speaker(console)
    done, started = progress.done, time.monotonic()
    if done:
        say(f"{done} of {progress.total} trials have ended before")
    with display:
        while progress.running or progress.done < progress.total:
            while engine.free() and (trial := progress.next()) is not None:
                display.begin(trial)
                try:
                    engine.start(job_of(trial))
                except OSError as error:
                    unable = Failed(error=f"cannot be started: {error}", own=False)
                    display.end(trial, _settle(folder, progress, trial, unable))
            for outcome in engine.wait(_TICK_SECONDS):
                failed = _settle(folder, progress, outcome.trial, outcome.failed)
                display.end(outcome.trial, failed)
            display.tick()
    if progress.done > done:
        more = f"{progress.done - done} more trials ended" if done else "trials ended"
        took = duration(time.monotonic() - started)
        say(f"{progress.done} of {progress.total} {more} in {took}")


def _settle(
    folder: ComparisonFolder, progress: Progress, trial: Trial, failed: Failed | None
) -> Failed | None:
    """Take note of how a trial ended; what counts is what is in its folder."""
    files = TrialFolder(folder.path, trial)
    if failed is None:
        problem = files.problem() if files.state() == "finished" else "its results are missing"
        if problem is None:
            progress.finish(trial, "finished", files.validation_score())
            return None
        failed = Failed(error=problem, own=False)
    try:
        files.fail(failed)
    except OSError as error:
        # The disk is full, perhaps: the trial counts as failed now, and is tried again next time.
        failed = replace(failed, error=f"{failed.error} (and this could not be noted: {error})")
    progress.finish(trial, "failed")
    return failed


@contextmanager
def _stoppable(folder: ComparisonFolder) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into one error that says how to go on."""
    terminated = False

    def stop(_: int, __: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        # Ray's own code lets no other exception through.
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread, where signals do not arrive
        yield
        return
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"stopped; the same command goes on with what is missing in {folder.path}",
            exit_code=143 if terminated else 130,
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _writable(folder: ComparisonFolder) -> Iterator[None]:
    """Say in one line that the folder cannot be written any more."""
    try:
        yield
    except BrokenPipeError:  # of the screen
        raise
    except OSError as error:
        raise InputError(
            f"{folder.path}: {error.strerror or error}"
            f"{f' ({error.filename})' if error.filename else ''}; the trials that are finished are "
            "safe: mend this and give the same command again"
        ) from error
