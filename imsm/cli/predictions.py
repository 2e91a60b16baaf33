"""`imsm predictions RUN ...`: export the predictions of finished runs.

By default one row per method and task is printed; `--seeds` averages over seeds, `--output FILE`
writes the table, and `--full` writes every prediction. No model is loaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsm.cli.common import write_output
from imsm.utils.errors import UserError
from imsm.utils.paths import resolve_run_dir

if TYPE_CHECKING:
    import pandas

_FORMATS = (".csv", ".md", ".jsonl")
_DIGITS = {name: 1 for name in ("score", "lowest", "highest", "tokens", "unparsed", "truncated")}
_DIGITS |= {"gold_loglik": 2, "gate_mean": 3}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="imsm predictions",
        description="Export the predictions of finished runs: the original, the run, and its baselines.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder or name of a finished run")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"write the table; ends in {', '.join(_FORMATS)}")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--full", action="store_true", help="write every prediction instead of the summary")
    rows.add_argument("--seeds", action="store_true", help="average over runs that differ only in the seed")
    return parser


def main(arguments: list[str]) -> None:
    """Print or write the table.

    Raises:
        UserError: a run is not finished, or the output is not possible.
    """
    options = parser().parse_args(arguments)
    output = options.output
    if output is not None and output.suffix not in _FORMATS:
        raise UserError(f"--output {output}: must end in {', '.join(_FORMATS)}")
    if options.full and output is None:
        raise UserError("--full: predictions are written, not printed; add --output FILE")
    if options.full and output.suffix == ".md":
        raise UserError(f"--output {output}: must end in .csv or .jsonl with --full; predictions have line breaks")
    from imsm.reporting.prediction_table import average_over_seeds, prediction_table, summarize_predictions

    table = prediction_table([resolve_run_dir(run) for run in options.runs])
    if not options.full:
        table = summarize_predictions(table)
    if options.seeds:
        table = average_over_seeds(table)
    if output is None:
        _print(table)
        return
    write_output(output, _format(table, output.suffix))
    print(f"{output}: {len(table):,} rows")


def _print(table: pandas.DataFrame) -> None:
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    rich_table = Table(box=None, padding=(0, 2, 0, 0))
    for name in table.columns:
        numeric = table[name].dtype.kind in "if" and name != "seed"
        rich_table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in _texts(table).itertuples(index=False):
        rich_table.add_row(*row)
    console = Console(markup=False, highlight=False)
    # a terminal wraps longer lines, but rich would omit columns
    wide = console.options.update(max_width=10_000)
    console.width = max(console.width, Measurement.get(console, wide, rich_table).maximum)
    console.print(rich_table)


def _texts(table: pandas.DataFrame) -> pandas.DataFrame:
    """Format the cells; a missing value is an empty text."""
    import pandas

    def cell(name: str, value: Any) -> str:
        if pandas.isna(value):
            return ""
        rounded = name in _DIGITS and not isinstance(value, int)
        return f"{value:.{_DIGITS[name]}f}" if rounded else str(value)

    return table.apply(lambda column: [cell(str(column.name), value) for value in column])


def _format(table: pandas.DataFrame, suffix: str) -> str:
    if suffix == ".csv":
        text = table.to_csv(index=False, float_format="%.6g")
    elif suffix == ".md":
        text = _texts(table).to_markdown(index=False, disable_numparse=True) + "\n"
    else:
        text = table.to_json(orient="records", lines=True, force_ascii=False)
    return str(text)
