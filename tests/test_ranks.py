"""Exact over ranks: every public loss on uneven, void, empty ranks, of other layouts and dtypes.

The values of the ranks average to the loss of one process with the whole batch, and so do their
gradients. Every rank issues the same collectives, whichever version of a quantity it runs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from denseloss import AtTargetSize, DeepSupervision, WeightedSum, distributed
from denseloss.compose import names, parse
from denseloss.contract import arguments, kinds
from denseloss.testing import example
from tests.calls import worded
from tests.processes import each_rank


class Case(NamedTuple):
    """How the ranks differ from each other."""

    splits: dict[int, tuple[int, ...]]
    """how many of four images each rank holds, by the number of ranks"""
    scenes: tuple[str, ...] = ("plain", "count")
    """what counts, see `draw`"""
    dtypes: tuple[torch.dtype, ...] = (torch.float64,)
    """of the first rank, the second, and so on; the last goes on"""
    strided: int | None = None
    """the rank whose first tensor is laid out otherwise, so that the definition runs there"""

    def dtype(self, rank: int) -> torch.dtype:
        return self.dtypes[min(rank, len(self.dtypes) - 1)]


UNEVEN = {2: (1, 3), 3: (1, 2, 1)}
MIXED = Case({2: (1, 3), 3: (1, 0, 3)}, ("plain", "count", "void image"), strided=0)
ERRORS = {torch.bfloat16: 2**-7, torch.float32: 2e-6, torch.float64: 1e-9}
"""How far a gradient may be from that of one process, relative to the largest, in the coarsest
dtype of the ranks."""
CASES = {
    "float64": MIXED,
    "float32": MIXED._replace(dtypes=(torch.float32,)),
    "bfloat16 and float32": Case(UNEVEN, dtypes=(torch.bfloat16, torch.float32)),
    "float32 and float64": Case(UNEVEN, dtypes=(torch.float32, torch.float64)),
    "float64 and bfloat16": Case(UNEVEN, dtypes=(torch.float64, torch.bfloat16)),
}
EACH = {
    "uneven": Case(UNEVEN),
    "a void channel": Case(UNEVEN, ("void channel",)),
    "a rank without a valid pixel": Case(UNEVEN, ("void image", "void labels")),
    "a rank with nothing": Case({2: (0, 4), 3: (3, 0, 1)}),
    "a rank laid out otherwise": Case(UNEVEN, strided=1),
}
GROUPS = {"all at once": CASES, "one by one": EACH}
SEGMENTATION = [["Logits", "ClassMap"], ["Logits", "Masks"]]
SUMS = ["cross_entropy + dice(pool='batch')", "balanced_cross_entropy + 0.5*jaccard + focal"]
SUMS += ["binary_cross_entropy + binary_dice(pool='batch')", "binary_focal + structure"]


def variants() -> Iterator[str]:
    """Each loss with its defaults, and with every other word that it knows."""
    for name, options in worded():
        if "reduction" not in options:
            said = ", ".join(f"{option}={word!r}" for option, word in options.items())
            yield f"{name.removesuffix('_loss')}({said})"
        if "pool" in options:
            yield f"{name.removesuffix('_loss')}(pool='batch', absent='skip', smooth=0)"


TEXTS = [*variants(), *SUMS]
# Colours of 0 to 255 saturate its fourth power, and the gradient is 0, unless σ is as large.
TEXTS.append("ncut(variant='class_mean', sigma_intensity=3e4)")


def inputs(text: str, dtype: torch.dtype) -> list[Tensor]:
    """A batch of four whose images differ in what counts: one channel has no valid pixel."""
    loss = function(text)
    sizes = {"n": 4, "c": 3, "*s": (6, 5), "*m": (4,), "k": 5}
    if "n" not in str(next(iter(kinds(loss).values())).notation):
        sizes["*s"] = (4, 5)  # images are the first of the free axes
    first, *rest = example(loss, sizes=sizes, dtype=dtype, seed=5).values()
    if kinds(loss).get("target") is not None and rest[0].dtype == torch.long:
        rest[0][0, :4] = -100
        rest[0][2:][rest[0][2:] == 2] = 0  # a class on one rank only
    return [first, *rest]


def draw(text: str, what: str, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Any]] | None:
    """The tensors of the whole batch and the options; None where the loss has no such thing."""
    loss = function(text)
    given = inputs(text, dtype)
    if what == "plain":
        return given, {}
    if what == "count":
        return given, {"count": torch.tensor(6.0)}
    if what == "void labels":  # of the first image, which is a whole rank
        if "ignore_index" not in arguments(loss):
            return None
        labels = given[1].dtype == torch.long
        given[1][0] = -100 if labels else 255
        return given, {} if labels else {"ignore_index": 255}
    if "weight" not in kinds(loss):
        return None
    first = given[0]
    shape = {
        "PixelWeight": (4, *first.shape[2:]),
        "BoxWeight": first.shape[:-1],
    }.get(kinds(loss)["weight"].name, given[1].shape)
    w = torch.linspace(0.5, 1.5, 4, dtype=first.dtype).reshape(-1, *[1] * (len(shape) - 1))
    w = w.repeat(1, *shape[1:])
    if what == "void image":
        w[0] = 0
    elif given[1].dtype == torch.long:
        w[given[1] == 1] = 0
    elif w.shape[:2] == first.shape[:2]:
        w[:, 1] = 0
        w[0, 2] = 0  # on the first rank alone
    else:
        return None
    return given, {"weight": w}


def function(text: str) -> Any:
    return next(iter(parse(text).losses.values())).function


def criteria(text: str) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {"plain": parse(text)}
    if [kind.name for kind in kinds(function(text)).values()][:2] in SEGMENTATION:
        found["at target size"] = AtTargetSize(parse(text))
        found["deep supervision"] = DeepSupervision(parse(text))
    return found


def in_a_sum(criterion: WeightedSum) -> WeightedSum:
    """The loss beside another that takes the same tensors, or beside itself."""
    terms = {name: (weight, loss) for name, weight, loss in criterion.named_terms()}
    first, (_, loss) = next(iter(terms.items()))
    others = [x for x in names() if x not in terms and takes(names()[x]) == takes(loss)]
    return WeightedSum(**terms, other=(0.5, names()[next(iter(others), first)]()))


def takes(loss: Any) -> list[str]:
    """The tensors that are given to every term of a sum."""
    stated = arguments(loss.function)
    found = kinds(loss.function).items()
    return [str(kind) for name, kind in found if stated[name].required or name == "weight"]


def called(kind: str, criterion: nn.Module, given: list[Tensor], options: dict[str, Any]) -> Tensor:
    first, *rest = given
    if kind == "deep supervision":
        return criterion([first, 0.5 * first[:, :, ::2, ::2]], *rest, **options)
    if kind == "at target size":
        return criterion(first[:, :, ::2, ::2], *rest, **options)
    return criterion(*given, **options)


class Call(NamedTuple):
    text: str
    kind: str
    what: str
    case: str


def work(which: str, texts: Sequence[str] = TEXTS) -> Iterator[tuple[Call, Case, nn.Module]]:
    for text in texts:
        made = criteria(text)
        if which == "one by one":
            made["a sum"] = in_a_sum(parse(text))
        for name, case in GROUPS[which].items():
            for what in case.scenes:
                if draw(text, what, torch.float64) is not None:
                    for kind, criterion in made.items():
                        yield Call(text, kind, what, name), case, criterion


def held(call: Call, case: Case, rank: int, world: int) -> tuple[list[Tensor], dict[str, Any]]:
    """What a rank has of the images, and its own share of a divisor; in its dtype."""
    dtype = case.dtype(rank)
    splits = case.splits[world]
    start = sum(splits[:rank])

    def part(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x.ndim == 0:
            return x * splits[rank] / sum(splits)
        mine = x[start : start + splits[rank]]
        return mine.to(dtype) if mine.is_floating_point() else mine

    drawn = draw(call.text, call.what, torch.float32 if len(case.dtypes) > 1 else dtype)
    assert drawn is not None
    given, options = drawn
    return [part(x) for x in given], {name: part(x) for name, x in options.items()}


def rank_main(rank: int, *, world: int, which: str) -> dict[Any, Any]:
    found = {}
    for call, case, criterion in work(which):
        (first, *rest), options = held(call, case, rank, world)
        leaf = first.clone().requires_grad_()
        given = leaf
        if rank == case.strided:
            given = torch.stack([leaf, leaf], -1)[..., 0]
        try:
            with distributed.exact():
                loss = called(call.kind, criterion, [given, *rest], options)
            loss.backward()
            found[tuple(call)] = (loss.detach().double(), leaf.grad.double())
        except ValueError as error:
            found[tuple(call)] = str(error)
    return found


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((world, which), marks=[pytest.mark.slow] * (which == "one by one"))
        for which in GROUPS
        for world in (2, 3)
    ],
    ids=lambda param: f"{param[0]} ranks, {param[1]}",
)
def ranks(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[Any, Any]]]:
    world, which = request.param
    work = functools.partial(rank_main, world=world, which=which)
    return which, each_rank(work, world, tmp_path_factory.mktemp("ranks"), seconds=600)


@pytest.mark.parametrize("text", TEXTS)
def test_ranks_equal_one_process(text: str, ranks) -> None:
    which, answered = ranks
    world = len(answered)
    for call, case, criterion in work(which, [text]):
        answers = [rank[call] for rank in answered]
        if any(isinstance(answer, str) for answer in answers):
            assert len(set(map(str, answers))) == 1, answers  # refused, on all ranks alike
            continue
        parts = [held(call, case, rank, world) for rank in range(world)]
        given = [torch.cat(tensors) for tensors in zip(*(part[0] for part in parts), strict=True)]
        options = {name: whole([part[1][name] for part in parts]) for name in parts[0][1]}
        leaf = given[0].requires_grad_()
        loss = called(call.kind, criterion, [leaf, *given[1:]], options)
        loss.backward()
        error = max(ERRORS[dtype] for dtype in case.dtypes)
        value = torch.stack([answer[0] for answer in answers]).mean()
        # sums are of float32 at least
        assert abs(value - loss) <= min(error, 2e-6) * max(1, abs(loss)), (call, value, loss)
        grad = torch.cat([answer[1] for answer in answers]) / world
        gap = (grad - leaf.grad).abs().max()
        assert gap <= error * leaf.grad.abs().max().clamp_min(1e-3), (call, gap)


def whole(shares: list[Any]) -> Any:
    """An option of the whole batch from what each rank has of it."""
    if not isinstance(shares[0], Tensor):
        return shares[0]
    return torch.stack(shares).sum(0) if shares[0].ndim == 0 else torch.cat(shares)
