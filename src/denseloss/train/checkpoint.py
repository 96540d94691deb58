"""Checkpoints: written whole or not at all, and read with their checksums."""

import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from denseloss.data.files import UNREADABLE, writing_whole


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the place, then moves: Lightning writes into another folder, and copies.

    Args:
        saved: Told the name of each file that is complete.
    """

    def __init__(self, saved: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self._saved = saved

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; the former one stays until it is complete."""
        del storage_options
        # torch, writing to a file, answers a full disk with an error that does not say so.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with writing_whole(Path(path)) as file:
            file.write(content.getbuffer())
        if self._saved is not None:
            self._saved(Path(path).name)

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        """Read a checkpoint, on the CPU whatever is asked."""
        return load_checkpoint(Path(path))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a run, all of it, with its checksums; nothing in it is executed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or no checkpoint; the message names it.
    """
    try:
        # torch does not look at them.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: cannot be read (it holds other things than weights, which are never run)"
        ) from None
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path}: cannot be read ({reason}): damaged, or no checkpoint") from None
    keys = {"state_dict", "callbacks", "loops", "global_step", "pytorch-lightning_version"}
    if not isinstance(found, dict) or not keys <= {*found}:
        raise ValueError(f"{path}: is no checkpoint of denseloss train")
    return found


def misfit(checkpoint: Mapping[str, Any], weights: Mapping[str, Any]) -> str | None:
    """Return the first weight of a checkpoint that is not as in a network, in words."""
    there = checkpoint["state_dict"]
    for name in sorted({*there, *weights}):
        found, wanted = (_shape(state.get(name)) for state in (there, weights))
        if found != wanted:
            return f"{name} is {found}, and in the network of this run {wanted}"
    return None


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return "x".join(map(str, value.shape)) or "a number"
    return "not there" if value is None else "no tensor"
