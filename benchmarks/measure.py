"""Takes turns between the providers of a workload, and makes a row of what each of them answers."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.worker import Answer, Job, Load
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
    turns: int = 12
    """Of the providers that take turns in one process, per round."""
    together: float = 0.3
    """Seconds as above, of all of those turns."""
    timeout: float = 300.0
    """Seconds that a provider may take for one answer; its first one includes compiling."""
    definition: bool = False
    providers: tuple[str, ...] = ()
    gated: Mapping[tuple[str, str], set[str]] | None = None
    """The peers that a gate names, by workload and dtype: only they are measured; None is all."""
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
    launches: int | None = None
    """Operators called by forward + backward, see `benchmarks.worker.Launches`."""
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


class GoneError(Exception):
    """A worker that will answer no more, and why."""


class Worker:
    """A process that measures one provider, or several that take turns."""

    def __init__(self, job: Job, timeout: float) -> None:
        self.providers = job.providers
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
        self.greeting: dict[str, Answer]
        try:
            self.greeting = self._answer()
        except GoneError as gone:
            self.greeting = self._all_failed(gone)

    def ask(self, turns: int, **request: float) -> list[dict[str, Answer]]:
        """What each provider answers, turn by turn."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"turns": turns, **request}).encode() + b"\n")
            self.process.stdin.flush()
            found: list[dict[str, Answer]] = self._answer()
            return found
        except BrokenPipeError:
            return [self._all_failed(self._dead())] * turns
        except GoneError as gone:
            return [self._all_failed(gone)] * turns

    def _all_failed(self, gone: GoneError) -> dict[str, Answer]:
        return {name: {"status": "error", "note": str(gone)} for name in self.providers}

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        until = time.monotonic() + self.timeout
        pipe = self.process.stdout.fileno()
        while b"\n" not in self.unread:
            if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                self.process.kill()
                raise GoneError(f"gave up after {self.timeout:g} s")
            chunk = os.read(pipe, 65536)
            if not chunk:
                raise self._dead()
            self.unread += chunk
        line, self.unread = self.unread.split(b"\n", 1)
        return json.loads(line)

    def _dead(self) -> GoneError:
        code = self.process.wait()
        self.errors.seek(0)
        words = self.errors.read().decode(errors="replace").strip().splitlines()
        fatal = [line for line in words if line.startswith("Fatal")] or words[-1:]
        end = signal.Signals(-code).name if code < 0 else f"code {code}"
        why = fatal[0][:160] if fatal else "it said nothing"
        return GoneError(f"the process ended with {end}: {why}")

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

    def measured(self, worker: Worker, turns: int, **request: float) -> list[dict[str, Answer]]:
        """The least disturbed of a few answers."""
        best: list[dict[str, Answer]] = []
        least = math.inf
        for _ in range(REPEATS):
            self.wait()
            start = time.monotonic()
            found = worker.ask(turns, **request)
            others = max(
                (a.get("others") or 0.0 for turn in found for a in turn.values()), default=0.0
            )
            if others < least:
                best, least = found, others
            if others <= DISTURBED or self.left <= 0:
                break
            self.left -= time.monotonic() - start
        return best


def measured(workload: Workload, dtype: str, settings: Settings) -> list[Row]:
    """The rows of a workload, ours first."""
    wanted = _wanted(workload, dtype, settings)
    with tempfile.TemporaryDirectory(prefix="denseloss-benchmark-") as folder:

        def job(*providers: str, memory: bool = False) -> Job:
            return Job(
                workload.name,
                providers,
                dtype,
                settings.device,
                1 if workload.tiny else settings.threads,
                settings.scale,
                memory,
                str(Path(folder) / "definition.pt"),
            )

        start = _start_together if workload.together else _start_apart
        rows, workers = start(workload, dtype, settings, wanted, job)
        try:
            _take_turns(rows, workers, settings, together=workload.together)
        finally:
            for worker in workers:
                worker.close()
    for name, row in rows.items():
        _judge(row, workload.provider(name))
    return list(rows.values())


Jobs = Callable[..., Job]
Started = tuple[dict[str, Row], list[Worker]]
"""A row for each provider, and who measures them."""


def _start_together(
    workload: Workload, dtype: str, settings: Settings, wanted: Sequence[Provider], job: Jobs
) -> Started:
    """One process for all; the definition comes first, as the others are compared with it."""
    rows = {provider.name: _row(workload, dtype, settings, provider) for provider in wanted}
    worker = Worker(job(*dict.fromkeys([DEFINITION, *rows])), settings.timeout)
    _definition_said(worker.greeting[DEFINITION], settings)
    for name, row in rows.items():
        _take(row, worker.greeting[name])
    return rows, [worker]


def _start_apart(
    workload: Workload, dtype: str, settings: Settings, wanted: Sequence[Provider], job: Jobs
) -> Started:
    """A process for each, and before it one that measures memory, and the definition's first."""

    def remembered(name: str) -> Answer:
        with Worker(job(name, memory=True), settings.timeout) as once:
            return once.greeting[name]

    definition = remembered(DEFINITION)
    _definition_said(definition, settings)

    def start(provider: Provider) -> tuple[Row, Worker | None]:
        name, row = provider.name, _row(workload, dtype, settings, provider)
        _take(row, definition if name == DEFINITION else remembered(name))
        if row.status != "ok":
            return row, None
        worker = Worker(job(name), settings.timeout)
        _take(row, worker.greeting[name])
        return row, worker

    rows: dict[str, Row] = {}
    workers: list[Worker] = []
    try:
        # Nothing is timed yet: two at once, as importing and compiling take one core each.
        with ThreadPoolExecutor(2) as pool:
            for row, worker in pool.map(start, wanted):
                rows[row.provider] = row
                workers += [worker] if worker else []
    except BaseException:
        for worker in workers:
            worker.close()
        raise
    return rows, workers


def _definition_said(answer: Answer, settings: Settings) -> None:
    if answer["status"] != "ok":
        settings.say(f"  the definition failed: {answer.get('note')}")


def _wanted(workload: Workload, dtype: str, settings: Settings) -> list[Provider]:
    peers = {peer.name for peer in workload.peers}
    if settings.providers:
        peers = {name for pattern in settings.providers for name in matching(pattern, peers)}
    if settings.gated is not None:
        peers &= settings.gated.get((workload.name, dtype), set())
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


def _take(row: Row, answer: Answer) -> None:
    """Into the row what the worker says of itself."""
    for name, value in answer.items():
        if name != "note":
            setattr(row, name, value)
        elif value:
            row.note = value


def _take_turns(
    rows: dict[str, Row], workers: Sequence[Worker], settings: Settings, *, together: bool
) -> None:
    """Time everybody in every turn, so that a slow minute of the machine is everybody's."""
    patience = Patience(settings.patience, settings.device)
    turns = settings.turns if together else 1
    request = {
        "seconds": settings.together / turns if together else settings.seconds,
        "least": settings.least,
        "most": settings.most,
    }
    answers: dict[str, list[Answer | None]] = {name: [] for name in rows}
    for _ in range(settings.rounds):
        alive = [
            w for w in workers if any(rows[n].status == "ok" for n in w.providers if n in rows)
        ]
        found = [patience.measured(worker, turns, **request) for worker in alive]
        for parts in zip(*found, strict=True):
            turn = {name: answer for part in parts for name, answer in part.items()}
            for name, row in rows.items():
                answer = turn.get(name)
                if answer and "step" not in answer:
                    _take(row, answer)
                    answer = None
                answers[name].append(answer)
    for name, row in rows.items():
        _summarise(row, answers[name], answers.get(OURS, []))


def _summarise(row: Row, answers: Sequence[Answer | None], ours: Sequence[Answer | None]) -> None:
    there = [answer for answer in answers if answer]
    if not there:
        return
    steps = sorted(ms for answer in there for ms in answer["step"])
    row.median = statistics.median(_median(answer) for answer in there)
    row.minimum = steps[0]
    if len(steps) > 1:
        low, _, high = statistics.quantiles(steps, n=4, method="inclusive")
        row.quartiles = (low, high)
    if all(answer["forward"] for answer in there):
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


def _median(answer: Answer) -> float:
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
