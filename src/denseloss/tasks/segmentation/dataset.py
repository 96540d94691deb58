"""The samples as a `torch` data set: seeded augmentation for training, whole images otherwise."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as transforms

from denseloss.data.samples import VOID, Sample
from denseloss.data.transforms import MEAN, mixed, normalise
from denseloss.tasks.segmentation.data import SegmentationData

_SCALE = 1.25
_JITTER = 0.2


class SegmentationDataset(Dataset[dict[str, Tensor | int]]):
    """Samples of a `SegmentationData`, as `dict(image=..., mask=..., index=...)`.

    For training an item is a square: a random part of the image at a random scale of 0.8 to 1.25,
    flipped both ways at random, its brightness, contrast and saturation a little changed. What an
    image lacks to the square is padded and void. The augmentation of sample `i` in epoch `e`
    depends on `(seed, e, i)` alone; the global random state is not touched. Otherwise an item is
    the whole image, as it is.

    Args:
        data: Where the samples come from.
        samples: `data.train`, `data.val` or `data.test`.
        size: The side of a training square, in pixels.
        train: Whether to augment.
        seed: The seed of the augmentation.

    Items:
        image: `float32[3 h w]`, normalised.
        mask: `int64[h w]`, class indices, `VOID` (255) where void or padded.
        index: The place of the sample in `samples`.
    """

    def __init__(
        self,
        data: SegmentationData,
        samples: Sequence[Sample],
        *,
        size: int,
        train: bool,
        seed: int = 0,
    ) -> None:
        if size < 1:
            raise ValueError(f"SegmentationDataset: size must be at least 1, got {size}")
        self.data = data
        self.samples = tuple(samples)
        self.size = size
        self.train = train
        self.seed = seed
        # In shared memory, so that workers that live on see the next epoch, too.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        """The epoch whose augmentation is drawn."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation is drawn, before its loader is iterated."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        image, mask = self.data.read(self.samples[index])
        if self.train:
            generator = torch.Generator().manual_seed(mixed(self.seed, self.epoch, index))
            image, mask = augment(image, mask, self.size, generator)
        return {"image": normalise(image), "mask": mask.to(torch.int64), "index": index}


def augment(
    image: Tensor, mask: Tensor, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A random square of an image `uint8[3 h w]` and its mask `uint8[h w]`."""

    def draw(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()

    # All numbers are drawn first, so that a change of one step leaves the others as they were.
    scale = math.exp(draw(-math.log(_SCALE), math.log(_SCALE)))
    across, down = draw(0, 1), draw(0, 1)
    flip_x, flip_y = draw(0, 1) < 0.5, draw(0, 1) < 0.5
    brightness, contrast, saturation = (draw(1 - _JITTER, 1 + _JITTER) for _ in range(3))

    height, width = mask.shape
    # Never so large that an image which could fill the square is padded.
    side = max(1, min(round(size / scale), max(size, min(height, width))))
    top, left = _start(down, height, side), _start(across, width, side)
    part = slice(max(top, 0), top + side), slice(max(left, 0), left + side)
    image, mask = _resize(image[:, *part], mask[part], size / side)
    image = transforms.adjust_brightness(image, brightness)
    image = _change_contrast(image, contrast)
    image = transforms.adjust_saturation(image, saturation)
    image, mask = _place(image, mask, size, round(-top * size / side), round(-left * size / side))
    flipped = [axis for axis, flip in ((-1, flip_x), (-2, flip_y)) if flip]
    return image.flip(flipped).contiguous(), mask.flip(flipped).contiguous()


def _change_contrast(image: Tensor, factor: float) -> Tensor:
    # As torchvision's, but around a mean that is summed exactly: a float sum depends on the number
    # of threads, and an item must be the same in a worker and in the main process.
    grey: Tensor = transforms.rgb_to_grayscale(image)
    mean = int(grey.sum(dtype=torch.int64)) / grey.numel()
    changed = (image.to(torch.float32) - mean) * factor + mean
    return changed.round().clamp(0, 255).to(torch.uint8)


def _start(position: float, length: int, side: int) -> int:
    """Where the square begins on an axis; negative where the image is the shorter of the two."""
    low, high = sorted((0, length - side))
    return low + min(int(position * (high - low + 1)), high - low)


def _resize(image: Tensor, mask: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    height, width = (max(1, round(n * factor)) for n in mask.shape)
    if (height, width) == tuple(mask.shape):
        return image, mask
    image = transforms.resize(image, [height, width], antialias=True)
    # "nearest-exact" keeps mask and image in register; plain "nearest" moves it by half a pixel.
    resized = F.interpolate(mask[None, None], size=(height, width), mode="nearest-exact")
    return image, resized[0, 0]


def _place(image: Tensor, mask: Tensor, size: int, top: int, left: int) -> tuple[Tensor, Tensor]:
    """Put a part into the square, the rest grey (near 0 once normalised) and void."""
    height, width = (min(side, size) for side in mask.shape)
    if tuple(mask.shape) == (size, size):
        return image, mask
    top, left = max(0, min(top, size - height)), max(0, min(left, size - width))
    part = slice(top, top + height), slice(left, left + width)
    grey = torch.tensor([round(255 * mean) for mean in MEAN], dtype=torch.uint8)
    square = grey.view(3, 1, 1).repeat(1, size, size)
    labels = torch.full((size, size), VOID, dtype=torch.uint8)
    square[:, *part] = image[:, :height, :width]
    labels[part] = mask[:height, :width]
    return square, labels
