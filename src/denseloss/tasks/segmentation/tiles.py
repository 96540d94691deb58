"""Large images go through a network in overlapping tiles."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from denseloss.tasks.segmentation.criterion import at_size

LARGEST = 2048 * 2048
"""Pixels of the largest image that goes through a network whole. Measured on a CPU, it takes 1.1 GB
with dynunet, 1.8 GB with smp:Unet:resnet34 and 4.3 GB with smp:UnetPlusPlus:resnet34, besides the
0.9 GB of the libraries; twice as large an image takes twice as much."""
TILE = 512
"""Side of a tile. With the same networks it takes 0.08, 0.13 and 0.35 GB."""
OVERLAP = 0.25
"""Of neighbouring tiles, as a share of their side."""
RULE = (
    f"images of more than {LARGEST / 1e6:.1f} million pixels are predicted in tiles of {TILE} "
    f"pixels that overlap by {round(TILE * OVERLAP)}, to spare memory"
)
# Logits that are in memory at a time: 128 MiB of float32, and a quarter or more of it for MONAI's
# map of weights.
_BAND_LOGITS = 2**25
# Rows that a band sees beyond those that it is for: their tiles lack neighbours.
_MARGIN = TILE // 4


def is_large(size: Sequence[int]) -> bool:
    """Whether an image of that (height, width) goes through the network in tiles."""
    return size[0] * size[1] > LARGEST


def bands(size: Sequence[int], *, channels: int) -> Iterator[tuple[slice, slice]]:
    """Cut a large image into bands, whose logits fit into memory together.

    Args:
        size: (height, width) of the image.
        channels: Of the logits.

    Yields:
        The rows of the image that a band is for, and the rows that it is computed from, which are
        a few more on both sides.
    """
    height, width = size
    count = -(-height // max(TILE, _BAND_LOGITS // (channels * width)))
    ends = [height * place // count for place in range(count + 1)]
    for first, last in pairwise(ends):
        start = max(0, min(first - _MARGIN, height - TILE))
        yield slice(first, last), slice(start, max(min(height, last + _MARGIN), start + TILE))


def tiled(network: Callable[[Tensor], Sequence[Tensor]], image: Tensor) -> Tensor:
    """Return the logits float32[n c h w] of an image [n 3 h w], blended from overlapping tiles.

    Args:
        network: Gives the logits of a tile, the largest first, of any size.
        image: As `network` takes it.
    """
    # It takes a second to import.
    from monai.inferers.utils import sliding_window_inference

    def of_a_tile(tile: Tensor) -> Tensor:
        return at_size(network(tile)[0].float(), tile.shape[-2:])

    found = sliding_window_inference(
        image,
        roi_size=(TILE, TILE),
        sw_batch_size=1,
        predictor=of_a_tile,
        overlap=OVERLAP,
        # The middle of a tile, which sees more around it, counts more than its border.
        mode="gaussian",
        padding_mode="replicate",
    )
    assert isinstance(found, Tensor)
    return found


def in_tiles(
    network: Callable[[Tensor], Sequence[Tensor]], image: Tensor, *, channels: int
) -> Tensor:
    """Return the same for an image of any size, band by band; only the logits are kept."""
    size = image.shape[-2:]
    logits = image.new_empty(len(image), channels, *size)
    for rows, seen in bands(size, channels=channels):
        found = tiled(network, image[..., seen, :])
        logits[..., rows, :] = found[..., rows.start - seen.start : rows.stop - seen.start, :]
    return logits


def rows_at_a_time(size: Sequence[int]) -> Iterator[slice]:
    """Yield the rows of a map, in parts if it is large; otherwise all at once."""
    step = max(1, LARGEST // size[1]) if is_large(size) else size[0]
    for first in range(0, size[0], step):
        yield slice(first, min(first + step, size[0]))
