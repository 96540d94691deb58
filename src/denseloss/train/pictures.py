"""The two pictures of a run: how it learned, and what it predicts."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from denseloss.data import VOID, SegmentationData, SegmentationDataset, denormalise
from denseloss.data.samples import evenly
from denseloss.train.segmentation import Scores, SegmentationTask

Rgb = NDArray[np.uint8]

# Okabe and Ito's colours, which colour-blind people tell apart as well.
_BLACK, _GREY, _WHITE = "#000000", "#8c8c8c", "#ffffff"
_BLUE, _VERMILION, _GREEN = "#0072b2", "#d55e00", "#009e73"
_COLOURS = (_BLUE, _VERMILION, _GREEN, "#e69f00", "#56b4e9", "#cc79a7", "#f0e442")
_LINES = ("-", "--", ":", "-.")
_VOID_STRIPES = ("#ffffff", "#c8c8c8")
_MAX_SAMPLES = 5
_MAX_LEGEND = 24


def draw_curves(
    rows: Sequence[Mapping[str, float]], class_names: Sequence[str], *, path: Path
) -> None:
    """Draw the losses and the scores over the steps.

    Args:
        rows: Those of `metrics.csv`.
        class_names: Background included.
        path: Where the picture goes.
    """
    several = len(class_names) > 2
    figure = Figure(figsize=(15 if several else 10.5, 4.2), layout="constrained")
    axes = figure.subplots(1, 3 if several else 2)
    steps = [row["step"] for row in rows]
    marker = "o" if len(rows) < 4 else None

    def line(axis: Axes, key: str, label: str, **style: Any) -> None:
        values = [row.get(key, math.nan) for row in rows]
        axis.plot(steps, values, label=label, marker=marker, **style)

    terms = [key for key in rows[-1] if key.startswith("loss/")]
    line(axes[0], "loss", "training", color=_BLACK, linewidth=2)
    line(axes[0], "val_loss", "validation", color=_VERMILION, linewidth=2, linestyle="--")
    for i, key in enumerate(terms if len(terms) > 1 else ()):
        colour = (_BLUE, *_COLOURS[2:])[i % 6]
        line(axes[0], key, f"training: {key.removeprefix('loss/')}", color=colour, linewidth=1)
    axes[0].set_title("Loss")

    dice_name = "mean Dice" if several else f"Dice of {class_names[-1]}"
    line(axes[1], "mean_dice", dice_name, color=_BLUE, linewidth=2)
    iou_name = "mean IoU" if several else f"IoU of {class_names[-1]}"
    line(axes[1], "mean_iou", iou_name, color=_VERMILION, linewidth=2, linestyle="--")
    best = max(rows, key=lambda row: -1 if math.isnan(row["mean_dice"]) else row["mean_dice"])
    axes[1].plot(
        [best["step"]],
        [best["mean_dice"]],
        marker="*",
        markersize=14,
        color=_BLUE,
        linestyle="none",
        label=f"best: {best['mean_dice']:.3f} at step {best['step']}",
    )
    axes[1].set_title("Validation")
    if several:
        for i, name in enumerate(class_names):
            colour = (_GREY, *_COLOURS)[i % 8]
            line(axes[2], f"dice/{name}", name, color=colour, linestyle=_LINES[i // 8 % 4])
        axes[2].set_title("Validation Dice of each class")
    for i, axis in enumerate(axes):
        axis.set_xlabel("step")
        axis.grid(visible=True, color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        if i > 0:
            axis.set_ylim(-0.02, 1.02)
        crowded = len(axis.get_legend_handles_labels()[0]) > 8
        axis.legend(frameon=False, fontsize=7 if crowded else 9, ncols=2 if crowded else 1)
    _save(figure, path)


def draw_samples(task: SegmentationTask, data: SegmentationData, *, path: Path) -> None:
    """Draw image, truth, prediction and error of some validation images.

    Args:
        task: With the weights to predict with.
        data: Whose validation images are shown, evenly spaced in the order of their names.
        path: Where the picture goes.
    """
    items = SegmentationDataset(data, data.val, size=1, train=False)
    chosen = evenly(_MAX_SAMPLES, of=len(items))
    count = len(chosen)
    figure = Figure(figsize=(12.4, 3.05 * count + 0.9), layout="constrained")
    axes = figure.subplots(count, 4, squeeze=False)
    task = task.eval()
    for row, index in zip(axes, chosen, strict=True):
        item = items[index]
        image, truth = item["image"], item["mask"]
        assert isinstance(image, Tensor)
        assert isinstance(truth, Tensor)
        guess, score = _predict(task, image, truth)
        pictures = (
            denormalise(image).permute(1, 2, 0).numpy(),
            _painted(truth, data),
            _painted(guess, data),
            _errors(truth, guess, data),
        )
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture, interpolation="antialiased")
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(_shortened(data.val[index].name), fontsize=8)
        row[2].set_xlabel(f"Dice {score:.3f}" if score == score else "nothing to find", fontsize=9)
    for axis, title in zip(axes[0], ("image", "truth", "prediction", "error"), strict=True):
        axis.set_title(title)
    figure.suptitle(
        f"{count} of {len(items)} validation images, chosen by their place and not by the result; "
        "weights of best.ckpt",
        fontsize=10,
    )
    figure.legend(
        handles=_legend(data), loc="outside lower center", ncols=6, frameon=False, fontsize=9
    )
    _save(figure, path)


@torch.no_grad()
def _predict(task: SegmentationTask, image: Tensor, truth: Tensor) -> tuple[Tensor, float]:
    size = (truth.shape[-2], truth.shape[-1])
    guess = task.predict(image[None].to(task.device), size=size)[1][0].cpu()
    known = truth != VOID
    classes = len(task.class_names)
    pairs = truth[known] * classes + guess[known]
    confusion = torch.bincount(pairs, minlength=classes**2).view(classes, classes)
    return guess, Scores.from_confusion(confusion, task=task.task).mean_dice


def _colours(data: SegmentationData) -> list[str]:
    if data.task == "binary":
        return [_BLACK, _WHITE]
    # Beyond eight classes no set of colours is told apart by everybody: they repeat, paler.
    base = [_GREY, *_COLOURS]
    return [_paler(base[i % 8], 0.45 * (i // 8 % 3)) for i in range(data.num_classes)]


def _painted(classes: Tensor, data: SegmentationData) -> Rgb:
    table = np.stack([_rgb(colour) for colour in _colours(data)])
    void = (classes == VOID).numpy()
    return _striped(table[np.where(void, 0, classes.numpy())], void)


def _errors(truth: Tensor, guess: Tensor, data: SegmentationData) -> Rgb:
    right, void = (truth == guess).numpy(), (truth == VOID).numpy()
    if data.task == "binary":
        picture = _painted(truth, data)
        picture[~right & (truth == 1).numpy()] = _rgb(_BLUE)
        picture[~right & (truth == 0).numpy()] = _rgb(_VERMILION)
        picture[right & (truth == 1).numpy()] = _rgb(_GREY)
    else:
        picture = _painted(truth, data)
        picture[right] = _rgb(_BLACK)
    return _striped(picture, void)


def _legend(data: SegmentationData) -> list[Patch]:
    def patch(colour: str, label: str) -> Patch:
        return Patch(facecolor=colour, edgecolor=_GREY, linewidth=0.5, label=label)

    if data.task == "binary":
        name = data.class_names[1]
        patches = [
            patch(_GREY, f"error: {name} found"),
            patch(_BLUE, f"error: {name} missed"),
            patch(_VERMILION, f"error: {name} where there is none"),
        ]
    else:
        names = list(zip(_colours(data), data.class_names, strict=True))[:_MAX_LEGEND]
        patches = [patch(colour, name) for colour, name in names]
        patches.append(patch(_BLACK, "error: right (wrong: the colour of the truth)"))
    if data.ignore_value is not None:
        stripes = Patch(facecolor=_VOID_STRIPES[0], edgecolor=_VOID_STRIPES[1], hatch="////")
        stripes.set_label("void, does not count")
        patches.append(stripes)
    return patches


def _striped(picture: Rgb, void: NDArray[np.bool_]) -> Rgb:
    height, width = void.shape
    period = max(4, min(height, width) // 24)
    across = np.arange(width)[None] + np.arange(height)[:, None]
    stripes = np.stack([_rgb(colour) for colour in _VOID_STRIPES])[across // (period // 2) % 2]
    return np.where(void[..., None], stripes, picture)


def _rgb(colour: str) -> Rgb:
    return np.frombuffer(bytes.fromhex(colour[1:]), dtype=np.uint8)


def _paler(colour: str, share: float) -> str:
    mixed = _rgb(colour) * (1 - share) + 255 * share
    return "#" + mixed.astype(np.uint8).tobytes().hex()


def _shortened(name: str) -> str:
    return name if len(name) <= 32 else f"...{name[-29:]}"


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    part = path.with_name("part-" + path.name)
    figure.savefig(part, dpi=110)
    part.replace(path)
