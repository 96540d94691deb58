"""Trials, in a process of their own that calls `main`, the jobs on stdin.

Its words go into the trial's log. On stdout comes one line of JSON at the end of each trial:
`{"error": null}`, or the error and whether the trial itself is its reason. When stdin closes,
whoever started it is gone, and so is the worker.
"""

import contextlib
import gc
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from denseloss.compare.folder import ComparisonFolder
from denseloss.compare.plan import Trial
from denseloss.compare.trials import Failed, TrialFolder
from denseloss.data.errors import DataError, InputError
from denseloss.data.files import save_arrays
from denseloss.tasks import Data
from denseloss.train.plan import TrainPlan
from denseloss.user_code import look_in

_INTERRUPTED = 3
# A file server takes a while to notice that a machine is gone.
_PATIENCE_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker must know.

    Attributes:
        root: The comparison's folder.
        trial: What to train.
        plan: How.
        data: Digest of the data that is kept in the folder.
        context: What measurements need to know of the training data.
        keep: How many predictions of held-out images are kept.
        code: What is known of the files in which the loss is the user's own.
        cwd: Where modules of the user's own are looked for, too.
        probe: Whether the trial is to be timed only.
    """

    root: Path
    trial: Trial
    plan: TrainPlan
    data: str
    context: Mapping[str, Any]
    keep: int
    code: dict[str, dict[str, str]] = field(default_factory=dict)
    cwd: str = ""
    probe: bool = False

    def to_json(self) -> str:
        """Return the job as a line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, line: str) -> "Job":
        """Read a job."""
        found = json.loads(line)
        return cls(
            **{
                **found,
                "root": Path(found["root"]),
                "trial": Trial(**found["trial"]),
                "plan": TrainPlan.from_table(found["plan"]),
            }
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
    from denseloss.train.errors import DivergedError, InterruptedRunError

    folder = TrialFolder(job.root, job.trial)
    try:
        with folder.run.locked(patience=_PATIENCE_SECONDS, say=print):
            _find_code(job)
            broken = folder.problem()
            if broken is not None:
                print(f"{broken}; set aside as {folder.set_aside()}", flush=True)
            data = _data_of(job)
            _train(job, folder, data, Console())
            _measure(job, folder, data)
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


def _find_code(job: Job) -> None:
    """Find the user's own code as whoever started the trial did.

    Raises:
        InputError: It was edited since.
    """
    if job.cwd:
        look_in(job.cwd)
    if job.code:
        from denseloss.train.own_code import changed, record

        edited = changed(job.code, record([job.plan.loss]))
        if edited is not None:
            raise InputError(f"{edited}: the trials before were of other code; set it back")


def _train(job: Job, folder: TrialFolder, data: Data, console: Any) -> None:
    from denseloss.train.run import run

    if not folder.trained():
        run(job.plan, data, folder=folder.run, console=console)


def _measure(job: Job, folder: TrialFolder, data: Data) -> None:
    from denseloss.tasks import named
    from denseloss.train.run import load_run

    missing = [
        (samples, path, keep)
        for samples, path, keep in (
            (data.val, folder.validation_file, 0),
            (data.test, folder.held_out_file, job.keep),
        )
        if not path.exists()
    ]
    task = named(job.plan.task)
    if missing:
        _, trained = load_run(folder.path, data)
    for samples, path, keep in missing:
        measured = task.measure(trained, data, samples, context=job.context, keep=keep)
        save_arrays(path, task.to_arrays(measured))
    # A finished run is not resumed: what only resuming needs would fill the disk.
    folder.run.last_file.unlink(missing_ok=True)


def _data_of(job: Job) -> Data:
    """Return the data that was opened for all trials."""
    from denseloss.tasks import named

    # Its class may be that of a task in a file of the user's.
    named(job.plan.task)
    return ComparisonFolder(job.root).read_data(job.data)


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
    import shutil
    import tempfile
    import time
    from dataclasses import replace

    from denseloss.train.run import step_times

    # Inside the folder of whoever asks, who removes it even if this process is killed.
    with tempfile.TemporaryDirectory(prefix="denseloss-", dir=job.root) as folder:
        shutil.copy(ComparisonFolder(job.root).data_file, folder)
        one = replace(job.plan, steps=1, val_every=1)
        started = time.monotonic()
        failed = run_trial(replace(job, root=Path(folder), plan=one))
        whole = time.monotonic() - started
    if failed is not None:
        raise InputError(failed.error)
    step, validation = step_times(job.plan, _data_of(job))
    return Times(step=step, validation=validation, rest=max(0.0, whole - step - validation))


def _timed(job: Job) -> dict[str, Any]:
    """Return the times and how long it took to find them, or why there are none."""
    import time

    started = time.monotonic()
    try:
        return {**asdict(probe(job)), "seconds": time.monotonic() - started}
    except InputError as error:
        return {"error": str(error), "own": False}


def _jobs_from_parent() -> "queue.SimpleQueue[bytes]":
    """Return the lines of stdin as they come, and end the process when it closes.

    Nobody would see the end of a trial then. What it has done stays, and is gone on from.
    """
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        with open(0, "rb", buffering=0, closefd=False) as stdin:
            for line in stdin:
                lines.put(line)
        os._exit(_INTERRUPTED)

    threading.Thread(target=listen, daemon=True).start()
    return lines


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
def _talking_to(log: Path) -> Iterator[None]:
    """Send stdout and stderr, of libraries in C, too, into a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        yield
        sys.stdout.flush()
        sys.stderr.flush()


def main() -> int:
    """Run the jobs that come on stdin, one after the other, until it closes.

    A worker that is used again has imported what trials need. It ends after a trial that failed:
    the next one begins with a clean memory.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    lines = _jobs_from_parent()
    failed = False
    while not failed:
        job = Job.from_json(lines.get().decode())
        from denseloss.train.errors import InterruptedRunError

        try:
            with _talking_to(TrialFolder(job.root, job.trial).log_file):
                answer: Mapping[str, Any]
                if job.probe:
                    answer = _timed(job)
                else:
                    ended = run_trial(job)
                    answer = asdict(ended) if ended else {"error": None, "own": False}
        except InterruptedRunError:
            return _INTERRUPTED
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        # A trainer and its loaders hold each other: the processes that load images would live on.
        gc.collect()
        failed = answer.get("error") is not None
    return 0
