"""Speed and memory of the losses against what people use today.

python -m benchmarks                           everything (about two hours on two cores)
python -m benchmarks --only ciou --only ncut   some workloads
python -m benchmarks --only small --only tiny  what people train with, and the cost of the calls
python -m benchmarks --gated --dtype float32   what is wanted, and no more
python -m benchmarks --list                    the workloads, and who is measured
python -m benchmarks --out benchmarks/RESULTS.md --gates
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import table
from benchmarks.gates import peers
from benchmarks.measure import ROOT, Row, Settings, measured
from benchmarks.workloads import (
    DEFINITION,
    OURS,
    OURS_FLOAT32,
    WORKLOADS,
    Workload,
    chosen,
    matching,
)

DEFAULT = ROOT / "benchmarks" / "out" / "table.md"


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="workloads by name, part of a name, wildcard, or size (large, small, tiny); "
        "may be repeated",
    )
    add(
        "--provider",
        action="append",
        default=[],
        metavar="PATTERN",
        help="peers by name or part of it; ours is always measured",
    )
    add(
        "--dtype",
        action="append",
        choices=["float32", "bfloat16", "float16"],
        help="of the input; default float32 and bfloat16",
    )
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--threads", type=int, default=2)
    add("--rounds", type=int, help="how often everybody has a turn; default 5")
    add("--quick", action="store_true", help="fewer and shorter rounds: a look, no result")
    add(
        "--patience",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="to wait for a quiet machine, for each workload and dtype; default 120",
    )
    add(
        "--timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="after which a provider that does not answer is given up; default 300",
    )
    add("--definition", action="store_true", help="measure our plain definitions, too")
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="the Markdown file, with a .jsonl beside it; default benchmarks/out/table.md",
    )
    add("--gates", action="store_true", help="what was wanted, measured and met")
    add(
        "--gated",
        action="store_true",
        help="only workloads, dtypes and peers that a gate names; implies --gates",
    )
    add(
        "--list",
        action="store_true",
        help="name the workloads and their providers, measure nothing",
    )
    add("--scale", type=float, default=1.0, help=argparse.SUPPRESS)  # smaller inputs, for tests
    found = parser.parse_args(words)
    try:
        found.workloads = chosen(found.only)
    except LookupError as error:
        near = difflib.get_close_matches(str(error.args[0]), WORKLOADS, n=3, cutoff=0.4)
        mend = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(WORKLOADS)}"
        parser.error(f"--only {error}: no workload has such a name; {mend}")
    known = sorted({peer.name for workload in found.workloads for peer in workload.peers})
    for pattern in found.provider:
        if not matching(pattern, known):
            parser.error(f"--provider {pattern!r}: nobody here has such a name; {', '.join(known)}")
    if found.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    found.gates |= found.gated
    for name in ("threads", "rounds"):
        if getattr(found, name) is not None and getattr(found, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return found


def listing(workloads: Sequence[Workload]) -> str:
    """Names, sizes and who is measured."""
    lines = []
    for workload in workloads:
        lines.append(f"{workload.name}  ({workload.shape})")
        names = (p.name for p in workload.providers() if p.name not in (OURS_FLOAT32, DEFINITION))
        lines.append(f"    {', '.join(names)}")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print and write the table; 0 unless one of ours failed or is wrong."""
    given = arguments(words)
    if given.list:
        print(listing(given.workloads))
        return 0
    gated = peers(given.device) if given.gated else None
    settings = Settings(
        device=given.device,
        threads=given.threads,
        scale=given.scale,
        rounds=given.rounds or (3 if given.quick else 5),
        seconds=0.1 if given.quick else 0.5,
        turns=3 if given.quick else 12,
        together=0.05 if given.quick else 0.3,
        patience=given.patience,
        timeout=given.timeout,
        definition=given.definition,
        providers=tuple(given.provider),
        gated=gated,
    )
    path = given.out or DEFAULT
    path.parent.mkdir(parents=True, exist_ok=True)
    if given.out is None:
        (path.parent / ".gitignore").write_text("*\n")
    head = table.header(settings)
    rows: list[Row] = []
    try:
        for workload in given.workloads:
            for dtype in given.dtype or ("float32", "bfloat16"):
                if gated is not None and (workload.name, dtype) not in gated:
                    continue
                settings.say(f"{workload.name} {dtype}, {workload.shape}")
                new = measured(workload, dtype, settings)
                for row in new:
                    settings.say(table.line(row))
                rows += new
                _write(path, head, rows, gates=given.gates)  # a run that is broken off leaves this
    except KeyboardInterrupt:
        settings.say("broken off")
    print(table.markdown(head, rows, gates=given.gates))
    if rows:
        settings.say(f"written: {path} and {path.with_suffix('.jsonl')}")
    return 1 if any(row.failed for row in rows if row.provider == OURS) else 0


def _write(path: Path, head: dict[str, str], rows: Sequence[Row], *, gates: bool) -> None:
    path.write_text(table.markdown(head, rows, gates=gates))
    path.with_suffix(".jsonl").write_text(table.jsonl(head, rows))


if __name__ == "__main__":
    sys.exit(main())
