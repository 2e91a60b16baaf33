"""Controls on a finished run's adapter: `imsm baselines RUN`.

Nothing is trained. Each control is judged on the run's own tests and leaves a folder under
`<run>/controls/`; what was answered before is not asked again, and a command that was stopped goes
on. Exit codes: 0 all went well, 1 something went wrong, 2 the input was wrong, 130 stopped by hand.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsm.studies.baselines.base import Baseline, list_baselines, load_baseline
from imsm.utils.errors import RunError, UserError
from imsm.utils.paths import resolve_run_dir

if TYPE_CHECKING:
    from imsm.studies.baselines.evaluate import BaselineRun
    from imsm.studies.baselines.finished_run import FinishedRun


def main(argv: list[str] | None = None) -> int:
    """Judge the controls and print them side by side."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.config_dir is not None:
            if not arguments.config_dir.is_dir():
                raise UserError(f"--config-dir {arguments.config_dir}: there is no such folder")
            sys.path.insert(0, str(arguments.config_dir.absolute()))
        named = None if arguments.controls is None else _listed(arguments.controls)
        chosen = [load_baseline(name) for name in named or list_baselines()]
        values = None if arguments.values is None else _numbers(arguments.values)
        _check_values(chosen, values)
        _carry_out(arguments, chosen, values, all_of_them=named is None)
    except (UserError, RunError) as error:
        print(f"imsm: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        print("\nstopped; what is answered is kept: give the same command again", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="imsm baselines",
        description=(__doc__ or "").splitlines()[0],
        epilog="controls: " + ", ".join(list_baselines()),
    )
    parser.add_argument("--run", required=True, help="a finished run's folder, or its name")
    parser.add_argument("--controls", help="their names, with commas; all that fit if left out")
    parser.add_argument("--values", help="of lambda and alpha, with commas, e.g. 0.1,0.3")
    parser.add_argument("--with", dest="other", metavar="RUN", help="the run of another seed, for seed_ensemble")
    parser.add_argument("--config-dir", type=Path, help="where modules of one's own lie")
    return parser


def _carry_out(
    arguments: argparse.Namespace, chosen: Sequence[Baseline], values: Sequence[float] | None, *, all_of_them: bool
) -> None:
    from imsm.studies.baselines.evaluate import FOLDER, TUNED, evaluate_tuned
    from imsm.studies.baselines.finished_run import load_finished_run
    from imsm.studies.baselines.table import print_table
    from imsm.utils.files import file_lock

    other = None
    if arguments.other is not None:
        other = load_finished_run(resolve_run_dir(arguments.other, option="--with"), option="--with")
    run = load_finished_run(resolve_run_dir(arguments.run, option="--run"), option="--run", other=other)
    arms, left_out = _arms(run, chosen, values, all_of_them=all_of_them)
    with file_lock(run.folder / FOLDER):
        interwoven = run.config.method.stream == "interwoven"
        tuned = TUNED.name if interwoven else run.config.method.name
        found = {"original": run.result["evaluation"]["original"], tuned: evaluate_tuned(run)["evaluation"]["tasks"]}
        if interwoven:
            found[run.config.method.name] = run.result["evaluation"]["tasks"]
        focus = list(found)
        for arm in arms:
            result = _judged(arm, run, left_out, all_of_them=all_of_them)
            if result is not None:
                found[arm.name] = result["evaluation"]["tasks"]
    print_table(found, tuned=tuned, focus=focus)
    for line in dict.fromkeys(left_out):
        print(f"left out: {line}")
    print(f"controls: {run.folder / FOLDER}")


def _arms(
    run: FinishedRun, chosen: Sequence[Baseline], values: Sequence[float] | None, *, all_of_them: bool
) -> tuple[list[BaselineRun], list[str]]:
    """The arms to judge, and why others are left out; one that was asked for must fit."""
    from imsm.studies.baselines.evaluate import baseline_runs

    arms: list[BaselineRun] = []
    left_out = []
    for each in chosen:
        try:
            arms += baseline_runs(each, run, values)
        except UserError as error:
            if not all_of_them:
                raise
            left_out.append(str(error))
    return arms, left_out


def _judged(arm: BaselineRun, run: FinishedRun, left_out: list[str], *, all_of_them: bool) -> dict[str, Any] | None:
    from imsm.studies.baselines.evaluate import evaluate_baseline

    try:
        return evaluate_baseline(arm, run)
    except UserError as error:
        if not all_of_them:
            raise
        left_out.append(str(error))
        return None


def _listed(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError(f"--controls {text!r}: name at least one of {', '.join(list_baselines())}")
    return list(dict.fromkeys(names))


def _numbers(text: str) -> list[float]:
    try:
        found = [float(each) for each in text.split(",")]
    except ValueError as error:
        raise UserError(f"--values {text}: must be numbers with commas between, e.g. 0.1,0.3") from error
    if not all(map(math.isfinite, found)):
        raise UserError(f"--values {text}: must be finite numbers")
    return found


def _check_values(chosen: Sequence[Baseline], values: Sequence[float] | None) -> None:
    """Each value must lie in the range of each control that takes any.

    Raises:
        UserError: one does not, or no control takes a value.
    """
    if values is None:
        return
    takers = [each.INFO for each in chosen if each.INFO.grid]
    if not takers:
        raise UserError(f"--values: none of {', '.join(each.INFO.name for each in chosen)} takes a value")
    for info in takers:
        for value in values:
            if not info.low <= value <= info.high:
                raise UserError(
                    f"--values {value:g}: {info.symbol} of {info.name} must be in "
                    f"{info.low:g}..{info.high:g}; give other values, or name the controls that "
                    "take them by --controls"
                )


if __name__ == "__main__":
    sys.exit(main())
