"""What `denseloss doctor` says: what is here, which fast versions run, and whether they are right.

It needs torch only, and reads nothing of yours.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from denseloss import backend, functional
from denseloss.compose import AtTargetSize, parse
from denseloss.contract import arguments, kinds
from denseloss.primitives import fused
from denseloss.primitives.fused.proof import ISSUES, difference, kind_of_call
from denseloss.targets import ClassScores
from denseloss.testing.drawing import example

__all__ = ["examine"]

SECONDS = 10.0
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Say = Callable[[str], None]


def examine(say: Say, *, seconds: float = SECONDS) -> bool:
    """Say what is here and test it.

    Args:
        say: takes one line at a time.
        seconds: how long the test may take; what is left then is said.

    Returns:
        Whether nothing is wrong. A fast version that is merely not there is not wrong.
    """
    for line in (*_versions(), *_machine(), *_devices(), *_backends()):
        say(line)
    failed = _self_test(say, seconds)
    for line in failed:
        say(f"WRONG  {line}")
    if failed:
        say(
            'Losses that use these are not right here: call denseloss.backend.use("reference") '
            f"before, and please report all of the above to {ISSUES}"
        )
    else:
        say("OK: nothing here is wrong")
    say(
        "Is a loss NaN? denseloss.testing.diagnose(loss, logits, target) says which labels, masks "
        "or logits make it so."
    )
    return not failed


# ---------------------------------------------------------------- what is here


def _versions() -> Iterator[str]:
    found = {name: _version(name) for name in ("denseloss", "torch", "triton", "torchvision")}
    said = [f"{name} {version or 'not installed'}" for name, version in found.items()]
    yield f"versions      {', '.join(said)}, python {platform.python_version()}"
    yield f"              from {Path(__file__).parent}"


def _version(name: str) -> str | None:
    if name in ("denseloss", "torch"):  # what runs, not what was installed; torch's has its build
        return str(sys.modules[name].__version__)
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine() -> Iterator[str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield f"system        {platform.platform()}, {platform.machine()}"
    threads = torch.get_num_threads()
    yield f"processor     {_processor()}, {cores} cores, torch uses {threads} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _devices() -> Iterator[str]:
    found = [f"cpu ({torch.backends.cpu.get_cpu_capability()})"]
    for i in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(i)
        found.append(f"cuda:{i} {torch.cuda.get_device_name(i)} (capability {major}.{minor})")
    if torch.backends.mps.is_available():
        found.append("mps (losses run in plain torch there)")
    yield f"devices       {', '.join(found)}"


def _backends() -> Iterator[str]:
    missing, here = backend.missing(), backend.available()
    if "cpu" in missing:
        yield f"fast on cpu   no: {missing['cpu']}"
    elif "cpu" in here:
        yield f"fast on cpu   yes: {_kernels()}"
    if "cuda" in here:
        yield f"fast on cuda  yes: {_probation()}"
    else:
        yield f"fast on cuda  no: {_why_no_cuda(missing.get('cuda'))}"


def _kernels() -> str:
    from denseloss.primitives.cpu import library

    return str(library.load()._name)


def _probation() -> str:
    from denseloss.primitives import cuda

    if cuda.MEASURED:
        return f"tested on {', '.join(cuda.MEASURED)}"
    return (
        "in Triton, not tested on any GPU by us yet; each fast version is compared with its "
        "definition before it is used"
    )


def _why_no_cuda(missing: str | None) -> str:
    if torch.cuda.is_available():
        return (
            f"{missing or 'nothing is offered'}. Triton comes with PyTorch for Linux; elsewhere "
            "the plain torch versions run"
        )
    if torch.version.cuda is None and torch.version.hip is None:
        return "this PyTorch is built without CUDA; with a GPU, install one that has it"
    return "PyTorch sees no GPU (nvidia-smi says whether the driver does)"


# ---------------------------------------------------------------- is it right


class _Call(NamedTuple):
    """A quantity with the arguments that a loss has called it with."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def _self_test(say: Say, seconds: float) -> list[str]:
    """Compare every fast version on every device here; returns what is wrong."""
    devices = [name for name in ("cpu", "cuda") if name in backend.available()]
    if not devices:
        say("self-test     nothing to test: every loss runs its definition in plain torch")
        return []
    failed: list[str] = []
    end = time.monotonic() + seconds
    for device in devices:
        start, done = time.monotonic(), 0
        found, raised = _calls(device)
        failed += raised
        for key, call in found.items():
            if time.monotonic() > end:
                break
            version, definition = fused.VERSIONS[call.name], backend.reference(call.name)
            wrong = difference(call.name, version, definition, call.args, call.kwargs)
            done += 1
            if wrong:
                failed.append(f"{call.name} on {device}, {_said(key)}: {wrong}")
        say(
            f"self-test     {device}: {done} of {len(found)} kinds of call compared with their "
            f"definitions, value and gradient, in {time.monotonic() - start:.1f} s"
        )
        if done < len(found):
            say(
                f"              stopped after {seconds:g} s; kernels are compiled once, so that "
                "another run gets further"
            )
    return failed


def _said(key: Hashable) -> str:
    assert isinstance(key, tuple)
    return " ".join(str(part).removeprefix("torch.") for part in key[1:])


def _calls(device: str) -> tuple[dict[Hashable, _Call], list[str]]:
    """One call of each kind that the losses make, float32 first; and which losses raise."""
    found: dict[Hashable, _Call] = {}
    raised: list[str] = []

    def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.setdefault(kind_of_call(name, args, kwargs), _Call(name, args, kwargs))

    with _noting(device, note):
        for dtype in DTYPES:
            for loss in _losses(device, dtype):
                try:
                    loss()
                except Exception as error:  # the others are to be seen, too
                    name = getattr(loss.func, "__name__", type(loss.func).__name__)
                    raised.append(f"{name} on {device} raises {type(error).__name__}: {error}")
    return found, raised


@contextmanager
def _noting(device: str, note: Callable[..., None]) -> Iterator[None]:
    """Fast versions of a device note how they are called, and leave the work to the definition."""

    def noting(name: str) -> Callable[..., backend.Declined]:
        def version(*args: Any, **kwargs: Any) -> backend.Declined:
            note(name, args, kwargs)
            return backend.Declined("it is only noted")

        return version

    before = {name: backend.table[name][device] for name in fused.VERSIONS}
    try:
        for name in before:
            backend.table[name][device] = noting(name)
        with backend.use(None):
            yield
    finally:
        for name, version in before.items():
            backend.table[name][device] = version


def _losses(device: str, dtype: torch.dtype) -> Iterator[functools.partial[Any]]:
    """Every public function with its defaults and with weights, and what is made of several."""
    for name in vars(functional)["__all__"]:
        function = getattr(functional, name)
        if not kinds(function):
            continue
        # The only options that have no default say how many classes there are.
        stated = arguments(function).items()
        needed = {n: 3 for n, a in stated if a.required and a.kind is None}
        for options in ((), ("weight",)):
            drawn = example(function, dtype=dtype, options=options)
            inputs = {key: x.to(device) for key, x in drawn.items()}
            yield functools.partial(function, **inputs, **needed)
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(device, dtype)

    def label(low: int, *shape: int) -> Tensor:
        return torch.randint(low, 3, shape, generator=g).to(device)

    exclusive = parse("cross_entropy(label_smoothing=0.1) + dice + focal")
    independent = parse("binary_cross_entropy(pos_weight=3) + binary_dice")
    z = normal(2, 3, 6, 5)
    masks = (normal(2, 3, 6, 5) > 0).float()
    for logits in (z, z.to(memory_format=torch.channels_last)):
        yield functools.partial(exclusive, logits, label(0, 2, 6, 5))
        yield functools.partial(independent, logits, masks)
        yield functools.partial(AtTargetSize(exclusive), logits, label(0, 2, 11, 9))
        yield functools.partial(functional.binary_focal_loss, logits, masks)
    scores = ClassScores(label(-1, 2, 6))
    yield functools.partial(functional.binary_focal_loss, normal(2, 6, 3), scores)
    yield functools.partial(functional.quality_focal_loss, normal(2, 6, 3), scores)
    yield functools.partial(functional.structure_loss, z, masks, variant="released")
    boxes: dict[str, Any] = {
        key: x.to(device) for key, x in example(functional.ciou_loss, dtype=dtype).items()
    }
    for fmt in ("xywh", "cxcywh"):
        yield functools.partial(functional.ciou_loss, **boxes, fmt=fmt)
    yield functools.partial(functional.ciou_loss, **boxes, variant="released")
