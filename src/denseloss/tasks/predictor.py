"""A trained network with its preprocessing, as `denseloss.train.load` and `predict` use it."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Predictor(nn.Module):
    """A network that predicts from images as they are in files.

    A task's own predictor says in `forward` what it takes and gives, and what `files` it writes.

    Args:
        network: As the task built it. The weights of a run are loaded into it.

    Attributes:
        precision: Of autocast where the run was trained with it, on the devices that have it.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.precision: torch.dtype | None = None

    def autocast(self, image: Tensor) -> AbstractContextManager[Any]:
        """Return the context in which the network runs, as it did in training."""
        device = image.device.type
        if self.precision is None or (device == "cpu" and self.precision == torch.float16):
            return nullcontext()
        return torch.autocast(device, dtype=self.precision)

    def files(self, name: Path, *, probabilities: bool, overlays: bool) -> list[Path]:
        """Return what `write` writes for an image.

        Args:
            name: Of the image below the folder that is written to, without a suffix.
            probabilities: Whether those are wanted.
            overlays: Whether pictures are wanted.

        Raises:
            InputError: There is no such thing.
        """
        raise NotImplementedError

    def write(
        self, image: Path, out: Path, name: Path, *, probabilities: bool, overlays: bool
    ) -> str | None:
        """Predict an image file and write `files`; return what is to be said about it.

        Args:
            image: The file.
            out: The folder that is written to.
            name: As in `files`.
            probabilities: Whether those are wanted.
            overlays: Whether pictures are wanted.

        Raises:
            DataError: The image cannot be predicted.
        """
        raise NotImplementedError
