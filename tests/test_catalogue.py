"""What is public is documented by the template, shown by an example, cited and has an oracle."""

from __future__ import annotations

import inspect
import re

import pytest

import denseloss
from denseloss import functional
from denseloss.contract import arguments
from tests.oracles import oracles

FUNCTIONS = functional.__all__

# Section 4 of the design: names and keywords as people will read them in papers' words.
CATALOGUE = {
    "cross_entropy_loss": "logits target class_weight label_smoothing weight ignore_index "
    "reduction",
    "binary_cross_entropy_loss": "logits target pos_weight weight ignore_index reduction",
    "balanced_cross_entropy_loss": "logits target weight ignore_index reduction",
    "focal_loss": "logits target gamma alpha weight ignore_index reduction",
    "binary_focal_loss": "logits target gamma alpha weight ignore_index reduction",
    "dice_loss": "logits target beta smooth pool absent class_weight weight ignore_index reduction",
    "jaccard_loss": "logits target smooth pool absent class_weight weight ignore_index reduction",
    "tversky_loss": "logits target alpha beta smooth pool absent class_weight weight ignore_index "
    "reduction",
    "structure_loss": "logits target gamma window smooth variant weight ignore_index reduction",
    "quality_focal_loss": "logits quality beta alpha weight reduction",
    "varifocal_loss": "logits quality alpha gamma detach_weight weight reduction",
    "distribution_focal_loss": "logits target weight reduction",
    "distribution_mean": "logits",
    "ncut_loss": "logits image radius sigma_intensity sigma_space variant reduction",
    "edge_weight": "target gamma window border",
    "inverse_frequency": "target num_classes ignore_index",
    "one_hot": "target num_classes ignore_index",
    "f_score": "logits target beta threshold smooth pool absent class_weight weight ignore_index "
    "reduction",
}
for _name in ("dice", "jaccard", "tversky"):
    CATALOGUE[f"binary_{_name}_loss"] = CATALOGUE[f"{_name}_loss"]
CATALOGUE["binary_f_score"] = CATALOGUE["f_score"]
for _name in ("iou", "giou", "diou", "ciou"):
    CATALOGUE[f"{_name}_loss"] = "boxes target_boxes fmt weight reduction"


def test_catalogue_is_complete() -> None:
    assert sorted(CATALOGUE) == FUNCTIONS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature(name: str) -> None:
    function = getattr(functional, name)
    assert list(inspect.signature(function).parameters) == CATALOGUE[name].split()
    stated = arguments(function)
    for parameter in inspect.signature(function).parameters.values():
        positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        assert positional == stated[parameter.name].required, "tensors first, then keywords"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_follows_the_template(name: str) -> None:
    function = getattr(functional, name)
    text = inspect.getdoc(function)
    assert text
    sections = re.findall(r"^([A-Z][a-z]+(?: from)?):$", text, flags=re.MULTILINE)
    for wanted in ("Args", "Returns", "Raises", "Source", "Example"):
        assert wanted in sections, f"{wanted} is missing"
    order = ["Args", "Returns", "Raises", "Variant", "Differs from", "Source", "Example"]
    assert sections == [s for s in order if s in sections]
    first, _, rest = text.partition("\n\n")
    assert "\n" not in first
    assert first.endswith(".")
    assert "Use it" in rest, "when to use it"
    assert ">>>" in rest, "an example that is run"
    assert re.search(r"\b(19|20)\d\d\b", text.partition("Source:")[2])
    args = text.partition("Args:\n")[2].partition("\n\n")[0]
    documented = re.findall(r"^    (\w+):", args, flags=re.MULTILINE)
    assert documented == list(inspect.signature(function).parameters), "Args in order"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_has_an_oracle(name: str) -> None:
    assert name in oracles(), "its family's test file must hold a slow version in ORACLES"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_has_a_module(name: str) -> None:
    modules = [
        m
        for m in vars(denseloss).values()
        if getattr(m, "function", None) is getattr(functional, name)
    ]
    assert len(modules) == 1
    (module,) = modules
    assert module.__name__ in denseloss.__all__
    assert module.__doc__
    assert name in module.__doc__


def test_every_public_name_has_a_docstring() -> None:
    for name in denseloss.__all__:
        assert inspect.getdoc(getattr(denseloss, name)), name
