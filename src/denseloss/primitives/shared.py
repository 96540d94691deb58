"""Logits that several losses share, with what has been computed from them.

`cross_entropy + dice` is two losses of one softmax. What calls the losses (`WeightedSum`,
`AtTargetSize`, `DeepSupervision`) hands each of them one `SharedLogits` in place of the logits, and
the quantities ask it: what one loss has had computed, the next one finds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from denseloss.primitives.void import full_precision
from denseloss.targets import StandIn

__all__ = ["Expected", "SharedLogits", "resized"]

R = TypeVar("R")
Asked = dict[str, Any]
"""What is wanted of a quantity, by name: a flag, a number of columns, or a tensor; None is not."""
Expected = dict[str, Asked]
"""What is wanted of each quantity."""


def resized(logits: Tensor, size: tuple[int, ...] | None, *, align_corners: bool) -> Tensor:
    """The logits at another size, in full precision where they change."""
    if size is None or logits.shape[2:] == size:
        return logits
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[logits.ndim - 2]
    return F.interpolate(full_precision(logits), size=size, mode=mode, align_corners=align_corners)


class SharedLogits(StandIn):
    """Logits at the size that losses want them at, and the quantities computed from them so far.

    An argument of the kind ``Logits`` accepts it. A loss over quantities never makes the resized
    logits; whatever else is done with it is done with them: it has the attributes, methods and
    operators of that tensor, and torch's functions take it.

    Args:
        logits: [n c *s].
        size: of space; None is that of the logits.
        align_corners: as in `torch.nn.functional.interpolate`.
        expected: what the losses will ask for, such as what they did in the call before
            (`asked`). A quantity is computed at once with all that is expected of it.
    """

    def __init__(
        self,
        logits: Tensor,
        size: tuple[int, ...] | None = None,
        *,
        align_corners: bool = False,
        expected: Expected | None = None,
    ) -> None:
        self.logits = logits
        self.resize_to = None if size is None or size == logits.shape[2:] else size
        self.align_corners = align_corners
        self.asked: Expected = {}
        self._expected = expected or {}
        self._done: list[tuple[str, tuple[Any, ...], Asked, Any]] = []
        # What a tensor tells of itself, told without making it.
        self.shape, self.dtype, self.device = logits.shape, logits.dtype, logits.device
        self.ndim, self.requires_grad = logits.ndim, logits.requires_grad
        self._tensor: Tensor | None = logits
        if self.resize_to is not None:
            # Added, not made of its parts: torch.compile of 2.6 makes no Size of symbols.
            self.shape = logits.shape[:2] + self.resize_to
            self.dtype = torch.promote_types(logits.dtype, torch.float32)
            self._tensor = None

    @property
    def tensor(self) -> Tensor:
        """The logits at full size, which are made where a loss is no formula over quantities."""
        learns = torch.is_grad_enabled() and self.requires_grad
        # What was made without gradients, by a hook say, has none for the next.
        if self._tensor is None or (learns and not self._tensor.requires_grad):
            self._tensor = resized(self.logits, self.resize_to, align_corners=self.align_corners)
        return self._tensor

    def size(self, axis: int | None = None) -> Any:
        """As that of a tensor."""
        return self.shape if axis is None else self.shape[axis]

    def once(
        self, quantity: str, given: tuple[Any, ...], asked: Asked, run: Callable[[Asked], R]
    ) -> R:
        """A quantity, computed with ``run`` unless it has been already.

        Args:
            quantity: its name.
            given: what it is computed from beside the logits: the same objects give the same.
            asked: what is wanted of it.
            run: computes what it is handed.
        """
        # What was computed without gradients, by a hook say, has none for the next.
        given = (torch.is_grad_enabled(), *given)
        before = self.asked.get(quantity)
        self.asked[quantity] = asked if before is None else _union(asked, before)
        for name, known, had, result in self._done:
            if name == quantity and _same(known, given) and _covers(had, asked):
                return result  # type: ignore[no-any-return]
        expected = self._expected.get(quantity)
        asked = asked if expected is None else _union(asked, expected)
        result = run(asked)
        self._done.append((quantity, given, asked, result))
        return result

    def remembered(self) -> Expected:
        """What the next `SharedLogits` is to expect; numbers only.

        A tensor is of this call: the next may be elsewhere, or need no graph of this one.
        """
        return {
            quantity: {name: None if isinstance(x, Tensor) else x for name, x in asked.items()}
            for quantity, asked in self.asked.items()
        }

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.tensor, name)

    def __getitem__(self, index: Any) -> Tensor:
        return self.tensor[index]

    def __len__(self) -> int:
        return len(self.tensor)

    def __repr__(self) -> str:
        return f"SharedLogits({str(self.dtype).removeprefix('torch.')}{list(self.shape)})"

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = {name: _plain(x) for name, x in (kwargs or {}).items()}
        return function(*[_plain(x) for x in args], **kwargs)


def _plain(x: Any) -> Any:
    if isinstance(x, SharedLogits):
        return x.tensor
    return type(x)(map(_plain, x)) if isinstance(x, (list, tuple)) else x


def _operator(name: str) -> Callable[..., Any]:
    def apply(self: SharedLogits, *others: Any) -> Any:
        return getattr(self.tensor, name)(*map(_plain, others))

    return apply


for _name in (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"),
    *("radd", "rsub", "rmul", "rtruediv", "rfloordiv", "rmod", "rpow", "rmatmul"),
    *("lt", "le", "gt", "ge", "neg", "pos", "abs", "invert", "iter"),
):
    setattr(SharedLogits, f"__{_name}__", _operator(f"__{_name}__"))


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether these are the same objects (or equal numbers)."""
    for a, b in zip(one, other, strict=True):
        if a is not b and (isinstance(a, Tensor) or isinstance(b, Tensor) or a != b):
            return False
    return True


def _covers(had: Asked, asked: Asked) -> bool:
    """Whether all that is asked for is there: the same tensors, at least as many columns."""
    for name, wanted in asked.items():
        got = had[name]
        if wanted is None or wanted is got:
            continue
        if got is None or isinstance(wanted, Tensor) or isinstance(got, Tensor):
            return False
        if isinstance(wanted, float):
            if wanted != got:
                return False
        elif wanted > got:
            return False
    return True


def _union(asked: Asked, before: Asked) -> Asked:
    """What is asked for now and what was before; where they differ in kind, what is asked now."""
    both = dict(asked)
    for name, was in before.items():
        now = asked.get(name)
        if now is None or (isinstance(now, int) and isinstance(was, int) and was > now):
            both[name] = was
    return both
