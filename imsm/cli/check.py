"""`imsm check RUN_OR_ADAPTER`: decide whether a model forgot more than a margin.

Exit codes: 0 PASS, every forgetting test is within the margin; 3 FAIL, at least one is significantly beyond it;
4 INSUFFICIENT_EVIDENCE. An adapter that was trained elsewhere is imported and evaluated first, as by `imsm evaluate`.
Saved predictions are read; only `--repeat` loads the model of a finished run.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from imsm.cli.common import add_config_dir, import_from_config_dir, print_json
from imsm.cli.evaluate import find_run_folder
from imsm.utils.errors import UserError
from imsm.utils.paths import check_links, runs_root

if TYPE_CHECKING:
    from imsm.reporting.verdict import Check, Pair

EXIT_CODES = {"PASS": 0, "FAIL": 3, "INSUFFICIENT_EVIDENCE": 4}
_MAX_REPEATS = 20


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="imsm check",
        description="Decide whether a model forgot more than a margin.",
        epilog="exit codes: " + ", ".join(f"{code} {verdict}" for verdict, code in EXIT_CODES.items()),
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN_OR_ADAPTER", help="finished run, or an adapter (folder, Hub id)"
    )
    parser.add_argument("--margin", type=float, default=2.0, metavar="POINTS", help="allowed loss (default: 2)")
    parser.add_argument(
        "--repeat", type=int, default=0, metavar="N", help="generate all answers N more times with other batch sizes"
    )
    parser.add_argument("--target-at-least", type=float, metavar="POINTS", help="required score of the target")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_config_dir(parser)
    return parser


def main(arguments: list[str]) -> int:
    """Print the verdict and return its exit code.

    Raises:
        UserError: an option is invalid, or results are missing, damaged or changed.
    """
    options = parser().parse_args(arguments)
    _check_options(options)
    config_dir = import_from_config_dir(options.config_dir)
    from imsm.reporting.verdict import check_run, render_check

    # the verdict alone goes to standard output, so that it can be piped
    with redirect_stdout(sys.stderr):
        folder = _find_run(options.runs[0]) or _evaluate_adapter(options.runs[0], config_dir)
        pair = read_pair(folder)
        repeats = _repeat(folder, pair, options.repeat)
        check = check_run(pair, margin=options.margin, target_at_least=options.target_at_least, repeats=repeats)
        available = _available(pair, check)
    if options.json:
        record = {**check.to_json(available), "exit_code": EXIT_CODES[check.verdict]}
        print_json(record)
    else:
        render_check(check, available=available)
    return EXIT_CODES[check.verdict]


def _check_options(options: argparse.Namespace) -> None:
    if len(options.runs) > 1:
        raise UserError(
            f"{' '.join(options.runs)}: a verdict is about one adapter; check each run alone (imsm compare averages "
            "seeds)"
        )
    if not (math.isfinite(options.margin) and 0 <= options.margin < 100):
        raise UserError(f"--margin {options.margin:g}: must be at least 0 and below 100 points")
    if not 0 <= options.repeat <= _MAX_REPEATS:
        raise UserError(f"--repeat {options.repeat}: must be in 0..{_MAX_REPEATS}")
    if options.target_at_least is not None and not 0 < options.target_at_least <= 100:
        raise UserError(f"--target-at-least {options.target_at_least:g}: must be above 0 and at most 100 points")


def _find_run(reference: str) -> Path | None:
    """Return the folder of a run, given its path or name; None if it is none."""
    from imsm.evaluation.result import FILE

    folders = (Path(reference).expanduser(), runs_root() / reference)
    # a run without training.json is checked too: only --repeat needs its model
    return next((folder.absolute() for folder in folders if os.path.lexists(folder / FILE)), None) or find_run_folder(
        reference
    )


def _evaluate_adapter(reference: str, config_dir: Path | None) -> Path:
    """Import and evaluate an adapter; return its run's folder."""
    from imsm.pipeline.import_adapter import import_adapter
    from imsm.pipeline.start import start_run

    imported = import_adapter(reference, runs_root=runs_root(), overrides=[], base=None, config_dir=config_dir)
    start_run(imported.config, runs_root=runs_root())
    return imported.run.path


def read_pair(folder: Path) -> Pair:
    """Return a finished run and its original."""
    from imsm.evaluation.result import read_result
    from imsm.reporting.runs import runs_to_compare

    check_links(folder)
    result = read_result(folder)
    if result["method"] == "original":
        raise UserError(f"{folder}: is the original model; give a run with an adapter, or an adapter")
    # a run with its own run_dir is compared with the original in the runs' folder
    root = runs_root() if result["config"].get("run_dir") else folder.parent
    original, *_, run = runs_to_compare(folder, result, runs_root=root, siblings=False)
    if not original.folder.is_dir():
        original, *_, run = runs_to_compare(folder, result, runs_root=runs_root(), siblings=False)
    return run, original


def _repeat(folder: Path, pair: Pair, count: int) -> list[Pair]:
    if not count:
        return []
    from imsm.studies.baselines.finished_run import load_finished_run
    from imsm.studies.repeated_evaluation import repeat_evaluation

    return repeat_evaluation(load_finished_run(folder, option="run"), pair, count=count)


def _available(pair: Pair, check: Check) -> dict[str, int | None]:
    """Return the size of the complete test set by undecided test; None where the data cannot be loaded here."""
    from imsm.config.schema import RunConfig
    from imsm.evaluation.result import FILE
    from imsm.pipeline.data import count_test_examples

    run = pair[0]
    found: dict[str, int | None] = {}
    undecided = [test for test in check.tests if test.needed is not None]
    if not undecided:
        return {}
    config = RunConfig.from_file(run.result["config"], source=run.folder / FILE)
    for test in undecided:
        limit = config.evaluation.limit_of(test.task)
        if limit is None or test.items < limit:
            found[test.task] = test.items
            continue
        try:
            found[test.task] = count_test_examples(config, test.task)
        except (UserError, OSError):
            found[test.task] = None
    return found
