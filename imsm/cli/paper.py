"""The paper's tables and figures: `imsm paper run|show|status [table1 ...]`.

`run` carries out the runs that are missing, then shows; `show` shows what is there; `status` lists
the runs that are done, missing and failed. Exit codes: 0 all went well, 1 a run failed, 2 the input
was wrong, 130 stopped by hand.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from imsm.studies.paper.spec import SCALES, PaperTable, list_tables, load_table
from imsm.utils.errors import RunError, UserError
from imsm.utils.paths import runs_root

if TYPE_CHECKING:
    from imsm.studies.paper.runs import RunIndex


def main(argv: list[str] | None = None) -> int:
    """Carry an action out."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.seeds < 1 or arguments.jobs < 1:
            raise UserError(f"--seeds {arguments.seeds} --jobs {arguments.jobs}: both must be at least 1")
        chosen = [load_table(name) for name in arguments.names or list_tables()]
        return {"run": _run, "show": _show, "status": _status}[arguments.action](arguments, chosen)
    except UserError as error:
        print(f"imsm: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"imsm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; give the same command again to go on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="imsm paper", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("run", "show", "status"))
    parser.add_argument("names", nargs="*", help="e.g. table6 figure3; none: all")
    parser.add_argument("--scale", choices=SCALES, default="mini")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to N-1 (1)")
    parser.add_argument("--protocol", choices=("strict", "paper_code"), default="strict")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (1)")
    parser.add_argument("--output", type=Path, help="where results go (experiments/)")
    return parser


def _run(arguments: argparse.Namespace, chosen: Sequence[PaperTable]) -> int:
    from imsm.studies.paper.runs import validate_runs, run_missing, required_runs

    runs = _runs()
    for experiment in chosen:
        validate_runs(experiment, runs, scale=arguments.scale)
    failed: list[str] = []
    started = time.monotonic()
    for experiment in chosen:
        if experiment.spec.kind == "speed":
            _measure(arguments, experiment, runs)
            continue
        failed += run_missing(
            required_runs(experiment, runs, scale=arguments.scale, seeds=arguments.seeds),
            log_dir=runs_root() / "logs",
            jobs=arguments.jobs,
            log=partial(print, f"{experiment.name}:", flush=True),
        )
        runs.refresh()
    print(f"runs: {time.monotonic() - started:.0f} s")
    _show(arguments, chosen, runs)
    if failed:
        raise RunError(f"{len(failed)} runs failed ({', '.join(failed)}); their logs lie in {runs_root() / 'logs'}")
    return 0


def _show(arguments: argparse.Namespace, chosen: Sequence[PaperTable], runs: RunIndex | None = None) -> int:
    from imsm.studies.paper.render import show_table

    runs = runs or _runs()
    for experiment in chosen:
        place = _place(arguments, experiment)
        try:
            show_table(
                experiment,
                runs,
                scale=arguments.scale,
                seeds=arguments.seeds,
                protocol=arguments.protocol,
                folder=place,
            )
        except OSError as error:
            raise UserError(f"{place}: cannot be written ({error.strerror or error})") from error
    return 0


def _status(arguments: argparse.Namespace, chosen: Sequence[PaperTable]) -> int:
    from imsm.studies.paper.render import show_status

    runs = _runs()
    for experiment in chosen:
        show_status(
            experiment, runs, scale=arguments.scale, seeds=arguments.seeds, folder=_place(arguments, experiment)
        )
    return 0


def _measure(arguments: argparse.Namespace, experiment: PaperTable, runs: RunIndex) -> None:
    from imsm.studies.paper.speed import measure_speed, read_speed, write_speed

    place = _place(arguments, experiment)
    if read_speed(place) is None:
        tell = partial(print, f"{experiment.name}:", flush=True)
        write_speed(measure_speed(experiment, runs, scale=arguments.scale, log=tell), place)


def _place(arguments: argparse.Namespace, experiment: PaperTable) -> Path:
    """Where an experiment's results go."""
    root: Path = arguments.output or experiment.folder.parent
    return root / experiment.name / arguments.scale


def _runs() -> RunIndex:
    from imsm.config.compose import ConfigComposer
    from imsm.studies.paper.runs import RunIndex
    from imsm.utils.paths import conf_folder

    return RunIndex(ConfigComposer(conf=conf_folder()), runs_root=runs_root())


if __name__ == "__main__":
    sys.exit(main())
