"""The runs of a sweep in one table: `imsm compare group=option,option [--output FILE]`.

Takes the overrides of the sweep (`python -m imsm.run -m ...`) and reads what its runs left; nothing
is trained or asked. A run that is not finished stands in the table with the command that makes it,
and, if it failed, with the reason. Of a search (`sweep=optuna`) it shows the last start's trials.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from imsm.utils.errors import UserError
from imsm.utils.paths import conf_folder, runs_root

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from imsm.config.compose import ConfigComposer
    from imsm.reporting.sweep_table import SweepRun


def main(argv: list[str] | None = None) -> int:
    """Print the table; exit code 2 if the overrides are wrong."""
    parser = argparse.ArgumentParser(prog="imsm compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="as they were given to python -m imsm.run -m")
    parser.add_argument("--config-dir", type=Path, help="a folder of options of one's own")
    parser.add_argument("--output", type=Path, help="also write the table there, as Markdown")
    arguments = parser.parse_args(argv)
    try:
        members = _members(arguments.overrides, config_dir=arguments.config_dir)
        from imsm.reporting.sweep_table import render_markdown, render_terminal, sweep_tables

        tables = sweep_tables(members)
        render_terminal(tables)
        if arguments.output is not None:
            _write(arguments.output, render_markdown(tables))
    except UserError as error:
        print(f"imsm: {error}", file=sys.stderr)
        return 2
    return 0


def _members(overrides: list[str], *, config_dir: Path | None) -> list[SweepRun]:
    """The runs that the overrides mean, each once.

    Raises:
        UserError: the overrides are wrong.
    """
    from imsm.config.compose import ConfigComposer
    from imsm.utils.messages import format_errors

    if config_dir is not None:
        sys.path.insert(0, str(config_dir.absolute()))
    preflight = ConfigComposer(conf=conf_folder(), config_dir=config_dir)
    errors = preflight.validate(overrides, sweep=True)
    if errors:
        raise UserError(format_errors(errors))
    found: dict[str, SweepRun] = {}
    for lines, cfg in _composed(preflight, overrides, config_dir=config_dir):
        name, member = _member(lines, cfg, config_dir=config_dir)
        found.setdefault(name, member)
    return list(found.values())


def _composed(
    preflight: ConfigComposer, overrides: list[str], *, config_dir: Path | None
) -> list[tuple[dict[str, str], DictConfig]]:
    """Each run: its overrides by key, and what they compose; a search noted its own.

    Raises:
        UserError: the search was not started yet.
    """
    from imsm.pipeline.sweeps.status import latest_attempt, sweep_dir

    plan = preflight.sweep_spec(overrides, sweep=True)
    if not plan.searches:
        return preflight.compose_all(overrides)
    place = sweep_dir(runs_root(), name=plan.name, overrides=plan.overrides, config_dir=config_dir)
    start = latest_attempt(place)
    trials = [] if start is None else list(start.read_statuses().values())
    if not trials:
        raise UserError(
            f"{' '.join(overrides)}: this search has no trial yet; python -m imsm.run -m with the "
            "same overrides starts it"
        )
    return [run for trial in trials for run in preflight.compose_all(trial.overrides)]


def _member(lines: dict[str, str], cfg: DictConfig, *, config_dir: Path | None) -> tuple[str, SweepRun]:
    from imsm.config.identity import run_name
    from imsm.config.stages import final_stage
    from imsm.config.validate import load_config
    from imsm.evaluation.result import read_result
    from imsm.pipeline.run_status import read_failure, run_dir_of
    from imsm.pipeline.sweeps.status import member_command
    from imsm.reporting.sweep_table import SweepRun

    config = load_config(cfg, config_dir=config_dir)
    name = run_name(final_stage(config))
    folder = run_dir_of(config, runs_root=runs_root())
    failure = read_failure(folder)
    try:
        result = read_result(folder)
    except UserError:
        result = None
    about = {
        "backbone": config.backbone.name,
        "trainer": f"trainer {config.trainer.name}",
        "seed": f"seed {config.seed}",
    }
    overrides = [f"{key}={value}" for key, value in lines.items()]
    # the original is one run for all targets, but stands in each target's table
    key = name if config.method.trainable else f"{name}/{config.data.name}"
    return key, SweepRun(
        swept={**lines, "method": config.method.name},
        target=config.data.name,
        about=about,
        command=member_command(overrides, config_dir=config_dir),
        result=result,
        failure=None if failure is None else failure["error"],
    )


def _write(path: Path, text: str) -> None:
    from imsm.utils.files import write_atomic

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written ({error})") from error


if __name__ == "__main__":
    sys.exit(main())
