"""The commands that start a run on several nodes."""

from collections.abc import Sequence
from pathlib import Path

from imsm.config.schema import RunConfig
from imsm.distributed.multi_node import launch_commands
from imsm.distributed.topology import Topology
from imsm.pipeline.run_status import run_dir_of


def node_commands(config: RunConfig, topology: Topology, *, overrides: Sequence[str], runs_root: Path) -> list[str]:
    """Return the commands that start a run on several nodes; empty for a single node."""
    if topology.nnodes == 1:
        return []
    # each node executes one run, so the settings that select and start jobs are dropped
    kept = [text for text in overrides if text.partition("=")[0] not in ("mode", "sweep")]
    if config.mode == "evaluate":
        kept.append("mode=evaluate")
    return launch_commands(
        ["-m", "imsm.run", *config_dir_arguments(config), *kept],
        hostfile=config.engine.hostfile,
        nnodes=topology.nnodes,
        nproc_per_node=topology.nproc_per_node,
        settings_path=run_dir_of(config, runs_root=runs_root) / "processes" / "run.json",
    )


def config_dir_arguments(config: RunConfig) -> list[str]:
    """Return the option that passes `--config-dir` on to another process."""
    return ["--config-dir", config.config_dir] if config.config_dir else []
