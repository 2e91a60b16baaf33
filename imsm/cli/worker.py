"""One of several processes of a run: `python -m imsm.cli.worker FILE`.

FILE is a run's configuration, as `imsm.distributed.launcher` saves it: a worker never reads Hydra's
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
    """Carry out the run of saved settings, together with the other processes."""
    from imsm.config.schema import RunConfig

    config = RunConfig.from_dict(settings["config"])
    if config.config_dir is not None:
        sys.path.insert(0, config.config_dir)
    from imsm.pipeline.run import run_experiment

    run_experiment(config, runs_root=Path(settings["runs_root"]), dist_context=dist_context)


if __name__ == "__main__":
    exit_process(run_worker(Path(sys.argv[1]), run_from_file))
