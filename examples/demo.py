"""Compare three losses, three seeds each, on the built-in synthetic images.

Run it with `make demo`. Trials that were finished before are not run again: remove runs/demo to
start afresh.
"""

import shlex
import sys

from denseloss import cli

WORDS = [
    "compare",
    *("--loss", "cross_entropy"),
    *("--loss", "cross_entropy + dice"),
    *("--loss", "focal"),
    *("--seeds", "3"),
    *("--lr", "1"),
    *("--steps", "80"),
    *("--size", "96"),
    *("--out", "runs/demo"),
]


def main() -> int:
    """Run the comparison and say what was run."""
    print(f"$ {shlex.join(['denseloss', *WORDS])}", flush=True)
    return cli.main(WORDS)


if __name__ == "__main__":
    sys.exit(main())
