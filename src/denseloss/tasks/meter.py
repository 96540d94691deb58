"""The score of a split as the mean of its images' scores."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from denseloss.tasks.criterion import Batch
from denseloss.tasks.scores import Metric


class MeanScores(nn.Module):
    """The means over images of the scores of each.

    Args:
        image_scores: Of outputs and a batch, float[n] by the key of the metric, NaN for none.
        metrics: The first is the score.
    """

    def __init__(
        self,
        image_scores: Callable[[Any, Batch], Mapping[str, Tensor]],
        metrics: Sequence[Metric],
    ) -> None:
        super().__init__()
        self._image_scores, self._metrics = image_scores, tuple(metrics)
        self._means = nn.ModuleList(MeanMetric(nan_strategy="disable") for _ in metrics)

    def update(self, outputs: Any, batch: Batch) -> None:
        """Take the images of a batch."""
        scores = self._image_scores(outputs, batch)
        for metric, mean in self._of_metrics():
            of_image = scores[metric.key]
            known = batch["counts"] * ~of_image.isnan()
            mean.update(torch.where(known > 0, of_image, torch.zeros_like(of_image)), known)

    def compute(self) -> dict[str, float]:
        """Return the means; that of the first metric is the score."""
        found = {metric.key: float(mean.compute()) for metric, mean in self._of_metrics()}
        return {"score": found[self._metrics[0].key], **found}

    def reset(self) -> None:
        """Forget all."""
        for _, mean in self._of_metrics():
            mean.reset()

    def _of_metrics(self) -> Iterator[tuple[Metric, MeanMetric]]:
        for metric, mean in zip(self._metrics, self._means, strict=True):
            assert isinstance(mean, MeanMetric)
            yield metric, mean
