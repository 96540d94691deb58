"""Several processes of one gloo group, as tests of distributed training need them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def each_rank(work: Callable[..., Any], world: int, folder: Path, *, seconds: float = 120) -> list:
    """What ``work(rank)`` answers in each process, by rank; all of them must end well.

    Args:
        work: a function of a module, or a `functools.partial` of one.
        world: how many processes.
        folder: an empty one, where they meet.
        seconds: after which a process is not waited for any longer.
    """
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_main, args=(rank, world, folder, work)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def _main(rank: int, world: int, folder: Path, work: Callable[..., Any]) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meet'}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    torch.set_num_threads(1)
    torch.save(work(rank), folder / f"{rank}.pt")
    dist.barrier()  # who leaves while others still talk aborts them
    dist.destroy_process_group()
    # The answer is on the disk. Once in some hundred runs a thread of DDP is still there when
    # Python ends, and torch's own destructors abort the process.
    os._exit(0)
