"""The results as files, for whoever wants to judge them anew."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from denseloss.compare.aggregate import ComparisonData, TrialResult
from denseloss.compare.results import LossResults, Results
from denseloss.data.files import csv_text, write_whole

_WHOLE = "(whole)"
_KEYS = (
    "loss", "lr", "seeds", "standing", "scores", "per_part", "comparisons", "cost", "searched",
    "steps_to_95", "seconds", "failures",
)  # fmt: skip
"""Of a line of `results.jsonl`, before what the task adds."""


def write_tables(found: ComparisonData, results: Results) -> None:
    """Write `results.csv`, `images.csv` and `results.jsonl`.

    `results.csv` has a row per loss, seed, metric, pooling and part (such as a class); `images.csv`
    a row per loss, seed, image and part with all metrics; `results.jsonl` a line per loss with the
    estimates, their intervals, where the loss stands, the comparison with the recommended one and
    what the task adds.
    """
    folder, part = found.folder, found.task.part or "part"
    header = ("loss", "seed", "lr", "metric", "pooling", part, "value")
    write_whole(folder.table_file, csv_text(itertools.chain((header,), _score_rows(found))))
    keys = [metric.key for metric in found.plan.metrics]
    images = itertools.chain((("loss", "seed", "image", part, *keys),), _image_rows(found))
    write_whole(folder.path / "images.csv", csv_text(images))
    write_whole(folder.lines_file, "".join(f"{_loss_line(loss)}\n" for loss in results.losses))


def _score_rows(found: ComparisonData) -> Iterator[tuple[Any, ...]]:
    for loss, one in _trials(found):
        for metric, pooling in found.scores:
            for part in (None, *found.parts):
                value = found.scored([one.held_out], metric, pooling, part).value()[0]
                row = (metric.key, pooling, part or _WHOLE, _number(float(value)))
                yield (loss, one.trial.seed, one.trial.lr, *row)


def _image_rows(found: ComparisonData) -> Iterator[tuple[Any, ...]]:
    task, metrics = found.task, found.plan.metrics
    parts: tuple[str | None, ...] = found.parts or (None,)
    for loss, one in _trials(found):
        columns = {
            part: [task.per_image(one.held_out, metric, part) for metric in metrics]
            for part in parts
        }
        for place, name in enumerate(task.names(one.held_out)):
            for part in parts:
                values = [_number(float(column[place])) for column in columns[part]]
                yield (loss, one.trial.seed, name, part or _WHOLE, *values)


def _trials(found: ComparisonData) -> Iterator[tuple[str, TrialResult]]:
    for loss in found.losses:
        for one in loss.trials:
            yield loss.loss, one


def _loss_line(loss: LossResults) -> str:
    values = {key: _plain(getattr(loss, key)) for key in _KEYS} | _plain(loss.details)
    return json.dumps(values, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """Return a value as JSON takes it: NaN and infinity, which JSON lacks, become null."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _key(key: Any) -> str:
    if isinstance(key, tuple):
        return "/".join(map(str, key))
    return f"{key:g}" if isinstance(key, float) else str(key)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.7g}"
