"""`imsm baselines RUN`: evaluate training-free baselines on a finished run's adapter.

Each baseline is evaluated on the run's own evaluation sets and written to `<run>/baselines/`.
Cached responses are reused, so an interrupted command resumes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from imsm.cli.common import add_config_dir, import_from_config_dir
from imsm.studies.baselines.base import Baseline
from imsm.studies.baselines.registry import list_baselines, load_baseline
from imsm.utils.errors import UserError
from imsm.utils.files import file_lock
from imsm.utils.paths import resolve_run_dir

if TYPE_CHECKING:
    from imsm.studies.baselines.finished_run import FinishedRun


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="imsm baselines",
        description="Evaluate training-free baselines on a finished run's adapter.",
        epilog="baselines: " + ", ".join(list_baselines()),
    )
    parser.add_argument("run", metavar="RUN", help="folder or name of a finished run")
    parser.add_argument(
        "--baselines", metavar="NAMES", help="comma-separated; default: all that apply to the run, without gate_skip"
    )
    parser.add_argument("--values", help="comma-separated values of lambda, alpha and tau, e.g. 0.1,0.3")
    parser.add_argument("--other", metavar="RUN", help="the same run with another seed, for seed_ensemble")
    add_config_dir(parser)
    return parser


def main(arguments: list[str]) -> None:
    """Evaluate the baselines and print them in one table.

    Raises:
        UserError: a named baseline does not apply to the run, or a value is out of range.
    """
    options = parser().parse_args(arguments)
    import_from_config_dir(options.config_dir)
    names = None if options.baselines is None else _split_names(options.baselines)
    loaded = [load_baseline(name) for name in names or list_baselines()]
    chosen = [each for each in loaded if names is not None or each.INFO.by_default]
    values = None if options.values is None else _parse_values(options.values)
    _check_values(chosen, values)
    other = None
    from imsm.studies.baselines.finished_run import load_finished_run

    if options.other is not None:
        other = load_finished_run(resolve_run_dir(options.other, option="--other"), option="--other")
    run = load_finished_run(resolve_run_dir(options.run, option="run"), option="run", other=other)
    _evaluate(run, chosen, values, skip=names is None)


def _evaluate(run: FinishedRun, chosen: Sequence[Baseline], values: Sequence[float] | None, *, skip: bool) -> None:
    """Evaluate baselines and print the table; ``skip`` those that do not apply instead of raising UserError.

    ``values`` replace the baselines' own.
    """
    from imsm.studies.baselines.evaluate import FOLDER, TUNED, baseline_runs, evaluate_baseline, evaluate_tuned
    from imsm.studies.baselines.table import print_table

    skipped: list[str] = []

    def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UserError as error:
            if not skip:
                raise
            skipped.append(str(error))
            return None

    expanded = [attempt(baseline_runs, baseline, run, values) or [] for baseline in chosen]
    with file_lock(run.folder / FOLDER):
        interwoven = run.config.method.stream == "interwoven"
        tuned = TUNED.name if interwoven else run.config.method.name
        results = {"original": run.result["evaluation"]["original"], tuned: evaluate_tuned(run)["evaluation"]["tasks"]}
        if interwoven:
            results[run.config.method.name] = run.result["evaluation"]["tasks"]
        focus = list(results)
        for baseline_run in [each for runs in expanded for each in runs]:
            result = attempt(evaluate_baseline, baseline_run, run)
            if result is not None:
                results[baseline_run.name] = result["evaluation"]["tasks"]
    print_table(results, tuned=tuned, focus=focus)
    for reason in dict.fromkeys(skipped):
        print(f"skipped: {reason}")
    print(f"baselines: {run.folder / FOLDER}")


def _split_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError(f"--baselines {text!r}: must name at least one of {', '.join(list_baselines())}")
    return list(dict.fromkeys(names))


def _parse_values(text: str) -> list[float]:
    try:
        values = [float(each) for each in text.split(",")]
    except ValueError as error:
        raise UserError(f"--values {text}: must be comma-separated numbers, e.g. 0.1,0.3") from error
    if not all(map(math.isfinite, values)):
        raise UserError(f"--values {text}: must be finite numbers")
    return values


def _check_values(chosen: Sequence[Baseline], values: Sequence[float] | None) -> None:
    """Check that each value is in the range of each baseline that takes one.

    Raises:
        UserError: a value is out of range, or no baseline takes a value.
    """
    if values is None:
        return
    infos = [baseline.INFO for baseline in chosen if baseline.INFO.grid]
    if not infos:
        raise UserError(f"--values: none of {', '.join(each.INFO.name for each in chosen)} takes a value")
    for info in infos:
        for value in values:
            if not info.low <= value <= info.high:
                raise UserError(
                    f"--values {value:g}: {info.symbol} of {info.name} must be in {info.low:g}..{info.high:g}; "
                    "give other values, or select other baselines with --baselines"
                )
