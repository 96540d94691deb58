"""The results as tables, for whoever wants to judge them anew."""

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from typing import Any

from denseloss.compare.gather import Found
from denseloss.compare.measure import counts_of, image_scores, poolings
from denseloss.compare.results import LossResults, Results
from denseloss.train.folder import write_whole

_SCORES = ("loss", "seed", "lr", "metric", "pooling", "class", "value")
_WHOLE = "(whole)"


def write_tables(found: Found, results: Results) -> None:
    """Write `results.csv`, `images.csv` and `results.jsonl`.

    `results.csv` has a row per loss, seed, metric, pooling and class; `images.csv` a row per loss,
    seed, image and class with all metrics; `results.jsonl` a line per loss with the estimates,
    their intervals and the comparison with the baseline.
    """
    folder = found.folder
    write_whole(folder.table_file, _csv(_SCORES, _score_rows(found)))
    keys = [metric.key for metric in found.metrics]
    write_whole(
        folder.path / "images.csv", _csv(("loss", "seed", "image", "class", *keys), _images(found))
    )
    lines = [
        json.dumps(_loss_line(loss), ensure_ascii=False, allow_nan=False) for loss in results.losses
    ]
    write_whole(folder.lines_file, "\n".join(lines) + "\n")


def _score_rows(found: Found) -> Iterator[tuple[Any, ...]]:
    for comparand in found.losses:
        for one in comparand.evidence:
            head = (comparand.loss, one.trial.seed, one.trial.lr)
            for metric in found.metrics:
                for pooling in poolings(metric.key):
                    for of in (None, *found.classes):
                        value = counts_of(one.held_out, metric.key, pooling, of=of).value()
                        name = _WHOLE if of is None else found.class_names[of]
                        yield (*head, metric.key, pooling, name, _number(value))


def _images(found: Found) -> Iterator[tuple[Any, ...]]:
    for comparand in found.losses:
        for one in comparand.evidence:
            scores = [image_scores(one.held_out, metric.key) for metric in found.metrics]
            for place, name in enumerate(one.held_out.names):
                for of in found.classes:
                    values = [_number(float(score[place, of])) for score in scores]
                    yield (
                        comparand.loss,
                        one.trial.seed,
                        name,
                        found.class_names[of],
                        *values,
                    )


def _csv(header: tuple[str, ...], rows: Iterator[tuple[Any, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _loss_line(loss: LossResults) -> dict[str, Any]:
    return {
        "loss": loss.loss,
        "lr": _plain(loss.lr),
        "seeds": list(loss.seeds),
        "scores": {"/".join(key): _plain(value) for key, value in loss.scores.items()},
        "per_class": {"/".join(key): _plain(value) for key, value in loss.per_class.items()},
        "recall": {"/".join(key): _plain(value) for key, value in loss.recall.items()},
        "comparisons": {"/".join(key): _plain(value) for key, value in loss.comparisons.items()},
        "calibration": _plain(loss.calibration),
        "cost": _plain(loss.cost),
        "searched": {f"{lr:g}": _plain(score) for lr, score in loss.searched.items()},
        "steps_to_95": {str(seed): step for seed, step in loss.steps_to_95.items()},
        "seconds": list(loss.seconds),
        "failures": _plain(loss.failures),
    }


def _plain(value: Any) -> Any:
    """Return a value as JSON takes it: NaN and infinity, which JSON lacks, become null."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.7g}"
