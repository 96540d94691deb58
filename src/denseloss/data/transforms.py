"""From pixels to what networks take, and back; and the seeds of what is drawn at random."""

import torch
from torch import Tensor
from torchvision.transforms import v2

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise(image: Tensor) -> Tensor:
    """`uint8[*n 3 h w]` (0 to 255) to `float32`, with ImageNet's mean and deviation."""
    scaled: Tensor = v2.functional.to_dtype(image, torch.float32, scale=True)
    mean, std = (scaled.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    # In place where it is a copy anyway: of a large image, each more takes hundreds of megabytes.
    return (scaled - mean if scaled is image else scaled.sub_(mean)).div_(std)


def denormalise(image: Tensor) -> Tensor:
    """The inverse of `normalise`: `uint8[*n 3 h w]`, so that a picture can be drawn."""
    image = image.detach().float()
    unit = image * image.new_tensor(STD).view(3, 1, 1) + image.new_tensor(MEAN).view(3, 1, 1)
    return (unit * 255).round().clamp(0, 255).to(torch.uint8)


def mixed(*numbers: int) -> int:
    """Return one well-mixed seed for several small numbers."""
    state = 0
    for number in numbers:  # splitmix64
        state = (state ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1  # torch takes 63 bits
