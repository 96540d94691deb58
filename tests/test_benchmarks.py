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
from benchmarks.gates import peers as peers_of_gates
from benchmarks.measure import Row, Settings, Worker, _judge, _summarise
from benchmarks.worker import (
    Bench,
    Job,
    Launches,
    Load,
    difference,
    peak_resident,
    take_turns,
)
from benchmarks.workloads import (
    DEFINITION,
    F_CE,
    FLOOR,
    KORNIA,
    LOG_COSH,
    MONAI,
    OURS,
    OURS_FLOAT32,
    POLY1,
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
            if peer.step or peer.name.startswith(compiled_name("")):
                continue
            if is_library == libraries:
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


@pytest.mark.parametrize("name", ["poly1_loss", "log_cosh_dice_loss"])
def test_formulas_of_a_user_are_those_of_the_papers(name):
    z = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    labels = torch.randint(3, (2, 5, 4))
    p, t = z.softmax(1), torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)
    if name == "poly1_loss":
        own = (p * t).sum(1)
        expected = (1 - own - own.log()).mean()
    else:
        both, total = (p * t).sum((2, 3)), (p + t).sum((2, 3))
        expected = (1 - (2 * both + 1) / (total + 1)).cosh().log().mean()
    torch.testing.assert_close(getattr(formulas, name)(z, labels), expected)


def test_formulas_of_a_user_run_over_the_fast_quantities():
    labels = torch.randint(3, (2, 64, 64))
    for resized, side in ((False, 64), (True, 16)):
        z = torch.randn(2, 3, side, side)
        for user in (workloads.poly1(resized=resized), workloads.log_cosh(resized=resized)):
            found = backend.which(user.load(), z, labels)
            assert "softmax_pass" in found
            if "cpu" in backend.available():
                assert set(found.values()) == {"cpu"}


def test_the_floor_leaves_a_gradient_and_no_graph():
    z = torch.randn(2, 3, 8, 8, requires_grad=True)
    value = workloads.floor().load()(z, None)
    assert not value.requires_grad
    assert torch.equal(z.grad, z)
    assert z.grad.data_ptr() != z.data_ptr()


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
        by_row = [(gate.workload, gate.kind, gate.against, gate.dtype) for gate in gates]
        assert len(set(by_row)) == len(by_row)


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


def test_gates_of_times_formulas_and_operators():
    """A ratio says how often theirs is ours; `time` asks how often ours is theirs."""
    ours, theirs = row(ratio=1.0, launches=11), row(F_CE, ratio=0.4)
    time = Gate("binary_focal", "time", 3.2, F_CE)
    assert time.measured([ours, theirs]) == 2.5
    assert time.met(2.5)
    assert not time.met(3.3)
    assert "3.2" not in time.what()
    assert F_CE in time.what()
    formula = Gate("binary_focal", "formula", 1.2, POLY1)
    assert formula.measured([ours, row(POLY1, ratio=1.1)]) == 1.1
    assert formula.met(1.1)
    assert not formula.met(1.3)
    operators = Gate("binary_focal", "launches", 12)
    assert operators.measured([ours]) == 11
    assert operators.met(12)
    assert not operators.met(13)
    assert operators.measured([row()]) is None


def test_gated_names_peers_by_workload_and_dtype():
    found = peers_of_gates("cpu")
    assert found["tiny_cross_entropy", "float32"] == {F_CE}
    assert found["cross_entropy_dice", "float32"] >= {MONAI, FLOOR, F_CE, LOG_COSH}
    assert found["cross_entropy_dice", "bfloat16"] == {OURS_FLOAT32}
    assert ("tiny_cross_entropy", "bfloat16") not in found


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


def test_operators_are_counted_below_autograd():
    z = torch.randn(3, requires_grad=True)
    with Launches() as found:
        (z * 2).sum().backward()
    # mul, sum; ones_like, expand, mul, and one that autograd gives the leaf its gradient by
    assert 5 <= found.count <= 7


def test_the_definition_is_used_for_one_loss_only():
    """Where all providers are in one process."""
    job = Job("tiny_cross_entropy", (), "float32", "cpu", 1, 1.0)
    bench = Bench(job, DEFINITION)
    assert set(backend.which(bench.loss, bench.leaf, *bench.rest).values()) == {
        'reference: backend.use("reference") is in force'
    }
    ours = Bench(job, OURS)
    assert not any(
        "in force" in why for why in backend.which(ours.loss, ours.leaf, *ours.rest).values()
    )


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("large", [name for name, w in WORKLOADS.items() if w.size == "large"]),
        ("tiny", [name for name in WORKLOADS if name.startswith("tiny_")]),
        ("small", [name for name in WORKLOADS if name.startswith("small_")]),
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
    job = Job("tiny_focal", (OURS, TORCHVISION), "float32", "cpu", 1, 1.0)
    with Worker(job, timeout=60) as worker:
        for name in job.providers:
            assert worker.greeting[name]["status"] == "error"
            assert "SIGSEGV: Fatal Python error" in worker.greeting[name]["note"]
        assert [sorted(turn) for turn in worker.ask(turns=2)] == [sorted(job.providers)] * 2
    monkeypatch.setattr(Job, "arguments", lambda _: ["-c", "import time; time.sleep(60)"])
    with Worker(job, timeout=0.5) as worker:
        assert worker.greeting[OURS] == {"status": "error", "note": "gave up after 0.5 s"}


def test_one_that_fails_later_leaves_the_others_their_turns():
    class Fails:
        def time(self, **_):
            raise RuntimeError("no more")

    class Works:
        def time(self, **_):
            return answer(1.0)

    first, second = take_turns({"a": Fails(), "b": Works()}, turns=2)
    assert first["a"]["status"] == "error"
    assert "a" not in second
    assert first["b"]["step"] == second["b"]["step"] == [1.0]


def measured(tmp_path, words, *more):
    """Runs the command: its rows, their header, and the table."""
    out = tmp_path / "found.md"
    words += " --dtype float32 --quick --rounds 1 --threads 1 --patience 0"
    options = [*words.split(), *more]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options, f"--out={out}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert out.read_text() in done.stdout
    head, *rows = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    return rows, head, out.read_text()


def test_one_command_one_table(tmp_path):
    """One workload, very small, two providers: the processes, the two files, and our own row."""
    words = "--only binary_dice_bce --scale 0.1 --gates"
    rows, head, text = measured(tmp_path, words, "--provider=plain formula")
    assert head["threads"].startswith("1")
    assert [entry["provider"] for entry in rows] == [OURS, "plain formula"]
    for entry in rows:
        assert entry["status"] == "ok", entry
        assert entry["median"] >= entry["minimum"] > 0
        assert entry["forward"] > 0
        assert entry["floor"] > 0
        assert entry["gradient_error"] < 1e-5
        assert entry["gradient"] == 8 * 51 * 51 * 4
    assert "| **ours**" in text


def test_one_process_many_turns(tmp_path):
    """A tiny workload: whom the gates compare with, turn by turn in one process."""
    rows, _, text = measured(tmp_path, "--only tiny_cross_entropy_dice --gated")
    assert [entry["provider"] for entry in rows] == [OURS, F_CE]
    for entry in rows:
        assert entry["status"] == "ok", entry
        assert entry["rounds"] == 3  # turns
        assert entry["median"] >= entry["minimum"] > 0
        assert entry["launches"] > 0
        assert entry["peak_extra"] is None
    assert rows[0]["gradient_error"] < 1e-5
    assert "time over that of F.cross_entropy" in text
    assert "operators called" in text
