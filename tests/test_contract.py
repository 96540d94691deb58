"""What a call is checked against, and what the errors say."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from denseloss import functional as F
from denseloss.contract import (
    Form,
    Logits,
    NonNegative,
    Odd,
    Reduction,
    arguments,
    checked,
    example,
    kinds,
    nearest,
)

Z, T = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.long)


@pytest.mark.parametrize(
    ("notation", "shape", "fits"),
    [
        ("float[n c *s]", (2, 3), True),
        ("float[n c *s]", (2, 3, 4, 5, 6), True),
        ("float[n c *s]", (2,), False),
        ("float[n 1 *s]", (2, 1, 4), True),
        ("float[n 1 *s]", (2, 2, 4), False),
        ("float[*m 4]", (4,), True),
        ("float[*m 4]", (7, 3), False),
        ("float[c]", (2, 3), False),
        ("float[n n]", (2, 2), True),
        ("float[n n]", (2, 3), False),
    ],
)
def test_form(notation: str, shape: tuple[int, ...], fits: bool) -> None:
    assert (Form.parse(notation).fits_shape(shape, {}) is not None) == fits


def test_form_agrees_with_known_sizes() -> None:
    form = Form.parse("real[#n *#s]")
    known = {"n": 2, "*s": (4, 5)}
    assert form.fits_shape((2, 4, 5), known) == known
    assert form.fits_shape((1, 4, 1), known) == known
    assert form.fits_shape((2, 4), known) is None
    assert form.fits_shape((2, 5, 5), known) is None
    assert form.fits_shape((3, 4, 5), known) is None


def raised(error: type[Exception], *tensors: object, loss=F.focal_loss, **options: object) -> str:
    with pytest.raises(error) as caught:
        loss(*tensors, **options)
    return str(caught.value)


def test_errors_name_function_argument_expectation_and_what_came() -> None:
    said = raised(ValueError, Z, T[:, :2])
    for part in ("focal_loss", "target", "int[n *s]", "n=2, c=3, *s=(4, 5)", "int64[2, 2, 5]"):
        assert part in said


@pytest.mark.parametrize(
    ("target", "mend"),
    [
        (T.float(), "target.long()"),
        (T.float().unsqueeze(1), "target.long()"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.long), "target.argmax(1)"),
        (torch.zeros(2, 8, 10, dtype=torch.long), "AtTargetSize"),
    ],
)
def test_errors_say_how_to_mend_a_target(target: Tensor, mend: str) -> None:
    assert mend in raised((TypeError, ValueError), Z, target)


def test_errors_say_how_to_mend_masks_and_weights() -> None:
    assert "unsqueeze(1)" in raised(ValueError, Z[:, :1], T, loss=F.binary_dice_loss)
    assert "without binary_" in raised(ValueError, Z, T, loss=F.binary_dice_loss)
    assert "class_weight" in raised(ValueError, Z, T, weight=torch.ones(3))


def test_not_a_tensor() -> None:
    assert "got list" in raised(TypeError, Z.tolist(), T)
    assert "got int 3" in raised(TypeError, Z, 3)


def test_options_are_checked() -> None:
    assert "'none', 'mean', 'sum'" in raised(ValueError, Z, T, reduction="average")
    assert "did you mean 'mean'?" in raised(ValueError, Z, T, reduction="means")
    assert "gamma must be a number >= 0, got int -1" in raised(ValueError, Z, T, gamma=-1)
    assert "got NoneType" in raised(TypeError, Z, T, gamma=None)
    assert "number" in raised(TypeError, Z, T, gamma="2")
    assert "real[c]" in raised(ValueError, Z, T, alpha=torch.ones(4))
    assert "odd integer >= 1" in raised(ValueError, Z, window=4, loss=F.edge_weight)
    assert "in [0, 1]" in raised(ValueError, Z, Z, alpha=1.5, loss=F.binary_focal_loss)
    assert "got float nan" in raised(ValueError, Z, T, gamma=float("nan"))


def test_unknown_keywords_and_missing_tensors_are_pythons_own_errors() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'gama'"):
        F.focal_loss(Z, T, gama=2)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'target'"):
        F.focal_loss(Z)


def test_tensors_by_keyword_are_checked_too() -> None:
    assert torch.equal(F.focal_loss(target=T, logits=Z), F.focal_loss(Z, T))
    with pytest.raises(ValueError, match=re.escape("got int64[2, 2, 5]")):
        F.focal_loss(target=T[:, :2], logits=Z)


def test_every_form_of_a_class_map_is_the_same_loss() -> None:
    z = torch.randn(2, 3, 4, 5)
    t = torch.randint(0, 2, (2, 4, 5))
    wanted = F.cross_entropy_loss(z, t)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool):
        assert F.cross_entropy_loss(z, t.to(dtype)) == wanted
    assert F.cross_entropy_loss(z, t.unsqueeze(1)) == wanted
    assert torch.isclose(F.cross_entropy_loss(z, F.one_hot(t, 3)), wanted)


def test_example_is_valid_seeded_and_typed() -> None:
    for name in F.__all__:
        function = getattr(F, name)
        extra = {"num_classes": 3} if "num_classes" in arguments(function) else {}
        tensors = example(function, dtype=torch.float64, seed=4)
        again = example(function, dtype=torch.float64, seed=4)
        assert all(torch.equal(tensors[n], again[n]) for n in tensors)
        assert all(t.dtype == torch.float64 for t in tensors.values() if t.is_floating_point())
        function(**tensors, **extra)


def test_a_user_can_annotate_a_loss() -> None:
    @checked
    def peak_loss(
        logits: Logits, *, gamma: NonNegative = 1, window: Odd = 3, reduction: Reduction = "mean"
    ) -> Tensor:
        return logits.mean()

    assert list(kinds(peak_loss)) == ["logits"]
    assert "peak_loss: logits" in raised(TypeError, Z.long(), loss=peak_loss)
    assert "peak_loss: window" in raised(ValueError, Z, window=2, loss=peak_loss)


def test_nearest() -> None:
    assert nearest("dise", ["dice", "focal"]) == "dice"
    assert nearest("xyz", ["dice", "focal"]) is None
