"""One of several processes of a run: `python -m imsm.worker FILE`.

FILE is a run's configuration, as `imsm.processes.launch` saves it: a worker never reads Hydra's
command line, which would start the whole sweep again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsm.processes.leave import exit_process
from imsm.processes.worker import run_worker

if TYPE_CHECKING:
    from imsm.processes.world import DistributedContext


def run_from_file(settings: dict[str, Any], world: DistributedContext) -> None:
    """Carry out the run of saved settings, together with the other processes."""
    from imsm.config import RunConfig

    config = RunConfig.from_dict(settings["config"])
    if config.config_dir is not None:
        sys.path.insert(0, config.config_dir)
    from imsm.flow import run_experiment

    run_experiment(config, runs_root=Path(settings["runs_root"]), world=world)


if __name__ == "__main__":
    exit_process(run_worker(Path(sys.argv[1]), run_from_file))
