"""Trials on this machine: a process each, one thread each, and a GPU each where there are some."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol

from denseloss.compare.plan import Trial
from denseloss.compare.trials import Failed, TrialFolder
from denseloss.compare.worker import Job, Times
from denseloss.data.errors import InputError
from denseloss.train.plan import cores

_STOP_SECONDS = 20.0
# Not `-m`: the package imports the module, too, and Python would warn of that.
_WORKER = "import sys; from denseloss.compare.worker import main; sys.exit(main())"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended; `failed` is None where it is finished."""

    trial: Trial
    failed: Failed | None


class Engine(Protocol):
    """Where trials run."""

    @property
    def name(self) -> str:
        """In words, for the reader."""

    @property
    def slots(self) -> int:
        """How many trials it runs at a time."""

    @property
    def gpus(self) -> bool:
        """Whether trials get a GPU."""

    def free(self) -> bool:
        """Whether it takes another trial."""

    def start(self, job: Job) -> None:
        """Begin a trial."""

    def wait(self, seconds: float) -> list[Outcome]:
        """Return the trials that ended, after at most so long."""

    def stop(self) -> None:
        """End all trials that run, so that they can go on later."""

    def probe(self, jobs: Sequence[Job]) -> list[Times]:
        """Time trials that run at the same time, as they will later."""


class _Worker:
    """A process that takes trials, one after the other, and who listens to it.

    The listener is a thread: Windows cannot wait for several pipes at once.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        slot: int,
        answers: "queue.Queue[tuple[_Worker, bytes]]",
    ) -> None:
        self.process, self.slot = process, slot
        self.job: Job | None = None

        def listen() -> None:
            for line in _end(process.stdout):
                answers.put((self, line))
            answers.put((self, b""))

        self.listener = threading.Thread(target=listen, daemon=True)
        self.listener.start()

    def give(self, job: Job) -> None:
        """Hand over a trial."""
        self.job = job
        stdin = _end(self.process.stdin)
        with contextlib.suppress(BrokenPipeError):  # it died: its exit code will tell
            stdin.write(job.to_json().encode() + b"\n")
            stdin.flush()

    def close(self) -> None:
        """Wait for its end, which comes when its stdin closes at the latest."""
        with contextlib.suppress(BrokenPipeError):
            _end(self.process.stdin).close()
        self.process.wait()
        self.listener.join()
        _end(self.process.stdout).close()


class LocalEngine:
    """A pool of processes. One that has finished a trial takes the next: to start takes seconds.

    Args:
        jobs: How many at a time; None for one per GPU, or one per core where there is none.
        gpus: The GPUs to share out, one per process, as `CUDA_VISIBLE_DEVICES` names them.
        alone: Whether a trial takes the one accelerator of the machine, so that None is one.
    """

    def __init__(self, *, jobs: int | None, gpus: Sequence[str], alone: bool = False) -> None:
        self._gpus = tuple(gpus)
        self._alone = alone
        self._slots = jobs or len(self._gpus) or (1 if alone else cores())
        self._workers: list[_Worker] = []
        self._answers: queue.Queue[tuple[_Worker, bytes]] = queue.Queue()

    @property
    def name(self) -> str:
        """In words, for the reader."""
        at_once = f"{self._slots} process{'es' * (self._slots > 1)} at a time"
        if self._gpus:
            return f"this machine, {at_once} on {len(self._gpus)} GPU{'s' * (len(self._gpus) > 1)}"
        few = f" on {cores()} cores" if self._slots > cores() else ""
        return (
            f"this machine, {at_once}{', on its GPU' if self._alone else f', one thread each{few}'}"
        )

    @property
    def slots(self) -> int:
        """How many trials it runs at a time."""
        return self._slots

    @property
    def gpus(self) -> bool:
        """Whether trials get a GPU."""
        return bool(self._gpus)

    def free(self) -> bool:
        """Whether it takes another trial."""
        return sum(worker.job is not None for worker in self._workers) < self._slots

    def start(self, job: Job) -> None:
        """Begin a trial, in a process that waits for one or in a new one."""
        for worker in self._workers:
            if worker.job is None and worker.process.poll() is None:
                worker.give(job)
                return
        taken = {worker.slot for worker in self._workers if worker.process.poll() is None}
        slot = next(i for i in range(len(taken) + 1) if i not in taken)
        worker = _Worker(self._launch(job, slot), slot, self._answers)
        self._workers.append(worker)
        worker.give(job)

    def wait(self, seconds: float) -> list[Outcome]:
        """Return the trials that ended, after at most so long."""
        try:
            ended = [self._answers.get(timeout=seconds)]
            while not self._answers.empty():
                ended.append(self._answers.get())
        except queue.Empty:
            return []
        outcomes = [self._outcome(worker, answer) for worker, answer in ended]
        return [outcome for outcome in outcomes if outcome is not None]

    def stop(self) -> None:
        """Ask all trials to end at their last checkpoint, then make them."""
        for worker in self._workers:
            if worker.job is not None:
                worker.process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for worker in self._workers:
            if worker.job is not None:
                try:
                    worker.process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    worker.process.kill()
            worker.close()
        self._workers.clear()

    def probe(self, jobs: Sequence[Job]) -> list[Times]:
        """Time trials that run at the same time, as they will later.

        Raises:
            InputError: One cannot be run.
        """
        started = time.monotonic()
        processes: list[subprocess.Popen[bytes]] = []
        found = []
        try:
            for slot, job in enumerate(jobs):
                process = self._launch(job, slot)
                processes.append(process)
                line = replace(job, probe=True).to_json().encode() + b"\n"
                with contextlib.suppress(BrokenPipeError):
                    _end(process.stdin).write(line)
                    _end(process.stdin).flush()
            for job, process in zip(jobs, processes, strict=True):
                said = _json(_end(process.stdout).readline())
                seconds = time.monotonic() - started
                if "step" not in said:
                    why = said.get("error") or _ended(process.wait(), job)
                    raise InputError(
                        f"--budget: a trial of {job.trial.loss} could not be timed: {why}"
                    )
                # What passed before the trial's clock ran: importing torch and its friends. It is
                # counted for every trial, though a process that is used again has it behind it.
                start = max(0.0, seconds - said.pop("seconds"))
                found.append(Times(**{**said, "rest": said["rest"] + start}))
        finally:
            for process in processes:
                process.kill()
                process.wait()
                _end(process.stdout).close()
                with contextlib.suppress(BrokenPipeError):
                    _end(process.stdin).close()
        return found

    def _launch(self, job: Job, slot: int) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        gpu = self._gpus[slot % len(self._gpus)] if self._gpus else ""
        environment["CUDA_VISIBLE_DEVICES"] = gpu
        log = TrialFolder(job.root, job.trial).log_file
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as stderr:
            return subprocess.Popen(
                [sys.executable, "-c", _WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                # Ctrl-C is for the one who started them, who then stops them one by one.
                start_new_session=True,
            )

    def _outcome(self, worker: _Worker, answer: bytes) -> Outcome | None:
        job, worker.job = worker.job, None
        said = _json(answer)
        ok = "error" in said and said["error"] is None
        if not ok and worker in self._workers:
            # It ends now, or has: nobody gets it again.
            self._workers.remove(worker)
            worker.close()
        if job is None:
            return None
        failed = None
        if "error" not in said:
            failed = Failed(error=_ended(worker.process.wait(), job), own=False)
        elif said["error"] is not None:
            failed = Failed(error=said["error"], own=said["own"])
        return Outcome(trial=job.trial, failed=failed)


def _end(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _json(answer: bytes) -> dict[str, Any]:
    try:
        said = json.loads(answer)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _ended(code: int, job: Job) -> str:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    last = _last_line(TrialFolder(job.root, job.trial).log_file)
    return f"its process {how}" + (f", its last words: {last}" if last else "")


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""


def visible_gpus(accelerator: str) -> list[str]:
    """Return the GPUs this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    if accelerator not in ("auto", "cuda", "gpu"):
        return []
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if named:
        names = named.split(",")
        # Of the slices of GPUs (MIG) a process sees one, and several processes see one each.
        sliced = all(name.strip().startswith("MIG-") for name in names)
        return names if sliced else names[:count]
    return [str(i) for i in range(count)]
