"""A task in one file: how bright is an image? A network answers with one number per image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from denseloss.tasks import Defaults, Metric, Split, Task


@dataclass(frozen=True)
class Images:
    names: tuple[str, ...]
    name: str = "brightness"
    source: str = "images of one brightness"
    split_note: str = "by place"

    train = property(lambda self: [ToySample(n) for n in self.names[:-8]])
    val = property(lambda self: [ToySample(n) for n in self.names[-8:-4]])
    test = property(lambda self: [ToySample(n) for n in self.names[-4:]])

    def describe(self) -> list[str]:
        return [f"data: {self.source}", f"images: {len(self.names)}"]


@dataclass(frozen=True)
class ToySample:
    name: str


@dataclass(frozen=True)
class Items:
    samples: tuple[ToySample, ...]
    side: int

    def set_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        value = int(self.samples[index].name) / 100
        noise = torch.rand(3, self.side, self.side, generator=torch.Generator().manual_seed(index))
        return {"image": value + 0.1 * (noise - 0.5), "value": torch.tensor(value)}


@dataclass(frozen=True)
class ToySettings:
    """Options of the toy.

    Attributes:
        side: Of the images in pixels.
    """

    side: int = 8


def feed(outputs: Tensor, batch: Mapping[str, Any]) -> tuple[list[Tensor], Tensor, dict[str, Any]]:
    return [outputs[:, None, None]], batch["value"][:, None, None], {}


class Brightness(Task):
    name = "brightness"
    metrics = (
        Metric(key="error", name="Error", higher_is_better=False, definition="|p - t|"),
        Metric(key="right", name="Right", higher_is_better=True, definition="|p - t| < 0.1"),
    )
    defaults = Defaults(loss="binary_cross_entropy", lr=0.05)
    settings = ToySettings
    feeds = {("Logits", "Masks"): feed}  # noqa: RUF012

    def open(
        self, where: str, options: ToySettings, *, split: Split, progress: Any = None
    ) -> Images:
        return Images(tuple(str(i) for i in range(5, 95, 4)), where)

    def dataset(self, data: Images, samples: Sequence[ToySample], **_: Any) -> Items:
        return Items(tuple(samples), 8)

    def network(
        self, model: str, data: Images, criterion: nn.Module, options: ToySettings
    ) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1), nn.Flatten(0))

    def image_scores(self, outputs: Tensor, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        error = (outputs.sigmoid() - batch["value"]).abs()
        return {"error": error, "right": (error < 0.1).float()}
