"""`imsm fit-gate RUN_OR_ADAPTER [key=value ...]`: fit a gate on a finished adapter, which stays as it is.

Backbone, adapter, data and evaluation of a finished run are used again; of an adapter that was trained elsewhere give
data=NAME. With --prompts the adapter's own answers are the target. Without overrides the gate learns from
gate.loss=route and from texts that the original model generates (rehearsal=self).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from imsm.cli.common import add_config_dir, import_from_config_dir, print_without_effect
from imsm.cli.evaluate import find_run_folder
from imsm.distributed.rendezvous import silence_other_ranks
from imsm.utils.errors import UserError
from imsm.utils.options import list_options
from imsm.utils.paths import runs_root
from imsm.utils.run_dir import RunDir, read_training

if TYPE_CHECKING:
    from imsm.config.schema import RunConfig


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(prog="imsm fit-gate", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "reference", metavar="RUN_OR_ADAPTER", help="finished run, or folder or Hub id of an adapter in PEFT's format"
    )
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as of imsm run, e.g. gate.loss=route_kl")
    parser.add_argument(
        "--prompts",
        metavar="FILE_OR_DATASET",
        help="learn the target from the adapter's own answers to these prompts (a tenth of them is the test set)",
    )
    parser.add_argument("--base", metavar="MODEL", help="folder or Hub id of the base model (default: the adapter's)")
    add_config_dir(parser)
    return parser


def main(arguments: list[str]) -> None:
    """Fit the gate, evaluate the run and print how long the training took.

    Raises:
        UserError: the adapter cannot be used, an override is invalid, or no target data is known.
    """
    silence_other_ranks()
    options = parser().parse_intermixed_args(arguments)
    config_dir = import_from_config_dir(options.config_dir)
    from transformers.utils.logging import disable_progress_bar

    from imsm.pipeline.fit_gate import fit_gate_config, without_effect
    from imsm.pipeline.run_status import run_dir_of
    from imsm.pipeline.start import start_run

    disable_progress_bar()
    folder, saved = _adapter(options.reference, options.overrides, base=options.base, config_dir=config_dir)
    # those of the backbone were used by the import of an adapter from elsewhere
    used = "backbone" if saved.is_imported else ()
    overrides = [text for text in options.overrides if not text.startswith(used)]
    if options.prompts is not None:
        overrides += _own_answers(options.prompts, folder, saved, overrides, config_dir=config_dir)
    config = fit_gate_config(folder, saved, overrides=overrides, config_dir=config_dir)
    print_without_effect(without_effect(overrides, config_dir=config_dir))
    start_run(config, runs_root=runs_root(), overrides=overrides)
    trained = read_training(RunDir(run_dir_of(config, runs_root=runs_root())))
    print(f"gate: {trained['steps']} steps in {trained['seconds']:.1f} s")


def _adapter(
    reference: str, overrides: list[str], *, base: str | None, config_dir: Path | None
) -> tuple[Path, RunConfig]:
    """Return the folder and the configuration of a finished run; an adapter from elsewhere is imported first."""
    from imsm.pipeline.fit_gate import saved_config
    from imsm.pipeline.import_adapter import import_adapter

    folder = find_run_folder(reference)
    if folder is not None and not (folder / "result.json").exists():
        raise UserError(f"{folder}: has no result yet; run its command again first")
    if folder is not None:
        if base is not None:
            raise UserError(f"--base {base}: {folder} is a finished run, which has its own base model; omit it")
        return folder, saved_config(folder, config_dir=config_dir)
    imported = import_adapter(
        reference,
        runs_root=runs_root(),
        overrides=[text for text in overrides if text.startswith(("backbone", "data", "evaluation", "engine"))],
        base=base,
        config_dir=config_dir,
    )
    return imported.run.path, imported.config


def _own_answers(
    prompts: str, folder: Path, saved: RunConfig, overrides: list[str], *, config_dir: Path | None
) -> list[str]:
    """Write the adapter's answers to the prompts of a file or a dataset; return the overrides that select them."""
    import json

    from imsm.data.prompts import read_prompts
    from imsm.pipeline.data import training_examples
    from imsm.pipeline.fit_gate import fit_gate_config
    from imsm.pipeline.own_answers import write_own_answers

    if any(text.startswith("data=") for text in overrides):
        raise UserError("--prompts: replaces the target data; omit data=, or --prompts to learn its answers")
    config = saved
    if prompts in list_options("data", config_dir=config_dir):
        given = [f"data={prompts}", *(text for text in overrides if text.startswith("data."))]
        config = fit_gate_config(folder, saved, overrides=given, config_dir=config_dir)
        texts = list(dict.fromkeys(example.prompt for example in training_examples(config)))
    else:
        texts = read_prompts(Path(prompts).expanduser(), given=f"--prompts {prompts}")
    # the answering model is that of the finished run; only the lengths of the prompts' dataset are used
    answering = saved.model_copy(update={"data": config.data})
    path = write_own_answers(answering, RunDir(folder), texts, runs_root=runs_root())
    limits = [f"data.{key}={getattr(config.data, key)}" for key in ("max_prompt_tokens", "max_new_tokens")]
    chosen = ["data=jsonl", f"data.local_dir={json.dumps(str(path))}", "data.test_share=0.1", *limits]
    overridden = {text.partition("=")[0] for text in overrides}
    return [text for text in chosen if text.partition("=")[0] not in overridden]
