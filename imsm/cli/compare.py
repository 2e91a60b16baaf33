"""`imsm compare OVERRIDES`: show the runs of a sweep in one table.

The overrides are those of `imsm run -m`. Runs that differ only in the seed share a row: the mean with its
95 % interval over seeds; `--each-seed` gives each its own row. Results are read, nothing is run: a missing or
failed run is shown with its command. For a search (`sweep=optuna`), the trials of its latest start are shown.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imsm.cli.common import add_config_dir, import_from_config_dir, print_json, write_output
from imsm.pipeline.sweeps.status import job_command, latest_attempt, sweep_dir
from imsm.utils.errors import UserError
from imsm.utils.paths import runs_root

if TYPE_CHECKING:
    from imsm.config.compose import ConfigComposer
    from imsm.reporting.sweep_table import SweepRun


def parser(words: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Return the parser of the command; ``words`` for completion."""
    parser = argparse.ArgumentParser(prog="imsm compare", description="Show the runs of a sweep in one table.")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", choices=words, help="those of `imsm run -m`")
    parser.add_argument("--each-seed", action="store_true", help="one row per seed instead of the mean over seeds")
    parser.add_argument(
        "--json", action="store_true", help="print every run with its scores as JSON instead of a table"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the table as Markdown")
    add_config_dir(parser)
    return parser


def main(arguments: list[str]) -> None:
    """Print the table.

    Raises:
        UserError: the overrides are wrong, or the search was never started.
    """
    options = parser().parse_intermixed_args(arguments)
    from imsm.config.compose import ConfigComposer
    from imsm.reporting.sweep_table import as_json, render_markdown, render_terminal, sweep_tables
    from imsm.utils.messages import format_errors

    composer = ConfigComposer(import_from_config_dir(options.config_dir))
    errors = composer.validate(options.overrides, sweep=True)
    if errors:
        raise UserError(format_errors(errors))
    runs: dict[str, SweepRun] = {}
    for overrides in _job_overrides(composer, options.overrides):
        key, run = _sweep_run(composer, overrides)
        # the first row of equal runs is kept, e.g. the original for several values of gate.rank
        runs.setdefault(key, run)
    if options.json:
        print_json([as_json(run) for run in runs.values()])
        return
    tables = sweep_tables(list(runs.values()), each_seed=options.each_seed)
    render_terminal(tables)
    if options.output is not None:
        write_output(options.output, render_markdown(tables))


def _job_overrides(composer: ConfigComposer, overrides: list[str]) -> Sequence[Sequence[str]]:
    spec = composer.sweep_spec(overrides, sweep=True)
    if not spec.searches:
        return spec.jobs
    folder = sweep_dir(runs_root(), name=spec.name, overrides=spec.overrides, config_dir=composer.config_dir)
    attempt = latest_attempt(folder)
    trials = [] if attempt is None else [outcome.overrides for outcome in attempt.read_statuses().values()]
    if not trials:
        raise UserError(
            f"{' '.join(overrides)}: this search has no trials yet; start it with imsm run -m and the same overrides"
        )
    return trials


def _sweep_run(composer: ConfigComposer, overrides: Sequence[str]) -> tuple[str, SweepRun]:
    """Return a run's row of the table, and a key that equal runs share."""
    from imsm.config.identity import run_name
    from imsm.config.stages import final_stage
    from imsm.config.validate import load_config
    from imsm.evaluation.result import FILE
    from imsm.pipeline.run_status import read_failure, read_result_of, run_dir_of
    from imsm.reporting.report_data import baselines_as_good
    from imsm.reporting.sweep_table import SweepRun

    config = load_config(composer.compose(overrides), config_dir=composer.config_dir)
    name = run_name(final_stage(config))
    folder = run_dir_of(config, runs_root=runs_root())
    failure = read_failure(folder)
    try:
        result = read_result_of(config, folder)
    except UserError as error:
        result = None
        # a damaged result is shown like a failed run, a missing one as not run
        if os.path.lexists(folder / FILE):
            failure = {"error": str(error)}
    values = {key: value for key, _, value in (text.partition("=") for text in overrides)}
    # the original model is one run for all targets, but has a row in each target's table
    key = name if config.method.trainable else f"{name}/{config.data.name}"
    return key, SweepRun(
        swept={**values, "method": config.method.name},
        target=config.data.name,
        about={
            "backbone": config.backbone.name,
            "trainer": f"trainer {config.trainer.name}",
            "seed": f"seed {config.seed}",
        },
        command=job_command(overrides, config_dir=composer.config_dir),
        result=result,
        failure=None if failure is None else failure["error"],
        matched_by=(result and baselines_as_good(folder, result, runs_root=runs_root())) or (),
    )
