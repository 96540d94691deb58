"""The operators behind every fast version: their schemas, and the shapes of what they return.

An operator is one pass over its inputs. `denseloss.primitives.cpu` implements them in C,
`denseloss.primitives.cuda` in Triton. None of them differentiates: the autograd Functions beside
this file do. They find an operator with `operator`: the implementation itself where plain tensors
come in eager mode, else torch's dispatcher, in which torch.compile sees one opaque call.

All arithmetic is in float32 (sums in float64 or in blocks), whatever the dtype of the logits:
float32, float16 or bfloat16. ``weight``, ``count``, ``score``, ``spread``, ``upstream`` and
``grad_*`` are float32. Nothing but `rescale` writes into an input.

An element is *void* where its label or target is ``ignore``, or its weight is 0: whatever it holds
(NaN too), it adds exactly 0 to every sum and gets exactly 0 as value and gradient. A label that is
neither void nor a class makes the weight of its pixel NaN; a dense target outside (-0.5, 1.5) that
is not void counts as NaN itself, one inside is brought to [0, 1].

Layouts: ``logits`` are *dense* (a permutation of a contiguous tensor); ``target``, ``weight`` and
``upstream`` maps of the same shape have the same strides. For `softmax` and `sigmoid` they are
contiguous [n c *s] or channels_last, the class axis then being the innermost.

elementwise: losses of single elements
    target: the shape and strides of the logits, any of float32/16, bfloat16, uint8, bool, int32,
        int64; or, where it has one axis less, *labels* (uint8, int32, int64) of contiguous logits
        [*s c]: the target is ``score`` (1 where that is None) at the class of the label and 0 at
        every other, 0 everywhere for the label -1 (background), void for the label ``ignore``.
    weight: the shape and strides of the logits; for labels float32 [*s].
    pos_weight: only for BCE, float32 [c] along axis 1 of [n c *s]; None is the number ``a``.
    kind, a, g (p = sigmoid z, q = 1-p, ce = -t log p - (1-t) log q, at = a t + (1-a)(1-t), 1 for
    a < 0; m = max(t q + (1-t) p, TINY)):
        BCE 0        -(a t log p + (1-t) log q)
        FOCAL 1      at m^g ce
        QUALITY 2    at max(|t-p|, TINY)^g ce
        VARIFOCAL 3  t ce for t > 0, a max(p, TINY)^g ce for t = 0; 4: the factor is a constant
    The target of kinds 2 to 4 is a quality: below 0 it is brought to 0 (however far), above 1 up to
    1.01 to 1, beyond that it counts as NaN. A NaN target is an object.
    Returns (sums, values, grad), each empty [0] unless asked for:
        sums [2]: scale * sum w v, and sum w;  values, float32 with the strides of the logits: w v;
        grad, like the logits: upstream * scale * w * dv/dz, with upstream a number (float32 [],
        None is 1) or a map float32 like the logits (one per element).

boxes: losses of box pairs [m 4], contiguous; kind IOU 0, GIOU 1, DIOU 2, CIOU 3, CIOU_RELEASED 4;
    fmt XYXY 0, XYWH 1, CXCYWH 2. Values and gradients as those of `denseloss.losses.box`. A pair
    that is not finite is NaN, value and gradient. weight [m], upstream [] or [m], values [m].

bins: distribution focal loss of logits [m k], contiguous, target float32 [m], weight [m],
    upstream [] or [m], values [m].

softmax: what losses of exclusive classes are made of, in one pass over the logits [n c *s]
    target labels uint8/int32/int64 [n *s], contiguous; weight [n *s], contiguous.
    size: [] , or [H W]: the logits [n c h w] are first resized bilinearly to it (as
    F.interpolate with this align_corners), and target and weight have that size.
    Returns (entropy, miss, weights, smooth, sums, present):
        entropy, miss, weights: float32 [n *s] each where ``entropy``, else [0]: -log p_t, exactly 0
            where void; max(1 - p_t, TINY) without cancellation, TINY where void; the weight of the
            pixel (1 without ``weight``), 0 where void, NaN where the label is no class (its entropy
            and miss are those of class 0).
        smooth: [n *s] where ``spread`` [c] is given, else [0]: sum_k spread_k (-log p_k), exactly
            0 where void.
        sums: [n c k] for ``sums`` = k: 0, then [0]; 3: I = sum w p t, P = sum w p, T = sum w t;
            5: these, sum w p^2 and sum w t^2. All NaN where a weight of the image is.
        present: [n c], where k > 0, else [0]: 1 where any pixel of the image is not void, else 0.
softmax_backward: the gradient, like the logits (of the small logits where ``size`` is given), of
    sum grad_entropy[n *s] * entropy + sum grad_miss[n *s] * miss + sum grad_smooth[n *s] * smooth
    + sum grad_sums[n c k] * sums (k = 3 or 5; the columns of T are not read).
    Each grad_* is None where nothing comes from there. The maps hold the weight already: it is not
    multiplied with them again; where void the gradient is exactly 0 whatever they hold.

sigmoid: the sums over the pixels of each channel of logits [n c *s]
    target, weight and ignore as for elementwise with dense targets; pos_weight [c] or None (1).
    Returns (sums, present, entropy, weights):
        sums: [n c k] for ``sums`` = k: 0, then [0]; 3: I = sum w min(p, t), P = sum w p,
            T = sum w t; 5: these, sum w p^2 and sum w t^2.
        present: [n c]: 1 where any element of the channel is not void, else 0.
        entropy, weights: [n c] each where ``entropy``, else [0]: sum w BCE (a t log p as for
            elementwise, with a the channel's pos_weight), and sum w.
sigmoid_backward: the gradient, like the logits, of
    sum grad_sums[n c k] * sums + sum grad_entropy[n c] * (sum w BCE); each may be None.
    The slope of min(p, t) by p is 1 where p < t, 0 where p > t; where p = t it is 1 for t >= 1, 0
    for t <= 0 and 1/2 between.

edge: window means of target [n c h w], contiguous, same dtypes as for elementwise
    m = mean of the window x window box around a pixel; pixels outside the image count as 0, or do
    not count where ``inside``; void pixels count as 0. window is odd.
    Returns float32 [n c h w]: m itself where gamma < 0, else w (1 + gamma |m - t|), 0 where void,
    NaN where the target is outside (-0.5, 1.5) and not void. (Here t is taken as it is.)

association: the sums of `denseloss.primitives.affinity` for probability [n k h w] and image
    [n i h w], both float32 contiguous.
    Returns (within [n k], total [n k], filtered [n k h w]: sum_v w_uv p_vk, degree [n h w]:
    sum_v w_uv).
association_backward: grad_within[n k] * 2 filtered + grad_total[n k] * degree, [n k h w].

label_count: pixels of each class, float32 [classes], that are not void; all NaN where a label is
    neither void nor a class. target uint8/int32/int64 [n *s], weight [n *s].

class_values: values[label] of each pixel, float32 like target; 0 where the label is no class.
    target uint8/int32/int64, contiguous; values float32 [c].

weighted_mean: (sum w v / sum count, or sum w v where not ``divide``; sum count), float32 [] each
    values, weight, count: float32, contiguous, of one shape; count None is the weight. What has
    weight 0 adds exactly 0 whatever its value. Where the counts add up to 0 it is divided by 1.
weighted_mean_backward: upstream * w / total (upstream * w where not ``divide``), like weight;
    exactly 0 where w = 0. upstream and total (the second result) are float32 [].

ratio: (above . x) / (below . x) of each row of sums [*m k], float32 [*m]; x = (sums, 1), so that
    above and below have k+1 numbers; ``empty`` where |below . x| < TINY.
ratio_backward: its gradient by sums times upstream [*m], [*m k]; 0 where ``empty`` stands.

rescale: multiplies a dense ``grad`` in place by the float32 number ``factor``; nothing is touched
    where that is 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

__all__ = ["SCHEMAS", "define", "implement", "operator"]

SCHEMAS = {
    "elementwise": "(Tensor logits, Tensor target, Tensor? score, Tensor? weight, "
    "Tensor? pos_weight, int kind, float a, float g, float? ignore, Tensor? upstream, "
    "float scale, bool sums, bool values, bool grad) -> (Tensor, Tensor, Tensor)",
    "boxes": "(Tensor boxes, Tensor target, Tensor? weight, int kind, int fmt, Tensor? upstream, "
    "float scale, bool sums, bool values, bool grad) -> (Tensor, Tensor, Tensor)",
    "bins": "(Tensor logits, Tensor target, Tensor? weight, Tensor? upstream, "
    "float scale, bool sums, bool values, bool grad) -> (Tensor, Tensor, Tensor)",
    "softmax": "(Tensor logits, Tensor target, Tensor? weight, Tensor? spread, int ignore, "
    "bool entropy, int sums, SymInt[] size, bool align_corners) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "softmax_backward": "(Tensor logits, Tensor target, Tensor? weight, Tensor? spread, "
    "int ignore, Tensor? grad_entropy, Tensor? grad_miss, Tensor? grad_smooth, "
    "Tensor? grad_sums, SymInt[] size, bool align_corners) -> Tensor",
    "sigmoid": "(Tensor logits, Tensor target, Tensor? weight, Tensor? pos_weight, float? ignore, "
    "int sums, bool entropy) -> (Tensor, Tensor, Tensor, Tensor)",
    "sigmoid_backward": "(Tensor logits, Tensor target, Tensor? weight, Tensor? pos_weight, "
    "float? ignore, Tensor? grad_sums, Tensor? grad_entropy) -> Tensor",
    "edge": "(Tensor target, Tensor? weight, float? ignore, float gamma, int window, bool inside) "
    "-> Tensor",
    "association": "(Tensor probability, Tensor image, float radius, float sigma_intensity, "
    "float sigma_space) -> (Tensor, Tensor, Tensor, Tensor)",
    "association_backward": "(Tensor filtered, Tensor degree, Tensor grad_within, "
    "Tensor grad_total) -> Tensor",
    "label_count": "(Tensor target, Tensor? weight, int ignore, int classes) -> Tensor",
    "class_values": "(Tensor target, Tensor values) -> Tensor",
    "weighted_mean": "(Tensor values, Tensor weight, Tensor? count, bool divide) "
    "-> (Tensor, Tensor)",
    "weighted_mean_backward": "(Tensor upstream, Tensor total, Tensor weight, bool divide) "
    "-> Tensor",
    "ratio": "(Tensor sums, float[] above, float[] below, float empty) -> Tensor",
    "ratio_backward": "(Tensor upstream, Tensor sums, float[] above, float[] below) -> Tensor",
    "rescale": "(Tensor(a!) grad, Tensor factor) -> ()",
}

_is_compiling, _modes = torch.compiler.is_compiling, torch._C._len_torch_dispatch_stack
_library: torch.library.Library | None = None
_direct: dict[str, dict[str, Callable[..., Any]]] = {}
_implementations: list[torch.library.Library] = []  # an implementation dies with its Library


def define() -> None:
    """Declare the operators, once."""
    global _library
    if _library is not None:
        return
    _library = _opened("DEF")
    for name, schema in SCHEMAS.items():
        _library.define(  # type: ignore[no-untyped-call]
            name + schema, tags=(torch.Tag.pt2_compliant_tag,)
        )
        torch.library.register_fake(f"denseloss::{name}", _FAKES[name], lib=_library)


def implement(key: str, versions: dict[str, Callable[..., Any]]) -> None:
    """Implement operators for a dispatch key, ``"CPU"`` or ``"CUDA"``."""
    define()
    library = _opened("IMPL", key)
    for name, version in versions.items():
        library.impl(name, version)  # type: ignore[no-untyped-call]
    _implementations.append(library)
    _direct[key.lower()] = versions


def operator(name: str, x: Tensor) -> Callable[..., Any]:
    """The operator for a tensor: its implementation itself, or as torch's dispatcher has it.

    The dispatcher costs several microseconds a call. It is needed where somebody listens to it: a
    compiler, a subclass of Tensor (fake, functional), a mode that records what is called.
    """
    kind = type(x)
    if (kind is Tensor or kind is Parameter) and not _is_compiling() and not _modes():
        versions = _direct.get("cpu" if x.is_cpu else x.device.type)
        if versions is not None:
            return versions[name]
    return getattr(torch.ops.denseloss, name)  # type: ignore[no-any-return]


def _opened(kind: str, key: str = "") -> torch.library.Library:
    return torch.library.Library("denseloss", kind, key)  # type: ignore[no-untyped-call]


def _rows(rows: Tensor, scores: Tensor, *, sums: bool, values: bool, grad: bool) -> tuple[Any, ...]:
    """What a row-wise operator returns for logits ``rows``, with one loss per element of scores."""
    nothing = rows.new_empty(0, dtype=torch.float32)
    return (
        rows.new_empty(2, dtype=torch.float32) if sums else nothing,
        torch.empty_like(scores, dtype=torch.float32) if values else nothing.clone(),
        torch.empty_like(rows) if grad else rows.new_empty(0),
    )


def _elementwise(logits: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    sums, values, grad = rest[-3:]
    return _rows(logits, logits, sums=sums, values=values, grad=grad)


def _per_row(rows: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    sums, values, grad = rest[-3:]
    return _rows(rows, rows[..., 0].contiguous(), sums=sums, values=values, grad=grad)


def _softmax(logits: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    _, spread, _, entropy, sums, *_ = rest
    n, c = logits.shape[:2]

    def empty(*shape: Any) -> Tensor:
        return logits.new_empty(shape, dtype=torch.float32)

    return (
        empty(*target.shape) if entropy else empty(0),
        empty(*target.shape) if entropy else empty(0),
        empty(*target.shape) if entropy else empty(0),
        empty(*target.shape) if spread is not None else empty(0),
        empty(n, c, sums) if sums else empty(0),
        empty(n, c) if sums else empty(0),
    )


def _sigmoid(logits: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *_, sums, entropy = rest
    n, c = logits.shape[:2]
    empty = functools.partial(logits.new_empty, dtype=torch.float32)
    return (
        empty((n, c, sums)) if sums else empty(0),
        empty((n, c)),
        empty((n, c)) if entropy else empty(0),
        empty((n, c)) if entropy else empty(0),
    )


def _weighted_mean(values: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return values.new_empty(()), values.new_empty(())


def _like(logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits)


def _association(probability: Tensor, *_: Any) -> tuple[Tensor, ...]:
    n, k, h, w = probability.shape
    pairs = probability.new_empty(n, k)
    return pairs, torch.empty_like(pairs), torch.empty_like(probability), pairs.new_empty(n, h, w)


_FAKES: dict[str, Callable[..., Any]] = {
    "elementwise": _elementwise,
    "boxes": _per_row,
    "bins": _per_row,
    "softmax": _softmax,
    "softmax_backward": _like,
    "sigmoid": _sigmoid,
    "sigmoid_backward": _like,
    "edge": lambda target, *_: torch.empty_like(target, dtype=torch.float32),
    "association": _association,
    "association_backward": _like,
    "label_count": lambda target, *rest: target.new_empty(rest[-1], dtype=torch.float32),
    "class_values": lambda target, _: torch.empty_like(target, dtype=torch.float32),
    "weighted_mean": _weighted_mean,
    "weighted_mean_backward": lambda *rest: torch.empty_like(rest[2]),
    "ratio": lambda sums, *_: sums.new_empty(sums.shape[:-1]),
    "ratio_backward": lambda _, sums, *__: torch.empty_like(sums),
    "rescale": lambda *_: None,
}
