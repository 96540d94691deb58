"""Which losses may be the best: worked examples, limits, and simulations of the stated levels."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from denseloss.compare.answer import Question, answer, spent
from denseloss.compare.best import (
    Networks,
    all_differences,
    may_be_best,
    reach,
    recommend,
    standings,
)
from denseloss.compare.results import LossStanding
from denseloss.report.numbers import duration
from denseloss.tasks.scores import Metric

DICE = Metric(key="dice", name="Dice", higher_is_better=True, definition="")

# Four losses, four seeds, six images.
A = [
    [0.667, 0.718, 0.611, 0.681, 0.682, 0.921],
    [0.686, 0.686, 0.590, 0.703, 0.659, 0.898],
    [0.677, 0.703, 0.595, 0.698, 0.637, 0.921],
    [0.646, 0.659, 0.598, 0.692, 0.670, 0.886],
]
B = [
    [0.669, 0.715, 0.609, 0.684, 0.675, 0.915],
    [0.684, 0.678, 0.589, 0.701, 0.657, 0.893],
    [0.675, 0.700, 0.599, 0.700, 0.630, 0.918],
    [0.642, 0.661, 0.597, 0.698, 0.664, 0.883],
]
C = [
    [0.557, 0.649, 0.560, 0.586, 0.569, 0.815],
    [0.633, 0.701, 0.600, 0.624, 0.605, 0.851],
    [0.622, 0.692, 0.567, 0.625, 0.608, 0.845],
    [0.619, 0.724, 0.643, 0.662, 0.626, 0.872],
]
D = [
    [0.481, 0.496, 0.383, 0.464, 0.465, 0.709],
    [0.528, 0.552, 0.442, 0.531, 0.458, 0.765],
    [0.529, 0.548, 0.451, 0.529, 0.512, 0.761],
    [0.544, 0.525, 0.420, 0.508, 0.471, 0.774],
]
NAMES = ("A", "B", "C", "D")


def networks(**scores: Sequence[Sequence[float]]) -> dict[str, Networks]:
    return {
        name: Networks(seeds=tuple(range(len(rows))), scores=np.array(rows, dtype=float))
        for name, rows in scores.items()
    }


EXAMPLE = networks(A=A, B=B, C=C, D=D)


def question(**changes: object) -> Question:
    asked = {
        "metric": DICE,
        "effect": 0.01,
        "alpha": 0.05,
        "planned": 4,
        "seeds": 4,
        "command": "denseloss compare data --loss a --loss 'b + c' --seeds 4 --size 64",
        "seconds": (12.0, 14.0, 13.0),
        "jobs": 2,
    }
    return Question(**{**asked, **changes})


# Mean, variance by seed, by image, of the interaction, of the mean; how far it may be off at
# tails of 0.05, 0.05/3, 0.05/6 and 0.05/12.
PAIRS = {
    ("A", "B"): (
        (0.002, 2.546296e-07, 1.354167e-06, 3.587963e-07, 1.354167e-06),
        (0.002424, 0.003590, 0.004443, 0.005428),
    ),
    ("A", "C"): (
        (0.042875, 3.437471e-04, 1.614698e-04, 1.287350e-05, 4.923434e-04),
        (0.050071, 0.077905, 0.099820, 0.126467),
    ),
    ("A", "D"): (
        (0.16825, 2.318542e-04, 4.230833e-05, 2.448889e-05, 2.496736e-04),
        (0.036830, 0.058267, 0.075441, 0.096543),
    ),
    ("C", "D"): (
        (0.125375, 8.940914e-05, 1.899865e-04, 2.064942e-05, 2.587462e-04),
        (0.034391, 0.051832, 0.064992, 0.080539),
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_differences_of_the_worked_example(pair: tuple[str, str]) -> None:
    found = all_differences(EXAMPLE)[pair]
    (mean, *variances), reaches = PAIRS[pair]
    assert found.value == pytest.approx(mean)
    parts = (found.by_seed, found.by_image, found.interaction, found.variance)
    assert parts == pytest.approx(variances, rel=1e-5)
    tails = (0.05, 0.05 / 3, 0.05 / 6, 0.05 / 12)
    assert [reach(found, tail) for tail in tails] == pytest.approx(reaches, abs=1e-6)
    other = all_differences(EXAMPLE)[pair[::-1]]
    assert (other.value, other.variance) == (-found.value, found.variance)


def test_standings_of_the_worked_example() -> None:
    found = standings(EXAMPLE, recommended="A", effect=0.01, alpha=0.05, count=4)
    assert [found[name].standing for name in NAMES] == ["recommended", "equal", "open", "ruled out"]
    upper = [found[name].upper for name in NAMES]
    assert upper == pytest.approx([0.005590, 0.001590, 0.035030, 0], abs=1e-6)
    lower = [found[name].lower for name in NAMES]
    assert lower == pytest.approx([-0.035030, -0.036510, -0.120780, -0.226517], abs=1e-6)
    worse = [found[name].worse_by for name in NAMES]
    assert worse == pytest.approx([0, 0, 0, 0.071707], abs=1e-6)


def test_recommendation_of_the_worked_example() -> None:
    found = recommend(EXAMPLE, effect=0.01, draws=400_000)
    assert found.loss == "A"
    assert found.best == pytest.approx((0.861, 0.065, 0.074, 0.0001), abs=0.005)
    assert found.within == pytest.approx((0.954, 0.950, 0.121, 0.0), abs=0.005)
    assert found.regret == pytest.approx((0.0020, 0.0039, 0.0448, 0.1702), abs=2e-4)


def test_a_loss_that_another_than_the_recommended_one_rules_out_says_which() -> None:
    rng = np.random.default_rng(8)
    shared = rng.normal(0.7, 0.1, 40)
    steady = shared + 0.001 * rng.normal(size=(5, 40))
    made = {
        "wild": shared + 0.02 + 0.03 * rng.normal(size=(5, 1)),
        "steady": steady,
        "behind": steady - 0.02,
    }
    _, found = answer(networks(**made), question(planned=3, seeds=5))
    assert found["wild"].standing == "recommended"
    assert found["behind"].words.endswith("; `steady` is clearly better")


def test_a_wider_effect_makes_a_loss_that_may_be_best_not_better() -> None:
    found = standings(EXAMPLE, recommended="A", effect=0.04, alpha=0.05, count=4)
    assert found["C"].standing == "not better"


def test_the_answer_in_words() -> None:
    said, found = answer(EXAMPLE, question())
    assert said.loss == 0
    assert said.words[0] == (
        "Take `A`: with a probability of 95 % it is within 0.01 Dice of the best."
    )
    assert found["B"].words == "`B` is practically equal to `A`: they differ by less than 0.01 Dice"
    assert found["D"].words.startswith("`D` is ruled out: 0.17 Dice behind `A`, worse by at least")
    assert found["C"].words.endswith("more than 100 more seeds would be needed")
    assert 0.05 < said.smallest < 0.12


def spread(losses: Mapping[str, float], *, seeds: int, images: int = 40, sd: float = 0.02) -> dict:
    """Losses of these means whose networks differ by their starts."""
    rng = np.random.default_rng(5)
    shared = rng.normal(0, 0.1, images)
    made = {}
    for name, mean in losses.items():
        own = sd * rng.normal(size=(seeds, 1)) + 0.01 * rng.normal(size=(seeds, images))
        made[name] = mean + shared + own
    return networks(**made)


def test_the_next_step_is_a_command_with_its_price() -> None:
    losses = spread({"a": 0.7, "b": 0.65, "c": 0.3}, seeds=4)
    said, found = answer(losses, question(planned=3))
    (more,) = {one.more_seeds for one in found.values() if one.more_seeds is not None}
    assert found["b"].standing == "open"
    assert said.next.words == (
        f"{more} more seed{'s' * (more != 1)} would probably settle the open loss "
        f"({3 * more} trainings, about {duration(3 * more * 13 / 2)})."
    )
    assert said.next.command == (
        f"denseloss compare data --loss a --loss 'b + c' --size 64 --seeds {4 + more}"
    )


def test_more_seeds_than_the_next_step_names_settle_it() -> None:
    losses = spread({"a": 0.7, "b": 0.62}, seeds=60, sd=0.06)
    few = {name: Networks(seeds=n.seeds[:4], scores=n.scores[:4]) for name, n in losses.items()}
    _, found = answer(few, question(planned=2))
    more = found["b"].more_seeds
    enough = {
        name: Networks(seeds=n.seeds[: 4 + 2 * more], scores=n.scores[: 4 + 2 * more])
        for name, n in losses.items()
    }
    assert answer(enough, question(planned=2, seeds=4 + 2 * more))[1]["b"].standing == "ruled out"


@pytest.mark.parametrize(("seeds", "words"), [(1, "With 1 seed no risk"), (2, "With 2 seeds no")])
def test_few_seeds_have_no_risk(seeds: int, words: str) -> None:
    losses = spread({"a": 0.6, "b": 0.7}, seeds=seeds)
    said, found = answer(losses, question(planned=2, seeds=seeds))
    assert said.loss == 1
    assert words in said.words[0]
    assert all(math.isnan(one.within) for one in found.values())
    if seeds == 1:
        assert found["a"].standing == "open"
        assert said.next.command.endswith("--seeds 2")


def test_few_images_rule_nothing_out() -> None:
    losses = spread({"a": 0.9, "b": 0.1}, seeds=5, images=5)
    said, found = answer(losses, question(planned=2, seeds=5))
    assert found["b"].standing == "open"
    assert "5 held-out images" in said.next.words


def test_the_same_networks_are_one_loss() -> None:
    losses = spread({"a": 0.7, "b": 0.66, "c": 0.4}, seeds=5)
    alone, _ = answer(losses, question(planned=3, seeds=5))
    twin = {"a": losses["a"], "twin": losses["a"], "b": losses["b"], "c": losses["c"]}
    both, found = answer(twin, question(planned=4, seeds=5))
    assert found["twin"].words == "`twin` trained the same networks as `a`, to the last digit"
    assert found["twin"].standing == "equal"
    assert found["twin"].within == found["a"].within
    assert both.smallest == pytest.approx(alone.smallest, rel=0.6)
    assert both.words == alone.words


def test_losses_are_paired_by_the_seeds_that_both_have() -> None:
    one = Networks(seeds=(0, 2, 3), scores=np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]]))
    other = Networks(seeds=(1, 2, 3), scores=np.array([[9.0, 9.0], [3.0, 3.0], [5.0, 5.0]]))
    found = all_differences({"a": one, "b": other})["a", "b"]
    assert (found.seeds, found.value) == (2, pytest.approx(0.75))


def test_a_loss_with_few_finished_seeds_does_not_spoil_the_risk_of_the_others() -> None:
    losses = spread({"a": 0.7, "b": 0.65, "c": 0.9}, seeds=5)
    losses["c"] = Networks(seeds=(0,), scores=losses["c"].scores[:1])
    said, found = answer(losses, question(planned=3, seeds=5))
    assert said.loss == 0
    assert not math.isnan(found["a"].within)
    assert found["c"].standing == "open"


def test_an_undefined_score_is_open_and_told() -> None:
    losses = spread({"a": 0.7, "b": 0.65}, seeds=4)
    losses["b"].scores[1, 3] = math.nan
    _, found = answer(losses, question(planned=2))
    assert found["b"].words == "`b` cannot be compared in Dice: it is undefined"


def test_one_loss_is_no_comparison() -> None:
    said, found = answer(spread({"a": 0.7}, seeds=3), question(planned=1, seeds=3))
    assert said.words == ("`a` is the only loss, so there is nothing to compare it with.",)
    assert (said.next, found["a"].standing) == (None, "recommended")


def test_all_looks_together_spend_no_more_than_the_error() -> None:
    assert spent(0) == pytest.approx(0.8)
    assert sum(spent(k) for k in range(60)) == pytest.approx(1)


# --- simulations


def simulated(
    rng: np.random.Generator,
    effects: Sequence[float],
    *,
    seeds: int,
    images: int,
    sds: Sequence[float] | None = None,
    tails: str = "normal",
) -> dict[str, Networks]:
    """In units of the standard deviation of one network over seeds."""
    losses = len(effects)
    sd = np.ones(losses) if sds is None else rng.permutation(np.asarray(sds))
    if tails == "t3":
        start = rng.standard_t(3, size=(losses, seeds)) / math.sqrt(3)
    else:
        start = rng.standard_normal((losses, seeds))
    scores = (
        np.asarray(effects)[:, None, None]
        + (sd[:, None] * start)[:, :, None]
        + 3 * rng.standard_normal((losses, 1, images))
        + 3 * rng.standard_normal((losses, seeds, images))
    )
    return networks(**{f"l{i}": rows for i, rows in enumerate(scores)})


def wrong(effects: Sequence[float], repetitions: int, **how: object) -> tuple[float, float]:
    """How often the best loss is ruled out, and how many losses are left on average."""
    rng = np.random.default_rng(7)
    names = [f"l{i}" for i in range(len(effects))]
    best = names[int(np.argmax(effects))]
    out, left = 0, 0
    for _ in range(repetitions):
        made = simulated(rng, effects, **how)
        kept = may_be_best(all_differences(made), names, alpha=0.05, count=len(names))
        out += best not in kept
        left += len(kept)
    return out / repetitions, left / repetitions


def margin(rate: float, repetitions: int) -> float:
    """Three and a half binomial standard deviations."""
    return 3.5 * math.sqrt(rate * (1 - rate) / repetitions)


UNEQUAL = tuple(np.geomspace(0.2, 4, 6))
LADDER = (0, -1, -2, -3, -5, -10)


@pytest.mark.parametrize("how", [{}, {"sds": UNEQUAL}, {"tails": "t3"}], ids=str)
def test_the_best_is_seldom_ruled_out(how: dict) -> None:
    for effects in ((0,) * 6, (1, 0, 0, 0, 0, 0)):
        rate, _ = wrong(effects, 60, seeds=4, images=20, **how)
        assert rate <= 0.05 + margin(0.05, 60)


def test_what_is_far_behind_is_ruled_out() -> None:
    _, left = wrong(LADDER, 40, seeds=5, images=67)
    assert left < 3.6


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"sds": UNEQUAL}, {"tails": "t3"}], ids=str)
@pytest.mark.parametrize("images", [12, 67])
@pytest.mark.parametrize("seeds", [2, 3, 5, 8, 12])
def test_the_best_is_seldom_ruled_out_anywhere(seeds: int, images: int, how: dict) -> None:
    for effects in ((0,) * 6, (1, 0, 0, 0, 0, 0), LADDER):
        rate, _ = wrong(effects, 400, seeds=seeds, images=images, **how)
        assert rate <= 0.05 + margin(0.05, 400)


def equal_and_wrong(repetitions: int, *, seeds: int, images: int) -> float:
    """How often a loss that is just not equal is called so, or one that matters."""
    rng = np.random.default_rng(11)
    effect, called = 1.0, 0
    for _ in range(repetitions):
        made = simulated(rng, (0, -effect, -effect, effect), seeds=seeds, images=images)
        found = standings(made, recommended="l0", effect=effect, alpha=0.05, count=4)
        called += any(found[f"l{i}"].standing == "equal" for i in (1, 2, 3))
    return called / repetitions


def test_what_differs_is_seldom_called_equal() -> None:
    assert equal_and_wrong(100, seeds=8, images=400) <= 0.05 + margin(0.05, 100)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 12])
def test_what_differs_is_seldom_called_equal_anywhere(seeds: int) -> None:
    assert equal_and_wrong(600, seeds=seeds, images=400) <= 0.05 + margin(0.05, 600)


@pytest.mark.slow
@pytest.mark.parametrize("spacing", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_the_probability_to_be_near_the_best_is_kept(seeds: int, spacing: float) -> None:
    # "Within d of the best" may say too little, and must not say too much.
    rng = np.random.default_rng(13)
    said, true = [], []
    for _ in range(150):
        effects = spacing * rng.standard_normal(6)
        made = simulated(rng, effects, seeds=seeds, images=67)
        found = recommend(made, effect=1.0, draws=4000)
        place = found.losses.index(found.loss)
        said.append(found.within[place])
        true.append(effects.max() - effects[place] <= 1.0)
    assert np.mean(true) >= np.mean(said) - 0.06


def of(found: Mapping[str, LossStanding], standing: str) -> list[str]:
    return [loss for loss, one in found.items() if one.standing == standing]


def test_a_larger_difference_is_never_a_weaker_answer() -> None:
    rng = np.random.default_rng(3)
    noise = simulated(rng, (0, 0, 0), seeds=5, images=30)
    for gap in (2.0, 10.0, 50.0):
        moved = {
            name: Networks(seeds=n.seeds, scores=n.scores - (gap if name == "l2" else 0))
            for name, n in noise.items()
        }
        _, found = answer(moved, question(planned=3, seeds=5, effect=0.5))
        ruled = of(found, "ruled out")
    assert ruled == ["l2"]
