"""The command `denseloss`: one function per verb.

Whatever is slow, or comes with an extra, is imported inside the verbs.
"""

import contextlib
import functools
import importlib.util
import inspect
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

if TYPE_CHECKING:
    from rich.console import Console

    from denseloss.compare.run import CompareResult
    from denseloss.train.run import TrainResult

_EXTRA = 'pip install "denseloss[train]"'
_FAULT = 1
_BAD_INPUT = 2
_CTRL_C = 130

Task = Literal["auto", "binary", "multiclass"]
Verb = Callable[..., int]


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        args: The words after `denseloss`; None takes them from the command line.

    Returns:
        The exit code: 0, 1 where `doctor` finds a fault, 2 for bad input, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if args is None else args)
    if words == ["--version"]:
        from importlib.metadata import version

        print(f"denseloss {version('denseloss')}")
        return 0
    try:
        call = _plain(words) or _parsed(words or ["--help"])
        return call()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else _BAD_INPUT
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "denseloss":
            raise
        return _complain(f"the package {error.name} is missing: {_EXTRA}")
    except BrokenPipeError:
        # The reader has seen enough (`denseloss ls | head`); Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _complain("stopped", code=_CTRL_C)


def train(
    data: str = "synthetic:blobs",
    /,
    *,
    loss: str = "cross_entropy + dice",
    out: Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    size: int | None = None,
    batch_size: int = 8,
    accumulate: int = 1,
    lr: float | None = None,
    weight_decay: float = 1e-4,
    model: str = "dynunet",
    deep_supervision: bool = False,
    task: Task = "auto",
    classes: str | None = None,
    ignore_index: int | None = None,
    val_share: float = 0.2,
    test_share: float = 0.0,
    split_seed: int | None = None,
    val_every: int | None = None,
    patience: int | None = None,
    workers: int | None = None,
    threads: int | None = None,
    precision: Literal["auto", "bf16-mixed", "16-mixed", "32-true"] = "auto",
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    devices: str = "1",
    logger: Literal["none", "tensorboard", "wandb", "mlflow"] = "none",
) -> int:
    """Train a segmentation network on a folder of images and masks with the loss you name.

    A run that was interrupted goes on when the same command is given again.

    Args:
        data: Folder of images and masks, Pascal VOC folder, or synthetic:NAME.
        loss: Weighted sum of losses, such as "dice + 0.5*focal(gamma=2)". `denseloss ls` lists
            them.
        out: Run folder; by default runs/DATA-LOSS-SEED.
        seed: Decides weights, order, augmentation, and the split where the folder has none.
        steps: How many steps to train; by default 500.
        epochs: How many passes over the training images instead.
        minutes: How many minutes instead; the steps are planned by timing a few.
        size: Side of the training squares in pixels; by default up to 192, as the images allow.
        batch_size: Images per step and device.
        accumulate: In how many parts a batch goes through the network, for batches that do not
            fit. The gradient is that of the whole batch; batch normalisation sees the parts.
        lr: Highest learning rate of AdamW; by default 0.005 for dynunet, 0.002 for smp.
        weight_decay: Weight decay of AdamW.
        model: dynunet, or smp:ARCH:ENCODER (segmentation-models-pytorch).
        deep_supervision: Let dynunet predict at smaller sizes, too, while it trains.
        task: What the masks mean; auto looks.
        classes: How many classes there are, or their names with commas, background first.
        ignore_index: Mask value of the pixels that do not count.
        val_share: Share of the images to validate on where the folder has no split.
        test_share: Share of the images to hold out where the folder has no test split.
        split_seed: Decides the split where the folder has none; by default the seed does.
        val_every: Steps between validations; by default about 20 validations in all.
        patience: Stop after this many validations without a better Dice.
        workers: Processes that load images; by default as many as there are cores to spare.
        threads: Threads of torch; by default 1 on a CPU, which is the fastest for small networks.
        precision: Of the network; losses are always computed in float32.
        accelerator: What to train on.
        devices: How many devices, or which (0,3).
        logger: A logger besides metrics.csv.
    """
    from denseloss.train import TrainSettings, is_first_process
    from denseloss.train import train as run

    console = _console()
    settings = TrainSettings(
        data=data,
        loss=loss,
        out=out,
        seed=seed,
        steps=steps,
        epochs=epochs,
        minutes=minutes,
        size=size,
        batch_size=batch_size,
        accumulate=accumulate,
        lr=lr,
        weight_decay=weight_decay,
        model=model,
        deep_supervision=deep_supervision,
        task=None if task == "auto" else task,
        classes=_classes(classes),
        ignore_index=ignore_index,
        val_share=val_share,
        test_share=test_share,
        split_seed=split_seed,
        val_every=val_every,
        patience=patience,
        workers=workers,
        threads=threads,
        precision=precision,
        accelerator=accelerator,
        devices=devices,
        logger=logger,
    )
    with _errors_told():
        result = run(settings, console=console)
    if is_first_process():
        _report(result, data, console)
    return 0


def compare(
    data: str = "synthetic:blobs",
    /,
    *,
    loss: tuple[str, ...] = (),
    out: Path | None = None,
    seeds: int = 5,
    lr: int = 3,
    lr_seeds: int = 1,
    base_lr: float | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    budget: str | None = None,
    metric: str = "dice",
    pooled: bool = False,
    effect: float | None = None,
    level: float = 0.95,
    engine: Literal["local", "ray"] = "local",
    jobs: int | None = None,
    address: str | None = None,
    retry: bool = False,
    size: int | None = None,
    batch_size: int = 8,
    weight_decay: float = 1e-4,
    model: str = "dynunet",
    deep_supervision: bool = False,
    task: Task = "auto",
    classes: str | None = None,
    ignore_index: int | None = None,
    val_share: float = 0.2,
    test_share: float = 0.2,
    split_seed: int = 0,
    val_every: int | None = None,
    workers: int = 0,
    precision: Literal["auto", "bf16-mixed", "16-mixed", "32-true"] = "auto",
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> int:
    """Train with several losses, several seeds each, and report which one suits the data.

    Every trial is a run of `denseloss train` in a folder of its own. A comparison that was
    interrupted goes on when the same command is given again; losses, seeds and learning rates can
    be added to one that is finished.

    Args:
        data: Folder of images and masks, Pascal VOC folder, or synthetic:NAME.
        loss: Weighted sum of losses; give it several times, the baseline first. auto proposes
            losses for the data, each with its reason.
        out: The comparison's folder; by default runs/compare-DATA.
        seeds: Networks to train with each loss.
        lr: How many learning rates every loss tries, the default in the middle; the best on
            validation is taken.
        lr_seeds: On how many of the seeds they are tried.
        base_lr: The learning rate in the middle; by default 0.005 for dynunet, 0.002 for smp.
        steps: Steps of each trial; by default 500.
        epochs: Passes over the training images instead.
        budget: Time for all trials instead, such as 30m or 1h30m; the steps are planned by timing
            a few.
        metric: What the verdict is about: dice, iou, precision, recall, f2, boundary_f or hd95.
        pooled: Judge all held-out pixels together, not image by image.
        effect: The smallest difference that matters to you; by default 0.01, or 1 pixel.
        level: Of the confidence intervals.
        engine: Processes on this machine, or a Ray cluster.
        jobs: Trials at a time; by default one per GPU, or one per core.
        address: Of the Ray cluster; without it Ray starts on this machine.
        retry: Run trials again whose loss became NaN or infinite.
        size: Side of the training squares in pixels; by default up to 192, as the images allow.
        batch_size: Images per step.
        weight_decay: Weight decay of AdamW.
        model: dynunet, or smp:ARCH:ENCODER (segmentation-models-pytorch).
        deep_supervision: Let dynunet predict at smaller sizes, too, while it trains.
        task: What the masks mean; auto looks.
        classes: How many classes there are, or their names with commas, background first.
        ignore_index: Mask value of the pixels that do not count.
        val_share: Share of the images to validate on where the folder has no split.
        test_share: Share of the images to hold out where the folder has no test split.
        split_seed: Decides the split where the folder has none.
        val_every: Steps between validations; by default about 20 validations in all.
        workers: Processes that load images, for each trial.
        precision: Of the network; losses are always computed in float32.
        accelerator: What to train on.
    """
    from denseloss.compare import CompareSettings
    from denseloss.compare import compare as run
    from denseloss.compare.settings import seconds

    console = _console()
    with _errors_told():
        settings = CompareSettings(
            data=data,
            losses=loss,
            out=out,
            seeds=seeds,
            lr=lr,
            lr_seeds=lr_seeds,
            base_lr=base_lr,
            steps=steps,
            epochs=epochs,
            budget=None if budget is None else seconds(budget),
            metric=metric,
            pooled=pooled,
            effect=effect,
            level=level,
            engine=engine,
            jobs=jobs,
            address=address,
            retry=retry,
            size=size,
            batch_size=batch_size,
            weight_decay=weight_decay,
            model=model,
            deep_supervision=deep_supervision,
            task=None if task == "auto" else task,
            classes=_classes(classes),
            ignore_index=ignore_index,
            val_share=val_share,
            test_share=test_share,
            split_seed=split_seed,
            val_every=val_every,
            workers=workers,
            precision=precision,
            accelerator=accelerator,
        )
        result = run(settings, console=console)
    _say_verdict(result, console)
    return 0


def report(runs: Path, /) -> int:
    """Make the report of a comparison again, from its folder alone.

    Args:
        runs: The folder that `denseloss compare` wrote.
    """
    from denseloss.compare import make_report

    with _errors_told():
        result = make_report(runs)
    _say_verdict(result, _console())
    return 0


def check(
    data: str = "synthetic:blobs",
    /,
    *,
    out: Path = Path("check.png"),
    task: Task = "auto",
    classes: str | None = None,
    ignore_index: int | None = None,
) -> int:
    """Look at every file of a data folder, say what is in it and what is wrong with it.

    Args:
        data: Folder of images and masks, Pascal VOC folder, or synthetic:NAME.
        out: Where to draw eight images with their masks.
        task: What the masks mean; auto looks.
        classes: How many classes there are, or their names with commas, background first.
        ignore_index: Mask value of the pixels that do not count.
    """
    from rich.progress import track

    from denseloss.data import DataError, check_data

    console = _console()
    try:
        report = check_data(
            data,
            task=None if task == "auto" else task,
            classes=_classes(classes),
            ignore_index=ignore_index,
            progress=lambda items: (
                track(items, "looking at the data", console=console, transient=True)
                if console.is_terminal
                else items
            ),
        )
        for line in report.lines():
            _say(console, line)
        if report.data is not None:
            _say(console, f"picture: {report.draw(out)}")
    except DataError as error:
        return _complain(str(error))
    if not report.ok:
        count = len(report.problems)
        what = "1 problem" if count == 1 else f"{count} problems"
        return _complain(f"{data}: {what}, listed above; training needs them mended")
    _say(console, f'next: denseloss train {shlex.quote(data)} --loss "cross_entropy + dice"')
    return 0


def ls() -> int:
    """List the losses: name, task, what they are, where they come from."""
    console = _console() if importlib.util.find_spec("rich") else None
    found = _entries()
    if console is not None and console.is_terminal:
        from rich.table import Table

        table = Table("name", "task", "what it is", "source", box=None, pad_edge=False)
        for entry in found:
            table.add_row(entry.name, entry.task, entry.line, entry.source)
        console.print(table, highlight=False, markup=False)
    else:
        widths = [max(len(getattr(e, key)) for e in found) for key in ("name", "task", "line")]
        for entry in found:
            cells = zip((entry.name, entry.task, entry.line), widths, strict=True)
            _say(console, "  ".join([*(f"{c:<{w}}" for c, w in cells), entry.source]))
    _say(console, f"\nfast versions here: {_backends()}")
    _say(console, "next: denseloss show NAME, or denseloss train DATA --loss NAME")
    return 0


def _backends() -> str:
    """The fast backends of this machine, and why others are not there."""
    from denseloss import backend

    missing = backend.missing()
    said = [name for name in backend.available() if name != "reference"]
    said += [f"no {name} ({why})" for name, why in missing.items()]
    return "; ".join(said) or "none: the plain torch versions run"


def show(loss: str, /) -> int:
    """Print what a loss computes, its options and its source.

    Args:
        loss: A name of `denseloss ls`.
    """
    from denseloss.contract import nearest

    functions = _loss_functions()
    function = functions.get(loss.removesuffix("_loss"))
    if function is None:
        near = nearest(loss, functions)
        meant = f" (did you mean {near}?)" if near else ""
        return _complain(f"{loss}: no such loss{meant}; see `denseloss ls`")
    print(f"{_signature(function)}\n\n{inspect.getdoc(function)}")
    return 0


def doctor() -> int:
    """Say what is installed, which fast versions run here, and whether their numbers are right.

    The test takes at most ten seconds. The exit code is 1 where something is wrong.
    """
    from denseloss.doctor import examine

    return 0 if examine(functools.partial(print, flush=True)) else _FAULT


def _plain(words: Sequence[str]) -> Callable[[], int] | None:
    """Return the call of a verb that runs without the tool's extra, the parser's package included.

    None for other verbs, and for words that only the parser understands, such as --help.
    """
    match words:
        case ["ls"]:
            return ls
        case ["doctor"]:
            return doctor
        case ["show", name] if not name.startswith("-"):
            return functools.partial(show, name)
    return None


def _parsed(words: Sequence[str]) -> Callable[[], int]:
    """Return the call that the words ask for; what is wrong with them becomes one line."""
    import tyro

    verbs: dict[str, Verb] = {
        "train": train,
        "compare": compare,
        "report": report,
        "check": check,
        "ls": ls,
        "show": show,
        "doctor": doctor,
    }
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            call: Callable[[], int] = tyro.extras.subcommand_cli_from_dict(
                {name: _deferred(verb) for name, verb in verbs.items()},
                args=words,
                prog="denseloss",
                description="Losses for dense prediction, trained and compared on your own images.",
                config=(
                    tyro.conf.DisallowNone,
                    tyro.conf.FlagCreatePairsOff,
                    tyro.conf.HelptextFromCommentsOff,
                    tyro.conf.PositionalMetavarFromFieldName,
                    tyro.conf.UseAppendAction,
                ),
            )
            return call
    except SystemExit as stop:
        if complaint.getvalue():
            verb = f" {words[0]}" if words[0] in verbs else ""
            line = _one_line(complaint.getvalue())
            raise SystemExit(_complain(f"{line}; see denseloss{verb} --help")) from None
        raise stop


def _deferred(verb: Verb) -> Callable[..., Callable[[], int]]:
    """Parse the words as for a verb, but do not run it yet."""
    import tyro

    def parse(*args: object, **options: object) -> Callable[[], int]:
        return functools.partial(verb, *args, **options)

    # What None stands for is said in the help text; "(default: None)" would only puzzle.
    silent = tyro.conf.arg(help_behavior_hint="")
    signature = inspect.signature(verb, eval_str=True)
    hints = {
        name: Annotated[p.annotation, silent] if p.default is None else p.annotation
        for name, p in signature.parameters.items()
    }
    parameters = [p.replace(annotation=hints[name]) for name, p in signature.parameters.items()]
    parse.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    parse.__annotations__ = hints
    parse.__name__, parse.__doc__ = verb.__name__, verb.__doc__
    return parse


def _one_line(box: str) -> str:
    """Return the message that tyro draws in a box, and what it thinks was meant."""
    # Title, message, rule, hints; the first two are apart by a rule where there is no UTF-8.
    rows = [row.strip("│╭╮╰╯ ") for row in box.splitlines()][1:]
    parts: list[list[str]] = [[]]
    for row in rows:
        if row and not row.strip("-─"):
            parts.append([])
        elif row:
            parts[-1].append(row)
    message, *hints = [part for part in parts if part]
    line = " ".join(" ".join(message).partition("Got errors:")[0].split()).rstrip(".")
    meant = [row.split()[0] for part in hints for row in part if re.match(r"--?[a-z]", row)]
    perhaps = f" (did you mean {' or '.join(meant[:2])}?)" if "Unrecognized" in line else ""
    return line[:1].lower() + line[1:] + (perhaps if meant else "")


@dataclass(frozen=True)
class _Entry:
    """A loss as `denseloss ls` lists it."""

    name: str
    task: str
    line: str
    source: str


_TASKS = {
    "ClassMap": "segmentation, exclusive classes",
    "Masks": "segmentation, independent masks",
    "Quality": "detection, scores",
    "Boxes": "detection, boxes",
    "BinTarget": "detection, distances",
    "Image": "segmentation without labels",
}


def _loss_functions() -> dict[str, Callable[..., object]]:
    """Return the loss functions by the names that expressions have for them."""
    from denseloss import compose

    return {name: module.function for name, module in compose.names().items()}


def _entries() -> list[_Entry]:
    """Read name, task, first line and source of each loss off its signature and docstring."""
    from denseloss.contract import kinds

    found = []
    for name, function in _loss_functions().items():
        text = inspect.getdoc(function) or ""
        *_, target = [kind.name for kind in kinds(function).values()][:2]
        source = text.partition("\nSource:\n")[2].partition("\n\n")[0]
        line = text.partition("\n\n")[0].rstrip(".")
        entry = _Entry(name, _TASKS.get(target, target), _joined(line), _joined(source))
        found.append(entry)
    order = list(_TASKS.values())
    return sorted(found, key=lambda e: (order.index(e.task) if e.task in order else 99, e.name))


def _joined(text: str) -> str:
    return " ".join(text.split())


def _signature(function: Callable[..., object]) -> str:
    """Return the call with the shapes of its tensors and the defaults of its options."""
    from denseloss.contract import kinds

    tensors = kinds(function)
    parts = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is inspect.Parameter.empty:
            forms = " | ".join(form.notation for form in tensors[name].forms)
            parts.append(f"{name}: {forms}")
        else:
            star = [] if "*" in parts else ["*"]
            parts += [*star, f"{name}={parameter.default!r}"]
    inside = "".join(f"\n    {part}," for part in parts)
    return f"{getattr(function, '__name__', '')}({inside}\n)"


def _console() -> "Console":
    from rich.console import Console

    return Console()


def _say(console: "Console | None", line: str) -> None:
    if console is None:
        print(line)
        return
    # Without a terminal a line stays a line, for `grep`.
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _complain(message: str, *, code: int = _BAD_INPUT) -> int:
    label = "error: " if code == _BAD_INPUT else ""
    print(f"denseloss: {label}{message}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _errors_told() -> Iterator[None]:
    """End the command with one line for what is the user's to mend, and for an interruption."""
    from denseloss.compose import ParseError
    from denseloss.data import DataError
    from denseloss.train import InputError, InterruptedRunError

    try:
        yield
    except (DataError, InputError, ParseError) as error:
        raise SystemExit(_complain(str(error))) from None
    except InterruptedRunError as stop:
        raise SystemExit(_complain(str(stop), code=stop.exit_code)) from None


def _classes(text: str | None) -> int | tuple[str, ...] | None:
    if text is None:
        return None
    return int(text) if text.isdecimal() else tuple(part.strip() for part in text.split(","))


def _say_verdict(result: "CompareResult", console: "Console") -> None:
    """Print the verdict, what weakens it, the scores and the files."""
    from rich.table import Table

    results = result.results
    main, pooling = results.metrics[0], results.pooling
    how = "mean over the held-out images" if pooling == "image" else "all held-out pixels together"
    console.print()
    digits = 2 if main.unit else 4
    table = Table("loss", "lr", "seeds", main.name, f"{results.level:.0%} interval", box=None)
    for loss in results.losses:
        score = loss.scores.get((main.key, pooling))
        cells = ("no trial finished", "")
        if score is not None:
            interval = f"{score.low:.{digits}f} to {score.high:.{digits}f}"
            cells = (f"{score.value:.{digits}f}", interval if score.low == score.low else "none")
        lr = f"{loss.lr:g}" if loss.lr == loss.lr else ""
        table.add_row(loss.loss, lr, str(len(loss.seeds)), *cells)
    _say(console, f"{main.name}, {how}, mean over the seeds:")
    console.print(table, highlight=False, markup=False)
    console.print()
    for line in results.verdict:
        _say(console, line)
    for line in results.warnings:
        _say(console, f"note: {line}")
    _say(console, f"files in {result.folder}:")
    for name, what in (
        ("report.html", "the report: open it in a browser"),
        ("report.md", "the same as text"),
        ("results.csv", "a row per loss, seed, metric and class"),
        ("images.csv", "a row per loss, seed and held-out image"),
        ("results.jsonl", "a line per loss: estimates, intervals, tests"),
        ("trials/", "a folder of denseloss train per trial"),
    ):
        _say(console, f"  {name:<13} {what}")
    _say(console, f"report: {result.report}")


def _report(result: "TrainResult", data: str, console: "Console") -> None:
    """Print the scores of the best epoch, the files and what to do next."""
    from rich.table import Table

    summary = result.summary
    best = summary["best"]
    splits = {"validation": best} | ({"test": summary["test"]} if summary["test"] else {})
    table = Table("", *(f"{split} {s}" for split in splits for s in ("Dice", "IoU")), box=None)
    rows = {f"{name}": f"/{name}" for name in summary["class_names"]}
    if summary["task"] == "multiclass":
        rows["mean"] = ""
    for label, key in rows.items():
        keys = (f"dice{key}", f"iou{key}") if key else ("mean_dice", "mean_iou")
        scores = [row[k] for row in splits.values() for k in keys]
        table.add_row(label, *("absent" if v != v else f"{v:.4f}" for v in scores))
    seconds = summary["seconds"]
    console.print()
    _say(
        console,
        f"best: step {best['step']} (epoch {best['epoch']}) of {summary['steps']}; "
        f"{seconds / 60:.1f} minutes of training",
    )
    console.print(table, highlight=False, markup=False)
    _say(console, f"files in {result.folder}:")
    for name, what in (
        ("samples.png", "image, truth, prediction and error of some validation images"),
        ("curves.png", "loss and scores over the steps"),
        ("metrics.csv", "the same as numbers, a row per validation"),
        ("summary.json", "the best and the last row"),
        ("best.ckpt, last.ckpt", "weights of the best and of the last validation"),
        ("config.toml", "all settings of this run"),
    ):
        _say(console, f"  {name:<21} {what}")
    other = "focal" if summary["loss"] != "focal" else "dice"
    _say(
        console,
        f"next: the same with another loss: denseloss train {shlex.quote(data)} --loss {other}",
    )


if __name__ == "__main__":
    sys.exit(main())
