"""Where a run executes: in this process, in the process group it was started in, or in new processes.

DeepSpeed and FSDP2 always run in new processes, even if they need only one, so that their global state
does not affect other jobs of a sweep.
"""

import importlib.util
import shlex
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from imsm.config.schema import RunConfig
from imsm.distributed.gpus import check_gpus_free, visible_gpus
from imsm.distributed.launcher import launch
from imsm.distributed.multi_node import launch_nodes
from imsm.distributed.rendezvous import detect_process_group, join_process_group, run_in_group
from imsm.pipeline.engine import topology_of
from imsm.pipeline.nodes import config_dir_arguments, node_commands
from imsm.pipeline.run import run_experiment
from imsm.pipeline.run_status import run_dir_of
from imsm.utils.errors import UserError

_INSTALL_DEEPSPEED = "pip install -c constraints.txt -e '.[deepspeed]'"


def start_run(config: RunConfig, *, runs_root: Path, overrides: Sequence[str] = ()) -> None:
    """Execute a run with as many processes as its engine needs; see `run_distributed`."""
    if not run_distributed(config, runs_root=runs_root, overrides=overrides):
        run_experiment(config, runs_root=runs_root, command=_command(config, overrides))


def run_distributed(config: RunConfig, *, runs_root: Path, overrides: Sequence[str] = ()) -> bool:
    """Execute a run in several processes; return False, without executing it, if it needs only this one.

    ``overrides`` of the command are part of the message that shows how to start several nodes.

    Raises:
        UserError: The input is invalid, here or in one of the processes.
        RunError: Training failed, or a process died.
        KeyboardInterrupt: Interrupted, after saving a checkpoint.
    """
    _keep_checkpoint_signal_harmless()
    group = detect_process_group()
    topology = topology_of(config, gpus=visible_gpus(), joined=group.world_size if group else None)
    if not topology.distributed:
        return False
    # find_spec does not import DeepSpeed, which takes seconds and logs to the terminal
    if topology.stage and importlib.util.find_spec("deepspeed") is None:
        raise UserError(f"engine={config.engine.name}: requires DeepSpeed; {_INSTALL_DEEPSPEED}")
    if group is not None:
        gpus = 0 if config.engine.device == "cpu" else visible_gpus()
        dist_context = join_process_group(group, num_gpus=gpus)
        command = _command(config, overrides)
        run_in_group(
            dist_context,
            lambda: run_experiment(config, runs_root=runs_root, dist_context=dist_context, command=command),
        )
        return True
    folder = run_dir_of(config, runs_root=runs_root)
    settings = {
        "config": config.to_dict(),
        "runs_root": str(runs_root),
        "device": topology.device,
        "command": _command(config, overrides),
    }
    arguments = config_dir_arguments(config)
    nodes, processes, hostfile = topology.nnodes, topology.nproc_per_node, config.engine.hostfile
    if nodes > 1 and hostfile is not None:
        launch_nodes(
            settings,
            run_dir=folder,
            hostfile=hostfile,
            nnodes=nodes,
            nproc_per_node=processes,
            worker_arguments=arguments,
        )
        return True
    if nodes > 1:
        commands = node_commands(config, topology, overrides=overrides, runs_root=runs_root)
        raise UserError(
            f"engine.nnodes={nodes}: this process cannot start the other nodes; run\n" + "\n".join(commands)
        )
    # a launched process would fail only after it loaded the weights
    if topology.device == "cuda":
        check_gpus_free(num_processes=processes, engine=config.engine.name)
    launch(settings, run_dir=folder, nproc_per_node=processes, worker_arguments=arguments)
    return True


def _command(config: RunConfig, overrides: Sequence[str]) -> str | None:
    """Return the command of the run as it is recorded; None if it was not started by a command line."""
    words = [*config_dir_arguments(config), *overrides]
    return shlex.join(["imsm", "run", *words]) if words else None


def _keep_checkpoint_signal_harmless() -> None:
    """Ignore SIGUSR1 (checkpoint request) outside training instead of dying from it.

    A handler is used because SIG_IGN would be inherited by the processes started here.
    """
    is_default = signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    if is_default and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
