"""Exact over ranks: every public loss on uneven, void, empty and differently laid out ranks.

The values of the ranks average to the loss of one process with the whole batch, and so do their
gradients. Every rank issues the same collectives, whichever version of a quantity it runs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denseloss import AtTargetSize, DeepSupervision, distributed
from denseloss.compose import names, parse
from denseloss.contract import arguments, kinds
from denseloss.testing import example
from tests.processes import each_rank

# What each rank holds of four images: uneven, and one of three holds nothing.
SPLITS = {2: (1, 3), 3: (1, 0, 3)}
SEGMENTATION = [["Logits", "ClassMap"], ["Logits", "Masks"]]
SUMS = ["cross_entropy + dice(pool='batch')", "balanced_cross_entropy + 0.5*jaccard + focal"]
SUMS += ["binary_cross_entropy + binary_dice(pool='batch')", "binary_focal + structure"]


def variants(name: str) -> Iterator[str]:
    """A loss with its defaults, and with every word that it knows."""
    yield name
    stated = arguments(names()[name].function)
    for option, argument in stated.items():
        if argument.choices is None or option == "reduction":
            continue
        for word in argument.choices:
            yield f"{name}({option}={word!r})"
    if "pool" in stated:
        yield f"{name}(pool='batch', absent='skip', smooth=0)"


TEXTS = [text for name in names() for text in variants(name)] + SUMS
# Colours of 0 to 255 saturate its fourth power, and the gradient is 0, unless σ is as large.
TEXTS.append("ncut(variant='class_mean', sigma_intensity=3e4)")


def inputs(text: str, dtype: torch.dtype) -> list[Tensor]:
    """A batch of four whose images differ in what counts: one channel has no valid pixel."""
    loss = next(iter(parse(text).losses.values())).function
    sizes = {"n": 4, "c": 3, "*s": (6, 5), "*m": (4,), "k": 5}
    if "n" not in str(next(iter(kinds(loss).values())).notation):
        sizes["*s"] = (4, 5)  # images are the first of the free axes
    first, *rest = example(loss, sizes=sizes, dtype=dtype, seed=5).values()
    if kinds(loss).get("target") is not None and rest[0].dtype == torch.long:
        rest[0][0, :4] = -100
        rest[0][2:][rest[0][2:] == 2] = 0  # a class on one rank only
    return [first, *rest]


def criteria(text: str) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {"plain": parse(text)}
    loss = next(iter(found["plain"].losses.values())).function
    if [kind.name for kind in kinds(loss).values()][:2] in SEGMENTATION:
        found["at target size"] = AtTargetSize(parse(text))
        found["deep supervision"] = DeepSupervision(parse(text))
    return found


def called(kind: str, criterion: nn.Module, given: list[Tensor], options: dict[str, Any]) -> Tensor:
    first, *rest = given
    if kind == "deep supervision":
        return criterion([first, 0.5 * first[:, :, ::2, ::2]], *rest, **options)
    if kind == "at target size":
        return criterion(first[:, :, ::2, ::2], *rest, **options)
    return criterion(*given, **options)


def weights(text: str, given: list[Tensor]) -> list[dict[str, Any]]:
    """Nothing; a divisor; a weight that leaves the first image (a whole rank) without a pixel."""
    loss = next(iter(parse(text).losses.values())).function
    count = {"count": torch.tensor(6.0)}
    if "weight" not in kinds(loss):
        return [{}, count]
    first = given[0]
    shape = {
        "PixelWeight": (4, *first.shape[2:]),
        "BoxWeight": first.shape[:-1],
    }.get(kinds(loss)["weight"].name, given[1].shape)
    w = torch.linspace(0.5, 1.5, 4, dtype=first.dtype).reshape(-1, *[1] * (len(shape) - 1))
    w[0] = 0
    return [{}, count, {"weight": w.expand(shape)}]


def part(x: Any, rank: int, world: int) -> Any:
    """What a rank has of images, or its own share of a divisor."""
    if x.ndim == 0:
        return x * SPLITS[world][rank] / sum(SPLITS[world])
    start = sum(SPLITS[world][:rank])
    return x[start : start + SPLITS[world][rank]]


def work(world: int) -> Iterator[tuple[str, str, int, torch.dtype]]:
    for text in TEXTS:
        for kind in criteria(text):
            for which in range(len(weights(text, inputs(text, torch.float64)))):
                for dtype in (torch.float64, torch.float32):
                    yield text, kind, which, dtype


def rank_main(rank: int, *, world: int) -> dict[Any, Any]:
    found = {}
    for key in work(world):
        text, kind, which, dtype = key
        whole = inputs(text, dtype)
        options = {k: part(w, rank, world) for k, w in weights(text, whole)[which].items()}
        first, *rest = (part(x, rank, world) for x in whole)
        leaf = first.clone().requires_grad_()
        given = leaf
        if rank == 0:  # the same numbers in another layout: the definition runs on this rank alone
            given = torch.stack([leaf, leaf], -1)[..., 0]
        try:
            with distributed.exact():
                loss = called(kind, criteria(text)[kind], [given, *rest], options)
            loss.backward()
            found[key] = (loss.detach().double(), leaf.grad.double())
        except ValueError as error:
            found[key] = str(error)
    return found


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    work = functools.partial(rank_main, world=request.param)
    return each_rank(work, request.param, tmp_path_factory.mktemp("ranks"), seconds=300)


@pytest.mark.parametrize("text", TEXTS)
def test_ranks_equal_one_process(text: str, ranks) -> None:
    for key in (k for k in ranks[0] if k[0] == text):
        _, kind, which, dtype = key
        whole = inputs(text, dtype)
        leaf = whole[0].clone().requires_grad_()
        options = weights(text, whole)[which]
        loss = called(kind, criteria(text)[kind], [leaf, *whole[1:]], options)
        loss.backward()
        answers = [rank[key] for rank in ranks]
        if any(isinstance(answer, str) for answer in answers):
            assert len(set(map(str, answers))) == 1, answers  # refused, on all ranks alike
            continue
        error = 1e-9 if dtype == torch.float64 else 2e-6
        value = torch.stack([answer[0] for answer in answers]).mean()
        assert abs(value - loss) <= error * max(1, abs(loss)), (key, value, loss)
        grad = torch.cat([answer[1] for answer in answers]) / len(ranks)
        gap = (grad - leaf.grad).abs().max()
        assert gap <= error * leaf.grad.abs().max().clamp_min(1e-3), (key, gap)
