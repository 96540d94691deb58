"""Exact gradient accumulation in a loop of your own, on one process or on many.

python examples/accumulate_ddp.py                                 # one process
torchrun --nproc-per-node 2 examples/accumulate_ddp.py            # two, here on the CPU

Eight images with uneven void areas go through the network in 1, 2 and 4 parts. The weights after
the step are the same: each part is divided by what all parts and ranks count together.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn

from denseloss import compose
from denseloss.distributed import accumulate


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 16, 16, generator=generator)
    labels = torch.randint(0, 3, (8, 16, 16), generator=generator)
    for i in range(8):
        labels[i, : 2 * i] = -100  # the last images are mostly void
    return images, labels


def trained(parts: int) -> Tensor:
    """The weights after one step."""
    torch.manual_seed(0)
    model: nn.Module = nn.Conv2d(3, 3, 3, padding=1)
    criterion = compose.parse("cross_entropy + dice")
    images, labels = batch()
    if dist.is_initialized():
        model = nn.parallel.DistributedDataParallel(model)
        rank, ranks = dist.get_rank(), dist.get_world_size()
        images, labels = images[rank::ranks], labels[rank::ranks]  # each rank has its share

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for loss in accumulate(
        model, criterion, zip(images.chunk(parts), labels.chunk(parts), strict=True)
    ):
        loss.backward()
    optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def main() -> None:
    if "RANK" in os.environ:  # set by torchrun
        dist.init_process_group("gloo")
    whole = trained(1)
    for parts in (2, 4):
        gap = (trained(parts) - whole).abs().max().item()
        if not dist.is_initialized() or dist.get_rank() == 0:
            print(f"{parts} parts: weights differ by at most {gap:.1e} from those of one batch")
    if dist.is_initialized():
        dist.barrier()  # who leaves while others still talk aborts them
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
