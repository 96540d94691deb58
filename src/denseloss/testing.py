"""The battery that checks a loss: ours, and yours.

    from denseloss.testing import check_loss, diagnose
    check_loss(my_dice, like=denseloss.functional.dice_loss)   # raises with what is wrong
    diagnose(focal_loss, logits, target)                       # wrong values in real inputs

`check_loss` runs every check of `CHECKS` that the signature allows. It draws inputs from the
annotations of the function (`denseloss.contract`), or from those of ``like``.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import itertools
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from denseloss.contract import Argument, Kind, Sizes, arguments, example
from denseloss.module import LossModule

__all__ = ["CHECKS", "Case", "LossError", "Subject", "check_loss", "diagnose"]

Oracle = Callable[..., Tensor]


class LossError(AssertionError):
    """A loss broke its contract; the message lists each failed check."""


@dataclass(frozen=True)
class Case:
    """The sizes and the seed that inputs are drawn with."""

    sizes: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Subject:
    """A loss under test.

    Args:
        function: ``function(*tensors, **options)``.
        like: the function whose annotations describe it; None is itself.
        oracle: a slow, obvious float64 version with the same signature.
        exact_gradient: False where a part is constant in the backward pass by definition (CIoU's
            α): its gradient is then compared to the oracle's, and not to finite differences.
        backend: of torch.compile.
    """

    function: Callable[..., Tensor]
    like: Callable[..., Any] | None = None
    oracle: Oracle | None = None
    exact_gradient: bool = True
    backend: str = "aot_eager"

    @property
    def name(self) -> str:
        """The name that error messages must begin with."""
        return self.function.__name__

    @property
    def arguments(self) -> dict[str, Argument]:
        """What the annotations say of each parameter."""
        return arguments(self.like or self.function)

    @property
    def tensors(self) -> dict[str, Kind]:
        """The kinds of the required tensors; the first is differentiated."""
        return {n: a.kind for n, a in self.arguments.items() if a.required and a.kind is not None}

    def has(self, option: str) -> bool:
        """Whether the loss has this keyword."""
        return option in self.arguments

    def draw(
        self, case: Case, *, dtype: torch.dtype = torch.float64, options: Iterable[str] = ()
    ) -> dict[str, Tensor]:
        """Valid tensors by name."""
        return example(
            self.like or self.function,
            sizes=case.sizes,
            dtype=dtype,
            seed=case.seed,
            options=options,
        )

    def value(self, inputs: Mapping[str, Tensor], **options: Any) -> Tensor:
        """The loss of inputs by name; required tensors are passed by position."""
        return _call(self.function, self.tensors, inputs, options)

    def gradient(
        self, inputs: Mapping[str, Tensor], *, upstream: float = 1.0, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """The value, and the gradient of its sum with respect to the first tensor."""
        return _gradient(self.function, self.tensors, inputs, options, upstream)


def _call(
    function: Callable[..., Tensor],
    tensors: Mapping[str, Kind],
    inputs: Mapping[str, Tensor],
    options: Mapping[str, Any],
) -> Tensor:
    positional = [inputs[name] for name in tensors]
    named = {name: value for name, value in inputs.items() if name not in tensors}
    return function(*positional, **named, **options)


def _gradient(
    function: Callable[..., Tensor],
    tensors: Mapping[str, Kind],
    inputs: Mapping[str, Tensor],
    options: Mapping[str, Any],
    upstream: float = 1.0,
) -> tuple[Tensor, Tensor]:
    first = next(iter(tensors))
    leaf = inputs[first].detach().clone().requires_grad_()
    value = _call(function, tensors, {**inputs, first: leaf}, options)
    _require(value.requires_grad, "the value has no graph")
    (grad,) = torch.autograd.grad(value.sum() * upstream, leaf)
    return value.detach(), grad


def _require(holds: bool | Tensor, message: str) -> None:  # noqa: FBT001 - reads as assert
    if not bool(holds):
        raise AssertionError(message)


def _same(a: Tensor, b: Tensor, message: str, *, tolerance: float = 1e-9) -> None:
    _require(a.shape == b.shape, f"{message}: shapes {list(a.shape)} and {list(b.shape)}")
    a, b = a.double(), b.double()
    near = torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
    _require(near, f"{message}: {_head(a)} and {_head(b)}")


def _head(x: Tensor) -> str:
    return "[" + ", ".join(f"{v:.6g}" for v in x.flatten()[:4].tolist()) + "]"


# ---------------------------------------------------------------- the checks


def check_gradient(subject: Subject, case: Case) -> None:
    """First and second derivatives equal finite differences, in float64."""
    if not subject.exact_gradient:
        return
    inputs = subject.draw(case)
    first = next(iter(subject.tensors))
    leaf = inputs[first].clone().requires_grad_()

    def of(x: Tensor) -> Tensor:
        return subject.value({**inputs, first: x})

    _require(torch.autograd.gradcheck(of, (leaf,)), "gradcheck fails")
    _require(torch.autograd.gradgradcheck(of, (leaf,)), "gradgradcheck fails")


def check_oracle(subject: Subject, case: Case) -> None:
    """Value and gradient equal the oracle's in float64, for each reduction and each option."""
    if subject.oracle is None:
        return
    for inputs, options in _option_sets(subject, case):
        for reduction in ("none", "mean", "sum"):
            chosen = {**options, "reduction": reduction}
            value, grad = subject.gradient(inputs, **chosen)
            wanted, wanted_grad = _gradient(subject.oracle, subject.tensors, inputs, chosen)
            said = ", ".join([*(f"{n}={v}" for n, v in chosen.items()), *list(inputs)[2:]])
            _same(value, wanted, f"value differs from the oracle ({said})", tolerance=1e-8)
            _same(grad, wanted_grad, f"gradient differs from the oracle ({said})", tolerance=1e-8)


def check_extremes(subject: Subject, case: Case) -> None:
    """Value and gradient are finite at scores of ±1e4 and for degenerate inputs."""
    for dtype in (torch.float32, torch.float64):
        inputs = subject.draw(case, dtype=dtype)
        for what, changed in _extreme_inputs(subject, inputs):
            value, grad = subject.gradient(changed)
            _require(value.isfinite().all(), f"value is not finite: {what}, {dtype}")
            _require(grad.isfinite().all(), f"gradient is not finite: {what}, {dtype}")


def check_precision(subject: Subject, case: Case) -> None:
    """Half precision is read as it is and summed in float32; the gradient has the input's dtype."""
    for dtype in (torch.float16, torch.bfloat16):
        inputs = subject.draw(case, dtype=dtype)
        wide = {n: t.float() if t.is_floating_point() else t for n, t in inputs.items()}
        value, grad = subject.gradient(inputs)
        wanted, wanted_grad = subject.gradient(wide)
        _require(value.dtype == torch.float32, f"{dtype} input gives a {value.dtype} value")
        _require(grad.dtype == dtype, f"{dtype} input gives a {grad.dtype} gradient")
        _same(value, wanted, f"value at {dtype}", tolerance=1e-6)
        eps = torch.finfo(dtype).eps
        scale = wanted_grad.abs().max().item()
        # Gradients of small means fall below the least half-precision number.
        _require(
            (grad.float() - wanted_grad).abs().max() <= 4 * eps * scale + torch.finfo(dtype).tiny,
            f"gradient at {dtype} is off by more than rounding",
        )
    value = subject.value(subject.draw(case, dtype=torch.float64))
    _require(value.dtype == torch.float64, f"float64 input gives a {value.dtype} value")


def check_dimensions(subject: Subject, case: Case) -> None:
    """One to three axes of space; a 2-D map equals the same map as 3-D with one slice."""
    if not _has_space(subject):
        return
    for space in ((7,), (5, 4), (4, 3, 5)):
        value = subject.value(subject.draw(Case({**case.sizes, "*s": space}, case.seed)))
        _require(value.isfinite().all(), f"not finite with space {space}")


def check_layout(subject: Subject, case: Case) -> None:
    """Non-contiguous, expanded and channels_last inputs equal contiguous ones."""
    inputs = subject.draw(case)
    value, grad = subject.gradient(inputs)
    for what, laid in _layouts(inputs):
        other, other_grad = subject.gradient(laid)
        _same(other, value, f"value with {what} inputs")
        _same(other_grad, grad, f"gradient with {what} inputs")


def check_reductions(subject: Subject, case: Case) -> None:
    """``sum`` is the sum of ``none``, ``mean`` is a weighted mean of it."""
    inputs = subject.draw(case)
    none, total, mean = (subject.value(inputs, reduction=r) for r in ("none", "sum", "mean"))
    _same(total, none.sum(), "sum differs from the sum of none")
    twice = {n: torch.cat([t, t]) for n, t in inputs.items()}
    _same(subject.value(twice), mean, "mean changes when the batch is repeated")
    if not subject.has("weight"):
        return
    weighted = subject.draw(case, options=["weight"])
    none = subject.value(weighted, reduction="none")
    _same(subject.value(weighted, reduction="sum"), none.sum(), "weighted sum")
    if not _per_element(subject):
        return  # a region's value is no sum over elements
    mean = subject.value(weighted)
    scaled = {**weighted, "weight": 3 * weighted["weight"]}
    _same(subject.value(scaled), mean, "mean changes with the weight's scale")
    alike = {n: torch.zeros_like(t) for n, t in inputs.items()}
    unequal = {**alike, "weight": weighted["weight"]}
    _same(subject.value(unequal), subject.value(alike), "weighted mean of equal elements")


def check_void(subject: Subject, case: Case) -> None:
    """What is void has exactly zero gradient and no influence, whatever it holds."""
    for way in ("weight", "ignore_index"):
        if not subject.has(way):
            continue
        inputs = subject.draw(case, options=["weight"] if way == "weight" else [])
        clean, void, options = _voided(subject, inputs, case, way, garbage=False)
        dirty, _, _ = _voided(subject, inputs, case, way, garbage=True)
        wanted, wanted_grad = subject.gradient(clean, **options)
        value, grad = subject.gradient(dirty, **options)
        _require(value.isfinite().all(), f"void by {way}: garbage reaches the value")
        _same(value, wanted, f"void by {way}: the value changes with what is void")
        _require((grad[void] == 0).all(), f"void by {way}: void has gradient")
        _same(grad, wanted_grad, f"void by {way}: the gradient changes with what is void")

        part, whole, options = _cropped(subject, inputs, way)
        _same(
            subject.value(whole, **options),
            subject.value(part, **options),
            f"void by {way}: the value is not that of the valid part alone",
        )
        every, options = _all_void(subject, inputs, way)
        value, grad = subject.gradient(every, **options)
        _require((value == 0).all(), f"void by {way}: all void gives {_head(value)}, not 0")
        _require((grad == 0).all(), f"void by {way}: all void has gradient")


def check_empty(subject: Subject, case: Case) -> None:
    """A batch of nothing is 0 with a graph."""
    lead: dict[str, Any] = {"n": 0, "*m": (0,)}
    if not _has_images(subject):
        lead["*s"] = (0,)
    inputs = subject.draw(Case({**case.sizes, **lead}, case.seed))
    value, grad = subject.gradient(inputs)
    _require((value == 0).all(), f"an empty batch gives {_head(value)}, not 0")
    _require(grad.numel() == 0, "the gradient of an empty batch is not empty")


def check_errors(subject: Subject, case: Case) -> None:
    """Wrong shapes, dtypes and words raise, and name the function and the argument."""
    inputs = subject.draw(case)
    for name in subject.tensors:
        tensor = inputs[name]
        wrong = {
            "a wrong shape": (tensor[..., :-1], ValueError),
            "a missing axis": (tensor.flatten(), ValueError),
            "a complex dtype": (tensor.to(torch.complex64), TypeError),
            "a list": (tensor.tolist(), TypeError),
        }
        if tensor.ndim == 1:
            wrong.pop("a missing axis")
        if name == next(iter(subject.tensors)):
            wrong.pop("a wrong shape")  # it is the first tensor that sets the sizes
        for what, (value, error) in wrong.items():
            _raises(subject, {**inputs, name: value}, {}, error, name, what)
    for option, stated in subject.arguments.items():
        if stated.choices is not None:
            _raises(subject, inputs, {option: "nonsense"}, ValueError, option, "an unknown word")
        elif stated.interval is not None and stated.interval.low > -1:
            _raises(subject, inputs, {option: -1}, ValueError, option, "a number out of range")
        elif stated.kind is not None and option not in subject.tensors:
            shape = torch.ones(2, 3, 5, 7, 11, 13)
            _raises(subject, inputs, {option: shape}, ValueError, option, "a wrong shape")


def check_upstream(subject: Subject, case: Case) -> None:
    """The gradient is proportional to the one that comes from above."""
    inputs = subject.draw(case)
    _, grad = subject.gradient(inputs)
    _, scaled = subject.gradient(inputs, upstream=3.7)
    _same(scaled, 3.7 * grad, "the gradient for an upstream gradient of 3.7")
    none, grad = subject.gradient(inputs, reduction="none")
    first = next(iter(subject.tensors))
    leaf = inputs[first].clone().requires_grad_()
    above = torch.linspace(-1, 2, max(none.numel(), 1), dtype=none.dtype)[: none.numel()]
    value = subject.value({**inputs, first: leaf}, reduction="none")
    (one,) = torch.autograd.grad((value * above.reshape(none.shape)).sum(), leaf)
    (two,) = torch.autograd.grad(
        subject.value({**inputs, first: leaf}, reduction="none"),
        leaf,
        above.reshape(none.shape),
    )
    _same(one, two, "the gradient for a varying upstream gradient")


def check_purity(subject: Subject, case: Case) -> None:
    """Inputs, grad mode, random state and the terminal are left alone."""
    inputs = subject.draw(case, options=[n for n in ("weight",) if subject.has(n)])
    before = {n: (t.clone(), t._version) for n, t in inputs.items()}
    random, printed = torch.get_rng_state(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        subject.gradient(inputs)
        with torch.no_grad():
            value = subject.value(inputs)
            _require(not torch.is_grad_enabled(), "grad mode is changed")
    _require(not value.requires_grad, "a graph is built under no_grad")
    _require(torch.equal(torch.get_rng_state(), random), "the random state is changed")
    _require(not printed.getvalue(), f"it prints: {printed.getvalue()[:60]!r}")
    for name, (old, version) in before.items():
        intact = inputs[name]._version == version and torch.equal(inputs[name], old)
        _require(intact, f"{name} is written to")


def check_no_host_read(subject: Subject, case: Case) -> None:
    """No value is read to decide: the loss runs on tensors that have none."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    inputs = subject.draw(case, options=[n for n in ("weight",) if subject.has(n)])
    first = next(iter(subject.tensors))
    try:
        with FakeTensorMode() as mode:
            fake: dict[str, Tensor] = {n: mode.from_tensor(t) for n, t in inputs.items()}
            fake[first] = fake[first].detach().requires_grad_()
            subject.value(fake).backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        raise AssertionError(f"a value is read: {type(error).__name__}") from error


def check_compile(subject: Subject, case: Case) -> None:
    """torch.compile(fullgraph=True) gives the same; at most one recompilation over batch sizes."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend(subject.backend)
    compiled = torch.compile(subject.function, fullgraph=True, backend=counter)
    fast = Subject(compiled, subject.like or subject.function)
    for batch in (2, 3, 5, 4):
        lead: dict[str, Any] = {"n": batch, "*m": (batch + 3,)}
        if not _has_images(subject):
            lead["*s"] = (batch + 2, 4)
        inputs = subject.draw(Case({**case.sizes, **lead}, case.seed), dtype=torch.float32)
        value, grad = subject.gradient(inputs)
        other, other_grad = fast.gradient(inputs)
        _same(other, value, "compiled value", tolerance=2e-5)
        _same(other_grad, grad, "compiled gradient", tolerance=2e-5)
    _require(counter.frame_count <= 2, f"{counter.frame_count} compilations over 4 batch sizes")
    torch._dynamo.reset()


def check_func(subject: Subject, case: Case) -> None:
    """torch.func.grad and vmap work and agree with loops."""
    inputs = [subject.draw(Case(case.sizes, case.seed + i)) for i in range(2)]
    names = list(subject.tensors)
    stacked = [torch.stack([x[n] for x in inputs]) for n in names]

    def of(*tensors: Tensor) -> Tensor:
        return subject.function(*tensors)

    values = torch.func.vmap(of)(*stacked)
    grads = torch.func.vmap(torch.func.grad(of))(*stacked)
    for i, one in enumerate(inputs):
        value, grad = subject.gradient(one)
        _same(values[i], value, "vmap")
        _same(grads[i], grad, "vmap of grad")


def check_keywords(subject: Subject, case: Case) -> None:
    """Every keyword changes something, and no two of a type are interchangeable."""
    for name, stated in subject.arguments.items():
        if name in subject.tensors:
            continue
        seen = any(
            _differs(subject, inputs, {}, {name: value})
            for inputs in _varied_inputs(subject, case)
            for value in _other_values(subject, stated, inputs)
        )
        _require(seen, f"{name} changes nothing")
    numbers = [n for n, a in subject.arguments.items() if a.interval and a.interval.low > -1]
    for a, b in itertools.combinations(numbers, 2):
        low, high = _two_values(subject.arguments[a], subject.arguments[b])
        seen = any(
            _differs(subject, inputs, {a: low, b: high}, {a: high, b: low})
            for inputs in _varied_inputs(subject, case)
        )
        _require(seen, f"{a} and {b} are interchangeable")


CHECKS: dict[str, Callable[[Subject, Case], None]] = {
    "gradient": check_gradient,
    "oracle": check_oracle,
    "extremes": check_extremes,
    "precision": check_precision,
    "dimensions": check_dimensions,
    "layout": check_layout,
    "reductions": check_reductions,
    "void": check_void,
    "empty": check_empty,
    "errors": check_errors,
    "upstream": check_upstream,
    "purity": check_purity,
    "no_host_read": check_no_host_read,
    "compile": check_compile,
    "func": check_func,
    "keywords": check_keywords,
}


def check_loss(
    function: Callable[..., Tensor],
    *,
    like: Callable[..., Any] | None = None,
    oracle: Oracle | None = None,
    exact_gradient: bool = True,
    only: Iterable[str] | None = None,
    case: Case | None = None,
) -> None:
    """Check a loss against the contract that every loss here keeps.

    Args:
        function: ``function(*tensors, **options)``, annotated with kinds of `denseloss.contract`
            or described by ``like``.
        like: a function of denseloss with the same tensors and keywords.
        oracle: a slow, obvious version to compare with, in float64.
        exact_gradient: False where a part is constant in the backward pass by definition.
        only: names of checks (`CHECKS`); None is all.
        case: sizes and seed of the inputs.

    Raises:
        LossError: with one line for each check that failed.
        ValueError: an unknown check.
    """
    subject = Subject(function, like, oracle, exact_gradient)
    chosen = list(CHECKS) if only is None else list(only)
    unknown = [name for name in chosen if name not in CHECKS]
    if unknown:
        raise ValueError(f"check_loss: unknown check {unknown[0]!r}; known: {', '.join(CHECKS)}")
    failed = []
    for name in chosen:
        try:
            CHECKS[name](subject, case or Case())
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            kind = "" if type(error) is AssertionError else f"{type(error).__name__}: "
            failed.append(f"{name}: {kind}{first}")
    if failed:
        raise LossError(f"{subject.name}: {len(failed)} checks failed\n  " + "\n  ".join(failed))


def check_module(module: type[LossModule], case: Case | None = None) -> None:
    """Check that a Module class is its function: signature, value, copies, state and repr."""
    function = module.function
    subject = Subject(function)
    options = dict(inspect.signature(function).parameters)
    for name in subject.tensors:
        options.pop(name)
    stated = inspect.signature(module).parameters
    _require(list(stated) == list(options), "the keywords differ from the function's")
    for name, parameter in options.items():
        same = stated[name].default is parameter.default
        _require(same or stated[name].default == parameter.default, f"default of {name}")
    inputs = subject.draw(case or Case())
    required = {n: 3 for n, p in options.items() if p.default is inspect.Parameter.empty}
    chosen = {**required, **_non_default(subject, inputs)}
    built = module(**chosen)
    value = built(*(inputs[n] for n in subject.tensors))
    _same(value, subject.value(inputs, **chosen), "the Module's value")
    for what, other in {
        "pickle": pickle.loads(pickle.dumps(built)),
        "deepcopy": copy.deepcopy(built),
    }.items():
        _same(other(*(inputs[n] for n in subject.tensors)), value, f"after {what}")
        _require(repr(other) == repr(built), f"repr after {what}")
    held = {n for n, v in chosen.items() if isinstance(v, Tensor)}
    _require(set(built.state_dict()) == held, "tensor options must be buffers")
    _require(all(f"{n}=" in repr(built) for n in chosen if n not in required), "repr of options")


def _non_default(subject: Subject, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    found = {}
    for name, stated in subject.arguments.items():
        if name in subject.tensors or stated.required or name in ("reduction", "weight"):
            continue
        default = inspect.signature(subject.function).parameters[name].default
        for value in _other_values(subject, stated, inputs):
            if isinstance(value, Tensor) or value != default:
                found[name] = value
    return found


# ---------------------------------------------------------------- inputs for the checks


def _has_space(subject: Subject) -> bool:
    forms = next(iter(subject.tensors.values())).forms
    return any(form.star is not None and form.star[0] == "*s" for form in forms)


def _has_images(subject: Subject) -> bool:
    forms = next(iter(subject.tensors.values())).forms
    return any(axis == "n" for form in forms for axis, _ in form.before)


def _per_element(subject: Subject) -> bool:
    """Whether ``none`` has a value per element, and not per region or image."""
    # Told by shapes, from sizes that cannot be mistaken for each other.
    sizes = {"n": 2, "c": 3, "*s": (5, 4), "*m": (7,), "k": 6}
    inputs = subject.draw(Case(sizes), options=["weight"])
    return subject.value(inputs, reduction="none").shape == inputs["weight"].shape


def _extreme_inputs(
    subject: Subject, inputs: Mapping[str, Tensor]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    first, *others = subject.tensors
    kind, x = subject.tensors[first].name, inputs[first]
    changed: dict[str, Tensor] = {}
    if kind == "Boxes":
        target = inputs[others[0]]
        changed = {
            "identical boxes": target,
            "boxes without width": target[..., [0, 1, 0, 3]],
            "boxes without height": target[..., [0, 1, 2, 1]],
            "boxes without area": target[..., [0, 1, 0, 1]],
            "inverted boxes": target[..., [2, 3, 0, 1]],
            "boxes inverted in one axis": target[..., [2, 1, 0, 3]],
            "distant boxes": target + 1e4,
            "tiny boxes": target * 1e-6,
            "huge boxes": target * 1e6,
            "boxes at 0": torch.zeros_like(target),
        }
        for what, boxes in list(changed.items()):
            yield f"{what}, both alike", {**inputs, first: boxes, others[0]: boxes}
    else:
        sign = torch.where(x >= 0, 1, -1).to(x.dtype)
        changed = {
            "scores of 1e4 and -1e4": 1e4 * sign,
            "scores of -1e4 and 1e4": -1e4 * sign,
            "scores of 1e4": torch.full_like(x, 1e4),
            "scores of -1e4": torch.full_like(x, -1e4),
            "scores of 0": torch.zeros_like(x),
        }
    for what, value in changed.items():
        yield what, {**inputs, first: value}
        for name in others:
            yield (
                f"{what}, {name} all 0",
                {
                    **inputs,
                    first: value,
                    name: torch.zeros_like(inputs[name]),
                },
            )
            ones = torch.ones_like(inputs[name])
            if not ones.is_floating_point():
                ones = ones.clamp(max=x.shape[1] - 1)  # the last of the classes, if only one
            yield f"{what}, {name} all 1", {**inputs, first: value, name: ones}


def _layouts(inputs: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    def strided(x: Tensor) -> Tensor:
        wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1] + 1, dtype=x.dtype)
        wide[..., 1::2] = x
        return wide[..., 1::2]

    yield "strided", {n: strided(t) for n, t in inputs.items()}
    yield (
        "transposed",
        {n: t.transpose(0, -1).contiguous().transpose(0, -1) for n, t in inputs.items()},
    )
    if any(t.ndim == 4 for t in inputs.values()):
        yield (
            "channels_last",
            {
                n: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t
                for n, t in inputs.items()
            },
        )


def _void_axis(kind: Kind, tensor: Tensor) -> int:
    """The last axis of ``*s`` or ``*m`` in a tensor."""
    for form in kind.forms:
        if form.star is not None and len(form.before) + len(form.after) <= tensor.ndim:
            return tensor.ndim - len(form.after) - 1
    raise AssertionError("no space to be void")


def _garbage(x: Tensor) -> Any:
    return float("nan") if x.is_floating_point() else 77


def _voided(
    subject: Subject, inputs: Mapping[str, Tensor], case: Case, way: str, *, garbage: bool
) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    """Inputs with random elements void, where those are in the first tensor, and the option."""
    first, *others = subject.tensors
    generator = torch.Generator().manual_seed(case.seed + 1)
    changed, options = dict(inputs), {}
    if way == "weight":
        where = torch.rand(inputs["weight"].shape, generator=generator) < 0.4
        changed["weight"] = torch.where(where, 0, inputs["weight"])
    else:
        target = inputs[others[0]]
        where = torch.rand(target.shape, generator=generator) < 0.4
        options["ignore_index"] = 255
        changed[others[0]] = torch.where(where, 255, target)
    void = _spread(where, subject, inputs)
    if garbage:
        for name in (first, *others):
            x = changed[name]
            if way == "ignore_index" and name != first:
                continue
            at = _spread(where, subject, inputs, name)
            changed[name] = torch.where(at, torch.tensor(_garbage(x)), x).to(x.dtype)
    return changed, void, options


def _spread(
    where: Tensor, subject: Subject, inputs: Mapping[str, Tensor], name: str | None = None
) -> Tensor:
    """A mask of void elements brought to the shape of a tensor (the first by default)."""
    name = name or next(iter(subject.tensors))
    x = inputs[name]
    if where.ndim == x.ndim:
        return where
    if subject.tensors[name].name == "Logits":
        return where.unsqueeze(1).expand(x.shape)  # pixels of [n c *s]
    return where.unsqueeze(-1).expand(x.shape)  # boxes [*m 4], bins [*s k]


def _cropped(
    subject: Subject, inputs: Mapping[str, Tensor], way: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """The first part of the inputs, and the whole with the rest void."""
    part, whole, options = {}, dict(inputs), {}
    kinds = {n: a.kind for n, a in subject.arguments.items() if n in inputs and a.kind}
    for name, x in inputs.items():
        axis = _void_axis(kinds[name], x)
        size = x.shape[axis] - 2
        part[name] = x.narrow(axis, 0, size)
        void = (way == "weight" and name == "weight") or (
            way == "ignore_index" and name == list(subject.tensors)[1]
        )
        if void:
            rest = torch.full_like(x.narrow(axis, size, 2), 0 if way == "weight" else 255)
            whole[name] = torch.cat([part[name], rest], dim=axis)
    if way == "ignore_index":
        options["ignore_index"] = 255
    return part, whole, options


def _all_void(
    subject: Subject, inputs: Mapping[str, Tensor], way: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if way == "weight":
        return {**inputs, "weight": torch.zeros_like(inputs["weight"])}, {}
    target = list(subject.tensors)[1]
    return {**inputs, target: torch.full_like(inputs[target], 255)}, {"ignore_index": 255}


def _option_sets(
    subject: Subject, case: Case
) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
    """Defaults, then each keyword at another value with the rest at their defaults."""
    inputs = subject.draw(case)
    yield inputs, {}
    for name, stated in subject.arguments.items():
        if name in subject.tensors or name == "reduction":
            continue
        for value in _other_values(subject, stated, inputs):
            if isinstance(value, Tensor):
                yield {**inputs, name: value}, {}
            else:
                yield inputs, {name: value}


def _varied_inputs(subject: Subject, case: Case) -> Iterator[dict[str, Tensor]]:
    """Inputs that show what a keyword does: weighted ones, ones with a class absent."""
    inputs = subject.draw(case)
    yield inputs
    target = list(subject.tensors)[-1]
    few = {**inputs, target: torch.zeros_like(inputs[target])}
    yield few
    if subject.has("weight"):
        yield subject.draw(case, options=["weight"])


def _other_values(
    subject: Subject, stated: Argument, inputs: Mapping[str, Tensor]
) -> Iterator[Any]:
    if stated.choices is not None:
        yield from stated.choices
    elif stated.kind is not None and stated.name not in inputs:
        function = subject.like or subject.function
        if stated.interval is not None:
            yield 0.37
        first = inputs[next(iter(subject.tensors))]
        drawn = example(function, sizes=_sizes_of(subject, inputs), options=[stated.name], seed=5)
        yield drawn[stated.name].to(first.dtype)
    elif stated.name == "ignore_index":
        yield from (0, 1)
    elif stated.interval is not None:
        yield from (v for v in (1, 3, 0.37, 0.81, 2.6) if stated.interval.holds(v))
    else:
        yield from (True, False)


def _sizes_of(subject: Subject, inputs: Mapping[str, Tensor]) -> Sizes:
    sizes: Sizes = {}
    for name, kind in subject.tensors.items():
        sizes = kind.check(subject.name, name, inputs[name], sizes)
    return sizes


def _two_values(a: Argument, b: Argument) -> tuple[Any, Any]:
    fit = [
        v
        for v in (3, 1, 5, 0.3, 0.8, 2.6)
        if a.interval and b.interval and a.interval.holds(v) and b.interval.holds(v)
    ]
    return fit[0], fit[1]


def _differs(
    subject: Subject, inputs: Mapping[str, Tensor], one: dict[str, Any], two: dict[str, Any]
) -> bool:
    a, grad_a = subject.gradient(inputs, **one)
    b, grad_b = subject.gradient(inputs, **two)
    if a.shape != b.shape:
        return True
    return not (torch.allclose(a, b, rtol=1e-7) and torch.allclose(grad_a, grad_b, rtol=1e-7))


def _raises(
    subject: Subject,
    inputs: Mapping[str, Any],
    options: Mapping[str, Any],
    error: type[Exception],
    argument: str,
    what: str,
) -> None:
    try:
        _call(subject.function, subject.tensors, inputs, options)
    except (TypeError, ValueError) as raised:
        _require(isinstance(raised, error), f"{what} as {argument} raises {type(raised).__name__}")
        # A first tensor of another shape may be found out by the second.
        first = next(iter(subject.tensors))
        names = subject.tensors if argument == first else [argument]
        named = subject.name in str(raised) and any(name in str(raised) for name in names)
        _require(named, f"{what} as {argument}: the error does not name them: {raised}")
    except Exception as raised:
        raise AssertionError(f"{what} as {argument} raises {type(raised).__name__}") from raised
    else:
        raise AssertionError(f"{what} as {argument} is accepted")


# ---------------------------------------------------------------- wrong values in real inputs


def diagnose(function: Callable[..., Any], *tensors: Tensor, **options: Any) -> list[str]:
    """Wrong values in the inputs of a loss, in words. It reads values, so it waits for the device.

    A loss never reads values to decide; wrong ones give a wrong number or NaN. This says why.

    Args:
        function: a public loss.
        tensors: what it is called with.
        options: its keywords.

    Returns:
        One sentence for each thing that is wrong; empty where all is well.

    Example:
        >>> from denseloss.functional import dice_loss
        >>> diagnose(dice_loss, torch.zeros(1, 2, 3), torch.tensor([[0, 1, 7]]))
        ['target: 1 of 3 labels are outside 0 to 1 and are not ignore_index: 7']
    """
    stated = arguments(function)
    defaults = inspect.signature(function).parameters
    named = dict(zip(stated, tensors, strict=False)) | options
    ignore = named.get("ignore_index", getattr(defaults.get("ignore_index"), "default", None))
    found: list[str] = []
    sizes: Sizes = {}
    for name, value in named.items():
        argument = stated.get(name)
        if not isinstance(value, Tensor) or argument is None or argument.kind is None:
            continue
        sizes = argument.kind.check(function.__name__, name, value, sizes)
        found += _wrong_values(name, argument.kind, value, sizes, ignore, named.get("fmt", "xyxy"))
    return found


def _wrong_values(
    name: str, kind: Kind, x: Tensor, sizes: Sizes, ignore: int | None, fmt: str
) -> list[str]:
    found = []
    if x.is_floating_point() and not x.isfinite().all():
        bad = (~x.isfinite()).sum().item()
        found.append(f"{name}: {bad} of {x.numel()} values are NaN or infinite")
    x = x[x.isfinite()] if kind.name != "Boxes" and x.is_floating_point() else x
    if x.numel() == 0:
        return found
    if kind.name in ("ClassMap", "Labels") and not x.is_floating_point() and "c" in sizes:
        void = torch.zeros_like(x, dtype=torch.bool) if ignore is None else x.long() == ignore
        wrong = x.long()[~void & ((x.long() < 0) | (x.long() >= sizes["c"]))]
        if wrong.numel():
            values = ", ".join(str(v) for v in sorted(set(wrong.tolist()))[:8])
            found.append(
                f"{name}: {wrong.numel()} of {x.numel()} labels are outside 0 to "
                f"{sizes['c'] - 1} and are not ignore_index: {values}"
            )
    elif kind.name in ("Masks", "Quality", "ClassMap"):
        y = x.double()
        wrong = y[((y < 0) | (y > 1)) & (y != (ignore if ignore is not None else 0))]
        if wrong.numel():
            values = ", ".join(f"{v:g}" for v in sorted(set(wrong.tolist()))[:8])
            found.append(
                f"{name}: {wrong.numel()} of {x.numel()} values are outside 0 to 1: {values}"
            )
    elif kind.name == "BinTarget" and "k" in sizes:
        wrong = x[(x < 0) | (x > sizes["k"] - 1)]
        if wrong.numel():
            found.append(
                f"{name}: {wrong.numel()} of {x.numel()} positions are outside 0 to "
                f"{sizes['k'] - 1} and are clamped"
            )
    elif kind.name == "Boxes":
        size = x[..., 2:] - x[..., :2] if fmt == "xyxy" else x[..., 2:]
        inverted, flat = (size < 0).any(-1).sum().item(), (size == 0).any(-1).sum().item()
        if inverted:
            found.append(f"{name}: {inverted} boxes are inverted (x2 < x1 or y2 < y1)")
        if flat:
            found.append(f"{name}: {flat} boxes have no width or no height")
    elif kind.name == "Image" and x.double().max() <= 1 and x.double().min() >= 0:
        found.append(f"{name}: intensities lie in 0 to 1, expected 0 to 255")
    elif kind.name.endswith("Weight") and (x < 0).any():
        found.append(f"{name}: {(x < 0).sum().item()} values are negative")
    elif kind.name in ("Logits", "Scores", "Bins") and _like_probabilities(x):
        found.append(f"{name}: all values lie in 0 to 1: probabilities, not logits?")
    return found


def _like_probabilities(x: Tensor) -> bool:
    return bool((x >= 0).all() and (x <= 1).all() and (x != 0).any())
