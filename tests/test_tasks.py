"""A task is one folder, or one file: checked, trained, compared and reported by its name alone."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import denseloss.tasks
from denseloss import cli
from denseloss.data.errors import InputError
from denseloss.tasks import Task, Turn, find, named, names
from denseloss.train import TrainSettings, train
from tests import toy_task

TOY = f"{toy_task.__file__}:Brightness"
LOSSES = ("--loss", "binary_cross_entropy", "--loss", "binary_focal")


def test_a_task_in_a_file_is_checked_trained_compared_and_reported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", "bright", "--task", TOY]) == 0
    shown = capfd.readouterr().out
    assert "data: images of one brightness" in shown
    assert "verdict: good to train on" in shown
    assert '--loss "binary_cross_entropy"' in shown

    words = ["bright", "--task", TOY, "--side", "6", "--steps", "30", "--accelerator", "cpu"]
    words += ["--precision", "32-true"]
    assert cli.main(["train", *words, "--out", str(tmp_path / "run"), "--workers", "0"]) == 0
    shown = capfd.readouterr().out
    assert "options: side=6" in shown
    assert "val Error" in shown
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["score"] == {"name": "Error", "higher_is_better": False}
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    # The lowest error is the best.
    assert summary["best"]["score"] == min(float(row["score"]) for row in rows)

    out = tmp_path / "out"
    line = ["compare", *words, *LOSSES, "--seeds", "2", "--lr", "2", "--out", str(out)]
    assert cli.main(line) == 0
    shown, complaint = capfd.readouterr()
    assert complaint == ""
    assert "6 of 6 trials ended" in shown
    assert "it scored best in Error. With 2 seeds no risk can be given" in " ".join(shown.split())
    assert "FAILED" not in shown
    assert "Right" in (out / "report.md").read_text()
    assert "Validation Error by learning rate" in (out / "report.html").read_text()
    assert (out / "report.html").stat().st_size > 10_000
    with (out / "images.csv").open() as file:
        images = list(csv.DictReader(file))
    assert len(images) == 2 * 2 * 4
    assert {float(row["right"]) for row in images} <= {0.0, 1.0}
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    for one in lines:
        errors = [float(row["error"]) for row in images if row["loss"] == one["loss"]]
        assert one["scores"]["error/image"]["value"] == pytest.approx(sum(errors) / 8, abs=1e-6)
        # The learning rate with the lowest error was taken.
        tried = one["searched"]
        assert f"{one['lr']:g}" == min(tried, key=lambda lr: tried[lr])
        assert one["cost"]["milliseconds"] > 0

    page = (out / "report.html").read_bytes()
    assert cli.main(["report", str(out)]) == 0
    assert (out / "report.html").read_bytes() == page


def test_a_task_in_a_folder_is_found_by_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "denseloss_tasks"
    (home / "bright").mkdir(parents=True)
    shutil.copy(toy_task.__file__, home / "bright" / "toy.py")
    (home / "bright" / "__init__.py").write_text(
        "from denseloss.tasks.bright.toy import Brightness\n\n\n"
        "class TASK(Brightness):\n"
        '    name = "bright"\n\n'
        "    def claims(self, where: str) -> bool:\n"
        '        return where == "lamps"\n'
    )
    monkeypatch.setattr(denseloss.tasks, "__path__", [*denseloss.tasks.__path__, str(home)])
    assert names() == ["bright", "segmentation"]
    assert find("lamps").name == "bright"
    assert find("synthetic:blobs").name == "segmentation"
    assert cli.main(["check", "lamps"]) == 0
    assert "images of one brightness" in capsys.readouterr().out
    out = tmp_path / "run"
    assert cli.main(["train", "--steps", "2", "lamps", "--side", "4", "--out", str(out)]) == 0
    assert cli.main(["train", "synthetic:blobs", "--side", "4"]) == 2
    assert "--side" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("segmentatoin", "did you mean segmentation?"),
        ("nowhere.py:Mine", "there is no file"),
        (f"{toy_task.__file__}:Bright", "it has Brightness"),
        (f"{toy_task.__file__}:Images", "is no denseloss.tasks.Task"),
    ],
)
def test_a_task_that_is_not_there_is_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        named(text)
    assert "\n" not in str(error.value)


class Nothing(Task):
    """A task that has not been written yet."""

    name = "nothing"


def test_what_a_task_lacks_is_told_at_once() -> None:
    lacks = r"metrics, defaults, open, dataset, network, feeds \(or criterion\), image_scores"
    with pytest.raises(InputError, match=f"Nothing lacks {lacks}"):
        named(f"{__file__}:Nothing")


def test_a_file_that_cannot_be_imported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import nowhere_at_all\n")
    with pytest.raises(InputError, match="cannot be imported: ModuleNotFoundError"):
        named(f"{tmp_path / 'mine.py'}:Mine")


def test_a_loss_that_a_task_cannot_feed_is_one_line(tmp_path: Path) -> None:
    for loss, message in (("giou", "pairs of boxes"), ("dice", "takes Logits and ClassMap")):
        with pytest.raises(InputError, match=f"{loss} .*{message}.* brightness data does not"):
            train(TrainSettings(data="bright", task=TOY, loss=loss, out=tmp_path / loss))


class Halves(toy_task.Brightness):
    """Two optimisers in turn: weight and bias, each by a term of its own."""

    def turns(self, network: nn.Module, criterion: nn.Module) -> tuple[Turn, ...]:
        weight, bias = network.parameters()
        return Turn((weight,), ("binary_cross_entropy",)), Turn((bias,), ("binary_focal",))


def halves(out: Path, **changed: object) -> dict[str, Tensor]:
    settings = TrainSettings(
        data="bright",
        task=f"{__file__}:Halves",
        loss="binary_cross_entropy + 1e-30*binary_focal",
        out=out,
        steps=6,
        val_every=3,
        workers=0,
        accelerator="cpu",
        precision="32-true",
        **changed,  # type: ignore[arg-type]
    )
    train(settings)
    found: dict[str, Tensor] = torch.load(out / "best.ckpt", weights_only=True)["state_dict"]
    return found


def test_optimisers_take_turns_each_with_its_terms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = halves(tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["3", "6"]
    # The bias is moved by its own term alone, which weighs next to nothing; it only decays.
    fresh = halves(tmp_path / "other", lr=1e-9)
    for name, value in found.items():
        if name.endswith("bias"):
            torch.testing.assert_close(value, fresh[name], rtol=1e-3, atol=0)
        if name.endswith("2.weight"):
            assert not torch.allclose(value, fresh[name], rtol=1e-2)


def test_an_average_of_the_weights_is_what_is_kept(tmp_path: Path) -> None:
    kept = {}
    for average in (0.0, 0.9):
        settings = TrainSettings(
            data="bright",
            task=TOY,
            out=tmp_path / str(average),
            steps=5,
            val_every=5,
            workers=0,
            average=average,
            accelerator="cpu",
            precision="32-true",
        )
        train(settings)
        kept[average] = torch.load(tmp_path / str(average) / "best.ckpt", weights_only=True)
    last = {k: v for k, v in kept[0.0]["state_dict"].items() if k.endswith("2.weight")}
    for name, value in last.items():
        assert not torch.allclose(kept[0.9]["state_dict"][name], value)
        torch.testing.assert_close(kept[0.9]["current_model_state"][name], value)
