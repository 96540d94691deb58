"""What the report needs besides the trials: made once, while data and networks are there.

It is kept in the comparison's folder, so that a report can be made again from the folder alone.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from denseloss import compose
from denseloss.compare.folder import ComparisonFolder
from denseloss.compare.plan import ComparePlan, Trial
from denseloss.compare.trials import Progress, TrialFolder
from denseloss.data.files import load_arrays, write_whole
from denseloss.explain.cost import Cost, loss_cost
from denseloss.tasks import Data, Finished
from denseloss.train.plan import read_options
from denseloss.train.run import load_run


def make_artifacts(
    folder: ComparisonFolder, plan: ComparePlan, progress: Progress, data: Data, *, keep: int
) -> Iterator[str]:
    """Measure what each loss costs, and keep what the task shows; say what could not be made."""
    yield from time_losses(folder, plan, data)
    first = _first_finished(plan, progress)

    def baseline() -> tuple[Any, Any]:
        assert first is not None
        files = TrialFolder(folder.path, first)
        # A network that was trained on a cluster's GPU predicts here on what is here.
        _, module = load_run(files.path, data, device="cpu")
        return module, plan.task.from_arrays(load_arrays(files.held_out_file))

    # One that no network could be trained with has perhaps no gradient either.
    alive = [loss for loss in plan.losses if any(t.loss == loss for t in progress.scores)]
    finished = Finished(
        folder=folder.path,
        data=data,
        losses={
            plan.names[loss]: plan.task.criterion(compose.parse(loss, mixed=True), data)
            for loss in alive
        },
        baseline=None if first is None else baseline,
        predicted_by="" if first is None else f"{plan.names[first.loss]}, seed {first.seed}",
        keep=keep,
    )
    yield from plan.task.keep_artifacts(finished)


def _first_finished(plan: ComparePlan, progress: Progress) -> Trial | None:
    """The first seed of the first loss that has a finished network."""
    for loss in plan.losses:
        trials = [
            trial
            for trial in (*progress.search(loss), *progress.rest(loss))
            if trial.lr == progress.chosen(loss) and progress.states.get(trial) == "finished"
        ]
        if trials:
            return min(trials, key=lambda trial: trial.seed)
    return None


def time_losses(folder: ComparisonFolder, plan: ComparePlan, data: Data) -> Iterator[str]:
    """Measure what each loss costs in a step, where that is not known yet; say where it fails."""
    common, task = plan.common, plan.task
    device = "cuda" if common.accelerator in ("cuda", "gpu") else "cpu"
    if device == "cuda" and not torch.cuda.is_available():  # trained on a cluster
        device = "cpu"
    known = known_costs(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for loss in plan.losses:
            if loss in known:
                continue
            try:
                criterion = task.criterion(compose.parse(loss, mixed=True), data)
                outputs, batch = task.example(
                    data,
                    criterion,
                    batch_size=common.batch_size,
                    size=common.size,
                    model=common.model,
                    options=read_options(common),
                )
                known[loss] = loss_cost(criterion, outputs, batch, device=device)
            except (RuntimeError, TypeError, ValueError, MemoryError) as error:
                # A report without this number is better than none.
                what = " ".join(str(error).split())[:200]
                yield f"note: the cost of {plan.names[loss]} could not be measured: {what}"
    finally:
        torch.set_num_threads(threads)
    costs = {loss: asdict(cost) for loss, cost in known.items()}
    write_whole(folder.costs_file, json.dumps(costs, indent=2, ensure_ascii=False) + "\n")


def known_costs(folder: ComparisonFolder) -> dict[str, Cost]:
    """Return what is known of each loss's cost; none where the file is missing or broken."""
    try:
        found = json.loads(folder.costs_file.read_text(encoding="utf-8"))
        return {
            loss: Cost(
                milliseconds=float(cost["milliseconds"]),
                mebibytes=float(cost["mebibytes"]),
                shape=tuple(cost["shape"]),
                device=str(cost["device"]),
            )
            for loss, cost in found.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # It is measured anew by the next `compare`; the report shows that it is missing.
        return {}
