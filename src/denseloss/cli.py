"""The command `denseloss`: one verb, and the class of settings that says what it takes.

Whatever is slow, or comes with an extra, is imported inside the verbs.
"""

import contextlib
import dataclasses
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
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

if TYPE_CHECKING:
    from rich.console import Console

    from denseloss.compare.run import CompareResult
    from denseloss.tasks import Task
    from denseloss.train.run import TrainResult

_EXTRA = 'pip install "denseloss[train]"'
_FAULT = 1
_BAD_INPUT = 2
_CTRL_C = 130

Call = Callable[[], int]


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


def train(settings: Any) -> int:
    """Train one network."""
    from denseloss.train import is_first_process
    from denseloss.train import train as run

    console = _console()
    with _errors_told():
        result = run(settings, console=console)
    if is_first_process():
        _report(result, settings, console)
    return 0


def compare(settings: Any) -> int:
    """Train with several losses and report which one suits the data."""
    from denseloss.compare import compare as run

    console = _console()
    with _errors_told():
        result = run(settings, console=console)
    _say_answer(result, console)
    return 0


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """Look at every file of a data folder, say what is in it and what is wrong with it.

    Attributes:
        data: A folder of images and masks, a Pascal VOC folder, or synthetic:NAME.
        task: What the data is for: a task of denseloss, or file.py:Name of your own; auto looks.
        out: Where to draw some images with their truth.
        options: The task's own options.
    """

    data: str = "synthetic:blobs"
    task: str = "auto"
    out: Path = Path("check.png")
    options: Any = None


def check(settings: CheckSettings) -> int:
    """Look at data."""
    from rich.progress import track

    from denseloss.tasks import asked
    from denseloss.train.settings import given

    console, data = _console(), settings.data
    with _errors_told():
        task, _ = asked(settings.task, data)
        report = task.check(
            data,
            task.settings() if settings.options is None else settings.options,
            progress=lambda items: (
                track(items, "looking at the data", console=console, transient=True)
                if console.is_terminal
                else items
            ),
        )
        for line in report.lines():
            _say(console, line)
        picture = None if report.data is None else report.draw(settings.out)
        if picture is not None:
            _say(console, f"picture: {picture}")
    if not report.ok:
        count = len(report.problems)
        what = "1 problem" if count == 1 else f"{count} problems"
        return _complain(f"{data}: {what}, listed above; training needs them mended")
    loss = task.defaults.loss
    words = "".join(f" {shlex.quote(word)}" for word in given(settings.options))
    _say(console, f'next: denseloss train {shlex.quote(data)}{words} --loss "{loss}"')
    return 0


def predict(
    run: Path,
    images: tuple[str, ...],
    /,
    *,
    out: Path,
    probabilities: bool = False,
    overlays: bool = False,
    overwrite: bool = False,
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> int:
    """Predict images with a trained network, and write masks as those that it was trained on.

    Args:
        run: The folder of a denseloss train, or of a trial of a denseloss compare.
        images: Image files, a folder with all that is in it, or a glob such as 'scans/*.png'.
        out: The folder for the masks; they keep the names of the images, as .png.
        probabilities: Write each class's probability, too, as 16-bit PNG in which 65535 is 1.
        overlays: Draw each prediction over its image, too.
        overwrite: Overwrite masks that are there already.
        accelerator: What to predict on.
    """
    from denseloss.train import predict as predicted

    console = _console()
    with _errors_told():
        result = predicted(
            run,
            images,
            out,
            probabilities=probabilities,
            overlays=overlays,
            overwrite=overwrite,
            accelerator=accelerator,
            console=console,
        )
    _say(console, f"masks: {result.done} in {result.out}")
    if result.problems:
        count = len(result.problems)
        return _complain(
            f"{count} of {result.done + count} images could not be predicted, listed above"
        )
    return 0


def report(runs: Path, /) -> int:
    """Make the report of a comparison again, from its folder alone.

    Args:
        runs: The folder that `denseloss compare` wrote.
    """
    from denseloss.compare import make_report

    with _errors_told():
        result = make_report(runs)
    _say_answer(result, _console())
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
        console.print(table, highlight=False, markup=False, emoji=False)
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
        loss: A name of `denseloss ls`, or file.py:name of your own.
    """
    from denseloss import compose
    from denseloss.contract import nearest

    if compose.references(loss):
        return _show_own(loss)
    functions = _loss_functions()
    function = functions.get(loss.removesuffix("_loss"))
    if function is None:
        near = nearest(loss, functions)
        meant = f" (did you mean {near}?)" if near else ""
        return _complain(f"{loss}: no such loss{meant}; see `denseloss ls`")
    print(f"{_signature(function)}\n\n{inspect.getdoc(function)}")
    return 0


def _show_own(text: str) -> int:
    """Print what is known of a loss of the user's own, and what a first look finds."""
    from denseloss import compose

    try:
        terms = compose.user_losses(compose.parse(text, mixed=True))
    except compose.ParseError as error:
        return _complain(str(error))
    for term in terms:
        print(f"{term.described}\n\nfile: {term.file or 'none, it is not written in Python'}")
        if importlib.util.find_spec("lightning") is None:
            print(f"a first look at what it computes needs the tool: {_EXTRA}")
            continue
        for kind, data in (("a binary task", "blobs"), ("several classes", "classes")):
            print(f"on {kind}:")
            for line in _looked_at(str(term), f"synthetic:{data}?n=4&size=64"):
                print(f"  {line}")
    print(f"next: denseloss train DATA --loss {shlex.quote(text)}")
    return 0


def _looked_at(loss: str, where: str) -> Iterator[str]:
    """Yield what a task says of a loss, and what is odd about it or wrong."""
    from denseloss import compose
    from denseloss.data.errors import InputError
    from denseloss.tasks import DEFAULT, Split, named
    from denseloss.train.own_code import look_at
    from denseloss.train.settings import TrialSettings

    task = named(DEFAULT)
    try:
        data = task.open(where, task.settings(), split=Split())
        yield from task.criterion(compose.parse(loss, mixed=True), data).notes
        odd = look_at(loss, task, data, TrialSettings(data=where, size=64))
    except InputError as error:
        yield f"error: {str(error).removeprefix('--loss: ')}"
    else:
        yield from (f"note: {said}" for said in odd)
        yield "it can be trained with" if odd else "nothing is wrong with it"


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


def _parsed(words: Sequence[str]) -> Call:
    """Return the call that the words ask for; what is wrong with them becomes one line."""
    import tyro

    with_settings = ("train", "compare", "check")
    verb = words[0]
    with _errors_told():
        task = _task_of(words[1:]) if verb in with_settings else None
    verbs = {name: _of_settings(name, task) for name in with_settings}
    verbs |= {f.__name__: _deferred(f) for f in (predict, report, ls, show, doctor)}
    order = ("train", "compare", "predict", "report", "check", "ls", "show", "doctor")
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            call: Call = tyro.extras.subcommand_cli_from_dict(
                {name: verbs[name] for name in order},
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
            line = _one_line(complaint.getvalue())
            raise SystemExit(
                _complain(f"{line}; see denseloss{f' {verb}' if verb in verbs else ''} --help")
            ) from None
        raise stop


def _task_of(words: Sequence[str]) -> "Task":
    """Return the task whose options the command takes: as --task names it, or as DATA looks."""
    from denseloss.data.errors import InputError
    from denseloss.tasks import DEFAULT, find, named

    asked = [
        word.partition("=")[2] if "=" in word else words[i + 1] if i + 1 < len(words) else ""
        for i, word in enumerate(words)
        if word == "--task" or word.startswith("--task=")
    ]
    if asked and asked[-1] in ("binary", "multiclass"):
        raise InputError(f"--task {asked[-1]}: what the masks mean is said by --mode {asked[-1]}")
    if asked and asked[-1] not in ("", "auto"):
        return named(asked[-1])
    # DATA is the first word that belongs to no option; which ones take a value, the parser knows
    # only after the task. A value that is taken for DATA looks like no other task's data.
    found = (find(word) for word in words if not word.startswith("-"))
    return next((task for task in found if task.name != DEFAULT), None) or named(DEFAULT)


def _of_settings(verb: str, task: "Task | None") -> Callable[..., Call]:
    """Return a function of all options of a verb and of the task, which returns the call."""
    if verb == "check":
        settings: type = CheckSettings
        run: Callable[[Any], int] = check
    elif verb == "train":
        from denseloss.train.settings import TrainSettings

        settings, run = TrainSettings, train
    else:
        from denseloss.compare.settings import CompareSettings

        settings, run = CompareSettings, compare
    own = () if task is None else dataclasses.fields(task.settings)

    fields = [f for f in _options(settings) if f.name not in ("options", *(o.name for o in own))]
    if task is not None:
        fields += _options(task.settings)

    def parse(**values: Any) -> Call:
        options = {field.name: values.pop(field.name) for field in own}
        if task is not None:
            values["options"] = task.settings(**options)
            if values["data"] == fields[0].default:  # left out
                values["data"] = task.place(values["options"]) or values["data"]
        return functools.partial(run, settings(**values))

    # Positional first, as Python wants it.
    parse.__signature__ = inspect.Signature(fields)  # type: ignore[attr-defined]
    parse.__annotations__ = {field.name: field.annotation for field in fields}
    parse.__name__, parse.__doc__ = verb, (settings.__doc__ or "").partition("\n    Attributes:")[0]
    return parse


def _options(settings: type) -> list[inspect.Parameter]:
    """Return the options that a class of settings stands for, with their help."""
    import tyro

    hints, helps = get_type_hints(settings), _helps(settings)
    found = []
    # What the class itself has comes before what it shares with others.
    own = list(settings.__annotations__)
    for field in sorted(dataclasses.fields(settings), key=lambda f: f.name not in own):
        # What None stands for is said in the help text; "(default: None)" would only puzzle.
        said = "" if field.default is None else None
        hint: Any = hints[field.name]
        hint = Annotated[hint, tyro.conf.arg(help=helps.get(field.name), help_behavior_hint=said)]
        if field.name == "data":
            positional: Any = tyro.conf.Positional
            hint = positional[hint]
        found.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hint,
            )
        )
    return found


def _helps(settings: type) -> dict[str, str]:
    """Return what the docstrings of a class and of those that it extends say of each attribute."""
    found: dict[str, str] = {}
    for base in reversed(settings.__mro__):
        text = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        parts = re.split(r"^    (\w+): ", text, flags=re.MULTILINE)
        found |= {
            name: " ".join(said.split())
            for name, said in zip(parts[1::2], parts[2::2], strict=True)
        }
    return found


def _deferred(verb: Callable[..., int]) -> Callable[..., Call]:
    """Parse the words as for a verb, but do not run it yet."""

    def parse(*args: object, **options: object) -> Call:
        return functools.partial(verb, *args, **options)

    signature = inspect.signature(verb, eval_str=True)
    parse.__signature__ = signature  # type: ignore[attr-defined]
    parse.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
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


_TARGETS = {
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
        entry = _Entry(name, _TARGETS.get(target, target), _joined(line), _joined(source))
        found.append(entry)
    order = list(_TARGETS.values())
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

    # What is printed has names of files and classes in it: [red] and :smile: are themselves.
    return Console(markup=False, emoji=False, highlight=False)


def _say(console: "Console | None", line: str) -> None:
    if console is None:
        print(line)
        return
    # Without a terminal a line stays a line, for `grep`.
    console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)


def _complain(message: str, *, code: int = _BAD_INPUT) -> int:
    label = "error: " if code == _BAD_INPUT else ""
    print(f"denseloss: {label}{message}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _errors_told() -> Iterator[None]:
    """End the command with one line for what is the user's to mend, and for an interruption."""
    from denseloss.compose import ParseError
    from denseloss.data.errors import DataError, InputError
    from denseloss.train.errors import InterruptedRunError

    try:
        yield
    except (DataError, InputError, ParseError) as error:
        raise SystemExit(_complain(str(error))) from None
    except InterruptedRunError as stop:
        raise SystemExit(_complain(str(stop), code=stop.exit_code)) from None


def _say_answer(result: "CompareResult", console: "Console") -> None:
    """Print the scores, the answer, what weakens it and the files."""
    from rich.table import Table

    from denseloss.compare.results import STANDINGS

    results = result.results
    main, pooling = results.metrics[0], results.pooling
    how = "mean over the held-out images" if pooling == "image" else "all held-out pixels together"
    console.print()
    digits = 2 if main.unit else 4
    names = ("loss", "lr", "seeds", main.name, f"{results.level:.0%} interval", "standing")
    table = Table(*names, box=None)
    for loss in results.losses:
        score = loss.scores.get((main.key, pooling))
        cells = ("no trial finished", "")
        if score is not None:
            interval = f"{score.low:.{digits}f} to {score.high:.{digits}f}"
            cells = (f"{score.value:.{digits}f}", interval if score.low == score.low else "none")
        lr = f"{loss.lr:g}" if loss.lr == loss.lr else ""
        standing = STANDINGS[loss.standing.standing] if score is not None else ""
        table.add_row(loss.loss, lr, str(len(loss.seeds)), *cells, standing)
    _say(console, f"{main.name}, {how}, mean over the seeds:")
    console.print(table, highlight=False, markup=False, emoji=False)
    console.print()
    for line in results.answer.words:
        _say(console, line)
    for i, loss in enumerate(results.losses):
        if i != results.answer.loss:
            _say(console, f"  {loss.standing.words}")
    if (step := results.answer.next) is not None:
        _say(console, f"next: {step.words}")
        if step.command:
            _say(console, f"  {step.command}")
    for line in results.warnings:
        _say(console, f"note: {line}")
    _say(console, f"files in {result.folder}:")
    for name, what in (
        ("report.html", "the report: open it in a browser"),
        ("report.md", "the same as text"),
        ("results.csv", "a row per loss, seed, metric and class"),
        ("images.csv", "a row per loss, seed and held-out image"),
        ("results.jsonl", "a line per loss: estimates, intervals, standing"),
        ("trials/", "a folder of denseloss train per trial"),
    ):
        _say(console, f"  {name:<13} {what}")
    _say(console, f"report: {result.report}")


def _report(result: "TrainResult", settings: Any, console: "Console") -> None:
    """Print the scores of the best epoch, the files and what to do next."""
    from rich.table import Table

    from denseloss.train.settings import given

    summary = result.summary
    best, name = summary["best"], summary["score"]["name"]
    splits = {"validation": best} | ({"test": summary["test"]} if summary["test"] else {})
    by_part = [key for key in best if "/" in key and not key.startswith("loss/")]
    kinds = list(dict.fromkeys(key.partition("/")[0] for key in by_part))
    parts = list(dict.fromkeys(key.partition("/")[2] for key in by_part))
    rows = {part: [f"{kind}/{part}" for kind in kinds] for part in parts}
    if len(parts) != 2:  # of two classes the score is that of the foreground
        rows["mean" if parts else name] = ["score", *kinds[1:]]
    heads = [name, *(summary["metrics"].get(kind, kind) for kind in kinds[1:])]
    table = Table("", *(f"{split} {head}" for split in splits for head in heads), box=None)
    for label, keys in rows.items():
        scores = [row[key] for row in splits.values() for key in keys]
        table.add_row(label, *("absent" if v is None or v != v else f"{v:.4f}" for v in scores))
    console.print()
    _say(
        console,
        f"best: step {best['step']} (epoch {best['epoch']}) of {summary['steps']}; "
        f"{summary['seconds'] / 60:.1f} minutes of training",
    )
    console.print(table, highlight=False, markup=False, emoji=False)
    _say(console, f"files in {result.folder}:")
    for file, what in (
        ("samples.png", "image, truth, prediction and error of some validation images"),
        ("curves.png", "loss and scores over the steps"),
        ("metrics.csv", "the same as numbers, a row per validation"),
        ("summary.json", "the best and the last row"),
        ("best.ckpt, last.ckpt", "weights of the best and of the last validation"),
        ("config.toml", "all settings of this run"),
    ):
        if "," in file or (result.folder / file).exists():
            _say(console, f"  {file:<21} {what}")
    if summary["task"] == "segmentation":
        other = "focal" if summary["loss"] != "focal" else "dice"
        words = shlex.join([settings.data, *given(settings.options), "--loss", other])
        _say(console, f"next: the same with another loss: denseloss train {words}")


if __name__ == "__main__":
    sys.exit(main())
