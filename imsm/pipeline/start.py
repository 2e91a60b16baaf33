"""Where a run is carried out: in this process, in a group that it was started in, or in new ones.

Processes of their own are started wherever DeepSpeed is at work, be it one: what it leaves behind
in a process then touches no other member of a sweep.
"""

from __future__ import annotations

import importlib.util
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imsm.distributed.gpus import check_gpus_free, visible_gpus
from imsm.distributed.multi_node import launch_commands, launch_nodes
from imsm.distributed.rendezvous import detect_process_group, join_process_group, run_in_group
from imsm.pipeline.engine import topology_of
from imsm.pipeline.run_status import run_dir_of
from imsm.utils.errors import UserError

if TYPE_CHECKING:
    from imsm.config.schema import RunConfig
    from imsm.distributed.topology import Topology

_DEEPSPEED = "pip install -c constraints.txt -e '.[deepspeed]'"


def start_run(config: RunConfig, *, runs_root: Path, overrides: Sequence[str] = ()) -> None:
    """Carry a run out with as many processes as its engine means.

    Args:
        config: the run's.
        runs_root: under which all runs lie.
        overrides: of the command, for the lines that start it on several nodes.

    Raises:
        UserError: the input does not fit, here or in one of the processes.
        RunError: training went wrong, or a process ended.
        KeyboardInterrupt: stopped by hand, after a checkpoint.
    """
    default = signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    if default and threading.current_thread() is threading.main_thread():
        # outside training there is nothing to keep; ignored for good, it would not be passed on
        signal.signal(signal.SIGUSR1, _pass_over)
    group = detect_process_group()
    layout = topology_of(config, gpus=visible_gpus(), joined=group.size if group else None)
    if not layout.distributed:
        from imsm.pipeline.run import run_experiment

        run_experiment(config, runs_root=runs_root)
        return
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(f"engine={config.engine.name}: needs DeepSpeed: {_DEEPSPEED}")
    if group is not None:
        from imsm.pipeline.run import run_experiment

        gpus = 0 if config.engine.device == "cpu" else visible_gpus()
        dist_context = join_process_group(group, gpus=gpus)
        run_in_group(dist_context, lambda: run_experiment(config, runs_root=runs_root, dist_context=dist_context))
        return
    folder = run_dir_of(config, runs_root=runs_root)
    settings = {"config": config.to_dict(), "runs_root": str(runs_root), "device": layout.device}
    if layout.nodes > 1:
        hostfile = config.engine.hostfile
        if hostfile is None:
            lines = node_commands(config, layout, overrides=overrides, runs_root=runs_root)
            raise UserError(
                f"engine.nnodes={layout.nodes}: this process cannot start the other nodes; give\n" + "\n".join(lines)
            )
        launch_nodes(settings, folder=folder, hostfile=hostfile, nodes=layout.nodes, processes=layout.processes)
        return
    if layout.device == "cuda":
        check_gpus_free(processes=layout.processes, engine=config.engine.name)
    from imsm.distributed.launcher import launch

    launch(settings, folder=folder, processes=layout.processes)


def node_commands(config: RunConfig, layout: Topology, *, overrides: Sequence[str], runs_root: Path) -> list[str]:
    """How a run on several nodes is started, a line each; none for one node.

    Args:
        config: the run's.
        layout: its processes.
        overrides: of the command.
        runs_root: under which all runs lie.
    """
    if layout.nodes == 1:
        return []
    own = ["--config-dir", config.config_dir] if config.config_dir else []
    kept = [text for text in overrides if text.partition("=")[0] not in ("mode", "sweep")]
    if config.mode == "evaluate":
        kept.append("mode=evaluate")
    return launch_commands(
        ["-m", "imsm.run", *own, *kept],
        hostfile=config.engine.hostfile,
        nodes=layout.nodes,
        processes=layout.processes,
        place=run_dir_of(config, runs_root=runs_root) / "processes" / "run.json",
    )


def _pass_over(number: int, frame: object) -> None:
    """Take a signal and do nothing."""
