"""Weights that a network starts from: read from a file, fitted to the network by their names."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from denseloss.data.errors import InputError
from denseloss.data.files import UNREADABLE

_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".safetensors")
# Where files that hold more than a state dict keep it.
_KEYS = ("state_dict", "model_state_dict", "model")
_NAMED = 3


def is_file(weights: str) -> bool:
    """Whether `--weights` names a file, and not weights that come with a network."""
    if not weights:
        return False
    path = Path(weights)
    return path.suffix.lower() in _SUFFIXES or len(path.parts) > 1 or path.is_file()


def full_path(weights: str) -> str:
    """Return the file as every process finds it; other weights stay."""
    return str(Path(weights).expanduser().absolute()) if is_file(weights) else weights


def digest(weights: str) -> str:
    """Return what changes with the contents of the file; empty for what is no file.

    Raises:
        InputError: It cannot be read.
    """
    if not is_file(weights):
        return ""
    if Path(weights).is_dir():
        raise InputError(f"--weights {weights}: is a folder; give a file, such as its best.ckpt")
    try:
        with Path(weights).open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except OSError as error:
        raise InputError(f"--weights {weights}: cannot be read ({error.strerror})") from None


def load_file(network: nn.Module, weights: str) -> tuple[str, ...]:
    """Load all of a file that fits a network, and say what did not, in at most three lines.

    Args:
        network: Its weights are overwritten.
        weights: A state dict that torch saved, alone or under `"state_dict"`, such as best.ckpt of
            a run; or a .safetensors file.

    Raises:
        InputError: The file cannot be read, holds something else, or nothing of it fits.
    """
    state = _read(Path(weights))
    fitted = _best_fit(network.state_dict(), state)
    parameters = [name for name, _ in network.named_parameters()]
    missing = [name for name in parameters if name not in fitted.found]
    if len(missing) == len(parameters):
        raise InputError(
            f"--weights {weights}: nothing in it fits the network: it holds "
            f"{_listed(list(state))}, the network has {_listed(parameters)}"
        )
    network.load_state_dict(fitted.found, strict=False)
    # Names that are there with another shape are told as such.
    lines = {
        "not in the file, stays as it was": [n for n in missing if n not in fitted.other_shape],
        "not in the network, is left out": fitted.unexpected,
        "of another shape, stays as it was": [*fitted.other_shape.values()],
    }
    return tuple(f"{what}: {_listed(names)}" for what, names in lines.items() if names)


@dataclass(frozen=True)
class _Fitted:
    """What of a file fits a network.

    Attributes:
        found: By the network's names.
        other_shape: What has another shape, in words, by the network's names.
        unexpected: Names of the file that the network does not have.
    """

    found: Mapping[str, Tensor]
    other_shape: Mapping[str, str]
    unexpected: Sequence[str]


def _best_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> _Fitted:
    """Fit names under the prefixes under which most of the tensors fit.

    Wrappers such as DataParallel put a prefix before the names, and a file may be of a part of the
    network, such as its encoder.
    """
    fits = [_fitted(own, state, cut, put) for cut in _prefixes(state) for put in _prefixes(own)]
    return max(fits, key=lambda fitted: len(fitted.found))


def _fitted(own: Mapping[str, Tensor], state: Mapping[str, Tensor], cut: str, put: str) -> _Fitted:
    fitted = _Fitted(found := {}, other := {}, unexpected := [])
    for name, value in state.items():
        here = put + name.removeprefix(cut)
        if not name.startswith(cut) or here not in own:
            unexpected.append(name)
        elif value.shape != own[here].shape:
            other[here] = f"{name} {_shape(value)} (here {_shape(own[here])})"
        else:
            found[here] = value
    return fitted


def _prefixes(names: Mapping[str, Tensor]) -> list[str]:
    """Return "" and all beginnings of names, up to two words of them."""
    found = {""}
    for name in names:
        words = name.split(".")
        found |= {"".join(f"{word}." for word in words[:n]) for n in range(1, min(3, len(words)))}
    return sorted(found, key=lambda prefix: (prefix.count("."), prefix))


def _read(file: Path) -> dict[str, Tensor]:
    text = f"--weights {file}"
    if not file.is_file():
        raise InputError(f"{text}: there is no such file")
    try:
        found = _safetensors(file) if file.suffix.lower() == ".safetensors" else _torch(file)
    except InputError:
        raise
    except UNREADABLE as error:
        why = " ".join(str(error).split())[:160]
        # torch's words for a pickle that asks for more than tensors.
        if "unsupported global" in str(error).lower():
            raise InputError(
                f"{text}: holds more than tensors, such as a whole pickled model, which could run "
                "code; save model.state_dict() instead"
            ) from None
        raise InputError(f"{text}: cannot be read, damaged or of another format ({why})") from None
    state = _state(found)
    if not state:
        raise InputError(
            f"{text}: holds no state dict (tensors by name) but {_what(found)}; save "
            "model.state_dict()"
        )
    return state


def _torch(file: Path) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True)


def _safetensors(file: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file as load
    except ImportError:
        raise InputError(
            f"--weights {file}: needs the package safetensors: pip install safetensors"
        ) from None
    try:
        return load(file)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _state(found: Any) -> dict[str, Tensor]:
    """Return the tensors by name that a file holds, none where it holds something else."""
    if not isinstance(found, Mapping):
        return {}
    inner = next((found[key] for key in _KEYS if isinstance(found.get(key), Mapping)), found)
    state = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    if "pytorch-lightning_version" in found:
        # Of a Lightning checkpoint, of ours, too: the loss and the scores have tensors as well.
        model = {name: value for name, value in state.items() if name.startswith("model.")}
        return model or state
    return state


def _what(found: Any) -> str:
    kind = type(found).__name__
    return f"a {kind} of {_listed(list(map(str, found)))}" if isinstance(found, Mapping) else kind


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return f"{len(names)} ({shown}{', ...' if len(names) > _NAMED else ''})"
