"""A fast version that nobody has measured on a device proves itself before it is used there.

All of this runs without a GPU: the versions in C stand for those on CUDA, right, wrong or raising.
"""

from __future__ import annotations

import dataclasses
import re
import threading
import tomllib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import denseloss
from denseloss import AtTargetSize, ClassScores, backend, distributed
from denseloss import functional as F
from denseloss.compose import parse
from denseloss.primitives.fused import VERSIONS, proof
from denseloss.testing import example
from tests import interpreted

pytestmark = pytest.mark.skipif("cpu" in backend.missing(), reason="no kernels")

Z = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
T = torch.randint(0, 3, (2, 5, 4), generator=torch.Generator().manual_seed(1))
M = (Z.flip(0) > 0).float()
PLACES = torch.randint(-1, 4, (2, 3, 5), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def unproven(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put versions that must prove themselves in place of the fast ones; nothing is proven yet."""
    monkeypatch.setattr(proof, "_verdicts", {})
    monkeypatch.setattr(proof, "_tried", set())
    monkeypatch.setattr(proof, "_warned", set())

    def install(**versions: Callable[..., Any]) -> None:
        for name, version in {**VERSIONS, **versions}.items():
            monkeypatch.setitem(backend.table[name], "cpu", proof.proven(name, version))

    return install


def counted(name: str, calls: list[int]) -> Callable[..., Any]:
    """The right version, which notes how large its inputs are."""

    def version(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[0].numel())
        return VERSIONS[name](*args, **kwargs)

    return version


class Off(torch.autograd.Function):
    """A loss that is right, with a gradient that is wrong in a few places."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, up: Tensor) -> Tensor:
        up = up.clone()
        up.view(-1)[7:30] *= 1.02
        return up


def wrong_value(*args: Any, **kwargs: Any) -> Any:
    return 1.001 * VERSIONS["element_loss"](*args, **kwargs)


def wrong_gradient(logits: Tensor, *args: Any, **kwargs: Any) -> Any:
    return VERSIONS["element_loss"](Off.apply(logits), *args, **kwargs)


def wrong_nan(*args: Any, **kwargs: Any) -> Any:
    return torch.nan * VERSIONS["element_loss"](*args, **kwargs)


def wrong_shape(*args: Any, **kwargs: Any) -> Any:
    return VERSIONS["element_loss"](*args, **kwargs).unsqueeze(0)


def raising(*args: Any, **kwargs: Any) -> Any:
    raise ValueError("no such instruction\nand more")


# ---------------------------------------------------------------- one comparison


def calls() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Calls of every quantity by our losses, as they come."""
    noted: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def noting(name: str) -> Callable[..., Any]:
        def note(*args: Any, **kwargs: Any) -> Any:
            noted.append((name, args, kwargs))
            return backend.Declined("noted")

        return note

    with pytest.MonkeyPatch.context() as patch:
        for name in VERSIONS:
            patch.setitem(backend.table[name], "cpu", noting(name))
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            z, m = Z.to(dtype), M.to(dtype)
            for name in denseloss.losses.__all__:
                if name.islower():
                    for options in ([], ["weight"]):
                        loss = getattr(F, name)
                        loss(**example(loss, dtype=dtype, options=options))
            for layout in (z, z.to(memory_format=torch.channels_last)):
                parse("cross_entropy(label_smoothing=0.1) + dice + focal")(layout, T)
                parse("binary_cross_entropy(pos_weight=3) + binary_dice")(layout, m)
                F.f_score(layout, T, decision=None)
                for size in ((9, 7), (3, 2), (90, 4)):
                    large = torch.zeros(2, *size, dtype=torch.uint8)
                    AtTargetSize(parse("cross_entropy + dice"))(layout, large)
            F.binary_cross_entropy_loss(z, m, pos_weight=torch.rand(3), ignore_index=255)
            F.binary_focal_loss(z, (m > 0), ignore_index=-1)
            F.binary_focal_loss(z, ClassScores(PLACES), ignore_index=2)
            F.varifocal_loss(z, ClassScores(PLACES, m[..., 0]))
            F.cross_entropy_loss(z[..., 0, 0], T[:, 0, 0].byte(), ignore_index=255)
            F.ciou_loss(m[..., 0].new_ones(4, 4), torch.ones(4, 4), fmt="cxcywh")
            F.edge_weight(m, border="valid")
            F.structure_loss(z, m, window=3, variant="released", ignore_index=255)
            F.ncut_loss(z, 50 * m[:, :1])
    return iter(noted)


def test_every_quantity_agrees_and_is_really_compared() -> None:
    compared: set[str] = set()
    for name, args, kwargs in calls():
        ran = []

        def version(*a: Any, name: str = name, ran: list[bool] = ran, **k: Any) -> Any:
            result = VERSIONS[name](*a, **k)
            ran.append(type(result) is not backend.Declined)
            return result

        wrong = proof.difference(name, version, backend.reference(name), args, kwargs)
        assert wrong is None, (proof.kind_of_call(name, args, kwargs), wrong)
        assert any(ran), (proof.kind_of_call(name, args, kwargs), "declined its own small inputs")
        compared.add(name)
    assert compared == set(VERSIONS)


@pytest.mark.parametrize(
    ("version", "why"),
    [
        (wrong_value, "its value is off by 0.001 of the largest"),
        (wrong_gradient, "its gradient is off by"),
        (wrong_nan, "its value is not finite"),
        (wrong_shape, r"its value has the shape \[1\], not \[\]"),
        (raising, "it raises ValueError: no such instruction$"),
    ],
)
def test_what_is_wrong_is_said(version: Callable[..., Any], why: str) -> None:
    noted = [call for call in calls() if call[0] == "element_loss"][:8]
    for name, args, kwargs in noted:
        found = proof.difference(name, version, backend.reference(name), args, kwargs)
        assert found is not None
        assert re.search(why, found), found


def spoiled(output: Any, numbers: list[str], which: int) -> Any:
    """The outputs with one of their tensors, by its place, a hundredth too large."""
    if isinstance(output, Tensor):
        if not output.is_floating_point():
            return output
        numbers.append(str(list(output.shape)))
        return 1.01 * output if len(numbers) == which + 1 else output
    if dataclasses.is_dataclass(output):
        names = [field.name for field in dataclasses.fields(output)]
        parts = [spoiled(getattr(output, name), numbers, which) for name in names]
        return type(output)(*parts)
    if isinstance(output, tuple):
        parts = [spoiled(part, numbers, which) for part in output]
        return type(output)(*parts) if hasattr(output, "_fields") else tuple(parts)
    return output


def test_every_output_is_looked_at() -> None:
    """Also those that lie inside another one, such as the sums of a region."""
    seen: set[tuple[str, int]] = set()
    for name, args, kwargs in calls():
        if args[0].dtype in (torch.float16, torch.bfloat16):
            continue
        numbers: list[str] = []
        done = VERSIONS[name](*args, **kwargs)
        if type(done) is backend.Declined:
            continue
        spoiled(done, numbers, -1)
        for which in range(len(numbers)):

            def version(*a: Any, name: str = name, which: int = which, **k: Any) -> Any:
                return spoiled(VERSIONS[name](*a, **k), [], which)

            wrong = proof.difference(name, version, backend.reference(name), args, kwargs)
            assert wrong is not None, (name, which, proof.kind_of_call(name, args, kwargs))
        seen.add((name, len(numbers)))
    assert {name for name, _ in seen} == set(VERSIONS)
    assert max(n for name, n in seen if name == "softmax_pass") == 6


def test_a_version_that_gives_nothing_to_compare_is_not_right() -> None:
    name, args, kwargs = next(call for call in calls() if call[0] == "element_loss")
    for nothing in ((), None, torch.ones(3, dtype=torch.long)):
        found = proof.difference(
            name, lambda *_, x=nothing, **__: x, backend.reference(name), args, kwargs
        )
        assert found == "it gives nothing to compare"


# ---------------------------------------------------------------- at the first call


def test_a_right_version_is_compared_once_for_each_kind_of_call(unproven) -> None:
    sizes: list[int] = []
    unproven(element_loss=counted("element_loss", sizes))
    large = torch.zeros(4, 3, 60, 60, requires_grad=True)
    mask = torch.zeros_like(large)
    assert backend.which(F.binary_focal_loss, large, mask) == {"element_loss": "cpu"}
    *small, own = sizes
    assert own == large.numel()
    assert small == [2 * 3 * 17 * 17] * 2, "the sum, and each value"
    for _ in range(3):
        F.binary_focal_loss(large, mask)
    assert sizes[3:] == [large.numel()] * 3
    F.binary_focal_loss(large.half(), mask)
    assert len(sizes) == 6 + 3, "another dtype"
    F.binary_cross_entropy_loss(large, mask)
    assert len(sizes) == 9 + 3, "another kernel of the same operator"


@pytest.mark.parametrize(
    ("version", "why"),
    [(wrong_gradient, "its gradient is off by"), (raising, "it raises ValueError: no such inst")],
)
def test_a_wrong_version_is_never_used_and_said_once(unproven, version, why: str) -> None:
    unproven(element_loss=version)
    with backend.use("reference"):
        right = F.binary_focal_loss(Z, M)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            assert torch.equal(F.binary_focal_loss(Z, M), right)
        F.binary_cross_entropy_loss(Z.half(), M)
    (warning,) = said
    assert warning.category is UserWarning
    for part in ("element_loss", "float32", why, "definition", proof.ISSUES, "denseloss doctor"):
        assert part in str(warning.message)
    assert warning.filename == __file__
    ran = backend.which(F.binary_focal_loss, Z, M)["element_loss"]
    assert ran.startswith(f"reference: {why}")
    assert backend.which(F.dice_loss, Z, T)["softmax_pass"] == "cpu", "others go on"


def wrong_where_large(*args: Any, **kwargs: Any) -> Any:
    found = VERSIONS["element_loss"](*args, **kwargs)
    return found if args[0].numel() < 100 else 1.01 * found


def test_a_tiny_call_proves_nothing_of_large_ones(unproven) -> None:
    unproven(element_loss=wrong_where_large)
    tiny, large = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 40, 40)
    assert backend.which(F.binary_focal_loss, tiny, tiny)["element_loss"] == "cpu"
    with backend.use("reference"):
        right = F.binary_focal_loss(large, large)
    with pytest.warns(UserWarning, match="is not right"):
        assert torch.equal(F.binary_focal_loss(large, large), right)
    assert backend.which(F.binary_focal_loss, tiny, tiny)["element_loss"] != "cpu"


def test_a_warning_that_is_an_error_is_raised_once(unproven) -> None:
    unproven(element_loss=raising)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="element_loss"):
            F.binary_focal_loss(Z, M)
        F.binary_focal_loss(Z, M)


def test_nothing_of_the_callers_reaches_the_comparison(unproven) -> None:
    """Neither autocast, inference mode, hooks on saved tensors nor the seed; nor the other way."""
    unproven()
    before = torch.get_rng_state()

    def refused(x: Tensor) -> Tensor:
        raise AssertionError("a hook of the caller was called by the comparison")

    with (
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(refused, refused),
    ):
        ran = backend.which(F.binary_focal_loss, Z, M)
    assert set(ran.values()) == {"cpu"}, ran
    total, count = distributed.sum_and_count(F.binary_cross_entropy_loss, Z, M)
    assert count == M.numel(), "the elements of the comparison are not counted"
    torch.testing.assert_close(total / count, F.binary_cross_entropy_loss(Z, M))
    assert torch.equal(before, torch.get_rng_state())


def test_threads_compare_once(unproven) -> None:
    sizes: list[int] = []
    unproven(element_loss=counted("element_loss", sizes))
    z, m = torch.zeros(50, 50), torch.zeros(50, 50)
    threads = [threading.Thread(target=F.binary_focal_loss, args=(z, m)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sizes)[-6:] == [2500] * 6
    assert len(sizes) == 6 + 2


@pytest.mark.parametrize("version", [None, wrong_gradient])
def test_traced_graphs_are_never_interrupted(unproven, version) -> None:
    sizes: list[int] = []
    unproven(element_loss=version or counted("element_loss", sizes))
    with backend.use("reference"):
        right = F.binary_focal_loss(Z, M)
    torch._dynamo.reset()
    compiled = torch.compile(F.binary_focal_loss, fullgraph=True, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(compiled(Z, M), right)
    assert sizes == [], "what nobody has compared is not put into a graph"
    if version is None:
        F.binary_focal_loss(Z, M)
        assert len(sizes) == 3
        torch.testing.assert_close(compiled(Z, M), right)
        assert len(sizes) > 3, "compiled anew with the version that has proven itself"
    else:
        with pytest.warns(UserWarning, match="element_loss"):
            F.binary_focal_loss(Z, M)
        assert torch.equal(compiled(Z, M), right)
    torch._dynamo.reset()


def test_captured_and_recorded_calls_run_the_definition(unproven, monkeypatch) -> None:
    sizes: list[int] = []
    unproven(element_loss=counted("element_loss", sizes))

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    with Mode():
        F.binary_focal_loss(Z, M)
    assert sizes == []
    with monkeypatch.context() as patch:  # as under torch.cuda.graph
        patch.setattr(Tensor, "is_cuda", property(lambda _: True))
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert not proof._plain(Z)
    assert proof._plain(Z)


def test_an_empty_batch_decides_nothing(unproven) -> None:
    sizes: list[int] = []
    unproven(element_loss=counted("element_loss", sizes))
    F.binary_focal_loss(Z[:0], M[:0])
    F.binary_focal_loss(Z, M)
    assert sizes[0] == 0
    assert len(sizes) == 1 + 3


# ---------------------------------------------------------------- what is so now


def test_what_runs_on_the_cpu_proves_nothing_per_call() -> None:
    assert all(backend.table[name]["cpu"] is VERSIONS[name] for name in VERSIONS)


def test_cuda_is_on_probation_until_a_gpu_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from denseloss.primitives import cuda, fused

    for name in VERSIONS:
        monkeypatch.setitem(backend.table[name], "cuda", None)
    fused.register("cuda", measured=bool(cuda.MEASURED))
    same = [backend.table[name]["cuda"] is VERSIONS[name] for name in VERSIONS]
    assert all(same) if cuda.MEASURED else not any(same)


def test_faults_are_reported_where_the_project_says() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert tomllib.loads(text)["project"]["urls"]["Issues"] == proof.ISSUES


def test_triton_in_its_interpreter() -> None:
    pytest.importorskip("triton")
    interpreted.passes("triton_proof_cases.py")
