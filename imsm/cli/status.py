"""`imsm status`: the state of all runs in the folder of runs.

States: running, finished, failed, trained (not evaluated yet), interrupted (has a checkpoint), incomplete. The command
of a run that is not finished resumes it.
"""

import argparse
from dataclasses import asdict

from imsm.cli.common import print_json
from imsm.utils.paths import runs_root


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(prog="imsm status", description="Show the state of all runs.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def main(arguments: list[str]) -> None:
    """Print the runs, the last changed one at the end, and the errors and commands of failed ones."""
    options = parser().parse_args(arguments)
    from rich.console import Console

    from imsm.pipeline.runs_overview import run_states
    from imsm.reporting.render.table import Table, print_notes, print_table
    from imsm.utils.control_characters import escape_controls

    states = run_states(runs_root())
    if options.json:
        print_json([asdict(state) for state in states])
        return
    columns = ["state", "run", "stream", "target", "seed", "step", "changed"]
    rows = [
        [each.state, each.name, *(("" if value is None else str(value)) for value in cells), (each.changed or "")[:16]]
        for each in states
        for cells in [(each.stream, each.target, each.seed, each.step)]
    ]
    console = Console()
    print_table(
        Table(columns=columns, rows=rows, text_columns=4, caption=f"{len(states)} runs in {runs_root()}"), console
    )
    failed = [(each.error, each.command) for each in states if each.state == "failed"]
    lines = [line for error, command in failed for line in (f"failed: {error}", f"  run again: {command}")]
    print_notes([escape_controls(line) for line in lines if not line.endswith(": None")], console, wrap=False)
