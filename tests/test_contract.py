"""What a call is checked against, and what the errors say."""

from __future__ import annotations

import inspect
import pydoc
import re
import timeit
from collections.abc import Callable
from typing import Annotated

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import denseloss
from denseloss import functional as F
from denseloss.contract import (
    ClassMap,
    Form,
    Interval,
    Kind,
    Logits,
    Masks,
    NonNegative,
    Odd,
    PixelWeight,
    Reduction,
    arguments,
    checked,
    kinds,
    nearest,
)
from denseloss.contract.texts import NAN
from denseloss.targets import ClassScores, StandIn
from denseloss.testing import example

BOXES = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
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
        (T.unsqueeze(-1), "target.squeeze(-1)"),
        (torch.zeros(2, 3, 4, dtype=torch.long), "logits.movedim(-1, 1)"),
        (torch.zeros(3, 4, 5, dtype=torch.long), "logits.unsqueeze(0), target.unsqueeze(0)"),
    ],
)
def test_errors_say_how_to_mend_a_target(target: Tensor, mend: str) -> None:
    assert mend in raised((TypeError, ValueError), Z, target)


def test_errors_say_how_to_mend_masks_and_weights() -> None:
    assert "unsqueeze(1)" in raised(ValueError, Z[:, :1], T, loss=F.binary_dice_loss)
    assert "without binary_" in raised(ValueError, Z, T, loss=F.binary_dice_loss)
    assert "target.movedim(-1, 1)" in raised(
        ValueError, Z, Z.movedim(1, -1), loss=F.binary_dice_loss
    )
    assert "class_weight" in raised(ValueError, Z, T, weight=torch.ones(3))


def test_not_a_tensor() -> None:
    assert "got list" in raised(TypeError, Z.tolist(), T)
    assert "got int 3" in raised(TypeError, Z, 3)
    outputs = {"out": Z, "aux": Z}
    said = raised(TypeError, outputs, T)
    assert said.endswith("got dict of 'out', 'aux'; pass one of its entries, such as logits['out']")
    said = raised(TypeError, [Z, Z], T)
    assert "got list of float32[2, 3, 4, 5], float32[2, 3, 4, 5]; pass one of its entries" in said


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


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: F.giou_loss(BOXES, BOXES, eps=1e-7),
            "giou_loss: unknown keyword 'eps'; known: fmt, weight, count, reduction",
        ),
        (lambda: F.giou_loss(BOXES), "giou_loss: target_boxes is missing"),
        (lambda: F.giou_loss(target_boxes=BOXES), "giou_loss: boxes is missing"),
        (
            lambda: F.dice_loss(Z, T, smoth=1),
            "dice_loss: unknown keyword 'smoth'; did you mean 'smooth'?",
        ),
        (
            lambda: F.cross_entropy_loss(Z, T, 255),
            "cross_entropy_loss: options are keywords: class_weight=...",
        ),
        (
            lambda: F.binary_focal_loss(Z, Z, 0.25, 2),
            "binary_focal_loss: options are keywords: gamma=...",
        ),
        (lambda: F.distribution_mean(Z, Z), "distribution_mean: takes logits, got 2 values"),
        (
            lambda: F.distribution_mean(Z, beta=1),
            "distribution_mean: unknown keyword 'beta'; there are no options",
        ),
        (lambda: F.dice_loss(Z, T, logits=Z), "dice_loss: logits is given twice"),
        (
            lambda: F.dice_loss(input=Z, target=T),
            "dice_loss: unknown keyword 'input'; did you mean 'logits'?",
        ),
        (
            lambda: F.dice_loss(Z, masks=T),
            "dice_loss: unknown keyword 'masks'; did you mean 'target'?",
        ),
        (
            lambda: F.dice_loss(Z, T, include_background=False),
            "dice_loss: unknown keyword 'include_background'; "
            "class_weight=[0, 1, ...] leaves the background out",
        ),
        (
            lambda: denseloss.CrossEntropyLoss(torch.ones(3)),
            "CrossEntropyLoss: options are keywords: class_weight=...",
        ),
        (lambda: denseloss.DistributionMean(3), "DistributionMean: there are no options"),
        (
            lambda: denseloss.CrossEntropyLoss(weigth=None),
            "CrossEntropyLoss: unknown keyword 'weigth'; did you mean 'weight'?",
        ),
        (lambda: denseloss.OneHot(), "OneHot: num_classes is missing"),
        (
            lambda: denseloss.CrossEntropyLoss()(input=Z, target=T),
            "cross_entropy_loss: unknown keyword 'input'; did you mean 'logits'?",
        ),
        (
            lambda: denseloss.CrossEntropyLoss()(Z, T, ignore=255),
            "cross_entropy_loss: unknown keyword 'ignore'; did you mean 'ignore_index'?",
        ),
        (lambda: denseloss.CrossEntropyLoss()(Z), "cross_entropy_loss: target is missing"),
    ],
)
def test_keywords_and_positions_are_answered_in_the_callers_words(
    call: Callable[[], object], said: str
) -> None:
    for _ in range(2):  # a call that was right before must not make a wrong one pass
        with pytest.raises(TypeError) as caught:
            call()
        assert str(caught.value) == said


def test_a_function_of_any_keywords_takes_them() -> None:
    @checked
    def open_loss(logits: Logits, *others: Tensor, **options: object) -> int:
        return len(others) + len(options)

    assert open_loss(Z, Z, Z, some=3) == 3
    with pytest.raises(TypeError, match="open_loss: logits is missing"):
        open_loss(some=3)


def test_numbers_that_are_no_tensor() -> None:
    for weight in ([1, 2, 3], torch.ones(3).numpy(), torch.ones(()).numpy()):
        said = raised(TypeError, Z, T, class_weight=weight, loss=F.cross_entropy_loss)
        assert said.endswith("pass torch.as_tensor(class_weight)")
        assert "torch.as_tensor(alpha)" in raised(TypeError, Z, T, alpha=weight)


def test_whole_numbers_are_whole() -> None:
    assert "ignore_index must be an integer" in raised(ValueError, Z, T, ignore_index=0.5)


def test_a_tensor_on_another_device_raises() -> None:
    said = raised(ValueError, Z, T.to("meta"))
    assert said == "focal_loss: target must be on the device of logits, cpu, got one on meta"
    assert "weight must be on" in raised(ValueError, Z, T, weight=torch.ones(2, 4, 5).to("meta"))
    scores = ClassScores(T, torch.rand(2, 4, 5, device="meta"))
    z = Z.movedim(1, -1)
    assert "target.score must" in raised(ValueError, z, scores, loss=F.binary_focal_loss)
    F.focal_loss(Z, T)  # remembered
    assert "got one on meta" in raised(ValueError, Z, T.to("meta"))
    assert F.focal_loss(Z.to("meta"), T.to("meta")).is_meta


class Shared(StandIn):
    def __init__(self, z: Tensor) -> None:
        self.z, self.shape, self.dtype, self.device = z, z.shape, z.dtype, z.device


@checked
def mean_loss(logits: Logits, target: ClassMap, *, smooth: NonNegative = 1.0) -> Tensor:
    return (logits.z if isinstance(logits, Shared) else logits).mean()


def test_a_stand_in_is_checked_like_its_tensor() -> None:
    for _ in range(2):
        assert mean_loss(Shared(Z), T) == 0
        assert mean_loss(Z, T) == 0
        said = raised(ValueError, Shared(Z), T[:, :2], loss=mean_loss)
        assert "with n=2, c=3, *s=(4, 5), got int64[2, 2, 5]" in said
        said = raised(TypeError, Shared(Z.long()), T, loss=mean_loss)
        assert "logits (scores) must be float[n c *s], got Shared int64[2, 3, 4, 5]" in said
        assert "target" in raised(TypeError, Z, Shared(Z), loss=mean_loss)
        assert "on meta" in raised(ValueError, Shared(Z), T.to("meta"), loss=mean_loss)
    compiled = torch.compile(mean_loss, fullgraph=True, backend="eager")
    assert compiled(Shared(Z), T) == 0


def test_a_stand_in_stands_for_one_kind() -> None:
    class Dense(Shared):
        stands_for = "Masks"

    assert "got Dense" in raised(TypeError, Dense(Z), T, loss=mean_loss)
    assert "got Shared" in raised(TypeError, Z, Shared(Z), loss=F.binary_dice_loss)


def test_sizes_that_are_symbols_are_checked() -> None:
    traced = make_fx(lambda z, t: mean_loss(z, t), tracing_mode="symbolic")(Z, T)
    assert traced(Z, T) == 0


def test_a_remembered_call_costs_little() -> None:
    @checked
    def nothing_loss(logits: Logits, target: ClassMap, *, smooth: NonNegative = 1.0) -> Tensor:
        return logits

    nothing_loss(Z, T)
    # 1.3 µs where it was measured; the bound is for slow and busy machines
    assert min(timeit.repeat(lambda: nothing_loss(Z, T), number=1000, repeat=9)) < 1000 * 10e-6


def test_a_signature_is_short_and_says_what_is_taken() -> None:
    said = str(inspect.signature(F.dice_loss))
    for part in (
        "(logits: float[n c *s], target: int[n *s] | int[n 1 *s] | float[n c *s], *, ",
        "smooth: >= 0 = 1.0",
        "ignore_index: int | None = -100",
        "pool: 'image' | 'batch' = 'image'",
        "class_weight: real[c] | None = None",
    ):
        assert part in said
    for name in F.__all__:
        said = str(inspect.signature(getattr(F, name)))
        assert len(said) < 500
        assert "Kind" not in said
    helped = pydoc.plain(pydoc.render_doc(denseloss.DiceLoss))
    assert "DiceLoss(*, beta: >= 0 = 1.0, smooth: >= 0 = 1.0" in helped
    assert "forward(self, logits, target, **options)" in helped
    assert "Kind" not in helped
    assert "0x" not in helped
    assert repr(kinds(F.dice_loss)["logits"]) == "Logits float[n c *s]"
    assert [repr(i) for i in (Interval(0), Interval(0, above=True), Interval(0, 1))] == [
        ">= 0",
        "> 0",
        "in [0, 1]",
    ]


def test_shared_arguments_are_filled_in_where_they_belong() -> None:
    @checked
    def ours_loss(
        logits: Logits,
        target: ClassMap,
        *,
        gamma: NonNegative = 1,
        weight: PixelWeight | None = None,
        ignore_index: int = -100,
    ) -> Tensor:
        """One line.

        Args:
            target: labels,
                on two lines.
            weight: special.
            extra: said although it is no argument.

        Returns:
            A scalar.
        """
        return logits.mean()

    assert inspect.getdoc(ours_loss) == (
        "One line.\n\nArgs:\n    logits: scores z.\n    target: labels,\n        on two lines.\n"
        "    weight: special.\n    ignore_index: the label of void pixels; None is none.\n"
        f"    extra: said although it is no argument.\n\nReturns:\n    A scalar.\n    {NAN}"
    )


def test_arguments_that_are_all_shared_need_no_section() -> None:
    @checked
    def ours_loss(logits: Logits, target: Masks) -> Tensor:
        """One line.

        Returns:
            A scalar.
        """
        return logits.mean()

    assert inspect.getdoc(ours_loss) == (
        "One line.\n\nArgs:\n    logits: scores z.\n    target: t in [0, 1], a mask per channel."
        f"\n\nReturns:\n    A scalar.\n    {NAN}"
    )


def test_a_docstring_without_sections_stays() -> None:
    @checked
    def ours_loss(logits: Logits) -> Tensor:
        """One line."""
        return logits.mean()

    @checked
    def bare_loss(logits: Logits) -> Tensor:
        return logits.mean()

    assert ours_loss.__doc__ == "One line."
    assert bare_loss.__doc__ is None


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


def test_an_example_of_a_users_own_kind() -> None:
    depth = Annotated[Tensor, Kind.of("Depth", "float[n 1 *s] | int[n d]", "metres")]
    parts = Annotated[Tensor, Kind.of("Parts", "int[n d *t 2]", "parts")]

    def deep_loss(logits: Logits, depth: depth, parts: parts) -> Tensor:
        return logits.mean()

    deep_loss.__annotations__.update(depth=depth, parts=parts)
    drawn = example(deep_loss, sizes={"n": 2, "*s": (4, 5), "d": 7}, dtype=torch.float64)
    assert drawn["depth"].shape == (2, 1, 4, 5)
    assert drawn["depth"].dtype == torch.float64
    assert drawn["parts"].shape == (2, 7, 4, 2)
    assert drawn["parts"].dtype == torch.int64
    checked(deep_loss)(**drawn)


def test_nearest() -> None:
    assert nearest("dise", ["dice", "focal"]) == "dice"
    assert nearest("xyz", ["dice", "focal"]) is None
