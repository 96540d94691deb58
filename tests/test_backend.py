"""One table, one override."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from denseloss import backend


@pytest.fixture
def doubled():
    """A primitive with a fast version that can be told apart."""

    @backend.primitive
    def doubled(x: Tensor) -> Tensor:
        return 2 * x

    @backend.implement("doubled", backend="cpu")
    def fast(x: Tensor) -> Tensor:
        return 2 * x + 1000

    yield doubled
    del backend.table["doubled"]


X = torch.ones(1)


def test_the_fast_version_of_the_device_runs(doubled) -> None:
    assert doubled(X) == 1002


def test_reference_forces_the_definition(doubled) -> None:
    with backend.use("reference"):
        assert doubled(X) == 2
        with backend.use("cpu"):
            assert doubled(X) == 1002
        assert doubled(X) == 2
    assert doubled(X) == 1002


def test_use_without_with_stays(doubled) -> None:
    before = backend.use("reference")
    assert doubled(X) == 2
    backend.use(None)
    assert doubled(X) == 1002
    before.__exit__(None, None, None)


def test_a_backend_that_is_not_there_raises() -> None:
    with pytest.raises(RuntimeError, match=r"backend 'cuda' is not there; available: .*reference"):
        backend.use("cuda")


def test_implementing_an_unknown_primitive_raises() -> None:
    with pytest.raises(KeyError, match="no primitive 'overlapp'"):
        backend.implement("overlapp", backend="cpu")


def test_a_primitive_without_the_chosen_backend_runs_its_definition(doubled) -> None:
    @backend.primitive
    def tripled(x: Tensor) -> Tensor:
        return 3 * x

    try:
        with backend.use("cpu"):
            assert tripled(X) == 3
    finally:
        del backend.table["tripled"]


def test_switching_recompiles(doubled) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(doubled, fullgraph=True, backend="eager")
    assert compiled(X) == 1002
    with backend.use("reference"):
        assert compiled(X) == 2
    assert compiled(X) == 1002


def test_every_primitive_has_its_definition() -> None:
    assert set(backend.table) >= {
        "association",
        "box_mean",
        "box_pairs",
        "bracket",
        "sigmoid_likelihood",
        "sigmoid_overlap",
        "softmax_likelihood",
        "softmax_overlap",
    }
    assert all("reference" in versions for versions in backend.table.values())
