"""What a loss alone costs in a training step: time and memory."""

import os
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from denseloss import compose
from denseloss.compare.results import Cost
from denseloss.data.samples import Task
from denseloss.train.criterion import TaskCriterion

_WARM_UP = 3
_BLOB = 8
_SURE = 3.0
_MEBIBYTE = 2**20


def loss_cost(
    loss: str,
    *,
    task: Task,
    num_classes: int,
    shape: tuple[int, int, int, int],
    shares: Sequence[float],
    device: torch.device | str,
    repeats: int = 20,
) -> Cost:
    """Measure forward and backward of a loss on float32 logits of a training step's shape.

    The step is made up: smooth regions of each class, and the logits of a network that is mostly
    right. On a CPU the time is that of as many threads as torch has now.

    Args:
        loss: The expression.
        task: What the classes mean.
        num_classes: Background included.
        shape: Of the logits, [n, c, h, w].
        shares: Of each class in the pixels.
        device: A CPU or a CUDA device.
        repeats: How often the step is timed, after a warm-up.

    Returns:
        The median time, and the highest sum of what torch has allocated during a step: the
        gradient is in it, the logits, the target and the image are not.

    Raises:
        InputError: The loss cannot be taken on this task.
        ValueError: The shape is not that of the task's logits, or memory cannot be measured on
            such a device.
    """
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"the cost of a loss is measured on cpu or cuda, not on {device.type}")
    criterion = TaskCriterion(
        compose.parse(loss, mixed=True), task=task, num_classes=num_classes
    ).to(device)
    if shape[1] != criterion.num_outputs:
        raise ValueError(f"logits of {task} have {criterion.num_outputs} channels, got {shape[1]}")
    if len(shares) != num_classes:
        raise ValueError(f"{num_classes} classes, but the shares of {len(shares)}")
    logits, classes, image = (tensor.to(device) for tensor in _made_up(shape, shares))
    logits.requires_grad_()

    def step() -> None:
        value = criterion([logits], classes, image=image).sum()
        torch.autograd.grad(value, logits)

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
        shape=tuple(shape),
        device=where,
    )


def _made_up(
    shape: tuple[int, int, int, int], shares: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, classes and an image that a training step could have."""
    n, c, h, w = shape
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(n, 1, -(-h // _BLOB) + 1, -(-w // _BLOB) + 1, generator=generator)
    field = F.interpolate(coarse, (h, w), mode="bilinear", align_corners=True)[:, 0]
    # Each class is a layer of the field, as thick as its share of the pixels.
    rank = field.flatten().argsort().argsort().view_as(field).double() / field.numel()
    ends = torch.tensor(shares, dtype=torch.float64).cumsum(0)
    classes = torch.bucketize(rank, ends[:-1] / ends[-1], right=True)
    index = torch.arange(c).view(1, -1, 1, 1) if c > 1 else torch.ones(1, 1, 1, 1)
    right = (classes[:, None] == index).float()
    logits = _SURE * (2 * right - 1) + _SURE * torch.randn(shape, generator=generator)
    return logits, classes, torch.randn(n, 3, h, w, generator=generator)


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
