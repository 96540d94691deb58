"""The sentences of every comparison's report."""

from denseloss.compare.results import Results
from denseloss.compare.score_tables import POOLING_WORDS, level
from denseloss.report.numbers import plural, rate
from denseloss.tasks.scores import Metric

CURVES = "Mean over the seeds, and a band from the lowest to the highest: no confidence interval."


def subtitle(results: Results) -> str:
    """How much was compared."""
    seeds = max((len(loss.seeds) for loss in results.losses), default=0)
    held_out = results.counts.get("held out")
    images = "" if held_out is None else f" on {plural(held_out, 'held-out image')}"
    losses = len(results.losses)
    return f"{losses} {'loss' if losses == 1 else 'losses'}, {plural(seeds, 'seed')} each{images}"


def better(metric: Metric) -> str:
    """Which scores of a metric are good ones."""
    return f"{'Higher' if metric.higher_is_better else 'Lower'} is better."


def statistics(results: Results) -> tuple[str, ...]:
    """How it was measured, in paragraphs."""
    budget = "One learning rate was used for all losses: a loss may do better with its own."
    if len(results.rates) > 1:
        budget = (
            f"Every loss could choose from the same learning rates "
            f"({', '.join(map(rate, results.rates))}) and took the one with the best validation "
            f"{results.score_name}."
        )
    return (
        "Each trial is one training with one loss, one seed and one learning rate. At one seed all "
        "losses start from the same weights and see the same images in the same order, so they "
        f"are compared in pairs. {budget} Everything was chosen on the validation images, the "
        "learning rate and the checkpoint, too; every score here is of the held-out images: "
        f"{results.held_out}.",
        "“Per image”: every held-out image is scored on its own and the mean is taken, so all "
        "images count alike. “Pooled”: one score of all images together, in which images with much "
        "to find count more. What an image without anything to find scores is said with each "
        "metric.",
        f"{_intervals(results)} {_tests(results)}",
        "The probability of improvement: that the loss scores better than the baseline on an "
        "image, each with a seed of its own; ties count half, 0.5 is a coin. The effect size: the "
        "mean difference over the standard deviation of the images' differences. Both need scores "
        "per image and have no value where scores are pooled. “More needed”: how many more seeds, "
        "or held-out images, would make the smallest difference that matters likely to be found, "
        "all else unchanged. It is for planning a new comparison. Adding seeds because a verdict "
        "is undecided, and testing again, raises the rate of false positives: from 3.1 % to 6.0 % "
        "in 8115 simulated comparisons of 5 losses no better than the baseline, on 40 images, with "
        "one extension from 5 to 14 seeds. So plan the number of seeds beforehand, or doubt the "
        f"second verdict. The verdict rests on {results.metrics[0].name} "
        f"({POOLING_WORDS[results.pooling]}). The tests in the other metrics are corrected for the "
        "number of losses, but not for the number of metrics.",
    )


def _intervals(results: Results) -> str:
    """What the confidence intervals speak about: less with one seed or one image."""
    seeds = [len(loss.seeds) for loss in results.losses if loss.seeds]
    one_seed, one_image = max(seeds, default=0) == 1, results.counts.get("held out") == 1
    intervals = f"the {level(results)} confidence intervals"
    if one_seed and one_image:
        return (
            "With one seed and one held-out image there are no confidence intervals: nothing here "
            "speaks about another training or about other images."
        )
    if one_seed or one_image:
        one, alone = ("seed", "held-out images") if one_seed else ("held-out image", "seeds")
        same = "the same networks would give on other images of the same kind"
        told = same if one_seed else "another training would give on this very image"
        untold = "another training" if one_seed else "other images"
        how = " A bootstrap draws the images anew, with replacement." if one_seed else ""
        return (
            f"With one {one} {intervals} are over the {alone} alone: they tell what {told}, and "
            f"say nothing about {untold}.{how}"
        )
    single = (
        " Those of a loss with a single finished seed are over the images alone and say nothing "
        "about another training."
    )
    return (
        f"{intervals.capitalize()} tell what another training, scored on other images of the same "
        "kind, would give. Their variance is that of a hierarchical bootstrap, which draws seeds "
        "and images anew, with replacement; every network is scored on the same images. The parts "
        "of the seeds and of the images have each their own t quantile, since a few seeds tell "
        f"little about how much seeds differ.{single if 1 in seeds else ''}"
    )


def _tests(results: Results) -> str:
    if max((len(loss.seeds) for loss in results.losses), default=0) == 1:
        return (
            "There is no test and no p value either, as one seed cannot tell a loss from the luck "
            "of its start: every loss is undecided, which does not mean equal."
        )
    threshold = f"{1 - results.level:.2g}"
    return (
        "Each loss is tested against the baseline, the first loss, two-sided. p is the larger one "
        "of two tests: a paired permutation test, which exchanges the two losses image by image "
        "and takes the networks as given, and a t test over retraining, which asks whether other "
        "seeds and images would agree. It is then corrected for the number of losses after Holm. "
        f"“Better” and “worse” need a corrected p below {threshold} and an interval of the "
        "difference without 0; all else is undecided, which does not mean equal. The intervals are "
        "of each loss alone, not corrected for the number of losses: they may leave out 0 where "
        f"the corrected p is {threshold} or more."
    )
