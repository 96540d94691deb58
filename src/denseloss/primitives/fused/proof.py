"""Does a fast version agree with its definition? Tried on small inputs, value and gradient.

`difference` answers it for one call. `proven` asks it by itself, at the first call of each kind,
for fast versions that have not been measured on such a device yet; `denseloss doctor` asks it for
all.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Generator, Tensor
from torch.nn import Parameter

from denseloss import backend
from denseloss.backend import Declined
from denseloss.targets import ClassScores

__all__ = ["ISSUES", "difference", "kind_of_call", "proven"]

P = ParamSpec("P")
R = TypeVar("R")

ISSUES = "https://github.com/denseloss/denseloss/issues"

# How far a number may be from the definition in float64: by its own rounding, and by this share of
# the largest number beside it. What goes wrong in a kernel is further off by far.
ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
TOLERANCE = 1e-4
UNPROVEN = (
    "it was not compared with the definition on this device yet, and cannot be while a graph is "
    "traced or captured: call the loss once before"
)

_is_compiling, _modes = torch.compiler.is_compiling, torch._C._len_torch_dispatch_stack
# What was found for each kind of call: "" where the fast version is right, else what is wrong.
_verdicts: dict[Hashable, str] = {}
# The sizes at which each was compared: a call of one pixel and three classes says nothing of large
# maps or of a thousand classes.
_tried: set[tuple[Hashable, tuple[int, ...]]] = set()
_judging = threading.Lock()
_warned: set[str] = set()


def proven(name: str, version: Callable[P, R]) -> Callable[P, R | Declined]:
    """A fast version that is used only where it agrees with the definition.

    The first call of each kind compares the two on small inputs, in a thread of its own: whatever
    the caller has switched on (autocast, hooks, modes, a backend) has no part in that. Where the
    fast version raises or differs, one warning says so, and it declines from then on. While a graph
    is traced or captured nothing is compared: what has not been proven before declines.

    Args:
        name: of the quantity.
        version: its fast version.
    """
    definition = backend.reference(name)

    @functools.wraps(version)
    def run(*args: P.args, **kwargs: P.kwargs) -> R | Declined:
        kind, x = kind_of_call(name, args, kwargs), _first(args, kwargs)
        if _is_compiling():  # sizes are symbols then
            verdict = _verdicts.get(kind, UNPROVEN)
        else:
            tried = kind, _dense(x) if x.ndim > 1 else _small(x.shape)
            if tried not in _tried and not _verdicts.get(kind):
                if x.numel() == 0:
                    return version(*args, **kwargs)  # nothing can be wrong with nothing
                if not _plain(x):
                    return Declined(UNPROVEN)
                with _judging:
                    if tried not in _tried:
                        wrong = difference(name, version, definition, args, kwargs)
                        _verdicts[kind] = _verdicts.get(kind) or wrong or ""
                        _tried.add(tried)
                if _verdicts[kind] and name not in _warned:
                    _warned.add(name)
                    backend.caution(_complaint(name, x, _verdicts[kind]))
            verdict = _verdicts[kind]
        if verdict:
            return Declined(verdict)
        return version(*args, **kwargs)

    return run


def _complaint(name: str, x: Tensor, verdict: str) -> str:
    device = torch.cuda.get_device_name(x.device) if x.is_cuda else str(x.device)
    dtype = str(x.dtype).removeprefix("torch.")
    return (
        f"denseloss: the fast version of {name} for {dtype} is not right on {device}: {verdict}. "
        "Its definition in plain torch runs instead: the losses are right, but slower. Please "
        f"report this, with what `denseloss doctor` prints, to {ISSUES}"
    )


def _plain(x: Tensor) -> bool:
    """Whether a tensor holds numbers that can be computed with now."""
    if type(x) not in (Tensor, Parameter) or _modes():
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


# What else makes a call one of another kind, where other kernels or other parts of them run: the
# dtype of the target, whether there is a weight, and what is asked for.
_FORMS: dict[str, Callable[[Any, Any], tuple[Hashable, ...]]] = {
    "softmax_pass": lambda a, k: (
        *(a[1].dtype, a[2] is None, k.get("entropy"), k.get("columns")),
        *(k.get("spread") is None, k.get("size") is None),
    ),
    "sigmoid_sums": lambda a, k: (
        *(a[1].dtype, a[2] is None, k.get("columns"), k.get("entropy") is None),
    ),
    "edge_sums": lambda a, k: (a[1].dtype, a[2] is None, k["plain"]),
    "element_loss": lambda a, k: (
        *(("labels", a[1].label.dtype) if isinstance(a[1], ClassScores) else (a[1].dtype,)),
        *(a[2] is None, k["kind"].code),
    ),
    "box_loss": lambda a, k: (a[2] is None, a[3], k["kind"]),
    "bin_loss": lambda a, k: (a[2] is None,),  # noqa: ARG005
    "box_mean": lambda a, k: (a[1] == 1, k["border"]),
}


def kind_of_call(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
    """What calls have in common that the same kernels serve."""
    x = _first(args, kwargs)
    form = _FORMS.get(name)
    rest = () if form is None else form(args, kwargs)
    return (name, x.dtype, x.ndim, x.is_contiguous(), *rest)


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    x: Tensor = args[0] if args else next(iter(kwargs.values()))
    return x


# ---------------------------------------------------------------- one comparison


def difference(
    name: str,
    version: Callable[..., Any],
    definition: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> str | None:
    """What is wrong with a fast version on small inputs like those of a call.

    Args:
        name: of the quantity.
        version: its fast version.
        definition: its definition.
        args: of the call; of its tensors only shapes, dtypes, layouts and devices are read.
        kwargs: of the call.

    Returns:
        One phrase; None where value and gradient agree, or where the version declines.
    """
    found: list[str | None] = []

    def work() -> None:
        with backend.use(backend.REFERENCE):  # for what versions and definitions call in turn
            found.append(_difference(name, version, definition, args, kwargs))

    thread = threading.Thread(target=work, name="denseloss proof", daemon=True)
    thread.start()
    thread.join()
    return found[0] if found else "the comparison failed"


def _difference(
    name: str,
    version: Callable[..., Any],
    definition: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> str | None:
    call = inspect.signature(definition).bind(*args, **kwargs)
    for small in _alike(name, dict(call.arguments)):
        exact = {key: _doubled(value) for key, value in small.items()}
        who = "it"
        try:
            got = _results(version, call, small, learns=True)
            if got is None:  # such as the mean of a mask, which is taken as a constant
                got = _results(version, call, small, learns=False)
            if got is None:
                continue
            who = "its definition"
            wanted = _results(definition, call, exact, learns=True)
            wrong = _compared(wanted or {}, got) if got else "it gives nothing to compare"
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            wrong = f"{who} raises {type(error).__name__}: {lines[0]}"
        if wrong:
            return wrong
    return None


def _results(
    function: Callable[..., Any],
    call: inspect.BoundArguments,
    given: Mapping[str, Any],
    *,
    learns: bool,
) -> dict[str, Tensor] | None:
    """The outputs of a function by name, and its gradient; None where it declines."""
    first = next(iter(given))
    x = given[first].detach().clone()
    if x.is_floating_point():
        x.requires_grad_(learns)
    call.arguments.update({**given, first: x})
    outputs = function(*call.args, **call.kwargs)
    if type(outputs) is Declined:
        return None
    found = dict(_tensors(outputs))
    valid = found.get("weight")
    if valid is not None:  # what maps hold where their weight is 0 is nobody's business
        where = valid.detach() != 0
        for key, value in found.items():
            if value.shape == where.shape:
                found[key] = torch.where(where, value, 0)
    learnt = [value for value in found.values() if value.requires_grad]
    if learnt:
        upstream = [_upstream(value) for value in learnt]
        (found["gradient"],) = torch.autograd.grad(learnt, x, upstream)
    return {key: value.detach() for key, value in found.items()}


def _tensors(outputs: Any, name: str = "value") -> Iterator[tuple[str, Tensor]]:
    """The tensors of floating-point numbers among nested outputs."""
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield name, outputs
    elif isinstance(outputs, tuple):
        names = getattr(outputs, "_fields", [f"{name} {i}" for i in range(len(outputs))])
        for part, output in zip(names, outputs, strict=True):
            yield from _tensors(output, part)
    elif dataclasses.is_dataclass(outputs):
        for field in dataclasses.fields(outputs):
            yield from _tensors(getattr(outputs, field.name), field.name)


def _upstream(x: Tensor) -> Tensor:
    """Different factors for all numbers, so that a gradient at the wrong place is seen."""
    return torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype, device=x.device).reshape(x.shape)


def _compared(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> str | None:
    for name, value in got.items():
        right = wanted.get(name)
        if right is None or right.shape != value.shape:
            shape = None if right is None else list(right.shape)
            return f"its {name} has the shape {list(value.shape)}, not {shape}"
        if not value.numel():
            continue
        largest = float(right.abs().max())
        error = (value.double() - right).abs() - ROUNDING[value.dtype] * right.abs()
        gap = float(error.max()) / (largest or 1.0)
        if not gap <= TOLERANCE:
            what = "not finite" if math.isnan(gap) else f"off by {gap:.1g} of the largest"
            return f"its {name} is {what}"
    return None


# ---------------------------------------------------------------- small inputs


def _alike(name: str, given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments of a call with small tensors, drawn, in place of its own.

    They have the caller's dtypes, layout and classes. Where the call has a reduction there are two:
    the sum, and every value with a factor of its own on its gradient; never the mean, for which
    ranks may have to meet.
    """
    small = {**given, **_DRAW.get(name, _drawn_map)(given, torch.Generator().manual_seed(0))}
    if "reduction" not in small:
        yield small
        return
    for reduction in ("sum", "none"):
        yield {**small, "reduction": reduction, "count": None}


def _doubled(value: Any) -> Any:
    """The same numbers in float64."""
    if isinstance(value, ClassScores):
        return ClassScores(value.label, _doubled(value.score))
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    return value


def _small(sizes: Iterable[int]) -> tuple[int, ...]:
    """Sizes of axes, those that are large cut to some whole blocks of a kernel and a rest."""
    sizes = tuple(sizes)
    side = {1: 129, 2: 17}.get(len(sizes), 7)
    return tuple(min(size, side) for size in sizes)


def _dense(logits: Tensor) -> tuple[int, ...]:
    """The small shape of logits [n c *s], with all of their channels."""
    n, *rest = logits.shape
    if len(rest) < 2:
        return (*_small([n]), *rest)
    return min(n, 2), rest[0], *_small(rest[1:])


def _like(drawn: Tensor, given: Tensor) -> Tensor:
    """Drawn numbers on the device, in the dtype and in the layout of a given tensor."""
    drawn = drawn.to(given.device, given.dtype)
    if drawn.ndim < 3 or drawn.ndim != given.ndim or given.is_contiguous():
        return drawn
    return drawn.movedim(1, -1).contiguous().movedim(-1, 1)


def _share(shape: Iterable[int], g: Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=g, device="cpu")


def _normal(shape: Iterable[int], g: Generator) -> Tensor:
    return 3 * torch.randn(tuple(shape), generator=g, device="cpu")


def _labels(shape: Iterable[int], low: int, high: int, g: Generator) -> Tensor:
    return torch.randint(low, max(high, low + 1), tuple(shape), generator=g, device="cpu")


def _weight(given: Tensor | None, shape: Iterable[int], g: Generator) -> Tensor | None:
    """Weights of which some are 0, where the call has any."""
    drawn = 2 * _share(shape, g)
    drawn.view(-1)[:1] = 1.5  # never all of them
    return None if given is None else torch.where(drawn < 0.4, 0, drawn).to(given)


def _voided(drawn: Tensor, ignore: int | None, dtype: torch.dtype, g: Generator) -> Tensor:
    """Targets of which some are void, if their dtype has the number that says so."""
    if ignore is None or dtype == torch.bool:
        return drawn
    if not dtype.is_floating_point:
        numbers = torch.iinfo(dtype)
        if not numbers.min <= ignore <= numbers.max:
            return drawn
    return torch.where(_share(drawn.shape, g) < 0.1, ignore, drawn)


def _drawn_classes(given: Mapping[str, Any], g: Generator) -> dict[str, Any]:
    logits, target, size = given["logits"], given["target"], given.get("size")
    n, c, *space = shape = _dense(logits)
    if size is not None:  # up or down, as in the call
        space = [min(s, 37) for s in size]
    if target.is_floating_point():
        label = _share((n, c, *space), g)
    else:
        label = _voided(_labels((n, *space), 0, c, g), given["ignore_index"], target.dtype, g)
    return {
        "logits": _like(_normal(shape, g), logits),
        "target": label.to(target),
        "weight": _weight(given["weight"], (n, *space), g),
        **({} if size is None else {"size": tuple(space)}),
    }


def _drawn_channels(given: Mapping[str, Any], g: Generator) -> dict[str, Any]:
    logits, target = given["logits"], given["target"]
    if isinstance(target, ClassScores):
        return _drawn_scores(given, g)
    shape = _dense(logits) if logits.ndim > 1 else _small(logits.shape)
    mask = (_share(shape, g) < 0.3).float()
    soft = target.is_floating_point()
    mask = mask * torch.where(_share(shape, g) < 0.5, _share(shape, g), 1.0) if soft else mask
    small = {
        "logits": _like(_normal(shape, g), logits),
        "target": _voided(mask, given["ignore_index"], target.dtype, g).to(target),
        "weight": _weight(given["weight"], shape, g),
    }
    if "window" in given:
        small["window"] = min(given["window"], 2 * max(shape[2:], default=0) + 1)
    return small


def _drawn_scores(given: Mapping[str, Any], g: Generator) -> dict[str, Any]:
    logits, (label, score) = given["logits"], given["target"]
    places, c = _small(logits.shape[:-1]), logits.shape[-1]
    drawn = _voided(_labels(places, -1, c, g), given["ignore_index"], label.dtype, g)
    return {
        "logits": _like(_normal((*places, c), g), logits),
        "target": ClassScores(
            drawn.to(label), None if score is None else _share(places, g).to(score)
        ),
        "weight": _weight(given["weight"], (*places, 1), g),
    }


def _drawn_boxes(given: Mapping[str, Any], g: Generator) -> dict[str, Any]:
    rows = _small(given["boxes"].shape[:-1])

    def boxes() -> Tensor:
        first, size = 10 * _share((*rows, 2), g), 1 + 6 * _share((*rows, 2), g)
        return torch.cat([first, first + size if given["fmt"] == "xyxy" else size], -1)

    target = boxes()
    perfect = _share((*rows, 1), g) < 0.2
    return {
        "boxes": _like(torch.where(perfect, target, boxes()), given["boxes"]),
        "target_boxes": target.to(given["target_boxes"]),
        "weight": _weight(given["weight"], rows, g),
    }


def _drawn_bins(given: Mapping[str, Any], g: Generator) -> dict[str, Any]:
    *rows, k = given["logits"].shape
    rows = _small(rows)
    return {
        "logits": _like(_normal((*rows, k), g), given["logits"]),
        "target": ((k - 1) * _share(rows, g)).to(given["target"]),
        "weight": _weight(given["weight"], rows, g),
    }


def _drawn_ties(given: Mapping[str, Any], g: Generator) -> dict[str, Any]:
    n, k, *space = _dense(given["probability"])
    image = given["image"]
    return {
        "probability": _like(_normal((n, k, *space), g).softmax(1), given["probability"]),
        "image": (60 * _share((n, image.shape[1], *space), g)).to(image),
    }


def _drawn_labels(given: Mapping[str, Any], g: Generator) -> dict[str, Any]:
    label = given["label"]
    shape = _small(label.shape)
    classes = given["num_classes"] if "num_classes" in given else given["values"].shape[0]
    small = {"label": _labels(shape, 0, classes, g).to(label)}
    return small | ({"weight": _weight(given["weight"], shape, g)} if "weight" in given else {})


def _drawn_sums(given: Mapping[str, Any], g: Generator) -> dict[str, Any]:
    """I, P and T: what they share is less than each."""
    *rows, k = given["sums"].shape
    drawn = torch.arange(k, device="cpu").clamp(max=1) + _share((*_small(rows), k), g)
    return {"sums": drawn.to(given["sums"])}


def _drawn_map(given: Mapping[str, Any], g: Generator) -> dict[str, Any]:
    """One shape for every tensor: a map, or values with their weights and counts."""
    first, *_ = given.values()
    shape = _dense(first) if first.ndim > 2 else _small(first.shape)
    small: dict[str, Any] = {}
    for name, value in given.items():
        if name in ("weight", "count"):
            small[name] = _weight(value, shape, g)
        elif isinstance(value, Tensor):
            small[name] = _like(_share(shape, g), value)
        elif name == "window":
            small[name] = min(value, 2 * max(shape[2:], default=0) + 1)
    return small


_DRAW: dict[str, Callable[[Mapping[str, Any], Generator], dict[str, Any]]] = {
    "association": _drawn_ties,
    "bin_loss": _drawn_bins,
    "box_loss": _drawn_boxes,
    "class_count": _drawn_labels,
    "class_values": _drawn_labels,
    "edge_sums": _drawn_channels,
    "element_loss": _drawn_channels,
    "linear_ratio": _drawn_sums,
    "sigmoid_sums": _drawn_channels,
    "softmax_pass": _drawn_classes,
}
