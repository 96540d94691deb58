"""What a loss Module is besides its function: its options, copies, subclasses, compiled forms."""

from __future__ import annotations

import copy
import inspect
import pickle
import timeit

import pytest
import torch
from torch import Tensor, nn

import denseloss
from denseloss import DiceLoss, LossModule, losses, metrics, weights
from denseloss import functional as F
from denseloss.contract import ClassMap, Logits, NonNegative, checked
from denseloss.module import call_of, loss_module, options_of

MODULES = [
    found
    for family in (losses, metrics, weights)
    for name in family.__all__
    if isinstance(found := getattr(family, name), type)
]
Z, T = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_a_module_is_a_class_with_the_signatures_of_its_function(module: type[LossModule]) -> None:
    assert issubclass(module, LossModule)
    tensors = [*inspect.signature(module.forward).parameters][1:-1]
    assert [*tensors, *inspect.signature(module).parameters] == [
        *inspect.signature(module.function).parameters
    ]
    # What is written in its place is for type checkers.
    assert module.__call__ is nn.Module.__call__
    # torch.compile counts recompilations per code object.
    assert len({id(m.forward.__code__) for m in MODULES}) == len(MODULES)
    assert len({id(m.function.__code__) for m in MODULES}) == len(MODULES)
    assert pickle.loads(pickle.dumps(module)) is module
    doc = inspect.getdoc(module)
    assert doc.startswith(f"`{module.function.__name__}` as a Module.")
    assert inspect.getdoc(module.function) in doc


def test_forward_names_its_tensors() -> None:
    assert str(inspect.signature(DiceLoss.forward)) == "(self, logits, target, **options)"
    assert torch.equal(DiceLoss()(target=T, logits=Z), DiceLoss()(Z, T))


def test_a_module_without_options() -> None:
    assert torch.equal(denseloss.DistributionMean()(Z), F.distribution_mean(Z))
    assert repr(denseloss.DistributionMean()) == "DistributionMean()"


def test_options_may_be_set_later() -> None:
    loss = DiceLoss(smooth=0.5)
    loss(Z, T)
    loss.smooth = 3
    assert torch.equal(loss(Z, T), F.dice_loss(Z, T, smooth=3))
    assert repr(loss) == "DiceLoss(smooth=3)"
    loss.smooth = 1
    assert torch.equal(loss(Z, T), F.dice_loss(Z, T))
    assert repr(loss) == "DiceLoss()"
    loss.smooth = -5
    with pytest.raises(ValueError, match="dice_loss: smooth must be a number >= 0"):
        loss(Z, T)


def test_an_option_may_become_a_tensor_and_back() -> None:
    loss = denseloss.FocalLoss(alpha=0.5)
    alpha = torch.tensor([0.2, 0.3, 0.5])
    loss.alpha = alpha
    assert list(loss.state_dict()) == ["alpha"]
    assert torch.equal(loss(Z, T), F.focal_loss(Z, T, alpha=alpha))
    assert loss.double().alpha.dtype == torch.float64
    loss.alpha = 0.25
    assert list(loss.state_dict()) == []
    assert torch.equal(loss(Z, T), F.focal_loss(Z, T, alpha=0.25))


def test_a_keyword_of_the_call_overrides_the_option() -> None:
    loss = denseloss.CrossEntropyLoss(class_weight=[1, 2, 3], reduction="sum")
    assert torch.equal(loss(Z, T, class_weight=None, reduction="mean"), F.cross_entropy_loss(Z, T))
    assert torch.equal(
        loss(Z, T), F.cross_entropy_loss(Z, T, class_weight=loss.class_weight, reduction="sum")
    )


def test_a_buffer_that_is_replaced_for_a_call_is_the_one_that_counts() -> None:
    loss = denseloss.CrossEntropyLoss(class_weight=[1, 2, 3])
    value = torch.func.functional_call(loss, {"class_weight": torch.ones(3)}, (Z, T))
    assert torch.equal(value, F.cross_entropy_loss(Z, T))


def test_repr_shows_small_tensors_and_no_large_ones() -> None:
    loss = DiceLoss(class_weight=[0.2, 1, 2], weight=torch.rand(2, 64, 64))
    assert repr(loss) == "DiceLoss(class_weight=[0.2, 1.0, 2.0], weight=float32[2, 64, 64])"
    assert repr(loss.to("meta")) == ("DiceLoss(class_weight=float32[3], weight=float32[2, 64, 64])")


class Doubled(DiceLoss):
    def __init__(self, factor: float) -> None:
        super().__init__(smooth=2.0, class_weight=[1, 2, 3])
        self.factor = factor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.factor * super().forward(logits, target)


def test_a_subclass() -> None:
    loss = Doubled(2)
    wanted = 2 * F.dice_loss(Z, T, smooth=2, class_weight=torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(loss(Z, T), wanted)
    assert list(inspect.signature(Doubled).parameters) == ["factor"]
    assert sorted(loss.state_dict()) == ["calls", "class_weight"]
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(Z, T), wanted)
        assert repr(other) == repr(loss) == "Doubled(smooth=2.0, class_weight=[1.0, 2.0, 3.0])"
    with pytest.raises(TypeError, match="Doubled: unknown keyword 'smoth'"):
        LossModule.__init__(loss, smoth=2)


@checked
def power_loss(logits: Logits, target: ClassMap, count: int, *, power: NonNegative = 2.0) -> Tensor:
    """The mean of a power."""
    return logits.pow(power).mean() / count


class PowerLoss(LossModule):
    """Mine."""

    @options_of(power_loss)
    def __init__(self) -> None: ...

    @call_of(power_loss)
    def __call__(self) -> None: ...


def test_a_users_own() -> None:
    made = loss_module(power_loss)
    for kind in (made, PowerLoss):
        assert kind.__name__ == "PowerLoss"
        assert list(inspect.signature(kind).parameters) == ["count", "power"]
        assert torch.equal(kind(count=2, power=4)(Z, T), power_loss(Z, T, 2, power=4))
        with pytest.raises(TypeError, match="PowerLoss: count is missing"):
            kind()
    assert (
        PowerLoss.__doc__ == "Mine.\n\n    PowerLoss(...)(logits, target)\n\nThe mean of a power."
    )
    assert loss_module(power_loss, name="Other").__qualname__ == "Other"


def test_a_function_without_kinds() -> None:
    def plain_loss(logits: Tensor, target: Tensor, *, gamma: float = 2.0) -> Tensor:
        return (logits - target).abs().pow(gamma).mean()

    loss = loss_module(plain_loss)(gamma=1)
    assert list(inspect.signature(loss.forward).parameters) == ["logits", "target", "options"]
    assert loss(Z, Z + 2).item() == pytest.approx(2)


def test_options_and_call_of_two_functions_are_a_mistake() -> None:
    with pytest.raises(AssertionError, match="Mixed: options and call of two functions"):

        class Mixed(LossModule):
            @options_of(F.dice_loss)
            def __init__(self) -> None: ...

            @call_of(F.jaccard_loss)
            def __call__(self) -> None: ...


@pytest.mark.parametrize("options", [{}, {"smooth": 0.5, "class_weight": [1, 2, 3]}])
def test_compiled(options: dict[str, object]) -> None:
    torch._dynamo.reset()
    loss = DiceLoss(**options)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(Z, T), loss(Z, T))
    assert torch.allclose(compiled(logits=Z, target=T), loss(Z, T))
    loss.smooth = 7
    assert torch.allclose(
        compiled(Z, T), F.dice_loss(Z, T, smooth=7, class_weight=loss.class_weight)
    )


@pytest.mark.parametrize("strict", [True, False])
def test_exported_by_names(strict: bool) -> None:
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(
        DiceLoss(),
        (),
        {"logits": Z, "target": T},
        dynamic_shapes={"logits": {0: batch}, "target": {0: batch}},
        strict=strict,
    ).module()
    for n in (1, 2):
        value = exported(logits=Z[:n], target=T[:n])
        assert torch.allclose(value, F.dice_loss(Z[:n], T[:n]))


def test_a_call_costs_little_more_than_an_empty_module() -> None:
    class Nothing(nn.Module):
        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            return logits

    @checked
    def nothing_loss(logits: Logits, target: ClassMap, *, smooth: NonNegative = 1.0) -> Tensor:
        return logits

    def seconds(loss: nn.Module) -> float:
        loss(Z, T)
        return min(timeit.repeat(lambda: loss(Z, T), number=1000, repeat=9)) / 1000

    # 2 µs where it was measured; the bound is for slow and busy machines
    assert seconds(loss_module(nothing_loss)(smooth=2)) - seconds(Nothing()) < 15e-6
