"""Sums of losses: named, weighted, read from an expression, and at several sizes.

criterion = compose.parse("cross_entropy + 0.5*dice(smooth=1)")
loss = criterion(logits, target)            # the scalar
parts = criterion.terms(logits, target)     # {"cross_entropy": ..., "dice": ...}, weighted
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from denseloss import losses
from denseloss.contract import nearest
from denseloss.module import LossModule
from denseloss.primitives.overlap import COLUMNS
from denseloss.primitives.shared import Expected, SharedLogits

__all__ = ["AtTargetSize", "DeepSupervision", "ParseError", "WeightedSum", "names", "parse"]


LONGEST = 2000
ACRONYMS = {
    "bce": "binary_cross_entropy",
    "ce": "cross_entropy",
    "dfl": "distribution_focal",
    "qfl": "quality_focal",
    "vfl": "varifocal",
}


class ParseError(ValueError):
    """An expression that cannot be read; the message says where and what would be right."""


class WeightedSum(nn.Module):
    """Named, weighted terms: a scalar when called, its parts by `terms`.

    Args:
        terms: a Module each, or ``(weight, Module)``. All take the same tensors.

    Example:
        >>> from denseloss import CrossEntropyLoss, DiceLoss
        >>> WeightedSum(cross_entropy=CrossEntropyLoss(), dice=(0.5, DiceLoss(smooth=0)))
        WeightedSum(cross_entropy + 0.5*dice(smooth=0))
    """

    def __init__(self, **terms: nn.Module | tuple[float, nn.Module]) -> None:
        super().__init__()
        if not terms:
            raise ValueError("WeightedSum: there must be at least one term")
        self.losses = nn.ModuleDict()
        self.weights: dict[str, float] = {}
        self._expected = _BOTH
        for name, term in terms.items():
            weight, loss = term if isinstance(term, tuple) else (1.0, term)
            if not isinstance(loss, nn.Module):
                raise TypeError(
                    f"WeightedSum: {name} must be a Module or (weight, Module), got {loss!r:.60}; "
                    "the Module of dice_loss is DiceLoss()"
                )
            self.weights[name], self.losses[name] = float(weight), loss

    def named_terms(self) -> Iterator[tuple[str, float, nn.Module]]:
        """Name, weight and loss of each term, in order."""
        for name, loss in self.losses.items():
            yield name, self.weights[name], loss

    def terms(self, *tensors: Any, **options: Any) -> dict[str, Tensor]:
        """The weighted value of each term; they sum to the value of the call."""
        if not tensors:
            raise TypeError("WeightedSum: the tensors of its losses are missing")
        first, *rest = tensors
        losses = self.losses.items()  # once: an attribute of a Module is a search
        if len(losses) > 1 and isinstance(first, Tensor):
            first = SharedLogits(first, expected=self._expected)
        values = {
            name: _weighted(self.weights[name], _called(loss, first, *rest, **options))
            for name, loss in losses
        }
        if isinstance(first, SharedLogits):
            _remember(self, first)
        return values

    def forward(self, *tensors: Any, **options: Any) -> Tensor:
        """The sum of the terms."""
        first, *rest = self.terms(*tensors, **options).values()
        return sum(rest, first)

    def __str__(self) -> str:
        text = ""
        for name, weight, loss in self.named_terms():
            sign = "-" if weight < 0 else "+"
            text += f" {sign} " if text else ("-" if weight < 0 else "")
            text += f"{abs(weight)!r}*".replace(".0*", "*") * (abs(weight) != 1)
            text += _term(name, loss)
        return text

    def __repr__(self) -> str:
        return f"WeightedSum({self})"


def _weighted(weight: float, value: Tensor) -> Tensor:
    # A factor of 1 would cost a pass over the gradient that the forward pass has made.
    return value if weight == 1 else weight * value


# What losses are expected to ask for before they have been called.
_BOTH: Expected = {
    "softmax_pass": {"entropy": True, "spread": None, "columns": COLUMNS},
    "sigmoid_sums": {"columns": COLUMNS, "entropy": 1.0},
}


def _remember(criterion: nn.Module, shared: SharedLogits) -> None:
    # Compiled, nothing is remembered: it would be compiled anew at the second call.
    if not torch.compiler.is_compiling():
        criterion.__dict__["_expected"] = shared.remembered()


def _called(criterion: nn.Module, first: Any, *rest: Any, **options: Any) -> Tensor:
    """The value of a criterion, whose logits may be shared with others."""
    if isinstance(first, SharedLogits):
        if _takes_shared(criterion):
            value: Tensor = criterion(first, *rest, **options)
            if value.requires_grad or not (first.requires_grad and torch.is_grad_enabled()):
                return value
        # Something in it takes tensors only, such as an autograd Function of a user.
        first = first.tensor
    return criterion(first, *rest, **options)  # type: ignore[no-any-return]


def _takes_shared(criterion: nn.Module) -> bool:
    """Whether a criterion is a function of logits, or a sum that hands them on to such.

    Anything else may do with the logits what only a tensor can.
    """
    if "forward" in criterion.__dict__ or criterion._backward_hooks:
        return False  # somebody has put another in its place, or wants the gradient of the logits
    if isinstance(criterion, LossModule):
        return criterion.only_logits
    return type(criterion) is WeightedSum


def _term(name: str, loss: nn.Module) -> str:
    if not isinstance(loss, LossModule):
        return name
    options = loss.extra_repr()
    return _short(loss.function.__name__) + (f"({options})" if options else "")


def _short(function: str) -> str:
    return function.removesuffix("_loss")


def names() -> dict[str, type[LossModule]]:
    """The losses of the catalogue by the name that an expression uses: without ``_loss``."""
    found: dict[str, type[LossModule]] = {}
    for module in vars(losses).values():
        if isinstance(module, type) and issubclass(module, LossModule):
            function = module.function.__name__
            if function.endswith("_loss"):
                found[_short(function)] = module
    return found


def parse(expression: str) -> WeightedSum:
    """Read a weighted sum of losses, such as ``"cross_entropy + 0.5*dice(smooth=1)"``.

    A term is the name of a loss without ``_loss``, with keywords in brackets if need be and a
    number before it as its weight. Values are numbers, words in quotes, True, False, None, or
    lists of numbers where a tensor is expected (``class_weight=[1, 2, 5]``). Nothing is evaluated.

    Raises:
        ParseError: not such an expression; an unknown name or keyword is answered with the
            nearest right one.

    Example:
        >>> parse("0.5*focal(gamma=3) + dice")
        WeightedSum(0.5*focal(gamma=3) + dice)
    """
    form = 'write a sum of terms, such as "cross_entropy + 0.5*dice(smooth=1)"'
    if not isinstance(expression, str) or len(expression) > LONGEST:
        raise ParseError(f"a loss is a text of at most {LONGEST} characters: {form}")
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ParseError(f"cannot read the loss {expression!r:.200}: {form}") from error
    terms: dict[str, nn.Module | tuple[float, nn.Module]] = {}
    for weight, node in _summands(tree, 1.0, expression):
        if not math.isfinite(weight):
            raise _error(node, expression, "its weight must be finite")
        name, loss = _loss(node, expression)
        key, number = name, 2
        while key in terms:
            key, number = f"{name}_{number}", number + 1
        terms[key] = (weight, loss)
    return WeightedSum(**terms)


def _summands(node: ast.expr, sign: float, text: str) -> Iterator[tuple[float, ast.expr]]:
    """The terms of a sum with their weights, from left to right."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        yield from _summands(node.left, sign, text)
        yield from _summands(node.right, -sign if isinstance(node.op, ast.Sub) else sign, text)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        yield from _summands(node.operand, -sign if isinstance(node.op, ast.USub) else sign, text)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left, right = _number(node.left), _number(node.right)
        if (left is None) == (right is None):
            raise _error(node, text, "a weight is one number before a loss, as in 0.5*dice")
        if left is not None:
            yield from _summands(node.right, sign * left, text)
        elif right is not None:
            yield from _summands(node.left, sign * right, text)
    else:
        yield sign, node


def _number(node: ast.expr) -> float | None:
    """The value of a number, signed or a product of numbers; None for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _number(node.operand)
        return -value if value is not None and isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left, right = _number(node.left), _number(node.right)
        return None if left is None or right is None else left * right
    if not isinstance(node, ast.Constant) or isinstance(node.value, bool):
        return None
    return float(node.value) if isinstance(node.value, int | float) else None


def _loss(node: ast.expr, text: str) -> tuple[str, LossModule]:
    call = node if isinstance(node, ast.Call) else None
    name = call.func if call else node
    if not isinstance(name, ast.Name):
        raise _error(node, text, "expected the name of a loss")
    known = names()
    if name.id not in known:
        word = _short(name.id.lower())
        near = ACRONYMS.get(word) or nearest(word, known)
        mend = f"did you mean {near!r}?" if near else f"known: {', '.join(sorted(known))}"
        raise ParseError(f"unknown loss {name.id!r} in {text!r}; {mend}")
    if call and call.args:
        raise _error(call, text, f"options are keywords, as in {name.id}(gamma=2)")
    options: dict[str, Any] = {}
    for keyword in call.keywords if call else ():
        if keyword.arg is None:
            raise _error(call or node, text, "options are keywords")
        options[keyword.arg] = _value(keyword.value, text)
    try:
        return name.id, known[name.id](**options)
    except (TypeError, ValueError) as error:
        raise ParseError(f"{error} (in {text!r})") from error


def _value(node: ast.expr, text: str) -> Any:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError) as error:
        raise _error(
            node, text, "a value must be a number, a word in quotes, True, False, None or a list"
        ) from error
    if isinstance(value, list | tuple):
        if not all(isinstance(x, int | float) for x in value):
            raise _error(node, text, "a list must hold numbers")
        return torch.tensor(value, dtype=torch.get_default_dtype())
    return value


def _error(node: ast.expr, text: str, message: str) -> ParseError:
    return ParseError(f"cannot read {ast.unparse(node)!r} in the loss {text!r}: {message}")


class AtTargetSize(nn.Module):
    """A loss on logits that are smaller (or larger) than the labels: resized before the criterion.

    Segmenters predict at a quarter or an eighth of the image. The logits are brought to the size
    of the target by linear, bilinear or trilinear interpolation (in float32); labels are never
    resized.

    Args:
        criterion: a loss Module or `WeightedSum` that takes ``(logits, target)``.
        align_corners: as in `torch.nn.functional.interpolate`.

    Example:
        >>> from denseloss import CrossEntropyLoss
        >>> small, labels = torch.zeros(1, 3, 4, 4), torch.zeros(1, 16, 16, dtype=torch.long)
        >>> AtTargetSize(CrossEntropyLoss())(small, labels)  # ln 3
        tensor(1.0986)
    """

    def __init__(self, criterion: nn.Module, align_corners: bool = False) -> None:  # noqa: FBT001 - as in torch
        super().__init__()
        self.criterion = criterion
        self.align_corners = align_corners
        several = isinstance(criterion, WeightedSum) and len(criterion.losses) > 1
        self._expected = _BOTH if several else {}

    def forward(self, logits: Tensor, target: Tensor, **options: Any) -> Tensor:
        """The criterion at the target's size."""
        shared = self._shared(logits, target)
        value = _called(self.criterion, shared, target, **options)
        _remember(self, shared)
        return value

    def terms(self, logits: Tensor, target: Tensor, **options: Any) -> dict[str, Tensor]:
        """The weighted terms at the target's size, where the criterion has terms."""
        if not isinstance(self.criterion, WeightedSum):
            raise TypeError(f"terms: {type(self.criterion).__name__} has no terms")
        shared = self._shared(logits, target)
        takes = _takes_shared(self.criterion)
        terms = self.criterion.terms(shared if takes else shared.tensor, target, **options)
        _remember(self, shared)
        return terms

    def _shared(self, logits: Tensor, target: Tensor) -> SharedLogits:
        if not isinstance(logits, Tensor) or not isinstance(target, Tensor):
            raise TypeError(
                "AtTargetSize: logits and target must be tensors, got "
                f"{type(logits).__name__} and {type(target).__name__}"
            )
        axes = logits.ndim - 2
        if axes not in (1, 2, 3) or target.ndim < axes + 1:
            raise ValueError(
                "AtTargetSize: logits must be float[n c *s] with one to three axes of space and "
                f"target [n *s] or [n c *s], got {list(logits.shape)} and {list(target.shape)}"
            )
        size = tuple(target.shape[target.ndim - axes :])
        expected = self._expected
        return SharedLogits(logits, size, align_corners=self.align_corners, expected=expected)

    def extra_repr(self) -> str:
        """The option, where it is not the default."""
        return "align_corners=True" if self.align_corners else ""


class DeepSupervision(nn.Module):
    """A loss on the maps of several decoder stages, each brought to the target's size.

    L = Σ_i w_i L(z_i, target) / Σ_i w_i

    Args:
        criterion: a loss Module or `WeightedSum` that takes ``(logits, target)``.
        weights: w_i, one per map, from the finest to the coarsest; None is 1, 1/2, 1/4, ...
        align_corners: of the resizing, see `AtTargetSize`.

    Differs from:
        MONAI's DeepSupervisionLoss, which shrinks the labels to each map (nearest) and takes the
        weights as given. torchvision's segmentation reference, which takes them as given, too.

    Example:
        >>> from denseloss import CrossEntropyLoss
        >>> maps = [torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 4, 4)]
        >>> DeepSupervision(CrossEntropyLoss())(maps, torch.zeros(1, 8, 8, dtype=torch.long))
        tensor(1.0986)
    """

    def __init__(
        self,
        criterion: nn.Module,
        weights: Sequence[float] | None = None,
        *,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.at_size = AtTargetSize(criterion, align_corners)
        self.weights = None if weights is None else tuple(float(w) for w in weights)

    def forward(self, maps: Sequence[Tensor], target: Tensor, **options: Any) -> Tensor:
        """The weighted mean over the maps."""
        shares = self._shares(len(maps))
        parts: list[Tensor] = [
            share * self.at_size(logits, target, **options)
            for share, logits in zip(shares, maps, strict=True)
        ]
        return sum(parts[1:], parts[0])

    def terms(self, maps: Sequence[Tensor], target: Tensor, **options: Any) -> dict[str, Tensor]:
        """The weighted terms, each summed over the maps."""
        total: dict[str, Tensor] = {}
        for share, logits in zip(self._shares(len(maps)), maps, strict=True):
            for name, value in self.at_size.terms(logits, target, **options).items():
                total[name] = total[name] + share * value if name in total else share * value
        return total

    def _shares(self, count: int) -> list[float]:
        weights = self.weights or tuple(0.5**i for i in range(count))
        if len(weights) != count:
            raise ValueError(
                f"DeepSupervision: there must be one map per weight, {len(weights)}, got {count}"
            )
        return [w / sum(weights) for w in weights]

    def extra_repr(self) -> str:
        """The weights, where they are given."""
        return "" if self.weights is None else f"weights={self.weights}"
