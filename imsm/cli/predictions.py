"""`imsm predictions RUN ...`: export the predictions of finished runs.

By default one row per method and task is printed; `--seeds` averages over seeds, `--output FILE`
writes the table, `--full` writes every prediction, and `--by-example` writes the prompt, the accepted
answers and the responses of all runs in one row per example. No model is loaded.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from imsm.cli.common import print_json, write_output
from imsm.utils.errors import UserError
from imsm.utils.paths import resolve_run_dir

if TYPE_CHECKING:
    import pandas

_FORMATS = (".csv", ".md", ".jsonl")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="imsm predictions",
        description="Export the predictions of finished runs: the original, the run, and its baselines.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder or name of a finished run")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"write the table; ends in {', '.join(_FORMATS)}")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON, also those of --full")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--full", action="store_true", help="write every prediction instead of the summary")
    rows.add_argument("--by-example", action="store_true", help="write one row per example, with columns per run")
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
    if options.json and output is not None:
        raise UserError(f"--output {output}: is written instead of printed; omit --json, or use a .jsonl file")
    if (options.full or options.by_example) and not options.json:
        option = "--full" if options.full else "--by-example"
        if output is None:
            raise UserError(f"{option}: predictions are written, not printed; add --output FILE")
        if output.suffix == ".md":
            raise UserError(
                f"--output {output}: must end in .csv or .jsonl with {option}; predictions have line breaks"
            )
    from rich.console import Console

    from imsm.reporting.prediction_table import (
        as_table,
        average_over_seeds,
        compare_by_example,
        prediction_table,
        summarize_predictions,
    )
    from imsm.reporting.render.table import print_table

    table = prediction_table([resolve_run_dir(run) for run in options.runs])
    if options.by_example:
        table = compare_by_example(table)
    elif not options.full:
        table = average_over_seeds(table) if options.seeds else summarize_predictions(table)
    if options.json:
        print_json(json.loads(table.to_json(orient="records")))
        return
    if output is None:
        print_table(as_table(table), Console())
        return
    write_output(output, _format(table, output.suffix))
    print(f"{output}: {len(table):,} rows")


def _format(table: pandas.DataFrame, suffix: str) -> str:
    from imsm.reporting.prediction_table import as_table
    from imsm.reporting.render.escaping import csv_cell

    if suffix == ".csv":
        safe = table.map(lambda value: csv_cell(value) if isinstance(value, str) else value)
        text = safe.rename(columns=csv_cell).to_csv(index=False, float_format="%.6g")
    elif suffix == ".md":
        text = as_table(table).to_markdown() + "\n"
    else:
        text = table.to_json(orient="records", lines=True, force_ascii=False)
    return str(text)
