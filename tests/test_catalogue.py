"""What is public is found by its name, documented by the template, cited and has an oracle."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import denseloss
from denseloss import functional, losses, metrics, weights
from denseloss.contract import arguments
from denseloss.module import LossModule
from tests.oracles import oracles

FUNCTIONS = functional.__all__
FILES = sorted(Path(losses.__file__).parent.glob("[!_]*.py"))
FAMILIES = [importlib.import_module(f"denseloss.losses.{file.stem}") for file in FILES]
PUBLIC = [*losses.__all__, *metrics.__all__, *weights.__all__]

# Options that many have stand in this order, whatever is special to one.
ORDER = ["smooth", "pool", "absent", "class_weight", "weight", "ignore_index", "count", "reduction"]


@pytest.mark.parametrize("module", FAMILIES, ids=lambda m: m.__name__)
def test_every_family_is_in_the_list(module: ModuleType) -> None:
    assert set(module.__all__) <= set(losses.__all__), "losses/__init__.py leaves it out"


@pytest.mark.parametrize("module", [*FAMILIES, metrics, weights], ids=lambda m: m.__name__)
def test_a_list_holds_what_its_file_defines(module: ModuleType) -> None:
    own = {n for n, x in vars(module).items() if getattr(x, "__module__", "") == module.__name__}
    counted = (
        {"overlap_score"} if module is metrics else set()
    )  # it takes counts, not tensors' kinds
    assert {n for n in own if not n.startswith("_")} - counted == set(module.__all__)


def test_every_name_is_found_once() -> None:
    assert len(set(PUBLIC)) == len(PUBLIC)
    functions = {name for name in PUBLIC if inspect.isfunction(getattr(denseloss, name))}
    assert set(FUNCTIONS) == functions
    assert set(PUBLIC) - functions <= set(denseloss.__all__)
    assert not functions & set(denseloss.__all__)


@pytest.mark.parametrize("module", [denseloss, functional, losses])
def test_a_star_imports_what_is_public(module: ModuleType) -> None:
    found: dict[str, object] = {}
    exec(f"from {module.__name__} import *", found)
    assert found.keys() - {"__builtins__"} == set(module.__all__)
    assert all(found[name] is getattr(denseloss, name) for name in module.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature(name: str) -> None:
    function = getattr(functional, name)
    stated, parameters = arguments(function), inspect.signature(function).parameters
    for name, parameter in parameters.items():
        positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        assert positional == stated[name].required, "tensors first, then keywords"
        said = stated[name].kind or stated[name].interval or stated[name].choices
        assert said or parameter.annotation is bool, f"{name}: its annotation says nothing"
    shared = [option for option in parameters if option in ORDER]
    assert shared == sorted(shared, key=ORDER.index), "shared options in the order of the others"
    if function.__name__.endswith("_loss"):
        assert list(parameters)[-1] == "reduction"
        assert parameters["reduction"].default == "mean"


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
    function, word = getattr(functional, name), name.replace("_", "")
    modules = [found for found in PUBLIC if found.lower() == word]
    assert len(modules) == 1, f"__all__ of {function.__module__} must hold the Module of {name}"
    module = getattr(denseloss, modules[0])
    assert issubclass(module, LossModule)
    assert module.function is function
    assert module.__module__ == function.__module__
    assert name in module.__doc__


def test_every_public_name_has_a_docstring() -> None:
    for name in denseloss.__all__:
        assert inspect.getdoc(getattr(denseloss, name)), name
