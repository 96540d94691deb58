"""What every test shares: names and seeds, and which modules can be looked through for examples."""

import importlib.util

import pytest
import torch

from denseloss import backend

# Modules of a backend that is not on this machine cannot be imported to look for examples.
collect_ignore_glob = []
if importlib.util.find_spec("triton") is None:
    collect_ignore_glob.append("src/denseloss/primitives/cuda/*")
if "cpu" in backend.missing():
    collect_ignore_glob.append("src/denseloss/primitives/cpu/*")


def pytest_configure(config: pytest.Config) -> None:
    """Let torch 2.6 warn of what its own torch.compile and its Triton do."""
    if torch.__version__.startswith("2.6."):
        for said, kind in (
            (".*torch.autograd.function.Function.* should not be inst", "DeprecationWarning"),
            ("Skipping serialization of skipfiles_inline_module_allowlist", "UserWarning"),
            ("Conversion of an array with ndim > 0 to a scalar", "DeprecationWarning"),
        ):
            config.addinivalue_line("filterwarnings", f"ignore:{said}:{kind}")


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace["torch"] = torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
