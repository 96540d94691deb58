"""One table, one override."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

import denseloss
from denseloss import backend
from denseloss import functional as F


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
BOXES = torch.tensor([[0.0, 0, 2, 2]])


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
    assert {"box_loss", "element_loss", "sigmoid_sums", "softmax_pass"} <= set(backend.table)
    assert all("reference" in versions for versions in backend.table.values())


# ---------------------------------------------------------------- which version runs, and why

Z, T = torch.zeros(1, 2, 3), torch.tensor([[0, 1, 1]])
fast = pytest.mark.skipif("cpu" in backend.missing(), reason="no kernels")


@fast
def test_which_names_the_quantities() -> None:
    assert backend.which(F.dice_loss, Z, T)["softmax_pass"] == "cpu"
    assert backend.which(F.iou_loss, BOXES, BOXES) == {"box_loss": "cpu"}
    assert backend.which(denseloss.BinaryFocalLoss(), Z, Z) == {"element_loss": "cpu"}
    assert backend.which(F.distribution_mean, Z) == {}, "made of no quantity"
    both = denseloss.compose.parse("cross_entropy + dice")
    assert backend.which(both, Z, T)["softmax_pass"] == "cpu"
    assert set(backend.which(both, Z, T)) <= set(backend.table)


def by_gradient(z: Tensor, t: Tensor) -> Tensor:
    return torch.func.grad(lambda x: F.cross_entropy_loss(x, t))(z)


@fast
@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda: backend.which(F.dice_loss, Z.double(), T), "logits are float64"),
        (
            lambda: backend.which(F.dice_loss, Z, T, weight=torch.ones(1, 3, requires_grad=True)),
            "a target, weight or other constant requires grad",
        ),
        (lambda: backend.which(by_gradient, Z, T), "torch.func is active"),
        (lambda: backend.which(F.dice_loss, Z, Z + 0.5), "the target is class probabilities"),
        (lambda: backend.which(F.dice_loss, Z[:0], T[:0]), "logits are empty"),
        (
            lambda: backend.which(F.dice_loss, Z.transpose(1, 2), torch.zeros(1, 2).long()),
            None,  # a channels_last layout
        ),
        (
            lambda: backend.which(F.dice_loss, Z.repeat(1, 1, 2)[..., ::2], T),
            "logits are neither contiguous nor channels_last",
        ),
    ],
)
def test_which_says_why_it_is_the_definition(call, why: str | None) -> None:
    assert call()["softmax_pass"] == ("cpu" if why is None else f"reference: {why}")


def test_which_knows_the_override() -> None:
    with backend.use("reference"):
        said = backend.which(F.dice_loss, Z, T)
    assert set(said.values()) == {'reference: backend.use("reference") is in force'}


def test_which_says_that_there_are_no_kernels() -> None:
    code = (
        "import torch; from denseloss import backend; from denseloss.functional import dice_loss;"
        "print(backend.which(dice_loss, torch.zeros(1, 2, 3), torch.tensor([[0, 1, 1]])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"DENSELOSS_KERNELS": "nowhere.so"},
    )
    said = ast.literal_eval(done.stdout)
    assert said["softmax_pass"].startswith("reference: the compiled kernels do not load: ")


def test_which_leaves_no_trace_where_the_loss_raises() -> None:
    with pytest.raises(ValueError, match="target"):
        backend.which(F.dice_loss, Z, T[:, :1])
    F.dice_loss(Z, T)
    assert "softmax_pass" in backend.which(F.dice_loss, Z, T)


# ---------------------------------------------------------------- what could be there, and is not


def without_kernels(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter whose kernels are missing."""
    setup = (
        "import warnings, torch, denseloss; from denseloss import backend, functional as F;"
        "z, t = torch.zeros(1, 2, 3, requires_grad=True), torch.tensor([[0, 1, 1]])\n"
    )
    return subprocess.run(
        [sys.executable, *options, "-c", setup + code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"DENSELOSS_KERNELS": "nowhere.so"},
    )


def test_missing_kernels_are_said_once_at_the_first_loss() -> None:
    code = """
backend.missing(), backend.available()   # whoever asks is answered, not warned
with backend.use("reference"):
    F.dice_loss(z, t)                    # what was asked for is no surprise
print("until here", flush=True)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(2):
        F.dice_loss(z, t).backward()
        F.cross_entropy_loss(z, t)
(warning,) = said
print(warning.filename, warning.lineno, warning.category.__name__, warning.message)
"""
    done = without_kernels(code, "-W", "error")
    first, second = done.stdout.splitlines()
    assert first == "until here"
    assert second.startswith("<string> 10 UserWarning denseloss runs in plain torch here")
    assert "nowhere.so" in second, "why"
    assert done.stderr == ""


@pytest.mark.parametrize("way", ["option", "filter"])
def test_it_can_be_silenced(way: str) -> None:
    option = ["-W", "ignore:denseloss runs in plain torch"] if way == "option" else []
    quiet = "warnings.filterwarnings('ignore', 'denseloss runs in plain torch')\n"
    code = (quiet if way == "filter" else "") + "F.dice_loss(z, t).backward()"
    assert without_kernels(code, *option).stderr == ""
    assert "denseloss runs in plain torch" in without_kernels("F.dice_loss(z, t)").stderr


def test_a_warning_that_is_an_error_stops_one_call_only() -> None:
    code = """
try:
    F.dice_loss(z, t)
except UserWarning:
    print(bool(F.dice_loss(z, t) > 0))
"""
    assert without_kernels(code, "-W", "error").stdout == "True\n"


def test_an_install_without_a_compiler_says_how_to_get_one() -> None:
    code = """
import platform
from pathlib import Path
from denseloss.primitives.cpu import library
platform.machine = lambda: "x86_64"
torch.backends.cpu.get_cpu_capability = lambda: "AVX2"
library.FOLDER = Path("empty")
import os; del os.environ["DENSELOSS_KERNELS"]
F.dice_loss(z, t)
"""
    said = without_kernels(code).stderr
    for part in ("without compiled kernels", "install a C compiler (gcc or clang)", "reinstall"):
        assert part in said


@pytest.mark.parametrize("machine", ["riscv64", "an old CPU", "Windows"])
def test_a_machine_that_has_no_kernels_is_no_reason_to_warn(machine: str) -> None:
    code = f"""
import os, platform
from denseloss.primitives.cpu import library
machine = {machine!r}
platform.machine = lambda: "x86_64" if machine == "an old CPU" else machine
torch.backends.cpu.get_cpu_capability = lambda: "DEFAULT"
if machine == "Windows":
    library.os = type("os", (), {{"name": "nt", "environ": {{}}}})
else:
    del os.environ["DENSELOSS_KERNELS"]
F.dice_loss(z, t)
print(backend.missing()["cpu"])
"""
    done = without_kernels(code, "-W", "error")
    assert "plain torch" in done.stdout
    assert done.stderr == ""


# ---------------------------------------------------------------- threads


def test_the_override_of_a_thread_is_its_own(doubled) -> None:
    """Four threads go in and out; none sees another's choice, and afterwards all is as before."""
    errors: list[BaseException] = []
    start = threading.Barrier(5)

    def work(chosen: str) -> None:
        wanted = {"reference": 2, "cpu": 1002}[chosen]
        try:
            start.wait()
            for _ in range(15):
                assert doubled(X) == 1002
                with backend.use(chosen):
                    for _ in range(20):
                        assert doubled(X) == wanted
                assert doubled(X) == 1002
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(c,)) for c in ["reference", "cpu"] * 2]
    for thread in threads:
        thread.start()
    start.wait()
    for _ in range(200):
        assert doubled(X) == 1002
    with backend.use("reference"):
        for _ in range(200):
            assert doubled(X) == 2
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert doubled(X) == 1002


@fast
def test_threads_whose_first_calls_meet_all_run_the_fast_version() -> None:
    code = """
import threading, torch
from denseloss import backend
from denseloss.functional import dice_loss
z, t, said, start = torch.zeros(1, 2, 3), torch.tensor([[0, 1, 1]]), set(), threading.Barrier(4)

def work():
    start.wait()
    said.add(backend.which(dice_loss, z, t)["softmax_pass"])

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(*said)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["cpu"]


def test_a_thread_that_ends_inside_its_block_leaves_nothing(doubled) -> None:
    thread = threading.Thread(target=lambda: backend.use("reference"))
    thread.start()
    thread.join()
    assert doubled(X) == 1002


_FIRST = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from denseloss import backend
from denseloss.compose import parse

loss = parse("cross_entropy + dice")
z, t = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
{}

def outcome():
    leaf = z.clone().requires_grad_()
    value = loss(leaf, t)
    return value.detach(), *torch.autograd.grad(value, leaf)

found = outcome()
with backend.use("reference"):
    torch.testing.assert_close(found, outcome())
"""


@pytest.mark.parametrize(
    "first",
    [
        "with FakeTensorMode() as mode: loss(mode.from_tensor(z), mode.from_tensor(t))",
        "torch.func.grad(lambda x: loss(x, t))(z)",
        "torch.export.export(loss, (z, t), strict=False)",
        "with torch.inference_mode(): loss(z, t)",
    ],
    ids=["fake", "func", "export", "inference"],
)
def test_a_first_call_under_a_mode_does_no_harm_to_later_ones(first: str) -> None:
    # What the kernels keep was once fake, or wrapped, for the rest of the process.
    done = subprocess.run(
        [sys.executable, "-c", _FIRST.format(first)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
