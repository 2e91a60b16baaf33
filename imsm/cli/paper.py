"""`imsm paper run|show|status [TABLE ...]`: the paper's tables and figures.

`run` runs what is missing and then shows the tables, `show` shows them from the finished runs, and
`status` lists the runs that are done, missing or failed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsm.studies.paper.spec import SCALES, PaperTable, list_tables, load_table
from imsm.utils.errors import RunError, UserError
from imsm.utils.paths import runs_root

if TYPE_CHECKING:
    from imsm.studies.paper.runs import RunIndex, RunRef


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(prog="imsm paper", description="The paper's tables and figures.")
    parser.add_argument("action", choices=("run", "show", "status"))
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="e.g. table6 figure3; default: all")
    parser.add_argument("--scale", choices=SCALES, default="mini", help="bundled tiny model, or the paper's models")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 to N-1 (1)")
    parser.add_argument("--protocol", choices=("strict", "paper_code"), default="strict")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once (1, or one per GPU; 1: on all GPUs)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder for the results (experiments/)")
    return parser


def main(arguments: list[str]) -> None:
    """Run, show or list the tables.

    Raises:
        UserError: no such table, or a run is invalid.
        RunError: a run failed.
    """
    options = parser().parse_args(arguments)
    if options.seeds < 1 or (options.jobs is not None and options.jobs < 1):
        raise UserError(f"--seeds {options.seeds} --jobs {options.jobs}: both must be at least 1")
    tables = [load_table(name) for name in options.tables or list_tables()]
    from imsm.config.compose import ConfigComposer
    from imsm.studies.paper.runs import RunIndex

    runs = RunIndex(ConfigComposer(), runs_root=runs_root())
    failed = _run(options, tables, runs) if options.action == "run" else []
    if options.action == "status":
        _print_status(options, tables, runs)
    else:
        _show(options, tables, runs)
    if failed:
        raise RunError(f"{len(failed)} runs failed ({', '.join(failed)}); their logs are in {runs_root() / 'logs'}")


def _run(options: argparse.Namespace, tables: Sequence[PaperTable], runs: RunIndex) -> list[str]:
    """Run what is missing and return the names of the runs that failed."""
    from imsm.distributed.gpus import free_gpu_names, gpu_names
    from imsm.pipeline.plan.placement import gpus_of_run
    from imsm.studies.paper.runs import required_runs, run_missing, validate_runs
    from imsm.studies.paper.speed import measure_speed, read_speed, write_speed

    for table in tables:
        # all tables first, so that no run starts if a later table is invalid
        validate_runs(table, runs, scale=options.scale)
    # one run at a time on the user's request, and runs on the only GPU, see what they would see alone
    gpus = [] if options.jobs == 1 or len(gpu_names()) < 2 else free_gpu_names()
    placement: dict[str, Any] = {
        "jobs": options.jobs or max(1, len(gpus)),
        "gpus": gpus,
        "gpus_of": lambda run: gpus_of_run(runs.config(run.overrides), gpus=len(gpus)),
    }
    failed: list[str] = []
    started = time.monotonic()
    for table in tables:
        log = partial(print, f"{table.name}:", flush=True)
        folder = _folder(options, table)
        if table.spec.kind == "speed":
            if read_speed(folder) is None:
                write_speed(measure_speed(table, runs, scale=options.scale, log=log), folder)
            continue
        required = required_runs(table, runs, scale=options.scale, seeds=options.seeds)
        _print_time(required, runs, gpus=len(gpus), log=log)
        failed += run_missing(required, log_dir=runs_root() / "logs", log=log, **placement)
        # tables share runs: those of this table are not started again for the next one
        runs.refresh()
    print(f"runs: {time.monotonic() - started:.0f} s")
    return failed


def _print_time(required: Sequence[RunRef], runs: RunIndex, *, gpus: int, log: Callable[[str], None]) -> None:
    """Print how long the missing runs take on several GPUs."""
    from imsm.pipeline.plan.placement import sweep_time

    missing = [runs.config(run.overrides) for run in required if run.state != "done"]
    text = sweep_time(missing, gpus=gpus) if gpus and missing else None
    if text is not None:
        log(text)


def _show(options: argparse.Namespace, tables: Sequence[PaperTable], runs: RunIndex) -> None:
    from imsm.studies.paper.render import show_table

    settings = {"scale": options.scale, "seeds": options.seeds, "protocol": options.protocol}
    for table in tables:
        folder = _folder(options, table)
        try:
            show_table(table, runs, folder=folder, **settings)
        except OSError as error:
            raise UserError(f"--output {folder}: cannot be written ({error.strerror or error})") from error


def _print_status(options: argparse.Namespace, tables: Sequence[PaperTable], runs: RunIndex) -> None:
    from imsm.distributed.gpus import gpu_names
    from imsm.studies.paper.render import show_status
    from imsm.studies.paper.runs import required_runs

    gpus = len(gpu_names())
    for table in tables:
        show_status(table, runs, scale=options.scale, seeds=options.seeds, folder=_folder(options, table))
        if table.spec.kind != "speed":
            required = required_runs(table, runs, scale=options.scale, seeds=options.seeds)
            _print_time(required, runs, gpus=gpus, log=print)


def _folder(options: argparse.Namespace, table: PaperTable) -> Path:
    root: Path = options.output or table.folder.parent
    return root / table.name / options.scale
