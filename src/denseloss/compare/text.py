"""The sentences of every comparison's report."""

from denseloss.compare.results import Results
from denseloss.compare.score_tables import POOLING_WORDS, level
from denseloss.report.numbers import plural, rate
from denseloss.tasks.scores import Metric

CURVES = (
    "Mean over the seeds; the band reaches from the lowest seed to the highest, and is no "
    "confidence interval."
)


def title(results: Results) -> str:
    """What the report is about."""
    return f"Which loss suits {results.name}?"


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
    tried = sorted({lr for loss in results.losses for lr in loss.searched})
    budget = (
        f"Every loss had the same learning rates to choose from ({', '.join(map(rate, tried))}), "
        f"and took the one with the best validation {results.score_name}."
        if len(tried) > 1
        else "One learning rate was used for all losses, so a loss may be worth more with its own."
    )
    return (
        "Each trial is one training with one loss, one seed and one learning rate. At one seed all "
        "losses start from the same weights and see the same images in the same order, so they "
        f"are compared in pairs. {budget} All choices, such as learning rate and checkpoint, were "
        "made on the validation images; every score here is of the held-out images: "
        f"{results.held_out}.",
        "“Per image” means that every held-out image is scored on its own and the mean is taken, "
        "so all images count alike; “pooled” means one score of all images together, in which "
        "images with much to find count more. What an image without anything to find scores is "
        "said with each metric.",
        f"{_intervals(results)} {_tests(results)}",
        "The probability of improvement is that of the loss scoring better than the baseline on "
        "an image, with a seed of its own, ties counted half; 0.5 is a coin. The effect size is "
        "the mean difference over the standard deviation of the images' differences. Both are of "
        "scores per image and have no value where scores are pooled. “More needed” is how many "
        "more seeds, or how many more held-out images, everything else unchanged, would make the "
        "smallest difference that matters likely to be found. It is meant for planning a new "
        "comparison: adding seeds because a verdict is undecided, and testing again, raises the "
        "rate of false positives (in 8115 simulated comparisons of 5 losses no better than the "
        "baseline, on 40 images, from 3.1 % to 6.0 %, with one extension from 5 to 14 seeds). So "
        "plan the number of seeds beforehand, or read the second verdict with that in mind. The "
        f"verdict rests on {results.metrics[0].name} ({POOLING_WORDS[results.pooling]}); the tests "
        "in the other metrics are corrected for the losses, but not for the number of metrics.",
    )


def _intervals(results: Results) -> str:
    """What the confidence intervals speak about, which one seed or one image makes less."""
    seeds = [len(loss.seeds) for loss in results.losses if loss.seeds]
    one_seed, one_image = max(seeds, default=0) == 1, results.counts.get("held out") == 1
    if one_seed and one_image:
        return (
            "With one seed and one held-out image there are no confidence intervals: nothing here "
            "speaks about another training or about other images."
        )
    if one_seed:
        return (
            f"With one seed the {level(results)} confidence intervals are over the held-out images "
            "alone: they tell what the same networks would give on other images of the same kind, "
            "and say nothing about another training. Their variance is that of a bootstrap, which "
            "draws the images anew, with replacement."
        )
    if one_image:
        return (
            f"With one held-out image the {level(results)} confidence intervals are over the seeds "
            "alone: they tell what another training would give on this very image, and say nothing "
            "about other images."
        )
    text = (
        f"The {level(results)} confidence intervals tell what another training, scored on other "
        "images of the same kind, would give. Their variance is that of a hierarchical bootstrap, "
        "which draws seeds and images anew, both with replacement (every network is scored on the "
        "same images); the part of the seeds and the part of the images have each their own t "
        "quantile, since a few seeds tell little about how much seeds differ."
    )
    if 1 in seeds:
        text += (
            " Those of a loss with a single finished seed are over the images alone and say "
            "nothing about another training."
        )
    return text


def _tests(results: Results) -> str:
    if max((len(loss.seeds) for loss in results.losses), default=0) == 1:
        return (
            "There is no test and no p value either, as one seed cannot tell a loss from the luck "
            "of its start: every loss is undecided, which does not mean equal."
        )
    threshold = f"{1 - results.level:.2g}"
    return (
        "Each loss is tested against the baseline, the first loss, two-sided. The p value is the "
        "larger one of two tests: a paired permutation test, which exchanges the two losses image "
        "by image and takes the networks as given, and a t test over retraining, which asks "
        "whether other seeds and images would agree. p is then corrected for the number of losses "
        "after Holm. “Better” and “worse” are said where the corrected p is below "
        f"{threshold} and the interval of the difference leaves out 0; everything else is "
        "undecided, which does not mean equal. The intervals are of each loss alone: they are not "
        "corrected for the number of losses, and know nothing of the permutation test. So an "
        f"interval may leave out 0 where the corrected p is {threshold} or more."
    )
