"""The process that measures one provider on one workload: python -m benchmarks.worker JOB.

It prepares itself, answers with one line of JSON, and then answers one line for each line it reads,
so that the parent can take turns between providers which all stay warm. What it times, its own
share of the processors, and the copy bandwidth all come from this one process.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.workloads import (
    DEFINITION,
    OURS_FLOAT32,
    WORKLOADS,
    Loss,
    Maker,
    NotThereYetError,
)

MEBI = 2**20


@dataclass(frozen=True)
class Job:
    """What a worker is to do."""

    workload: str
    provider: str
    dtype: str
    device: str
    threads: int
    scale: float
    memory: bool = False
    """Measure memory and compare with the definition, and end; else time on demand."""
    yardstick: str = ""
    """The file of the definition's value and gradient: written by it, read by the others."""

    def arguments(self) -> list[str]:
        return ["-m", "benchmarks.worker", json.dumps(asdict(self))]


class Bench:
    """One loss on its inputs."""

    def __init__(self, job: Job) -> None:
        if job.device == "cpu":
            torch.set_num_threads(job.threads)
        self.device = job.device
        self.workload = WORKLOADS[job.workload]
        dtype = "float32" if job.provider == OURS_FLOAT32 else job.dtype
        make = Maker(getattr(torch, dtype), job.device, job.scale)
        self.leaf, *self.rest = self.workload.inputs(make)
        self.leaf.requires_grad_()
        if job.provider == DEFINITION:
            from denseloss import backend

            backend.use("reference")
        self.loss: Loss = self.workload.provider(job.provider).load()

    def step(self) -> Tensor:
        """Forward and backward to the gradient of the leaf."""
        value = self.loss(self.leaf, *self.rest)
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    def forward(self) -> None:
        with torch.no_grad():
            self.loss(self.leaf, *self.rest)

    def clear(self) -> None:
        self.leaf.grad = None

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def compulsory(self) -> int:
        """Bytes that nobody can avoid: each input read once, the gradient written once."""
        tensors = [self.leaf, *self.rest, self.leaf]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def copy(self) -> Callable[[], object]:
        """A copy that moves the compulsory bytes, half of them read and half of them written."""
        source = torch.ones(max(1, self.compulsory() // 2), dtype=torch.uint8, device=self.device)
        goal = torch.ones_like(source)
        return lambda: goal.copy_(source)

    # --- time -------------------------------------------------------------------------------------

    def time(self, seconds: float, least: int, most: int) -> dict[str, Any]:
        """Milliseconds of each run of the step, the forward pass alone, and the copy."""
        load = Load()
        measure = self._time_cuda if self.device == "cuda" else self._time_cpu
        step = measure(self.step, seconds, least, most, self.clear)
        forward = measure(self.forward, seconds / 3, min(least, 2), most, None)
        copy = [] if self.workload.tiny else measure(self.copy(), seconds / 6, 3, 30, None)
        self.clear()
        return {"step": step, "forward": forward, "copy": copy, "others": load.others()}

    def _time_cpu(
        self,
        run: Callable[[], object],
        seconds: float,
        least: int,
        most: int,
        between: Callable[[], None] | None,
    ) -> list[float]:
        run()  # what ran between two turns has emptied the caches
        times: list[float] = []
        until = time.perf_counter() + seconds
        while len(times) < least or (len(times) < most and time.perf_counter() < until):
            if between:
                between()
            start = time.perf_counter_ns()
            run()
            times.append((time.perf_counter_ns() - start) / 1e6)
        return times

    def _time_cuda(
        self,
        run: Callable[[], object],
        seconds: float,
        least: int,
        most: int,
        between: Callable[[], None] | None,
    ) -> list[float]:
        if self.workload.tiny:
            return self._wall_cuda(run, seconds, least, most, between)
        from triton import testing

        leaf = [self.leaf] if between else None
        times = testing.do_bench(
            run, warmup=25, rep=max(50, int(seconds * 1e3)), grad_to_none=leaf, return_mode="all"
        )
        return [float(x) for x in times]

    def _wall_cuda(
        self,
        run: Callable[[], object],
        seconds: float,
        least: int,
        most: int,
        between: Callable[[], None] | None,
    ) -> list[float]:
        """Wall time a call of twenty in a row: the cost of launching, which events do not see."""

        def batch() -> None:
            for _ in range(20):
                if between:
                    between()
                run()
            torch.cuda.synchronize()

        return [ms / 20 for ms in self._time_cpu(batch, seconds, least, most, None)]

    # --- memory -----------------------------------------------------------------------------------

    def peak_extra(self) -> float | None:
        """Peak bytes of a step beyond what was there before it, the gradient included."""
        measure = self._peak_cuda if self.device == "cuda" else peak_resident
        peaks = []
        for _ in range(3):
            self.clear()
            gc.collect()
            peaks.append(measure(self.step))
        found = [peak for peak in peaks if peak is not None]
        return statistics.median(found) if found else None

    def _peak_cuda(self, step: Callable[[], object]) -> int:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    # --- agreement --------------------------------------------------------------------------------

    def result(self) -> tuple[Tensor, Tensor]:
        """Value and gradient."""
        self.clear()
        value = self.step()
        assert self.leaf.grad is not None
        return value.double().cpu(), self.leaf.grad.cpu()


class Load:
    """What other processes take of the processors, from its construction on."""

    def __init__(self) -> None:
        self.before = self._now()

    def others(self) -> float | None:
        """Their share of all processors, 0 to 1; None where /proc cannot tell."""
        if self.before is None or (after := self._now()) is None:
            return None
        total, busy, own = (b - a for a, b in zip(self.before, after, strict=True))
        return max(0.0, (busy - own) / total) if total > 0 else None

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Seconds of processor time: in all, not idle (stolen ones too), and ours."""
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        except OSError:
            return None
        ticks = [int(field) for field in fields]
        idle = ticks[3] + ticks[4]
        per_second = os.sysconf("SC_CLK_TCK")
        return sum(ticks) / per_second, (sum(ticks) - idle) / per_second, time.process_time()


def peak_resident(step: Callable[[], object]) -> int | None:
    """Peak resident bytes during a step beyond those before it; None where /proc cannot tell."""
    try:
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    except OSError:
        return None
    step()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def difference(found: Tensor, expected: Tensor) -> float:
    """Relative distance in the 2-norm; that of two zeros is 0."""
    found, expected = found.double().flatten(), expected.double().flatten()
    scale = float(expected.norm())
    distance = float((found - expected).norm())
    return distance / scale if scale else distance


def remember(job: Job, bench: Bench) -> dict[str, Any]:
    """Memory and agreement with the definition."""
    for _ in range(2):
        bench.clear()
        bench.step()
    answer: dict[str, Any] = {"peak_extra": bench.peak_extra()}
    answer["gradient"] = bench.leaf.numel() * bench.leaf.element_size()
    value, gradient = bench.result()
    if job.provider == DEFINITION:
        torch.save((value, gradient), job.yardstick)
    elif Path(job.yardstick).exists():
        expected, slope = torch.load(job.yardstick)
        answer["value_error"] = difference(value, expected)
        answer["gradient_error"] = difference(gradient, slope)
    return answer


def prepare(job: Job) -> tuple[Bench | None, dict[str, Any]]:
    """The bench, warmed up, and what to say about it; None where it cannot be."""
    try:
        bench = Bench(job)
        start = time.perf_counter()
        bench.step()
        bench.synchronize()
        first = time.perf_counter() - start
        bench.forward()  # compiled code is another one without gradients
        bench.clear()
    except NotThereYetError as error:
        return None, {"status": "not there yet", "note": str(error)}
    except ModuleNotFoundError as error:
        return None, {"status": "not installed", "note": str(error)}
    except Exception as error:  # a provider that fails must not stop the others
        return None, failure(error)
    return bench, {"status": "ok", "first_call_s": first, "compulsory": bench.compulsory()}


def failure(error: Exception) -> dict[str, Any]:
    lines = str(error).strip().splitlines() or [""]
    return {"status": "error", "note": f"{type(error).__name__}: {lines[0]}"[:200]}


def main() -> None:
    faulthandler.enable()  # a kernel that crashes says where it was called
    job = Job(**json.loads(sys.argv[1]))
    # Libraries print: their words go to stderr, and the answers keep the real stdout.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    bench, greeting = prepare(job)
    if bench is None:
        say(greeting)
        return
    if job.memory:
        try:
            say(greeting | remember(job, bench))
        except Exception as error:
            say(failure(error))
        return
    say(greeting)
    for line in sys.stdin:
        try:
            say(bench.time(**json.loads(line)))
        except Exception as error:
            say(failure(error))


if __name__ == "__main__":
    main()
