"""Exact gradient accumulation in Lightning.

`Trainer(accumulate_grad_batches=...)` adds up means of parts that count different numbers of
pixels. Here the loader gives the whole batch, and the step takes it in parts.

python examples/accumulate_lightning.py
"""

from __future__ import annotations

import lightning
import torch
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


class Segmenter(lightning.LightningModule):
    def __init__(self, parts: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Conv2d(3, 3, 3, padding=1)
        self.criterion = compose.parse("cross_entropy + dice")
        self.parts = parts

    def training_step(self, batch: list[Tensor], _: int) -> None:
        images, labels = (x.chunk(self.parts) for x in batch)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        for loss in accumulate(self.net, self.criterion, zip(images, labels, strict=True)):
            self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained(parts: int) -> Tensor:
    """The weights after one step."""
    torch.manual_seed(0)
    module = Segmenter(parts)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data(), batch_size=8))
    return torch.cat([p.detach().flatten() for p in module.parameters()])


if __name__ == "__main__":
    whole = trained(1)
    for parts in (2, 4):
        gap = (trained(parts) - whole).abs().max().item()
        print(f"{parts} parts: weights differ by at most {gap:.1e} from those of one batch")
