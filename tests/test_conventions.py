"""What docstrings and pages say of conventions is so, and whoever gets NaN finds `diagnose`."""

from __future__ import annotations

import inspect
import pydoc
from pathlib import Path

import pytest
import torch
from torch import Tensor

import denseloss
from denseloss import functional as F
from denseloss.contract import arguments
from denseloss.testing import diagnose, example

ROOT = Path(__file__).parents[1]

# One wrong value for each kind of target, and whether it makes a loss NaN.
WRONG = {
    "ClassMap": (7, True),
    "Masks": (255, True),
    "Quality": (2, True),
    "BinTarget": (99, False),  # is clamped
    "Boxes": (-1e6, False),  # x2 < x1: the loss is large
}


def target_of(name: str) -> tuple[str, str] | None:
    """The argument of a loss that may hold wrong values, and its kind."""
    for argument in reversed(arguments(getattr(F, name)).values()):
        if argument.required and argument.kind is not None and argument.kind.name in WRONG:
            return argument.name, argument.kind.name
    return None


LOSSES = [name for name in F.__all__ if name.endswith("_loss")]
TARGETED = [name for name in LOSSES if target_of(name)]


def test_only_losses_without_targets_are_left_out() -> None:
    assert set(LOSSES) - set(TARGETED) == {"ncut_loss"}


@pytest.mark.parametrize("name", TARGETED)
def test_help_of_a_loss_leads_from_nan_to_diagnose(name: str) -> None:
    function = getattr(F, name)
    module = next(m for m in vars(denseloss).values() if getattr(m, "function", None) is function)
    for found in (function, module):
        helped = pydoc.plain(pydoc.render_doc(found))
        returns = helped.partition("Returns:\n")[2].partition("\n\n")[0]
        assert "NaN, or a strange number? `denseloss.testing.diagnose`" in returns


@pytest.mark.parametrize("name", TARGETED)
def test_diagnose_finds_what_makes_a_loss_nan(name: str) -> None:
    function, (argument, kind) = getattr(F, name), target_of(name)
    wrong, makes_nan = WRONG[kind]
    inputs = example(function)
    assert not [said for said in diagnose(function, **inputs) if said.startswith(argument)]
    inputs[argument] = inputs[argument].clone()
    inputs[argument].view(-1)[2] = wrong
    assert function(**inputs).isnan() == makes_nan
    assert [said for said in diagnose(function, **inputs) if said.startswith(argument)]


def test_pages_lead_from_nan_to_diagnose() -> None:
    catalogue = (ROOT / "docs" / "catalogue.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## The losses\n")[2]
    settings = (ROOT / "docs" / "equal_settings.md").read_text(encoding="utf-8")
    for text in (catalogue.partition("\n## ")[0], readme.partition("\n## ")[0], settings):
        line = next(line for line in text.splitlines() if "NaN?" in line)
        assert "denseloss.testing.diagnose" in text.partition(line)[1] + text.partition(line)[2]
    assert "NaN? " in inspect.getdoc(F)
    assert "`denseloss.testing.diagnose`" in inspect.getdoc(F)


# --- cross entropy --------------------------------------------------------------------------------


def test_label_smoothing_with_class_weights_moves_the_optimum_as_in_torch() -> None:
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    logits = torch.stack([p.log(), (1 - p).log()])[None]
    labels = torch.zeros(1, 999, dtype=torch.long)
    options = {"label_smoothing": 0.1, "reduction": "none"}
    for class_weight, optimum in (([1.0, 1.0], 0.95), ([0.01, 0.99], 0.161)):
        weight = torch.tensor(class_weight, dtype=torch.float64)
        ours = F.cross_entropy_loss(logits, labels, class_weight=weight, **options)
        theirs = torch.nn.functional.cross_entropy(logits, labels, weight=weight, **options)
        torch.testing.assert_close(ours, theirs)
        assert p[ours.argmin()].item() == pytest.approx(optimum)


def test_an_ignored_class_stays_in_the_softmax() -> None:
    logits = torch.zeros(1, 3, 2, requires_grad=True)
    F.cross_entropy_loss(logits, torch.tensor([[1, 0]]), ignore_index=0).backward()
    assert logits.grad[0, 0, 0] > 0
    assert not logits.grad[0, :, 1].any()


def test_an_ignored_index_has_no_effect_on_class_probabilities() -> None:
    logits, soft = torch.randn(1, 3, 5), torch.randn(1, 3, 5).softmax(1)
    value = F.cross_entropy_loss(logits, soft, ignore_index=0)
    assert torch.equal(value, F.cross_entropy_loss(logits, soft))
    weight = torch.tensor([[0.0, 1, 1, 1, 1]])
    expected = F.cross_entropy_loss(logits[..., 1:], soft[..., 1:])
    torch.testing.assert_close(F.cross_entropy_loss(logits, soft, weight=weight), expected)


# --- boxes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["iou_loss", "giou_loss", "diou_loss", "ciou_loss"])
def test_boxes_with_sides_of_1e_18_to_1e18_are_safe(name: str) -> None:
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.5]])
    target_boxes = torch.tensor([[0.0, 0.0, 0.5, 0.7], [0.5, 0.25, 1.25, 1.0]])

    def both(side: float) -> tuple[Tensor, Tensor]:
        scaled = (side * boxes).requires_grad_()
        value = getattr(F, name)(scaled, side * target_boxes)
        value.backward()
        return value.detach(), side * scaled.grad

    exact = both(1.0)
    for side in (1e-18, 1e-9, 1e9, 1e18):
        torch.testing.assert_close(both(side), exact, rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(both(1e-20), exact, rtol=1e-4, atol=1e-5)
    assert both(1e20)[0].isnan()


def test_a_weight_per_coordinate_is_refused() -> None:
    boxes, weight = torch.rand(3, 4), torch.rand(3, 4)
    with pytest.raises(ValueError, match="giou_loss: weight"):
        F.giou_loss(boxes, boxes, weight=weight)
    assert F.giou_loss(boxes, boxes.flip(0), weight=weight.mean(-1)).isfinite()


# --- Modules --------------------------------------------------------------------------------------


def test_half_rounds_a_buffer() -> None:
    loss = denseloss.FocalLoss(alpha=[0.1, 0.9]).half()
    assert loss.alpha[0].item() != pytest.approx(0.1, rel=1e-5)
    assert loss.alpha[0].item() == pytest.approx(0.1, rel=1e-3)


def test_a_checkpoint_from_before_class_weight_does_not_load_strictly() -> None:
    state = denseloss.CrossEntropyLoss().state_dict()
    weighted = denseloss.CrossEntropyLoss(class_weight=[1, 2, 3])
    with pytest.raises(RuntimeError, match="class_weight"):
        weighted.load_state_dict(state)
    weighted.load_state_dict(state, strict=False)
    assert weighted.class_weight.tolist() == [1, 2, 3]
