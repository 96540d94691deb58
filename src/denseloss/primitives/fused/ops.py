"""The operators behind every fast version: their schemas, and the shapes of what they return.

An operator is one pass over its inputs. `denseloss.primitives.cpu` implements them in C,
`denseloss.primitives.cuda` in Triton; torch's dispatcher chooses by device, and torch.compile
sees one opaque call. None of them differentiates: the autograd Functions beside this file do.

All arithmetic is in float32 (sums in float64 or in blocks), whatever the dtype of the logits:
float32, float16 or bfloat16. ``weight``, ``class_weight``, ``score``, ``upstream`` and ``grad_*``
are float32. Nothing but `rescale` writes into an input.

An element is *void* where its label or target is ``ignore``, or its weight is 0: whatever it holds
(NaN too), it adds exactly 0 to every sum and gets exactly 0 as value and gradient. A label that is
neither void nor a class makes the weight of its pixel NaN; a dense target outside (-0.5, 1.5) that
is not void counts as NaN itself.

Layouts: ``logits`` are *dense* (a permutation of a contiguous tensor); ``target``, ``weight`` and
``upstream`` maps of the same shape have the same strides. For `column` and `region` they are
contiguous [n c *s] or channels_last, the class axis then being the innermost.

pointwise: losses of single elements
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
        VARIFOCAL 3  t ce for t != 0, a max(p, TINY)^g ce for t = 0; 4: the factor is a constant
    Returns (sums, values, grad), each empty [0] unless asked for:
        sums [2]: scale * sum w v, and sum w;  values, float32 with the strides of the logits: w v;
        grad, like the logits: upstream * scale * w * dv/dz, with upstream a number (float32 [],
        None is 1) or a map float32 like the logits (one per element).

boxes: losses of box pairs [m 4], contiguous; kind IOU 0, GIOU 1, DIOU 2, CIOU 3; fmt XYXY 0,
    XYWH 1, CXCYWH 2. Values and gradients as those of `denseloss.losses.box`. weight [m],
    upstream [] or [m], values [m].

bins: distribution focal loss of logits [m k], contiguous, target float32 [m], weight [m],
    upstream [] or [m], values [m].

column: sums over the pixels of softmax losses, and their gradient
    target labels uint8/int32/int64 [n *s], contiguous; weight [n *s], contiguous.
    K entropy terms, K = len(gamma) >= 0; term k of a pixel with label t:
        v_k = cw_k[t] (1-e_k) max(1-p_t, TINY)^gamma_k (-log p_t) + e_k/c sum_j cw_k[j] (-log p_j)
    with class_weight [K c] (None: ones) and e = smoothing.
    size: [] , or [H W]: the logits [n c h w] are first resized bilinearly to it (as
    F.interpolate with this align_corners), and target and weight have that size.
    Returns (entropy, sums, weights, values): entropy [n K 2]: sum w v_k, sum w cw_k[t];
        sums [n c 3] where ``overlap``, else [0]: I = sum w p t, P = sum w p, T = sum w t;
        weights [n 2]: sum w, and the number of pixels that are not void;
        values [n *s] where ``values`` (K = 1), else [0]: w v_0.
column_backward: the gradient, like the logits (of the small logits where ``size`` is given), of
    sum grad_entropy[n K] * (sum w v_k) + sum grad_sums[n c 2] * (I, P), where given;
    or, with upstream [n *s] (K = 1, grad_entropy and grad_sums None), of sum upstream w v_0.

region: sums over the pixels of each channel of logits [n c *s]
    target, weight and ignore as for pointwise with dense targets; v is the BCE.
    Returns [n c 6]: I = sum w p t, P = sum w p, T = sum w t, the number of elements that are not
    void, sum w v (0 without ``entropy``), sum w.
region_backward: the gradient of sum grad[n c 3] * (I, P, sum w v), like the logits.

edge: window means of target [n c h w], contiguous, same dtypes as for pointwise
    m = mean of the window x window box around a pixel; pixels outside the image count as 0, or do
    not count where ``inside``; void pixels count as 0. window is odd.
    Returns float32 [n c h w]: m itself where gamma < 0, else w (1 + gamma |m - t|), 0 where void,
    NaN where the target is outside (-0.5, 1.5) and not void.

association: the sums of `denseloss.primitives.affinity` for probability [n k h w] and image
    [n i h w], both float32 contiguous.
    Returns (within [n k], total [n k], filtered [n k h w]: sum_v w_uv p_vk, degree [n h w]:
    sum_v w_uv).
association_backward: grad_within[n k] * 2 filtered + grad_total[n k] * degree, [n k h w].

label_count: pixels of each class, float32 [classes], that are not void; all NaN where a label is
    neither void nor a class. target uint8/int32/int64 [n *s], weight [n *s].

rescale: multiplies a dense ``grad`` in place by the float32 number ``factor``; nothing is touched
    where that is 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["SCHEMAS", "define", "implement"]

SCHEMAS = {
    "pointwise": "(Tensor logits, Tensor target, Tensor? score, Tensor? weight, "
    "Tensor? pos_weight, int kind, float a, float g, float? ignore, Tensor? upstream, "
    "float scale, bool sums, bool values, bool grad) -> (Tensor, Tensor, Tensor)",
    "boxes": "(Tensor boxes, Tensor target, Tensor? weight, int kind, int fmt, Tensor? upstream, "
    "float scale, bool sums, bool values, bool grad) -> (Tensor, Tensor, Tensor)",
    "bins": "(Tensor logits, Tensor target, Tensor? weight, Tensor? upstream, "
    "float scale, bool sums, bool values, bool grad) -> (Tensor, Tensor, Tensor)",
    "column": "(Tensor logits, Tensor target, Tensor? weight, Tensor? class_weight, float[] gamma, "
    "float[] smoothing, int ignore, bool overlap, bool values, SymInt[] size, bool align_corners) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    "column_backward": "(Tensor logits, Tensor target, Tensor? weight, Tensor? class_weight, "
    "float[] gamma, float[] smoothing, int ignore, Tensor? grad_entropy, Tensor? grad_sums, "
    "Tensor? upstream, SymInt[] size, bool align_corners) -> Tensor",
    "region": "(Tensor logits, Tensor target, Tensor? weight, float? ignore, bool entropy) "
    "-> Tensor",
    "region_backward": "(Tensor logits, Tensor target, Tensor? weight, float? ignore, "
    "bool entropy, Tensor grad) -> Tensor",
    "edge": "(Tensor target, Tensor? weight, float? ignore, float gamma, int window, bool inside) "
    "-> Tensor",
    "association": "(Tensor probability, Tensor image, float radius, float sigma_intensity, "
    "float sigma_space) -> (Tensor, Tensor, Tensor, Tensor)",
    "association_backward": "(Tensor filtered, Tensor degree, Tensor grad_within, "
    "Tensor grad_total) -> Tensor",
    "label_count": "(Tensor target, Tensor? weight, int ignore, int classes) -> Tensor",
    "rescale": "(Tensor(a!) grad, Tensor factor) -> ()",
}

_library: torch.library.Library | None = None
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


def _pointwise(logits: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    sums, values, grad = rest[-3:]
    return _rows(logits, logits, sums=sums, values=values, grad=grad)


def _per_row(rows: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    sums, values, grad = rest[-3:]
    return _rows(rows, rows[..., 0].contiguous(), sums=sums, values=values, grad=grad)


def _column(logits: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    _, _, gamma, _, _, overlap, values, *_ = rest
    n, c = logits.shape[:2]

    def empty(*shape: Any) -> Tensor:
        return logits.new_empty(shape, dtype=torch.float32)

    return (
        empty(n, len(gamma), 2),
        empty(n, c, 3) if overlap else empty(0),
        empty(n, 2),
        empty(*target.shape) if values else empty(0),
    )


def _region(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty((*logits.shape[:2], 6), dtype=torch.float32)


def _like(logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits)


def _association(probability: Tensor, *_: Any) -> tuple[Tensor, ...]:
    n, k, h, w = probability.shape
    pairs = probability.new_empty(n, k)
    return pairs, torch.empty_like(pairs), torch.empty_like(probability), pairs.new_empty(n, h, w)


_FAKES: dict[str, Callable[..., Any]] = {
    "pointwise": _pointwise,
    "boxes": _per_row,
    "bins": _per_row,
    "column": _column,
    "column_backward": _like,
    "region": _region,
    "region_backward": _like,
    "edge": lambda target, *_: torch.empty_like(target, dtype=torch.float32),
    "association": _association,
    "association_backward": _like,
    "rescale": lambda *_: None,
    "label_count": lambda target, *rest: target.new_empty(rest[-1], dtype=torch.float32),
}
