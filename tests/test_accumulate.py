"""The gradient of a batch from its parts: every loss, sums, resized and deeply supervised."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denseloss import AtTargetSize, DeepSupervision, distributed, functional
from denseloss.compose import names, parse
from denseloss.distributed import accumulate, sum_and_count
from denseloss.testing import example
from tests.processes import each_rank
from tests.test_ranks import MIXED, TEXTS, criteria, draw, inputs

EXAMPLES = Path(__file__).parents[1] / "examples"
POOLED = ("pool='batch'", "balanced", "released", "class_mean")
# ciou(variant='released') pools nothing: its gradient is another one.
EXACT = [t for t in TEXTS if t.startswith("ciou") or not any(word in t for word in POOLED)]
SUMS = ["cross_entropy + 0.5*dice", "binary_cross_entropy + binary_dice - 0.1*binary_focal"]
SPLITS = [(4,), (1, 3), (2, 1, 1)]


class Hands(nn.Module):
    """A model that hands out what it is given, so that gradients show at its inputs."""

    def forward(self, *outputs: Tensor) -> Any:
        return outputs[0] if len(outputs) == 1 else list(outputs)


def gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("text", EXACT + SUMS)
def test_parts_equal_one_batch(text: str) -> None:
    for kind, criterion in criteria(text).items():
        for what in MIXED.scenes:
            drawn = draw(text, what, torch.float64)
            if drawn is None:
                continue
            (first, *rest), options = drawn
            maps = [first]
            if kind != "plain":
                small = first[:, :, ::2, ::2].contiguous()
                maps = [small] if kind == "at target size" else [first, 0.5 * small]
            maps = [x.clone().requires_grad_() for x in maps]
            outputs = maps if kind == "deep supervision" else maps[0]
            whole = criterion(outputs, *rest, **options)
            wanted = gradients(whole, maps)
            for split in SPLITS:
                each = [x.split(split) for x in maps]
                batches = [
                    (
                        tuple(x[i] for x in each) if len(maps) > 1 else each[0][i],
                        rest[0].split(split)[i],
                        {
                            k: w.split(split)[i] if w.ndim else w * split[i] / sum(split)
                            for k, w in options.items()
                        },
                    )
                    for i in range(len(split))
                ]
                found = [torch.zeros_like(x) for x in maps]
                value = torch.zeros((), dtype=torch.float64)
                for loss in accumulate(Hands(), criterion, batches):
                    value += loss.detach()
                    for total, grad in zip(found, gradients(loss, maps), strict=True):
                        total += grad
                torch.testing.assert_close(value, whole.detach())
                for got, want in zip(found, wanted, strict=True):
                    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("text", [t for t in TEXTS if t not in EXACT and "distribution" not in t])
def test_what_pools_is_refused(text: str) -> None:
    first, *rest = inputs(text, torch.float64)
    for kind, criterion in criteria(text).items():
        given = [first, first] if kind == "deep supervision" else first
        with pytest.raises(ValueError, match="pools the whole batch"):
            sum_and_count(criterion, given, *rest)
        model = Hands()
        batch = tuple(given) if isinstance(given, list) else given
        with pytest.raises(ValueError, match="pools the whole batch"):
            next(iter(accumulate(model, criterion, [(batch, rest[0])])))


# ---------------------------------------------------------------- sum_and_count

Z = torch.randn(4, 3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.randint(0, 3, (4, 6, 5), generator=torch.Generator().manual_seed(1))
T[0, :4] = -100


def test_a_sum_is_a_pair_for_each_mean() -> None:
    z = Z.clone().requires_grad_()
    criterion = parse("cross_entropy + 0.5*dice - focal(gamma=1)")
    pairs = [sum_and_count(criterion, z[i : i + 2], T[i : i + 2]) for i in (0, 2)]
    assert pairs[0].sum.shape == pairs[0].count.shape == (3,)
    total = (sum(p.sum for p in pairs) / sum(p.count for p in pairs)).sum()
    torch.testing.assert_close(total, criterion(z, T))
    torch.testing.assert_close(gradients(total, [z]), gradients(criterion(z, T), [z]))
    with torch.no_grad():
        assert not sum_and_count(criterion, z, T).sum.requires_grad


def test_a_users_function_is_looked_through() -> None:
    def mine(logits: Tensor, target: Tensor) -> Tensor:
        return 2 * functional.dice_loss(logits, target) + functional.cross_entropy_loss(
            logits / 2, target
        )

    pair = sum_and_count(mine, Z, T)
    torch.testing.assert_close((pair.sum / pair.count).sum(), mine(Z, T))


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (nn.CrossEntropyLoss(), "CrossEntropyLoss takes no mean of this library"),
        (parse("dice(reduction='sum')"), "WeightedSum takes no mean"),
        (lambda z, t: parse("dice")(z, t) + z.square().mean(), "adds something to them"),
        (lambda z, t: parse("dice")(z, t).exp(), "no linear function"),
        (lambda z, t: parse("dice + cross_entropy")(z, t).expand(2), "must be one number"),
    ],
)
def test_what_is_no_sum_of_means_is_refused(loss: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sum_and_count(loss, Z, T)


def test_a_loss_that_needs_the_tensor_is_counted_once() -> None:
    """In a sum, what loses the gradient of shared logits is called again with the tensor."""

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(_: Any, grad: Tensor) -> Tensor:
            return 2 * grad

    class Mine(nn.Module):
        def forward(self, logits: Tensor, target: Tensor, **options: Any) -> Tensor:
            return functional.cross_entropy_loss(Twice.apply(logits), target, **options)

    from denseloss.compose import WeightedSum

    criterion = WeightedSum(mine=Mine(), dice=(0.5, names()["dice"]()))
    z = Z.clone().requires_grad_()
    assert sum_and_count(criterion, z, T).count.tolist() == [(T != -100).sum().item(), 12]


# ---------------------------------------------------------------- counts


def counted(count: Any, batches: Any, **options: Any) -> Tensor:
    """The gradients of a focal loss whose divisor is counted from the masks."""

    def criterion(outputs: Tensor, target: Tensor) -> Tensor:
        return functional.binary_focal_loss(outputs, target, count=count(outputs, target))

    leaf = torch.cat([x for x, _ in batches]).requires_grad_()
    parts = leaf.split([len(x) for x, _ in batches])
    given = [(x, t) for x, (_, t) in zip(parts, batches, strict=True)]
    grad = torch.zeros_like(leaf)
    for loss in accumulate(Hands(), criterion, given, **options):
        grad += torch.autograd.grad(loss, leaf)[0]
    return grad


@pytest.mark.parametrize("positives", [0, 3])
def test_a_divisor_is_summed_and_then_at_least_1(positives: int) -> None:
    masks = torch.zeros(4, 2, 5, dtype=torch.float64)
    masks[3, 0, :positives] = 1
    z = Z[:, :2, :5, 0]
    grad = counted(lambda _, t: t.sum(), [(z[:1], masks[:1]), (z[1:], masks[1:])])
    leaf = z.clone().requires_grad_()
    whole = functional.binary_focal_loss(leaf, masks, count=masks.sum())
    torch.testing.assert_close(grad, gradients(whole, [leaf])[0])


def test_counts_that_depend_on_predictions_need_a_forward_pass() -> None:
    def quality(outputs: Tensor, target: Tensor) -> Tensor:
        return (outputs.detach().sigmoid() * target).sum()

    masks = (Z[:, :2, :5, 0] > 0).double()
    batches = [(Z[:1, :2, :5, 1], masks[:1]), (Z[1:, :2, :5, 1], masks[1:])]
    with pytest.raises(ValueError, match=r'depends on the predictions.*counting="forward"'):
        counted(quality, batches)
    leaf = torch.cat([x for x, _ in batches]).requires_grad_()
    whole = functional.binary_focal_loss(leaf, masks, count=quality(leaf, masks))
    grad = counted(quality, batches, counting="forward")
    torch.testing.assert_close(grad, gradients(whole, [leaf])[0])


def test_a_counting_forward_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5))
    images, labels = Z.float(), T
    seen = []
    for counting in ("targets", "forward"):
        torch.manual_seed(1)
        net[1].reset_running_stats()
        net.zero_grad()
        for loss in accumulate(
            net,
            parse("cross_entropy + dice"),
            [(images[:1], labels[:1]), (images[1:], labels[1:])],
            counting=counting,
        ):
            loss.backward()
        seen.append([net[0].weight.grad.clone(), net[1].running_mean.clone()])
        assert net[1].num_batches_tracked == 2
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one, other)


def test_outputs_may_be_anything_that_the_criterion_takes() -> None:
    net = nn.Conv2d(3, 3, 1).double()

    def model(images: Tensor, scale: float) -> dict[str, Any]:
        return {"out": scale * net(images), "loss": None}

    def criterion(outputs: dict[str, Any], labels: Tensor) -> Tensor:
        return parse("cross_entropy + dice")(outputs["out"], labels)

    whole = gradients(criterion(model(Z, 2.0), T), list(net.parameters()))
    parts = [({"images": Z[:1], "scale": 2.0}, T[:1]), ({"images": Z[1:], "scale": 2.0}, T[1:])]
    for loss in accumulate(model, criterion, parts):
        loss.backward()
    torch.testing.assert_close([p.grad for p in net.parameters()], whole)


def test_parts_of_several_sizes() -> None:
    criterion = AtTargetSize(parse("cross_entropy + dice"))
    net = nn.Conv2d(3, 3, 2, stride=2).double()
    small, large = (Z[:1, :, :4, :4], T[:1, :4, :4]), (Z[1:], T[1:])
    for parts in ([small, large], [large, small]):
        pairs = [sum_and_count(criterion, net(x), t) for x, t in parts]
        whole = (sum(p.sum for p in pairs) / sum(p.count for p in pairs)).sum()
        wanted = gradients(whole, list(net.parameters()))
        net.zero_grad()
        for loss in accumulate(net, criterion, parts):
            loss.backward()
        torch.testing.assert_close([p.grad for p in net.parameters()], wanted)


# ---------------------------------------------------------------- a total that somebody has counted


def test_a_total_of_one_mean() -> None:
    total = (T != -100).sum()
    for given in (total, total.item(), total.float(), [total], total.reshape(1)):
        value = 0
        for i in (0, 2):
            with accumulate(total=given):
                value = value + parse("cross_entropy")(Z[i : i + 2], T[i : i + 2])
        torch.testing.assert_close(value, parse("cross_entropy")(Z, T))


def test_totals_of_several_means_and_steps() -> None:
    criterion = parse("cross_entropy + 0.5*dice")
    total = sum_and_count(criterion, torch.zeros_like(Z), T).count
    for given in (total, total.tolist(), list(total)):
        value = 0
        for i in (0, 2):
            with accumulate(total=given, steps=2):
                value = value + criterion(Z[i : i + 2], T[i : i + 2]) / 2
        torch.testing.assert_close(value, criterion(Z, T))


def test_no_total_changes_nothing() -> None:
    with accumulate(total=None):
        assert torch.equal(parse("dice(pool='batch')")(Z, T), parse("dice(pool='batch')")(Z, T))
    with accumulate():
        pass


def test_totals_must_be_as_many_as_means() -> None:
    too_few = pytest.raises(ValueError, match="total has 1 number, but the loss takes more means")
    with too_few, accumulate(total=3):
        parse("cross_entropy + dice")(Z, T)
    too_many = pytest.raises(ValueError, match="there are 3 totals, but the loss took 2 means")
    with too_many, accumulate(total=[3, 2, 1]):
        parse("cross_entropy + dice")(Z, T)
    unused = pytest.raises(ValueError, match="took 0 means of this library")
    with unused, accumulate(total=3):  # of torch: it has divided by what it counts itself
        nn.CrossEntropyLoss()(Z, T)
    with pytest.raises(ValueError, match="there are 2 totals, but the loss took 1 means"):
        next(iter(accumulate(Hands(), parse("dice"), [(Z, T)], total=[3, 2])))
    # and nothing is left of it
    torch.testing.assert_close(parse("dice")(Z, T), functional.dice_loss(Z, T))


def test_a_total_compiles() -> None:
    criterion = parse("cross_entropy + 0.5*dice")
    compiled = torch.compile(criterion, backend="aot_eager")
    total = sum_and_count(criterion, Z, T).count
    parts = [x.clone().requires_grad_() for x in Z.split(2)]
    value = 0
    for z, t in zip(parts, T.split(2), strict=True):
        with accumulate(total=total):
            value = value + compiled(z, t)
    whole = Z.clone().requires_grad_()
    torch.testing.assert_close(value, criterion(whole, T))
    found = torch.cat(gradients(value, parts))
    torch.testing.assert_close(found, gradients(criterion(whole, T), [whole])[0])


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: list(accumulate(Hands(), parse("dice"), [])), ValueError, "at least one part"),
        (lambda: list(accumulate(Hands(), parse("dice"), [Z])), TypeError, r"\(inputs, target\)"),
        (lambda: accumulate(Hands(), parse("dice")), TypeError, "go together"),
        (lambda: accumulate(total=1, steps=0), ValueError, "steps must be at least 1"),
        (lambda: accumulate(total=1, counting="no"), ValueError, "counting must be"),
        (lambda: list(accumulate(total=1)), TypeError, "a loop needs model"),
        (
            lambda: accumulate(Hands(), parse("dice"), [(Z, T)]).__enter__(),
            TypeError,
            "it is a loop",
        ),
        (
            lambda: list(accumulate(Hands(), nn.CrossEntropyLoss(), [(Z, T)])),
            ValueError,
            "takes no mean of this library",
        ),
    ],
)
def test_mistakes_are_answered(make: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        make()


# ---------------------------------------------------------------- ranks

# How many images each part of each rank holds: uneven, some parts empty.
PARTS = {0: (1, 2), 1: (3,), 2: (1, 0, 1)}
RANKED = ["cross_entropy + 0.5*dice", "binary_focal", "deep", "resized", "counted"]


def ranked(text: str) -> Any:
    if text == "deep":
        return DeepSupervision(parse("cross_entropy + dice"))
    if text == "resized":
        return AtTargetSize(parse("focal"))
    if text == "counted":
        return lambda z, t: functional.binary_focal_loss(z, t, count=t.sum())
    return parse(text)


def scene(text: str) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    images = torch.randn(8, 3, 6, 6, generator=g, dtype=torch.float64)
    labels = torch.randint(0, 3, (8, 6, 6), generator=g)
    labels[4:, :4] = -100
    if text in ("binary_focal", "counted"):
        return images, functional.one_hot(labels, 3).double()
    return images, labels


class Net(nn.Module):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 3, 3, padding=1)
        self.text = text

    def forward(self, x: Tensor) -> Any:
        z = self.net(x)
        if self.text == "deep":
            return [z, z[:, :, ::2, ::2]]
        return z[:, :, ::2, ::2] if self.text == "resized" else z


def net(text: str) -> Net:
    torch.manual_seed(0)
    return Net(text).double()


def rank_main(rank: int) -> dict[Any, Any]:
    found = {}
    sizes = [size for parts in PARTS.values() for size in parts]
    mine = range(
        sum(len(PARTS[r]) for r in range(rank)), sum(len(PARTS[r]) for r in range(rank + 1))
    )
    for text in RANKED:
        model = net(text)
        wrapped = nn.parallel.DistributedDataParallel(model)
        images, labels = (x.split(sizes) for x in scene(text))
        for again in (1, 2):  # the second step starts where the first one left the model
            model.zero_grad()
            parts = [(images[i], labels[i]) for i in mine]
            value = sum(
                (loss.backward(), loss.detach())[1]
                for loss in accumulate(wrapped, ranked(text), parts)
            )
            found[text, again] = (value, [p.grad.clone() for p in model.parameters()])
    try:
        list(accumulate(wrapped, ranked(text), parts if rank != 1 else []))
    except ValueError as error:
        found["empty"] = str(error)
    return found


def test_ranks_and_parts_equal_one_batch(tmp_path: Path) -> None:
    ranks = each_rank(rank_main, 3, tmp_path)
    for text in RANKED:
        model, (images, labels) = net(text), scene(text)
        whole = ranked(text)(model(images), labels)
        wanted = gradients(whole, list(model.parameters()))
        for again in (1, 2):
            values = torch.stack([rank[text, again][0] for rank in ranks])
            torch.testing.assert_close(values.mean(), whole.detach())
            for rank in ranks:
                torch.testing.assert_close(rank[text, again][1], wanted)
    assert all("at least one part" in rank["empty"] for rank in ranks)


# ---------------------------------------------------------------- examples


@pytest.mark.parametrize("trainer", ["ddp", "lightning", "accelerate", "huggingface"])
@pytest.mark.filterwarnings("ignore")  # of the trainers
def test_an_example_is_right_at_1_2_and_4_steps(trainer: str) -> None:
    needs = {"lightning": "lightning", "accelerate": "accelerate", "huggingface": "transformers"}
    if trainer in needs:
        pytest.importorskip(needs[trainer])
    spec = importlib.util.spec_from_file_location(trainer, EXAMPLES / f"accumulate_{trainer}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    whole = module.trained(1)
    for steps in (2, 4):
        torch.testing.assert_close(module.trained(steps), whole, rtol=1e-5, atol=1e-7)


def test_the_example_on_two_processes() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", str(EXAMPLES / "accumulate_ddp.py")),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # Once in some fifty runs threads of torch abort the process at its very end.
    aborted = "terminate called without an active exception" in done.stderr
    assert done.returncode == 0 or aborted, done.stderr
    gaps = [float(line.split()[7]) for line in done.stdout.splitlines() if "parts:" in line]
    assert len(gaps) == 2
    assert max(gaps) < 1e-6


def test_an_example_counts_by_itself() -> None:
    """What trainers do without it, a mean of means, is not the same: the test can fail."""
    spec = importlib.util.spec_from_file_location("ddp", EXAMPLES / "accumulate_ddp.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    images, labels = module.batch()
    criterion = parse("cross_entropy + dice")
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3, padding=1)
    whole = criterion(conv(images), labels)
    parts = [criterion(conv(x), t) for x, t in zip(images.chunk(4), labels.chunk(4), strict=True)]
    assert abs(whole - torch.stack(parts).mean()) > 1e-3


def test_examples_of_every_loss_are_counted_by_their_targets() -> None:
    """Zeros in the place of outputs: labels, masks, qualities, boxes and bins tell the shape."""
    for name in names():
        loss = names()[name]()
        given = list(example(loss.function, seed=1).values())
        if any(word in name for word in POOLED):
            continue
        parts = [tuple(x[i::2] for x in given) for i in range(2)]
        value = sum(float(loss) for loss in accumulate(Hands(), loss, parts))
        assert value == pytest.approx(float(loss(*given)), rel=1e-5), name
    assert distributed.alone()
