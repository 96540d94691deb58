"""Networks that users bring: code of their own, and weights that a network starts from."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from denseloss import cli
from denseloss.data.errors import InputError
from denseloss.data.transforms import normalise
from denseloss.tasks import pretrained
from denseloss.tasks.segmentation.network import build_model, load_encoder
from denseloss.train import TrainSettings, load, train

DATA = "synthetic:blobs?n=16&size=64"

SOURCE = '''
import torch
from torch import nn

def make(channels, outputs):
    return nn.Sequential(nn.Conv2d(channels, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, outputs, 1))

class Heads(nn.Module):
    def __init__(self, channels, outputs):
        super().__init__()
        self.body, self.head = nn.Conv2d(channels, 5, 3, padding=1), nn.Conv2d(5, outputs, 1)
    def forward(self, image):
        features = self.body(image).relu()
        return [self.head(features), self.head(nn.functional.avg_pool2d(features, 3))]

class Normed(nn.Module):
    def __init__(self, channels, outputs):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, outputs, 1), nn.BatchNorm2d(outputs))
        self.drop = nn.Dropout(0.5)
    def forward(self, image):
        return self.body(self.drop(image))

def fails(channels, outputs):
    raise RuntimeError("no\\nmemory")

def number(channels, outputs):
    return channels * outputs

class Out(nn.Module):
    """What is made of the logits of a network that is right."""
    def __init__(self, channels, outputs):
        super().__init__()
        self.net = nn.Conv2d(channels, outputs, 1)
    def forward(self, image):
        return self.of(self.net(image), image)

class Flat(Out):
    def of(self, z, image): return z[:, 0]
class More(Out):
    def of(self, z, image): return torch.cat([z, z], 1)
class Large(Out):
    def of(self, z, image): return nn.functional.interpolate(z, scale_factor=2)
class Rising(Out):
    def of(self, z, image): return [z[..., ::2, ::2], z]
class Dict(Out):
    def of(self, z, image): return {"out": z, "aux": z}
class Empty(Out):
    def of(self, z, image): return []
class Mixed(Out):
    def of(self, z, image): return [z, None]
class Whole(Out):
    def of(self, z, image): return z.argmax(1, keepdim=True)
class Loose(Out):
    def of(self, z, image): return z.detach()
class Some(Out):
    def of(self, z, image):
        if image.shape[-1] % 96:
            raise ValueError(f"not for {image.shape[-1]}")
        return z
class Fixed(Out):
    def of(self, z, image):
        assert image.shape[-2:] == (64, 64), "64 only"
        return z
class Plain(nn.Module):
    def forward(self, image): return image[:, :1]
def plain(channels, outputs): return Plain()
answer = 42
'''


@pytest.fixture
def models(tmp_path: Path) -> Path:
    file = tmp_path / "my_models.py"
    file.write_text(SOURCE)
    return file


def settings(out: Path, **changed: object) -> TrainSettings:
    asked = {"data": DATA, "steps": 4, "val_every": 2, "size": 64, "batch_size": 4, **changed}
    return TrainSettings(
        out=out, workers=0, accelerator="cpu", precision="32-true",
        **{"loss": "cross_entropy", **asked},  # type: ignore[arg-type]
    )  # fmt: skip


def start(**changed: object) -> dict[str, Tensor]:
    """The weights that a run would start from."""
    from denseloss.tasks import named
    from denseloss.tasks.segmentation import SegmentationSettings, open_data
    from denseloss.train.plan import plan_of
    from denseloss.train.run import _begun_with, _prepared

    task, data = named("segmentation"), open_data(DATA)
    asked = settings(Path("unused"), **{"options": SegmentationSettings(), **changed})
    plan = plan_of(asked, task, "segmentation", data, clock=lambda _: (1.0, 1.0))
    module, _ = _prepared(plan, task, data)
    _begun_with(module, plan, task, data)
    return {name: value.clone() for name, value in module.model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------- code of the user's own


@pytest.mark.parametrize("name", ["make", "Heads", "Normed"])
def test_a_network_of_ones_own_is_trained_resumed_and_loaded(
    models: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", DATA, "--model", f"my_models.py:{name}", "--steps", "4", "--val-every", "2"]
    words += ["--workers", "0", "--accelerator", "cpu", "--out", "run"]
    assert cli.main(words) == 0
    (tmp_path / "run" / "summary.json").unlink()
    # From another folder, where the relative path leads nowhere.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    words[words.index("--out") + 1] = str(tmp_path / "run")
    assert cli.main(words) == 2
    words[3] = f"{models}:{name}"
    assert cli.main(words) == 0
    model = load(tmp_path / "run")
    image = torch.randint(0, 256, (3, 37, 50), dtype=torch.uint8)
    assert model(image).shape == (2, 37, 50)
    assert model.predict(image).shape == (37, 50)
    # The name of a folder is of data, loss and seed.
    assert cli.main(words[:-2]) == 0
    (named,) = (tmp_path / "elsewhere" / "runs").iterdir()
    assert named.name == "synthetic-blobs-cross-entropy-dice-0"


def test_a_package_of_ones_own_is_found_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mynets").mkdir()
    (tmp_path / "mynets" / "__init__.py").write_text("")
    (tmp_path / "mynets" / "small.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert build_model("mynets.small:make", num_outputs=2)(torch.rand(1, 3, 9, 7))[0].shape[1] == 2
    for name in [name for name in sys.modules if name.startswith("mynets")]:
        del sys.modules[name]


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_network_of_ones_own_is_compared(
    models: Path, engine: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if engine == "ray":
        pytest.importorskip("ray")
    out = tmp_path / "out"
    words = ["compare", DATA, "--model", f"{models}:Heads", "--steps", "3", "--seeds", "1", "--lr"]
    words += ["1", "--loss", "dice", "--loss", "cross_entropy", "--jobs", "1", "--engine", engine]
    words += ["--accelerator", "cpu", "--out", str(out)]
    assert cli.main(words) == 0
    shown, _ = capfd.readouterr()
    assert "FAILED" not in shown
    assert "2 of 2 trials ended" in shown
    page = (out / "report.md").read_text()
    assert "my_models.py:Heads" in page
    assert cli.main(["report", str(out)]) == 0
    (trial, _) = [path.parent for path in sorted(out.rglob("best.ckpt"))]
    assert load(trial).names == ("background", "blob")
    # All losses start alike.
    rows = [path.parent / "config.toml" for path in out.rglob("best.ckpt")]
    assert len({row.read_text().split("lr = ")[1].split("\n")[0] for row in rows}) == 1


WRONG = {
    "fails": r"fails\(3, 1\) raised RuntimeError: no memory \(my_models.py, line 25\)",
    "number": r"number\(3, 1\) must return a torch.nn.Module, got int",
    "plain": "without parameters to train",
    "answer": r"must be callable as \(in_channels, num_outputs\), got int",
    "nothing": "my_models.py has no nothing",
    "Flat": r"must give logits float\[2, 1, h, w\].*got float32\[2, 64, 64\]",
    "More": r"got float32\[2, 2, 64, 64\]: 2 channels instead of 1",
    "Large": r"got float32\[2, 1, 128, 128\], which is larger than the image",
    "Rising": "at place 1, which is larger than those before; give the largest first",
    "Dict": "got a dict of out, aux",
    "Empty": "got an empty list",
    "Mixed": "got NoneType at place 1",
    "Whole": r"got int64\[2, 1, 64, 64\]",
    "Loose": "have no gradient",
    "Some": r"does not work for training squares of 64 pixels, tried with "
    r"float32\[2, 3, 64, 64\]: it raised ValueError: not for 64 \(my_models.py, line \d+\)",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_network_is_one_line_before_training(
    models: Path, name: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=WRONG[name]) as error:
        train(settings(tmp_path / "run", model=f"{models}:{name}"))
    assert str(error.value).startswith(f"--model {models}:{name}: ")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_network_for_one_size_is_told_before_it_meets_the_images(
    models: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError, match=r"images of 100x100 pixels, tried with .*128, 128.*64 only"
    ):
        train(
            settings(tmp_path / "run", data="synthetic:blobs?n=9&size=100", model=f"{models}:Fixed")
        )


def test_a_comparison_refuses_a_network_before_its_trials(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", DATA, "--loss", "dice", "--loss", "focal", "--model", f"{models}:More"]
    assert cli.main([*words, "--accelerator", "cpu", "--out", str(tmp_path / "out")]) == 2
    assert "2 channels instead of 1" in capsys.readouterr().err
    assert not (tmp_path / "out" / "trials").exists()


def test_to_try_a_network_changes_nothing(models: Path) -> None:
    spec = f"{models}:Normed"
    before = start(model=spec)
    torch.manual_seed(0)
    network = build_model(spec, num_outputs=1)
    assert before["network.body.1.num_batches_tracked"] == 0
    assert (before["network.body.1.running_mean"] == 0).all()
    assert network.state_dict().keys() == before.keys()
    assert same(before, start(model=spec, loss="dice"))


# ---------------------------------------------------------------- weights of a file


def saved(path: Path, state: object) -> str:
    torch.save(state, path)
    return str(path)


def net(seed: int = 1, outputs: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("smp:Unet:resnet18", num_outputs=outputs)


def test_files_of_every_kind_are_loaded(tmp_path: Path) -> None:
    given = net()
    state = given.state_dict()
    inner = {name.removeprefix("network."): v for name, v in state.items() if "network." in name}
    wrapped = {f"module.{name}": value for name, value in inner.items()}
    encoder = given.network.encoder.state_dict()  # type: ignore[union-attr]
    lightning = {f"model.{name}": v for name, v in state.items()} | {"criterion.w": torch.ones(2)}
    whole = [
        saved(tmp_path / "plain.pt", inner),
        saved(tmp_path / "ours.pth", state),
        saved(tmp_path / "nested.tar", {"epoch": 3, "state_dict": wrapped}),
        saved(tmp_path / "l.ckpt", {"pytorch-lightning_version": "2", "state_dict": lightning}),
    ]
    for file in whole:
        network = net(seed=2)
        assert not same(network.state_dict(), state)
        assert pretrained.load_file(network, file) == ()
        assert same(network.state_dict(), state), file
    network = net(seed=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    (line,) = pretrained.load_file(network, saved(tmp_path / "encoder.pt", encoder))
    others = [name for name, _ in network.named_parameters() if ".encoder." not in name]
    assert line.startswith(f"not in the file, stays as it was: {len(others)} ({others[0]}, ")
    for name, value in network.state_dict().items():
        assert torch.equal(value, (state if ".encoder." in name else before)[name]), name


def test_safetensors_are_read_and_their_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    given, network = net(), net(seed=2)
    file = tmp_path / "net.safetensors"
    safetensors.save_file(dict(given.network.state_dict()), file)  # type: ignore[union-attr]
    assert pretrained.load_file(network, str(file)) == ()
    assert same(network.state_dict(), given.state_dict())
    file.write_bytes(file.read_bytes()[:999])
    with pytest.raises(InputError, match=r"net.safetensors: cannot be read"):
        pretrained.load_file(network, str(file))
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(InputError, match="pip install safetensors"):
        pretrained.load_file(network, str(file))


def test_what_does_not_fit_is_listed_in_three_lines(tmp_path: Path) -> None:
    given = net(outputs=5)
    state = given.network.state_dict()  # type: ignore[union-attr]
    first, second = [name for name in state if name.startswith("decoder")][:2]
    del state[first], state[second]
    state |= {f"extra.{i}": torch.ones(1) for i in range(7)}
    network = net(seed=2)
    lines = pretrained.load_file(network, saved(tmp_path / "f.pt", state))
    assert lines == (
        f"not in the file, stays as it was: 2 (network.{first}, network.{second})",
        "not in the network, is left out: 7 (extra.0, extra.1, extra.2, ...)",
        "of another shape, stays as it was: 2 (segmentation_head.0.weight 5x16x3x3 (here 1x16x3x3),"
        " segmentation_head.0.bias 5 (here 1))",
    )


class Evil(nn.Module):
    """A module that is pickled as a whole."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"other.weight": torch.ones(3)}, r"nothing in it fits the network: it holds 1 \(other"),
        ({}, "holds no state dict"),
        ([torch.ones(2)], "holds no state dict .* but list"),
        ({"state_dict": {"a": 3}}, "holds no state dict"),
        (Evil(), r"holds more than tensors.*save model.state_dict\(\)"),
        (b"", "cannot be read"),
        (b"no weights", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    tmp_path: Path, content: object, message: str
) -> None:
    file = tmp_path / "f.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        saved(file, content)
    with pytest.raises(InputError, match=message) as error:
        train(settings(tmp_path / "run", weights=str(file)))
    assert str(error.value).startswith(f"--weights {file}: ")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("weights", "model", "message"),
    [
        ("nowhere.pt", "dynunet", "cannot be read .No such file"),
        ("./", "dynunet", "dynunet has no such weights"),
        ("/usr/", "dynunet", "is a folder; give a file"),
        ("imagenet", "dynunet", "dynunet has no such weights, only smp:ARCH:ENCODER has"),
        ("imagenett", "smp:Unet:resnet18", "resnet18 has imagenet"),
        ("imagenet", "smp:Unet:dpn107", r"dpn107 has imagenet\+5k"),
    ],
)
def test_weights_that_are_not_there_are_one_line(
    weights: str, model: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as error:
        train(settings(tmp_path / "run", weights=weights, model=model))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_from_anothers_weights_and_knows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", DATA, "--steps", "2", "--val-every", "1", "--workers", "0"]
    words += ["--accelerator", "cpu", "--precision", "32-true"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert cli.main([*words, "--out", str(first)]) == 0
    weights = ["--weights", str(first / "best.ckpt")]
    capsys.readouterr()
    assert cli.main([*words, *weights, "--out", str(second)]) == 0
    assert f"weights {first / 'best.ckpt'}\n" in capsys.readouterr().out
    trained = load(first).network.state_dict()
    assert same(start(weights=str(first / "best.ckpt")), trained)
    assert same(start(weights=str(first / "best.ckpt"), loss="dice + focal"), trained)
    assert not same(start(), trained)
    # A file of other contents is another run.
    (second / "summary.json").unlink()
    changed = torch.load(first / "best.ckpt", weights_only=True)
    name = next(iter(changed["state_dict"]))
    changed["state_dict"][name] += 1
    sound = (first / "best.ckpt").read_bytes()
    torch.save(changed, first / "best.ckpt")
    assert cli.main([*words, *weights, "--out", str(second)]) == 2
    assert "weights_digest was" in capsys.readouterr().err
    (first / "best.ckpt").write_bytes(sound)
    assert cli.main([*words, *weights, "--out", str(second)]) == 0


# ---------------------------------------------------------------- weights of an encoder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A stand-in for the hub: weights of resnet18 with the preprocessing that the test sets."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(77)
    encoder = smp.encoders.get_encoder("resnet18", weights=None)
    safetensors.save_file(dict(encoder.state_dict()), tmp_path / "model.safetensors")
    config: dict[str, object] = {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "input_space": "RGB",
        "input_range": [0, 1],
    }

    def fetch(repo_id: str, filename: str, revision: str) -> str:
        assert "resnet18" in repo_id
        if filename == "config.json":
            (tmp_path / filename).write_text(json.dumps(config))
        return str(tmp_path / filename)

    monkeypatch.setattr(smp.encoders, "hf_hub_download", fetch)
    return config


@pytest.mark.parametrize("arch", ["Unet", "DeepLabV3Plus"])
def test_imagenet_is_smps_own_loading_and_only_of_the_encoder(
    hub: dict[str, object], arch: str
) -> None:
    import segmentation_models_pytorch as smp

    spec = f"smp:{arch}:resnet18"
    loaded, plain = start(model=spec, weights="imagenet"), start(model=spec)
    their = getattr(smp, arch)("resnet18", encoder_weights="imagenet").encoder.state_dict()
    for name, value in loaded.items():
        part = name.removeprefix("network.encoder.")
        assert torch.equal(value, their.get(part, plain[name])), name
    assert any(not torch.equal(loaded[name], plain[name]) for name in loaded)
    assert same(loaded, start(model=spec, weights="imagenet", loss="dice"))
    assert (loaded["scale"] == 1).all()
    assert (loaded["shift"] == 0).all()


@pytest.mark.parametrize(
    "changed",
    [
        {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.2]},
        {"mean": [124.0, 117.0, 104.0], "std": [59.9, 59.9, 59.9], "input_range": [0, 255]},
    ],
)
def test_an_encoder_gets_images_as_its_weights_want_them(
    hub: dict[str, object], changed: dict[str, object], tmp_path: Path
) -> None:
    import segmentation_models_pytorch as smp

    hub |= changed
    network = build_model("smp:Unet:resnet18", num_outputs=1)
    (line,) = load_encoder(network, "smp:Unet:resnet18", "imagenet")
    assert line.startswith("resnet18 wants mean and deviation ")
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    image[0, :, 0, 0] = 255
    by_smp = smp.encoders.get_preprocessing_fn("resnet18", "imagenet")
    wanted = by_smp(image[0].permute(1, 2, 0).double().numpy())
    found = network.padded(normalise(image))[0].permute(1, 2, 0)
    torch.testing.assert_close(found.double(), torch.tensor(wanted), rtol=0, atol=1e-5)
    # A run keeps it, and so do others that start from its weights.
    run = settings(tmp_path / "run", model="smp:Unet:resnet18", weights="imagenet", steps=1)
    train(run)
    for held in (
        load(tmp_path / "run").network.state_dict(),
        start(model="smp:Unet:resnet18", weights=str(tmp_path / "run" / "best.ckpt")),
    ):
        assert torch.equal(held["scale"], network.scale)
        assert torch.equal(held["shift"], network.shift)


def test_without_a_network_connection_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for model in ("smp:Unet:resnet34", "smp:FPN:tu-resnet18.a1_in1k"):
        with pytest.raises(InputError, match=r"cannot be fetched .*--weights FILE") as error:
            train(settings(tmp_path / "run", model=model, weights="imagenet"))
        assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
