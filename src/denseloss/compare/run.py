"""A whole comparison, from its settings to its report."""

import hashlib
import itertools
import platform
import shlex
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from rich.console import Console

from denseloss import compose
from denseloss.compare.budget import steps_within
from denseloss.compare.candidates import Candidate, candidates
from denseloss.compare.display import Display, duration
from denseloss.compare.doubts import doubts, seen
from denseloss.compare.fingerprint import fingerprint
from denseloss.compare.folder import ComparisonFolder
from denseloss.compare.gather import find, gather
from denseloss.compare.local import Engine, LocalEngine, visible_gpus
from denseloss.compare.measure import METRICS, poolings, size_limits
from denseloss.compare.report import write_report
from denseloss.compare.results import Results
from denseloss.compare.segmentation_sections import segmentation_sections
from denseloss.compare.settings import (
    CompareSettings,
    check,
    default_out,
)
from denseloss.compare.showcase import show_images, show_looks, time_losses
from denseloss.compare.tables import write_tables
from denseloss.compare.trials import Failed, Plan, Trial, TrialFolder, planned
from denseloss.compare.worker import Job
from denseloss.data import SegmentationData
from denseloss.train import InputError, InterruptedRunError, TrainSettings, opened
from denseloss.train.criterion import TaskCriterion
from denseloss.train.folder import to_toml
from denseloss.train.settings import accelerator_here, resolved, with_validations

_AUTO = "auto"
_TICK_SECONDS = 0.2
_SHOWN_IMAGES = 100

# What may differ when a comparison goes on: it changes which trials there are, where they run or
# how they are judged, not what comes of them.
_FREE = (
    "losses",
    "out",
    "seeds",
    "lr",
    "budget",
    "workers",
    "metric",
    "pooled",
    "effect",
    "level",
    "engine",
    "jobs",
    "address",
    "retry",
)


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
    check(settings, metrics=[metric.key for metric in METRICS])
    if settings.pooled and "pooled" not in poolings(settings.metric):
        raise InputError(f"--pooled: {settings.metric} is of single images; leave it out")
    console = console or Console(quiet=True)
    say = _speaker(console)
    folder = ComparisonFolder(settings.out or default_out(settings))
    with folder.locked(), _stoppable(folder), _writable(folder):
        before = folder.config()
        settings = replace(settings, data=_absolute(settings.data))
        data = _open(settings, console)
        validation, held_out = seen(data, data.val), seen(data, data.test)
        if not held_out.images:
            raise InputError(
                f"{settings.data}: every held-out image is void everywhere, so that nothing can be "
                "scored; label some of them, or choose another --split-seed"
            )
        proposed = _proposed(settings, data)
        settings = replace(settings, losses=tuple(c.loss for c in proposed))
        limits = size_limits(data)
        settings = _kept(settings, before)
        engine = _engine(settings, folder)
        try:
            settings = _decided(settings, before, data, engine)
            settings = _with_steps(settings, before, data, engine, say)
            folder.write_config(_config(settings, data, proposed, limits))
            for line in _plan_lines(settings, proposed, engine, data):
                say(line)
            for doubt in doubts(
                validation=validation,
                held_out=held_out,
                task=data.task,
                class_names=data.class_names,
                losses=len(settings.losses),
                level=settings.level,
            ):
                say(f"note: {doubt}")
            say(f"out: {folder.path}")
            plan = _planned(folder, settings, say)
            _run(plan, engine, settings, folder, limits, console)
        finally:
            engine.stop()
        _after(folder, plan, data, settings, say)
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
    results = gather(found)
    write_tables(found, results)
    page = write_report(results, segmentation_sections(results), folder.path)
    return CompareResult(folder=folder.path, report=page, results=results)


def _absolute(data: str) -> str:
    """Return the data's path as every process sees it, in whichever folder it runs."""
    return data if data.startswith("synthetic:") else str(_absolute_path(Path(data)))


def _absolute_path(path: Path) -> Path:
    """Return an absolute path, links as they are: other machines may not have what they lead to."""
    return path.expanduser().absolute()


def _speaker(console: Console) -> Callable[[str], None]:
    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    return say


def _open(settings: CompareSettings, console: Console) -> SegmentationData:
    data = opened(settings.trial(loss=settings.losses[0]), console=console)
    if not data.test:
        raise InputError(
            f"{settings.data}: has no held-out images to compare on; give a --test-share above 0, "
            "or add a test split"
        )
    return data


def _proposed(settings: CompareSettings, data: SegmentationData) -> list[Candidate]:
    """Return the losses as they are written in the report; refuse those that cannot be trained."""
    found: list[Candidate] = []
    for text in settings.losses:
        if text.strip() == _AUTO:
            # A class of every image may be missing from most of the squares that are trained on.
            square = _resolved_anywhere(settings.trial(loss="dice"), data).size
            found += candidates(fingerprint(data, square=square), task=data.task)
        else:
            found.append(Candidate(loss=text, reason=""))
    unique: dict[str, Candidate] = {}
    for candidate in found:
        weighted_sum = compose.parse(candidate.loss, mixed=True)
        _try(TaskCriterion(weighted_sum, task=data.task, num_classes=data.num_classes), candidate)
        loss = str(weighted_sum)
        if loss in unique and not candidate.reason and not unique[loss].reason:
            raise InputError(f"--loss {candidate.loss}: is given twice; leave one out")
        # A loss that is both named and proposed keeps the reason, and the earlier place.
        reason = candidate.reason or (unique[loss].reason if loss in unique else "")
        unique[loss] = Candidate(loss=loss, reason=reason)
    if len(unique) < 2:
        raise InputError(
            f"--loss {settings.losses[0]}: there is nothing to compare it with; give a second "
            "--loss, or --loss auto"
        )
    return [*unique.values()]


def _try(criterion: TaskCriterion, candidate: Candidate) -> None:
    """Take a loss on a small batch: what can never be computed is told now, not after hours."""
    generator = torch.Generator().manual_seed(0)
    channels = criterion.num_outputs
    logits = torch.randn(2, channels, 16, 16, generator=generator, requires_grad=True)
    classes = torch.randint(max(2, channels), (2, 16, 16), generator=generator)
    try:
        criterion([logits], classes, image=torch.randn(2, 3, 16, 16, generator=generator))
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())
        raise InputError(f"--loss {candidate.loss}: cannot be computed: {what}") from None


def _kept(settings: CompareSettings, before: dict[str, Any] | None) -> CompareSettings:
    """Keep the accelerator that was decided: the machines of a cluster come and go."""
    if before is None or settings.engine != "ray" or settings.accelerator != "auto":
        return settings
    return replace(settings, accelerator=before.get("common", {}).get("accelerator", "auto"))


def _decided(
    settings: CompareSettings,
    before: dict[str, Any] | None,
    data: SegmentationData,
    engine: Engine,
) -> CompareSettings:
    """Decide all that the trials must have in common, so that a plan can be repeated."""
    trial = settings.trial(loss="dice")
    kept = (before or {}).get("common", {})
    if settings.engine == "ray":
        # A cluster's machines may have the accelerators that this one lacks.
        here = _resolved_anywhere(trial, data)
        accelerator = settings.accelerator
        if accelerator == "auto":
            accelerator = "cuda" if engine.gpus else "cpu"
        precision = here.precision if accelerator == "cpu" else "bf16-mixed"
    else:
        here = resolved(trial, data)
        accelerator, precision = here.accelerator, here.precision
    if settings.precision != "auto":
        precision = settings.precision
    elif kept.get("accelerator") == accelerator:
        precision = kept.get("precision", precision)
    return replace(
        settings,
        size=here.size,
        base_lr=here.lr,
        accelerator=accelerator,
        precision=precision,
    )


def _resolved_anywhere(trial: TrainSettings, data: SegmentationData) -> TrainSettings:
    """Decide what does not depend on where a trial runs."""
    return resolved(replace(trial, accelerator="cpu", precision="auto"), data)


def _engine(settings: CompareSettings, folder: ComparisonFolder) -> Engine:
    if settings.engine == "ray":
        from denseloss.compare.cluster import RayEngine

        return RayEngine(
            folder.path,
            address=settings.address,
            jobs=settings.jobs,
            accelerator=settings.accelerator,
        )
    return LocalEngine(
        jobs=settings.jobs,
        gpus=visible_gpus(settings.accelerator),
        # A Mac has one GPU, which several trials would only share.
        alone=accelerator_here(settings.accelerator) == "mps",
    )


def _with_steps(
    settings: CompareSettings,
    before: dict[str, Any] | None,
    data: SegmentationData,
    engine: Engine,
    say: Callable[[str], None],
) -> CompareSettings:
    """Decide how many steps a trial has, once: a comparison that goes on keeps its plan."""
    if settings.budget is None:
        trial = _resolved_anywhere(settings.trial(loss=settings.losses[0]), data)
        steps = cast(int, trial.steps)
    elif before is not None and before.get("asked", {}).get("budget") == settings.budget:
        steps = int(before["common"]["steps"])
    else:
        started = time.monotonic()
        say("measuring how long a step takes")
        lr = cast(float, settings.base_lr)
        times = []
        with tempfile.TemporaryDirectory(prefix="denseloss-") as root:
            elsewhere = ComparisonFolder(Path(root))
            jobs = [
                _job(settings, Trial(loss=loss, seed=0, lr=lr), elsewhere, None)
                for loss in settings.losses
            ]
            # All losses, and as many at a time as there will be.
            for first in range(0, len(jobs), engine.slots):
                wave = itertools.islice(itertools.cycle(jobs), first, first + engine.slots)
                times += engine.probe([*wave])
        steps = steps_within(
            settings.budget - (time.monotonic() - started),
            times,
            trials=settings.trials,
            slots=engine.slots,
            settings=settings.trial(loss=settings.losses[0]),
            images=len(data.train),
        )
    trial = with_validations(
        replace(settings.trial(loss=settings.losses[0]), steps=steps), images=len(data.train)
    )
    return replace(settings, steps=steps, epochs=None, val_every=trial.val_every)


def _config(
    settings: CompareSettings,
    data: SegmentationData,
    proposed: Sequence[Candidate],
    limits: tuple[float, float] | None,
) -> dict[str, dict[str, Any]]:
    asked = asdict(settings)
    config = {
        "asked": {k: v for k, v in asked.items() if k in _FREE and k != "out" and v is not None},
        "reasons": {c.loss: c.reason for c in proposed if c.reason},
        "common": {k: v for k, v in asked.items() if k not in _FREE and v is not None},
        "data": {
            "name": data.name,
            "lines": data.describe(),
            "task": data.task,
            "class_names": data.class_names,
            "train": len(data.train),
            "val": len(data.val),
            "test": len(data.test),
            "split": data.split_note,
            "files": _digest(data),
            "size_limits": list(limits) if limits is not None else [],
        },
        "run": {
            "command": shlex.join(["denseloss", *sys.argv[1:]]),
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


def _digest(data: SegmentationData) -> str:
    """Return what changes with the images there are, their split and what the masks say.

    Of an image it takes the size of the file: to read them all would take as long as an epoch.
    """
    digest = hashlib.blake2b(digest_size=8)
    for split in (data.train, data.val, data.test):
        digest.update(f"{len(split)}\n".encode())
        for sample in split:
            size = sample.image.stat().st_size if sample.image is not None else 0
            mask = sample.mask.read_bytes() if sample.mask is not None else b""
            digest.update(f"{sample.name}\n{size}\n{len(mask)}\n".encode())
            digest.update(mask)
    return digest.hexdigest()


def _plan_lines(
    settings: CompareSettings,
    proposed: Sequence[Candidate],
    engine: Engine,
    data: SegmentationData,
) -> Iterator[str]:
    yield f"losses: {len(proposed)}, the first is the baseline"
    for candidate in proposed:
        yield f"  {candidate.loss}" + (f"  ({candidate.reason})" if candidate.reason else "")
        criterion = TaskCriterion(
            compose.parse(candidate.loss, mixed=True), task=data.task, num_classes=data.num_classes
        )
        yield from (f"    {note}" for note in criterion.notes)
    seeds, rates = settings.lr_seeds, settings.rates
    tried = ", ".join(f"{rate:g}" for rate in rates)
    of_rates = (
        f"learning rates {tried} on {'the first seed' if seeds == 1 else f'{seeds} seeds'}, the "
        "best on validation for the others"
        if len(rates) > 1
        else f"learning rate {tried}"
    )
    yield (
        f"trials: {len(proposed)} losses, {settings.seeds} seed{'s' * (settings.seeds > 1)}, "
        f"{of_rates}: "
        f"{settings.trials} trials of {settings.steps} steps"
    )
    yield f"machine: {engine.name}"


def _planned(
    folder: ComparisonFolder,
    settings: CompareSettings,
    say: Callable[[str], None],
) -> Plan:
    """Return what is left to do; broken folders are set aside, chance failures forgotten."""
    # All that could be in the plan: which learning rate is chosen depends on what is sound.
    every = itertools.product(settings.losses, range(settings.seeds), settings.rates)
    for loss, seed, lr in every:
        files = TrialFolder(folder.path, Trial(loss=loss, seed=seed, lr=lr))
        problem = files.problem()
        if problem is not None:
            say(f"broken: {problem}; set aside as {files.set_aside()}, that trial runs again")
        failure = files.failure()
        if failure is not None and (settings.retry or not failure.own):
            files.forget_failure()
    return planned(folder.path, settings)


def _job(
    settings: CompareSettings,
    trial: Trial,
    folder: ComparisonFolder,
    limits: tuple[float, float] | None,
) -> Job:
    return Job(
        root=_absolute_path(folder.path),
        trial=trial,
        settings=settings,
        size_limits=limits,
        keep=_SHOWN_IMAGES,
    )


def _run(
    plan: Plan,
    engine: Engine,
    settings: CompareSettings,
    folder: ComparisonFolder,
    limits: tuple[float, float] | None,
    console: Console,
) -> None:
    """Run all that is left of a plan."""
    display = Display(
        console, plan, root=folder.path, steps=cast(int, settings.steps), slots=engine.slots
    )
    say = _speaker(console)
    done, started = plan.done, time.monotonic()
    if done:
        say(f"{done} of {plan.total} trials have ended before")
    with display:
        while plan.running or plan.done < plan.total:
            while engine.free() and (trial := plan.next()) is not None:
                display.begin(trial)
                try:
                    engine.start(_job(settings, trial, folder, limits))
                except OSError as error:
                    unable = Failed(error=f"cannot be started: {error}", own=False)
                    display.end(trial, _settle(folder, plan, trial, unable))
            for outcome in engine.wait(_TICK_SECONDS):
                failed = _settle(folder, plan, outcome.trial, outcome.failed)
                display.end(outcome.trial, failed)
            display.tick()
    if plan.done > done:
        more = f"{plan.done - done} more trials ended" if done else "trials ended"
        say(f"{plan.done} of {plan.total} {more} in {duration(time.monotonic() - started)}")


def _settle(
    folder: ComparisonFolder, plan: Plan, trial: Trial, failed: Failed | None
) -> Failed | None:
    """Take note of how a trial ended; what counts is what is in its folder."""
    files = TrialFolder(folder.path, trial)
    if failed is None:
        problem = files.problem() if files.state() == "finished" else "its results are missing"
        if problem is None:
            plan.finish(trial, "finished", files.validation_score())
            return None
        failed = Failed(error=problem, own=False)
    try:
        files.fail(failed)
    except OSError as error:
        # The disk is full, perhaps: the trial counts as failed now, and is tried again next time.
        failed = replace(failed, error=f"{failed.error} (and this could not be noted: {error})")
    plan.finish(trial, "failed")
    return failed


def _after(
    folder: ComparisonFolder,
    plan: Plan,
    data: SegmentationData,
    settings: CompareSettings,
    say: Callable[[str], None],
) -> None:
    """Make what needs the data and the networks once more, now that nothing else runs."""
    show_images(folder, data, keep=_SHOWN_IMAGES)
    for note in (*time_losses(folder, data, settings), *show_looks(folder, plan, data)):
        say(note)


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
    except OSError as error:
        raise InputError(
            f"{folder.path}: {error.strerror or error}"
            f"{f' ({error.filename})' if error.filename else ''}; the trials that are finished are "
            "safe: mend this and give the same command again"
        ) from error
