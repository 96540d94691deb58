"""Train the same network with two losses on the built-in synthetic images, and compare them.

Run it with `make demo`. A loss that was trained before is not trained again: remove runs/demo to
start afresh.
"""

import json
import subprocess
import sys
from pathlib import Path

RUNS = Path("runs/demo")
LOSSES = {
    "bce": "binary_cross_entropy",
    "dice-bce": "binary_dice + binary_cross_entropy",
}
STEPS = 200


def main() -> int:
    """Train what is not trained yet, then show all results."""
    for name, loss in LOSSES.items():
        out = RUNS / name
        if (out / "summary.json").exists():
            print(f"{out} is finished already (remove {RUNS} to start afresh)\n")
            continue
        words = ["train", "--loss", loss, "--steps", str(STEPS), "--out", str(out)]
        print(f'$ denseloss train --loss "{loss}" --steps {STEPS} --out {out}', flush=True)
        code = subprocess.run(
            [sys.executable, "-m", "denseloss.cli", *words], check=False
        ).returncode
        if code != 0:
            return code
        print(flush=True)

    print(f"{'loss':<36} {'val Dice':>9} {'val IoU':>9} {'test Dice':>9} {'test IoU':>9}")
    for name, loss in LOSSES.items():
        summary = json.loads((RUNS / name / "summary.json").read_text(encoding="utf-8"))
        scores = [
            s[k] for s in (summary["best"], summary["test"]) for k in ("mean_dice", "mean_iou")
        ]
        print(f"{loss:<36} " + " ".join(f"{score:9.4f}" for score in scores))
    print("\nOne seed each: a small difference may be chance. Pictures:")
    for name in LOSSES:
        print(f"  {RUNS / name / 'samples.png'}\n  {RUNS / name / 'curves.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
