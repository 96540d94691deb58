"""A loss of the user's own: how it is named, what it is called with, what is said of it."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from denseloss import cli, compose, distributed, functional
from denseloss.compare.plan import Trial
from denseloss.compare.worker import Job, run_trial
from denseloss.compose import ParseError, UserLoss, folder_name, parse, short_names
from denseloss.data.errors import InputError
from denseloss.data.samples import VOID
from denseloss.data.transforms import denormalise
from denseloss.tasks import Split, named
from denseloss.tasks.segmentation.criterion import SegmentationCriterion
from denseloss.testing import diagnose
from denseloss.testing.first_look import Inputs, first_look
from denseloss.train import train
from denseloss.train.own_code import record
from denseloss.train.run import load_run
from denseloss.train.settings import TrainSettings
from tests import toy_task
from tests.plans import trial_plan

EXAMPLE = Path(__file__).parents[1] / "examples" / "my_loss.py"

CODE = '''
import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denseloss.contract import ClassMap, Image, Logits, Masks, PixelWeight, checked


def plain(logits, target, *, gamma=2.0):
    """Half of it."""
    return gamma * (logits.sigmoid() - target).square().mean()


def ignoring(pred, labels, ignore_index=-1):
    return F.cross_entropy(pred, labels, ignore_index=ignore_index)


def weighted(output, mask, *, weight=None):
    return F.binary_cross_entropy_with_logits(output, mask, weight)


def keras(y_true, y_pred):
    return (y_pred - y_true).square().mean()


def seen(logits, image, *, scale=1):
    return (logits.mean(1) - scale * image.mean(1)).square().mean()


def guided(logits, target, image):
    return (logits[:, 0] * target - image.mean(1)).square().mean()


def lax(pred, target=None, *, ignore_index=None):
    return F.cross_entropy(pred, target, ignore_index=ignore_index)


def needy(logits, target, *, order):
    return (logits - order).square().mean() + 0 * target.sum()


def listed(logits, target, *, shares: Tensor = (1.0, 1.0), sizes=(1,)):
    assert isinstance(sizes, list | tuple), sizes
    return (logits * shares.sum() * len(sizes) - target).square().mean()


@checked
def labelled(logits: Logits, target: ClassMap, *, ignore_index: int = -100) -> Tensor:
    return F.cross_entropy(logits, target, ignore_index=ignore_index)


def masked(logits: Logits, target: Masks, *, weight=1.0) -> Tensor:
    return (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight).mean()


def of_image(logits: Logits, picture: Image) -> Tensor:
    return (logits.mean(1) - picture.mean(1)).square().mean()


class Scaled(nn.Module):
    """Cross entropy, scaled."""

    def __init__(self, factor=1.0, ignore_index=-7):
        super().__init__()
        self.factor, self.ignore_index = factor, ignore_index
        self.register_buffer("held", torch.ones(2))

    def forward(self, logits, target):
        return self.factor * F.cross_entropy(logits, target, ignore_index=self.ignore_index)


class Learned(nn.Module):
    def __init__(self):
        super().__init__()
        self.free = nn.Parameter(torch.ones(3))

    def forward(self, logits, target):
        return (logits * self.free.sum() - target).square().mean()


made = Scaled(factor=3)
part = functools.partial(plain, gamma=5.0)
number = 3


def single(logits):
    return logits.mean()


def keys(logits, target):
    return plain(logits, target)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- how it is named


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("mine.py:plain", "HERE/mine.py:plain"),
        ("0.5*dice + 2*./mine.py:plain(gamma=3)", "0.5*dice + 2*HERE/mine.py:plain(gamma=3)"),
        ("mine.py:Scaled(factor=2)-dice", "HERE/mine.py:Scaled(factor=2) - dice"),
        ("(mine.py:made + dice)*2", "2*HERE/mine.py:made + 2*dice"),
        (
            "mine.py:listed(shares=[1, 2], sizes=[3])",
            "HERE/mine.py:listed(shares=[1, 2], sizes=[3])",
        ),
        ("mine.py:part", "HERE/mine.py:part"),
        ("torch.nn:CrossEntropyLoss", "torch.nn:CrossEntropyLoss"),
        (
            "'my files/a-b (1).py:plain'(gamma=4) + dice(pool='batch')",
            "'HERE/my files/a-b (1).py:plain'(gamma=4) + dice(pool='batch')",
        ),
        ('dice + "my files/a-b (1).py:plain"', "dice + 'HERE/my files/a-b (1).py:plain'"),
        (
            "sub-dir/x1.py:keys + sub-dir/x1.py:keys",
            "HERE/sub-dir/x1.py:keys + HERE/sub-dir/x1.py:keys",
        ),
        ("sub-dir/../mine.py:plain", "HERE/mine.py:plain"),
    ],
)
def test_a_name_of_code_is_a_term_and_its_text_is_the_whole_path(
    folder: Path, text: str, whole: str
) -> None:
    for path in ("my files/a-b (1).py", "sub-dir/x1.py"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(CODE)
    read = parse(text, mixed=True)
    assert str(read) == whole.replace("HERE", str(folder.resolve()))
    assert str(parse(str(read), mixed=True)) == str(read)
    assert [loss.given for loss in compose.user_losses(read)] == [
        loss.given for loss in compose.user_losses(parse(str(read), mixed=True))
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mine.py:plian", "mine.py has no plian; it has plain, ignoring"),
        ("none.py:plain", "there is no file .*none.py"),
        ("none.where:plain", "none.where cannot be imported: ModuleNotFoundError"),
        (
            "mi-ne:plain",
            "mi-ne:plain is no name of code; write file.py:name or package",
        ),
        ("mine.py:number", "number is no loss but of type int; a loss is a function"),
        ("mine.py:single", "single takes logits alone; a loss is called as loss\\(logits, target"),
        ("mine.py:needy", "needy needs order, .*write mine.py:needy\\(order=...\\)"),
        ("mine.py:plain(gama=3)", "plain: unknown keyword 'gama'; did you mean 'gamma'"),
        ("mine.py:Scaled(fact=3)", "Scaled: unknown keyword 'fact'; did you mean 'factor'"),
        ("mine.py:made(factor=3)", "made is a Module that is made already, .*Scaled, to give some"),
        ("mine.py:plain(3)", "options are keywords, as in mine.py:plain\\(gamma=2\\)"),
        ("mine.py:plain(gamma=1e999)", "gamma must be finite"),
        ("dice*mine.py:plain", "cannot read 'dice \\* mine.py:plain' .*a weight is one number"),
        ("mine.py:", "write a sum of terms"),
        ("broken.py:x", "broken.py cannot be imported: ZeroDivisionError"),
        ("leaving.py:x", "leaving.py cannot be imported: SystemExit"),
        ("mine.py:plain + " + "+".join(["dice"] * 3000), "at most 2000 characters"),
    ],
)
def test_what_is_wrong_with_a_name_is_one_line(folder: Path, text: str, said: str) -> None:
    (folder / "broken.py").write_text("x = 1 / 0")
    (folder / "leaving.py").write_text("raise SystemExit(3)")
    with pytest.raises(ParseError, match=said) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_an_edited_file_is_read_again(folder: Path) -> None:
    z, t = torch.randn(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    before = parse("mine.py:plain")(z, t)
    (folder / "mine.py").write_text(CODE.replace("gamma=2.0", "gamma=6.0"))
    torch.testing.assert_close(parse("mine.py:plain")(z, t), 3 * before)


def test_a_file_finds_what_lies_beside_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "beside_it.py").write_text("HALF = 0.5\n")
    (folder / "sub" / "main.py").write_text(
        "import beside_it\n\ndef f(logits, target):\n"
        "    return beside_it.HALF * (logits - target).square().mean()\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    z, t = torch.randn(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    torch.testing.assert_close(parse("sub/main.py:f")(z, t), (z - t).square().mean() / 2)


def test_short_names_say_as_much_of_a_path_as_tells_files_apart() -> None:
    given = ["/a/x/one.py:f + 2*dice", "/a/y/one.py:f", "'/b c/two (1).py:g'(k=1)", "pack.mod:h"]
    assert short_names(given) == [
        "x/one.py:f + 2*dice",
        "y/one.py:f",
        "'two (1).py:g'(k=1)",
        "pack.mod:h",
    ]
    assert short_names(given[:1]) == ["one.py:f + 2*dice"]
    assert folder_name("/a/x/one.py:f + 2*dice") == "one-f + 2*dice"


def test_lists_become_tensors_where_the_annotation_says_so(folder: Path) -> None:
    loss = UserLoss("mine.py:listed", {"shares": [1, 2], "sizes": [3]})
    z, t = torch.randn(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    torch.testing.assert_close(loss(z, t), (3 * z).square().mean())
    assert next(iter(loss.buffers())).tolist() == [1, 2]


def test_code_shares_the_passes_of_a_sum_only_where_it_is_checked_as_ours_are(folder: Path) -> None:
    assert UserLoss("mine.py:labelled").only_logits
    assert not UserLoss("mine.py:masked").only_logits
    assert not UserLoss("mine.py:plain").only_logits
    z, t = torch.randn(2, 3, 4, 4), torch.arange(32).view(2, 4, 4) % 3
    both = parse("mine.py:labelled + dice")
    torch.testing.assert_close(both(z, t), F.cross_entropy(z, t) + functional.dice_loss(z, t))


@pytest.mark.parametrize(
    "text", ["mine.py:plain", "mine.py:plain + 0.5*binary_dice", "mine.py:dice"]
)
def test_the_parts_of_a_batch_count_by_their_images(folder: Path, text: str) -> None:
    (folder / "mine.py").write_text(
        CODE + "\n\ndef dice(z, t):\n    from denseloss.functional import binary_dice_loss\n"
        "    return binary_dice_loss(z, t) + z.square().mean()\n"
    )
    model, criterion = nn.Conv2d(3, 1, 1), parse(text)
    x, t = torch.randn(5, 3, 6, 6), (torch.rand(5, 1, 6, 6) < 0.4).float()
    criterion(model(x), t).backward()
    wanted = model.weight.grad.clone()
    model.weight.grad = None
    parts = [(x[:1], t[:1]), (x[1:], t[1:])]
    for loss in distributed.accumulate(model, parse(text), parts):
        loss.backward()
    torch.testing.assert_close(model.weight.grad, wanted)


# ---------------------------------------------------------------- what it is called with


def taken(expression: str, *, classes: int, has_void: bool = False) -> SegmentationCriterion:
    return SegmentationCriterion(
        parse(expression, mixed=True),
        mode="binary" if classes == 2 else "multiclass",
        num_classes=classes,
        has_void=has_void,
    )


def drawn(classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    channels = 1 if classes == 2 else classes
    z = torch.randn(2, channels, 6, 5, generator=generator)
    target = torch.randint(0, classes, (2, 6, 5), generator=generator)
    target[0, :2] = VOID
    return z, target, torch.randn(2, 3, 6, 5, generator=generator)


def test_without_annotations_a_binary_task_gives_the_mask(folder: Path) -> None:
    z, target, image = drawn(2)
    criterion = taken("mine.py:plain(gamma=3) + 0.5*dice", classes=2)
    own, dice = criterion([z], {"mask": target, "image": image})
    mask = (target == 1)[:, None].float()
    torch.testing.assert_close(own, 3 * (z.sigmoid() - mask).square().mean())
    assert criterion.names == ("plain", "dice")
    assert criterion.notes[0] == (
        "plain is called with logits float[n 1 h w] and masks float[n 1 h w]; annotate its "
        "arguments to change that"
    )
    assert "counts as class 0" in criterion.notes[1]
    del dice


@pytest.mark.parametrize(
    "text", ["mine.py:ignoring", "mine.py:Scaled", "mine.py:labelled", "mine.py:lax"]
)
def test_several_classes_are_class_indices_and_void_is_ignored(folder: Path, text: str) -> None:
    z, target, image = drawn(4)
    criterion = taken(text, classes=4, has_void=True)
    (value,) = criterion([z], {"mask": target, "image": image})
    torch.testing.assert_close(value, F.cross_entropy(z, target, ignore_index=VOID))


def test_an_ignored_class_is_void_and_void_is_that_class(folder: Path) -> None:
    z, target, image = drawn(4)
    for text in ("mine.py:ignoring(ignore_index=2)", "mine.py:Scaled(ignore_index=2)"):
        (value,) = taken(text, classes=4, has_void=True)([z], {"mask": target, "image": image})
        seen = target.masked_fill(target == 2, VOID)
        torch.testing.assert_close(value, F.cross_entropy(z, seen, ignore_index=VOID))


def test_a_weight_is_0_where_void(folder: Path) -> None:
    z, target, image = drawn(2)
    criterion = taken("mine.py:weighted", classes=2, has_void=True)
    (value,) = criterion([z], {"mask": target, "image": image})
    known = (target != VOID)[:, None].float()
    each = F.binary_cross_entropy_with_logits(z, (target == 1)[:, None].float(), reduction="none")
    torch.testing.assert_close(value, (each * known).mean())
    assert "a weight float[n 1 h w], 0 where void" in criterion.notes[0]


def test_annotated_masks_of_several_classes_are_one_for_each(folder: Path) -> None:
    z, target, image = drawn(4)
    criterion = taken("mine.py:masked", classes=4, has_void=True)
    (value,) = criterion([z], {"mask": target, "image": image})
    masks = torch.stack([target == k for k in range(4)], 1).float()
    known = (target != VOID)[:, None].expand_as(masks)
    each = F.binary_cross_entropy_with_logits(z, masks, reduction="none")
    torch.testing.assert_close(value, (each * known).mean())
    assert criterion.link == "sigmoid"
    assert "gets one mask per class" in criterion.notes[0]


def test_annotated_classes_of_a_binary_task_are_two(folder: Path) -> None:
    z, target, image = drawn(2)
    criterion = taken("mine.py:labelled", classes=2, has_void=True)
    (value,) = criterion([z], {"mask": target, "image": image})
    two = torch.cat([torch.zeros_like(z), z], 1)
    torch.testing.assert_close(value, F.cross_entropy(two, target, ignore_index=VOID))
    assert criterion.notes == ("binary task: labelled gets two classes, logits 0 and z",)


def test_the_truth_may_come_first_and_the_image_may_be_asked_for(folder: Path) -> None:
    z, target, image = drawn(2)
    batch = {"mask": target, "image": image}
    mask, colours = (target == 1)[:, None].float(), denormalise(image).float()
    (value,) = taken("mine.py:keras", classes=2)([z], batch)
    torch.testing.assert_close(value, (z - mask).square().mean())
    for name in ("seen", "of_image"):
        (value,) = taken(f"mine.py:{name}", classes=2, has_void=True)([z], batch)
        two = torch.cat([torch.zeros_like(z), z], 1)
        torch.testing.assert_close(value, (two.mean(1) - colours.mean(1)).square().mean())
    (value,) = taken("mine.py:guided", classes=4)([drawn(4)[0]], batch)
    first = drawn(4)[0][:, 0]
    wanted = (first * target.masked_fill(target == VOID, 0) - colours.mean(1)).square().mean()
    torch.testing.assert_close(value, wanted)


def test_code_that_counts_void_pixels_is_refused_where_there_are_any(folder: Path) -> None:
    with pytest.raises(InputError, match="plain has neither ignore_index nor weight, and"):
        taken("mine.py:plain", classes=2, has_void=True)


@pytest.mark.parametrize("classes", [2, 4])
def test_what_the_code_writes_does_not_reach_the_scores(folder: Path, classes: int) -> None:
    z, target, image = drawn(classes)
    before = target.clone()
    criterion = taken("mine.py:plain" if classes == 2 else "mine.py:ignoring", classes=classes)
    (feed,) = criterion.feeds
    _, given, _ = feed([z], {"mask": target, "image": image})
    given.zero_()
    assert torch.equal(target, before)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0*dice + cross_entropy", "the weight of dice is 0; .*trains nothing"),
        ("cross_entropy - 2*dice", "the weight of dice is -2; .*trains the wrong way"),
        ("0*mine.py:plain", "the weight of plain is 0"),
    ],
)
def test_weights_are_above_0(folder: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        taken(text, classes=2)


def test_numbers_of_its_own_are_said_to_stay_as_they_are(folder: Path) -> None:
    notes = taken("mine.py:Learned", classes=2).notes
    assert any("Learned has 3 trainable numbers of its own" in note for note in notes)


def test_an_exception_while_training_names_the_file_and_the_line(folder: Path) -> None:
    (folder / "late.py").write_text("def late(logits, target):\n    raise KeyError('gone')\n")
    z, target, image = drawn(2)
    with pytest.raises(InputError, match=r"late raises KeyError at late\.py, line 2: 'gone'"):
        taken("late.py:late + dice", classes=2)([z], {"mask": target, "image": image})


def test_a_weight_per_class_is_not_taken_for_that_of_pixels(folder: Path) -> None:
    code = (
        "import torch.nn.functional as F\nfrom denseloss.contract import *\n"
        "def ce(logits, target, weight=None):\n"
        "    return F.cross_entropy(logits, target, weight=weight)\n"
        "def said(logits: Logits, target: ClassMap, weight: ClassWeight | None = None):\n"
        "    return F.cross_entropy(logits, target, weight=weight)\n"
    )
    (folder / "ces.py").write_text(code)
    z, target, image = drawn(4)
    batch = {"mask": target.masked_fill(target == VOID, 1), "image": image}
    with pytest.raises(InputError, match=r"ce raises .* weight=float32\[2, 6, 5\].*class_weight"):
        taken("ces.py:ce", classes=4).look([z], batch)
    criterion = taken("ces.py:said(weight=[1, 2, 3, 4])", classes=4)
    assert criterion.look([z], batch) == ()
    wanted = F.cross_entropy(z, batch["mask"], torch.tensor([1.0, 2, 3, 4]))
    torch.testing.assert_close(criterion([z], batch).sum(), wanted)
    torch.testing.assert_close(
        taken("ces.py:said", classes=4)([z], batch).sum(), F.cross_entropy(z, batch["mask"])
    )


def test_wrong_values_are_named_where_the_code_is_annotated(folder: Path) -> None:
    z, t = torch.randn(1, 3, 2, 2), torch.tensor([[[0, 1], [7, 2]]])
    said = diagnose(parse("mine.py:labelled + dice"), z, t)
    assert said == ["target: 1 of 4 labels are outside 0 to 2 and are not ignore_index: 7"]
    assert diagnose(parse("mine.py:plain", mixed=True), z, t) == []


# ---------------------------------------------------------------- a first look


class Memory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, logits, target, **_):
        self.calls += 1
        return self.calls * logits.square().mean() + 0 * target.sum()


def ordinary() -> Inputs:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 1, 8, 8, generator=generator)
    t = (torch.rand(2, 1, 8, 8, generator=generator) < 0.4).float()
    void = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    void[..., :2, :] = True
    return Inputs(z, [t], {"weight": (~void).float()}, void)


def bce(z, t, weight):
    each = F.binary_cross_entropy_with_logits(z, t, reduction="none")
    return (each * weight).sum() / weight.sum().clamp(min=1)


def written(z, t, weight):
    t[t > 0.5] = 2
    return bce(z, t, weight)


def written_logits(z, t, weight):
    z.clamp_(-1, 1)
    return bce(z, t, weight)


FATAL = {
    "no tensor": (lambda *_, **__: 3.0, "gives float 3.0; a loss gives a tensor of one number"),
    "several": (lambda z, *_, **__: (z.mean(), z.sum()), "gives tuple of float32\\[\\]"),
    "per image": (lambda z, *_, **__: z.mean((1, 2, 3)), "a value for each image, float32\\[2\\]"),
    "per pixel": (lambda z, t, **_: z - t, "for each pixel, float32\\[2, 1, 8, 8\\].*\\.mean"),
    "whole numbers": (lambda z, *_, **__: (z > 0).sum(), "gives int64\\[\\].*of floating point"),
    "detached": (lambda z, t, weight: bce(z.detach(), t, weight), "has no gradient"),
    "rounded": (lambda z, t, **_: ((z > 0) != t).float().mean(), "has no gradient"),
    "constant": (
        lambda z, t, **_: (z - z).square().mean() + t.mean(),
        "does not depend on the logits: it is 0.[0-9]* whatever they are",
    ),
    "of another": (
        lambda *_, **__: torch.ones(1, requires_grad=True).sum(),
        "does not depend on the logits",
    ),
    "nan": (lambda z, t, **_: (z * t).log().mean(), "is nan for ordinary logits of -"),
    "nan gradient": (
        lambda z, t, **_: torch.where(t > 0, z, z.abs().sqrt() * 0 + (z * 0).sqrt()).mean(),
        "gradient that is NaN or infinite at [0-9]+ of 128 logits",
    ),
    "raises": (lambda z, *_, **__: z @ torch.ones(5), "raises RuntimeError at .*, line [0-9]+: "),
    "writes": (written, "writes to its second argument"),
    "writes logits": (written_logits, "writes to its logits"),
}

ODD = {
    "sum": (lambda z, t, weight: bce(z, t, weight) * len(z), "is no mean over the images"),
    "memory": (Memory(), "is not the same twice"),
    "random": (lambda z, t, weight: bce(z, t, weight) * torch.rand(()), "is not the same twice"),
    "double": (lambda z, t, weight: bce(z, t, weight).double(), "gives float64\\[\\] for logits"),
    "void": (lambda z, t, weight: bce(z, t, torch.ones_like(weight)), "counts void pixels"),
    "extreme": (
        lambda z, t, weight: bce(z.exp().clamp(min=0) - 1, t, weight),
        "for logits of ±10000",
    ),
    "no foreground": (
        lambda z, t, weight: bce(z, t, weight) / t.sum() * t.sum(),
        "is nan where nothing is there",
    ),
    "blind": (lambda z, t, weight: bce(z, t * 0, weight), "does not depend on its second argument"),
}


def others() -> dict[str, Inputs]:
    usual = ordinary()
    of = {"where nothing is there": torch.zeros_like, "where all is there": torch.ones_like}
    return {
        words: Inputs(usual.logits, [make(usual.rest[0])], usual.options)
        for words, make in of.items()
    }


@pytest.mark.parametrize("what", FATAL)
def test_what_cannot_be_trained_with_is_one_fatal_sentence(what: str) -> None:
    loss, said = FATAL[what]
    (found,) = first_look(loss, ordinary(), name="mine")
    assert found.fatal
    assert re.search(said, found.text), found.text
    assert found.text.startswith("mine ")
    assert "\n" not in found.text


@pytest.mark.parametrize("what", ODD)
def test_what_is_odd_is_a_sentence_and_training_goes_on(what: str) -> None:
    loss, said = ODD[what]
    found = first_look(loss, ordinary(), name="mine", others=others())
    assert not any(one.fatal for one in found)
    assert any(re.search(said, one.text) for one in found), found


def test_a_sound_loss_passes_and_the_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    assert first_look(bce, ordinary(), others=others()) == []
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- through the tool


def words(verb: str, *options: str) -> list[str]:
    tiny = ["--size", "32", "--batch-size", "2", "--accelerator", "cpu", "--precision", "32-true"]
    return [verb, "synthetic:blobs?n=6&size=32", *tiny, *options]


def refused(capsys: pytest.CaptureFixture[str], line: list[str]) -> str:
    capsys.readouterr()
    assert cli.main(line) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    return said


def test_the_example_trains_and_goes_on_only_with_the_same_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_loss.py").write_text(EXAMPLE.read_text())
    loss = "my_loss.py:poly_loss(epsilon=2) + 0.5*dice"
    line = words("train", "--loss", loss, "--steps", "2", "--workers", "0")
    assert cli.main(line) == 0
    shown = capsys.readouterr().out
    assert f"loss: {loss}\n" in shown
    assert "binary task: poly_loss gets two classes, logits 0 and z" in shown
    (run,) = Path("runs").iterdir()
    assert re.fullmatch(
        "synthetic-blobs-my-loss-poly-loss-epsilon-2-0.5-dice-[0-9a-f]{4}-0", run.name
    )
    assert (run / "my_loss.py").read_text() == EXAMPLE.read_text()
    config = tomllib.loads((run / "config.toml").read_text())
    assert config["settings"]["loss"] == f"{tmp_path}/{loss}"
    header = (run / "metrics.csv").read_text().splitlines()[0]
    assert "loss/poly_loss" in header

    (run / "summary.json").unlink()
    Path("my_loss.py").write_text(EXAMPLE.read_text().replace("1 - torch", "2 - torch"))
    assert "my_loss.py was edited since it began; set it back" in refused(capsys, line)
    Path("my_loss.py").write_text(EXAMPLE.read_text())
    assert cli.main(line) == 0


def test_the_example_is_compared_and_its_source_is_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "my_loss.py", tmp_path / "out"
    file.write_text(EXAMPLE.read_text())
    line = words("compare", "--loss", "dice", "--loss", f"{file}:poly_loss", "--out", str(out))
    line += ["--seeds", "1", "--lr", "1", "--steps", "2"]
    assert cli.main(line) == 0
    report, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    assert "## Losses of your own" in report
    assert f"```python\n{EXAMPLE.read_text().strip()}\n```" in report
    assert "entropy + epsilon * (1 - torch.exp(-entropy))" in page
    for text in (report, page, (out / "results.csv").read_text()):
        assert "my_loss.py:poly_loss" in text
    assert f"`{file}:poly_loss`" not in report
    assert (out / "code" / "my_loss.py").read_text() == EXAMPLE.read_text()
    names = sorted(path.name for path in (out / "trials").iterdir())
    assert re.fullmatch("my-loss-poly-loss-[0-9a-f]{6}", names[1])

    file.write_text(EXAMPLE.read_text().replace("1 - torch", "2 - torch"))
    assert "my_loss.py was edited since it began" in refused(capsys, [*line, "--loss", "jaccard"])
    file.unlink()
    assert cli.main(["report", str(out)]) == 0
    assert (out / "report.md").read_text() == report


def test_a_trial_does_not_run_with_code_that_was_edited_since_it_was_planned(
    folder: Path, tmp_path: Path
) -> None:
    loss = str(parse("mine.py:plain"))
    plan = trial_plan(loss=loss)
    job = Job(
        root=tmp_path / "out",
        trial=Trial(loss=loss, seed=0, lr=plan.lr),
        plan=plan,
        data="",
        context={},
        keep=0,
        code=record([loss]),
        cwd=str(folder),
    )
    assert Job.from_json(job.to_json()) == job
    (folder / "mine.py").write_text(CODE + "\n")
    failed = run_trial(job)
    assert failed is not None
    assert "mine.py was edited since it began" in failed.error


def test_a_trained_network_is_loaded_though_its_loss_is_gone_or_changed(
    folder: Path, tmp_path: Path
) -> None:
    settings = TrainSettings(
        data="synthetic:blobs?n=6&size=32",
        loss="mine.py:Learned",
        out=tmp_path / "run",
        steps=1,
        size=32,
        batch_size=2,
        workers=0,
        accelerator="cpu",
        precision="32-true",
    )
    train(settings)
    task = named("segmentation")
    data = task.open(settings.data, task.settings(), split=Split())
    for change in ("x = 3\n", None):
        (folder / "mine.py").unlink()
        if change:
            (folder / "mine.py").write_text(change)
        plan, module = load_run(tmp_path / "run", data)
        assert plan.loss == f"{folder}/mine.py:Learned"
        assert module.criterion.names == ("Learned",)
    (tmp_path / "run" / "mine.py").unlink()
    with pytest.raises(ParseError, match=r"there is no file .*mine\.py"):
        load_run(tmp_path / "run", data)


def test_a_task_of_ones_own_feeds_code_of_ones_own(folder: Path) -> None:
    task = toy_task.Brightness()
    outputs, batch = torch.randn(4, requires_grad=True), {"value": torch.rand(4)}
    for name in ("plain", "masked"):
        criterion = task.criterion(parse(f"mine.py:{name}"), None)
        criterion(outputs, batch).sum().backward()
        assert criterion.look(outputs, batch) == ()
    with pytest.raises(InputError, match="labelled takes Logits and ClassMap, which brightness"):
        task.criterion(parse("mine.py:labelled"), None)


def test_what_cannot_be_trained_with_is_refused_before_anything_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.py").write_text(
        "def raising(logits, target):\n    return logits.nonsense()\n\n"
        "def each(logits, target):\n    return (logits - target).square().mean((1, 2, 3))\n"
    )
    train = words("train", "--steps", "2", "--loss")
    said = refused(capsys, [*train, "bad.py:raising"])
    assert "--loss: raising raises AttributeError at bad.py, line 2" in said
    assert "it was called with float32[2, 1, 32, 32], float32[2, 1, 32, 32]" in said
    compared = words("compare", "--loss", "dice", "--loss")
    assert "each gives a value for each image, float32[2]" in refused(
        capsys, [*compared, "dice + bad.py:each"]
    )
    assert "the weight of dice is 0" in refused(capsys, [*train, "0*dice + cross_entropy"])
    assert not any(path.suffix == ".ckpt" for path in folder.rglob("*"))
    assert not list(Path("runs").rglob("config.toml"))


def test_show_tells_signature_file_and_what_was_found(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["show", "mine.py:plain"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("plain(logits, target, *, gamma=2.0)\n\nHalf of it.\n")
    assert f"file: {folder / 'mine.py'}" in shown
    assert "nothing is wrong with it" in shown
    assert cli.main(["show", "mine.py:Scaled"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Scaled(factor=1.0, ignore_index=-7)(logits, target)\n\nCross entropy")
    assert "note: Scaled is nan where all pixels are void" in shown
    assert "has no plian" in refused(capsys, ["show", "mine.py:plian"])


def test_the_help_of_train_names_code_of_your_own() -> None:
    assert "file.py:name" in (TrainSettings.__doc__ or "")
