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

from imsm.errors import UserError
from imsm.finished import folder_of
from imsm.processes.gpus import refuse_busy_gpus, visible_gpus
from imsm.processes.join import enter, in_step, joined
from imsm.processes.nodes import launch_nodes, start_lines
from imsm.stages.layout import layout_of

if TYPE_CHECKING:
    from imsm.config import RunConfig
    from imsm.processes.layout import Layout

_DEEPSPEED = "pip install -c constraints.txt -e '.[deepspeed]'"


def start(config: RunConfig, *, runs_root: Path, overrides: Sequence[str] = ()) -> None:
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
    group = joined()
    layout = layout_of(config, gpus=visible_gpus(), joined=group.size if group else None)
    if not layout.distributed:
        from imsm.flow import carry_out

        carry_out(config, runs_root=runs_root)
        return
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(f"engine={config.engine.name}: needs DeepSpeed: {_DEEPSPEED}")
    if group is not None:
        from imsm.flow import carry_out

        gpus = 0 if config.engine.device == "cpu" else visible_gpus()
        world = enter(group, gpus=gpus)
        in_step(world, lambda: carry_out(config, runs_root=runs_root, world=world))
        return
    folder = folder_of(config, runs_root=runs_root)
    settings = {"config": config.to_dict(), "runs_root": str(runs_root), "device": layout.device}
    if layout.nodes > 1:
        hostfile = config.engine.hostfile
        if hostfile is None:
            lines = lines_for(config, layout, overrides=overrides, runs_root=runs_root)
            raise UserError(
                f"engine.nodes={layout.nodes}: this process cannot start the other nodes; give\n"
                + "\n".join(lines)
            )
        launch_nodes(
            settings,
            folder=folder,
            hostfile=hostfile,
            nodes=layout.nodes,
            processes=layout.processes,
        )
        return
    if layout.device == "cuda":
        refuse_busy_gpus(processes=layout.processes, engine=config.engine.name)
    from imsm.processes.launch import launch

    launch(settings, folder=folder, processes=layout.processes)


def lines_for(
    config: RunConfig, layout: Layout, *, overrides: Sequence[str], runs_root: Path
) -> list[str]:
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
    return start_lines(
        ["-m", "imsm.run", *own, *kept],
        hostfile=config.engine.hostfile,
        nodes=layout.nodes,
        processes=layout.processes,
        place=folder_of(config, runs_root=runs_root) / "processes" / "run.json",
    )


def _pass_over(number: int, frame: object) -> None:
    """Take a signal and do nothing."""
