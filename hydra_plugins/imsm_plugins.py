"""Hydra plugins of imsm; Hydra finds and instantiates classes of this namespace package only.

Hydra imports this module at every start, so the launchers' code is imported when a sweep starts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.utils import JobReturn
from hydra.plugins.search_path_plugin import SearchPathPlugin


class ConfigDirSearchPath(SearchPathPlugin):
    """Search the folder of `imsm run --config-dir` before the shipped yamls."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Prepend the folder; `imsm.config.compose` sets the environment variable."""
        folder = os.environ.get("IMSM_CONFIG_DIR")
        if folder:
            search_path.prepend(provider="imsm", path=f"file://{folder}")


try:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import LocalLauncher, SlurmLauncher
except ModuleNotFoundError:  # the extra `slurm` is not installed
    pass
else:

    class _JobProcess:
        def __call__(self, *arguments: Any) -> JobReturn:
            """Run one job in its own process."""
            from imsm.pipeline.sweeps.launchers import prepare_job_process

            prepare_job_process(self)
            return super().__call__(*arguments)  # type: ignore[misc]

    class ImsmLocalLauncher(_JobProcess, LocalLauncher):
        """Run the jobs of a sweep as processes on this machine (`sweep=local`)."""

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            """Start the unfinished jobs and wait for all of them."""
            from imsm.pipeline.sweeps.launchers import launch, run_local_jobs

            return launch(self, job_overrides, initial_job_idx, run_jobs=run_local_jobs)

    class ImsmSlurmLauncher(_JobProcess, SlurmLauncher):
        """Run the jobs of a sweep as one SLURM job array (`sweep=slurm`)."""

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            """Submit the unfinished jobs and wait for all of them."""
            from imsm.pipeline.sweeps.launchers import launch, run_slurm_jobs

            return launch(self, job_overrides, initial_job_idx, run_jobs=run_slurm_jobs)
