"""How many steps each trial can have in a given time."""

import bisect
import math
from collections.abc import Sequence

from denseloss.compare.worker import Times
from denseloss.data.errors import InputError
from denseloss.report.numbers import duration
from denseloss.train.plan import TrainPlan

_MIN_STEPS = 20
_MOST_STEPS = 10_000_000


def steps_within(
    budget: float,
    times: Sequence[Times],
    *,
    trials: int,
    slots: int,
    plan: TrainPlan,
    images: int,
    every: int | None,
) -> int:
    """Return how many steps each trial can have.

    Args:
        budget: Seconds for all trials.
        times: Of some trials; the slowest counts.
        trials: How many there are.
        slots: How many run at a time.
        plan: Of a trial: how often it validates depends on its steps.
        images: To train on.
        every: Steps between validations, where the user says.

    Raises:
        InputError: Not even the shortest trials fit.
    """
    step = max(t.step for t in times)
    validation = max(t.validation for t in times)
    rest = max(t.rest for t in times)
    waves = max(1, math.ceil(trials / slots))

    def seconds(steps: int) -> float:
        validations = math.ceil(
            steps / plan.with_steps(steps, images=images, every=every).val_every
        )
        return waves * (rest + steps * step + validations * validation)

    if seconds(_MIN_STEPS) > budget:
        raise InputError(
            f"--budget: {trials} trials of {_MIN_STEPS} steps need about "
            f"{duration(seconds(_MIN_STEPS))} here, {slots} at a time; give more time, fewer "
            "--seeds or losses, or --lr 1"
        )
    longer = bisect.bisect_right(range(_MIN_STEPS, _MOST_STEPS), budget, key=seconds)
    return _MIN_STEPS + longer - 1
