"""The benchmark compares like with like, says it where it does not, and runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import __main__ as command
from benchmarks import formulas, table, workloads
from benchmarks.gates import GATES, Gate
from benchmarks.measure import Row, Settings, Worker, _judge, _summarise
from benchmarks.worker import Job, Load, difference, peak_resident
from benchmarks.workloads import (
    KORNIA,
    MONAI,
    OURS,
    OURS_FLOAT32,
    SMP,
    TORCHVISION,
    WORKLOADS,
    Maker,
    Provider,
    compiled_name,
)

from denseloss import backend

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = (TORCHVISION, MONAI, KORNIA, SMP)


def peers(*, libraries):
    found = []
    for workload in WORKLOADS.values():
        if workload.name.endswith(("_1e6", "_8400_dense", "_8400_labels")):
            continue  # the same as their neighbour, but for the size
        for peer in workload.peers:
            is_library = any(name in peer.name for name in LIBRARIES)
            if is_library == libraries and not peer.name.startswith(compiled_name("")):
                found.append(pytest.param(workload, peer, id=f"{workload.name}-{peer.name}"))
    return found


def value_and_gradient(workload, loss):
    scale = 0.001 if workload.name.startswith("det_") else 0.05
    leaf, *rest = workload.inputs(Maker(torch.float64, scale=scale))
    leaf.requires_grad_()
    value = loss(leaf, *rest)
    value.backward()
    return value.detach(), leaf.grad


def agree(workload, peer):
    with backend.use("reference"):
        value, gradient = value_and_gradient(workload, workload.definition)
    found, slope = value_and_gradient(workload, peer.load())
    apart = max(difference(found, value), difference(slope, gradient))
    if peer.other:
        assert apart > 1e-3, f"{peer.name} is declared another loss, and is not"
    else:
        assert apart < 1e-6, f"{peer.name} is another loss, and does not say so"


@pytest.mark.parametrize(("workload", "peer"), peers(libraries=False))
def test_formulas_are_our_loss_or_say_so(workload, peer):
    agree(workload, peer)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("workload", "peer"), peers(libraries=True))
def test_libraries_are_our_loss_or_say_so(workload, peer):
    agree(workload, peer)


def test_every_formula_is_measured():
    text = Path(workloads.__file__).read_text()
    assert not [name for name in formulas.__all__ if f"formulas.{name}" not in text]


def test_inputs_are_the_same_in_every_process_and_fit_the_dtype():
    for workload in WORKLOADS.values():
        if workload.name.startswith("det_") or workload.name.endswith("_1e6"):
            continue
        first = workload.inputs(Maker(torch.bfloat16, scale=0.05))
        again = workload.inputs(Maker(torch.bfloat16, scale=0.05))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert first[0].dtype == torch.bfloat16
        assert all(x.is_contiguous() for x in first)


def test_gates_name_what_is_measured():
    for gates in GATES.values():
        for gate in gates:
            workload = WORKLOADS[gate.workload]
            assert gate.against in {provider.name for provider in workload.providers()}, gate
    assert len(set(GATES["cpu"])) == len(GATES["cpu"])


# --- rows -----------------------------------------------------------------------------------------


def row(provider=OURS, **given):
    workload = WORKLOADS["binary_focal"]
    known = {"workload": workload.name, "shape": workload.shape, "family": "P"}
    return Row(**known | {"dtype": "float32", "device": "cpu", "provider": provider} | given)


def answer(*step, copy=(1.0,), others=0.0):
    return {"step": list(step), "forward": [1.0], "copy": list(copy), "others": others}


def test_a_row_sums_up_its_rounds():
    ours = [answer(2.0, 2.0), answer(8.0), None]
    theirs = [answer(20.0, 22.0), answer(24.0, copy=(4.0,), others=0.3), answer(90.0)]
    found = row(TORCHVISION)
    _summarise(found, theirs, ours)
    assert (found.median, found.minimum, found.runs, found.rounds) == (24.0, 20.0, 4, 3)
    # round by round: 21/2 and 24/8, and no third one, as ours failed in it
    assert found.ratio == pytest.approx((10.5 + 3.0) / 2)
    assert found.floor == pytest.approx(21.0)
    assert found.others == 0.0


@pytest.mark.parametrize(
    ("provider", "errors", "words"),
    [
        (OURS, (1e-7, 1e-7), ""),
        (OURS, (1e-7, 1e-2), "WRONG: value off by 1e-07, gradient by 1e-02"),
        (OURS, (float("nan"), 0.0), "WRONG"),
        (MONAI, (0.3, 1e-7), "other formula"),
        (MONAI, (None, None), "not compared with the definition"),
    ],
)
def test_a_row_with_other_numbers_says_so(provider, errors, words):
    found = row(provider, value_error=errors[0], gradient_error=errors[1])
    _judge(found, Provider(provider, lambda: None))
    assert words in found.remarks()
    assert bool(words) == bool(found.remarks())
    assert found.failed == (errors[0] is not None and bool(words))


def test_the_table_and_its_gates():
    ours = row(median=2.0, minimum=1.9, quartiles=(1.9, 2.1), forward=1.0, floor=2.5, ratio=1.0)
    ours.peak_extra, ours.gradient = 8.0 * 2**20, 8 * 2**20
    theirs = row(TORCHVISION, median=19.0, ratio=9.5, others=0.25)
    missing = row(MONAI, status="not installed", note="No module named 'monai'")
    rows, head = [ours, theirs, missing], table.header(Settings())
    text = table.markdown(head, rows, gates=True)
    grid = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in grid[:5]}) == 1
    by_name = {line.split("|")[2].strip(): line for line in grid[:5]}
    assert "9.50 x" in by_name[TORCHVISION]
    assert "busy 25 %" in by_name[TORCHVISION]
    assert "not installed" in by_name[MONAI]
    assert "8.00" in by_name["**ours**"]
    gates = [line for line in grid[5:] if "binary_focal float32" in line]
    assert [line.split("|")[-2].strip() for line in gates] == ["**no**, while busy", "", "yes"]
    assert "not measured" in gates[1]
    assert "torch: " in text
    assert "commit: " in text

    records = [json.loads(line) for line in table.jsonl(head, rows).splitlines()]
    assert [entry["record"] for entry in records] == ["header", "row", "row", "row"]
    assert records[1]["peak_ratio"] == 1.0
    assert records[2]["ratio"] == 9.5


def test_gates_compare_bfloat16_with_float32_of_the_same_run():
    half = row(dtype="bfloat16", median=1.0, peak_extra=5.0, gradient=4)
    full = row(OURS_FLOAT32, dtype="bfloat16", median=1.5, ratio=1.5, peak_extra=10.0)
    speed = Gate("binary_focal", "speed", 1, OURS_FLOAT32, "bfloat16")
    memory = Gate("binary_focal", "memory", 0.55, OURS_FLOAT32, "bfloat16")
    assert speed.measured([half, full]) == 1.5
    assert speed.met(1.5)
    assert memory.measured([half, full]) == 0.5
    assert memory.met(0.5)
    assert not memory.met(0.6)
    assert speed.measured([half]) is None


# --- measuring ------------------------------------------------------------------------------------


def test_peak_memory_is_that_of_the_step():
    def step():
        torch.ones(2**24).add_(1)  # 64 MiB: a mapping of its own, gone at the end

    step()
    peak = peak_resident(step)
    if peak is None:
        pytest.skip("this machine's /proc does not tell")
    assert 60 * 2**20 < peak < 70 * 2**20


def test_load_does_not_count_this_process():
    load = Load()
    if load.before is None:
        pytest.skip("this machine's /proc does not tell")
    a = torch.randn(500, 500)
    for _ in range(100):
        a @ a
    others = load.others()
    total, _, own = (b - a for a, b in zip(load.before, load._now(), strict=True))
    assert own > 0
    assert 0 <= others <= 1 - own / total + 0.05


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("binary_focal", ["binary_focal"]),
        ("ciou", ["ciou_1e5", "ciou_1e6"]),
        ("ncut_k*", ["ncut_k20", "ncut_k4"]),
    ],
)
def test_only(pattern, names):
    assert [workload.name for workload in workloads.chosen([pattern])] == names


def test_only_with_an_unknown_name_helps(capsys):
    with pytest.raises(SystemExit) as end:
        command.arguments(["--only", "binary_fokal"])
    assert end.value.code == 2
    words = capsys.readouterr().err
    assert "binary_fokal" in words
    assert "did you mean binary_focal" in words


def test_provider_with_an_unknown_name_helps(capsys):
    assert command.arguments(["--only", "ciou", "--provider", "torchvision"])
    with pytest.raises(SystemExit):
        command.arguments(["--only", "ciou", "--provider", "monai"])
    words = capsys.readouterr().err
    assert "monai" in words
    assert "YOLO-style formula" in words


def test_a_process_that_crashes_is_an_error_of_its_row(monkeypatch):
    """And not the end of the run, nor a wait for ever."""
    crash = ["-X", "faulthandler", "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"]
    monkeypatch.setattr(Job, "arguments", lambda _: crash)
    job = Job("tiny_focal", OURS, "float32", "cpu", 1, 1.0)
    with Worker(job, timeout=60) as worker:
        assert worker.greeting["status"] == "error"
        assert "SIGSEGV: Fatal Python error" in worker.greeting["note"]
    monkeypatch.setattr(Job, "arguments", lambda _: ["-c", "import time; time.sleep(60)"])
    with Worker(job, timeout=0.5) as worker:
        assert worker.greeting == {"status": "error", "note": "gave up after 0.5 s"}


def test_one_command_one_table(tmp_path):
    """One workload, very small, two providers: the processes, the two files, and our own row."""
    out = tmp_path / "found.md"
    words = "--only binary_dice_bce --dtype float32 --scale 0.1 --quick --rounds 1 --threads 1"
    options = [*words.split(), "--patience=0", "--gates", "--provider=plain formula"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options, f"--out={out}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    head, *rows = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert head["threads"].startswith("1")
    assert [entry["provider"] for entry in rows] == [OURS, "plain formula"]
    for entry in rows:
        assert entry["status"] == "ok", entry
        assert entry["median"] >= entry["minimum"] > 0
        assert entry["forward"] > 0
        assert entry["floor"] > 0
        assert entry["gradient_error"] < 1e-5
        assert entry["gradient"] == 8 * 51 * 51 * 4
    assert "| **ours**" in out.read_text()
    assert out.read_text() in done.stdout
