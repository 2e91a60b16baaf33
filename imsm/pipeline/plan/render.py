"""Print a plan: a page for one run, a block for a job of a sweep."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from imsm.pipeline.plan.types import MemoryItem, Plan, total
from imsm.utils.control_characters import escape_controls
from imsm.utils.formatting import format_bytes

_PIPED_WIDTH = 120
_ACCURACY = (
    "Estimates do not include the workspace of single operations. On a CPU, activations and logits were measured "
    "to take 1.2 (16 layers) to 1.6 times (2 layers) the estimate."
)


def show_page(plan: Plan, *, trainable: str | None, console: Console | None = None) -> None:
    """Print a complete plan; ``trainable`` is the line with its parameters, None if unknown."""
    console = console or _console()
    _line(console, f"plan of {plan.name}", style="bold")
    _line(console, "nothing is loaded, downloaded or written", style="dim")
    console.print()
    console.print(_table(plan.settings))
    console.print()
    _line(console, trainable or "trainable parameters: unknown")
    for note in plan.notes:
        _line(console, note, style="dim")
    for title, items in plan.memory.items():
        console.print()
        _line(console, title, style="bold")
        console.print(_memory_table(items, with_total=_is_device_memory(title)))
    if plan.memory:
        _line(console, _ACCURACY, style="dim")
    console.print()
    available = "\n".join(f"{item.name}: {item.location}" for item in plan.downloads if item.location)
    rows = {"steps": plan.steps, "examples": plan.evaluation, "time": plan.time}
    rows |= {"in a sweep": plan.placement} if plan.placement is not None else {}
    rows |= {"to download": "\n".join(_missing(plan)) or "nothing"}
    console.print(_table(rows | ({"available": available} if available else {})))
    if plan.start:
        console.print()
        _line(console, "start", style="bold")
    for line in plan.start:
        _line(console, line)


def show_block(plan: Plan, *, trainable: str | None, console: Console | None = None) -> None:
    """Print the numbers that differ between the jobs of a sweep; see `show_page`."""
    console = console or _console()
    _line(console, plan.name, style="bold")
    _line(console, f"  {trainable or 'trainable parameters: unknown'}")
    for title, items in plan.memory.items():
        if _is_device_memory(title):
            _line(console, f"  {title}: {_format_total(items)}")
    _line(console, f"  steps: {plan.steps}")
    _line(console, f"  time: {plan.time}")
    if plan.placement is not None:
        _line(console, f"  in a sweep: {plan.placement}")
    for note in plan.notes:
        _line(console, f"  {note}", style="dim")
    _line(console, f"  to download: {'; '.join(_missing(plan)) or 'nothing'}")


def _memory_table(items: list[MemoryItem], *, with_total: bool) -> Table:
    table = _table({}, numbers=True)
    for item in items:
        size = "unknown" if item.size is None else format_bytes(item.size)
        table.add_row(item.name, size, Text(f"{'exact' if item.exact else 'estimate'}: {item.basis}"))
    if with_total:
        table.add_row("total", _format_total(items), "")
    return table


def _is_device_memory(title: str) -> bool:
    return title.startswith("memory")


def _missing(plan: Plan) -> list[str]:
    """Return the items to download, with their sizes."""
    return [
        item.name if item.size is None else f"{item.name}, about {format_bytes(item.size)}"
        for item in plan.downloads
        if item.location is None
    ]


def _format_total(items: list[MemoryItem]) -> str:
    size = total(items)
    return "unknown" if size is None else f"about {format_bytes(size)}"


def _table(rows: Mapping[str, str], *, numbers: bool = False) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    if numbers:
        table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(name, Text(escape_controls(text)))
    return table


def _line(console: Console, text: str, *, style: str = "") -> None:
    """Print a line without wrapping, so that programs can parse it; brackets in names are not markup."""
    console.print(escape_controls(text), style=style, highlight=False, soft_wrap=True, markup=False)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_PIPED_WIDTH)
