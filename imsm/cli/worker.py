"""Entry point of the processes of a distributed run: `python -m imsm.cli.worker FILE [--config-dir FOLDER]`.

FILE is the run's configuration, saved by `imsm.distributed.launcher`: a worker never parses Hydra's
command line, which would start the whole sweep again.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from imsm.cli.common import add_config_dir, fast_imports, import_from_config_dir
from imsm.utils import stop_signals
from imsm.utils.streams import protect_standard_streams

if TYPE_CHECKING:
    from imsm.distributed.context import DistributedContext


def parser() -> argparse.ArgumentParser:
    """Return the parser of a worker's command line."""
    parser = argparse.ArgumentParser(prog="imsm.cli.worker", description="Run one process of a distributed run.")
    parser.add_argument("settings", type=Path, metavar="FILE", help="settings saved by the launcher")
    add_config_dir(parser)
    return parser


def run_from_file(settings: dict[str, Any], dist_context: DistributedContext, *, options: argparse.Namespace) -> None:
    """Run the experiment of saved settings in this process group.

    Raises:
        UserError: the settings name a module that is not trusted, or the run fails.
    """
    with fast_imports():
        from imsm.config.schema import RunConfig
        from imsm.pipeline.run import run_experiment

    config_dir = import_from_config_dir(options.config_dir)
    config = RunConfig.from_file(settings["config"], source=options.settings, config_dir=config_dir)
    command = settings.get("command")
    run_experiment(config, runs_root=Path(settings["runs_root"]), dist_context=dist_context, command=command)


def main() -> NoReturn:
    """Run a worker process and exit."""
    # before the imports of torch; the launcher prints the message itself
    stop_signals.install(silent=True)
    protect_standard_streams()
    with fast_imports():
        from imsm.distributed.supervisor import exit_process
        from imsm.distributed.worker import run_worker

    options = parser().parse_args()
    exit_process(run_worker(options.settings, partial(run_from_file, options=options)))


if __name__ == "__main__":
    main()
