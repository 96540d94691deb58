"""Arguments that mean the same in many losses, described once.

A docstring holds what is special to its function. The lines that it leaves out of ``Args`` are
filled in from this table, so that `help` and the documentation show them all.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

from denseloss.contract.kinds import Kind

__all__ = ["completed"]

# By name, then by the kind of the argument or of what the function is about (`_about`).
SHARED = {
    "logits": {"Logits": "scores z."},
    "target": {
        "Masks": "t in [0, 1], a mask per channel.",
        "ClassMap regions": "labels, or class probabilities t.",
    },
    "smooth": {
        "ClassMap regions": "s >= 0; with s > 0 a class neither present nor predicted costs nearly "
        "0.",
        "Masks regions": "s >= 0; with s > 0 an empty mask that is predicted empty costs nearly 0.",
    },
    "pool": {
        "": 'sums over the pixels of each ``"image"``, or of the ``"batch"`` as one image.',
    },
    "absent": {
        "ClassMap regions": '``"count"`` classes without a target pixel, or ``"skip"`` them in the '
        "mean.",
        "Masks regions": '``"count"`` channels without a target pixel, or ``"skip"`` them in the '
        "mean.",
    },
    "class_weight": {
        "ClassMap regions": "what each class counts for in the mean, >= 0.",
        "Masks regions": "what each channel counts for in the mean, >= 0.",
    },
    "weight": {
        "PixelWeight": "w, what each pixel counts for, >= 0; 0 is void.",
        "ElementWeight": "w, what each element counts for, >= 0; 0 is void.",
        "BoxWeight": "w, what each pair counts for, >= 0; 0 is void.",
    },
    "ignore_index": {
        "ClassMap": "the label of void pixels; None is none.",
        "Labels": "the label of void pixels; None is none.",
        "Masks": "the value of void pixels in the target, such as 255.",
    },
    "count": {
        "Count": "what the mean divides by instead of what it would count itself, at least 1: the "
        'caller\'s own share, see `denseloss.distributed`. With ``reduction="mean"`` only.',
    },
    "reduction": {
        "ClassMap regions": "over images and classes. An image that is all void does not count.",
        "Masks regions": "over images and channels. A channel that is all void does not count.",
    },
}

# Tensors whose values may be wrong where shape and dtype are right: who gets NaN because of them
# looks into the docstring of the loss.
DIAGNOSED = {"BinTarget", "Boxes", "ClassMap", "Labels", "Masks", "Quality"}
NAN = "NaN, or a strange number? `denseloss.testing.diagnose` says which input has wrong values."


def completed(doc: str, kinds: Mapping[str, Kind | None]) -> str:
    """A docstring with the lines of ``Args`` that it leaves out, and with the way out of NaN.

    Args:
        doc: as it stands in the source.
        kinds: of each parameter, in the order of the signature; None for what is no tensor.
    """
    lines = inspect.cleandoc(doc).split("\n")
    if "Args:" not in lines and "Returns:" in lines:
        before = lines.index("Returns:")
        lines[before:before] = ["Args:", ""]
    if "Args:" not in lines:
        return "\n".join(lines)
    names = {kind.name for kind in kinds.values() if kind is not None}
    if "Returns:" in lines and names & DIAGNOSED:
        end = [*lines, ""].index("", lines.index("Returns:"))
        lines.insert(end, f"    {NAN}")
    start = end = lines.index("Args:") + 1
    while end < len(lines) and lines[end].startswith("    "):
        end += 1
    written = _entries(lines[start:end])
    about = _about(kinds)
    entries: list[str] = []
    for name, kind in kinds.items():
        if name in written:
            entries += written.pop(name)
        elif (text := _shared(name, kind, about)) is not None:
            entries.append(f"    {name}: {text}")
    entries += [line for entry in written.values() for line in entry]
    return "\n".join([*lines[:start], *entries, *lines[end:]])


def _entries(lines: list[str]) -> dict[str, list[str]]:
    """The lines of each argument, by its name."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in lines:
        start = re.match(r"    ([*\w]+):", line)
        name = start.group(1) if start else name
        found.setdefault(name, []).append(line)
    return found


def _about(kinds: Mapping[str, Kind | None]) -> tuple[str, ...]:
    """What a function is about: the kind of its target, first with "regions" if it pools."""
    for kind in kinds.values():
        if kind is not None and kind.name in ("ClassMap", "Masks", "Labels"):
            return (f"{kind.name} regions", kind.name, "") if "pool" in kinds else (kind.name, "")
    return ("",)


def _shared(name: str, kind: Kind | None, about: tuple[str, ...]) -> str | None:
    texts = SHARED.get(name, {})
    keys = about if kind is None else (kind.name, *about)
    return next((texts[key] for key in keys if key in texts), None)
