"""`denseloss doctor`: what it says, what it finds, and that it needs torch only."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

import denseloss
from denseloss import backend, cli, doctor
from denseloss import functional as F
from denseloss.primitives.fused import VERSIONS, ops

kernels = pytest.mark.skipif("cpu" in backend.missing(), reason="no kernels")


def examined(**options: Any) -> tuple[bool, list[str]]:
    lines: list[str] = []
    return doctor.examine(lines.append, **options), lines


def line(lines: list[str], start: str) -> str:
    (found,) = [text for text in lines if text.startswith(start)]
    return found


def test_a_sound_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    versions = line(lines, "versions")
    for part in (
        f"denseloss {denseloss.__version__}",
        f"torch {torch.__version__}",
        f"python {sys.version.split()[0]}",
    ):
        assert part in versions
    assert f"{torch.get_num_threads()} threads" in line(lines, "processor")
    assert "cpu (" in line(lines, "devices")
    *_, verdict, last = lines
    assert verdict.startswith("OK")
    assert "denseloss.testing.diagnose(loss, logits, target)" in last


@kernels
def test_it_names_the_kernels_and_compares_every_quantity(monkeypatch: pytest.MonkeyPatch) -> None:
    called: set[str] = set()

    def counted(name: str, version: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            result = version(*args, **kwargs)
            if type(result) is not backend.Declined:
                called.add(name)
            return result

        return run

    before = {name: dict(versions) for name, versions in backend.table.items()}
    for name, version in list(VERSIONS.items()):
        monkeypatch.setitem(VERSIONS, name, counted(name, version))
    right, lines = examined()
    assert right
    assert "kernels_" in line(lines, "fast on cpu   yes")
    said = re.search(r"cpu: (\d+) of (\d+) kinds of call", line(lines, "self-test"))
    assert said is not None
    assert said[1] == said[2]
    assert int(said[1]) > 100
    assert called == set(VERSIONS)
    assert backend.table == before, "nothing stays behind"


@kernels
@pytest.mark.parametrize("name", ["softmax_backward", "elementwise", "label_count"])
def test_a_wrong_operator_is_found_and_named(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = ops._direct["cpu"][name]

    def wrong(*args: Any) -> Any:
        found = right(*args)
        return tuple(1.01 * x for x in found) if isinstance(found, tuple) else 1.01 * found

    monkeypatch.setitem(ops._direct["cpu"], name, wrong)
    assert cli.main(["doctor"]) == 1
    shown = capsys.readouterr().out
    quantity = {"softmax_backward": "softmax_pass", "elementwise": "element_loss"}
    assert f"WRONG  {quantity.get(name, 'class_count')} on cpu, " in shown
    assert "OK" not in shown.splitlines()
    assert 'denseloss.backend.use("reference")' in shown
    assert "/issues" in shown


@kernels
def test_a_loss_that_raises_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    @functools.wraps(F.focal_loss)
    def focal_loss(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no such device")

    monkeypatch.setattr(F, "focal_loss", focal_loss)
    right, lines = examined(seconds=0.0)
    assert not right
    assert "WRONG  focal_loss on cpu raises RuntimeError: no such device" in lines


@kernels
def test_it_stops_in_time_and_says_so() -> None:
    right, lines = examined(seconds=0.0)
    assert right
    assert "0 of " in line(lines, "self-test")
    assert any("stopped after 0 s" in text for text in lines)


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


def test_without_kernels_it_says_why_and_is_no_fault() -> None:
    code = "import sys, denseloss.cli as c; sys.exit(c.main(['doctor']))"
    done = run(code, DENSELOSS_KERNELS="nowhere.so")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "nowhere.so" in line(lines, "fast on cpu   no: the compiled kernels do not load")
    assert done.stderr == ""


PLAIN = """
import sys
for name in {extra}:
    sys.modules[name] = None
import denseloss.cli as c
sys.exit(c.main({words}))
"""
EXTRA = ["tyro", "rich", "lightning", "torchvision", "monai", "numpy", "PIL", "matplotlib", "scipy"]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["doctor"], "OK"),
        (["ls"], "binary_focal"),
        (["show", "focal"], "focal_loss("),
        (["--version"], "denseloss "),
    ],
)
def test_a_plain_install_has_these_verbs(words: list[str], shown: str) -> None:
    # Without numpy torch itself warns.
    extra = [name for name in EXTRA if name != "numpy"]
    done = run(PLAIN.format(extra=extra, words=words))
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert done.stderr == ""


def test_other_verbs_say_what_is_missing() -> None:
    done = run(PLAIN.format(extra=EXTRA[:2], words=["check"]))
    assert done.returncode == 2
    assert 'pip install "denseloss[train]"' in done.stderr


@pytest.mark.parametrize(
    ("there", "cuda", "said"),
    [
        (True, "13.0", "No module named 'triton'. Triton comes with PyTorch for Linux"),
        (False, None, "this PyTorch is built without CUDA"),
        (False, "13.0", "PyTorch sees no GPU"),
    ],
)
def test_why_there_is_nothing_fast_on_cuda(
    there: bool, cuda: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    assert said in doctor._why_no_cuda("No module named 'triton'" if there else None)
