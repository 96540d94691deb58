"""Takes turns between the providers of a workload, and makes a row of what each of them answers."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.worker import Job, Load
from benchmarks.workloads import (
    DEFINITION,
    OURS,
    OURS_FLOAT32,
    Provider,
    Workload,
    matching,
)

ROOT = Path(__file__).resolve().parent.parent
QUIET = 0.06
"""Others' share of the processors below which a measurement may start."""
DISTURBED = 0.08
"""Others' share above which it is made again."""
REPEATS = 3
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Of value and gradient, relative: eager code in half precision rounds after every operation."""


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    device: str = "cpu"
    threads: int = 2
    scale: float = 1.0
    rounds: int = 5
    seconds: float = 0.5
    """Of timing forward + backward, per provider and round."""
    least: int = 2
    """Runs per provider and round."""
    most: int = 200
    patience: float = 120.0
    timeout: float = 300.0
    """Seconds that a provider may take for one answer; its first one includes compiling."""
    definition: bool = False
    providers: tuple[str, ...] = ()
    say: Callable[[str], None] = field(default=lambda text: print(text, file=sys.stderr))


@dataclass
class Row:
    """One provider on one workload. Times in milliseconds, sizes in bytes."""

    workload: str
    shape: str
    family: str
    dtype: str
    device: str
    provider: str
    tiny: bool = False
    status: str = "ok"
    note: str = ""
    median: float | None = None
    """Forward + backward; the median of the rounds' medians."""
    minimum: float | None = None
    quartiles: tuple[float, float] | None = None
    forward: float | None = None
    """Forward alone, without gradients."""
    runs: int = 0
    rounds: int = 0
    ratio: float | None = None
    """This over ours: the median of the rounds' ratios."""
    floor: float | None = None
    """The median over the time of a copy that moves the compulsory bytes."""
    peak_extra: float | None = None
    gradient: int | None = None
    compulsory: int | None = None
    others: float | None = None
    """Other processes' share of the processors meanwhile."""
    first_call_s: float | None = None
    value_error: float | None = None
    gradient_error: float | None = None
    wrong: bool = False
    """Other numbers than the definition's, beyond the tolerance, without saying so."""

    @property
    def peak_ratio(self) -> float | None:
        """Peak extra memory over the size of the gradient."""
        return self.peak_extra / self.gradient if self.peak_extra and self.gradient else None

    @property
    def failed(self) -> bool:
        """Neither measured nor merely missing, or measured and not the definition's numbers."""
        return self.status == "error" or self.wrong

    @property
    def busy(self) -> bool:
        """Others took more of the processors than a measurement should bear."""
        return self.others is not None and self.others > DISTURBED

    def remarks(self) -> str:
        """What a reader of the row must know."""
        said = [] if self.status == "ok" else [self.status]
        if self.note:
            said.append(self.note)
        if self.busy:
            said.append(f"busy {self.others:.0%}".replace("%", " %"))
        return "; ".join(said)


class Worker:
    """A process that measures one provider."""

    def __init__(self, job: Job, timeout: float) -> None:
        self.timeout = timeout
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self.process = subprocess.Popen(
            [sys.executable, *job.arguments()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            cwd=ROOT,
            env=_environment(job),
        )
        self.unread = b""
        self.greeting = self._answer()

    def ask(self, **request: float) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return self._dead()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        until = time.monotonic() + self.timeout
        pipe = self.process.stdout.fileno()
        while b"\n" not in self.unread:
            if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                self.process.kill()
                return {"status": "error", "note": f"gave up after {self.timeout:g} s"}
            chunk = os.read(pipe, 65536)
            if not chunk:
                return self._dead()
            self.unread += chunk
        line, self.unread = self.unread.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _dead(self) -> dict[str, Any]:
        code = self.process.wait()
        self.errors.seek(0)
        words = self.errors.read().decode(errors="replace").strip().splitlines()
        fatal = [line for line in words if line.startswith("Fatal")] or words[-1:]
        end = signal.Signals(-code).name if code < 0 else f"code {code}"
        why = fatal[0][:160] if fatal else "it said nothing"
        return {"status": "error", "note": f"the process ended with {end}: {why}"}

    def close(self) -> None:
        if self.process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()  # it ends by itself then
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        self.errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _environment(job: Job) -> dict[str, str]:
    threads = str(job.threads)
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "passive",  # a thread that spins would count as another's work
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # else it starts processes that stay
        "PYTHONWARNINGS": "ignore",
    }
    if job.memory:
        # Every tensor is mapped and unmapped by itself, so that the peak is that of live tensors.
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    return environment


class Patience:
    """Waits for the machine to be quiet, as long as there is time for it."""

    def __init__(self, seconds: float, device: str) -> None:
        self.left = seconds if device == "cpu" else 0.0

    def wait(self) -> None:
        pause = 0.2
        while self.left > 0:
            load = Load()
            time.sleep(0.2)
            others = load.others()
            if others is None or others < QUIET:
                return
            time.sleep(pause)
            self.left -= 0.2 + pause
            pause = min(2 * pause, 3.0)

    def measured(self, worker: Worker, **request: float) -> dict[str, Any]:
        """The least disturbed of a few answers."""
        best: dict[str, Any] | None = None
        for _ in range(REPEATS):
            self.wait()
            start = time.monotonic()
            answer = worker.ask(**request)
            if "step" not in answer:
                return answer
            if best is None or (answer["others"] or 0) < (best["others"] or 0):
                best = answer
            if (answer["others"] or 0) <= DISTURBED or self.left <= 0:
                break
            self.left -= time.monotonic() - start
        assert best is not None
        return best


def measured(workload: Workload, dtype: str, settings: Settings) -> list[Row]:
    """The rows of a workload, ours first."""
    with tempfile.TemporaryDirectory(prefix="denseloss-benchmark-") as folder:
        yardstick = str(Path(folder) / "definition.pt")

        def job(provider: str, *, memory: bool) -> Job:
            return Job(
                workload.name,
                provider,
                dtype,
                settings.device,
                settings.threads,
                settings.scale,
                memory,
                yardstick,
            )

        with Worker(job(DEFINITION, memory=True), settings.timeout) as once:
            definition = once.greeting
        if definition["status"] != "ok":
            settings.say(f"  the definition failed: {definition.get('note')}")

        def start(provider: Provider) -> tuple[Row, Worker | None]:
            row = _row(workload, dtype, settings, provider)
            if provider.name == DEFINITION:
                remembered = definition
            else:
                with Worker(job(provider.name, memory=True), settings.timeout) as once:
                    remembered = once.greeting
            _take(row, remembered)
            if row.status != "ok":
                return row, None
            worker = Worker(job(provider.name, memory=False), settings.timeout)
            _take(row, worker.greeting)
            if row.status == "ok":
                return row, worker
            worker.close()
            return row, None

        started: list[tuple[Row, Worker | None]] = []
        try:
            # Nothing is timed yet: two at once, as importing and compiling take one core each.
            with ThreadPoolExecutor(2) as pool:
                for pair in pool.map(start, _wanted(workload, dtype, settings)):
                    started.append(pair)
            _take_turns(started, settings)
        finally:
            for _, worker in started:
                if worker:
                    worker.close()
    for row, _ in started:
        _judge(row, workload.provider(row.provider))
    return [row for row, _ in started]


def _wanted(workload: Workload, dtype: str, settings: Settings) -> list[Provider]:
    peers = {peer.name for peer in workload.peers}
    if settings.providers:
        peers = {name for pattern in settings.providers for name in matching(pattern, peers)}
    ours = {OURS, *([OURS_FLOAT32] * (dtype != "float32")), *([DEFINITION] * settings.definition)}
    return [provider for provider in workload.providers() if provider.name in peers | ours]


def _row(workload: Workload, dtype: str, settings: Settings, provider: Provider) -> Row:
    return Row(
        workload.name,
        workload.shape if settings.scale == 1 else f"{workload.shape}, x {settings.scale:g}",
        workload.family,
        dtype,
        settings.device,
        provider.name,
        workload.tiny,
        note=f"another loss: {provider.other}" if provider.other else "",
    )


def _take(row: Row, answer: dict[str, Any]) -> None:
    """Into the row what the worker says of itself."""
    for name, value in answer.items():
        if name != "note":
            setattr(row, name, value)
        elif value:
            row.note = value


def _take_turns(started: Sequence[tuple[Row, Worker | None]], settings: Settings) -> None:
    """Time everybody in every round, so that a slow minute of the machine is everybody's."""
    patience = Patience(settings.patience, settings.device)
    request = {"seconds": settings.seconds, "least": settings.least, "most": settings.most}
    answers: list[list[dict[str, Any] | None]] = [[] for _ in started]
    for _ in range(settings.rounds):
        for (row, worker), mine in zip(started, answers, strict=True):
            answer = None
            if worker and row.status == "ok":
                answer = patience.measured(worker, **request)
                if "step" not in answer:
                    _take(row, answer)
                    answer = None
            mine.append(answer)
    ours = next(
        (mine for (row, _), mine in zip(started, answers, strict=True) if row.provider == OURS), []
    )
    for (row, _), mine in zip(started, answers, strict=True):
        _summarise(row, mine, ours)


def _summarise(
    row: Row, answers: Sequence[dict[str, Any] | None], ours: Sequence[dict[str, Any] | None]
) -> None:
    there = [answer for answer in answers if answer]
    if not there:
        return
    steps = sorted(ms for answer in there for ms in answer["step"])
    row.median = statistics.median(_median(answer) for answer in there)
    row.minimum = steps[0]
    if len(steps) > 1:
        low, _, high = statistics.quantiles(steps, n=4, method="inclusive")
        row.quartiles = (low, high)
    row.forward = statistics.median(statistics.median(answer["forward"]) for answer in there)
    row.runs, row.rounds = len(steps), len(there)
    pairs = [(a, b) for a, b in zip(answers, ours, strict=False) if a and b]
    if pairs:
        row.ratio = statistics.median(_median(a) / _median(b) for a, b in pairs)
    if all(answer["copy"] for answer in there):
        row.floor = statistics.median(
            _median(answer) / statistics.median(answer["copy"]) for answer in there
        )
    shares = [answer["others"] for answer in there if answer["others"] is not None]
    row.others = statistics.median(shares) if shares and row.device == "cpu" else None


def _median(answer: dict[str, Any]) -> float:
    return float(statistics.median(answer["step"]))


def _judge(row: Row, provider: Provider) -> None:
    """Say it where the numbers are not those of the definition."""
    if row.status != "ok" or provider.other or row.provider in (OURS_FLOAT32, DEFINITION):
        return
    if row.value_error is None or row.gradient_error is None:
        row.note = "; ".join(filter(None, [row.note, "not compared with the definition"]))
        return
    # written so that NaN is a difference, too
    if not max(row.value_error, row.gradient_error) <= TOLERANCE[row.dtype]:
        row.wrong = True
        what = "WRONG" if row.provider == OURS else "other formula"
        if row.provider != OURS and row.dtype != "float32":
            what = "other formula or inexact"
        found = f"{what}: value off by {row.value_error:.0e}, gradient by {row.gradient_error:.0e}"
        row.note = "; ".join(filter(None, [row.note, found]))


def record(row: Row) -> dict[str, Any]:
    """The row as one object of the JSONL file."""
    return {"record": "row", **asdict(row), "peak_ratio": row.peak_ratio}
