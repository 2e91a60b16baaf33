"""Entry point of the processes of a distributed run: `python -m imsm.cli.worker FILE`.

FILE is the run's configuration, saved by `imsm.distributed.launcher`: a worker never parses Hydra's
command line, which would start the whole sweep again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsm.distributed.supervisor import exit_process
from imsm.distributed.worker import run_worker

if TYPE_CHECKING:
    from imsm.distributed.context import DistributedContext


def run_from_file(settings: dict[str, Any], dist_context: DistributedContext) -> None:
    """Run the experiment of saved settings in this process group."""
    from imsm.config.schema import RunConfig
    from imsm.pipeline.run import run_experiment

    config = RunConfig.from_dict(settings["config"])
    if config.config_dir is not None:
        # the launcher starts this process without the import path of the command
        sys.path.insert(0, config.config_dir)
    run_experiment(config, runs_root=Path(settings["runs_root"]), dist_context=dist_context)


if __name__ == "__main__":
    exit_process(run_worker(Path(sys.argv[1]), run_from_file))
