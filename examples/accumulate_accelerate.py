"""Exact gradient accumulation with accelerate, on one process or on many.

`Accelerator(gradient_accumulation_steps=...)` adds up means of parts that count different numbers
of pixels. Here it is left at 1: the loader gives the whole batch, and the loop takes it in parts.

python examples/accumulate_accelerate.py
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from denseloss import compose
from denseloss.distributed import accumulate


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 16, 16, generator=generator)
    labels = torch.randint(0, 3, (8, 16, 16), generator=generator)
    for i in range(8):
        labels[i, : 2 * i] = -100  # the last images are mostly void
    return TensorDataset(images, labels)


def trained(parts: int) -> Tensor:
    """The weights after one step."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    net = nn.Conv2d(3, 3, 3, padding=1)
    model, optimizer, loader = accelerator.prepare(
        net, torch.optim.SGD(net.parameters(), lr=0.1), DataLoader(data(), batch_size=8)
    )
    criterion = compose.parse("cross_entropy + dice")
    for images, labels in loader:
        optimizer.zero_grad()
        batches = zip(images.chunk(parts), labels.chunk(parts), strict=True)
        for loss in accumulate(model, criterion, batches):
            accelerator.backward(loss)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


if __name__ == "__main__":
    whole = trained(1)
    for parts in (2, 4):
        gap = (trained(parts) - whole).abs().max().item()
        print(f"{parts} parts: weights differ by at most {gap:.1e} from those of one batch")
