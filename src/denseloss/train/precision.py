"""The precision that is fast here: measured once for a machine and a kind of training, and kept."""

import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from denseloss.data.files import write_whole
from denseloss.train.errors import DivergedError

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""What the network computes in, by the name of Lightning's precision; others are float32."""


def faster(kind: Mapping[str, Any], seconds_of: Callable[[str], float]) -> str:
    """Return the precision whose steps are shorter here: what a CPU promises is not believed.

    The answer is kept in the user's cache folder, so that the same command gives the same numbers.

    Args:
        kind: Of training: what the length of a step depends on, besides the machine.
        seconds_of: Measures a step with a precision.
    """
    here = {
        "machine": platform.node(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }
    text = json.dumps({**here, **kind}, sort_keys=True, default=str)
    key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    known = _kept()
    if key not in known:
        known[key] = _measured(seconds_of)
        _keep(known)
    return str(known[key])


def _measured(seconds_of: Callable[[str], float]) -> str:
    seconds = {"32-true": math.inf, "bf16-mixed": math.inf}
    # Each twice, in mirrored order: a machine may become slower or faster meanwhile.
    for name in (*seconds, *reversed(seconds)):
        try:
            seconds[name] = min(seconds[name], seconds_of(name))
        except DivergedError:  # the training itself will say so
            return "32-true"
    # Without a clear gain, the more exact one.
    return "bf16-mixed" if seconds["bf16-mixed"] < 0.9 * seconds["32-true"] else "32-true"


def _file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "denseloss" / "precision.json"


def _kept() -> dict[str, Any]:
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    return found if isinstance(found, dict) else {}


def _keep(known: Mapping[str, str]) -> None:
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_whole(_file(), json.dumps(known, indent=2) + "\n")
    except (OSError, RuntimeError):
        # A home that cannot be written: it is measured again next time.
        return
