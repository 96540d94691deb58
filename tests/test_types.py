"""A user's type checker knows the losses and their keywords."""

import subprocess
import sys
from pathlib import Path

import denseloss
from denseloss import functional, losses, metrics, weights

USER = """
import torch
from torch import nn
import denseloss
from denseloss import DiceLoss, compose
from denseloss.functional import focal_loss

loss: nn.Module = denseloss.DiceLoss(smooth=0)
value: torch.Tensor = focal_loss(torch.zeros(1), torch.zeros(1), gamma=3)
criterion: denseloss.WeightedSum = compose.parse("dice")
DiceLoss(smoth=1)
DiceLoss(reduction="avg")
denseloss.FocalLoss(gamma="2")
"""


def test_mypy_on_a_users_file(tmp_path: Path) -> None:
    file = tmp_path / "user.py"
    file.write_text(USER, encoding="utf-8")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [*mypy, file.name], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    lines = done.stdout.splitlines()
    assert [line.split(":")[1] for line in lines if ": error:" in line] == ["11", "12", "13"], lines
    assert 'Unexpected keyword argument "smoth"' in done.stdout


def test_literal_lists_of_names_are_complete() -> None:
    families = [losses.affinity, losses.box, losses.distribution, losses.pixel]
    families += [losses.quality, losses.region, losses.structure]
    assert set(losses.__all__) == {name for family in families for name in family.__all__}
    public = [*losses.__all__, *metrics.__all__, *weights.__all__]
    assert set(functional.__all__) == {name for name in public if name.islower()}
    assert {name for name in public if not name.islower()} <= set(denseloss.__all__)
