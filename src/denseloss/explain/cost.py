"""What a loss alone costs in a training step: time and memory."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves, tree_map_only

_WARM_UP = 3
_MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the loss alone costs in a training step: forward and backward, on the step's logits.

    Attributes:
        milliseconds: Median.
        mebibytes: Highest memory above that of logits, target and their gradient's start.
        shape: Of the logits.
        device: Where it was measured, with the threads.
    """

    milliseconds: float
    mebibytes: float
    shape: tuple[int, ...]
    device: str


def loss_cost(
    criterion: nn.Module,
    outputs: Any,
    batch: Any,
    *,
    device: torch.device | str,
    repeats: int = 20,
) -> Cost:
    """Measure forward and backward of a loss on the outputs of a training step.

    On a CPU the time is that of as many threads as torch has now.

    Args:
        criterion: Maps outputs and a batch to the terms of the loss.
        outputs: Float tensors in any nesting, taken as float32.
        batch: What the criterion needs besides.
        device: A CPU or a CUDA device.
        repeats: How often the step is timed, after a warm-up.

    Returns:
        The median time, and the highest sum of what torch has allocated during a step: the
        gradient is in it, the outputs and the batch are not.

    Raises:
        ValueError: Memory cannot be measured on such a device.
    """
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"the cost of a loss is measured on cpu or cuda, not on {device.type}")
    criterion = criterion.to(device)
    outputs = tree_map_only(Tensor, lambda t: t.detach().float().to(device), outputs)
    batch = tree_map_only(Tensor, lambda t: t.to(device), batch)
    leaves = [leaf.requires_grad_() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]

    def step() -> None:
        torch.autograd.grad(criterion(outputs, batch).sum(), leaves, allow_unused=True)

    for _ in range(_WARM_UP):
        step()
    seconds = _seconds_cuda if device.type == "cuda" else _seconds_cpu
    peak = _peak_cuda if device.type == "cuda" else _peak_cpu
    threads = torch.get_num_threads()
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    )
    return Cost(
        milliseconds=1000 * statistics.median(seconds(step) for _ in range(repeats)),
        mebibytes=peak(step) / _MEBIBYTE,
        shape=tuple(leaves[0].shape),
        device=where,
    )


def _seconds_cpu(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _seconds_cuda(step: Callable[[], None]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    step()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def _peak_cuda(step: Callable[[], None]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_cpu(step: Callable[[], None]) -> int:
    # Without this, the profiler's library tells standard error of every GPU that it does not find.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    results = seen.profiler.kineto_results if seen.profiler else None
    assert results is not None
    changes = [
        (event.start_ns(), event.nbytes())
        for event in results.events()
        if event.name() == "[memory]"
    ]
    live = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        live += change
        peak = max(peak, live)
    if peak <= 0:
        raise RuntimeError("torch's profiler saw no allocation")
    return peak
