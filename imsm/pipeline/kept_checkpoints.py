"""Models after each save step of a training, kept to be evaluated: the training's path (`evaluation.checkpoints`).

    <run>/kept_checkpoints/step-00000050/model/   configuration, adapter and gate, as in <run>/model

They are written during the training and evaluated after it, with the same evaluator and response cache as the trained
model, so that neither the training nor a resume depends on the evaluation. The folder can be deleted; a later
evaluation then lacks the path.
"""

import shutil
from collections.abc import Iterator

from imsm.distributed.context import DistributedContext
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.training.engines.base import Engine
from imsm.utils.files import fsync_tree
from imsm.utils.manifest import verify_manifest
from imsm.utils.run_dir import RunDir


def keep_checkpoint(
    run: RunDir, step: int, model: SiameseForCausalLM, *, engine: Engine, dist_context: DistributedContext
) -> None:
    """Write the model after ``step``, completely or not at all; every process must call this."""
    folder = run.kept_checkpoints / f"step-{step:08d}"
    new = folder.with_name(f".{folder.name}.new")
    dist_context.run_on_main(lambda: shutil.rmtree(new, ignore_errors=True))
    with engine.full_params():
        model.save_pretrained(RunDir(new).model, is_main_process=dist_context.is_main)

    def finish() -> None:
        fsync_tree(new)
        # of a training that was resumed before this step
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)

    dist_context.run_on_main(finish)


def kept_checkpoints(run: RunDir) -> Iterator[tuple[int, RunDir, dict[str, str]]]:
    """Yield the step, the folder and the hashes of the model's files of each kept checkpoint, in order.

    Raises:
        UserError: A file is missing, changed or was added.
    """
    for folder in sorted(run.kept_checkpoints.glob("step-*")):
        kept = RunDir(folder)
        fix = f"remove the folder {folder} to leave this checkpoint out"
        yield (
            int(folder.name.removeprefix("step-")),
            kept,
            verify_manifest(kept.model, fix=fix, may_add=lambda _: False),
        )
