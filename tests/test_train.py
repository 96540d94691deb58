"""`denseloss.train`: what a loss becomes on a task, what a run leaves, how it is resumed."""

import csv
import errno
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from denseloss import compose, functional
from denseloss.data import VOID, denormalise
from denseloss.data.errors import InputError
from denseloss.tasks import Split
from denseloss.tasks.segmentation import (
    Segmentation,
    SegmentationDataset,
    SegmentationSettings,
    open_data,
)
from denseloss.tasks.segmentation.criterion import SegmentationCriterion, as_masks
from denseloss.tasks.segmentation.meter import OverlapMeter
from denseloss.tasks.segmentation.network import build_model
from denseloss.train import TrainSettings, train
from denseloss.train.errors import DivergedError
from denseloss.train.folder import FORMAT, RunFolder, difference, to_toml
from denseloss.train.loading import Loading, Shard, train_loader
from denseloss.train.plan import check_devices, plan_of
from denseloss.train.precision import faster
from denseloss.train.run import opened
from denseloss.train.schedule import SampleStream, Schedule, steps_per_epoch
from tests.plans import trial_plan

FILES = {
    "best.ckpt",
    "config.toml",
    "curves.png",
    "last.ckpt",
    "log.jsonl",
    "metrics.csv",
    "samples.png",
    "summary.json",
}


def make_folder(root: Path, *, classes: int = 2, images: int = 8, size: int = 48) -> Path:
    """Squares on noise, a class per brightness; one stripe of void (255) when multiclass."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(images):
        mask = np.zeros((size, size), np.uint8)
        for index in range(1, classes):
            top, left = rng.integers(0, size - 16, 2)
            mask[top : top + 14, left : left + 14] = index
        image = mask[..., None] * (200 // (classes - 1)) + rng.integers(0, 40, (size, size, 3))
        if classes > 2:
            mask[:2] = VOID
        else:
            mask *= 255
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"scene{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"scene{i}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "squares")


@pytest.fixture(scope="module")
def classes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "classes", classes=3)


def tiny(data: Path, out: Path, **changed: object) -> TrainSettings:
    settings = TrainSettings(
        data=str(data),
        loss="dice + cross_entropy",
        out=out,
        steps=8,
        val_every=2,
        size=32,
        batch_size=2,
        workers=0,
        accelerator="cpu",
        precision="32-true",
    )
    return replace(settings, **changed)  # type: ignore[arg-type]


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------- a loss on a task


def batch(classes: int, channels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, channels, 12, 10, generator=generator)
    target = torch.randint(0, classes, (2, 12, 10), generator=generator)
    target[:, :3] = VOID
    image = torch.randn(2, 3, 12, 10, generator=generator)
    return logits, target, image


def adapted(expression: str, *, mode: str, classes: int) -> SegmentationCriterion:
    parsed = compose.parse(expression)
    return SegmentationCriterion(parsed, mode=mode, num_classes=classes)  # type: ignore[arg-type]


def test_binary_task_takes_plain_losses_in_their_binary_form() -> None:
    logits, target, image = batch(2, 1)
    criterion = adapted("2*dice(smooth=3) + focal + structure(window=5)", mode="binary", classes=2)
    dice, focal, structure = criterion([logits], {"mask": target, "image": image})
    masks = as_masks(target, channels=1)
    torch.testing.assert_close(
        dice, 2 * functional.binary_dice_loss(logits, masks, smooth=3, ignore_index=VOID)
    )
    torch.testing.assert_close(
        focal, functional.binary_focal_loss(logits, masks, alpha=None, ignore_index=VOID)
    )
    torch.testing.assert_close(
        structure, functional.structure_loss(logits, masks, window=5, ignore_index=VOID)
    )
    assert criterion.num_outputs == 1
    assert criterion.names == ("dice", "focal", "structure")
    assert criterion.notes == (
        "binary task: dice(smooth=3) is taken as binary_dice(smooth=3)",
        "binary task: focal is taken as binary_focal(alpha=None)",
    )


@pytest.mark.parametrize("name", ["balanced_cross_entropy", "cross_entropy(label_smoothing=0.1)"])
def test_binary_task_without_a_binary_form_gets_two_classes(name: str) -> None:
    logits, target, image = batch(2, 1)
    criterion = adapted(name, mode="binary", classes=2)
    two = torch.cat([torch.zeros_like(logits), logits], 1)
    expected = compose.parse(name)(two, target, ignore_index=VOID)
    torch.testing.assert_close(
        criterion([logits], {"mask": target, "image": image}).sum(), expected
    )
    assert "it gets two classes, logits 0 and z" in criterion.notes[0]


@pytest.mark.parametrize("name", ["quality_focal", "varifocal", "binary_tversky(alpha=0.3)"])
@pytest.mark.parametrize(("mode", "classes"), [("binary", 2), ("multiclass", 3)])
def test_losses_of_independent_channels_get_masks(name: str, mode: str, classes: int) -> None:
    criterion = adapted(name, mode=mode, classes=classes)
    logits, target, image = batch(classes, criterion.num_outputs)
    masks = torch.stack([target == k for k in range(classes)], 1).float()
    masks = masks[:, 1:] if mode == "binary" else masks
    valid = (target != VOID)[:, None].expand_as(masks).float()
    expected = compose.parse(name)(logits, masks, weight=valid)
    torch.testing.assert_close(
        criterion([logits], {"mask": target, "image": image}).sum(), expected
    )


def test_multiclass_task_gives_plain_losses_the_class_map() -> None:
    logits, target, image = batch(3, 3)
    criterion = adapted(
        "cross_entropy(class_weight=[1, 2, 5]) + 0.5*dice(ignore_index=0)",
        mode="multiclass",
        classes=3,
    )
    entropy, dice = criterion([logits], {"mask": target, "image": image})
    weight = torch.tensor([1.0, 2.0, 5.0])
    torch.testing.assert_close(
        entropy,
        torch.nn.functional.cross_entropy(logits, target, weight=weight, ignore_index=VOID),
    )
    void = target.masked_fill(target == 0, VOID)
    torch.testing.assert_close(dice, 0.5 * functional.dice_loss(logits, void, ignore_index=VOID))
    assert criterion.notes == ()


def test_ncut_gets_the_image() -> None:
    logits, target, image = batch(3, 3)
    criterion = adapted("ncut(radius=2)", mode="multiclass", classes=3)
    expected = functional.ncut_loss(logits, denormalise(image).float(), radius=2)
    torch.testing.assert_close(
        criterion([logits], {"mask": target, "image": image}).sum(), expected
    )


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
@pytest.mark.parametrize("name", sorted(compose.names()))
def test_every_loss_of_masks_trains_and_no_other(name: str, mode: str) -> None:
    detection = {"iou", "giou", "diou", "ciou", "distribution_focal"}
    if name in detection:
        with pytest.raises(InputError, match=f"--loss: {name} is a loss of"):
            adapted(name, mode=mode, classes=2)
        return
    criterion = adapted(name, mode=mode, classes=2)
    logits, target, image = batch(2, criterion.num_outputs)
    logits = logits.requires_grad_()
    # What lies under a void pixel has no say. N-cut has no labels, thus no void pixels.
    if name != "ncut":
        with torch.no_grad():
            logits[:, :, :3] = torch.nan
    criterion([logits], {"mask": target, "image": image}).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0
    if name != "ncut":
        assert not logits.grad[:, :, :3].any()


def test_several_logits_are_brought_to_the_labels_and_share_the_loss() -> None:
    logits, target, image = batch(3, 3)
    small = torch.randn(2, 3, 6, 5)
    criterion = adapted("cross_entropy + dice", mode="multiclass", classes=3)
    large = torch.nn.functional.interpolate(small, (12, 10), mode="bilinear", align_corners=False)
    one, other = (criterion([z], {"mask": target, "image": image}) for z in (logits, large))
    both = criterion([logits, small], {"mask": target, "image": image})
    torch.testing.assert_close(both, (2 * one + other) / 3)


class Passes(TorchDispatchMode):
    """Counts the passes over logits of exclusive classes."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += str(function).startswith("denseloss.softmax.")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("maps", [1, 2])
def test_terms_that_are_fed_alike_share_a_pass_over_the_logits(maps: int) -> None:
    logits, target, image = batch(3, 3)
    outputs = [logits, torch.randn(2, 3, 6, 5)][:maps]
    criterion = adapted(
        "dice + binary_dice + cross_entropy(ignore_index=0) + 2*focal", mode="multiclass", classes=3
    )
    with Passes() as passes:
        terms = criterion(outputs, {"mask": target, "image": image})
    # dice and focal; cross entropy, whose void pixels are others.
    assert passes.count == 2 * maps
    assert criterion.names == ("dice", "binary_dice", "cross_entropy", "focal")
    alone = [
        adapted(name, mode="multiclass", classes=3)(outputs, {"mask": target, "image": image}).sum()
        for name in ("dice", "binary_dice", "cross_entropy(ignore_index=0)", "2*focal")
    ]
    torch.testing.assert_close(terms, torch.stack(alone))


def test_a_job_of_slurm_with_many_tasks_is_one_process_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in {
        "JOB_ID": 7,
        "JOB_NAME": "it.sh",
        "NTASKS": 8,
        "PROCID": 0,
        "LOCALID": 0,
    }.items():
        monkeypatch.setenv(f"SLURM_{key}", str(value))
    settings = TrainSettings(
        data=str(make_folder(tmp_path / "data")), loss="dice", steps=1, size=32, accelerator="cpu"
    )
    result = train(replace(settings, out=tmp_path / "out"))
    assert result.folder == tmp_path / "out"


def test_batches_are_of_types_that_every_accelerator_has(tmp_path: Path) -> None:
    data = open_data(str(make_folder(tmp_path, images=6)), seed=0, val_share=0.5)
    items = SegmentationDataset(data, data.val, size=32, train=False, seed=0)
    (batch,) = DataLoader(Shard(items, rank=1, world=2), batch_size=2)
    assert batch["counts"].tolist() == [1.0, 0.0]
    # Apple's GPUs have no float64.
    assert {x.dtype for x in batch.values() if isinstance(x, torch.Tensor)} == {
        torch.float32,
        torch.int64,
    }


def test_a_loss_must_give_one_number() -> None:
    with pytest.raises(InputError, match="leave out reduction='none'"):
        adapted("dice(reduction='none')", mode="multiclass", classes=3)


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("spec", ["dynunet", "smp:Unet", "smp:deeplabv3plus:resnet18", "smp:PAN"])
@pytest.mark.parametrize("size", [(64, 64), (37, 50), (5, 7)])
def test_models_take_any_size(spec: str, size: tuple[int, int]) -> None:
    model = build_model(spec, num_outputs=2)
    (logits,) = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 2, *size)


@pytest.mark.slow
def test_every_smp_architecture_is_built() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    for arch in smp.MODEL_ARCHITECTURES_MAPPING:
        (logits,) = build_model(f"smp:{arch}", num_outputs=3)(torch.randn(2, 3, 100, 70))
        assert logits.shape == (2, 3, 100, 70), arch


def test_heads_of_deep_supervision_have_their_own_sizes_in_training_only() -> None:
    model = build_model("dynunet", num_outputs=2, deep_supervision=True)
    sizes = [tuple(z.shape[-2:]) for z in model(torch.randn(1, 3, 100, 64))]
    assert sizes == [(100, 64), (50, 32), (25, 16), (13, 8)]
    assert len(model.eval()(torch.randn(1, 3, 100, 64))) == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dynunett", "did you mean dynunet"),
        ("DeepLabV3", "not a known model"),
        ("smp:Unett", "did you mean Unet"),
        ("smp:Unet:resnet19", "no such encoder"),
        ("smp:UnetPlusPlus:mit_b0", "cannot be built"),
    ],
)
def test_unknown_models_are_one_line(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        build_model(spec, num_outputs=1)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- what is drawn


def stream(step: int, **options: int) -> SampleStream:
    schedule = Schedule(steps=10, val_every=4, lr=1, weight_decay=0)
    settings = {"images": 7, "batch_size": 2, "seed": 3, **options}
    return SampleStream(schedule=schedule, step=lambda: step, **settings)


def test_an_epoch_is_one_pass_and_a_stream_ends_at_the_next_validation() -> None:
    whole = [key for step in (0, 4, 8) for keys in stream(step) for key in keys]
    assert len(whole) == 20
    assert list(stream(6)) == [stream(0).batch(s) for s in (6, 7)]
    first = [index for epoch, index in whole if epoch == 0]
    assert len(first) == len(set(first)) == 6
    assert first != [index for epoch, index in whole if epoch == 1]
    assert steps_per_epoch(7, 2) == 3


def test_ranks_share_an_epoch() -> None:
    ranks = [stream(0, images=8, rank=rank, world=2) for rank in (0, 1)]
    seen = [index for s in (0, 1) for ranked in ranks for _, index in ranked.batch(s)]
    assert sorted(seen) == list(range(8))


def test_images_repeat_where_they_do_not_fill_a_batch() -> None:
    keys = stream(0, images=3, batch_size=8).batch(0)
    assert [index for _, index in keys[:3]] == [index for _, index in keys[3:6]]


def test_workers_and_loss_do_not_change_what_is_drawn(folder: Path) -> None:
    data = open_data(folder)
    schedule = Schedule(steps=6, val_every=6, lr=1, weight_decay=0)
    drawn = []
    for workers in (0, 2):
        loading = Loading(
            task=Segmentation(), data=data, size=32, batch_size=2, seed=5, workers=workers
        )
        loader = train_loader(loading, schedule, step=lambda: 0)
        drawn.append([batch["image"] for batch in loader])
    assert len(drawn[0]) == 6
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
    again = SegmentationDataset(data, data.train, size=32, train=True, seed=5)
    epoch, index = SampleStream(
        images=len(data.train), batch_size=2, seed=5, schedule=schedule, step=lambda: 0
    ).batch(5)[0]
    again.set_epoch(epoch)
    assert torch.equal(again[index]["image"], drawn[0][5][0])  # type: ignore[arg-type]


def test_ranks_have_equally_many_validation_images_and_count_each_once(folder: Path) -> None:
    data = open_data(folder)
    items = SegmentationDataset(data, data.train[:5], size=32, train=False)
    shards = [Shard(items, rank=rank, world=2) for rank in (0, 1)]
    assert [len(shard) for shard in shards] == [3, 3]
    drawn = [shard[place] for shard in shards for place in range(3)]
    counted = [item["index"] for item in drawn if item["counts"]]
    assert sorted(counted) == [0, 1, 2, 3, 4]


# ---------------------------------------------------------------- scores


def test_scores_are_pooled_over_pixels(folder: Path, classes_folder: Path) -> None:
    def scored(data: Path, confusion: list[list[int]]) -> dict[str, float]:
        meter = OverlapMeter(open_data(data))
        channels = 1 if len(confusion) == 2 else 3
        for truth, row in enumerate(confusion):
            for prediction, count in enumerate(row):
                logits = torch.zeros(1, channels, 1, count)
                if channels == 1:
                    logits += prediction - 0.5
                else:
                    logits[:, prediction] = 1
                for counts in (1.0, 0.0):  # what repeats for equal ranks does not count
                    mask = torch.full((1, 1, count), truth if counts else 1)
                    given = {"mask": mask, "counts": torch.tensor([counts])}
                    if count:
                        meter.update([logits if counts else -logits], given)
        return meter.compute()

    scores = scored(folder, [[50, 10], [5, 35]])
    assert scores["score"] == scores["dice/foreground"] == pytest.approx(70 / (70 + 10 + 5))
    assert scores["iou"] == pytest.approx(35 / 50)
    several = scored(classes_folder, [[4, 0, 0], [0, 0, 0], [2, 0, 2]])
    assert np.isnan(several[f"dice/{open_data(classes_folder).class_names[1]}"])
    assert several["score"] == pytest.approx((8 / 10 + 4 / 6) / 2)


# ---------------------------------------------------------------- the run folder


def test_a_run_leaves_its_files_and_is_never_overwritten(folder: Path, tmp_path: Path) -> None:
    settings = tiny(folder, tmp_path / "run")
    result = train(settings)
    assert {path.name for path in result.folder.iterdir()} == FILES
    table = rows(result.folder)
    assert [row["step"] for row in table] == ["2", "4", "6", "8"]
    assert [row["epoch"] for row in table][:2] == ["0.67", "1.33"]
    for row in table:
        terms = float(row["loss/dice"]) + float(row["loss/cross_entropy"])
        assert float(row["loss"]) == pytest.approx(terms, rel=1e-5)
        assert float(row["score"]) == float(row["dice/foreground"])
    config = tomllib.loads((result.folder / "config.toml").read_text())
    assert config["settings"]["steps"] == 8
    assert config["settings"]["loss"] == "dice + cross_entropy"
    assert config["data"]["classes"] == ["background", "foreground"]
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary["best"]["score"] == max(float(row["score"]) for row in table)
    assert summary["steps"] == 8

    before = {path: path.stat().st_mtime_ns for path in result.folder.iterdir()}
    with pytest.raises(InputError, match="finished run, which is never overwritten"):
        train(settings)
    assert before == {path: path.stat().st_mtime_ns for path in result.folder.iterdir()}


def test_multiclass_with_void_and_deep_supervision(classes_folder: Path, tmp_path: Path) -> None:
    settings = tiny(
        classes_folder,
        tmp_path / "run",
        loss="cross_entropy + binary_dice",
        options=SegmentationSettings(deep_supervision=True),
        epochs=2,
        steps=None,
        val_every=None,
    )
    result = train(settings)
    (row,) = rows(result.folder)
    per_class = [float(row[key]) for key in row if key.startswith("iou/")]
    assert len(per_class) == 3
    assert float(row["iou"]) == pytest.approx(np.mean(per_class), abs=1e-6)
    assert row["epoch"] == "2"


def test_best_checkpoint_gives_the_best_score_again(folder: Path, tmp_path: Path) -> None:
    result = train(tiny(folder, tmp_path / "run", steps=4))
    best = torch.load(result.folder / "best.ckpt", weights_only=True)
    assert best["global_step"] == result.summary["best"]["step"]


def test_the_same_seed_starts_alike_whatever_the_loss(folder: Path, tmp_path: Path) -> None:
    # One step: the training loss is that of the first weights on the first batch.
    first = []
    for loss in ("binary_dice", "3*binary_cross_entropy + binary_dice"):
        result = train(tiny(folder, tmp_path / str(len(first)), loss=loss, steps=1))
        first.append(rows(result.folder)[0]["loss/binary_dice"])
    assert first[0] == first[1]


def test_a_folder_that_is_not_ours_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        train(tiny(folder, tmp_path))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 3, "epochs": 2}, "--steps and --epochs both say"),
        ({"lr": 0.0}, "--lr 0: must be larger than 0"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"seed": -1}, "--seed -1"),
        ({"devices": "all"}, "--devices all"),
        ({"devices": "0"}, "--devices 0: must be 1 or larger"),
        ({"devices": "99"}, r"would start 99 processes, and this CPU has \d+ cores? to use"),
        ({"devices": "0,1"}, "--devices 0,1: the processes on a CPU have no numbers; give 2"),
        ({"devices": "1,1"}, "--devices 1,1: names a device twice"),
        ({"seed": 10**25}, "--seed 10{25}: must be at most 9223372036854775807"),
        ({"split_seed": 2**63}, "--split-seed 9223372036854775808: must be at most"),
        ({"steps": 10**12}, "--steps 10{12}: must be at most 1000000000"),
        ({"steps": None, "epochs": 10**9}, r"--epochs 10{9}: are \d+ steps; at most 10{9}"),
        ({"val_every": 10**20}, "--val-every 10{20}: must be at most"),
        ({"size": 100_000}, "--batch-size 2 with --size 100000: the images of one step need 223"),
        ({"batch_size": 10**9}, "--batch-size 10{9} with --size 32: the images of one step need"),
        ({"workers": 2000}, "--workers 2000: must be at most 1024"),
        ({"lr": float("nan")}, "--lr nan: must be larger than 0, and finite"),
        ({"devices": "2", "average": 0.9}, "--average 0.9 works with one device"),
        ({"precision": "16-mixed"}, "use bf16-mixed"),
        ({"loss": "iou"}, "pairs of boxes"),
        ({"loss": "dise"}, "dice"),
        ({"model": "unet"}, "not a known model"),
    ],
)
def test_bad_settings_make_no_folder(
    folder: Path, tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        train(tiny(folder, tmp_path / "run", **changed))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_what_is_odd_is_said_before_anything_is_timed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("denseloss.train.plan._precision", lambda *_: "auto")
    told: list[str] = []

    def times(*_: object) -> tuple[float, float]:
        assert [line.partition(":")[0] for line in told] == ["note", "note", "note", *TIMED]
        return 1.0, 1.0

    settings = tiny(folder, tmp_path / "run", size=500, batch_size=7, workers=1000)
    task = Segmentation()
    data = open_data(folder)
    plan = plan_of(settings, task, "segmentation", data, clock=times, say=told.append)
    assert plan.precision == "32-true"
    assert "squares of 500 pixels are much larger than the images" in told[0]
    assert "is usually 48" in told[0]
    assert "try --size 64" in told[0]
    assert "a step has 7 images, and there are 6 to train on" in told[1]
    assert "1000 processes load images on" in told[2]
    told.clear()
    usual = tiny(folder, tmp_path / "run", size=None, batch_size=6)
    plan_of(usual, task, "segmentation", data, clock=times, known=plan, say=told.append)
    assert told == []


TIMED = ["timing some steps, to take the faster precision"]


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("1", None),
        ("2", None),
        ("1,0", None),
        ("3", "--devices 3: torch finds 2 GPUs here"),
        ("0,2", "--devices 0,2: torch finds 2 GPUs here; the first is 0, the last 1"),
    ],
)
def test_no_more_gpus_are_taken_than_there_are(
    devices: str, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    if message is None:
        check_devices(devices, "cuda")
    else:
        with pytest.raises(InputError, match=message):
            check_devices(devices, "cuda")


def test_a_long_look_at_the_data_is_told_once_where_there_is_no_bar(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds, expected in ((-1.0, ["looking at the data: 0 of 8 after -1 seconds"]), (60.0, [])):
        monkeypatch.setattr("denseloss.train.run._LONG_SECONDS", seconds)
        said = io.StringIO()
        data = opened(
            TrainSettings(data=str(folder)), Segmentation(), Split(), console=Console(file=said)
        )
        lines = said.getvalue().splitlines()
        assert [line for line in lines if "looking" in line] == expected
        assert len(data.train) == 6


def test_a_loss_that_is_not_finite_stops_the_run(folder: Path, tmp_path: Path) -> None:
    settings = tiny(folder, tmp_path / "run", lr=1e30, precision="32-true")
    with pytest.raises(InputError, match=r"stopped at step \d+: the loss term .* is (nan|inf)"):
        train(settings)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert "failed" in (tmp_path / "run" / "log.jsonl").read_text()


def test_training_stops_when_it_no_longer_gets_better(folder: Path, tmp_path: Path) -> None:
    result = train(tiny(folder, tmp_path / "run", steps=60, val_every=1, patience=1, lr=1e-9))
    assert result.summary["steps"] < 60
    assert result.summary["planned_steps"] == 60


def test_minutes_become_steps(folder: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    result = train(tiny(folder, tmp_path / "run", steps=None, minutes=0.05, val_every=None))
    config = tomllib.loads((result.folder / "config.toml").read_text())
    assert config["settings"]["steps"] >= 1
    assert result.summary["seconds"] < 10
    assert time.monotonic() - start < 40


def test_precision_is_measured_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []
    speed = 1.0

    def clock(precision: str) -> float:
        asked.append(precision)
        return 1.0 if precision == "32-true" else speed

    for speed, expected in ((0.5, "bf16-mixed"), (0.95, "32-true"), (1.2, "32-true")):
        assert faster({"size": speed}, clock) == expected
        assert asked == ["32-true", "bf16-mixed", "bf16-mixed", "32-true"]
        asked.clear()
        assert faster({"size": speed}, clock) == expected
        assert asked == []

    def diverges(_: str) -> float:
        raise DivergedError("the loss is inf", lr=1)

    assert faster({"size": 7}, diverges) == "32-true"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    speed = 0.5
    assert faster({"size": 8}, clock) == "bf16-mixed"


def test_loggers(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    result = train(tiny(folder, tmp_path / "run", steps=2, logger="tensorboard"))
    assert list((result.folder / "tensorboard").glob("events*"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="pip install wandb"):
        train(tiny(folder, tmp_path / "other", logger="wandb"))
    assert not (tmp_path / "other").exists()


def void(folder: Path, out: Path) -> Path:
    """The same images, with masks of which some are mostly void."""
    shutil.copytree(folder, out)
    for i, path in enumerate(sorted((out / "masks").iterdir())):
        with Image.open(path) as picture:
            mask = np.array(picture)
        mask[: (i % 4) * len(mask) // 4] = VOID
        Image.fromarray(mask).save(path)
    return out


def test_a_batch_in_parts_is_the_same_batch(
    classes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # AdamW takes the sign of a gradient at first, also of one that is nothing but rounding.
    monkeypatch.setattr(torch.optim, "AdamW", torch.optim.SGD)
    data = void(classes_folder, tmp_path / "data")
    found = []
    for parts in (1, 2, 3):
        out = tmp_path / str(parts)
        options = {"batch_size": 3, "accumulate": parts, "precision": "32-true", "steps": 2}
        options |= {"val_every": 1}
        train(tiny(data, out, **options))
        found.append([(float(r["loss"]), float(r["val_loss"])) for r in rows(out)])
    assert len(found[0]) == 2
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-4)


@pytest.mark.slow
def test_two_devices_and_parts_take_the_steps_of_one(classes_folder: Path, tmp_path: Path) -> None:
    data = void(classes_folder, tmp_path / "data")
    found = []
    for devices, batch, parts in ((1, 4, 1), (2, 2, 1), (2, 2, 2)):
        out = tmp_path / f"{devices}-{parts}"
        options = ["--devices", str(devices), "--batch-size", str(batch), "--steps", "2"]
        options += ["--accumulate", str(parts), "--precision", "32-true", "--val-every", "1"]
        run = started(data, out, *options, workers=0)
        _, complaint = run.communicate(timeout=300)
        assert run.returncode == 0, complaint
        found.append([float(r["loss"]) for r in rows(out)])
    for other in found[1:]:
        assert other[0] == pytest.approx(found[0][0], rel=1e-5)
        assert other[1] == pytest.approx(found[0][1], rel=5e-3)  # after a step of AdamW


@pytest.mark.slow
def test_two_devices_leave_one_run(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = started(folder, out, "--devices", "2", workers=0)
    shown, complaint = run.communicate(timeout=300)
    assert run.returncode == 0, complaint
    assert complaint == ""
    assert shown.count("best: step") == 1
    assert "40 steps of 4 images" in shown
    assert {path.name for path in out.iterdir()} == FILES


# ---------------------------------------------------------------- interrupted and resumed

LONG = ("--steps", "40", "--val-every", "4", "--size", "32", "--batch-size", "2")
LONG += ("--precision", "32-true")


def started(folder: Path, out: Path, *options: str, workers: int) -> subprocess.Popen[str]:
    words = ["train", str(folder), "--loss", "dice + cross_entropy", "--out", str(out), *LONG]
    words += [*options, "--workers", str(workers), "--accelerator", "cpu"]
    return subprocess.Popen(
        [sys.executable, "-m", "denseloss.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        # Where tests run in the background, Ctrl-C is ignored, and would be by their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_rows(run: subprocess.Popen[str], out: Path, *, count: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and run.poll() is None:
        if (out / "last.ckpt").exists() and len(rows(out)) >= count:
            return
        time.sleep(0.02)
    run.kill()
    pytest.fail(f"no rows: {run.communicate()}")


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny(folder, out, steps=40, val_every=4))
    return (out / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("kind", "code", "workers"),
    [
        (signal.SIGINT, 130, 0),
        (signal.SIGTERM, 143, 0),
        (signal.SIGTERM, 143, 1),
        (signal.SIGKILL, -9, 1),
    ],
)
def test_an_interrupted_run_resumes_exactly(
    folder: Path,
    tmp_path: Path,
    uninterrupted: str,
    kind: signal.Signals,
    code: int,
    workers: int,
) -> None:
    out = tmp_path / "run"
    run = started(folder, out, workers=workers)
    wait_for_rows(run, out, count=2)
    # Schedulers send SIGTERM to all processes of a job, those that load images among them.
    (os.killpg if workers else os.kill)(run.pid, kind)
    _, complaint = run.communicate(timeout=60)
    assert run.returncode == code, complaint
    assert not (out / "summary.json").exists()
    assert 2 <= len(rows(out)) < 10
    if kind != signal.SIGKILL:
        (line,) = complaint.strip().splitlines()
        assert line.startswith("denseloss: stopped; ")
        assert "the same command goes on from step" in line

    settings = tiny(folder, out, steps=40, val_every=4)
    with pytest.raises(InputError, match=r"lr was 0\.005, now it is 0\.001"):
        train(replace(settings, lr=0.001))
    result = train(settings)
    assert (out / "metrics.csv").read_text() == uninterrupted
    assert result.summary["steps"] == 40
    events = [json.loads(line)["event"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert events[0] == "started"
    assert "resumed" in events
    assert events[-1] == "finished"


def test_rows_after_the_last_checkpoint_disappear(folder: Path, tmp_path: Path) -> None:
    settings = tiny(folder, tmp_path / "run")
    result = train(settings)
    whole = (result.folder / "metrics.csv").read_text()
    # As if it had been killed in the moment between the last row and the summary.
    (result.folder / "summary.json").unlink()
    with (result.folder / "metrics.csv").open("a") as file:
        file.write("9,10,0,0,0,0,0,0,0,0,0,0\n")
    train(settings)
    assert (result.folder / "metrics.csv").read_text() == whole


def half_done(folder: Path, out: Path) -> TrainSettings:
    """A run that was stopped after half of its steps, and what it was asked."""
    settings = tiny(folder, out)
    train(settings)
    # Killed in the moment before its end; what is measured below is how it goes on.
    (out / "summary.json").unlink()
    return settings


def test_two_that_are_started_at_once_leave_one_run(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    both = [started(folder, out, workers=workers) for workers in (0, 1)]
    ends = {run.communicate(timeout=120)[1]: run.returncode for run in both}
    assert sorted(ends.values()) == [0, 2]
    (complaint,) = [said for said, code in ends.items() if code == 2]
    pids = "|".join(str(run.pid) for run in both)
    line = (
        rf"denseloss: error: {out}: process ({pids}) on \S+ trains here since [-0-9: ]+; wait .*\n"
    )
    assert re.fullmatch(line, complaint)
    events = [json.loads(line)["event"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert (events[0], events[-1], len(events)) == ("started", "finished", 12)
    assert {path.name for path in out.iterdir()} == FILES


def test_the_last_checkpoint_is_that_of_the_last_validation(folder: Path, tmp_path: Path) -> None:
    # With a learning rate of nothing no score is better than the first.
    train(tiny(folder, tmp_path / "run", steps=6, lr=1e-12))
    steps = [
        torch.load(tmp_path / "run" / name, weights_only=True)["global_step"]
        for name in ("best.ckpt", "last.ckpt")
    ]
    assert steps == [2, 6]


def test_a_run_goes_on_where_its_data_was_moved_to(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "squares")
    settings = half_done(data, tmp_path / "run")
    moved = data.rename(tmp_path / "elsewhere")
    result = train(replace(settings, data=str(moved)))
    config = tomllib.loads((result.folder / "config.toml").read_text())
    assert config["settings"]["data"] == str(moved)
    assert config["data"]["name"] == "elsewhere"
    assert "resumed" in (result.folder / "log.jsonl").read_text()


@pytest.mark.parametrize("how", ["inverted", "turned", "only one"])
def test_a_run_does_not_go_on_with_masks_that_were_changed_in_place(
    tmp_path: Path, how: str
) -> None:
    data = make_folder(tmp_path / "squares")
    settings = half_done(data, tmp_path / "run")
    files = sorted((data / "masks").iterdir())
    for file in files[:1] if how == "only one" else files:
        with Image.open(file) as image:
            mask = np.asarray(image)
        # Turned, there are as many pixels of each class as before.
        Image.fromarray(255 - mask if how == "inverted" else mask[::-1]).save(file)
    before = (tmp_path / "run" / "config.toml").read_text()
    with pytest.raises(InputError, match=r"images or masks were added, .*changed since") as error:
        train(settings)
    assert "\n" not in str(error.value)
    assert (tmp_path / "run" / "config.toml").read_text() == before


def test_a_run_of_any_task_is_bound_to_the_digest_of_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = f"{Path(__file__).with_name('toy_task.py')}:Brightness"
    settings = tiny(
        Path("synthetic:light"), tmp_path / "run", task=task, loss="binary_cross_entropy"
    )
    train(settings)
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(InputError, match='data was "synthetic:light", now it is "synthetic:dark"'):
        train(replace(settings, data="synthetic:dark"))
    with monkeypatch.context() as patch:
        patch.setattr("denseloss.tasks.Task.digest", lambda *_: "other")
        with pytest.raises(InputError, match="images or masks were added"):
            train(settings)
    train(settings)


def test_a_run_does_not_go_on_from_what_it_did_not_write(folder: Path, tmp_path: Path) -> None:
    settings = half_done(folder, tmp_path / "run")
    other = half_done(folder, tmp_path / "other")
    wide = half_done(make_folder(tmp_path / "three", classes=3), tmp_path / "wide")
    out = tmp_path / "run"
    last, best = ((out / name).read_bytes() for name in ("last.ckpt", "best.ckpt"))
    middle = len(last) // 2
    flipped = last[:middle] + bytes(byte ^ 255 for byte in last[middle : middle + 64])
    attack = io.BytesIO()
    torch.save({"state_dict": Attack(tmp_path / "attacked")}, attack)
    half = torch.load(io.BytesIO(last), weights_only=True)
    half["state_dict"].popitem()
    torn = io.BytesIO()
    torch.save(half, torn)
    for name, content, message in (
        ("last.ckpt", last[:middle], r"cannot be read \(File is not a zip file\): damaged"),
        ("last.ckpt", b"", "cannot be read"),
        ("last.ckpt", flipped + last[middle + 64 :], r"cannot be read \(wrong checksum of"),
        ("last.ckpt", attack.getvalue(), "other things than weights, which are never run"),
        ("last.ckpt", pickle.dumps(Attack(tmp_path / "attacked")), "cannot be read"),
        ("last.ckpt", (other.out / "last.ckpt").read_bytes(), "checkpoint of another run"),
        ("last.ckpt", (wide.out / "last.ckpt").read_bytes(), "checkpoint of another run"),
        ("last.ckpt", torn.getvalue(), "does not fit .*is not there, and in the network"),
        ("best.ckpt", best[:middle], "cannot be read"),
        ("best.ckpt", None, "is missing"),
    ):
        (out / "last.ckpt").write_bytes(last)
        (out / "best.ckpt").write_bytes(best)
        (out / name).unlink()
        if content is not None:
            (out / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: .*{message}.*; remove {out}") as error:
            train(settings)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "attacked").exists()
    # The way out that was named.
    (out / "last.ckpt").unlink()
    assert train(settings).summary["steps"] == 8


class Attack:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[settings]", "settings = 3\n[other]"), "settings must be a table, and is 3"),
        (("steps = 8", 'steps = "many"'), "steps is 'many', and must be of the type int"),
        (("steps = 8\n", ""), "'steps' is missing"),
        (("average = 0.0", "average = true"), "average is True, and must be of the type float"),
        (("options = {", "options = 3 # {"), "options is 3"),
        (("[data]", "[[data]]"), "data must be a table"),
        (("[run]", "\x00"), "cannot be read"),
    ],
)
def test_a_broken_configuration_is_one_line(
    folder: Path, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    run = RunFolder(tmp_path / "run")
    plan = trial_plan(steps=8).to_table()
    run.write_config({"settings": plan, "data": {}, "run": {"format": FORMAT}})
    text = run.config_file.read_text()
    assert change[0] in text
    run.config_file.write_text(text.replace(*change))
    with pytest.raises(InputError, match=message) as error:
        train(tiny(folder, run.path))
    assert "config.toml: " in str(error.value)
    assert "\n" not in str(error.value)
    assert [p.name for p in run.path.iterdir()] == ["config.toml"]


def test_a_full_disk_is_one_line_and_the_run_goes_on(
    folder: Path, tmp_path: Path, uninterrupted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny(folder, tmp_path / "run", steps=40, val_every=4)
    replaced = Path.replace
    written: list[str] = []

    def full(self: Path, target: Path) -> Path:
        written.append(target.name)
        if written.count("last.ckpt") == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return replaced(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(InputError) as error:
            train(settings)
    assert str(error.value).startswith(f"{tmp_path / 'run'}: No space left on device (")
    assert str(error.value).endswith("the same command goes on from step 8 of 40")
    assert not list((tmp_path / "run").glob("*.part"))
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"time": "2026-')  # what the full disk cut
    train(settings)
    assert (tmp_path / "run" / "metrics.csv").read_text() == uninterrupted
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["event"] == "finished"
    assert lines.count('{"time": "2026-') == 1


# ---------------------------------------------------------------- small parts


def test_toml_is_read_back_as_it_was() -> None:
    table = {"a": {"x": 1, "y": 0.001, "z": 'quo"te', "w": [1, 2], "v": True, "a key": "é\n"}}
    assert tomllib.loads(to_toml(table)) == table
    changed = {"a": {**table["a"], "y": 0.002}}
    assert difference(table, changed) == "y was 0.001, now it is 0.002"
    assert difference(table, table) is None


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    schedule = Schedule(steps=100, val_every=10, lr=1, weight_decay=0)
    factors = [schedule.factor(step) for step in range(101)]
    assert factors[0] == pytest.approx(0.2)
    assert max(factors) == 1
    assert factors[100] == pytest.approx(0, abs=1e-9)
