"""Two ranks with half the batch each give the gradient of one rank with the whole."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from denseloss import distributed, functional
from denseloss.compose import names, parse
from denseloss.testing import example
from tests.processes import each_rank

SEGMENTATION = ["cross_entropy", "balanced_cross_entropy", "focal", "dice(pool='batch')", "dice"]
SEGMENTATION += ["jaccard(pool='batch', absent='skip')", "tversky(pool='batch')"]
SEGMENTATION += ["cross_entropy + dice(pool='batch')"]
BINARY = ["binary_cross_entropy", "binary_focal", "binary_dice(pool='batch')", "structure"]
BINARY += ["structure(variant='released')"]
# What each rank counts, and what the sum is then divided by.
COUNTS = [((3, 2), 5), ((0, 4), 4), ((0, 0), 1), ((0.25, 0.5), 1)]


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels and masks whose halves hold different numbers of valid pixels."""
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 3, 6, 5, generator=g, dtype=torch.float64)
    target = torch.randint(0, 3, (4, 6, 5), generator=g)
    target[0, :4] = -100
    target[2:][target[2:] == 2] = 0  # a class on one rank only
    masks = functional.one_hot(target, 3)
    masks[0, :, :4] = 255
    return logits, target, masks


def options(text: str) -> dict[str, int]:
    return {"ignore_index": 255} if text in BINARY else {}


def rank_main(rank: int) -> dict[str, tuple[torch.Tensor, ...]]:
    logits, target, masks = batch()
    half = slice(2 * rank, 2 * rank + 2)
    found = {}
    for text in SEGMENTATION + BINARY:
        truth = masks if text in BINARY else target
        z = logits[half].clone().requires_grad_()
        with distributed.exact():
            loss = parse(text)(z, truth[half], **options(text))
        loss.backward()
        found[text] = (loss.detach(), z.grad)
    for counts, _ in COUNTS:
        for count in (counts[rank], torch.tensor(counts[rank])):
            z = logits[half].clone().requires_grad_()
            with distributed.exact():
                loss = functional.binary_focal_loss(z, masks[half], ignore_index=255, count=count)
            loss.backward()
            found[f"{counts} {type(count).__name__}"] = (loss.detach(), z.grad)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[torch.Tensor, ...]]]:
    return each_rank(rank_main, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("text", SEGMENTATION + BINARY)
def test_two_ranks_equal_one(text: str, ranks) -> None:
    logits, target, masks = batch()
    z = logits.requires_grad_()
    loss = parse(text)(z, masks if text in BINARY else target, **options(text))
    loss.backward()
    values = torch.stack([rank[text][0] for rank in ranks])
    torch.testing.assert_close(values.mean(), loss.detach())
    # DDP averages the gradients of the ranks: each image's is half of what its rank holds.
    grads = torch.cat([rank[text][1] for rank in ranks]) / 2
    torch.testing.assert_close(grads, z.grad)


@pytest.mark.parametrize(("counts", "divisor"), COUNTS)
def test_counts_are_summed_over_ranks_and_then_at_least_1(counts, divisor, ranks) -> None:
    logits, _, masks = batch()
    z = logits.requires_grad_()
    loss = functional.binary_focal_loss(z, masks, ignore_index=255, reduction="sum") / divisor
    loss.backward()
    for key in (f"{counts} {type(counts[0]).__name__}", f"{counts} Tensor"):
        values = torch.stack([rank[key][0] for rank in ranks])
        torch.testing.assert_close(values.mean(), loss.detach())
        grads = torch.cat([rank[key][1] for rank in ranks]) / 2
        torch.testing.assert_close(grads, z.grad)


def test_exact_does_nothing_without_ranks() -> None:
    logits, target, _ = batch()
    with distributed.exact():
        value = functional.cross_entropy_loss(logits, target)
    assert torch.equal(value, functional.cross_entropy_loss(logits, target))


@pytest.mark.parametrize("name", sorted(names()))
def test_accumulated_sums_equal_one_batch(name: str) -> None:
    loss = names()[name]()
    inputs = list(example(loss.function, dtype=torch.float64).values())
    if name == "balanced_cross_entropy":
        pytest.skip("its class weights are those of the batch that it sees")
    first = inputs[0].requires_grad_()
    (wanted,) = torch.autograd.grad(loss(*inputs), first)
    parts = [[x[:1] for x in inputs], [x[1:] for x in inputs]]
    pairs = [distributed.sum_and_count(loss, *part) for part in parts]
    total = sum(pair.sum for pair in pairs) / sum(pair.count for pair in pairs)
    torch.testing.assert_close(total, loss(*inputs))
    (grad,) = torch.autograd.grad(total, first)
    torch.testing.assert_close(grad, wanted)


@pytest.mark.parametrize(
    "text",
    [
        "dice(pool='batch')",
        "binary_dice(pool='batch')",
        "balanced_cross_entropy",
        "structure(variant='released')",
        "cross_entropy + jaccard(pool='batch')",
    ],
)
def test_what_pools_a_batch_cannot_be_accumulated(text: str) -> None:
    logits, target, masks = batch()
    truth = masks if "binary" in text or "structure" in text else target
    with pytest.raises(ValueError, match="pools the whole batch"):
        distributed.sum_and_count(parse(text), logits, truth)


# ---------------------------------------------------------------- DDP and FSDP2

WRAPPED = {  # one for each kind of reduction
    "mean": lambda z, t: parse("cross_entropy")(z, t),
    "means": lambda z, t: parse("cross_entropy + 0.5*dice + focal")(z, t),
    "pooled sums": lambda z, t: parse("dice(pool='batch')")(z, t),
    "batch-wide": lambda z, t: parse("structure(variant='released', window=3)")(
        z, (t > 0)[:, None]
    ),
    "balanced": lambda z, t: parse("balanced_cross_entropy")(z, t),
    "count": lambda z, t: functional.focal_loss(z, t, count=(t == 1).sum()),
}


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(7)
    images, labels = (
        torch.randn(4, 2, 6, 5, generator=g),
        torch.randint(0, 3, (4, 6, 5), generator=g),
    )
    labels[0, :5] = -100
    return images.double(), labels


def network(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    last = 1 if kind == "batch-wide" else 3
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.Conv2d(4, last, 1)
    ).double()


def ddp(model: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.parallel.DistributedDataParallel(model)


def fsdp2(model: torch.nn.Module) -> torch.nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=dist.init_device_mesh("cpu", (2,)))


def wrapped_main(rank: int, *, wrap: Callable[..., torch.nn.Module]) -> dict[str, list]:
    images, labels = (x[:1] if rank == 0 else x[1:] for x in scene())
    found = {}
    for kind, criterion in WRAPPED.items():
        model = network(kind)
        called = wrap(model)
        with distributed.exact():
            criterion(called(images), labels).backward()
        grads = [p.grad for p in model.parameters()]
        found[kind] = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]
    return found


@pytest.mark.parametrize("wrap", [ddp, fsdp2])
def test_gradients_are_exact_under_ddp_and_fsdp2(wrap, tmp_path: Path) -> None:
    if wrap is fsdp2 and not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("FSDP2 of torch 2.6 needs events of streams, which its CPU has none of")
    images, labels = scene()
    for found in each_rank(functools.partial(wrapped_main, wrap=wrap), 2, tmp_path):
        for kind, grads in found.items():
            model = network(kind)
            WRAPPED[kind](model(images), labels).backward()
            torch.testing.assert_close(grads, [p.grad for p in model.parameters()])


def outside_main(rank: int) -> None:
    group = dist.new_group([0])
    logits, target, _ = batch()
    if rank == 0:
        with distributed.exact(group):
            value = functional.cross_entropy_loss(logits, target)
        assert torch.equal(value, functional.cross_entropy_loss(logits, target))
    else:
        with (
            pytest.raises(ValueError, match="rank 1 is not in the group"),
            distributed.exact(group),
        ):
            raise AssertionError("entered")


def test_a_rank_outside_the_group_is_refused(tmp_path: Path) -> None:
    each_rank(outside_main, 2, tmp_path)
