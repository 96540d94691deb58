"""The sentences of the report that page and Markdown share."""

from denseloss.compare.report.tables import POOLING_WORDS, level, plural, rate
from denseloss.compare.results import Metric, Results

HOW_TO_READ_LOOKS = (
    "All losses are asked about one and the same prediction. The gradient map shows which way a "
    "training step would move each pixel's probability, and how hard: blue raises it, red lowers "
    "it, white leaves it alone; the scale is the same for all losses, each measured in its own "
    "mean. The weight map shows what is left of that when cross entropy's share is taken out: "
    "how much a pixel counts beyond how wrong it is, 1 being the mean of the image. Cross entropy "
    "alone would be 1 everywhere."
)
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


def unfinished(results: Results) -> str:
    """A warning of trials that are still to come, empty where there are none."""
    if not results.unfinished:
        return ""
    verb = "is" if results.unfinished == 1 else "are"
    return (
        f"{plural(results.unfinished, 'planned trial')} {verb} not finished yet; what follows is "
        "about the others. The same command goes on where it stopped."
    )


def failed(results: Results) -> str:
    """A warning of trials that failed, empty where there are none."""
    count = sum(len(loss.failures) for loss in results.losses)
    return f"{plural(count, 'trial')} failed; the errors stand below." if count else ""


def reliability(results: Results) -> str:
    """How the reliability diagrams are read, empty where there are none."""
    what = next((loss.calibration.what for loss in results.losses if loss.calibration), "")
    if not what:
        return ""
    if results.task == "binary":
        # Below 0.5, too little of a probability is too much certainty.
        up, reading = (
            "how often the pixel was foreground",
            "Below the dashed diagonal the foreground is rarer than the probability says, above it "
            "more frequent.",
        )
    else:
        up, reading = (
            "how often it was right",
            "Points below the dashed diagonal mean that the network is surer than it should be, "
            "points above that it is less sure.",
        )
    bars = "The bars below show how many pixels there are (square root)."
    return f"Across: {what}; up: {up}. {reading} {bars}"


def statistics(results: Results) -> tuple[str, ...]:
    """How it was measured, in paragraphs."""
    tried = sorted({lr for loss in results.losses for lr in loss.searched})
    budget = (
        f"Every loss had the same learning rates to choose from ({', '.join(map(rate, tried))}), "
        "and took the one with the highest validation Dice."
        if len(tried) > 1
        else "One learning rate was used for all losses, so a loss may be worth more with its own."
    )
    return (
        "Each trial is one training with one loss, one seed and one learning rate. At one seed all "
        "losses start from the same weights and see the same images in the same order, so they "
        f"are compared in pairs. {budget} All choices (learning rate, checkpoint, threshold) were "
        f"made on the validation images; every score here is of the held-out images: "
        f"{results.held_out}.",
        "“Per image” means that every held-out image is scored on its own and the mean is taken, "
        "so all images count alike; “pooled” means that the pixels of all images are counted "
        "together, so large objects count more. What an image without the class scores stands "
        "with each metric.",
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
