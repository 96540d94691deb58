"""One trial, in a process of its own that calls `main`, the job on stdin.

Its words go into the trial's log. On stdout comes one line of JSON at the end: `{"error": null}`,
or the error and whether the trial itself is its reason. When stdin closes, whoever started it is
gone, and so is the worker.
"""

import contextlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from denseloss.compare.settings import CompareSettings
from denseloss.compare.trials import Failed, Trial, TrialFolder

_INTERRUPTED = 3


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker must know.

    Attributes:
        root: The comparison's folder.
        trial: What to train.
        settings: Of the comparison, steps decided.
        size_limits: Object areas that divide small, medium and large.
        keep: How many predictions of held-out images are kept.
    """

    root: Path
    trial: Trial
    settings: CompareSettings
    size_limits: tuple[float, float] | None
    keep: int

    def to_json(self) -> str:
        """Return the job as a line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, line: str) -> "Job":
        """Read a job."""
        found = json.loads(line)
        limits = found["size_limits"]
        return cls(
            root=Path(found["root"]),
            trial=Trial(**found["trial"]),
            settings=CompareSettings.from_plain(found["settings"]),
            size_limits=None if limits is None else (limits[0], limits[1]),
            keep=found["keep"],
        )


def run_trial(job: Job) -> Failed | None:
    """Train, measure, and write all of it into the trial's folder; return why that failed.

    What an earlier process left there is used: a finished part is not done again.

    Raises:
        InterruptedRunError: It was stopped from outside.
    """
    # They take seconds; whoever only plans trials does not need them.
    from rich.console import Console

    from denseloss.compose import ParseError
    from denseloss.data import DataError
    from denseloss.train import InputError, InterruptedRunError
    from denseloss.train.errors import DivergedError

    folder = TrialFolder(job.root, job.trial)
    try:
        broken = folder.problem()
        if broken is not None:
            print(f"{broken}; set aside as {folder.set_aside()}", flush=True)
        _train(job, folder, Console())
        _measure(job, folder)
    except InterruptedRunError:
        raise
    except DivergedError as error:
        return Failed(
            error=f"{error.what}. Likely causes: a learning rate that is too high (it was "
            f"{error.lr:g}; --base-lr is the middle of those that are tried), or labels beyond the "
            "classes (look with `denseloss check`)",
            own=True,
        )
    except (DataError, ParseError, InputError) as error:
        # What the loss, the settings and the data allow was looked at before anything ran: data
        # or a GPU that is not there now, or is full, is the fault of this machine.
        return Failed(error=str(error), own=False)
    except MemoryError:
        return Failed(error="the memory is full; run fewer --jobs at a time", own=False)
    except Exception as error:
        with contextlib.suppress(OSError):  # the log is on the disk that is full
            traceback.print_exc()
        what = " ".join(str(error).split())
        return Failed(error=f"{type(error).__name__}: {what}"[:500], own=False)
    return None


def _train(job: Job, folder: TrialFolder, console: Any) -> None:
    from dataclasses import replace

    from denseloss.train import train

    if folder.trained():
        return
    trial = job.trial
    settings = job.settings.trial(loss=trial.loss, seed=trial.seed, lr=trial.lr)
    train(replace(settings, out=folder.path), console=console)


def _measure(job: Job, folder: TrialFolder) -> None:
    from denseloss.compare import measure
    from denseloss.train import opened

    data = opened(job.settings.trial(loss=job.trial.loss))
    task = measure.restore(folder.path, data=data)
    for samples, path, keep in (
        (data.val, folder.validation_file, 0),
        (data.test, folder.held_out_file, job.keep),
    ):
        if not path.exists():
            measured = measure.measure(task, data, samples, size_limits=job.size_limits, keep=keep)
            measured.save(path)
    # A finished run is not resumed: what only resuming needs would fill the disk.
    folder.run.last_file.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Times:
    """How long the parts of a trial take, in seconds.

    Attributes:
        step: A training step.
        validation: A whole validation.
        rest: All else: start, pictures, measurement of the held-out images.
    """

    step: float
    validation: float
    rest: float


def probe(job: Job) -> Times:
    """Time a trial of a single step, and its parts.

    Raises:
        InputError: The trial cannot be run; the message is its error.
    """
    import tempfile
    import time
    from dataclasses import replace

    from denseloss.train import InputError, step_times

    # Inside the folder of whoever asks, who removes it even if this process is killed; another
    # machine may not see it.
    inside = job.root if job.root.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="denseloss-", dir=inside) as folder:
        settings = replace(job.settings, steps=1, epochs=None, val_every=1)
        started = time.monotonic()
        failed = run_trial(replace(job, root=Path(folder), settings=settings))
        whole = time.monotonic() - started
    if failed is not None:
        raise InputError(failed.error)
    trial = job.settings.trial(loss=job.trial.loss, seed=job.trial.seed, lr=job.trial.lr)
    step, validation = step_times(trial)
    return Times(step=step, validation=validation, rest=max(0.0, whole - step - validation))


def _timed(job: Job) -> dict[str, Any]:
    """Return the times and how long it took to find them, or why there are none."""
    import time

    from denseloss.train import InputError

    started = time.monotonic()
    try:
        return {**asdict(probe(job)), "seconds": time.monotonic() - started}
    except InputError as error:
        return {"error": str(error)}


def _vanish_with_parent() -> None:
    """End the process when stdin closes: nobody would see the end of this trial."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os._exit(_INTERRUPTED)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def logged(log: Path) -> Iterator[None]:
    """Send what Python prints into a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield


@contextlib.contextmanager
def _talking_to(log: Path) -> Iterator[Any]:
    """Send stdout and stderr, of libraries in C, too, into a file; yield the old stdout."""
    log.parent.mkdir(parents=True, exist_ok=True)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        yield answers


def main() -> int:
    """Run the job that comes on stdin."""
    # No library may start its pool of threads before this; torch reads it when it is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Not a byte more than the line: the end of stdin is watched for after it.
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        job = Job.from_json(stdin.readline().decode())
    from denseloss.train import InterruptedRunError

    _vanish_with_parent()
    try:
        with _talking_to(TrialFolder(job.root, job.trial).log_file) as answers:
            answer: Mapping[str, Any]
            if "--probe" in sys.argv[1:]:
                answer = _timed(job)
            else:
                failed = run_trial(job)
                answer = asdict(failed) if failed else {"error": None, "own": False}
            answers.write(json.dumps(answer) + "\n")
            answers.close()
    except InterruptedRunError:
        return _INTERRUPTED
    return 0
