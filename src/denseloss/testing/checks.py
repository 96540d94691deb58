"""The checks. Each takes a loss and a case, and raises AssertionError with what is wrong."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from denseloss.testing.inputs import (
    all_void,
    cropped,
    extreme_inputs,
    has_images,
    has_space,
    layouts,
    option_sets,
    other_values,
    per_element,
    two_values,
    varied_inputs,
    voided,
)
from denseloss.testing.subject import Case, Subject, call, gradient, head, require, same

__all__ = ["CHECKS"]


def check_gradient(subject: Subject, case: Case) -> None:
    """First and second derivatives equal finite differences, in float64."""
    if not subject.exact_gradient:
        return
    inputs = subject.draw(case)
    first = next(iter(subject.tensors))
    leaf = inputs[first].clone().requires_grad_()

    def of(x: Tensor) -> Tensor:
        return subject.value({**inputs, first: x})

    require(torch.autograd.gradcheck(of, (leaf,)), "gradcheck fails")
    require(torch.autograd.gradgradcheck(of, (leaf,)), "gradgradcheck fails")


def check_oracle(subject: Subject, case: Case) -> None:
    """Value and gradient equal the oracle's in float64, for each reduction and each option."""
    if subject.oracle is None:
        return
    for inputs, options in option_sets(subject, case):
        for reduction in ("none", "mean", "sum"):
            chosen = {**options, "reduction": reduction}
            value, grad = subject.gradient(inputs, **chosen)
            wanted, wanted_grad = gradient(subject.oracle, subject.tensors, inputs, chosen)
            said = ", ".join([*(f"{n}={v}" for n, v in chosen.items()), *list(inputs)[2:]])
            same(value, wanted, f"value differs from the oracle ({said})", tolerance=1e-8)
            same(grad, wanted_grad, f"gradient differs from the oracle ({said})", tolerance=1e-8)


def check_extremes(subject: Subject, case: Case) -> None:
    """Value and gradient are finite at scores of ±1e4 and for degenerate inputs."""
    for dtype in (torch.float32, torch.float64):
        inputs = subject.draw(case, dtype=dtype)
        for what, changed in extreme_inputs(subject, inputs):
            value, grad = subject.gradient(changed)
            require(value.isfinite().all(), f"value is not finite: {what}, {dtype}")
            require(grad.isfinite().all(), f"gradient is not finite: {what}, {dtype}")


def check_precision(subject: Subject, case: Case) -> None:
    """Sums run in float32 for half precision and under autocast; gradients keep the dtype."""
    for dtype in (torch.float16, torch.bfloat16):
        inputs = subject.draw(case, dtype=dtype)
        wide = {n: t.float() if t.is_floating_point() else t for n, t in inputs.items()}
        value, grad = subject.gradient(inputs)
        wanted, wanted_grad = subject.gradient(wide)
        require(value.dtype == torch.float32, f"{dtype} input gives a {value.dtype} value")
        require(grad.dtype == dtype, f"{dtype} input gives a {grad.dtype} gradient")
        same(value, wanted, f"value at {dtype}", tolerance=1e-6)
        eps = torch.finfo(dtype).eps
        scale = wanted_grad.abs().max().item()
        # Gradients of small means fall below the least half-precision number.
        require(
            (grad.float() - wanted_grad).abs().max() <= 4 * eps * scale + torch.finfo(dtype).tiny,
            f"gradient at {dtype} is off by more than rounding",
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = subject.value(wide)
        same(cast, wanted, "value under autocast", tolerance=1e-6)
    value = subject.value(subject.draw(case, dtype=torch.float64))
    require(value.dtype == torch.float64, f"float64 input gives a {value.dtype} value")


def check_dimensions(subject: Subject, case: Case) -> None:
    """One, two and three axes of space are taken."""
    if not has_space(subject):
        return
    for space in ((7,), (5, 4), (4, 3, 5)):
        value = subject.value(subject.draw(Case({**case.sizes, "*s": space}, case.seed)))
        require(value.isfinite().all(), f"not finite with space {space}")


def check_layout(subject: Subject, case: Case) -> None:
    """Non-contiguous, expanded and channels_last inputs equal contiguous ones."""
    inputs = subject.draw(case)
    value, grad = subject.gradient(inputs)
    for what, laid in layouts(inputs):
        other, other_grad = subject.gradient(laid)
        same(other, value, f"value with {what} inputs")
        same(other_grad, grad, f"gradient with {what} inputs")


def check_reductions(subject: Subject, case: Case) -> None:
    """``sum`` is the sum of ``none``, ``mean`` is that over the count or the sum of the weights."""
    inputs = subject.draw(case)
    none, total, mean = (subject.value(inputs, reduction=r) for r in ("none", "sum", "mean"))
    same(total, none.sum(), "sum differs from the sum of none")
    twice = {n: torch.cat([t, t]) for n, t in inputs.items()}
    same(subject.value(twice), mean, "mean changes when the batch is repeated")
    if not subject.own_weights:
        same(mean, none.sum() / none.numel(), "mean differs from the sum of none over the count")
    if not subject.has("weight"):
        return
    weighted = subject.draw(case, options=["weight"])
    none = subject.value(weighted, reduction="none")
    same(subject.value(weighted, reduction="sum"), none.sum(), "weighted sum")
    if not per_element(subject):
        return  # a region's value is no sum over elements
    mean = subject.value(weighted)
    if not subject.own_weights:
        count = weighted["weight"].expand(none.shape).sum()
        same(mean, none.sum() / count, "mean differs from the sum of none over that of the weights")
    scaled = {**weighted, "weight": 3 * weighted["weight"]}
    same(subject.value(scaled), mean, "mean changes with the weight's scale")
    alike = {n: torch.zeros_like(t) for n, t in inputs.items()}
    unequal = {**alike, "weight": weighted["weight"]}
    same(subject.value(unequal), subject.value(alike), "weighted mean of equal elements")


def check_void(subject: Subject, case: Case) -> None:
    """What is void has exactly zero gradient and no influence, whatever it holds."""
    for way in ("weight", "ignore_index"):
        if not subject.has(way):
            continue
        inputs = subject.draw(case, options=["weight"] if way == "weight" else [])
        clean, void, options = voided(subject, inputs, case, way, garbage=None)
        wanted, wanted_grad = subject.gradient(clean, **options)
        for garbage in (math.nan, math.inf, -math.inf, 3e38):
            dirty, _, _ = voided(subject, inputs, case, way, garbage=garbage)
            value, grad = subject.gradient(dirty, **options)
            require(value.isfinite().all(), f"void by {way}: garbage reaches the value")
            same(value, wanted, f"void by {way}: the value changes with what is void")
            require((grad[void] == 0).all(), f"void by {way}: void has gradient")
            same(grad, wanted_grad, f"void by {way}: the gradient changes with what is void")

        part, whole, options = cropped(subject, inputs, way)
        same(
            subject.value(whole, **options),
            subject.value(part, **options),
            f"void by {way}: the value is not that of the valid part alone",
        )
        every, options = all_void(subject, inputs, way)
        value, grad = subject.gradient(every, **options)
        require((value == 0).all(), f"void by {way}: all void gives {head(value)}, not 0")
        require((grad == 0).all(), f"void by {way}: all void has gradient")


def check_empty(subject: Subject, case: Case) -> None:
    """A batch of nothing is 0 with a graph."""
    lead: dict[str, Any] = {"n": 0, "*m": (0,)}
    if not has_images(subject):
        lead["*s"] = (0,)
    inputs = subject.draw(Case({**case.sizes, **lead}, case.seed))
    value, grad = subject.gradient(inputs)
    require((value == 0).all(), f"an empty batch gives {head(value)}, not 0")
    require(grad.numel() == 0, "the gradient of an empty batch is not empty")


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
    same(scaled, 3.7 * grad, "the gradient for an upstream gradient of 3.7")
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
    same(one, two, "the gradient for a varying upstream gradient")


def check_purity(subject: Subject, case: Case) -> None:
    """Inputs, grad mode, random state and the terminal are left alone."""
    inputs = subject.draw(case, options=[n for n in ("weight",) if subject.has(n)])
    before = {n: (t.clone(), t._version) for n, t in inputs.items()}
    random, printed = torch.get_rng_state(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        subject.gradient(inputs)
        with torch.no_grad():
            value = subject.value(inputs)
            require(not torch.is_grad_enabled(), "grad mode is changed")
    require(not value.requires_grad, "a graph is built under no_grad")
    require(torch.equal(torch.get_rng_state(), random), "the random state is changed")
    require(not printed.getvalue(), f"it prints: {printed.getvalue()[:60]!r}")
    for name, (old, version) in before.items():
        intact = inputs[name]._version == version and torch.equal(inputs[name], old)
        require(intact, f"{name} is written to")


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
        if not has_images(subject):
            lead["*s"] = (batch + 2, 4)
        inputs = subject.draw(Case({**case.sizes, **lead}, case.seed), dtype=torch.float32)
        value, grad = subject.gradient(inputs)
        other, other_grad = fast.gradient(inputs)
        same(other, value, "compiled value", tolerance=2e-5)
        same(other_grad, grad, "compiled gradient", tolerance=2e-5)
    require(counter.frame_count <= 2, f"{counter.frame_count} compilations over 4 batch sizes")
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
        same(values[i], value, "vmap")
        same(grads[i], grad, "vmap of grad")


def check_keywords(subject: Subject, case: Case) -> None:
    """Every keyword changes something, and no two of a type are interchangeable."""
    for name, stated in subject.arguments.items():
        if name in subject.tensors:
            continue
        seen = any(
            _differs(subject, inputs, {}, {name: value})
            for inputs in varied_inputs(subject, case)
            for value in other_values(subject, stated, inputs)
        )
        require(seen, f"{name} changes nothing")
    numbers = [n for n, a in subject.arguments.items() if a.interval and a.interval.low > -1]
    for a, b in itertools.combinations(numbers, 2):
        low, high = two_values(subject.arguments[a], subject.arguments[b])
        seen = any(
            _differs(subject, inputs, {a: low, b: high}, {a: high, b: low})
            for inputs in varied_inputs(subject, case)
        )
        require(seen, f"{a} and {b} are interchangeable")


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
        call(subject.function, subject.tensors, inputs, options)
    except (TypeError, ValueError) as raised:
        require(isinstance(raised, error), f"{what} as {argument} raises {type(raised).__name__}")
        # A first tensor of another shape may be found out by the second.
        first = next(iter(subject.tensors))
        names = subject.tensors if argument == first else [argument]
        named = subject.name in str(raised) and any(name in str(raised) for name in names)
        require(named, f"{what} as {argument}: the error does not name them: {raised}")
    except Exception as raised:
        raise AssertionError(f"{what} as {argument} raises {type(raised).__name__}") from raised
    else:
        raise AssertionError(f"{what} as {argument} is accepted")


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
