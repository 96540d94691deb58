"""What a plain name means on a binary task: the same formula, of the foreground."""

from __future__ import annotations

import inspect

import pytest
import torch

from denseloss import compose
from denseloss.data.samples import VOID
from denseloss.tasks.segmentation.criterion import SegmentationCriterion

PAIRS = sorted(name for name in compose.names() if f"binary_{name}" in compose.names())

# Options in which the value differs from that of the default, and which both forms have.
OPTIONS = {
    "cross_entropy": [""],
    "dice": ["", "smooth=0.3", "beta=2", "absent='skip'", "pool='batch'"],
    "focal": ["", "gamma=0.7"],
    "jaccard": ["", "smooth=0.3", "pool='batch'"],
    "tversky": ["", "alpha=0.2, beta=0.9"],
}


def on_a_binary_task(expression: str) -> SegmentationCriterion:
    return SegmentationCriterion(compose.parse(expression), mode="binary", num_classes=2)


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    z = 2 * torch.randn(3, 1, 9, 7, generator=generator)
    # Unequal shares of background, foreground and void, and an image without foreground.
    classes = (torch.rand(3, 9, 7, generator=generator) < 0.3).long()
    classes[2] = 0
    classes[torch.rand(3, 9, 7, generator=generator) < 0.2] = VOID
    return z, classes


def test_every_pair_is_looked_at() -> None:
    assert list(OPTIONS) == PAIRS


@pytest.mark.parametrize(
    "expression",
    [f"{name}({options})" for name in PAIRS for options in OPTIONS[name]],
)
def test_a_plain_name_is_its_own_formula_on_the_foreground(expression: str) -> None:
    """Of a pixel the value is the same; a region's is that of the class 1 alone."""
    z, classes = drawn()
    taken = on_a_binary_task(expression)([z], {"mask": classes}).sum()
    (loss,) = (one for _, _, one in compose.parse(expression).named_terms())
    two = torch.cat([torch.zeros_like(z), z], 1)
    regions = "pool" in inspect.signature(type(loss)).parameters
    chosen = {"class_weight": torch.tensor([0.0, 1.0])} if regions else {}
    torch.testing.assert_close(taken, loss(two, classes, ignore_index=VOID, **chosen))
    if regions:
        assert not torch.isclose(taken, loss(two, classes, ignore_index=VOID))


@pytest.mark.parametrize(
    ("expression", "what"),
    [
        ("focal(alpha=0.25)", "alpha"),
        ("focal(alpha=[1, 3])", "alpha"),
        ("dice(class_weight=[1, 3])", "class_weight"),
        ("cross_entropy(class_weight=[1, 3])", "class_weight"),
        ("jaccard(ignore_index=0)", "ignore_index"),
        ("cross_entropy(label_smoothing=0.1)", "label_smoothing"),
    ],
)
def test_an_option_that_means_something_else_there_keeps_two_classes(
    expression: str, what: str
) -> None:
    z, classes = drawn()
    criterion = on_a_binary_task(expression)
    two = torch.cat([torch.zeros_like(z), z], 1)
    ignored = (classes == 0) & (what == "ignore_index")
    seen = classes.masked_fill(ignored, VOID)
    wanted = compose.parse(expression)(two, seen, ignore_index=VOID)
    torch.testing.assert_close(criterion([z], {"mask": classes}).sum(), wanted)
    (note,) = criterion.notes
    assert what in note
    assert note.endswith("; it gets two classes, logits 0 and z")


def test_the_void_value_may_be_written() -> None:
    (note,) = on_a_binary_task("dice(ignore_index=255)").notes
    assert note == "binary task: dice(ignore_index=255) is taken as binary_dice"
