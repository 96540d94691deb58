"""The sections that the report of every comparison has, whatever its task."""

from collections.abc import Iterable
from dataclasses import replace

from denseloss.compare import figures, text
from denseloss.compare import score_tables as tables
from denseloss.compare.results import Results, Source
from denseloss.report.sections import Choice, Figure, Item, Report, Section, Table, drawn
from denseloss.tasks.scores import Metric, Pooling
from denseloss.user_code import definition

_MOST_LINES = 100


def contents(results: Results, of_task: Iterable[Section]) -> Report:
    """The whole report.

    Args:
        results: Of the comparison.
        of_task: What its task shows besides the scores. Pictures come after all numbers.
    """
    of_task = tuple(of_task)
    sections = (
        _scores(results),
        _all_metrics(results),
        _learning(results),
        _rates(results),
        _parts(results),
        *(section for section in of_task if not section.galleries),
        _one_table("Cost", tables.cost(results)),
        *(section for section in of_task if section.galleries),
        _one_table("Failures", tables.failures(results)),
        _code(results),
        _how(results),
        _repeat(results),
    )
    return Report(
        title=f"Which loss suits {results.name}?",
        subtitle=text.subtitle(results),
        losses=tuple(results.names),
        verdict=results.verdict,
        warnings=results.warnings,
        sections=tuple(filter(None, sections)),
    )


def _choice(metric: Metric, pooling: Pooling) -> Choice:
    how = tables.POOLING_WORDS[pooling]
    return Choice(metric=metric.key, metric_name=metric.name, pooling=pooling, pooling_name=how)


def _scores(results: Results) -> Section:
    panels = tuple(_panel(results, *one) for one in tables.measured(results))
    return Section(
        title="Every loss, against the baseline",
        name="Scores",
        anchor="scores",
        text=() if panels else ("No trial has finished, so there is no score.",),
        items=tuple(
            Item(
                loss=i,
                named=True,
                text="" if loss.seeds else "no finished trial",
                notes=tuple(filter(None, (loss.reason, *loss.notes))),
            )
            for i, loss in enumerate(results.losses)
        ),
        parts=panels,
    )


def _panel(results: Results, metric: Metric, pooling: Pooling) -> Section:
    asked = (results, metric, pooling)
    how, interval = tables.POOLING_WORDS[pooling], f"{tables.level(results)} confidence interval"
    shaded = f" Shaded: too small to matter (±{results.effect:g})."
    main = metric is results.metrics[0]
    return Section(
        title=f"{metric.name}, {how}",
        choice=_choice(metric, pooling),
        text=(
            f"{text.better(metric)} {how.capitalize()}: {tables.POOLING_MEANING[pooling]}. "
            f"With each value its {interval}.",
        ),
        figures=(
            *drawn(
                figures.values(*asked), "Score", f"with its {interval}; small rings are the seeds."
            ),
            *drawn(
                figures.differences(*asked),
                "Difference to the baseline",
                f"with its {interval}. Hollow: undecided.{shaded if main else ''}",
            ),
        ),
        tables=(tables.comparison(*asked),),
        items=tuple(
            Item(loss=i, text=loss.comparisons[metric.key, pooling].words)
            for i, loss in enumerate(results.losses)
            if (metric.key, pooling) in loss.comparisons
        ),
    )


def _all_metrics(results: Results) -> Section:
    # Those of the verdict first.
    poolings = sorted(tables.POOLINGS, key=lambda pooling: pooling != results.pooling)
    found = [table for one in poolings if (table := tables.scores(results, one)) is not None]
    if found:
        found[-1] = replace(found[-1], notes=(tables.scores_note(results),))
    return Section(
        title="All losses, all metrics",
        name="All metrics",
        anchor="all",
        text=() if found else ("Nothing was measured.",),
        hint="Click the name of a column to sort by it." if found else "",
        tables=tuple(found),
    )


def _learning(results: Results) -> Section:
    steps = [(i, figures.losses_over_steps(results, i)) for i in range(len(results.losses))]
    small = tuple(Figure(svg=svg, loss=i) for i, svg in steps if svg is not None)
    validation = f"Validation {results.score_name},"
    losses = Section(
        title="Training and validation loss",
        about_figures="Solid: training; dashed: validation; over the steps. Each loss has its own "
        "scale: heights are not compared between losses.",
        figures=small,
    )
    return Section(
        title="Learning curves",
        name="Learning",
        anchor="learning",
        about_figures=text.CURVES,
        figures=(
            *drawn(figures.curves(results, late=False), validation, "all steps"),
            *drawn(figures.curves(results, late=True), validation, "the second half magnified"),
        ),
        legend=tuple(
            Item(loss=i, named=True) for i, loss in enumerate(results.losses) if loss.curves
        ),
        tables=(tables.learning(results),),
        parts=(losses,) if small else (),
    )


def _rates(results: Results) -> Section:
    table = tables.rates(results)
    return Section(
        title="Learning rates",
        anchor="rates",
        text=("No learning rate was tried.",) if table is None else (),
        figures=drawn(
            figures.learning_rates(results),
            f"Validation {results.score_name} by learning rate.",
            "Filled: chosen.",
        ),
        tables=() if table is None else (table,),
    )


def _parts(results: Results) -> Section | None:
    """Every part with every loss, unless the only one is the whole."""
    title, panels = f"Each {results.part}", []
    caption = f"{title} with every loss; lines are {tables.level(results)} confidence intervals."
    for metric, pooling in tables.measured(results) if len(results.parts) > 1 else ():
        table = tables.per_part(results, metric, pooling)
        if table is not None:
            # A diagram of one metric is enough: with twenty parts they are long.
            main = metric is results.metrics[0]
            drawing = figures.by_part(results, metric, pooling) if main else None
            panels.append(
                Section(
                    title=f"{metric.name} of each {results.part}, {tables.POOLING_WORDS[pooling]}",
                    choice=_choice(metric, pooling),
                    figures=drawn(drawing, caption=caption),
                    tables=(table,),
                )
            )
    return Section(title=title, anchor="parts", parts=tuple(panels)) if panels else None


def _one_table(title: str, table: Table | None) -> Section | None:
    return None if table is None else Section(title=title, anchor=title.lower(), tables=(table,))


def _code(results: Results) -> Section | None:
    """What the losses of the user's own compute."""
    parts = tuple(
        Section(title=", ".join(source.short), code=(shown,), language="python")
        for source in results.sources
        for shown in _shown(source)
    )
    if not parts:
        return None
    copies = ", ".join(f"`{source.copy}`" for source in results.sources)
    return Section(
        title="Losses of your own",
        anchor="code",
        text=(f"As they were when they were trained. Copies of the whole files: {copies}.",),
        parts=parts,
    )


def _shown(source: Source) -> Iterable[str]:
    """The whole file where it is short, otherwise what is used of it."""
    if len(source.text.splitlines()) <= _MOST_LINES:
        return [source.text.strip()]
    return [definition(source.text, name) for name in source.names]


def _how(results: Results) -> Section:
    counts = ", ".join(f"{name}: {count}" for name, count in results.counts.items())
    data = tuple(Item(text=line) for line in (*results.data_lines, counts))
    metrics = tuple(
        Item(head=tables.metric_name(metric), text=f"{metric.definition} {text.better(metric)}")
        for metric in results.metrics
    )
    return Section(
        title="How it was measured",
        anchor="how",
        text=text.statistics(results),
        parts=(Section(title="The data", items=data), Section(title="The metrics", items=metrics)),
    )


def _repeat(results: Results) -> Section:
    common = "What all trials had in common"
    found = (
        tables.pairs(common, "Setting", "Value", results.settings),
        tables.pairs("Versions", "Name", "Version", results.versions),
    )
    return Section(
        title="To repeat it",
        anchor="repeat",
        code=results.commands,
        tables=tuple(table for table in found if table is not None),
    )
