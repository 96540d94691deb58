"""A user's type checkers know the losses and their keywords, and find the user's mistakes only."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import denseloss

USER = """
from typing import Any

import torch
from torch import Tensor, nn

import denseloss
from denseloss import AtTargetSize, CrossEntropyLoss, DiceLoss, FocalLoss, LossModule, compose
from denseloss.contract import ClassMap, Logits, NonNegative, Reduction, checked
from denseloss.functional import dice_loss, focal_loss
from denseloss.module import call_of, loss_module, options_of

a = torch.zeros(1)
crit: DiceLoss = DiceLoss()
table: dict[str, type[nn.Module]] = {"dice": DiceLoss, "focal": FocalLoss}
losses: dict[str, type[LossModule]] = {"dice": DiceLoss, "focal": FocalLoss}
CrossEntropyLoss(class_weight=[1, 2, 3])
CrossEntropyLoss(class_weight=a, weight=a)
FocalLoss(alpha=[0.2, 0.8])
FocalLoss(alpha=0.2)
value: Tensor = crit(a, a)
value = crit(logits=a, target=a)
value = crit(a, a, smooth=0, weight=a)
value = denseloss.BinaryFocalLoss()(a, denseloss.ClassScores(a))
value = denseloss.GIoULoss(fmt="xywh")(a, a)
value = denseloss.DistributionMean()(a)
value = denseloss.FScore(beta=2)(a, a)
value = denseloss.EdgeWeight(window=3)(a)
value = denseloss.InverseFrequency(num_classes=3)(a)
value = focal_loss(a, a, gamma=3)
criterion: denseloss.WeightedSum = compose.parse("dice")
criterion = denseloss.WeightedSum(one=DiceLoss(), two=(0.5, FocalLoss()))
resized: nn.Module = AtTargetSize(DiceLoss())
crit.smooth = 3
crit.to("cpu").eval()


def is_focal(m: nn.Module) -> bool:
    return isinstance(m, FocalLoss)


def call(m: LossModule) -> Tensor:
    return m(a, a)


def made(kind: type[DiceLoss] = DiceLoss) -> DiceLoss:
    return kind(smooth=1)


class Mine(DiceLoss):
    def __init__(self, factor: float) -> None:
        super().__init__(smooth=2.0)
        self.factor = factor

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.factor * dice_loss(logits, target, smooth=2)


value = Mine(3)(a, a)


@checked
def my_loss(
    logits: Logits,
    target: ClassMap,
    *,
    power: NonNegative = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    return logits.mean()


MyLoss = loss_module(my_loss)
mine: LossModule = MyLoss(power=2)
value = mine(a, a)


class OurLoss(LossModule):
    @options_of(my_loss)
    def __init__(self) -> None: ...

    @call_of(my_loss)
    def __call__(self) -> None: ...


value = OurLoss(power=2)(a, a, reduction="sum")
anything: Any = value
DiceLoss(smoth=1)  # wrong
DiceLoss(reduction="avg")  # wrong
FocalLoss(gamma="2")  # wrong
crit(a, a, nonsense=3)  # wrong
crit(a)  # wrong
crit(a, 3)  # wrong
denseloss.GIoULoss(eps=1e-7)  # wrong
OurLoss(powr=2)  # wrong
MyLoss(powr=2)  # wrong
focal_loss(a, a, gama=2)  # wrong
denseloss.functional.dice_loss(a, a, smoth=1)  # wrong
denseloss.functional.f_score(a, a, treshold=1)  # wrong
denseloss.functional.dise_loss(a, a)  # wrong
denseloss.losses.TverskyLoss(alfa=1)  # wrong
denseloss.DiseLoss()  # wrong
number: float = crit(a, a)  # wrong
"""
STARS = """
import torch

from denseloss import *
from denseloss.functional import *

a = torch.zeros(1)
value = one_hot(a, 3) + dice_loss(a, a, smooth=1) + AtTargetSize(FScore(beta=2))(a, a)
value = functional.iou_loss(a, a)
dice_loss(a, a, smoth=1)  # wrong
f_score(a, a, treshold=1)  # wrong
OneHot(classes=3)  # wrong
DiceLoss(smoth=1)  # wrong
functional.one_hot(a)  # wrong
losses.giou_loss(a)  # wrong
"""


@pytest.fixture(params=[USER, STARS], ids=["names", "stars"])
def user(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    file = tmp_path / "user.py"
    file.write_text(request.param, encoding="utf-8")
    return file


def wrong(user: Path) -> list[int]:
    lines = user.read_text(encoding="utf-8").splitlines()
    return [n for n, line in enumerate(lines, start=1) if line.endswith("# wrong")]


def run(module: str, *options: str, folder: Path) -> str:
    command = [sys.executable, "-m", module, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    return done.stdout


def test_mypy_on_a_users_file(user: Path) -> None:
    folder = user.parent
    said = run("mypy", "--strict", "--cache-dir", str(folder / "cache"), user.name, folder=folder)
    lines = {int(n) for n in re.findall(r"^user\.py:(\d+): error:", said, flags=re.MULTILINE)}
    assert sorted(lines) == wrong(user), said
    assert 'Unexpected keyword argument "smoth"' in said


@pytest.mark.skipif(importlib.util.find_spec("basedpyright") is None, reason="no basedpyright")
def test_pyright_on_a_users_file(user: Path) -> None:
    source = str(Path(denseloss.__file__).parents[1])
    # pyright's own rules, without those that basedpyright adds
    config = {"typeCheckingMode": "strict", "extraPaths": [source]}
    (user.parent / "pyrightconfig.json").write_text(json.dumps(config), encoding="utf-8")
    said = run("basedpyright", "--outputjson", "--pythonpath", sys.executable, folder=user.parent)
    found = json.loads(said)["generalDiagnostics"]
    errors = {d["range"]["start"]["line"] + 1 for d in found if d["severity"] == "error"}
    assert sorted(errors) == wrong(user), said
