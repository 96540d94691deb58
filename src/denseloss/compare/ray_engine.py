"""Trials on a Ray cluster: the same trials, wherever there is a free GPU or core."""

import logging
import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from denseloss.compare.local_engine import Outcome
from denseloss.compare.trials import Failed, TrialFolder
from denseloss.compare.worker import Job, Times
from denseloss.data.errors import InputError

# A worker that was killed, or whose machine was taken away: the trial goes on elsewhere.
_RETRIES = 3
_MARK = ".cluster"


class RayEngine:
    """A Ray cluster.

    Every machine must see the comparison's folder and the data under the same path (a shared file
    system), and have denseloss installed. A trial whose worker is killed goes on from its last
    checkpoint, perhaps on another machine.

    Args:
        root: The comparison's folder.
        address: Of the cluster; None is that of `RAY_ADDRESS`, or a new one on this machine.
        jobs: How many trials at a time; None for one per GPU, or one per core.
        accelerator: What is trained on.

    Raises:
        InputError: Ray is not installed, or the cluster does not answer.
    """

    def __init__(
        self, root: Path, *, address: str | None, jobs: int | None, accelerator: str
    ) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise InputError('--engine ray needs Ray: pip install "denseloss[ray]"') from None
        self._ray: Any = ray
        self._own = not self._ray.is_initialized()
        if self._own:
            # Ray would answer SIGTERM itself, and without a word of how to go on.
            handler = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
                raise InputError(
                    f"--address {address}: no Ray cluster answers there "
                    f"({' '.join(str(error).split())[:200]})"
                ) from None
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)
        self._jobs = jobs
        self._gpus = accelerator in ("cuda", "gpu") or (
            accelerator == "auto" and self._ray.cluster_resources().get("GPU", 0) > 0
        )
        here = self._own and not (address or os.environ.get("RAY_ADDRESS"))
        if here and self._gpus and not self._there:
            # It would wait for a GPU that this machine will never have.
            self._ray.shutdown()
            raise InputError(
                f"--accelerator {accelerator}: Ray, started on this machine, finds no GPU; give "
                "the --address of a cluster that has some"
            )
        self._running: dict[Any, Job] = {}
        self._root = root
        self._mark = ""

    @property
    def name(self) -> str:
        """In words, for the reader."""
        machines = len([n for n in self._ray.nodes() if n["Alive"]])
        what = "GPU" if self._gpus else "core"
        return (
            f"a Ray cluster of {machines} machine{'s' * (machines != 1)}, {self.slots} "
            f"trial{'s' * (self.slots != 1)} at a time, a {what} each"
            f"{'' if self._there else f'; there is no {what} yet, and trials wait for one'}"
        )

    @property
    def slots(self) -> int:
        """How many trials it runs at a time now; a cluster may grow."""
        there = max(1, self._there)
        return min(self._jobs, there) if self._jobs else there

    @property
    def _there(self) -> int:
        return int(self._ray.cluster_resources().get("GPU" if self._gpus else "CPU", 0))

    @property
    def gpus(self) -> bool:
        """Whether trials get a GPU."""
        return bool(self._gpus)

    def free(self) -> bool:
        """Whether it takes another trial; one waits in line, which makes a cluster grow."""
        return len(self._running) < (self._jobs or self.slots + 1)

    def start(self, job: Job) -> None:
        """Hand a trial to the cluster."""
        if not self._mark:
            self._mark = uuid.uuid4().hex
            (self._root / _MARK).write_text(self._mark, encoding="utf-8")
        self._running[self._remote(_train_there).remote(job.to_json(), self._mark)] = job

    def wait(self, seconds: float) -> list[Outcome]:
        """Return the trials that ended, after at most so long."""
        if not self._running:
            time.sleep(seconds)
            return []
        ready, _ = self._ray.wait([*self._running], num_returns=1, timeout=seconds)
        return [self._outcome(reference) for reference in ready]

    def stop(self) -> None:
        """End all trials that run, and Ray if it was started for them."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
        if self._own:
            self._ray.shutdown()

    def probe(self, jobs: Sequence[Job]) -> list[Times]:
        """Time trials that run at the same time, as they will later.

        Raises:
            InputError: One cannot be run.
        """
        remote = self._remote(_time_there)
        try:
            return [
                Times(**said) for said in self._ray.get([remote.remote(j.to_json()) for j in jobs])
            ]
        except self._ray.exceptions.RayError as error:
            raise InputError(f"--budget: a trial could not be timed: {_in_a_line(error)}") from None

    def _remote(self, function: Callable[..., Any]) -> Any:
        # A process of its own for each trial (max_calls), as on one machine.
        return self._ray.remote(
            num_cpus=1, num_gpus=1 if self._gpus else 0, max_calls=1, max_retries=_RETRIES
        )(function)

    def _outcome(self, reference: Any) -> Outcome:
        job = self._running.pop(reference)
        try:
            failed: Failed | None = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            failed = Failed(error=_in_a_line(error), own=False)
        return Outcome(trial=job.trial, failed=failed)


def _train_there(line: str, mark: str) -> Failed | None:
    """Run a trial on the machine that Ray chose."""
    from denseloss.compare.worker import logged, run_trial
    from denseloss.train.errors import InterruptedRunError

    job = Job.from_json(line)
    if not _sees(job.root, mark):
        return Failed(
            error=f"the machine {platform.node()} does not see {job.root}; a cluster needs a "
            "shared file system: give an --out that all its machines see under the same path",
            own=False,
        )
    try:
        with logged(TrialFolder(job.root, job.trial).log_file):
            return run_trial(job)
    except InterruptedRunError:
        # This machine is taken away. To Ray that is a crash, and the trial goes on elsewhere.
        os.kill(os.getpid(), signal.SIGKILL)
        raise


def _time_there(line: str) -> dict[str, float]:
    from denseloss.compare.worker import probe

    return asdict(probe(Job.from_json(line)))


def _sees(root: Path, mark: str) -> bool:
    """Whether this machine sees the comparison's folder, and not one of the same name."""
    try:
        return (root / _MARK).read_text(encoding="utf-8") == mark
    except OSError:
        return False


def _in_a_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:500]
