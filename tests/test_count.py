"""``count``, what a mean divides by where the caller counts: the same for every loss with it."""

import pytest
import torch

from denseloss import distributed, functional, losses
from denseloss.contract import arguments
from denseloss.testing import example
from tests.comparison import DTYPES, same, value_and_gradient

COUNTED = [n for n in functional.__all__ if "count" in arguments(getattr(functional, n))]
every = pytest.mark.parametrize("name", COUNTED)


def inputs(name, dtype=torch.float32):
    return list(example(getattr(functional, name), dtype=dtype, seed=4).values())


def test_every_loss_has_it():
    assert set(COUNTED) == {name for name in losses.__all__ if name.endswith("_loss")}


def weight(loss, given):
    """The same weight everywhere, in the shape that the loss takes."""
    kind = arguments(loss)["weight"].kind if "weight" in arguments(loss) else None
    if kind is None:
        return {}
    if kind.name == "BoxWeight":
        return {"weight": torch.full((7,), 2.5)}
    return {"weight": torch.tensor(2.5).reshape((1,) * given[1].ndim)}


@every
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_mean_divides_by_it(name, dtype, weighted):
    """By what is given, a number or a tensor, but by 1 at least: no objects, no division by 0."""
    loss, given = getattr(functional, name), inputs(name, dtype)
    options = weight(loss, given) if weighted else {}
    total, slope = value_and_gradient(loss, *given, reduction="sum", **options)
    for count, divisor in [
        (0, 1),
        (0.3, 1),
        (1, 1),
        (3, 3),
        (7.25, 7.25),
        (torch.tensor(0), 1),
        (torch.tensor(12), 12),
        (torch.tensor(2.5, dtype=torch.float64), 2.5),
        (torch.tensor(0.5, dtype=torch.float16), 1),
    ]:
        value, gradient = value_and_gradient(loss, *given, count=count, **options)
        assert value.dtype == total.dtype
        same(value, total.double() / divisor, 1e-6)
        exact = 1e-9 if dtype == torch.float64 else 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            gradient.double(), slope.double() / divisor, rtol=exact, atol=exact / 4
        )
    for reduction in ("sum", "none"):
        one = loss(*given, reduction=reduction, count=9, **options)
        assert torch.equal(one, loss(*given, reduction=reduction, **options))


@every
def test_nothing_to_count_is_0_with_a_graph(name):
    sizes = {"n": 0, "*m": (0,)} if "n" in _axes(name) or "*m" in _axes(name) else {"*s": (0,)}
    given = list(example(getattr(functional, name), sizes=sizes).values())
    first = given[0].requires_grad_()
    for count in (0, torch.tensor(0.0)):
        value = getattr(functional, name)(*given, count=count)
        assert value == 0
        value.backward()
    assert first.grad.shape == first.shape


def _axes(name):
    kinds = [a.kind for a in arguments(getattr(functional, name)).values() if a.kind]
    return {axis for axis, _ in kinds[0].forms[0].before} | {
        form.star[0] for form in kinds[0].forms if form.star
    }


@every
def test_what_is_no_count_is_refused(name):
    loss, given = getattr(functional, name), inputs(name)
    for count, error in ((-1, ValueError), (torch.ones(1), ValueError), ("3", TypeError)):
        with pytest.raises(error, match=f"{name}: count"):
            loss(*given, count=count)


@every
def test_a_module_is_told_at_the_call(name):
    module = next(
        m
        for m in vars(losses).values()
        if getattr(m, "function", None) is getattr(functional, name)
    )
    given = inputs(name)
    assert torch.equal(module()(*given, count=5), module(count=5)(*given))


@every
def test_sum_and_count_has_the_callers_share(name):
    if name == "balanced_cross_entropy_loss":
        pytest.skip("it pools the batch")
    loss, given = getattr(functional, name), inputs(name)
    for count in (0, 4, torch.tensor(4)):
        pair = distributed.sum_and_count(loss, *given, count=count)
        same(pair.sum, loss(*given, reduction="sum"))
        assert pair.count == count


@every
def test_a_tensor_compiles_once(name):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    loss, given = getattr(functional, name), inputs(name)
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for count in (3, 0, 8):
        count = torch.tensor(count)
        one = value_and_gradient(compiled, *given, count=count)
        other = value_and_gradient(loss, *given, count=count)
        same(one[0], other[0])
        same(one[1], other[1])
    assert counter.frame_count == 1
    same(compiled(*given, count=2), loss(*given, count=2))
    torch._dynamo.reset()
