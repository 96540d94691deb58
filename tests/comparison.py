"""What every family's tests share: the slow reading of inputs, cases to draw, and the comparison.

An oracle walks over `pixels` or `elements`, keeps one value and one count per place, and ends with
`reduced`. A test draws a case and asks `agree` whether a public function equals its oracle.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from math import inf, nan
from typing import Any, NamedTuple

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
REDUCTIONS = ("none", "mean", "sum")

proof = settings(max_examples=60, deadline=None, derandomize=True, database=None)
short_proof = settings(proof, max_examples=15)

Place = tuple[int, ...]

# --- reading the inputs, one pixel or element at a time -------------------------------------------


class Pixel(NamedTuple):
    """A pixel that counts, under exclusive classes."""

    place: Place  # image, then position
    logits: Tensor  # [c]
    target: list[float]  # probability of each class; all NaN under a label that is no class
    weight: float


class Element(NamedTuple):
    """One channel of a pixel that counts, under independent channels."""

    place: Place  # image, channel, then position
    logit: Tensor  # []
    target: float
    weight: float


def places(shape: tuple[int, ...]) -> Iterator[Place]:
    return product(*map(range, shape))


def pixels(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int
) -> Iterator[Pixel]:
    """Every pixel whose weight is not 0 and whose label is not `ignore_index`."""
    images, classes, *space = logits.shape
    soft = target.is_floating_point()
    if not soft and target.ndim == logits.ndim:
        target = target[:, 0]
    if weight is None:
        weight = torch.ones(())
    elif weight.ndim == logits.ndim:
        weight = weight[:, 0]
    weight = weight.expand(images, *space)
    for image, *position in places((images, *space)):
        place = (image, *position)
        everywhere = (image, slice(None), *position)
        if weight[place] == 0:
            continue
        if soft:
            probabilities = target[everywhere].double().tolist()
        elif target[place] == ignore_index:
            continue
        else:
            label = int(target[place])
            known = 0 <= label < classes
            probabilities = [float(c == label) if known else nan for c in range(classes)]
        yield Pixel(place, logits[everywhere].double(), probabilities, float(weight[place]))


def elements(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int | None
) -> Iterator[Element]:
    """Every element whose weight is not 0 and whose target is not `ignore_index`."""
    weight = (torch.ones(()) if weight is None else weight).expand(logits.shape)
    for place in places(tuple(logits.shape)):
        if weight[place] == 0 or (ignore_index is not None and target[place] == ignore_index):
            continue
        yield Element(place, logits[place].double(), float(target[place]), float(weight[place]))


def reduced(
    values: Mapping[Place, Tensor],
    counts: Mapping[Place, float],
    shape: tuple[int, ...],
    inputs: Tensor,
    reduction: str,
    count: Tensor | float | None = None,
) -> Tensor:
    """Weighted values by place, to a loss; a place without a value, or a mean of nothing, is 0.

    ``count`` is what the mean divides by in place of the sum of the counts by place.
    """
    nothing = inputs.double().reshape(-1)[:0].sum()
    if reduction == "none":
        flat = [nothing + values.get(place, 0.0) for place in places(shape)]
        return torch.stack(flat).reshape(shape) if flat else nothing + torch.zeros(shape).double()
    total = nothing + sum(values.values())
    if reduction == "sum":
        return total
    if count is not None:
        return total / max(float(count), 1.0)
    found = sum(counts.values())
    return total / found if found != 0 else total


# --- the comparison -------------------------------------------------------------------------------

# float16 and bfloat16 are computed in float32 and their gradients rounded once, or once per use.
_VALUE = {torch.float64: (1e-10, 1e-12)}
_GRADIENT = {torch.float64: 1e-10, torch.float32: 5e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def assert_value(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """`actual`, from inputs of `dtype`, has the accumulation dtype and equals `expected`."""
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    rtol, atol = _VALUE.get(dtype, (1e-5, 1e-6))
    torch.testing.assert_close(actual.detach().double(), expected.detach(), rtol=rtol, atol=atol)


def assert_gradient(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """`actual` has the inputs' dtype and equals `expected` to that dtype's precision."""
    assert actual.dtype == dtype
    rtol = _GRADIENT[dtype]
    largest = expected.abs().max().item() if expected.numel() else 0.0
    smallest = 1e-12 if dtype == torch.float64 else 1e-6  # of gradients around 1
    atol = rtol / 4 * largest + smallest
    torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=atol)


def value_and_gradient(function: Callable[..., Tensor], x: Tensor, *others: Any, **options: Any):
    """The value, and the gradient of `x` under an upstream gradient that is not 1."""
    x = x.detach().clone().requires_grad_()
    value = function(x, *others, **options)
    if value.ndim == 0:
        upstream = torch.tensor(3.7, dtype=value.dtype)
    else:
        upstream = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
    (gradient,) = torch.autograd.grad(value, x, upstream)
    return value.detach(), gradient


def agree(
    function: Callable[..., Tensor],
    oracle: Callable[..., Tensor],
    x: Tensor,
    *others: Any,
    void: Tensor | None = None,
    reductions: tuple[str, ...] = REDUCTIONS,
    **options: Any,
) -> None:
    """Value and gradient equal the oracle's; where `void`, the gradient is exactly 0."""
    for reduction in reductions:
        value, gradient = value_and_gradient(function, x, *others, reduction=reduction, **options)
        expected, slope = value_and_gradient(
            oracle, x.double(), *others, reduction=reduction, **options
        )
        assert expected.isfinite().all()
        assert slope.isfinite().all()
        assert_value(value, expected, x.dtype)
        assert_gradient(gradient, slope, x.dtype)
        if void is not None:
            assert (gradient[void.expand(gradient.shape)] == 0).all()


def trained(loss: Callable[..., Tensor], logits: Tensor, target: Tensor) -> Tensor:
    """Where 400 steps of Adam lead from these logits."""
    logits = logits.clone().requires_grad_()
    adam = torch.optim.Adam([logits], lr=0.1)
    # Steps that do not shrink would jump to and fro over the kink of min(p, t).
    schedule = torch.optim.lr_scheduler.ExponentialLR(adam, 0.98)
    for _ in range(400):
        adam.zero_grad()
        loss(logits, target).backward()
        adam.step()
        schedule.step()
    return logits.detach()


def finite(function: Callable[..., Tensor], x: Tensor, *others: Any, **options: Any) -> None:
    """Value and gradient are finite, whatever the reduction."""
    for reduction in REDUCTIONS:
        value, gradient = value_and_gradient(function, x, *others, reduction=reduction, **options)
        assert value.isfinite().all(), (reduction, value)
        assert gradient.isfinite().all(), (reduction, gradient)


def same(actual: Tensor, expected: Any, tolerance: float = 1e-6) -> None:
    """`actual` is `expected`, whatever the dtype of either."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(
        actual.detach().double(), expected.detach(), rtol=tolerance, atol=tolerance
    )


# --- cases to draw --------------------------------------------------------------------------------


class Case(NamedTuple):
    """Inputs of a loss, the options that belong to them, and where they are void."""

    logits: Tensor
    target: Tensor
    options: dict[str, Any]
    void: Tensor  # of the logits' shape, or to be expanded to it


class Random:
    """Random tensors from one drawn seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._generator, dtype=torch.float64)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self._generator)

    def choice(self, options: list[float], *shape: int) -> Tensor:
        return torch.tensor(options, dtype=torch.float64)[self.integers(len(options), *shape)]


randoms = st.integers(0, 10**6).map(Random)
dtypes = st.sampled_from(DTYPES)
spaces = st.sampled_from([(2, 3), (7,), (2, 3, 2), (1,), (1, 4), (3, 1, 1)])
weight_dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bool])
optional_weights = st.sampled_from(["none", "pixel", "channel", "row", "image"])


def poisoned(logits: Tensor, void: Tensor, random: Random) -> Tensor:
    """NaN and infinities wherever it must not matter."""
    poison = random.choice([nan, inf, -inf, 3e38], *logits.shape)
    return torch.where(void, poison, logits)


def _shares_of_void(draw: st.DrawFn) -> tuple[bool, bool, float]:
    """Whether labels mark the void, whether weights do, and how much of the input is void."""
    kind = draw(st.sampled_from(["both", "nothing", "label", "weight", "everything"]))
    share = {"nothing": 0.0, "everything": 1.0}.get(kind, 0.35)
    return kind in ("label", "both", "everything"), kind in ("weight", "both"), share


@st.composite
def class_maps(draw: st.DrawFn, *, soft: bool = True) -> Case:
    """Logits, and labels or class probabilities, with void pixels that hold NaN and garbage."""
    images, classes = draw(st.sampled_from([2, 1])), draw(st.sampled_from([3, 2, 4]))
    space = draw(spaces)
    dtype, random = draw(dtypes), draw(randoms)
    kinds = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
    kind = draw(st.sampled_from(kinds + [dtype, torch.float32, torch.float64] * soft))
    probabilities = kind.is_floating_point
    by_label, by_weight, share = _shares_of_void(draw)
    logits = random.normal(images, classes, *space) * draw(st.sampled_from([1.0, 6.0]))
    void = torch.zeros(images, *space, dtype=torch.bool)
    options: dict[str, Any] = {}

    if probabilities:
        target = random.uniform(images, classes, *space) ** 2 + 1e-3
        target = target / target.sum(1, keepdim=True)
    else:
        target = random.integers(2 if kind == torch.bool else classes, images, *space)
        if by_label:
            signed = kind in (torch.int64, torch.int32, torch.int16)
            marks = [-100, 255, 0, -1] if signed else [255, 0, 1]
            if kind in (torch.int8, torch.bool):
                marks = [0, 1]
            options["ignore_index"] = mark = draw(st.sampled_from(marks))
            target[random.uniform(images, *space) < share] = mark
            void = void | (target == mark)
        if target.shape[1:] and draw(st.booleans()):
            target = target[:, None]

    shape = draw(optional_weights)
    if by_weight or (probabilities and by_label):
        shape = "pixel" if shape == "none" else shape
    if shape != "none":
        like = {
            "pixel": (images, *space),
            "channel": (images, 1, *space),
            "row": (1, *space),
            "image": (images, *(1 for _ in space)),
        }[shape]
        weight = random.uniform(*like) * 2 + 0.1
        if by_weight or (probabilities and by_label):
            weight[random.uniform(*like) < share] = 0
        options["weight"] = weight.to(draw(weight_dtypes))
        zero = (weight[:, 0] if weight.ndim == logits.ndim else weight) == 0
        zero = zero.expand(images, *space)
        garbage = random.choice([99.0, classes, 77.0], images, *space).long()
        if kind in (torch.int64, torch.int32, torch.int16, torch.int8):
            garbage = garbage * random.choice([1, -1], images, *space).long()
        if probabilities:
            target = torch.where(zero[:, None], nan, target)
        elif kind != torch.bool:
            flat = target[:, 0] if target.ndim == logits.ndim else target
            mark = options.get("ignore_index", -100)
            flat = torch.where(zero & (flat != mark), garbage, flat)
            target = flat.reshape(target.shape)
        void = void | zero

    logits = poisoned(logits, void[:, None], random)
    return Case(logits.to(dtype), target.to(kind), options, void[:, None])


@st.composite
def masks(draw: st.DrawFn, *, soft: bool = True, ignore: bool = True) -> Case:
    """Logits, and masks of the same shape, with void elements that hold NaN and garbage."""
    images, channels = draw(st.sampled_from([2, 1])), draw(st.sampled_from([2, 1, 3]))
    space = draw(spaces)
    dtype, random = draw(dtypes), draw(randoms)
    shape = (images, channels, *space)
    kinds = [torch.bool, torch.uint8, torch.int64, dtype, torch.float32, torch.float64]
    kind = draw(st.sampled_from(kinds))
    by_label, by_weight, share = _shares_of_void(draw)
    logits = random.normal(*shape) * draw(st.sampled_from([1.0, 6.0]))
    target = random.integers(2, *shape).double()
    if soft and kind.is_floating_point and draw(st.booleans()):
        target = random.uniform(*shape)
    void = torch.zeros(shape, dtype=torch.bool)
    options: dict[str, Any] = {}

    by_label = by_label and ignore
    if by_label and kind != torch.bool:
        options["ignore_index"] = 255
        void = random.uniform(*shape) < share
        target[void] = 255

    weighting = draw(optional_weights)
    if (by_weight or (share and not by_label)) and weighting == "none":
        weighting = "pixel"
    if weighting != "none":
        like = {
            "pixel": shape,
            "channel": (images, 1, *space),
            "row": (1, channels, *(1 for _ in space)),
            "image": (1, 1, *space),
        }[weighting]
        weight = random.uniform(*like) * 2 + 0.1
        if by_weight or (share and not by_label):
            weight[random.uniform(*like) < share] = 0
        options["weight"] = weight.to(draw(weight_dtypes))
        zero = (weight == 0).expand(shape)
        garbage = {torch.bool: 1.0, torch.uint8: 99.0, torch.int64: -7.0}.get(kind, nan)
        target[zero & ~void] = garbage
        void = void | zero

    return Case(poisoned(logits, void, random).to(dtype), target.to(kind), options, void)
