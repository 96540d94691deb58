"""The score of a split while a network trains."""

from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from denseloss.data.samples import VOID
from denseloss.tasks.criterion import Batch
from denseloss.tasks.segmentation.criterion import at_size, decided
from denseloss.tasks.segmentation.data import SegmentationData
from denseloss.tasks.segmentation.measure import overlap_scores
from denseloss.tasks.segmentation.tiles import rows_at_a_time


class OverlapMeter(nn.Module):
    """Dice and IoU of a split, pooled over its pixels.

    On a binary task the score is that of the foreground: the background is easy, and would hide a
    bad foreground. A class that neither the truth nor the prediction holds has no score: NaN.
    """

    def __init__(self, data: SegmentationData) -> None:
        super().__init__()
        self._data = data
        self._confusion = MulticlassConfusionMatrix(
            data.num_classes, ignore_index=VOID, validate_args=False
        )

    def update(self, outputs: list[Tensor], batch: Batch) -> None:
        """Take the images of a batch."""
        mask: Tensor = batch["mask"]
        logits = at_size(outputs[0].float(), mask.shape[-2:])
        mask = mask.masked_fill(batch["counts"].view(-1, 1, 1) == 0, VOID)
        for rows in rows_at_a_time(mask.shape[-2:]):
            self._confusion.update(decided(logits[:, :, rows], self._data.mode), mask[:, rows])

    def compute(self) -> dict[str, float]:
        """Return the scores by their columns in `metrics.csv`."""
        return overlap_scores(self._confusion.compute(), self._data)

    def reset(self) -> None:
        """Forget all."""
        self._confusion.reset()
