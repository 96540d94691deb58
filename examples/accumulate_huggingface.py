"""Exact gradient accumulation in the Trainer of Hugging Face.

The Trainer does not divide a loss of your own by its accumulation steps, and what it counts for
you (``num_items_in_batch``) are labels that are not -100: right for a plain cross entropy whose
void label is -100, wrong for all else. `ExactTrainer` counts with the criterion itself.

python examples/accumulate_huggingface.py
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from denseloss import compose
from denseloss.distributed import accumulate, sum_and_count

CLASSES, VOID = 3, 255
criterion = compose.parse(f"cross_entropy(ignore_index={VOID}) + dice(ignore_index={VOID})")


def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
    """What the Trainer calls for each part; it has no total when it evaluates."""
    with accumulate(total=num_items_in_batch):
        return criterion(outputs["logits"], labels)


class ExactTrainer(Trainer):
    """Divides the loss by what the criterion counts in all parts and on all ranks."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The parts of one step, and what the loss divides by."""
        parts, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not parts:
            return parts, None
        counts = []
        for part in parts:
            labels = part["labels"]
            # Scores of 0: what a loss counts depends on labels and weights alone.
            scores = torch.zeros(len(labels), CLASSES, *labels.shape[1:])
            counts.append(sum_and_count(criterion, scores, labels).count)
        total = torch.stack(counts).sum(0).to(device)
        return parts, self.accelerator.reduce(total, "sum")


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, CLASSES, 3, padding=1)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(pixel_values)}


class Data(Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(8, 3, 16, 16, generator=generator)
        self.labels = torch.randint(0, CLASSES, (8, 16, 16), generator=generator)
        for i in range(8):
            self.labels[i, : 2 * i] = VOID  # the last images are mostly void

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[i], "labels": self.labels[i]}


def trained(steps: int) -> Tensor:
    """The weights after one step."""
    torch.manual_seed(0)
    model = Segmenter()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            max_steps=1,
            per_device_train_batch_size=8 // steps,
            gradient_accumulation_steps=steps,
            optim="sgd",
            learning_rate=0.1,
            lr_scheduler_type="constant",
            max_grad_norm=0,
            remove_unused_columns=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        ExactTrainer(model, arguments, train_dataset=Data(), compute_loss_func=loss).train()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


if __name__ == "__main__":
    whole = trained(1)
    for steps in (2, 4):
        gap = (trained(steps) - whole).abs().max().item()
        print(f"{steps} steps: weights differ by at most {gap:.1e} from those of one batch")
