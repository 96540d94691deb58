"""The rows as one Markdown table and as JSONL, under a header that says where they come from."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.gates import GATES, Gate
from benchmarks.measure import ROOT, Row, Settings, record
from benchmarks.workloads import OURS

MEBI = 2**20
LIBRARIES = (
    "torch",
    "triton",
    "torchvision",
    "monai",
    "kornia",
    "segmentation_models_pytorch",
)
COLUMNS = (
    "workload",
    "implementation",
    "median",
    "min",
    "quartiles",
    "forward",
    "ours is",
    "over floor",
    "peak extra MiB",
    "over gradient",
    "operators",
    "notes",
)
LEGEND = """\
**median**, **min**, **quartiles**: forward + backward to the leaf's gradient; **forward**: alone, \
without gradients; ms unless said. **ours is**: how many times faster ours is than this row, the \
median over rounds in which all took turns. **over floor**: the median over a warm copy that moves \
the compulsory bytes (each input read once, the gradient written once), timed in the same process. \
**peak extra**: memory of a step beyond what was there before it, the gradient included, in a \
process of its own; **over gradient**: that over the size of the gradient. **operators**: how many \
calls of forward + backward reach torch's dispatcher below autograd, aten's and ours alike; views \
and new tensors count, what an operator of ours does inside does not.

Large workloads: each implementation in a process of its own. Small ones (`small_`): all in one \
process, in many short turns. Tiny ones (`tiny_`): likewise, on one thread."""


def header(settings: Settings) -> dict[str, str]:
    """Where and with what."""
    found = {
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": settings.device,
        "processor": f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": f"{settings.threads}, OMP_WAIT_POLICY=passive",
        "rounds": f"{settings.rounds} of {settings.seconds:g} s or {settings.least} runs; "
        f"where all are in one process, of {settings.together:g} s in {settings.turns} turns",
        "python": platform.python_version(),
    }
    if settings.device == "cuda":
        found["device"] = torch.cuda.get_device_name()
        found["cuda"] = str(torch.version.cuda)
    if settings.scale != 1:
        found["scale"] = f"{settings.scale:g}: not the sizes that the workloads' names stand for"
    return found | {name: _version(name) for name in LIBRARIES}


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + "+dirty" * bool(
            git("status", "--porcelain")
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def markdown(head: dict[str, str], rows: Sequence[Row], *, gates: bool = False) -> str:
    """The whole document."""
    about = "\n".join(f"- {name}: {value}" for name, value in head.items())
    parts = ["# Benchmarks", about, LEGEND, _grid(COLUMNS, _cells(rows), right=range(2, 11))]
    if gates:
        parts += ["## Gates", gates_table(head, rows)]
    return "\n\n".join(parts) + "\n"


def _cells(rows: Iterable[Row]) -> Iterable[tuple[str, ...]]:
    before = None
    for row in rows:
        group = f"{row.workload} {row.dtype}, {row.shape}"
        first, before = group != before, group
        low, high = row.quartiles or (None, None)
        quartiles = f"{_time(low, tiny=row.tiny)} .. {_time(high, tiny=row.tiny)}" if low else "–"
        yield (
            group if first else "",
            f"**{row.provider}**" if row.provider == OURS else row.provider,
            _time(row.median, tiny=row.tiny),
            _time(row.minimum, tiny=row.tiny),
            quartiles,
            _time(row.forward, tiny=row.tiny),
            "–" if row.ratio is None or row.provider == OURS else f"{_short(row.ratio)} x",
            "–" if row.floor is None else f"{_short(row.floor)} x",
            "–" if row.peak_extra is None or row.tiny else _short(row.peak_extra / MEBI),
            "–" if row.peak_ratio is None or row.tiny else f"{row.peak_ratio:.2f}",
            "–" if row.launches is None else str(row.launches),
            row.remarks(),
        )


def _time(value: float | None, *, tiny: bool) -> str:
    if value is None:
        return "–"
    return f"{_short(value * 1e3)} µs" if tiny else _short(value)


def _short(value: float) -> str:
    """Three digits, without a power of ten."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def gates_table(head: dict[str, str], rows: Sequence[Row]) -> str:
    """Wanted, measured, met of these workloads and dtypes; what is not measured says so."""
    cells = []
    chosen = {(row.workload, row.dtype) for row in rows}
    for gate in GATES["cpu" if head["device"] == "cpu" else "cuda"]:
        if (gate.workload, gate.dtype) not in chosen:
            continue
        measured = gate.measured(rows)
        limit = "≥" if gate.at_least else "≤"
        cells.append(
            (
                f"{gate.workload} {gate.dtype}",
                gate.what(),
                f"{limit} {gate.wanted:g}",
                "not measured" if measured is None else _short(measured),
                "" if measured is None else _verdict(gate, measured, rows),
            )
        )
    return _grid(("workload", "what", "wanted", "measured", "met"), cells, right=range(2, 4))


def _verdict(gate: Gate, measured: float, rows: Sequence[Row]) -> str:
    met = "yes" if gate.met(measured) else "**no**"
    timed = gate.kind in ("speed", "time", "formula", "floor", "us")
    return f"{met}, while busy" if timed and any(r.busy for r in gate.compared(rows)) else met


def _grid(columns: Sequence[str], cells: Iterable[Sequence[str]], right: range) -> str:
    """A Markdown table that can be read as it is."""
    lines = [list(columns), *([text.replace("|", "\\|") for text in line] for line in cells)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(columns))]

    def joined(line: Sequence[str]) -> str:
        padded = (
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * (w - 1) + ":" if i in right else "-" * w for i, w in enumerate(widths)]
    return "\n".join([joined(lines[0]), joined(rule), *map(joined, lines[1:])])


def jsonl(head: dict[str, str], rows: Iterable[Row]) -> str:
    """The header as the first object, then one object a row."""
    records = [{"record": "header", **head}, *map(record, rows)]
    return "".join(json.dumps(entry) + "\n" for entry in records)


def line(row: Row) -> str:
    """A row while the table is being made."""
    ratio = "" if row.ratio is None or row.provider == OURS else f"ours {_short(row.ratio)} x, "
    peak = "" if row.peak_extra is None else f"{_short(row.peak_extra / MEBI)} MiB"
    return (
        f"  {row.provider:56} {_time(row.median, tiny=row.tiny):>9}  {ratio}{peak}  {row.remarks()}"
    )
