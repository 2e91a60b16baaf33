"""What every arm of finished runs answered, item by item: `imsm predictions RUN [RUN ...]`.

Shows a row for each arm and task: the original, the run itself and the controls that were judged on
it; with `--seeds` their means. `--output FILE` writes that table, with `--each` every single item.
Nothing is asked and no model is loaded. Exit codes: 0 all went well, 2 the input was wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsm.utils.errors import UserError

if TYPE_CHECKING:
    import pandas

_KINDS = {".csv": "CSV", ".md": "Markdown", ".jsonl": "JSON lines"}


def main(argv: list[str] | None = None) -> int:
    """Print the table, and write what is asked for."""
    parser = argparse.ArgumentParser(prog="imsm predictions", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or its name under the runs' root")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"a file of {', '.join(_KINDS)}")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--each", action="store_true", help="write every item, not the summary")
    rows.add_argument("--seeds", action="store_true", help="means over runs that differ in the seed alone")
    options = parser.parse_args(argv)
    try:
        _show(options.runs, output=options.output, each=options.each, seeds=options.seeds)
    except UserError as error:
        print(f"imsm: {error}", file=sys.stderr)
        return 2
    return 0


def _show(runs: list[str], *, output: Path | None, each: bool, seeds: bool) -> None:
    if output is not None and output.suffix not in _KINDS:
        raise UserError(f"--output {output}: must end in {', '.join(_KINDS)}")
    if each and output is None:
        raise UserError("--each: every item is written, not shown; add --output FILE")
    if each and output is not None and output.suffix == ".md":
        raise UserError(f"--output {output}: every item goes into .csv or .jsonl, texts have lines")
    from imsm.reporting.prediction_table import average_over_seeds, item_table, summary
    from imsm.utils.paths import resolve_run_dir

    items = item_table([resolve_run_dir(run) for run in runs])
    short = summary(items)
    if seeds:
        short = average_over_seeds(short)
    if output is None:
        _print(short)
        return
    table = items if each else short
    _write(output, table)
    print(f"{output}: {len(table):,} rows")


def _print(table: pandas.DataFrame) -> None:
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    shown = Table(box=None, padding=(0, 2, 0, 0))
    for name in table.columns:
        numbers = table[name].dtype.kind in "if" and name != "seed"
        shown.add_column(name, justify="right" if numbers else "left", no_wrap=True)
    for row in _readable(table).itertuples(index=False):
        shown.add_row(*row)
    console = Console(markup=False, highlight=False)
    # a terminal breaks longer lines; rich would leave columns out
    wide = console.options.update(max_width=10_000)
    console.width = max(console.width, Measurement.get(console, wide, shown).maximum)
    console.print(shown)


def _readable(table: pandas.DataFrame) -> pandas.DataFrame:
    """Numbers with the places that they deserve, and nothing where there is none."""
    import pandas

    places = {name: 1 for name in ("score", "lowest", "highest", "tokens", "unparsed", "truncated")}
    places |= {"reference_loglik": 2, "gate_mean": 3}

    def cell(name: str, value: Any) -> str:
        if pandas.isna(value):
            return ""
        rounded = name in places and not isinstance(value, int)
        return f"{value:.{places[name]}f}" if rounded else str(value)

    return table.apply(lambda column: [cell(str(column.name), value) for value in column])


def _write(path: Path, table: pandas.DataFrame) -> None:
    from imsm.utils.files import write_atomic

    texts = {
        ".csv": lambda: table.to_csv(index=False, float_format="%.6g"),
        ".md": lambda: _readable(table).to_markdown(index=False, disable_numparse=True) + "\n",
        ".jsonl": lambda: table.to_json(orient="records", lines=True, force_ascii=False),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, texts[path.suffix]())
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written ({error})") from error


if __name__ == "__main__":
    sys.exit(main())
