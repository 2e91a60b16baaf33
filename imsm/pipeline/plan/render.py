"""A plan as text: a page for one run, a block for a member of a sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from imsm.pipeline.plan.types import MemoryItem, Plan, total
from imsm.utils.formatting import format_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PIPED_WIDTH = 120
_CAUTION = (
    "Estimates leave out the working space of single operations. Measured on a CPU, activations "
    "and logits took 1.2 (16 layers) to 1.6 times as much (2 layers)."
)


def show_page(plan: Plan, *, trainable: str | None, console: Console | None = None) -> None:
    """Print all that a plan says.

    Args:
        plan: the plan.
        trainable: the line of its trainable parameters; None: not known.
        console: where to; by default standard output.
    """
    console = console or _console()
    _line(console, f"[bold]plan of {plan.name}[/bold]")
    _line(console, "nothing is loaded, fetched or written", style="dim")
    console.print()
    console.print(_settings(plan))
    console.print()
    _line(console, trainable or "trainable parameters: not known")
    for note in plan.notes:
        _line(console, escape(note), style="dim")
    for title, parts in plan.memory.items():
        console.print()
        _line(console, f"[bold]{title}[/bold]")
        console.print(_memory(parts, together=_at_once(title)))
    if plan.memory:
        _line(console, _CAUTION, style="dim")
    console.print()
    console.print(_rest(plan))
    if plan.start:
        console.print()
        _line(console, "[bold]start[/bold]")
    for line in plan.start:
        _line(console, escape(line))


def show_block(plan: Plan, *, trainable: str | None, console: Console | None = None) -> None:
    """Print what differs between the members of a sweep, in a few lines; as of `show_page`."""
    console = console or _console()
    _line(console, f"[bold]{plan.name}[/bold]")
    _line(console, f"  {trainable or 'trainable parameters: not known'}")
    for title, parts in plan.memory.items():
        if _at_once(title):
            _line(console, f"  {title}: {_about(total(parts))}")
    _line(console, f"  steps: {plan.steps}")
    for note in plan.notes:
        _line(console, f"  {escape(note)}", style="dim")
    _line(console, f"  to download: {'; '.join(_downloads(plan)) or 'nothing'}")


def _settings(plan: Plan) -> Table:
    table = _table()
    for group, values in plan.settings.items():
        table.add_row(group, escape(values))
    return table


def _memory(parts: list[MemoryItem], *, together: bool) -> Table:
    table = _table(numbers=True)
    for part in parts:
        size = "not known" if part.size is None else format_bytes(part.size)
        table.add_row(part.name, size, f"{'exact' if part.exact else 'estimate'}: {part.how}")
    if together:
        table.add_row("together", _about(total(parts)), "")
    return table


def _at_once(title: str) -> bool:
    return title.startswith("memory")


def _rest(plan: Plan) -> Table:
    table = _table()
    table.add_row("steps", plan.steps)
    table.add_row("items", plan.items)
    table.add_row("to download", "\n".join(_downloads(plan)) or "nothing")
    here = [f"{each.what}: {each.here}" for each in plan.needed if each.here]
    if here:
        table.add_row("here already", "\n".join(here))
    return table


def _downloads(plan: Plan) -> list[str]:
    return [
        each.what if each.gigabytes is None else f"{each.what}, about {format_bytes(1e9 * each.gigabytes)}"
        for each in plan.needed
        if each.here is None
    ]


def _about(size: int | None) -> str:
    return "not known" if size is None else f"about {format_bytes(size)}"


def _table(*, numbers: bool = False) -> Table:
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    if numbers:
        table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _line(console: Console, text: str, *, style: str = "") -> None:
    """A line that is never broken: it may be read by a program."""
    console.print(text, style=style, highlight=False, soft_wrap=True)


def _console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_PIPED_WIDTH)
