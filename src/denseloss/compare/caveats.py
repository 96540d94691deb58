"""What weakens the conclusions of a comparison: all of it is said here, and nowhere else."""

from collections.abc import Iterator, Sequence

import numpy as np

from denseloss.compare.answer import FEWEST_IMAGES
from denseloss.compare.plan import ComparePlan
from denseloss.compare.results import LossResults
from denseloss.tasks import SplitSummary

_FEW_IMAGES = 20
_FEW_SEEDS = 3
_RISING = 0.01
# Curves rise to the end of a cosine schedule; what the last fifth of the steps still brings tells
# whether more of them would.
_LATE = 0.8


def of_images(
    *,
    validation: SplitSummary,
    held_out: SplitSummary,
) -> Iterator[str]:
    """Say what the images do not allow to conclude, a sentence or two each.

    Args:
        validation: What its images hold.
        held_out: What its images hold.
    """
    if held_out.missing:
        yield (
            f"No held-out image holds {_either(held_out.missing)}: a score of it only says whether "
            "it is predicted where it is not (an image without it counts 1 if not, else 0), and "
            "counts in the mean like any other."
        )
    if validation.missing:
        yield (
            f"No validation image holds {_either(validation.missing)}: learning rates and "
            "checkpoints are chosen without it."
        )
    if held_out.unscored:
        are = "s are" if held_out.unscored > 1 else " is"
        yield f"{held_out.unscored} held-out image{are} void everywhere and counted nowhere."
    if held_out.images < FEWEST_IMAGES:
        yield (
            f"With {held_out.images} held-out image{'s' * (held_out.images != 1)} no loss can be "
            f"ruled out, however bad it is: it takes at least {FEWEST_IMAGES}."
        )


def of_results(
    plan: ComparePlan,
    losses: Sequence[LossResults],
    *,
    validation: SplitSummary,
    held_out: SplitSummary,
    split_is_drawn: bool,
    others: Sequence[str],
    unfinished: int,
) -> Iterator[str]:
    """Say all that weakens what was found.

    Args:
        plan: Of the comparison.
        losses: Their results.
        validation: What its images hold.
        held_out: What its images hold.
        split_is_drawn: Whether what is held out was drawn, and is not said by the data itself.
        others: Losses of finished trials in the folder that are not compared.
        unfinished: How many trials are still to come.
    """
    if unfinished:
        verb = "is" if unfinished == 1 else "are"
        yield (
            f"{unfinished} planned trial{'s' * (unfinished != 1)} {verb} not finished yet; what "
            "follows is about the others. The same command goes on where it stopped."
        )
    failed = sum(len(loss.failures) for loss in losses)
    if failed:
        yield f"{failed} trial{'s' * (failed != 1)} failed; the errors stand below."
    if held_out.images < _FEW_IMAGES:
        more = (
            "more images, or a larger --test-share (and another --out)"
            if split_is_drawn
            else "more held-out images"
        )
        yield (
            f"Only {held_out.images} held-out image{'s' * (held_out.images != 1)}: what is "
            f"concluded about other images rests on very few; {more} would help."
        )
    yield from of_images(validation=validation, held_out=held_out)
    if others:
        yield (
            f"The folder holds finished trials of {', '.join(f'`{loss}`' for loss in others)}, "
            "which are not in this report; give their --loss, too."
        )
    seeds = min((len(loss.seeds) for loss in losses if loss.seeds), default=0)
    if seeds < _FEW_SEEDS:
        yield (
            f"Only {seeds} seed{'s' * (seeds != 1)}: how much a network's score depends on its "
            "start is hardly known; give --seeds 5 or more."
        )
    for end, extreme in (("lowest", min), ("highest", max)):
        edge = [
            f"`{loss.loss}`"
            for loss in losses
            if loss.at_edge and loss.lr == extreme(loss.searched)
        ]
        if edge:
            yield (
                f"The best learning rate of {', '.join(edge)} is the {end} that was tried; a "
                f"better one may lie beyond (--lr {len(plan.rates) + 2} tries two more for every "
                "loss)."
            )
    score = plan.task.metrics[0]
    sign = 1 if score.higher_is_better else -1
    rising = [f"`{loss.loss}`" for loss in losses if sign * _late_gain(loss) > _RISING]
    if rising:
        verb = "rose" if score.higher_is_better else "fell"
        yield (
            f"Validation {score.name} of {', '.join(rising)} still {verb} by more than "
            f"{_RISING:g} in the last fifth of the steps: these results are those of "
            f"{plan.common.steps} steps, and more of them may change the order."
        )


def _late_gain(loss: LossResults) -> float:
    """Return by how much the mean validation score rose in the last fifth of the steps."""
    gains = []
    for rows in loss.curves.values():
        late = [row for row in rows if row["step"] <= _LATE * rows[-1]["step"]]
        if late:
            gains.append(rows[-1]["score"] - late[-1]["score"])
    return float(np.mean(gains)) if gains else 0.0


def _either(names: Sequence[str]) -> str:
    marked = [f"`{name}`" for name in names]
    return marked[0] if len(marked) == 1 else f"{', '.join(marked[:-1])} or {marked[-1]}"
