"""The process that measures providers on one workload: python -m benchmarks.worker JOB.

It prepares itself, answers with one line of JSON, and then answers one line for each line it reads,
so that the parent can take turns between providers which all stay warm. What it times, its own
share of the processors, and the copy bandwidth all come from this one process.

A large workload has a process for each provider, so that none of them finds the memory that
another one has left. The providers of a small or tiny one take many short turns in one process:
what disturbs then disturbs all of them alike.
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
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.workloads import (
    DEFINITION,
    OURS_FLOAT32,
    WORKLOADS,
    Loss,
    Maker,
    NotThereYetError,
    compiled_name,
)
from denseloss import backend

Answer = dict[str, Any]

MEBI = 2**20


@dataclass(frozen=True)
class Job:
    """What a worker is to do."""

    workload: str
    providers: tuple[str, ...]
    """Several take turns."""
    dtype: str
    device: str
    threads: int
    scale: float
    memory: bool = False
    """Measure the memory of one provider and compare it with the definition, and end; else time on
    demand."""
    yardstick: str = ""
    """The file of the definition's value and gradient: written by it, read by the others."""

    def arguments(self) -> list[str]:
        return ["-m", "benchmarks.worker", json.dumps(asdict(self))]


class Bench:
    """One loss on its inputs."""

    def __init__(self, job: Job, provider: str) -> None:
        if job.device == "cpu":
            torch.set_num_threads(job.threads)
        self.device = job.device
        self.workload = WORKLOADS[job.workload]
        self.provider = self.workload.provider(provider)
        dtype = "float32" if provider == OURS_FLOAT32 else job.dtype
        make = Maker(getattr(torch, dtype), job.device, job.scale)
        self.leaf, *self.rest = self.workload.inputs(make)
        self.leaf.requires_grad_()
        loss = self.provider.load()
        self.loss: Loss = by_definition(loss) if provider == DEFINITION else loss
        self.step: Callable[[], Tensor] = self._whole if self.provider.step else self._both

    def _both(self) -> Tensor:
        """Forward and backward to the gradient of the leaf."""
        value = self.loss(self.leaf, *self.rest)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    def _whole(self) -> Tensor:
        return self.loss(self.leaf, *self.rest)

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

    def time(self, seconds: float, least: int, most: int) -> Answer:
        """Milliseconds of each run of the step, the forward pass alone, and the copy."""
        measure = self._time_cuda if self.device == "cuda" else self._time_cpu
        step = measure(self.step, seconds, least, most, self.clear)
        forward = []
        if not self.provider.step:
            forward = measure(self.forward, seconds / 3, min(least, 2), most, None)
        copy = [] if self.workload.tiny else measure(self.copy(), seconds / 6, 3, 30, None)
        self.clear()
        return {"step": step, "forward": forward, "copy": copy}

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
        return value.detach().double().cpu(), self.leaf.grad.cpu()

    # --- operators --------------------------------------------------------------------------------

    def launches(self) -> int | None:
        """How many operators a step calls; None where it is compiled into one of its own."""
        if self.provider.name.startswith(compiled_name("")):
            return None
        self.clear()
        found = Launches()
        with found:
            self.step()
        return found.count


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts every operator that torch's dispatcher is asked for below autograd: aten's and ours.

    Views and new tensors count as much as arithmetic. What an operator of ours does inside, the
    room for its results too, does not: it is one launch.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def by_definition(loss: Loss) -> Loss:
    """A loss of ours whose quantities are their definitions."""

    def run(*inputs: Tensor) -> Tensor:
        with backend.use("reference"):
            return loss(*inputs)

    return run


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


def remember(job: Job, bench: Bench) -> Answer:
    """Memory, where it is asked for; the number of operators; and agreement with the definition."""
    for _ in range(2):
        bench.clear()
        bench.step()
    answer: Answer = {"peak_extra": bench.peak_extra()} if job.memory else {}
    answer["gradient"] = bench.leaf.numel() * bench.leaf.element_size()
    if bench.workload.tiny:
        answer["launches"] = bench.launches()
    value, gradient = bench.result()
    if bench.provider.name == DEFINITION:
        torch.save((value, gradient), job.yardstick)
    elif Path(job.yardstick).exists():
        expected, slope = torch.load(job.yardstick)
        answer["value_error"] = difference(value, expected)
        answer["gradient_error"] = difference(gradient, slope)
    bench.clear()
    return answer


def prepare(job: Job, provider: str) -> tuple[Bench | None, Answer]:
    """The bench, warmed up, and what to say about it; None where it cannot be."""
    try:
        bench = Bench(job, provider)
        start = time.perf_counter()
        bench.step()
        bench.synchronize()
        first = time.perf_counter() - start
        if not bench.provider.step:
            bench.forward()  # compiled code is another one without gradients
        bench.clear()
        answer = {"status": "ok", "first_call_s": first, "compulsory": bench.compulsory()}
        if job.memory or len(job.providers) > 1:
            answer |= remember(job, bench)
    except NotThereYetError as error:
        return None, {"status": "not there yet", "note": str(error)}
    except ModuleNotFoundError as error:
        return None, {"status": "not installed", "note": str(error)}
    except Exception as error:  # a provider that fails must not stop the others
        return None, failure(error)
    return bench, answer


def failure(error: Exception) -> Answer:
    lines = str(error).strip().splitlines() or [""]
    return {"status": "error", "note": f"{type(error).__name__}: {lines[0]}"[:200]}


def take_turns(benches: dict[str, Bench], turns: int, **limits: Any) -> list[dict[str, Answer]]:
    """What each provider measures in each turn; one that fails is left out from then on."""
    load = Load()
    found: list[dict[str, Answer]] = []
    for _ in range(turns):
        found.append({})
        for name, bench in list(benches.items()):
            try:
                found[-1][name] = bench.time(**limits)
            except Exception as error:
                found[-1][name] = failure(error)
                del benches[name]
    others = load.others()
    for turn in found:
        for answer in turn.values():
            answer["others"] = others
    return found


def main() -> None:
    faulthandler.enable()  # a kernel that crashes says where it was called
    job = Job(**json.loads(sys.argv[1]))
    # Libraries print: their words go to stderr, and the answers keep the real stdout.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(answer: object) -> None:
        answers.write(json.dumps(answer) + "\n")

    prepared = {name: prepare(job, name) for name in job.providers}
    say({name: greeting for name, (_, greeting) in prepared.items()})
    benches = {name: bench for name, (bench, _) in prepared.items() if bench is not None}
    if job.memory or not benches:
        return
    for line in sys.stdin:
        say(take_turns(benches, **json.loads(line)))


if __name__ == "__main__":
    main()
