"""The report card of a run: this arm, the original, and runs that differ in nothing but the method.

Scores are in points; differences are to the original (what was learned or forgotten) and to PEFT.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imsm.reporting.score_table import CostRow, ScoreRow, ScoreTable, compare
from imsm.utils.formatting import format_bytes, format_duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from imsm.reporting.sections.base import Section

_COST_NAMES = ("arm", "adapter", "gate", "training", "tokens/s", "memory", "answering", "tokens/s")


def render_terminal(
    results: Sequence[Mapping[str, Any]],
    *,
    sections: Sequence[Section] = (),
    told: Sequence[str] = (),
    console: Console | None = None,
) -> None:
    """Print the card; the last result is the run that it is about.

    Of the further parts those with brief columns are shown; the report has all. ``told`` stands
    among the notes.
    """
    from rich.console import Console as RichConsole
    from rich.markup import escape

    console = console or RichConsole()
    card = compare(results)
    console.print()
    console.print(f"[bold]{title_of(card)}[/bold]", highlight=False)
    console.print(_score_table(card))
    for note in (*card.notes, *told):
        console.print(note, style="dim", highlight=False, markup=False)
    for section in sections:
        if section.terminal_columns and section.table is not None:
            console.print(f"[bold]{section.title}[/bold]")
            table = plain_table(section.terminal_columns, text=section.first_numeric_column)
            for cells in section.table[section.terminal_columns].astype(str).to_numpy():
                table.add_row(*map(escape, cells))
            console.print(table)
    console.print(_cost_table(card))


def render_markdown(
    results: Sequence[Mapping[str, Any]], *, sections: Sequence[Section] = (), told: Sequence[str] = ()
) -> str:
    """The card as Markdown, with every metric and on what the numbers rest.

    Args:
        results: the last one is the run that it is about.
        sections: further parts; their pictures lie in `figures/` beside the text.
        told: what else stands among the notes.
    """
    card = compare(results)
    focus = card.focus
    names = ["task", "metric", "items", *card.arms, *_difference_names(card)]
    lines = [f"# {focus['name']}", "", title_of(card) + ". Scores are in points.", ""]
    lines += markdown_table(names, (_wide_cells(card, row) for row in card.headlines), text=2)
    lines += [line for note in (*card.notes, *told) for line in ("", note)]
    for section in sections:
        lines += _section_lines(section)
    lines += ["", "## All metrics", ""]
    lines += markdown_table(names, (_wide_cells(card, row) for row in card.all_metrics), text=2)
    lines += ["", "## Answers", ""]
    lines += markdown_table(["arm", "task", "items", "unparsed", "cut off"], _answer_cells(card, results), text=2)
    lines += ["", "## Cost", ""]
    lines += markdown_table(_COST_NAMES, (_cost_cells(cost) for cost in card.costs), text=1)
    rests = [f"- {line}" for line in provenance_of(focus)]
    lines += ["", "## On what this rests", "", *rests, ""]
    return "\n".join(lines)


def _section_lines(section: Section) -> list[str]:
    lines = ["", f"## {section.title}"]
    for line in section.lines:
        lines += ["", line]
    if section.table is not None:
        align = ["left" if n < section.first_numeric_column else "right" for n in range(section.table.shape[1])]
        table = section.table.map(lambda cell: str(cell).replace("|", r"\|"))
        lines += ["", table.to_markdown(index=False, disable_numparse=True, colalign=align)]
    for picture in section.pictures:
        lines += ["", f"![{picture.alt}](figures/{picture.name}.png)"]
    return lines


def title_of(card: ScoreTable) -> str:
    """Backbone, method, target, recipe and seed of the run that a card is about."""
    config = card.focus["config"]
    parts = [config["backbone"]["name"]]
    if len(card.arms) > 1:
        parts += [config["peft"]["name"], f"trained on {config['data']['name']}"]
        parts += [f"trainer {config['trainer']['name']}", f"seed {config['seed']}"]
    else:
        parts.append("as it is")
    return " · ".join(parts)


# --------------------------------------------------------------------- terminal


def _score_table(card: ScoreTable) -> Table:
    from rich.markup import escape  # a list in an arm's name is no markup

    to_original, to_peft = bool(card.to_original), bool(card.to_peft)
    names = ["task", "metric", "arm", "points"]
    names += ["to original"] * to_original + ["to PEFT"] * to_peft
    table = plain_table(names, text=3)
    for row in card.headlines:
        items = f"{row.items} items" if row.items else ""
        heads = [(_task_name(row), row.metric), ("", items)]
        if len(row.scores) == 1 and items:
            heads = [(_task_name(row), f"{row.metric}, {items}")]
        for number, score in enumerate(row.scores):
            differences = [_signed(score.to_original)] * to_original
            differences += [_signed(score.to_peft)] * to_peft
            table.add_row(
                *(heads[number] if number < len(heads) else ("", "")),
                escape(score.arm),
                points(score.value),
                *differences,
                end_section=number == len(row.scores) - 1,
                style="bold" if row.role == "average" else None,
            )
    return table


def _cost_table(card: ScoreTable) -> Table:
    from rich.markup import escape

    table = plain_table(_COST_NAMES, text=1)
    for cost in card.costs:
        table.add_row(*map(escape, _cost_cells(cost)))
    return table


def plain_table(names: Sequence[str], *, text: int) -> Table:
    """An empty table; the first ``text`` columns are texts, the others numbers."""
    from rich import box
    from rich.table import Table as RichTable

    table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(names):
        table.add_column(name, justify="left" if number < text else "right", no_wrap=number > 0)
    return table


# --------------------------------------------------------------------- Markdown


def _difference_names(card: ScoreTable) -> list[str]:
    to_original = [f"{card.arms[arm]} − original" for arm in card.to_original]
    return to_original + [f"{card.arms[arm]} − PEFT" for arm in card.to_peft]


def _wide_cells(card: ScoreTable, row: ScoreRow) -> list[str]:
    values = [points(score.value) for score in row.scores]
    differences = [row.scores[arm].to_original for arm in card.to_original]
    differences += [row.scores[arm].to_peft for arm in card.to_peft]
    items = "" if row.items is None else str(row.items)
    return [_task_name(row), row.metric, items, *values, *(_signed(d) or "–" for d in differences)]


def _answer_cells(card: ScoreTable, results: Sequence[Mapping[str, Any]]) -> Iterable[list[str]]:
    for arm, result in zip(card.arms, results, strict=True):
        for task, entry in result["evaluation"]["tasks"].items():
            counts = (entry["num_examples"], entry["unparsed"], entry["truncated"])
            yield [arm, task, *map(str, counts)]


def markdown_table(names: Sequence[str], rows: Iterable[Sequence[str]], *, text: int) -> list[str]:
    """A Markdown table; the first ``text`` columns are texts, the others numbers."""
    marks = ["---" if number < text else "---:" for number in range(len(names))]
    return [f"| {' | '.join(cells)} |" for cells in (names, marks, *rows)]


def provenance_of(result: Mapping[str, Any]) -> list[str]:
    """Versions, commit and fingerprints, a line each."""
    git = result["git"]
    lines = [f"{name} {version}" for name, version in result["versions"].items()]
    if git is not None:
        changed = ", with changes that are not committed" if git["dirty"] else ""
        lines.append(f"commit {git['commit']}{changed}")
    lines += [f"{name} {value}" for name, value in result["fingerprints"].items()]
    return lines


# ----------------------------------------------------------------------- values


def _task_name(row: ScoreRow) -> str:
    target = " (target)" if row.role == "target" else ""
    return f"{row.task}{target}{' †' if row.marked else ''}"


def points(value: float | None) -> str:
    """A score as it is shown."""
    return "–" if value is None else f"{value:.1f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}".replace("-", "−")


def _cost_cells(cost: CostRow) -> list[str]:
    return [
        cost.arm,
        f"{cost.adapter:,}",
        f"{cost.gate:,}",
        format_duration(cost.training_seconds),
        _rate(cost.training_rate),
        format_bytes(cost.peak_memory_bytes),
        format_duration(cost.judging_seconds),
        _rate(cost.judging_rate),
    ]


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
