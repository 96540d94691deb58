"""What comes after training: a run's network in Python, and its predictions for image files.

All that is needed lies in the run's folder; the data that it was trained on is not.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from denseloss.data.errors import DataError, InputError
from denseloss.data.files import UNREADABLE
from denseloss.data.images import is_picture
from denseloss.tasks import Predictor, named
from denseloss.train.checkpoint import load_checkpoint
from denseloss.train.folder import RunFolder
from denseloss.train.lines import say_line
from denseloss.train.plan import accelerator_here, plan_in, read_options
from denseloss.train.precision import AUTOCAST


def load(run: str | Path, *, device: torch.device | str = "cpu") -> Predictor:
    """Load a run's network, with the weights of its best validation and its preprocessing.

    For segmentation, `model = load("runs/x")` is a Module: `model(image)` gives the probabilities
    of the classes and `model.predict(image)` the classes, of a uint8 RGB image [3 h w] or a batch
    [n 3 h w]. `model.names` and `model.values` say what they are.

    Args:
        run: The folder of a `denseloss train`, or of a trial of a `denseloss compare`.
        device: Where it predicts.

    Returns:
        The network in evaluation mode.

    Raises:
        InputError: The folder holds no such run, or its task cannot predict.
    """
    path = Path(run)
    folder = RunFolder(path)
    try:
        config = folder.config()
        plan = plan_in(config, folder.config_file)
        with torch.random.fork_rng(devices=[]):
            predictor = named(plan.task).predictor(
                plan.model, read_options(plan), config["data"], config["outputs"]
            )
        weights = load_checkpoint(folder.best_file)["state_dict"]
        predictor.network.load_state_dict(_of_the_network(weights))
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(_missing(path, str(error.filename))) from None
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: its config.toml or best.ckpt cannot be read ({reason}); train again"
        ) from error
    predictor.precision = AUTOCAST.get(plan.precision)
    return predictor.to(torch.device(device)).eval()


def _of_the_network(state: dict[str, Any]) -> dict[str, Any]:
    """Return its weights; a checkpoint holds the state of the loss and the scores, too."""
    own = "model."
    return {name.removeprefix(own): v for name, v in state.items() if name.startswith(own)}


def _missing(path: Path, file: str) -> str:
    if not path.exists():
        return f"{path}: there is no such folder; give the --out of a denseloss train"
    if (path / "compare.toml").exists():
        return f"{path}: holds a comparison; give the folder of one of its trials, in {path}/trials"
    if Path(file).name == "best.ckpt":
        return f"{file}: is missing; this run has not validated yet, give the same train again"
    return f"{path}: holds no run (no config.toml); give the --out of a denseloss train"


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What came of image files.

    Attributes:
        out: The folder that was written to.
        done: How many images were predicted.
        problems: One line for each image that could not be.
    """

    out: Path
    done: int
    problems: tuple[str, ...]


def predict(
    run: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    probabilities: bool = False,
    overlays: bool = False,
    overwrite: bool = False,
    accelerator: str = "auto",
    console: Console | None = None,
) -> Predicted:
    """Predict image files with a run's network, and write what comes of them.

    Args:
        run: As of `load`.
        images: Files, folders with all that is in them, or globs such as "scans/*.png".
        out: The folder that is written to. A file keeps its name, with the suffix .png; what comes
            from a folder or a glob keeps its subfolders, too.
        probabilities: Whether to write the probabilities, too.
        overlays: Whether to draw the predictions over the images, too.
        overwrite: Whether files in `out` may be overwritten.
        accelerator: What to predict on.
        console: Where to say what is going on; None says nothing.

    Raises:
        InputError: There are no such images, two of them would be written to one file, files would
            be overwritten, or the run cannot be loaded.
    """
    console = console or Console(quiet=True)
    out = Path(out).expanduser()
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder")
    found = _images([str(each) for each in images], out)
    predictor = load(run, device=accelerator_here(accelerator))
    wanted = {"probabilities": probabilities, "overlays": overlays}
    writes = {
        image: [out / file for file in predictor.files(name, **wanted)]
        for image, name in found.items()
    }
    _refuse_lost_files(writes, out, overwrite=overwrite)

    say = functools.partial(say_line, console)
    if not RunFolder(Path(run)).summary_file.exists():
        say("note: this run is not finished; its best validation so far predicts")
    problems: list[str] = []
    notes: set[str] = set()
    for image in track(found, "predicting", console=console, disable=not console.is_terminal):
        try:
            note = predictor.write(image, out, found[image], **wanted)
        except DataError as error:
            problems.append(str(error))
            say(f"bad: {error}")
            continue
        except torch.OutOfMemoryError:
            raise InputError(
                f"{image}: the accelerator's memory is full; give --accelerator cpu"
            ) from None
        except OSError as error:
            raise InputError(
                f"--out {out}: cannot be written ({error.strerror or error}); "
                f"{len(writes)} images were to be predicted, {image} was not"
            ) from None
        if note is not None and note not in notes:
            notes.add(note)
            say(f"note: {note}")
    return Predicted(out=out, done=len(found) - len(problems), problems=tuple(problems))


def _images(asked: Sequence[str], out: Path) -> dict[Path, Path]:
    """Return the image files, each with its name in the folder that is written to.

    Raises:
        InputError: There are none.
    """
    if not asked:
        raise InputError("IMAGES: give image files, a folder, or a glob such as 'scans/*.png'")
    found: dict[Path, Path] = {}
    for text in asked:
        new = {
            file: name.with_suffix("")
            for file, name in _matching(text)
            if not _was_written(file, name, out)
        }
        if not new:
            raise InputError(f"IMAGES {text}: there is no PNG, JPEG, TIFF, BMP, WebP, GIF or PNM")
        found |= new
    return found


def _matching(text: str) -> Iterator[tuple[Path, Path]]:
    """Yield the image files that a word stands for, each with its path below the word's folder."""
    path = Path(text).expanduser()
    if path.is_file():
        # It was named by hand: whether it is an image, its content says.
        yield path, Path(path.name)
    elif path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and is_picture(file):
                yield file, file.relative_to(path)
    elif _is_pattern(text):
        depth = next(i for i, part in enumerate(path.parts) if _is_pattern(part))
        root = Path(*path.parts[:depth])
        for file in sorted(root.glob(str(Path(*path.parts[depth:])))):
            if file.is_file() and is_picture(file):
                yield file, file.relative_to(root)
    else:
        raise InputError(f"IMAGES {text}: there is no such file or folder")


def _is_pattern(text: str) -> bool:
    return any(letter in text for letter in "*?[")


def _was_written(file: Path, name: Path, out: Path) -> bool:
    """Whether a file lies in the folder that is written to, inside a folder of images."""
    root, out = file.absolute().parents[len(name.parts) - 1], out.absolute()
    inside = out != root and out.is_relative_to(root)
    return inside and file.absolute().is_relative_to(out)


def _refuse_lost_files(
    writes: Mapping[Path, Sequence[Path]], out: Path, *, overwrite: bool
) -> None:
    """Refuse to write two images to one file, or over files that are there.

    Raises:
        InputError: With the first such file.
    """
    by_file: dict[Path, Path] = {}
    for image, files in writes.items():
        for file in files:
            if file in by_file:
                raise InputError(
                    f"IMAGES: {by_file[file]} and {image} would both be written to {file}; rename "
                    "one, or predict them into two folders"
                )
            by_file[file] = image
    images = {image.resolve() for image in writes}
    lost = [file for file in by_file if file.resolve() in images]
    if lost:
        raise InputError(f"--out {out}: {lost[0]} is an image to predict; choose another folder")
    there = [file for file in by_file if file.exists()]
    if there and not overwrite:
        raise InputError(
            f"--out {out}: {len(there)} of the files are there already, such as {there[0]}; choose "
            "another folder, or give --overwrite"
        )
