"""A trained network as one program without Python code: torch.export.

denseloss train DATA --out runs/mine
python examples/export.py runs/mine mine.pt2            # for images of 256 x 256 pixels
python examples/export.py runs/mine mine.pt2 480 640    # height and width

The program takes a uint8 RGB image [3 h w] of that size and gives the probability of each class:

    program = torch.export.load("mine.pt2").module()
    probabilities = program(image)
"""

import sys
from pathlib import Path

import torch

from denseloss.train import load


def export(run: Path, file: Path, *, height: int, width: int) -> None:
    """Write a run's network, with its preprocessing, as a program for images of one size."""
    # The program's file wants weights as they lie in memory by default.
    model = load(run).to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        program = torch.export.export(model, (image,))
    torch.export.save(program, file)
    print(f"{file}: a {height}x{width} image in, the probabilities of {', '.join(model.names)} out")


def main() -> None:
    if len(sys.argv) not in (3, 5):
        raise SystemExit(__doc__)
    run, file, *size = sys.argv[1:]
    height, width = (int(side) for side in size or ("256", "256"))
    export(Path(run), Path(file), height=height, width=width)


if __name__ == "__main__":
    main()
