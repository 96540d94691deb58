"""Seeded scenes to segment: real problems of known answer, drawn in milliseconds."""

import difflib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from denseloss.data.errors import DataError
from denseloss.data.samples import VOID

Field = NDArray[np.floating[Any]]
Stroke = tuple[Field, float]
Painter = Callable[["Canvas", float], None]

# Shapes are drawn this many times larger and averaged down, which gives them smooth edges.
_FINE = 4


@dataclass(frozen=True)
class Scenes:
    """Scenes of one kind; scene `i` depends on the kind, the knobs and `i` alone.

    Attributes:
        name: The kind of scene.
        n: How many scenes there are.
        size: The side of a scene in pixels.
        noise: How strong the noise is, 1 is usual.
        objects: How many objects there are, 1 is usual, 2 is twice as many.
        seed: Another seed gives other scenes.
    """

    name: str
    n: int = 96
    size: int = 128
    noise: float = 1.0
    objects: float = 1.0
    seed: int = 0

    @staticmethod
    def parse(where: str) -> "Scenes":
        """Read `"synthetic:NAME?knob=value&knob=value"`.

        Raises:
            DataError: An unknown name or knob, with the nearest right one.
        """
        name, _, query = where.removeprefix("synthetic:").partition("?")
        if name not in _KINDS:
            raise DataError(
                f"synthetic:{name}: there are no such scenes{_nearest(name, list(_KINDS))}; "
                f"there are {', '.join(_KINDS)}"
            )
        kinds = {f.name: f.type for f in fields(Scenes) if f.name != "name"}
        knobs: dict[str, Any] = {}
        for knob, text in parse_qsl(query, keep_blank_values=True):
            if knob not in kinds:
                raise DataError(
                    f"{where}: there is no knob {knob!r}{_nearest(knob, list(kinds))}; "
                    f"there are {', '.join(kinds)}"
                )
            low, high = _KNOB_RANGES[knob]
            try:
                value = kinds[knob](text)  # type: ignore[operator]
            except ValueError:
                value = math.nan
            if not low <= value <= high:
                raise DataError(f"{where}: {knob}={text} must be a number from {low:g} to {high:g}")
            knobs[knob] = value
        return Scenes(name, **knobs)

    def __str__(self) -> str:
        knobs = [
            f"{f.name}={getattr(self, f.name):g}"
            for f in fields(self)
            if f.name != "name" and getattr(self, f.name) != f.default
        ]
        return f"synthetic:{self.name}" + ("?" + "&".join(knobs) if knobs else "")

    @property
    def kind(self) -> "Kind":
        """What the scenes show."""
        return _KINDS[self.name]

    @property
    def sample_names(self) -> tuple[str, ...]:
        """The names of all scenes."""
        return tuple(f"{self.name}_{i:05d}" for i in range(self.n))

    def draw(self, sample_name: str) -> tuple[Tensor, Tensor]:
        """The image `uint8[3 size size]` and the class indices `uint8[size size]` of one scene."""
        index = int(sample_name.rpartition("_")[2])
        # Drawn once, not in every epoch; cloned, because a reader may write into what it gets.
        image, mask = _kept(self, index) if self.size <= _LARGE else _drawn(self, index)
        return image.clone(), mask.clone()


def _drawn(scenes: Scenes, index: int) -> tuple[Tensor, Tensor]:
    place = list(_KINDS).index(scenes.name)
    canvas = Canvas(scenes.size, np.random.default_rng((scenes.seed, place, index)))
    kind = scenes.kind
    kind.paint(canvas, scenes.objects)
    canvas.finish(light=kind.light, blur=kind.blur, noise=kind.noise * scenes.noise)
    pixels = np.clip(canvas.colours, 0, 1) * 255 + 0.5
    return torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(canvas.mask)


_kept = lru_cache(maxsize=256)(_drawn)
_LARGE = 256
_KNOB_RANGES = {
    "n": (3, 1_000_000),
    "size": (32, 2048),
    "noise": (0, 10),
    "objects": (0.1, 10),
    "seed": (0, 2**63 - 1),
}


def _nearest(word: str, words: list[str]) -> str:
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.4)
    return f", did you mean {close[0]!r}" if close else ""


class Canvas:
    """An image `[3, size, size]` of 0 to 1 and its mask, with the few brushes that scenes need."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size = size
        self.rng = rng
        self.colours: Field = np.zeros((3, size, size), dtype=np.float32)
        self.mask: NDArray[np.uint8] = np.zeros((size, size), dtype=np.uint8)

    def texture(self, *scales: float) -> Field:
        """Smooth random hills of about unit deviation, a mixture of several widths in pixels."""
        total: Field = np.zeros((self.size, self.size), dtype=np.float32)
        for scale in scales:
            total += self._hills(max(2, math.ceil(self.size / scale) + 1))
        total *= 1.3 / math.sqrt(len(scales))
        return total

    def _hills(self, cells: int) -> Field:
        coarse = Image.fromarray(self.rng.standard_normal((cells, cells), dtype=np.float32))
        fine = coarse.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(fine, dtype=np.float32)

    def _cover(self, paint: Callable[[ImageDraw.ImageDraw], None]) -> Field:
        """How much of each pixel is painted, 0 to 1; `paint` draws in enlarged pixels."""
        fine = Image.new("L", (self.size * _FINE, self.size * _FINE))
        paint(ImageDraw.Draw(fine))
        return np.asarray(fine.reduce(_FINE), dtype=np.float32) / np.float32(255)

    def polygon(self, points: Field) -> Field:
        """How much of each pixel a polygon with corners `[n, 2]` (x, y) covers."""
        return self._cover(
            lambda pen: pen.polygon([tuple(p) for p in points * float(_FINE)], fill=255)
        )

    def patch(self, x: float, y: float, radius: float, *, wobble: float, squash: float) -> Field:
        """How much of each pixel an ellipse with a wavy edge covers."""
        return self.polygon(_outline(self.rng, x, y, radius, wobble=wobble, squash=squash))

    def lines(self, *strokes: Stroke) -> Field:
        """How much of each pixel some lines cover, each of points `[n, 2]` (x, y) and a width."""

        def paint(pen: ImageDraw.ImageDraw) -> None:
            for points, width in strokes:
                corners = [tuple(p) for p in points * float(_FINE)]
                pen.line(corners, fill=255, width=max(3, round(width * _FINE)), joint="curve")

        return self._cover(paint)

    def blend(self, cover: Field, colour: Field) -> None:
        """Lay a colour `[3]` or `[3, size, size]` over what is there."""
        colour = colour.reshape(3, *(colour.shape[1:] or (1, 1)))
        self.colours += cover * (colour - self.colours)

    def finish(self, *, light: float, blur: float, noise: float) -> None:
        """Light unevenly, blur as a lens, add grain as a sensor: stronger in the light."""
        self.colours *= np.exp(np.float32(light) * self._hills(3))
        self.colours = _blurred(self.colours, blur)
        grain = self.rng.standard_normal((3, self.size, self.size), dtype=np.float32)
        shared = self.rng.standard_normal((self.size, self.size), dtype=np.float32)
        depth = np.sqrt(np.clip(self.colours, 0.05, 1))
        self.colours += np.float32(noise) * depth * (0.5 * grain + 0.85 * shared)


def _blurred(colours: Field, sigma: float) -> Field:
    # In numpy, not by a convolution of torch: its last bit depends on the number of threads, and
    # a scene must be the same in a worker and in the main process.
    reach = math.ceil(2.5 * sigma)
    steps = np.arange(-reach, reach + 1)
    line = np.exp(-0.5 * (steps / sigma) ** 2)
    line = (line / line.sum()).astype(np.float32)
    for axis in (1, 2):
        width = colours.shape[axis]
        places = np.abs(np.arange(-reach, width + reach))  # mirrored at both ends
        places = np.where(places < width, places, 2 * width - 2 - places)
        padded = np.take(colours, places, axis=axis)
        total = np.zeros_like(colours)
        for i, weight in enumerate(line):
            part = padded[:, i : i + width] if axis == 1 else padded[..., i : i + width]
            total += weight * part
        colours = total
    return colours


def _outline(
    rng: np.random.Generator, x: float, y: float, radius: float, *, wobble: float, squash: float
) -> Field:
    """A closed curve around a point: an ellipse with slow waves."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    reach = np.full_like(angle, radius)
    for wave in (2, 3, 4):
        reach *= 1 + wobble / wave * rng.standard_normal() * np.cos(
            wave * angle + rng.uniform(0, 2 * np.pi)
        )
    turn = rng.uniform(0, np.pi)
    along, across = reach * np.cos(angle), reach * np.sin(angle) * squash
    px = x + along * np.cos(turn) - across * np.sin(turn)
    py = y + along * np.sin(turn) + across * np.cos(turn)
    return np.stack((px, py), axis=1).astype(np.float32)


def _blobs(canvas: Canvas, objects: float) -> None:
    """Spots of 2 to 6 pixels; haze as bright as they are, and scratches brighter still."""
    rng, size = canvas.rng, canvas.size
    tint = np.array([0.85, 1.0, 0.9], dtype=np.float32) + rng.uniform(-0.12, 0.12, 3)
    tint = tint.astype(np.float32)
    canvas.colours += (0.24 + 0.035 * canvas.texture(24, 10, 5)) * tint[:, None, None]
    amount = objects * (size / 128) ** 2
    for _ in range(rng.poisson(3 * amount)):
        x, y = rng.uniform(0, size, 2)
        width = rng.uniform(9, 20)
        rows, columns = np.ogrid[:size, :size]
        haze = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * width**2)).astype(np.float32)
        canvas.colours += rng.uniform(0.12, 0.3) * haze * tint[:, None, None]
    for _ in range(rng.poisson(2 * amount)):
        x, y = rng.uniform(0, size, 2)
        turn, reach = rng.uniform(0, np.pi), rng.uniform(10, 40)
        dx, dy = reach * math.cos(turn), reach * math.sin(turn)
        ends = np.array(((x - dx, y - dy), (x + dx, y + dy)), dtype=np.float32)
        scratch = canvas.lines((ends, 0.75))
        canvas.blend(scratch * np.float32(rng.uniform(0.4, 0.8)), np.float32(0.75) * tint)
    foreground = np.zeros((size, size), dtype=bool)
    for _ in range(max(1, rng.poisson(11 * amount))):
        x, y = rng.uniform(0, size, 2)
        radius = 1.8 + 4.2 * rng.beta(1.3, 2.2)
        cover = canvas.patch(x, y, radius, wobble=0.25, squash=rng.uniform(0.6, 1))
        foreground |= cover >= 0.5
        lift = rng.uniform(0.2, 0.45)
        canvas.colours += lift * cover * tint[:, None, None]
    canvas.mask[foreground] = 1


def _vessels(canvas: Canvas, objects: float) -> None:
    """Branching dark curves of 1 to 5 pixels; dark spots and faint folds are not vessels."""
    rng, size = canvas.rng, canvas.size
    ground = np.array([0.78, 0.47, 0.30], dtype=np.float32)
    dark = np.array([0.52, 0.20, 0.14], dtype=np.float32)
    canvas.colours += ground[:, None, None] * (1 + 0.06 * canvas.texture(30, 12, 6))
    for _ in range(rng.poisson(5 * objects)):
        x, y = rng.uniform(0, size, 2)
        spot = canvas.patch(x, y, rng.uniform(2.5, 7), wobble=0.3, squash=rng.uniform(0.6, 1))
        canvas.blend(spot * np.float32(rng.uniform(0.4, 0.8)), dark)
    for _ in range(rng.poisson(2 * objects)):
        x, y = rng.uniform(0.1, 0.9, 2) * size
        glow = canvas.patch(x, y, rng.uniform(4, 9), wobble=0.2, squash=0.8)
        canvas.blend(glow * np.float32(0.5), np.array([0.95, 0.85, 0.6], dtype=np.float32))
    folds = canvas.texture(7, 4)
    canvas.colours *= 1 - 0.10 * np.exp(-((folds / 0.12) ** 2))

    strokes: list[Stroke] = []
    for _ in range(max(1, round(rng.uniform(1.6, 3.4) * objects))):
        side = rng.integers(4)
        along = rng.uniform(0.1, 0.9) * size
        x, y = ((0, along), (size, along), (along, 0), (along, size))[side]
        heading = math.atan2(size / 2 - y, size / 2 - x) + rng.normal(0, 0.35)
        strokes += _branch(canvas, x, y, heading, rng.uniform(3.0, 4.8))
    cover = canvas.lines(*strokes)
    canvas.mask[cover >= 0.45] = 1
    strength = np.clip(0.62 + 0.16 * canvas.texture(20), 0.3, 0.9).astype(np.float32)
    canvas.blend(cover * strength, dark)


def _branch(
    canvas: Canvas, x: float, y: float, heading: float, width: float, depth: int = 0
) -> Iterator[Stroke]:
    """One branch and those that leave it, thinner at every fork."""
    rng, size, bend = canvas.rng, canvas.size, 0.0
    points = [(x, y)]
    for step in range(200):
        bend = 0.8 * bend + rng.normal(0, 0.06)
        heading += bend
        x, y = x + 3 * math.cos(heading), y + 3 * math.sin(heading)
        points.append((x, y))
        if not (-4 <= x <= size + 4 and -4 <= y <= size + 4):
            break
        if len(points) % 4 == 0:
            yield np.array(points, dtype=np.float32), width
            points = points[-1:]
            width *= 0.97
        if depth < 4 and step > 4 and width > 1.2 and rng.random() < 0.075:
            fork = rng.choice((-1, 1)) * rng.uniform(0.5, 1.0)
            yield from _branch(canvas, x, y, heading + fork, width * 0.72, depth + 1)
            width *= 0.9
        if width < 0.9 or (depth > 1 and rng.random() < 0.02):
            break
    if len(points) > 1:
        yield np.array(points, dtype=np.float32), width


def _corners(kind: str, x: float, y: float, radius: float, turn: float) -> Field:
    if kind == "star":
        angle = turn + np.arange(10) * np.pi / 5
        reach = np.where(np.arange(10) % 2 == 0, radius, 0.45 * radius)
    else:
        count, scale = {"square": (4, 1.15), "triangle": (3, 1.3), "disc": (32, 1.0)}[kind]
        angle = turn + np.arange(count) * 2 * np.pi / count
        reach = np.full(count, radius * scale)
    points = np.stack((x + reach * np.cos(angle), y + reach * np.sin(angle)), axis=1)
    return points.astype(np.float32)


def _surface(canvas: Canvas, ground: Field) -> Field:
    """A colour that is neither the ground's nor a sign of the class, slightly uneven."""
    away = canvas.rng.standard_normal(3)
    away *= canvas.rng.uniform(0.2, 0.4) / np.linalg.norm(away)
    colour = np.clip(ground + away, 0.05, 0.95).astype(np.float32)
    return colour[:, None, None] + 0.05 * canvas.texture(9, 4)


def _ground(canvas: Canvas) -> Field:
    colour = canvas.rng.uniform(0.32, 0.62, 3).astype(np.float32)
    canvas.colours += colour[:, None, None]
    canvas.colours += 0.045 * canvas.texture(28, 11, 5)
    canvas.colours += 0.02 * np.stack([canvas.texture(16) for _ in range(3)])
    return colour


def _classes(canvas: Canvas, objects: float) -> None:
    """Discs, squares, triangles, striped patches and, in some scenes, a tiny star."""
    rng, size = canvas.rng, canvas.size
    ground = _ground(canvas)
    amount = objects * (size / 128) ** 2
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    kinds = list(rng.choice(("disc", "square", "triangle", "stripes"), 2 + rng.poisson(6 * amount)))
    kinds += ["smudge"] * int(rng.poisson(3 * amount))
    rng.shuffle(kinds)
    kinds += ["star"] * int(rng.poisson(0.6 * amount))  # on top: a rare one must not be covered
    for kind in kinds:
        x, y = rng.uniform(0.04, 0.96, 2) * size
        turn = rng.uniform(0, 2 * np.pi)
        surface = _surface(canvas, ground)
        if kind == "smudge":
            spot = canvas.patch(x, y, rng.uniform(6, 14), wobble=0.5, squash=rng.uniform(0.5, 1))
            canvas.blend(_blurred(spot[None], 2.5)[0], surface)
            continue
        if kind == "stripes":
            cover = canvas.patch(x, y, rng.uniform(9, 16), wobble=0.25, squash=rng.uniform(0.6, 1))
            wave = np.sin((columns * np.cos(turn) + rows * np.sin(turn)) * rng.uniform(1.0, 1.5))
            canvas.blend(cover * (0.5 + 0.5 * wave).astype(np.float32), surface)
        else:
            radius = rng.uniform(3.0, 4.4) if kind == "star" else rng.uniform(5, 12)
            cover = canvas.polygon(_corners(kind, x, y, radius, turn))
            canvas.blend(cover, surface)
        canvas.mask[cover >= 0.5] = _CLASS_OF[kind]


def _void(canvas: Canvas, objects: float) -> None:
    """Discs, squares and triangles whose borders, and some patches, nobody labelled."""
    rng, size = canvas.rng, canvas.size
    ground = _ground(canvas)
    amount = objects * (size / 128) ** 2
    void = np.zeros((size, size), dtype=bool)
    for _ in range(2 + rng.poisson(5 * amount)):
        kind = str(rng.choice(("disc", "square", "triangle")))
        x, y = rng.uniform(0.04, 0.96, 2) * size
        points = _corners(kind, x, y, rng.uniform(7, 17), rng.uniform(0, 2 * np.pi))
        cover = canvas.polygon(points)
        canvas.blend(cover, _surface(canvas, ground))
        border = canvas.lines((np.concatenate((points, points[:2])), 3))
        canvas.mask[cover >= 0.5] = _CLASS_OF[kind]
        void = (void & (cover < 0.5)) | (border >= 0.5)
    for _ in range(rng.poisson(0.5 * amount)):
        x, y = rng.uniform(0, size, 2)
        void |= canvas.patch(x, y, rng.uniform(6, 12), wobble=0.4, squash=0.7) >= 0.5
    canvas.mask[void] = VOID


_SHAPES = ("background", "disc", "square", "triangle", "stripes", "star")
_CLASS_OF = {name: index for index, name in enumerate(_SHAPES)}


@dataclass(frozen=True)
class Kind:
    """A kind of scenes: what they show, in words, their classes, background first, their optics."""

    paint: Painter
    about: str
    class_names: tuple[str, ...]
    light: float
    blur: float
    noise: float = 0.05
    has_void: bool = False


_SMALL, _THIN = "small bright blobs on textured ground", "thin branching vessels"
_RARE = "shapes of five classes, the star tiny and rare"
_UNLABELLED = "shapes of three classes with void borders and patches"
_KINDS = {
    "blobs": Kind(_blobs, _SMALL, ("background", "blob"), light=0.28, blur=0.7, noise=0.045),
    "vessels": Kind(_vessels, _THIN, ("background", "vessel"), light=0.25, blur=0.6),
    "classes": Kind(_classes, _RARE, _SHAPES, light=0.22, blur=0.6),
    "void": Kind(_void, _UNLABELLED, _SHAPES[:4], light=0.22, blur=0.8, has_void=True),
}
