"""What every test shares. The examples in docstrings find torch without importing it each time."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace["torch"] = torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
