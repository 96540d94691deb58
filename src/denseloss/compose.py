"""Sums of losses: named, weighted, read from an expression, and at several sizes.

criterion = compose.parse("cross_entropy + 0.5*dice(smooth=1)")
loss = criterion(logits, target)            # the scalar
parts = criterion.terms(logits, target)     # {"cross_entropy": ..., "dice": ...}, weighted
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from denseloss import distributed, losses
from denseloss.contract import Kind, describe, kinds, nearest
from denseloss.module import LossModule
from denseloss.primitives.overlap import COLUMNS
from denseloss.primitives.shared import Expected, SharedLogits
from denseloss.targets import ClassScores
from denseloss.user_code import UserCodeError
from denseloss.user_loss import UserLoss, folder_name, references, replaced, short_names

__all__ = [
    "AtTargetSize",
    "DeepSupervision",
    "ParseError",
    "UserLoss",
    "WeightedSum",
    "folder_name",
    "names",
    "parse",
    "references",
    "replaced",
    "short_names",
    "user_losses",
]


LONGEST = 2000
LONGEST_PATHS = 20_000  # of all files together
_LISTS = (list, tuple)  # torch 2.6 does not trace list | tuple
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
                    f"WeightedSum: {name} must be a Module or (weight, Module), got {loss!r:.60}"
                    + _module_hint(loss)
                )
            self.weights[name], self.losses[name] = float(weight), loss
        self._check()

    def _check(self) -> None:
        """Raise where the terms cannot be terms of one sum."""
        (first, one), *others = self.losses.items()
        for name, other in others:
            if not isinstance(one, LossModule) or not isinstance(other, LossModule):
                continue
            if not _alike(one, other):
                raise ValueError(
                    f"WeightedSum: {first} takes {_inputs(one)}, {name} {_inputs(other)}; the "
                    f"terms of a sum take the same tensors{_box_hint(one, other)}: call the "
                    "losses one by one and add their values"
                )
            if (getattr(one, "reduction", "") == "none") != (
                getattr(other, "reduction", "") == "none"
            ):
                raise ValueError(
                    f"WeightedSum: {first} and {name} cannot be added: one has reduction='none', "
                    "so many values, the other gives one number"
                )

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
        terms = self.terms(*tensors, **options)
        first, *rest = terms.values()
        if any(value.shape != first.shape for value in rest):
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in terms.items())
            raise ValueError(f"WeightedSum: values of different shapes cannot be added: {shapes}")
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


def _module_hint(value: Any) -> str:
    """How to come to a Module from what stands for one."""
    if isinstance(value, str):
        return f'; pass denseloss.compose.parse("{value}")'
    name = getattr(value, "__name__", "")
    for module in names().values():
        if value is module:
            return f"; pass {name}()"
        if name == module.function.__name__:
            return f"; the Module of {name} is {module.__name__}()"
    return "; denseloss.module.loss_module makes one of a function" if callable(value) else ""


def _weighted(weight: float, value: Tensor) -> Tensor:
    # A factor of 1 would cost a pass over the gradient that the forward pass has made.
    return value if weight == 1 else weight * value


# Kinds of tensors that may be one and the same: a mask per class is class probabilities, too.
_ONE_TENSOR = [{"Logits", "Scores"}, {"ClassMap", "Masks"}, {"Masks", "Quality"}]
_KINDS = {"Logits", "Scores", "Boxes", "Bins", "ClassMap", "Masks", "Quality", "BinTarget", "Image"}


def _tensors(loss: LossModule) -> list[Kind]:
    stated = kinds(type(loss).function)
    return [stated[name] for name in type(loss).tensors if name in stated]


def _alike(one: LossModule, other: LossModule) -> bool:
    """Whether two losses take the same tensors, as far as their kinds are known."""
    for a, b in zip(_tensors(one), _tensors(other), strict=False):
        both = {a.name, b.name}
        if len(both) == 2 and both <= _KINDS and both not in _ONE_TENSOR:
            return False
    return True


def _inputs(loss: LossModule) -> str:
    return " and ".join(kind.meaning for kind in _tensors(loss))


def _box_hint(*losses: LossModule) -> str:
    first = {_tensors(loss)[0].name for loss in losses if _tensors(loss)}
    return " (the IoU of masks is jaccard)" if first == {"Boxes", "Logits"} else ""


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
            before = distributed.means()
            value: Tensor = criterion(first, *rest, **options)
            learns = first.requires_grad and torch.is_grad_enabled()
            if not learns or distributed.learn(value, before):
                return value
            distributed.forget(before)
        # Something in it takes tensors only, such as an autograd Function of a user.
        first = first.tensor
    return criterion(first, *rest, **options)  # type: ignore[no-any-return]


def _takes_shared(criterion: nn.Module) -> bool:
    """Whether a criterion is a function of logits, or a sum that hands them on to such.

    Anything else may do with the logits what only a tensor can.
    """
    if "forward" in criterion.__dict__ or criterion._backward_hooks:
        return False  # somebody has put another in its place, or wants the gradient of the logits
    if isinstance(criterion, LossModule | UserLoss):
        return criterion.only_logits
    return type(criterion) is WeightedSum


def user_losses(criterion: WeightedSum) -> list[UserLoss]:
    """The terms of a sum that are code of the user's own."""
    return [loss for _, _, loss in criterion.named_terms() if isinstance(loss, UserLoss)]


def _term(name: str, loss: nn.Module) -> str:
    if isinstance(loss, UserLoss):
        return str(loss)
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


class MixedTerms(WeightedSum):
    """Terms that may take different tensors: to be taken apart (`named_terms`), not called."""

    def _check(self) -> None:
        """Nothing is asked of them."""

    def terms(self, *_: Any, **__: Any) -> dict[str, Tensor]:
        """Raises: nobody knows which tensors are for which term."""
        raise TypeError("MixedTerms: the terms may take different tensors: call them one by one")


def parse(expression: str, *, mixed: bool = False) -> WeightedSum:
    """Read a weighted sum of losses, such as ``"cross_entropy + 0.5*dice(smooth=1)"``.

    A term is the name of a loss without ``_loss``, with keywords in brackets if need be and a
    number before it as its weight. Values are numbers, words in quotes, True, False, None, or
    lists of numbers where a tensor is expected (``class_weight=[1, 2, 5]``).

    A loss of your own is named as ``file.py:name`` or ``package.module:name``: a function
    ``loss(logits, target, *, options)``, or a class or an instance of a Module. In the text of the
    answer the file has its whole path. A path with spaces is put in quotes, together with the name:
    ``'my files/losses.py:edge' + dice``. Such a file is imported; nothing else is evaluated.

    Args:
        expression: the text.
        mixed: whether terms may take different tensors; the answer is then only to be taken apart.

    Raises:
        ParseError: not such an expression, or a sum of losses that take different tensors; an
            unknown name or keyword is answered with the nearest right one. Code of your own that
            is not there, cannot be imported, or is no loss.

    Example:
        >>> parse("0.5*focal(gamma=3) + dice")
        WeightedSum(0.5*focal(gamma=3) + dice)
    """
    form = 'write a sum of terms, such as "cross_entropy + 0.5*dice(smooth=1)"'
    if not isinstance(expression, str) or len(expression) > LONGEST + LONGEST_PATHS:
        raise ParseError(f"a loss is a text of at most {LONGEST} characters: {form}")
    text = _Text(expression)
    if len(text.plain) > LONGEST:
        raise ParseError(f"a loss is a text of at most {LONGEST} characters: {form}")
    try:
        tree = ast.parse(text.plain.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ParseError(f"cannot read the loss {expression!r:.200}: {form}") from error
    terms: dict[str, nn.Module | tuple[float, nn.Module]] = {}
    for weight, node in _summands(tree, 1.0, text):
        if not math.isfinite(weight):
            raise _error(node, text, "its weight must be finite")
        name, loss = _loss(node, text)
        key, number = name, 2
        while key in terms or hasattr(WeightedSum, key) or hasattr(nn.ModuleDict, key):
            key, number = f"{name}_{number}", number + 1
        terms[key] = (weight, loss)
    try:
        return (MixedTerms if mixed else WeightedSum)(**terms)
    except ValueError as error:
        raise ParseError(
            f"{str(error).removeprefix('WeightedSum: ')} (in {expression!r})"
        ) from None


class _Text(str):
    """An expression, with a word for each name of user code, which Python could not read.

    Attributes:
        plain: the expression with these words.
        codes: what each stands for.
    """

    plain: str
    codes: dict[str, str]

    def __new__(cls, expression: str) -> _Text:
        made = super().__new__(cls, expression)
        made.plain, made.codes, mark = expression, {}, "user_code_"
        while mark in expression:
            mark += "_"
        for number, (start, end, code) in reversed(list(enumerate(references(expression)))):
            word = f"{mark}{number}"
            made.plain = f"{made.plain[:start]}{word}{made.plain[end:]}"
            made.codes[word] = code
        return made

    def unparsed(self, node: ast.expr) -> str:
        """A part of it as it was written."""
        said = ast.unparse(node)
        for word, code in self.codes.items():  # the highest number first
            said = said.replace(word, code)
        return said


def _summands(node: ast.expr, sign: float, text: _Text) -> Iterator[tuple[float, ast.expr]]:
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


def _loss(node: ast.expr, text: _Text) -> tuple[str, LossModule | UserLoss]:
    call = node if isinstance(node, ast.Call) else None
    name = call.func if call else node
    if not isinstance(name, ast.Name):
        raise _error(node, text, "expected the name of a loss")
    known = names()
    written = text.codes.get(name.id, name.id)
    if name.id not in known and name.id not in text.codes:
        word = _short(name.id.lower())
        near = ACRONYMS.get(word) or nearest(word, known)
        mend = f"did you mean {near!r}?" if near else f"known: {', '.join(sorted(known))}"
        raise ParseError(f"unknown loss {name.id!r} in {text!r}; {mend}")
    if call and call.args:
        raise _error(call, text, f"options are keywords, as in {written}(gamma=2)")
    options: dict[str, Any] = {}
    for keyword in call.keywords if call else ():
        if keyword.arg is None:
            raise _error(call or node, text, "options are keywords")
        options[keyword.arg] = _value(keyword.value, text)
    if name.id in text.codes:
        return _user_loss(written, options, text)
    options = {key: _tensor(value) for key, value in options.items()}
    try:
        return name.id, known[name.id](**options)
    except (TypeError, ValueError) as error:
        raise ParseError(f"{error} (in {text!r})") from error


def _user_loss(code: str, options: dict[str, Any], text: _Text) -> tuple[str, UserLoss]:
    for name, value in options.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(x, float) and not math.isfinite(x) for x in numbers):
            raise ParseError(f"{name} must be finite, got {value} (in {text!r})")
    try:
        loss = UserLoss(code, options)
        str(loss)
    except UserCodeError as error:
        raise ParseError(f"{error} (in {text!r})") from error
    except Exception as error:  # a class of the user's own may raise anything
        kind = "" if isinstance(error, TypeError | ValueError) else f"{type(error).__name__}: "
        said = " ".join(str(error).split())
        raise ParseError(f"{kind}{said} (in {text!r})") from error
    return loss.name, loss


def _tensor(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return torch.tensor(value, dtype=torch.get_default_dtype())
    return value


def _value(node: ast.expr, text: _Text) -> Any:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError) as error:
        raise _error(
            node, text, "a value must be a number, a word in quotes, True, False, None or a list"
        ) from error
    if isinstance(value, list | tuple) and not all(isinstance(x, int | float) for x in value):
        raise _error(node, text, "a list must hold numbers")
    return value


def _error(node: ast.expr, text: _Text, message: str) -> ParseError:
    return ParseError(f"cannot read {text.unparsed(node)!r} in the loss {text!r}: {message}")


def _check_criterion(owner: str, criterion: Any) -> None:
    if not isinstance(criterion, nn.Module):
        raise TypeError(
            f"{owner}: criterion must be a Module, got {criterion!r:.60}{_module_hint(criterion)}"
        )


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
        _check_criterion("AtTargetSize", criterion)
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

    def resized(self, logits: Tensor, target: Tensor) -> Tensor:
        """The logits at the target's size, as the criterion sees them."""
        return self._shared(logits, target).tensor

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
        size = target.shape[target.ndim - axes :]
        expected = self._expected
        return SharedLogits(logits, size, align_corners=self.align_corners, expected=expected)

    def extra_repr(self) -> str:
        """The option, where it is not the default."""
        return "align_corners=True" if self.align_corners else ""


# The weight of each map, from the number of maps: the finest first.
_RULES: dict[str, Callable[[int], Sequence[float]]] = {
    "halves": lambda count: [0.5**i for i in range(count)],
    "ones": lambda count: [1.0] * count,
    "nnunet": lambda count: [0.5**i for i in range(count - 1)] + [float(count == 1)],
    "monai": lambda count: [max(0.5**i, 0.0625) for i in range(count)],
    "torchvision": lambda _: [1.0, 0.5],
    "f3net": lambda _: [0.5, 0.5, 0.5, 0.25, 0.125, 0.0625],
}


class _Preset(NamedTuple):
    rule: str
    normalise: bool = False
    resize: str = "logits"


_PRESETS = {
    "pranet": _Preset("ones"),
    "f3net": _Preset("f3net"),
    "nnunet": _Preset("nnunet", normalise=True, resize="target"),
    "monai": _Preset("monai", resize="target"),
    "torchvision": _Preset("torchvision"),
}


class DeepSupervision(nn.Module):
    """A loss on the maps of several decoder stages, each compared with the same target.

    L = Σ_i w_i L(z_i, target) / Σ_i w_i

    A map of weight 0 is skipped: its stage gets no gradient, of which DDP must know
    (``find_unused_parameters=True``).

    Args:
        criterion: a loss Module or `WeightedSum` that takes ``(logits, target)``.
        weights: w_i >= 0, one per map, from the finest to the coarsest; None is 1, 1/2, 1/4, ...
        normalise: whether the weights are divided by their sum.
        resize: what changes its size where they differ: the ``"logits"``, by interpolation (see
            `AtTargetSize`), or the ``"target"`` and a ``weight``, by the nearest pixel.
        align_corners: of the interpolation.

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
        normalise: bool = True,
        resize: Literal["logits", "target"] = "logits",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        if resize not in ("logits", "target"):
            raise ValueError(
                f"DeepSupervision: resize must be 'logits' or 'target', got {resize!r}"
            )
        _check_criterion("DeepSupervision", criterion)
        self.at_size = AtTargetSize(criterion, align_corners)
        self.weights = None if weights is None else tuple(float(w) for w in weights)
        self.normalise, self.resize = normalise, resize
        self._rule = "halves"
        if self.weights is not None and not (
            all(math.isfinite(w) and w >= 0 for w in self.weights) and sum(self.weights) > 0
        ):
            raise ValueError(
                "DeepSupervision: weights must be numbers >= 0, one per map, and not all 0, got "
                f"{list(self.weights)}"
            )

    @classmethod
    def preset(cls, name: str, criterion: nn.Module) -> DeepSupervision:
        """The maps, weights and sizes of a published training code.

        ========================  ====================================================  ==========
        name                      weights of the maps                                   resized
        ========================  ====================================================  ==========
        ``"pranet"``              1 each, added up (Fan et al. 2020, arXiv:2006.11392)  logits
        ``"f3net"``               1/2, 1/2, 1/2, 1/4, 1/8, 1/16, added up: the two      logits
                                  predictions, then the stages (Wei et al. 2020,
                                  arXiv:1911.11445)
        ``"nnunet"``              1, 1/2, 1/4, ..., the last 0, divided by their sum    target
                                  (Isensee et al. 2021, released code)
        ``"monai"``               1, 1/2, ..., at least 1/16, added up                  target
                                  (`DeepSupervisionLoss`, mode "exp")
        ``"torchvision"``         1 and 1/2, added up: ``out`` and ``aux`` of its       logits
                                  segmentation references
        ========================  ====================================================  ==========

        Args:
            name: of the training code.
            criterion: a loss Module or `WeightedSum` that takes ``(logits, target)``.

        Raises:
            ValueError: an unknown name.
        """
        if name not in _PRESETS:
            near = nearest(name, _PRESETS)
            mend = f"did you mean {near!r}?" if near else f"known: {', '.join(_PRESETS)}"
            raise ValueError(f"DeepSupervision: unknown preset {name!r}; {mend}")
        rule, normalise, resize = _PRESETS[name]
        made = cls(criterion, normalise=normalise, resize=resize)  # type: ignore[arg-type]
        made._rule = rule
        return made

    def forward(
        self, maps: Sequence[Tensor], target: Tensor | Sequence[Tensor], **options: Any
    ) -> Tensor:
        """The weighted sum over the maps.

        Args:
            maps: logits [n c *s] of each stage, the finest first.
            target: for all maps, or a list with one for each.
            options: of the criterion; a list holds one value for each map.
        """
        parts = [
            _weighted(share, self.at_size(logits, truth, **chosen))
            for share, logits, truth, chosen in self._stages(maps, target, options)
        ]
        return sum(parts[1:], parts[0])

    def terms(
        self, maps: Sequence[Tensor], target: Tensor | Sequence[Tensor], **options: Any
    ) -> dict[str, Tensor]:
        """The weighted terms, each summed over the maps."""
        total: dict[str, Tensor] = {}
        for share, logits, truth, chosen in self._stages(maps, target, options):
            for name, value in self.at_size.terms(logits, truth, **chosen).items():
                value = _weighted(share, value)
                total[name] = total[name] + value if name in total else value
        return total

    def stages(
        self, maps: Sequence[Tensor], target: Any, **options: Any
    ) -> Iterator[tuple[Tensor, Any, dict[str, Any]]]:
        """Logits, target and options of each map that counts."""
        for _, logits, truth, chosen in self._stages(maps, target, options):
            yield logits, truth, chosen

    def _stages(
        self, maps: Any, target: Any, options: dict[str, Any]
    ) -> Iterator[tuple[float, Tensor, Any, dict[str, Any]]]:
        """Share, logits, target and options of each map that counts."""
        _check_maps(maps)
        count = len(maps)
        for name, value in (("target", target), *options.items()):
            if _several(value) and len(value) != count:
                raise ValueError(
                    f"DeepSupervision: {name} must be one tensor, or a list of one for each "
                    f"of {count} maps, got {len(value)}"
                )
        for i, (share, logits) in enumerate(zip(self._shares(count), maps, strict=True)):
            if share == 0:
                continue
            truth, chosen = _of_map(target, i), {n: _of_map(x, i) for n, x in options.items()}
            if self.resize == "target" and isinstance(truth, Tensor):
                old, new = truth.shape[truth.ndim - logits.ndim + 2 :], logits.shape[2:]
                if old != new:
                    chosen = {n: _nearest_pixels(x, old, new) for n, x in chosen.items()}
                    truth = _nearest_pixels(truth, old, new)
            yield share, logits, truth, chosen

    def _shares(self, count: int) -> list[float]:
        weights = _RULES[self._rule](count) if self.weights is None else self.weights
        if len(weights) != count:
            raise ValueError(
                f"DeepSupervision: there must be one map per weight, {len(weights)}, got {count}"
            )
        return [w / sum(weights) for w in weights] if self.normalise else list(weights)

    def extra_repr(self) -> str:
        """What is not the default."""
        shown = [] if self.weights is None else [f"weights={self.weights}"]
        shown += [f"weights={self._rule!r}"] if self._rule != "halves" else []
        shown += [] if self.normalise else ["normalise=False"]
        shown += ["resize='target'"] if self.resize == "target" else []
        return ", ".join(shown)


def _check_maps(maps: Any) -> None:
    wanted = "DeepSupervision: maps must be a list of logits, one for each stage, the finest first"
    if isinstance(maps, Tensor):
        stacked = maps.ndim > 2
        mend = "list(maps.unbind(1)) if they are stacked, [logits] for one map" if stacked else ""
        raise TypeError(
            f"{wanted}, got one tensor {describe(maps)}" + (f"; pass {mend}" if mend else "")
        )
    if isinstance(maps, Mapping):
        raise TypeError(
            f"{wanted}, got a {type(maps).__name__} of {', '.join(map(str, maps))}; pass "
            "list(maps.values())"
        )
    if not isinstance(maps, _LISTS) or not all(isinstance(x, Tensor) for x in maps):
        raise TypeError(f"{wanted}, got {describe(maps)}")
    if not maps:
        raise ValueError(f"{wanted}, got an empty list")


def _several(value: Any) -> bool:
    """Whether there is a value for each map."""
    return isinstance(value, _LISTS) and not isinstance(value, ClassScores)


def _of_map(value: Any, position: int) -> Any:
    return value[position] if _several(value) else value


def _nearest_pixels(x: Any, old: Sequence[int], new: Sequence[int]) -> Any:
    """A map [... *old] at another size: the pixel in whose area each new centre lies."""
    if not isinstance(x, Tensor) or x.ndim < len(old):
        return x
    first = x.ndim - len(old)
    if any(x.shape[first + i] not in (1, size) for i, size in enumerate(old)):
        return x  # nothing that lies on these pixels, such as a weight per class
    for i, (had, wanted) in enumerate(zip(old, new, strict=True)):
        if x.shape[first + i] == had and had != wanted:
            index = torch.arange(wanted, device=x.device)
            x = x.index_select(first + i, (2 * index + 1) * had // (2 * wanted))
    return x
