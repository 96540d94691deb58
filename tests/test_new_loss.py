"""A new loss touches two files: its family's, and that family's test. Everything finds it there.

Two losses are added to a copy of the package, each in its family file alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from denseloss import backend

ROOT = Path(__file__).parents[1]

PIXEL = '''

@checked
def poly1_cross_entropy_loss(
    logits: Logits,
    target: ClassMap,
    *,
    epsilon: NonNegative = 1.0,
    weight: PixelWeight | None = None,
    ignore_index: int | None = -100,
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross entropy whose first polynomial coefficient is larger.

    L = Σ w [-log p_t + ε (1 - p_t)] / Σ w,   p = softmax(z)

    Use it where cross entropy is used, with one more number to tune.

    Args:
        target: labels, or class probabilities.
        epsilon: ε >= 0, what is added to the coefficient.
        reduction: over all pixels.

    Returns:
        A scalar, or float[n *s] with ``reduction="none"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, ε < 0, or an unknown reduction.

    Source:
        Leng et al., *PolyLoss*, ICLR 2022, eq. 6, arXiv:2204.12511.

    Example:
        >>> poly1_cross_entropy_loss(torch.zeros(1, 2, 1), torch.tensor([[0]]))  # ln 2 + 1/2
        tensor(1.1931)
    """
    likely = softmax_likelihood(logits, target, weight, ignore_index)
    values = likely.expected(likely.entropy + epsilon * likely.miss)
    return reduce(values, reduction, weight=likely.weight, divisor=count)


class Poly1CrossEntropyLoss(LossModule):
    """`poly1_cross_entropy_loss` as a Module."""

    @options_of(poly1_cross_entropy_loss)
    def __init__(self) -> None: ...

    @call_of(poly1_cross_entropy_loss)
    def __call__(self) -> None: ...


__all__ += ["Poly1CrossEntropyLoss", "poly1_cross_entropy_loss"]
'''

REGION = '''

@checked
def log_cosh_dice_loss(
    logits: Logits,
    target: ClassMap,
    *,
    smooth: NonNegative = 1.0,
    pool: Pool = "image",
    absent: Absent = "count",
    class_weight: ClassWeight | None = None,
    weight: PixelWeight | None = None,
    ignore_index: int | None = -100,
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Logarithm of the hyperbolic cosine of the Dice loss of each exclusive class.

    L_c = log cosh(1 - (2I + s) / (P + T + s))
    I = Σ w min(p, t),  P = Σ w p,  T = Σ w t over the pixels of an image,  p = softmax(z)

    Use it where the gradient of Dice is too rough.

    Returns:
        A scalar; with ``reduction="none"`` float[n c], or float[c] with ``pool="batch"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, s < 0, or an unknown word.

    Source:
        Jadon, *A survey of loss functions for semantic segmentation*, CIBCB 2020, eq. 21,
        arXiv:2006.14822.

    Example:
        >>> import torch
        >>> log_cosh_dice_loss(torch.zeros(1, 2, 1), torch.tensor([[0]]))  # 1-2/2.5, 1-1/1.5
        tensor(0.0372)
    """
    sums = softmax_overlap(logits, target, weight, ignore_index, pool=pool)
    values = sums.dissimilarity(a=2, b=0, c=1, d=1, s=smooth).cosh().log()
    return reduce_classes(
        values, sums, reduction, absent=absent, class_weight=class_weight, count=count
    )


class LogCoshDiceLoss(LossModule):
    """`log_cosh_dice_loss` as a Module."""

    @options_of(log_cosh_dice_loss)
    def __init__(self) -> None: ...

    @call_of(log_cosh_dice_loss)
    def __call__(self) -> None: ...


__all__ += ["LogCoshDiceLoss", "log_cosh_dice_loss"]
'''

PIXEL_ORACLE = """

def poly1_cross_entropy_loss(
    logits, target, *, epsilon=1.0, weight=None, ignore_index=-100, count=None, reduction="mean"
):
    values, counts = {}, {}
    for place, z, t, w in pixels(logits, target, weight, ignore_index):
        log_p = z.log_softmax(0)
        terms = [t[c] * (-log_p[c] + epsilon * (1 - log_p[c].exp())) for c in range(len(z))]
        values[place], counts[place] = w * sum(terms), w
    return reduced(values, counts, (len(logits), *logits.shape[2:]), logits, reduction, count)


ORACLES["poly1_cross_entropy_loss"] = poly1_cross_entropy_loss
"""

REGION_ORACLE = """

def log_cosh_dice_loss(
    logits,
    target,
    *,
    smooth=1.0,
    pool="image",
    absent="count",
    class_weight=None,
    weight=None,
    ignore_index=-100,
    count=None,
    reduction="mean",
):
    def score(i, p, t):  # `region` takes one minus it
        return 1 - (1 - dice_score(1.0, smooth)(i, p, t)).cosh().log()

    found = members(logits, target, weight, ignore_index)
    return region(found, score, logits, pool, absent, class_weight, count, reduction)


ORACLES["log_cosh_dice_loss"] = log_cosh_dice_loss
"""

FOUND = """
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import denseloss
from denseloss import compose, functional, losses

for name in ("poly1_cross_entropy", "log_cosh_dice"):
    assert f"{name}_loss" in functional.__all__ and hasattr(functional, f"{name}_loss")
    assert name in compose.names()
assert {"Poly1CrossEntropyLoss", "LogCoshDiceLoss"} <= set(denseloss.__all__)
assert isinstance(denseloss.LogCoshDiceLoss(smooth=0), denseloss.LossModule)


class Passes(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function).rsplit(".", 1)[0])
        return function(*args, **(kwargs or {}))


criterion = compose.parse("cross_entropy + poly1_cross_entropy + log_cosh_dice")
target = torch.randint(0, 3, (2, 12, 10))
for loss, size in ((criterion, (12, 10)), (denseloss.AtTargetSize(criterion), (6, 5))):
    z = torch.randn(2, 3, *size, requires_grad=True)
    with Passes() as mode:
        value = loss(z, target)
        value.backward()
    if FAST:
        assert mode.names.count("denseloss.softmax") == 1, mode.names
        assert mode.names.count("denseloss.softmax_backward") == 1, mode.names
        assert not any("upsample" in name for name in mode.names), mode.names
    full = F.interpolate(z, (12, 10), mode="bilinear")
    alone = sum(
        getattr(functional, f"{name}_loss")(full, target)
        for name in ("cross_entropy", "poly1_cross_entropy", "log_cosh_dice")
    )
    torch.testing.assert_close(value, alone)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave)
    for name in ("pyproject.toml", "README.md", "conftest.py"):
        shutil.copy(ROOT / name, folder / name)
    for family, loss, oracle in (
        ("pixel", PIXEL, PIXEL_ORACLE),
        ("region", REGION, REGION_ORACLE),
    ):
        with (folder / f"src/denseloss/losses/{family}.py").open("a", encoding="utf-8") as file:
            file.write(loss)
        with (folder / f"tests/test_{family}.py").open("a", encoding="utf-8") as file:
            file.write(oracle)
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder / "src"), str(folder)])
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_is_found_and_shares_a_pass_at_any_size(copy: Path) -> None:
    fast = "cpu" in backend.available()
    done = run(copy, "-c", f"FAST = {fast}\n{FOUND}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_tool_and_the_documentation_find_it(copy: Path) -> None:
    for arguments, said in (
        (["ls"], "log_cosh_dice"),
        (["show", "poly1_cross_entropy"], "Leng et al."),
    ):
        done = run(copy, "-m", "denseloss.cli", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert said in done.stdout
    assert run(copy, "docs/build.py", "--check").returncode == 1
    assert run(copy, "docs/build.py").returncode == 0
    text = (copy / "docs" / "catalogue.md").read_text(encoding="utf-8")
    assert "poly1_cross_entropy_loss" in text
    assert "log_cosh_dice_loss" in text


def test_the_battery_finds_it(copy: Path) -> None:
    chosen = ["-k", "poly1 or log_cosh or Poly1 or LogCosh", "-q", "-p", "no:xdist"]
    files = ["tests/test_every_loss.py", "tests/test_catalogue.py"]
    done = run(copy, "-m", "pytest", *chosen, "-m", "not slow", *files)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_a_forgotten_oracle_is_named(copy: Path) -> None:
    file = copy / "tests" / "test_pixel.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('ORACLES["poly1_cross_entropy_loss"] =', "_ ="), encoding="utf-8")
    try:
        done = run(copy, "-m", "pytest", "-q", "-p", "no:xdist", "tests/test_catalogue.py")
    finally:
        file.write_text(text, encoding="utf-8")
    assert done.returncode == 1
    assert "test_has_an_oracle[poly1_cross_entropy_loss]" in done.stdout
