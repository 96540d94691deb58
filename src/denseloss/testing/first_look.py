"""A first look at a loss before it is trained with: what would stop training, and what is odd.

It asks less than the battery: a loss need not be ours to be trained with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denseloss.contract import describe
from denseloss.user_code import place_of

__all__ = ["Finding", "Inputs", "first_look"]

_EXTREME = 1e4
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Finding:
    """What is wrong with a loss.

    Attributes:
        text: one sentence.
        fatal: whether nothing can be trained with it, or not without harm to other numbers.
    """

    text: str
    fatal: bool


@dataclass(frozen=True)
class Inputs:
    """What a loss is called with.

    Attributes:
        logits: scores.
        rest: the other tensors, the target first.
        options: keywords.
        void: where the logits must not count, as their shape; None where nothing is void.
    """

    logits: Tensor
    rest: Sequence[Any]
    options: Mapping[str, Any]
    void: Tensor | None = None


def first_look(
    loss: Callable[..., Any],
    inputs: Inputs,
    *,
    name: str = "",
    file: Path | None = None,
    others: Mapping[str, Inputs] | None = None,
    device: torch.device | str | None = None,
) -> list[Finding]:
    """Call a loss a few times and say what is wrong with it, a sentence each.

    The value must be one finite number that depends on the logits, with a finite gradient. The
    arguments must be left as they are, and what is void must not matter. The random state is left
    alone.

    Args:
        loss: ``loss(logits, target, **options)``.
        inputs: as a training step has them.
        name: of the loss, in the sentences.
        file: where it is written; the line of an exception in it is named.
        others: inputs that it should bear, too, by what they are in words ("without foreground").
        device: where it will be trained; None is where the inputs are.

    Returns:
        What is wrong. Once something is fatal, no more is looked at.

    Example:
        >>> inputs = Inputs(torch.randn(2, 3, 8, 8), [torch.zeros(2, 8, 8)], {})
        >>> for finding in first_look(lambda z, t: (z - 1).sum(), inputs, name="mine"):
        ...     print(finding.text.partition(":")[0])
        mine is no mean over the images
    """
    name = name or getattr(loss, "__name__", type(loss).__name__)
    look = _Look(loss, name, file)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return [
                Finding(f"{name} {said}", fatal=False)
                for said in look.all(inputs, others or {}, device)
            ]
        except _FatalError as error:
            return [Finding(f"{name} {error}", fatal=True)]


class _FatalError(Exception):
    """Why nothing can be trained with a loss."""


class _Look:
    """The calls of one loss."""

    def __init__(self, loss: Callable[..., Any], name: str, file: Path | None) -> None:
        self.loss, self.name, self.file = loss, name, file

    def all(
        self, inputs: Inputs, others: Mapping[str, Inputs], device: torch.device | str | None
    ) -> list[str]:
        """The blemishes, in sentences without a subject.

        Raises:
            _FatalError: Training with it is impossible.
        """
        value, gradient = self._ordinary(inputs)
        found = self._blemishes(inputs, value, gradient)
        values = [value]
        for what, other in others.items():
            found += self._bears(other, what)
            if other.void is None and (there := self._quiet(other)) is not None:
                values.append(there)
        if len(values) > 2 and all(_near(one, value) for one in values):
            found.append("does not depend on its second argument: it is the same whatever that is")
        if device is not None and torch.device(device).type != inputs.logits.device.type:
            moved = _on(inputs, device)
            module = self.loss
            if isinstance(module, torch.nn.Module):
                module.to(device)
            try:
                self._ordinary(moved)
            except _FatalError as error:
                raise _FatalError(f"{error} (with tensors on {device})") from error
            finally:
                if isinstance(module, torch.nn.Module):
                    module.to(inputs.logits.device)
        return found

    def _ordinary(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Value and gradient of usual inputs."""
        before = _copied(inputs)
        value, leaf = self._called(inputs)
        self._refuse_shape(value, inputs)
        changed = _changed(before, inputs)
        if changed is not None:
            raise _FatalError(
                f"writes to its {changed} argument, which others use, too; let it work on a copy "
                "(.clone())"
            )
        if not bool(value.isfinite()):
            raise _FatalError(
                f"is {float(value.detach())} for ordinary logits of {_range(inputs.logits)}"
            )
        if not value.requires_grad:
            raise _FatalError(
                "has no gradient: somewhere it leaves the logits, as by .detach(), .item(), "
                "argmax, a comparison or NumPy"
            )
        gradient = self._gradient(value, leaf)
        if gradient is None:
            raise _FatalError("does not depend on the logits: its gradient is of something else")
        if not bool(gradient.isfinite().all()):
            count = int((~gradient.isfinite()).sum())
            raise _FatalError(
                f"has a gradient that is NaN or infinite at {count} of {gradient.numel()} logits, "
                "though its value is finite"
            )
        if not bool(gradient.any()) and self._is_constant(inputs, value):
            raise _FatalError(
                f"does not depend on the logits: it is {float(value.detach()):g} whatever they are"
            )
        return value.detach(), gradient

    def _called(self, inputs: Inputs) -> tuple[Any, Tensor]:
        """The value, and the leaf whose gradient is asked for."""
        leaf = inputs.logits.detach().clone().requires_grad_()
        try:
            with torch.enable_grad():
                # In training the logits are no leaf either, and may be written to.
                logits = leaf.clone()
                version = logits._version
                value = self.loss(logits, *inputs.rest, **inputs.options)
        except Exception as error:
            said = " ".join(str(error).split())[:300].rstrip(".")
            raise _FatalError(
                f"raises {type(error).__name__} at {place_of(error, self.file)}: {said}"
            ) from error
        if logits._version != version:
            raise _FatalError(
                "writes to its logits, which others use, too; let it work on a copy (.clone())"
            )
        return value, leaf

    def _refuse_shape(self, value: Any, inputs: Inputs) -> None:
        """Raise unless the value is one number that can be trained with."""
        wanted = "a loss gives a tensor of one number"
        if not isinstance(value, Tensor):
            raise _FatalError(f"gives {describe(value)}; {wanted}")
        if value.ndim > 0:
            images, pixels = inputs.logits.shape[0], inputs.logits.shape[2:]
            what = describe(value)
            if tuple(value.shape) == (images,):
                what = f"a value for each image, {what}"
            elif tuple(value.shape[-len(pixels) :]) == tuple(pixels):
                what = f"a value for each pixel, {what}"
            raise _FatalError(f"gives {what}; {wanted}: take its .mean()")
        if not value.is_floating_point():
            raise _FatalError(f"gives {describe(value)}; {wanted}, and of floating point")

    def _gradient(self, value: Tensor, leaf: Tensor) -> Tensor | None:
        try:
            (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
        except Exception as error:
            said = " ".join(str(error).split())[:300].rstrip(".")
            raise _FatalError(
                f"raises {type(error).__name__} in its backward pass: {said}"
            ) from error
        found: Tensor | None = gradient
        return found

    def _is_constant(self, inputs: Inputs, value: Tensor) -> bool:
        for other in (-inputs.logits, torch.randn_like(inputs.logits)):
            there, _ = self._called(_with(inputs, logits=other))
            if not torch.equal(there.detach(), value.detach()):
                return False
        return True

    # -------------------------------------------------------------------------- blemishes

    def _blemishes(self, inputs: Inputs, value: Tensor, gradient: Tensor) -> list[str]:
        found = []
        again = self._quiet(inputs)
        if again is not None and not _near(again, value):
            found.append(
                f"is not the same twice on the same inputs ({float(value):g}, {float(again):g}): "
                "it draws at random, or keeps something between calls"
            )
        elif (twice := self._quiet(_repeated(inputs))) is not None and not _near(twice, value):
            found.append(
                f"is no mean over the images: of a batch repeated twice it is {float(twice):g}, of "
                f"the batch {float(value):g}; the learning rate then depends on the batch size"
            )
        if not bool(gradient.any()):
            found.append("has a gradient of 0 at every ordinary logit")
        if value.dtype != inputs.logits.dtype:
            found.append(f"gives {describe(value)} for logits of {inputs.logits.dtype}")
        found += self._void(inputs, value, gradient)
        sign = torch.where(inputs.logits >= 0, _EXTREME, -_EXTREME).to(inputs.logits.dtype)
        extreme = (_with(inputs, logits=logits) for logits in (sign, -sign))
        said = (self._bears(one, f"for logits of ±{_EXTREME:g}") for one in extreme)
        found += next(filter(None, said), [])
        return found

    def _void(self, inputs: Inputs, value: Tensor, gradient: Tensor) -> list[str]:
        if inputs.void is None:
            return []
        void = inputs.void.expand_as(inputs.logits)
        other = self._quiet(_with(inputs, logits=inputs.logits.masked_fill(void, 7.0)))
        if bool(gradient[void].any()) or (other is not None and not _near(other, value)):
            return ["counts void pixels: its value or gradient changes with what lies there"]
        return []

    def _bears(self, inputs: Inputs, what: str) -> list[str]:
        """Say where the value or gradient of unusual inputs is not finite, or there is none."""
        try:
            value, leaf = self._called(inputs)
            if not bool(value.isfinite()):
                return [f"is {float(value.detach())} {what}"]
            gradient = self._gradient(value, leaf) if value.requires_grad else None
        except _FatalError as error:
            return [f"{error} ({what})"]
        if gradient is not None and not bool(gradient.isfinite().all()):
            return [f"has a gradient that is NaN or infinite {what}"]
        return []

    def _quiet(self, inputs: Inputs) -> Tensor | None:
        """The value, None where there is none."""
        try:
            value, _ = self._called(inputs)
        except _FatalError:
            return None
        return value.detach() if isinstance(value, Tensor) and value.ndim == 0 else None


def _with(inputs: Inputs, *, logits: Tensor) -> Inputs:
    return Inputs(logits, inputs.rest, inputs.options, inputs.void)


def _mapped(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    def changed(x: Any) -> Any:
        return change(x) if isinstance(x, Tensor) else x

    return Inputs(
        change(inputs.logits),
        [changed(x) for x in inputs.rest],
        {name: changed(x) for name, x in inputs.options.items()},
        None if inputs.void is None else changed(inputs.void),
    )


def _copied(inputs: Inputs) -> Inputs:
    return _mapped(inputs, torch.clone)


def _repeated(inputs: Inputs) -> Inputs:
    images = len(inputs.logits)
    return _mapped(inputs, lambda x: torch.cat([x, x]) if x.ndim and x.shape[0] == images else x)


def _on(inputs: Inputs, device: torch.device | str) -> Inputs:
    return _mapped(inputs, lambda x: x.to(device))


def _changed(before: Inputs, after: Inputs) -> str | None:
    """The argument that was written to."""
    pairs = [*zip(("second", "third", "fourth"), before.rest, after.rest, strict=False)]
    pairs += [(name, old, after.options[name]) for name, old in before.options.items()]
    for name, old, new in pairs:
        if isinstance(old, Tensor) and not torch.equal(old, new):
            return name
    return None


def _near(one: Tensor, other: Tensor) -> bool:
    a, b = float(one), float(other)
    return math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE * 0.01) or (a != a and b != b)


def _range(x: Tensor) -> str:
    return f"{float(x.min()):.2g} to {float(x.max()):.2g}"
