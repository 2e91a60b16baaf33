"""One process of `test_sharded.py`: a complete run in an address space that grows by a limited number of bytes.

python -m tests.models.backbones.sharded_worker LIMIT ROOT RUNS RANK WORLD_SIZE PORT OVERRIDES...

First it tries to load the complete backbone, and prints the error.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
from pathlib import Path

import torch
from torch.distributed import TCPStore

from imsm.distributed.context import DistributedContext
from imsm.distributed.process_group import init_process_group
from imsm.distributed.supervisor import exit_process
from imsm.models.backbones.loading import load_backbone
from imsm.pipeline.run import run_experiment
from imsm.utils.errors import UserError
from tests.helpers.config import config
from tests.helpers.figures import no_figures
from tests.helpers.word_run import word_overrides


def limit_address_space(growth: int) -> None:
    """Allow the process ``growth`` more bytes than it has mapped now, which is several GB of libraries."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + growth
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def print_load_error(backbone: Path) -> None:
    try:
        load_backbone(name_or_path=str(backbone))
    except UserError as error:
        print(f"complete: {error}")


def main() -> None:
    limit, root, runs, rank, world_size, port, *overrides = sys.argv[1:]
    os.environ["IMSM_CACHE"] = f"{runs}/cache"
    store = TCPStore("127.0.0.1", int(port), is_master=False)
    dist_context = DistributedContext(rank=int(rank), world_size=int(world_size), store=store)
    init_process_group(dist_context, device=torch.device("cpu"), timeout_minutes=2)
    with no_figures():
        # imports and starts everything that a run needs
        small = config(*word_overrides(Path(root) / "small", *overrides))
        run_experiment(small, runs_root=Path(runs) / "small", dist_context=dist_context)
        gc.collect()
        limit_address_space(int(limit))
        print_load_error(Path(root) / "backbone")
        gc.collect()
        large = config(*word_overrides(Path(root), *overrides))
        run_experiment(large, runs_root=Path(runs), dist_context=dist_context)


if __name__ == "__main__":
    main()
    exit_process(0)
