"""The battery on every public loss, found by its name."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from denseloss import functional, losses
from denseloss.contract import kinds
from denseloss.module import LossModule
from denseloss.testing import CHECKS, Case, Subject, check_module
from tests.oracles import oracles

LOSSES = [name for name in losses.__all__ if name.endswith("_loss")]
MODULES = [
    getattr(losses, name) for name in losses.__all__ if isinstance(getattr(losses, name), type)
]
# α of CIoU is constant in the backward pass by definition: its gradient is the oracle's.
INEXACT_GRADIENT = {"ciou_loss"}
# These cost a compilation, or a Jacobian: once per loss. The others are cheap and meet drawn cases.
ONCE = {"gradient", "compile", "no_host_read", "errors", "keywords", "oracle"}
DRAWN = [name for name in CHECKS if name not in ONCE]


def least_classes(name: str) -> int:
    """Exclusive classes are two or more."""
    least = next(iter(kinds(getattr(functional, name)).values())).least
    return least[1] if least is not None and least[0] == "c" else 1


LEAST = {name: least_classes(name) for name in LOSSES}


def subject(name: str) -> Subject:
    return Subject(
        getattr(functional, name),
        oracle=oracles().get(name),
        exact_gradient=name not in INEXACT_GRADIENT,
        own_weights=name == "balanced_cross_entropy_loss",
    )


@pytest.mark.parametrize("check", sorted(ONCE))
@pytest.mark.parametrize("name", LOSSES)
def test_battery(name: str, check: str) -> None:
    CHECKS[check](subject(name), Case(sizes={"*s": (4, 5)}))


@st.composite
def cases(draw: st.DrawFn, least: int = 1) -> Case:
    space = draw(st.lists(st.integers(3, 6), min_size=1, max_size=3))
    sizes = {
        "n": draw(st.integers(1, 3)),
        "c": draw(st.integers(least, 5)),
        "*s": tuple(space),
        "*m": (draw(st.integers(3, 9)),),
        "k": draw(st.integers(2, 9)),
    }
    return Case(sizes, seed=draw(st.integers(0, 10_000)))


@pytest.mark.parametrize("check", DRAWN)
@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_battery_on_drawn_cases(name: str, check: str, data: st.DataObject) -> None:
    CHECKS[check](subject(name), data.draw(cases(least=LEAST[name])))


@pytest.mark.slow
@pytest.mark.parametrize("check", [*DRAWN, "gradient", "oracle"])
@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_battery_on_many_cases(name: str, check: str, data: st.DataObject) -> None:
    case = data.draw(cases(least=LEAST[name]))
    if name == "ncut_loss" and check == "gradient":
        case = Case({**case.sizes, "*s": tuple(min(s, 4) for s in case.sizes["*s"][:2])}, case.seed)
    CHECKS[check](subject(name), case)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_inductor(name: str) -> None:
    function = getattr(functional, name)
    CHECKS["compile"](Subject(function, backend="inductor"), Case(sizes={"*s": (4, 5)}))


@pytest.mark.parametrize("name", ["cross_entropy_loss", "ciou_loss"])
def test_inductor_on_one_loss_of_a_kind(name: str) -> None:
    test_inductor(name)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_module_is_its_function(module: type[LossModule]) -> None:
    check_module(module)


def test_more_losses_than_the_recompile_limit_compile_in_one_process() -> None:
    torch._dynamo.reset()
    logits, target = torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.long)
    for name in ("CrossEntropyLoss", "FocalLoss", "BalancedCrossEntropyLoss"):
        for options in ({}, {"ignore_index": 0}, {"reduction": "sum"}, {"reduction": "none"}):
            loss = getattr(losses, name)(**options)
            compiled = torch.compile(loss, fullgraph=True, backend="eager")
            assert torch.equal(compiled(logits, target), loss(logits, target))
    torch._dynamo.reset()
