"""`denseloss compare`: which trials there are, what survives what, what is left behind."""

import csv
import json
import logging
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from denseloss import cli
from denseloss.compare import CompareSettings, compare, make_report
from denseloss.compare.aggregate import _steps_to
from denseloss.compare.budget import steps_within
from denseloss.compare.folder import ComparisonFolder
from denseloss.compare.local_engine import LocalEngine, visible_gpus
from denseloss.compare.plan import ComparePlan, Trial, learning_rates
from denseloss.compare.run import _absolute, _common, _engine, _settle
from denseloss.compare.settings import seconds
from denseloss.compare.trials import Failed, Progress, TrialFolder, loss_slug
from denseloss.compare.worker import Job, Times
from denseloss.data.errors import InputError
from denseloss.data.files import load_arrays, save_arrays
from denseloss.tasks import Candidate
from denseloss.tasks.segmentation import Segmentation, open_data
from denseloss.tasks.segmentation.measure import METRICS
from denseloss.train.folder import FORMAT
from denseloss.train.run import _prepared
from tests.plans import trial_plan

pytestmark = pytest.mark.filterwarnings("error")


def make_data(root: Path, *, images: int = 16, size: int = 32) -> Path:
    """Bright squares on noise."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(images):
        mask = np.zeros((size, size), np.uint8)
        for _ in range(2):
            top, left = rng.integers(0, size - 9, 2)
            mask[top : top + rng.integers(3, 9), left : left + rng.integers(3, 9)] = 255
        image = mask[..., None] // 2 + rng.integers(0, 90, (size, size, 3))
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"scene{i:02}.png")
        Image.fromarray(mask).save(root / "masks" / f"scene{i:02}.png")
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "squares")


def words(data: Path, out: Path, *options: str, seeds: int = 2, lr: int = 1) -> list[str]:
    return [
        *("compare", str(data), "--loss", "cross_entropy", "--loss", "dice", "--out", str(out)),
        *("--seeds", str(seeds), "--lr", str(lr), "--steps", "4", "--val-every", "2"),
        *("--batch-size", "2", "--size", "32", "--accelerator", "cpu", *options),
    ]


def started(line: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "denseloss.cli", *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Where tests run in the background, Ctrl-C is ignored, and would be by their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


Run = Callable[[list[str]], tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """The command in this process, which has torch already; its trials have their own."""

    def call(line: list[str]) -> tuple[int, str, str]:
        code = cli.main(line)
        return code, *capfd.readouterr()

    return call


def finished(out: Path) -> dict[str, int]:
    """When each finished trial was finished, by its name."""
    return {
        str(file.parent.relative_to(out / "trials")): file.stat().st_mtime_ns
        for file in sorted(out.glob("trials/*/*/held_out.npz"))
        if ".broken" not in str(file)
    }


def events(out: Path, trial: str) -> list[str]:
    lines = (out / "trials" / trial / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines]


# ---------------------------------------------------------------- whole comparisons


def test_a_comparison_is_run_resumed_extended_mended_and_reported_again(
    data: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "out"
    code, shown, complaint = run(words(data, out))
    assert (code, complaint) == (0, "")
    assert "4 of 4 trials ended" in shown
    assert re.search(
        r"Take `(cross_entropy|dice)`: it scored best in Dice. With 2 seeds no risk", shown
    )
    assert f"report: {out / 'report.html'}" in shown
    first = finished(out)
    assert len(first) == 4

    # Each trial is a normal run, of the same images, whose own test row is what is measured here.
    for name in first:
        summary = json.loads((out / "trials" / name / "summary.json").read_text())
        assert summary["test"]["score"] is not None
        assert tuple(
            load_arrays(out / "trials" / name / "held_out.npz")["names"].tolist()
        ) == tuple(sample.name for sample in open_data(data, test_share=0.2).test)
        assert not (out / "trials" / name / "last.ckpt").exists()
    assert len(list((out / "images").glob("*.jpg"))) == 3
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["loss"] for row in rows} == {"cross_entropy", "dice"}
    assert {row["seed"] for row in rows} == {"0", "1"}
    for row in rows:
        if (row["metric"], row["pooling"], row["class"]) == ("dice", "pooled", "(whole)"):
            name = f"{loss_slug(row['loss'])}/seed{row['seed']}-lr{float(row['lr']):g}"
            summary = json.loads((out / "trials" / name / "summary.json").read_text())
            assert float(row["value"]) == pytest.approx(summary["test"]["score"], abs=1e-6)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == ["cross_entropy", "dice"]
    standings = [line["standing"]["standing"] for line in lines]
    taken, other = standings.index("recommended"), 1 - standings.index("recommended")
    assert lines[taken]["comparisons"] == {}
    assert set(lines[other]["comparisons"]["dice/image"]) >= {"difference", "by_seed", "verdict"}
    assert json.loads((out / "looks.json").read_text()) == [2]
    assert lines[0]["cost"]["milliseconds"] > 0
    with (out / "images.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4 * 3

    # The report is made again from the folder alone.
    page = (out / "report.html").read_bytes()
    table = (out / "results.jsonl").read_bytes()
    moved = data.rename(data.with_name("elsewhere"))
    (out / "report.html").unlink()
    (out / "results.jsonl").unlink()
    assert cli.main(["report", str(out)]) == 0
    assert (out / "report.html").read_bytes() == page
    assert (out / "results.jsonl").read_bytes() == table
    moved.rename(data)

    # Another seed is added; two trials are broken meanwhile. Nothing else runs again.
    whole, half, *alone = (out / "trials" / name for name in first)
    (whole / "summary.json").write_text("{")
    content = (half / "held_out.npz").read_bytes()
    (half / "held_out.npz").write_bytes(content[: len(content) // 2])
    code, shown, complaint = run(words(data, out, seeds=3))
    assert (code, complaint) == (0, "")
    assert shown.count("broken: ") == 2
    assert "2 of 6 trials have ended before" in shown
    again = finished(out)
    assert len(again) == 6
    unchanged = [name for name in first if again[name] == first[name]]
    assert unchanged == [str(p.relative_to(out / "trials")) for p in alone]
    # What runs again, in a process that has run other trials before or not, gives the same numbers.
    aside = whole.with_name(f"{whole.name}.broken1")
    assert (aside / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    before = load_arrays(aside / "held_out.npz")
    for key, array in load_arrays(whole / "held_out.npz").items():
        assert np.array_equal(array, before[key]), key

    # A report is made of what can be read.
    (out / "trials" / alone[0].relative_to(out / "trials") / "summary.json").write_text("{")
    assert cli.main(["report", str(out)]) == 0
    code, shown, complaint = run(words(data, out, seeds=3))
    assert (code, complaint) == (0, "")
    assert shown.count("broken: ") == 1
    again = finished(out)

    # What is different for all trials is refused, and nothing is touched.
    Image.new("RGB", (32, 32)).save(data / "images" / "new.png")
    Image.new("L", (32, 32)).save(data / "masks" / "new.png")
    code, shown, complaint = run(words(data, out, seeds=3))
    assert code == 2
    assert "now it is" in complaint
    for name in ("images", "masks"):
        (data / name / "new.png").unlink()
    mask = data / "masks" / "scene03.png"
    labels = mask.read_bytes()
    with Image.open(mask) as image:
        size = image.size
    Image.new("L", size).save(mask)
    code, shown, complaint = run(words(data, out, seeds=3))
    assert code == 2
    assert "images or masks were added, removed, renamed or changed since it began" in complaint
    mask.write_bytes(labels)
    code, shown, complaint = run(words(data, out, "--weight-decay", "0"))
    assert code == 2
    assert "weight_decay was 0.0001, now it is 0.0" in complaint
    assert finished(out) == again


def test_a_killed_comparison_goes_on_and_its_workers_do_not_live_on(
    data: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "out"
    # Long trials, so that the second one is surely running when the first is done.
    line = words(data, out, "--jobs", "1", seeds=1)
    line[line.index("4")] = "30"
    process = started(line)
    deadline = time.monotonic() + 300

    def wait_for(what: Callable[[], object]) -> None:
        while not what():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    wait_for(lambda: finished(out) and list(out.glob("trials/dice*/*/last.ckpt")))
    process.kill()
    process.communicate()
    (running,) = (path.parent for path in out.glob("trials/dice*/*/last.ckpt"))
    # Whoever trains for a comparison that is gone ends, too.
    time.sleep(2)
    log = (running / "log.jsonl").read_bytes()
    assert b"finished" not in log
    time.sleep(2)
    assert (running / "log.jsonl").read_bytes() == log
    before = finished(out)
    assert len(before) == 1

    trial = str(running.relative_to(out / "trials"))
    process = started(line)
    wait_for(lambda: "resumed" in events(out, trial))
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    (said,) = complaint.strip().splitlines()
    assert said.startswith("denseloss: stopped; the same command goes on")

    code, shown, complaint = run(line)
    assert (code, complaint) == (0, "")
    assert "1 of 2 trials have ended before" in shown
    after = finished(out)
    assert len(after) == 2
    assert all(after[name] == when for name, when in before.items())
    assert events(out, trial).count("started") == 1


def test_a_trial_that_fails_is_reported_and_stops_nobody(
    data: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "out"
    bad = "1e39*cross_entropy"  # beyond float32
    line = [*words(data, out, seeds=1), "--loss", bad]
    code, shown, complaint = run(line)
    assert (code, complaint) == (0, "")
    assert shown.count("FAILED") == 1
    assert "the loss term" in shown
    assert "--base-lr is the middle of those that are tried" in " ".join(shown.split())
    assert "1 trial failed; the errors stand below" in shown
    (kept,) = (json.loads(f.read_text()) for f in (out / "failed").glob("*.json"))
    assert kept["own"]
    assert "1e+39*cross_entropy" in (out / "report.md").read_text()

    # It would fail again: it is not tried again, unless that is asked for.
    code, shown, complaint = run(line)
    assert "3 of 3 trials have ended before" in shown
    assert "FAILED" not in shown
    code, shown, complaint = run([*line, "--retry"])
    assert "2 of 3 trials have ended before" in shown
    assert shown.count("FAILED") == 1

    # Where a loss has no networks, the others are compared.
    line = words(data, tmp_path / "other", seeds=1)
    line[line.index("cross_entropy")] = bad
    code, shown, complaint = run(line)
    assert code == 0
    assert "Take `dice`" in shown


# What kills a worker, and what tells it that its machine is taken away.
@pytest.mark.parametrize(
    "sent", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_ray_runs_the_same_trials_and_survives_a_killed_worker(
    sent: signal.Signals, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "out"
    line = words(data, out, "--engine", "ray", "--jobs", "1", seeds=1)
    line[line.index("4")] = "30"
    process = started(line)
    deadline = time.monotonic() + 400
    killed = None
    while killed is None:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        if list(out.glob("trials/cross*/*/last.ckpt")) and not finished(out):
            killed = ray_worker()
        time.sleep(0.05)
    os.kill(killed, sent)
    shown, complaint = process.communicate(timeout=400)
    assert process.returncode == 0, complaint
    assert "2 of 2 trials ended" in shown
    assert "FAILED" not in shown
    (trial,) = out.glob("trials/cross*/*")
    happened = events(out, str(trial.relative_to(out / "trials")))
    assert happened[0] == "started"
    assert happened.count("resumed") == 1
    assert happened[-1] == "finished"


def test_a_cluster_is_asked_for_what_it_has(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    cluster = pytest.importorskip("denseloss.compare.ray_engine")
    with pytest.raises(InputError, match="--accelerator cuda: Ray, started on this machine, finds"):
        cluster.RayEngine(tmp_path, address=None, jobs=None, accelerator="cuda")
    assert not ray.is_initialized()
    ray.init(num_cpus=2, num_gpus=0, log_to_driver=False, logging_level=logging.ERROR)
    try:
        # As many as will run are planned for, and all are handed over, so that a cluster may grow.
        engine = cluster.RayEngine(tmp_path, address=None, jobs=40, accelerator="cpu")
        assert engine.slots == 2
        engine._running = dict.fromkeys(range(39))
        assert engine.free()
        engine._running[39] = None
        assert not engine.free()
        waiting = cluster.RayEngine(tmp_path, address=None, jobs=None, accelerator="cuda")
        assert "there is no GPU yet, and trials wait for one" in waiting.name
        assert (waiting.gpus, waiting.slots) == (True, 1)
    finally:
        ray.shutdown()


def ray_worker() -> int | None:
    """Return the process in which Ray runs a trial."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ray::_train_there" in path.read_bytes():
                return int(path.parent.name)
        except OSError:
            continue
    return None


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    from denseloss.compare.ray_engine import _train_there

    failed = _train_there(job(tmp_path / "out").to_json(), "a mark that is not there")
    assert failed is not None
    assert f"does not see {tmp_path / 'out'}; a cluster needs a shared file system" in failed.error
    assert not failed.own
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- small plans


def whole_plan(**changed: object) -> ComparePlan:
    values: dict[str, object] = {
        "common": trial_plan(),
        "candidates": (Candidate("a", ""), Candidate("b", "")),
        "seeds": 3,
        "rates": (0.01, 0.003, 0.03),
        "lr_seeds": 1,
        "budget": "",
        "metric": "dice",
        "pooling": "image",
        "effect": 0.01,
        "level": 0.95,
    }
    return ComparePlan(**{**values, **changed})  # type: ignore[arg-type]


def job(root: Path, *, seed: int = 0) -> Job:
    trial = Trial(loss="dice", seed=seed, lr=0.01)
    return Job(root=root, trial=trial, plan=trial_plan(seed=seed), data="", context={}, keep=0)


def test_plans_are_read_back_as_they_were(tmp_path: Path) -> None:
    found = whole_plan()
    found = replace(found, common=replace(found.common, loss="a"))
    assert ComparePlan.from_tables(json.loads(json.dumps(found.to_tables()))) == found
    assert Job.from_json(job(tmp_path).to_json()) == job(tmp_path)


# ---------------------------------------------------------------- pairs


def test_at_one_seed_all_losses_start_from_the_same_weights(data: Path) -> None:
    found = open_data(data)
    weights = []
    for loss in ("cross_entropy", "dice + 0.5*focal", "structure"):
        plan = trial_plan(data=str(data), loss=loss, seed=3)
        module, loading = _prepared(plan, Segmentation(), found)
        weights.append(module.model.state_dict())
        assert loading.seed == 3
    for other in weights[1:]:
        assert all(torch.equal(other[key], value) for key, value in weights[0].items())


def test_the_held_out_images_are_the_same_for_every_seed(data: Path) -> None:
    found = whole_plan()
    runs = [found.of(Trial(loss="dice", seed=seed, lr=0.1)) for seed in range(3)]
    assert len({(run.split_seed, run.val_share, run.test_share) for run in runs}) == 1
    assert [(run.loss, run.seed, run.lr) for run in runs] == [("dice", i, 0.1) for i in range(3)]
    by_seed = [open_data(data, seed=0, test_share=0.2).test for _ in range(2)]
    assert by_seed[0] == by_seed[1]
    assert len(by_seed[0]) == 3


# ---------------------------------------------------------------- what to run next


def plan(**changed: object) -> Progress:
    return Progress(whole_plan(**changed))


def test_every_loss_gets_the_same_learning_rates_then_its_seeds() -> None:
    found = plan()
    assert found.total == 2 * (3 + 2)
    begun = []
    while (trial := found.next()) is not None:
        begun.append(trial)
    assert [(t.loss, t.lr, t.seed) for t in begun] == [
        (loss, lr, 0) for lr in (0.01, 0.003, 0.03) for loss in "ab"
    ]
    for trial in begun:
        better = 0.03 if trial.loss == "a" else 0.01
        found.finish(trial, "finished", 0.8 if trial.lr == better else 0.7)
    assert found.chosen("a") == 0.03
    assert found.chosen("b") == 0.01
    rest = [found.next() for _ in range(5)]
    assert [(t.loss, t.lr, t.seed) for t in rest if t] == [
        ("a", 0.03, 1),
        ("b", 0.01, 1),
        ("a", 0.03, 2),
        ("b", 0.01, 2),
    ]
    assert rest[-1] is None


def test_of_equal_learning_rates_the_default_is_taken() -> None:
    found = plan()
    for trial in found.search("a"):
        found.finish(trial, "finished", 0.5)
    assert found.chosen("a") == 0.01


def test_a_learning_rate_that_failed_is_not_chosen() -> None:
    found = plan(lr_seeds=2)
    for trial in found.search("a"):
        fails = trial.lr == 0.03 and trial.seed == 1
        found.finish(trial, "failed" if fails else "finished", trial.lr)
    assert math.isnan(found.searched("a")[0.03])
    assert found.chosen("a") == 0.01


def test_a_loss_whose_every_learning_rate_failed_needs_no_more_seeds() -> None:
    found = plan()
    for trial in found.search("a"):
        found.finish(trial, "failed")
    assert found.chosen("a") is None
    assert found.total == 3 + 5
    assert all(trial.loss == "b" for trial in iter(found.next, None))


@pytest.mark.parametrize(
    ("count", "rates"),
    [
        (1, (0.005,)),
        (2, (0.005, 0.0016)),
        (3, (0.005, 0.0016, 0.016)),
        (5, (0.005, 0.0016, 0.016, 0.0005, 0.05)),
    ],
)
def test_learning_rates_lie_around_the_default(count: int, rates: tuple[float, ...]) -> None:
    assert learning_rates(0.005, count) == rates


def test_without_a_search_a_failed_seed_costs_that_seed_alone() -> None:
    found = plan(rates=(0.01,))
    first = found.next()
    assert first is not None
    found.finish(first, "failed")
    assert found.chosen("a") == 0.01
    assert found.total == 2 * 3
    for trial in iter(found.next, None):
        found.finish(trial, "finished", 0.5)
    assert found.done == 6
    assert len(found.scores) == 5


def test_no_two_losses_share_a_folder() -> None:
    losses = ["dice", "dice + focal", "dice(smooth=1)", "dice(smooth=0)", "x" * 90, "x" * 91]
    names = {loss_slug(loss) for loss in losses}
    assert len(names) == len(losses)
    assert all(len(name) < 60 and "/" not in name for name in names)


# ---------------------------------------------------------------- time


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("1h30m", 5400), ("1d", 86400)],
)
def test_a_budget_is_a_time(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "30", "m", "30 m", "half an hour", "-5m", "30m!"])
def test_a_budget_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="write a time such as 30m"):
        seconds(text)


@pytest.mark.parametrize("every", [None, 10, 33])
def test_the_steps_fill_the_budget_and_do_not_exceed_it(every: int | None) -> None:
    times = [Times(step=0.1, validation=1, rest=5), Times(step=0.2, validation=2, rest=5)]

    def planned(budget: float) -> int:
        return steps_within(
            budget, times, trials=8, slots=2, plan=trial_plan(), images=100, every=every
        )

    def needed(n: int) -> float:
        between = trial_plan().with_steps(n, images=100, every=every).val_every
        assert every is None or between == min(every, n)
        return 4 * (5 + 0.2 * n + 2 * math.ceil(n / between))

    steps = planned(600)
    assert needed(steps) <= 600 < needed(steps + 1)
    with pytest.raises(InputError, match=r"8 trials of 20 steps need about \d\d s here"):
        planned(10)


@pytest.mark.slow
def test_the_steps_of_a_budget_are_measured_once(data: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    line = words(data, out, seeds=1)
    place = line.index("--steps")
    line[place : place + 2] = ["--budget", "2m"]
    del line[line.index("--val-every") : line.index("--val-every") + 2]
    started_at = time.monotonic()
    code, shown, complaint = run(line)
    assert (code, complaint) == (0, ""), shown
    assert "measuring how long a step takes" in shown
    # Not timed closely: a machine may become slower in the middle. It is in the region.
    assert time.monotonic() - started_at < 360
    before = finished(out)
    code, shown, complaint = run(line)
    assert "measuring" not in shown
    assert finished(out) == before


# ---------------------------------------------------------------- what goes wrong


def outcome(engine: LocalEngine) -> Failed:
    outcomes = []
    while not outcomes:
        outcomes = engine.wait(1)
    (found,) = outcomes
    assert found.failed is not None
    return found.failed


def test_a_process_that_dies_is_a_failed_trial_with_its_last_words(tmp_path: Path) -> None:
    engine = LocalEngine(jobs=1, gpus=())
    (tmp_path / "out").mkdir()
    engine.start(job(tmp_path / "out"))
    assert not engine.free()
    engine._workers[0].process.kill()
    failed = outcome(engine)
    assert "was killed by signal 9" in failed.error
    assert not failed.own
    assert engine.free()
    # The next trial gets a process of its own, and one after a trial that failed, too.
    for _ in range(2):
        engine.start(job(tmp_path / "out"))
        failed = outcome(engine)
        assert "data.pickle: cannot be read" in failed.error
        # Perhaps a disk that this machine does not have just now.
        assert not failed.own
    engine.stop()
    assert engine._workers == []


def test_data_that_was_changed_is_never_unpickled(data: Path, tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path)
    found = open_data(data)
    digest = folder.write_data(found)
    assert folder.read_data(digest) == found
    folder.data_file.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(InputError, match="was changed"):
        folder.read_data(digest)


def test_gpus_are_shared_out_one_per_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Process:
        stdin = stdout = None

        def __init__(self, *_: object, env: dict[str, str], **__: object) -> None:
            seen.append(env["CUDA_VISIBLE_DEVICES"])
            read, write = os.pipe()
            self.stdin, self.stdout = os.fdopen(write, "wb"), os.fdopen(read, "rb")

        def poll(self) -> None: ...

        def wait(self) -> None: ...

    monkeypatch.setattr(subprocess, "Popen", Process)
    engine = LocalEngine(jobs=None, gpus=("2", "5", "7"))
    for seed in range(3):
        assert engine.free()
        engine.start(job(tmp_path, seed=seed))
    assert seen == ["2", "5", "7"]
    assert not engine.free()
    for worker in engine._workers:
        worker.close()


@pytest.mark.parametrize(
    ("named", "count", "expected"),
    [
        (None, 3, ["0", "1", "2"]),
        ("4,2", 2, ["4", "2"]),
        ("GPU-a,GPU-b", 2, ["GPU-a", "GPU-b"]),
        ("0,1,9", 2, ["0", "1"]),
        # A process sees one slice only.
        ("MIG-a,MIG-b", 1, ["MIG-a", "MIG-b"]),
        ("", 0, []),
    ],
)
def test_gpus_are_those_this_process_may_use(
    named: str | None, count: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if named is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert visible_gpus("auto") == expected
    assert visible_gpus("cpu") == []


def test_without_gpus_to_share_a_trial_sees_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    seen = []

    def popen(*_: object, env: dict[str, str], **__: object) -> None:
        seen.append(env["CUDA_VISIBLE_DEVICES"])
        raise OSError("enough")

    monkeypatch.setattr(subprocess, "Popen", popen)
    engine = LocalEngine(jobs=None, gpus=(), alone=True)
    with pytest.raises(OSError, match="enough"):
        engine.start(job(tmp_path))
    assert seen == [""]
    assert engine.slots == 1
    assert engine.name == "this machine, 1 process at a time, on its GPU"


def test_paths_keep_their_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "export")
    monkeypatch.chdir(tmp_path)
    assert _absolute("home/data") == str(tmp_path / "home" / "data")
    assert _absolute("synthetic:blobs") == "synthetic:blobs"


@pytest.mark.parametrize(
    ("engine", "asked", "expected"),
    [
        # The machines with a GPU may have gone for a while.
        ("ray", "auto", ("cuda", "bf16-mixed")),
        ("ray", "cpu", ("cpu", "32-true")),
        ("local", "auto", ("cpu", "32-true")),
    ],
)
def test_a_comparison_keeps_the_accelerator_that_was_decided(
    engine: str,
    asked: str,
    expected: tuple[str, str],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = ComparisonFolder(tmp_path)
    settings = CompareSettings(
        data=str(data),
        loss=("cross_entropy", "dice"),
        steps=2,
        engine=engine,  # type: ignore[arg-type]
        accelerator=asked,  # type: ignore[arg-type]
    )
    accelerator, precision = expected
    known = whole_plan(common=trial_plan(accelerator=accelerator, precision=precision))
    before = known.to_tables()
    asked_of = []

    class Ray:
        def __init__(self, *_: object, accelerator: str, **__: object) -> None:
            asked_of.append(accelerator)
            self.gpus = accelerator == "cuda"

    monkeypatch.setattr("denseloss.compare.ray_engine.RayEngine", Ray)
    there = _engine(settings, before, folder)
    found = open_data(str(data), seed=0, val_share=0.2, test_share=0.2)
    losses = [Candidate("cross_entropy", ""), Candidate("dice", "")]
    decided = _common(
        settings, Segmentation(), "segmentation", found, there, folder, before, losses
    )
    assert (decided.accelerator, decided.precision) == expected
    assert asked_of == ([] if engine == "local" else [accelerator])


def test_a_full_disk_is_told_and_costs_that_trial_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = plan()
    trial = found.next()
    assert trial is not None

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TrialFolder, "fail", full)
    failed = _settle(
        ComparisonFolder(tmp_path), found, trial, Failed(error="cannot write", own=False)
    )
    assert failed is not None
    assert failed.error.startswith("cannot write (and this could not be noted")
    assert found.states[trial] == "failed"
    assert found.next() not in (None, trial)


def test_two_comparisons_do_not_work_in_one_folder(data: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    who = f"denseloss: error: {out}: process {os.getpid()} on {platform.node()} compares here since"
    with ComparisonFolder(out).locked():
        (out / "compare.toml").write_text("")
        for line in (words(data, out), ["report", str(out)]):
            code, _, complaint = run(line)
            assert code == 2
            assert complaint.startswith(who)
            assert complaint.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": ()}, "--loss is missing"),
        ({"loss": ("dice",)}, "nothing to compare it with"),
        ({"loss": ("dice", "dice")}, "is given twice"),
        ({"loss": ("dice", "giou")}, "pairs of boxes"),
        ({"loss": ("dice", "cross_entropy(class_weight=[1, 2, 3])")}, "cannot be computed"),
        ({"seeds": 0}, "--seeds 0: must be 1 or larger"),
        ({"lr": 0}, "--lr 0: must be 1 or larger"),
        ({"lr_seeds": 9}, "there are only 2 seeds"),
        ({"steps": 3, "epochs": 2}, "--steps and --epochs both say how long"),
        ({"metric": "accuracy"}, "--metric accuracy: there are dice, iou"),
        ({"effect": 0.0}, "--effect 0: must be larger than 0"),
        ({"level": 1.0}, "--level 1: must lie between"),
        ({"address": "auto"}, "give --engine ray, too"),
        ({"test_share": 0.0}, "no held-out images"),
        ({"test_share": 0.9}, "--test-share 0.9: must lie between 0 and 0.8"),
        ({"batch_size": 0}, "--batch-size 0: must be larger than 0"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_written(
    data: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    asked = CompareSettings(
        data=str(data), loss=("cross_entropy", "dice"), out=tmp_path / "out", seeds=2
    )
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        compare(replace(asked, **options))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_half_written_files_of_a_killed_process_are_in_nobodys_way(tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path / "out")
    folder.path.mkdir()
    (folder.path / "compare.toml.part").write_text("[asked]")
    assert folder.config() is None
    files = TrialFolder(folder.path, Trial(loss="dice", seed=0, lr=0.01))
    files.path.mkdir(parents=True)
    (files.path / "config.toml.part").write_text("[settings]")
    assert files.problem() is None
    assert files.run.unfinished() is None
    (files.path / "last.ckpt").write_bytes(b"")
    assert files.problem() == "config.toml: is missing"
    (files.path / "config.toml").write_text("[run]\nformat = 3\n")
    assert "config.toml: is not what denseloss train writes" in str(files.problem())
    files.run.write_config({"settings": trial_plan().to_table(), "run": {"format": 3}})
    assert "last.ckpt: cannot be read" in str(files.problem())
    (files.path / "last.ckpt").unlink()
    (files.path / "summary.json").write_text('{"best": {}, "seconds": 1}')
    (files.path / "metrics.csv").write_text("epoch,step,loss,val_loss,score\n1,1,1,1,1\n")
    assert files.problem() == "best.ckpt: is missing"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("summary.json", b"[]", "summary.json: is no summary of a run"),
        ("summary.json", b'{"best": 3, "seconds": 1}', "is no summary"),
        ("summary.json", b'{"best": {"score": "high"}, "seconds": 1}', "is no summary"),
        ("summary.json", b'{"best": {}, "seconds": "long"}', "is no summary"),
        ("metrics.csv", b"", "metrics.csv: has no rows"),
        ("metrics.csv", b"a,b\n1,2\n", "metrics.csv: has no rows"),
        ("metrics.csv", b"epoch,step\n1\n", "metrics.csv: cannot be read"),
        ("metrics.csv", b"epoch,step\n1,2,3\n", "metrics.csv: cannot be read"),
        ("metrics.csv", b"epoch,step\n1,many\n", "metrics.csv: cannot be read"),
        ("metrics.csv", b"\xff\xfe\x00", "metrics.csv: cannot be read"),
        ("config.toml", b"settings = 3", "settings must be a table"),
        ("held_out.npz", b"", "held_out.npz: is damaged"),
        ("held_out.npz", "validation.csv", "held_out.npz: "),
    ],
)
def test_what_a_trial_left_is_looked_at_before_it_is_used(
    tmp_path: Path, name: str, content: bytes | str, problem: str
) -> None:
    files = TrialFolder(tmp_path, Trial(loss="dice", seed=0, lr=0.01))
    files.path.mkdir(parents=True)
    files.run.write_config({"settings": trial_plan().to_table(), "run": {"format": FORMAT}})
    files.run.summary_file.write_text('{"best": {"score": null}, "seconds": 1}')
    files.run.metrics_file.write_text("epoch,step,loss,val_loss,score\n1,1,1,1,nan\n")
    for file in (files.validation_file, files.held_out_file):
        file.write_bytes(b"")
    if isinstance(content, str):
        # Sound, and of something else.
        save_arrays(files.path / name, {"names": np.array(["a"])})
    else:
        (files.path / name).write_bytes(content)
    said = str(files.problem())
    assert problem in said
    assert "\n" not in said


def test_a_comparison_goes_on_where_its_data_was_moved_to_and_not_with_other_masks(
    tmp_path: Path,
) -> None:
    folder = ComparisonFolder(tmp_path)

    def config(data: str, *, files: str = "a", **changed: object) -> dict[str, dict[str, object]]:
        tables = whole_plan(common=trial_plan(data=data, **changed)).to_tables()
        facts = {"name": Path(data).name, "train": 3, "files": files}
        return {**tables, "data": facts, "run": {"format": FORMAT}}

    folder.write_config(config("/here/cells"))
    folder.write_config(config("/there/tissue"))
    assert 'data = "/there/tissue"' in folder.config_file.read_text()
    with pytest.raises(InputError, match="images or masks were added, removed, renamed or changed"):
        folder.write_config(config("/there/tissue", files="b"))
    with pytest.raises(InputError, match="size was 32, now it is 64"):
        folder.write_config(config("/there/tissue", size=64))
    # Made-up data is what its name says.
    with pytest.raises(InputError, match=r'data was not set, now it is "synthetic:blobs"'):
        folder.write_config(config("synthetic:blobs"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[asked]", "asked = 3\n[other]"), "asked must be a table, and is 3"),
        (('losses = ["a", "b"]', "losses = [3]"), "losses is 3, and must be of the type str"),
        (('losses = ["a", "b"]', "losses = []"), "losses is empty"),
        (("seeds = 3", "seeds = true"), "seeds is True, and must be of the type int"),
        (("rates = [", 'rates = ["fast", '), "rates is 'fast'"),
        (('metric = "dice"', 'metric = "luck"'), "segmentation has no metric 'luck'"),
        (('pooling = "image"', 'pooling = "no"'), "pooling is 'no'"),
        (("lines = []", ""), "'lines' is missing"),
        (("train = 3", 'train = "all"'), "train is 'all'"),
        (("base_lr = 0.01", ""), "'base_lr' is missing"),
        (("steps = 2", "steps = 2.5"), "steps is 2.5, and must be of the type int"),
    ],
)
def test_a_broken_configuration_of_a_comparison_is_one_line(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    told = {"name": "cells", "lines": [], "train": 3, "val": 1, "test": 1, "split": "by seed"}
    tables = {
        **whole_plan().to_tables(),
        "data": told,
        "run": {"format": FORMAT, "command": "compare"},
    }
    folder = ComparisonFolder(tmp_path)
    folder.write_config(tables)
    assert folder.plan(folder.config() or {}).losses == ("a", "b")
    text = folder.config_file.read_text()
    assert change[0] in text
    folder.config_file.write_text(text.replace(*change))
    with pytest.raises(InputError, match=message) as error:
        make_report(tmp_path)
    assert str(error.value).startswith(f"{folder.config_file}: ")
    assert "\n" not in str(error.value)


def test_a_network_that_learned_nothing_is_not_the_fastest() -> None:
    def rows(*dice: float) -> list[dict[str, float]]:
        return [{"step": 10.0 * i, "score": d} for i, d in enumerate(dice, 1)]

    dice, distance = METRICS[0], METRICS[-1]
    assert _steps_to(rows(0.1, 0.94, 0.96, 1.0), dice) == 30
    assert _steps_to(rows(9.0, 2.2, 2.1, 2.0), distance) == 30
    assert _steps_to(rows(0.0, 0.0), dice) is None
    assert _steps_to(rows(0.5, math.nan), dice) is None


def test_the_smallest_difference_that_matters_has_the_unit_of_its_metric() -> None:
    asked = whole_plan(metric="hd95", effect=2.0)
    effects = {metric.key: asked.effect_of(metric) for metric in METRICS}
    assert effects["hd95"] == 2.0
    assert effects["dice"] == 0.01
    assert whole_plan().effect_of(METRICS[-1]) == 1.0
    assert asked.metrics[0].key == "hd95"


def test_folders_of_other_versions_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "compare.toml").write_text('[asked]\n[run]\ndenseloss = "0.0.9"\n')
    with pytest.raises(InputError, match=r"was made by denseloss 0.0.9 with folders of format 1"):
        make_report(tmp_path)


def test_a_folder_of_something_else_is_left_alone(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    asked = CompareSettings(data=str(data), loss=("cross_entropy", "dice"), out=out)
    with pytest.raises(InputError, match="holds no comparison of denseloss"):
        compare(asked)
    with pytest.raises(InputError, match="holds no comparison"):
        make_report(out)
    with pytest.raises(InputError, match="holds no comparison"):
        make_report(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    assert (out / "thesis.tex").read_text() == "years of work"
    shutil.rmtree(out)
