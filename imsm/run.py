"""The command: `python -m imsm.run [group=option ...] [key=value ...]` (or `imsm ...`).

Check the whole command line, let Hydra compose each run, and carry each one out. Exit codes:
0 all went well, 1 a run went wrong, 2 the input was wrong, 130 stopped by hand.
"""

from __future__ import annotations

import gc
import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from imsm.errors import RunError, UserError
from imsm.folders import conf_folder, runs_root

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    """Run the command line and exit."""
    _exit_on_help()
    import hydra
    from hydra._internal.utils import get_args_parser
    from omegaconf import OmegaConf

    arguments = get_args_parser().parse_args()
    config_dir = _config_dir(arguments)
    _exit_on_problems(arguments, config_dir)
    codes = [0]

    def task(cfg: DictConfig) -> None:
        codes.append(carry_out_one(cfg, config_dir=config_dir, sweep=arguments.multirun))

    with TemporaryDirectory(prefix="imsm-sweep-") as folder:  # Hydra's own record of a sweep
        OmegaConf.register_new_resolver("imsm.sweep_folder", lambda: folder, replace=True)
        run = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
        try:
            run(task)()
        except KeyboardInterrupt:
            sys.exit(130)
    sys.exit(max(codes))


def carry_out_one(cfg: DictConfig, *, config_dir: Path | None, sweep: bool = False) -> int:
    """Carry one composed run out; returns its exit code, so that a sweep goes on after it."""
    from imsm.examine import parse

    try:
        config = parse(cfg, config_dir=config_dir)
        if config.mode == "plan":
            gc.disable()  # importing makes much and drops nothing: a fifth of its time
            from imsm.stages.planning import print_plan

            gc.enable()
            print_plan(config, compact=sweep)
            return 0
        from imsm.flow import carry_out

        carry_out(config, runs_root=runs_root())
    except (UserError, RunError) as error:
        print(f"imsm: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


def _exit_on_help() -> None:
    """Answer --help at once: Hydra takes a second to say the same."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--config-dir", "-cd", type=Path)
    arguments, _ = parser.parse_known_args()
    if arguments.help:
        from imsm.help import help_text

        print(help_text(arguments.config_dir))
        sys.exit(0)


def _config_dir(arguments: Namespace) -> Path | None:
    """The folder of options of one's own; its yamls can name modules that lie beside them."""
    if arguments.config_dir is None:
        return None
    folder = Path(os.path.abspath(arguments.config_dir))
    if not folder.is_dir():
        _fail([f"--config-dir {arguments.config_dir}: there is no such folder"])
    sys.path.insert(0, str(folder))
    return folder


def _exit_on_problems(arguments: Namespace, config_dir: Path | None) -> None:
    if arguments.hydra_help or arguments.shell_completion:
        return
    from imsm.preflight import Preflight

    conf = Path(arguments.config_path) if arguments.config_path else conf_folder()
    checks = Preflight(
        conf=conf, config_dir=config_dir, config_name=arguments.config_name or "config"
    )
    problems = checks.problems(
        arguments.overrides,
        sweep=arguments.multirun,
        composition_only=arguments.cfg is not None or arguments.info is not None,
    )
    if problems:
        _fail(problems)


def _fail(problems: list[str]) -> None:
    from imsm.messages import report

    print(f"imsm: {report(problems)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
