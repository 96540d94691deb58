"""The sections that the report of every comparison has, whatever its task."""

import math
from collections.abc import Iterable
from dataclasses import replace

from denseloss.compare import figures, text
from denseloss.compare import score_tables as tables
from denseloss.compare.results import LossResults, Results, Source
from denseloss.report.sections import (
    Chip,
    Choice,
    Figure,
    Item,
    Report,
    Section,
    Table,
    drawn,
    letter,
)
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
        _trades(results),
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
    answer = results.answer
    return Report(
        title=f"Which loss suits {results.name}?",
        subtitle=text.subtitle(results),
        losses=tuple(results.names),
        take=answer.loss if results.losses[answer.loss].seeds else None,
        answer=answer.words,
        chips=_chips(results),
        next=answer.next.words if answer.next else "",
        command=answer.next.command if answer.next else "",
        figure=_first_figure(results),
        warnings=results.warnings,
        sections=tuple(filter(None, sections)),
    )


def _chips(results: Results) -> tuple[Chip, ...]:
    """Every loss with its standing: what may be taken first, in each standing the best first."""
    metric, tones = results.metrics[0], ("take", "equal", "open", "out")
    key, sign = (metric.key, results.pooling), 1 if metric.higher_is_better else -1
    chips = [
        Chip(loss=i, tone=tone, words=words)
        for i, loss in enumerate(results.losses)
        for tone, words in [tables.chip(results, loss)]
    ]

    def place(chip: Chip) -> tuple[int, float]:
        found = results.losses[chip.loss].scores.get(key)
        known = found is not None and not math.isnan(found.value)
        return tones.index(chip.tone), -sign * found.value if found and known else math.inf

    return tuple(sorted(chips, key=place))


def _first_figure(results: Results) -> Figure | None:
    """What the answer is seen by: differences, or the scores where there is nothing to compare."""
    metric, pooling = results.metrics[0], results.pooling
    found = figures.standings(results)
    if found is not None:
        return Figure(
            svg=found,
            title=f"{metric.name}: how far from {letter(results.answer.loss)}.",
            caption=_told(_difference_marks(results, metric, pooling), _band(results)),
        )
    if not any((metric.key, pooling) in loss.scores for loss in results.losses):
        return None
    return Figure(
        svg=figures.values(results, metric, pooling),
        title=f"{metric.name}.",
        caption=_score_marks(results, metric, pooling),
    )


def _told(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


def _band(results: Results) -> str:
    return f"Shaded: too small to matter (±{tables.effect(results)})."


def _score_marks(results: Results, metric: Metric, pooling: Pooling) -> str:
    key = (metric.key, pooling)
    found = [
        (loss.scores[key], loss.per_seed.get(key, ()))
        for loss in results.losses
        if key in loss.scores
    ]
    return text.marks(results, found)


def _difference_marks(results: Results, metric: Metric, pooling: Pooling) -> str:
    found = [loss.comparisons.get((metric.key, pooling)) for loss in results.losses]
    return text.marks(results, [(one.difference, one.by_seed) for one in found if one])


def _trades(results: Results) -> Section | None:
    items = tuple(Item(text=sentence) for sentence in results.answer.trades)
    if not items:
        return None
    return Section(title="What each loss buys", anchor="trades", items=items)


def _choice(metric: Metric, pooling: Pooling) -> Choice:
    how = tables.POOLING_WORDS[pooling]
    return Choice(metric=metric.key, metric_name=metric.name, pooling=pooling, pooling_name=how)


def _scores(results: Results) -> Section:
    panels = tuple(_panel(results, *one) for one in tables.measured(results))
    return Section(
        title="The scores",
        name="Scores",
        anchor="scores",
        text=() if panels else ("No trial has finished, so there is no score.",),
        items=tuple(
            Item(
                loss=i,
                named=True,
                text="" if loss.seeds else "no finished trial",
                notes=tuple(filter(None, (_stands(loss), loss.reason, *loss.notes))),
            )
            for i, loss in enumerate(results.losses)
        ),
        parts=panels,
    )


def _stands(loss: LossResults) -> str:
    """Where a loss stands; that of the one to take is its mark and the first sentence of all."""
    return "" if loss.standing.standing == "recommended" else loss.standing.words


def _panel(results: Results, metric: Metric, pooling: Pooling) -> Section:
    asked = (results, metric, pooling)
    how, main = tables.POOLING_WORDS[pooling], tables.is_main(*asked)
    # What the first screen shows is not drawn again.
    on_top = main and figures.standings(results) is not None
    score = None if main and not on_top else figures.values(*asked)
    apart = None if main else figures.differences(*asked)
    band = _band(results) if metric is results.metrics[0] else ""
    return Section(
        title=f"{metric.name}, {how}",
        choice=_choice(metric, pooling),
        text=(f"{text.better(metric)} {how.capitalize()}: {tables.POOLING_MEANING[pooling]}.",),
        about_figures="The differences are drawn at the top of the page." if on_top else "",
        figures=(
            *drawn(score, "Score.", _score_marks(*asked)),
            *drawn(
                apart,
                f"Difference from {letter(results.answer.loss)}.",
                _told(_difference_marks(*asked), "Hollow: not clear.", band),
            ),
        ),
        tables=(tables.comparison(*asked),),
    )


def _all_metrics(results: Results) -> Section:
    found = [
        (pooling, table)
        for pooling in tables.POOLINGS
        if (table := tables.scores(results, pooling)) is not None
    ]
    # Those of the answer first; the others are a part of their own.
    found.sort(key=lambda one: one[0] != results.pooling)
    shown = {column for _, table in found[:1] for column in table.columns}
    note = (tables.scores_note(results),)
    return Section(
        title="All losses, all metrics",
        name="All metrics",
        anchor="all",
        text=() if found else ("Nothing was measured.",),
        hint="Click the name of a column to sort by it." if found else "",
        tables=tuple(replace(table, notes=note) for _, table in found[:1]),
        parts=tuple(
            Section(
                title=f"All metrics, {tables.POOLING_WORDS[pooling]}",
                tables=(table,),
                page_only=shown.issuperset(table.columns),
            )
            for pooling, table in found[1:]
        ),
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
        page_only=True,
    )


def _rates(results: Results) -> Section | None:
    table = tables.rates(results)
    if table is None:
        return None
    return Section(
        title="Learning rates",
        anchor="rates",
        figures=drawn(
            figures.learning_rates(results),
            f"Validation {results.score_name} by learning rate{tables.searched_on(results)}.",
            "Filled: chosen.",
        ),
        tables=(table,),
        page_only=True,
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
        items=text.method(results),
        parts=(
            Section(title="The data", items=data),
            Section(title="The metrics", items=metrics, page_only=True),
        ),
    )


def _repeat(results: Results) -> Section:
    found = (
        ("What all trials had in common", ("Setting", "Value", results.settings)),
        ("Versions", ("Name", "Version", results.versions)),
    )
    return Section(
        title="To repeat it",
        anchor="repeat",
        code=results.commands,
        parts=tuple(
            Section(title=title, tables=(table,), page_only=True)
            for title, pairs in found
            if (table := tables.pairs(title, *pairs)) is not None
        ),
    )
