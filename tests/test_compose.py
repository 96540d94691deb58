"""Expressions, weighted sums, resizing and deep supervision."""

from __future__ import annotations

import contextlib
import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import denseloss
from denseloss import (
    AtTargetSize,
    BinaryDiceLoss,
    BinaryFocalLoss,
    CrossEntropyLoss,
    DeepSupervision,
    DiceLoss,
    WeightedSum,
)
from denseloss.compose import ParseError, names, parse

Z, T = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(128)
T = (T % 3).reshape(2, 8, 8)
f = denseloss.functional


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("cross_entropy", lambda: f.cross_entropy_loss(Z, T)),
        (
            "cross_entropy + 0.5*dice(smooth=0)",
            lambda: f.cross_entropy_loss(Z, T) + 0.5 * f.dice_loss(Z, T, smooth=0),
        ),
        ("2*dice", lambda: 2 * f.dice_loss(Z, T)),
        ("dice*2", lambda: 2 * f.dice_loss(Z, T)),
        ("-0.5*dice", lambda: -0.5 * f.dice_loss(Z, T)),
        ("2*3*dice + -1*focal", lambda: 6 * f.dice_loss(Z, T) - f.focal_loss(Z, T)),
        ("0.123456789*dice", lambda: 0.123456789 * f.dice_loss(Z, T)),
        ("-dice + 1e0 * focal", lambda: f.focal_loss(Z, T) - f.dice_loss(Z, T)),
        ("dice - (focal - 3*dice)", lambda: 4 * f.dice_loss(Z, T) - f.focal_loss(Z, T)),
        ("0.5*(dice + focal)", lambda: (f.dice_loss(Z, T) + f.focal_loss(Z, T)) / 2),
        (
            "cross_entropy(class_weight=[1, 2, 5])",
            lambda: f.cross_entropy_loss(Z, T, class_weight=torch.tensor([1.0, 2, 5])),
        ),
        ("dice(pool='batch')", lambda: f.dice_loss(Z, T, pool="batch")),
        ("focal(alpha=None, gamma=0)", lambda: f.cross_entropy_loss(Z, T)),
        (" tversky(alpha=0.3,\n beta=0.7) ", lambda: f.tversky_loss(Z, T, alpha=0.3, beta=0.7)),
    ],
)
def test_parse_is_what_it_says(text: str, value) -> None:
    criterion = parse(text)
    assert isinstance(criterion, WeightedSum)
    torch.testing.assert_close(criterion(Z, T), value())
    torch.testing.assert_close(parse(str(criterion))(Z, T), value())
    torch.testing.assert_close(sum(criterion.terms(Z, T).values()), criterion(Z, T))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dise", "unknown loss 'dise'.*did you mean 'dice'"),
        ("dice_loss", "did you mean 'dice'"),
        ("Dice", "did you mean 'dice'"),
        ("bce", "did you mean 'binary_cross_entropy'"),
        ("DICE", "did you mean 'dice'"),
        ("1e400*dice", "must be finite"),
        ("dice(smooth=1e999)", "smooth must be"),
        ("dice(smooth={[]: 1})", "a value must be"),
        ("-" * 1000 + "dice(", "write a sum of terms"),
        ("+".join(["dice"] * 3000), "at most 2000 characters"),
        ("xyz", "unknown loss 'xyz'.*known: .*varifocal"),
        ("dice(smoth=1)", "unknown keyword 'smoth'; did you mean 'smooth'"),
        ("dice(smooth=-1)", "smooth must be a number >= 0"),
        ("dice(pool='imag')", "did you mean 'image'"),
        ("dice(1)", "options are keywords"),
        ("dice(**{})", "options are keywords"),
        ("dice(smooth=1+1)", "a value must be"),
        ("dice(smooth=open('x'))", "a value must be"),
        ("focal(alpha=['a'])", "a list must hold numbers"),
        ("dice +", "write a sum of terms"),
        ("", "write a sum of terms"),
        ("dice * focal", "a weight is one number"),
        ("2 * 3", "a weight is one number"),
        ("2", "expected the name of a loss"),
        ("dice / 2", "expected the name of a loss"),
        ("__import__('os').system('true')", "expected the name of a loss"),
        ("__import__('os')", "unknown loss '__import__'"),
        ("(lambda: dice)()", "expected the name of a loss"),
        ("dice if 1 else focal", "expected the name of a loss"),
        ("[dice]", "expected the name of a loss"),
        ("dice\x00", "write a sum of terms"),
    ],
)
def test_parse_errors_are_one_line_and_name_the_remedy(text: str, said: str) -> None:
    with pytest.raises(ParseError, match=said) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.text(alphabet="dicefoal_+-*().,=[]'0123456789 ", max_size=30))
def test_parse_gives_a_sum_or_a_parse_error(text: str) -> None:
    with contextlib.suppress(ParseError):
        assert isinstance(parse(text), WeightedSum)


def test_all_losses_have_a_name() -> None:
    functions = {n for n in denseloss.losses.__all__ if n.endswith("_loss")}
    assert {f"{n}_loss" for n in names()} == functions


def test_weighted_sum() -> None:
    criterion = WeightedSum(ce=CrossEntropyLoss(class_weight=torch.ones(3)), d=(0.5, DiceLoss()))
    terms = criterion.terms(Z, T)
    assert list(terms) == ["ce", "d"]
    torch.testing.assert_close(terms["d"], 0.5 * f.dice_loss(Z, T))
    assert list(criterion.state_dict()) == ["losses.ce.class_weight"]
    for other in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert torch.equal(other(Z, T), criterion(Z, T))
        assert str(other) == str(criterion)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(Z, T), criterion(Z, T))
    with pytest.raises(ValueError, match="at least one term"):
        WeightedSum()


def test_equal_terms_keep_their_names_apart() -> None:
    assert list(parse("dice + 2*dice(smooth=0) + dice").terms(Z, T)) == ["dice", "dice_2", "dice_3"]


def test_call_options_reach_every_term() -> None:
    void = T.clone()
    void[0] = 255
    value = parse("cross_entropy + dice")(Z, void, ignore_index=255)
    wanted = f.cross_entropy_loss(Z[1:], T[1:]) + f.dice_loss(Z[1:], T[1:])
    torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("space", "mode"), [((9,), "linear"), ((8, 9), "bilinear"), ((4, 6, 5), "trilinear")]
)
def test_at_target_size_is_interpolation_before_the_loss(space, mode, align_corners) -> None:
    small = torch.randn(2, 3, *[3] * len(space), requires_grad=True)
    target = torch.randint(0, 3, (2, *space))
    loss = AtTargetSize(CrossEntropyLoss(), align_corners=align_corners)(small, target)
    full = F.interpolate(small, size=space, mode=mode, align_corners=align_corners)
    torch.testing.assert_close(loss, F.cross_entropy(full, target))
    (grad,) = torch.autograd.grad(loss, small)
    (wanted,) = torch.autograd.grad(F.cross_entropy(full, target), small)
    torch.testing.assert_close(grad, wanted)


def test_at_target_size_takes_every_form_of_target() -> None:
    small = torch.randn(2, 3, 2, 2)
    at_size = AtTargetSize(parse("cross_entropy + dice"))
    wanted = at_size(small, T)
    torch.testing.assert_close(at_size(small, T.unsqueeze(1)), wanted)
    torch.testing.assert_close(sum(at_size.terms(small, T).values()), wanted)
    torch.testing.assert_close(at_size(small, f.one_hot(T, 3)), wanted)
    masks = f.one_hot(T, 3)
    full = F.interpolate(small, size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(
        AtTargetSize(denseloss.BinaryDiceLoss())(small, masks), f.binary_dice_loss(full, masks)
    )


def test_at_target_size_computes_in_float32_and_keeps_the_gradients_dtype() -> None:
    small = torch.randn(2, 3, 2, 2).bfloat16().requires_grad_()
    loss = AtTargetSize(CrossEntropyLoss())(small, T)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, AtTargetSize(CrossEntropyLoss())(small.float(), T))
    loss.backward()
    assert small.grad is not None
    assert small.grad.dtype == torch.bfloat16


def test_at_target_size_leaves_equal_sizes_alone_and_compiles() -> None:
    at_size = AtTargetSize(CrossEntropyLoss())
    assert torch.equal(at_size(Z, T), f.cross_entropy_loss(Z, T))
    small = torch.randn(2, 3, 2, 2)
    compiled = torch.compile(at_size, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(small, T), at_size(small, T))
    with pytest.raises(ValueError, match=r"AtTargetSize: logits must be .* got \[2, 3\]"):
        at_size(torch.zeros(2, 3), T)
    with pytest.raises(TypeError, match="CrossEntropyLoss has no terms"):
        at_size.terms(small, T)


def test_deep_supervision() -> None:
    maps = [torch.randn(2, 3, size, size) for size in (8, 4, 2)]
    at_size = AtTargetSize(CrossEntropyLoss())
    each = torch.stack([at_size(z, T) for z in maps])
    shares = torch.tensor([4.0, 2, 1]) / 7
    torch.testing.assert_close(DeepSupervision(CrossEntropyLoss())(maps, T), (shares * each).sum())
    even = DeepSupervision(CrossEntropyLoss(), weights=[1, 1, 1])
    torch.testing.assert_close(even(maps, T), each.mean())
    both = DeepSupervision(parse("cross_entropy + dice"))
    torch.testing.assert_close(sum(both.terms(maps, T).values()), both(maps, T))
    with pytest.raises(ValueError, match="one map per weight, 2, got 3"):
        DeepSupervision(CrossEntropyLoss(), weights=[1, 0.5])(maps, T)


MAPS = [
    torch.randn(2, 3, size, size + 1, generator=torch.Generator().manual_seed(4))
    for size in (9, 5, 3, 2)
]
LABELS = torch.randint(0, 3, (2, 9, 10), generator=torch.Generator().manual_seed(5))


def test_weights_of_maps_as_given() -> None:
    each = [AtTargetSize(DiceLoss())(z, LABELS) for z in MAPS[:2]]
    given = DeepSupervision(DiceLoss(), weights=[1, 0.5], normalise=False)
    torch.testing.assert_close(given(MAPS[:2], LABELS), each[0] + 0.5 * each[1])
    share = DeepSupervision(DiceLoss(), weights=[1, 0.5])
    torch.testing.assert_close(share(MAPS[:2], LABELS), (each[0] + 0.5 * each[1]) / 1.5)
    assert repr(given) != repr(share)
    assert "normalise=False" in repr(given)


def test_a_map_of_weight_0_is_skipped() -> None:
    maps = [MAPS[0], torch.full_like(MAPS[1], torch.nan).requires_grad_()]
    for criterion in (DiceLoss(), parse("dice + cross_entropy")):
        deep = DeepSupervision(criterion, weights=[1, 0])
        assert torch.equal(deep(maps, LABELS), criterion(MAPS[0], LABELS))
    assert sum(deep.terms(maps, LABELS).values()) == deep(maps, LABELS)


def test_a_target_for_each_map() -> None:
    targets = [LABELS, LABELS[:, ::2, ::2][:, :5, :5].flip(0), LABELS[:, :3, :4]]
    targets[1] = torch.nn.functional.pad(targets[1], (0, 1), value=-100)
    criterion = parse("cross_entropy + dice")
    deep = DeepSupervision(criterion, weights=[3, 2, 1], normalise=False)
    each = [criterion(z, t) for z, t in zip(MAPS[:3], targets, strict=True)]
    torch.testing.assert_close(deep(MAPS[:3], targets), 3 * each[0] + 2 * each[1] + each[2])
    weights = [torch.rand(t.shape) for t in targets]
    each = [criterion(z, t, weight=w) for z, t, w in zip(MAPS[:3], targets, weights, strict=True)]
    value = deep(MAPS[:3], tuple(targets), weight=weights)
    torch.testing.assert_close(value, 3 * each[0] + 2 * each[1] + each[2])


def nearest(x: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """[n *s] as torch shrinks it."""
    return F.interpolate(x.unsqueeze(1).double(), size, mode="nearest-exact").squeeze(1).to(x.dtype)


def test_a_target_that_shrinks() -> None:
    w = torch.rand(2, 9, 10)
    deep = DeepSupervision(CrossEntropyLoss(), resize="target", normalise=False)
    for options in ({}, {"weight": w}, {"class_weight": torch.tensor([1.0, 2, 3])}):
        wanted = 0
        for i, z in enumerate(MAPS):
            small = nearest(LABELS, z.shape[2:])
            chosen = dict(options)
            if "weight" in chosen:
                chosen["weight"] = nearest(w, z.shape[2:])
            wanted = wanted + 0.5**i * f.cross_entropy_loss(z, small, **chosen)
        torch.testing.assert_close(deep(MAPS, LABELS, **options), wanted)
        torch.testing.assert_close(deep(MAPS, LABELS.unsqueeze(1), **options), wanted)
    masks = f.one_hot(LABELS, 3)
    binary = DeepSupervision(BinaryDiceLoss(), resize="target", weights=[0, 1, 0, 0])
    small = F.interpolate(masks, MAPS[1].shape[2:], mode="nearest-exact")
    torch.testing.assert_close(binary(MAPS, masks), f.binary_dice_loss(MAPS[1], small))


@pytest.mark.parametrize(
    ("name", "weights", "shrinks"),
    [
        ("pranet", [1, 1, 1, 1], False),
        ("f3net", [0.5, 0.5, 0.5, 0.25, 0.125, 0.0625], False),
        ("nnunet", [4 / 7, 2 / 7, 1 / 7, 0], True),
        ("monai", [1, 0.5, 0.25, 0.125], True),
        ("torchvision", [1, 0.5], False),
    ],
)
def test_presets(name: str, weights: list[float], shrinks: bool) -> None:
    criterion = parse("cross_entropy + dice")
    maps = (MAPS + [2 * z for z in MAPS])[: len(weights)]
    wanted = 0
    for weight, z in zip(weights, maps, strict=True):
        if shrinks:
            wanted = wanted + weight * criterion(z, nearest(LABELS, z.shape[2:]))
        else:
            wanted = wanted + weight * AtTargetSize(criterion)(z, LABELS)
    deep = DeepSupervision.preset(name, criterion)
    torch.testing.assert_close(deep(maps, LABELS), wanted)
    torch.testing.assert_close(sum(deep.terms(maps, LABELS).values()), wanted)
    for other in (copy.deepcopy(deep), pickle.loads(pickle.dumps(deep))):
        assert torch.equal(other(maps, LABELS), deep(maps, LABELS))
    assert repr(deep) != repr(DeepSupervision(criterion))


def test_the_preset_of_monai_is_monais() -> None:
    monai = pytest.importorskip("monai.losses")
    theirs = monai.DeepSupervisionLoss(monai.DiceCELoss(to_onehot_y=True, softmax=True))
    maps = [*MAPS, 0.5 * MAPS[3], 2 * MAPS[3]]  # the weights end at 1/16
    ours = DeepSupervision.preset("monai", parse("dice(smooth=1e-5) + cross_entropy"))
    value = theirs(maps, LABELS.unsqueeze(1).float())
    torch.testing.assert_close(ours(maps, LABELS), value)


# ---------------------------------------------------------------- shared and resized passes


def test_a_subclass_sees_the_logits_themselves() -> None:
    """What stands for resized logits inside a pass holds no scores: nobody else may see it."""

    class Sharpened(CrossEntropyLoss):
        def forward(self, logits, target, **options):
            return super().forward(2 * logits, target, **options)

    small, labels = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 8, 8))
    full = torch.nn.functional.interpolate(small, size=(8, 8), mode="bilinear")
    for criterion in (Sharpened(), WeightedSum(a=Sharpened(), b=CrossEntropyLoss())):
        expected = criterion(full, labels)
        torch.testing.assert_close(AtTargetSize(criterion)(small, labels), expected)
    hooked = CrossEntropyLoss()
    hooked.register_forward_pre_hook(lambda _, args: (2 * args[0], args[1]))
    torch.testing.assert_close(AtTargetSize(hooked)(small, labels), Sharpened()(full, labels))
    foreign = torch.nn.CrossEntropyLoss()
    torch.testing.assert_close(AtTargetSize(foreign)(small, labels), foreign(full, labels))


def test_sums_of_sums() -> None:
    z, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8))
    inner = parse("cross_entropy + dice")
    outer = AtTargetSize(WeightedSum(a=inner, b=(0.5, parse("focal"))))
    full = torch.nn.functional.interpolate(z, size=(8, 8), mode="bilinear")
    expected = inner(full, labels) + 0.5 * parse("focal")(full, labels)
    torch.testing.assert_close(outer(z, labels), expected)


def test_a_value_may_be_added_to_in_place() -> None:
    z, labels = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randint(0, 3, (2, 4, 4))
    total = CrossEntropyLoss()(z, labels)
    total += parse("dice + focal")(z, labels)
    masks = torch.rand(2, 3, 4, 4)
    for loss in (BinaryFocalLoss(), BinaryDiceLoss()):
        value = loss(z, masks)
        value += total
        total = value
    total.backward()
    assert z.grad.isfinite().all()
