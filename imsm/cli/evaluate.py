"""`imsm evaluate ADAPTER_OR_RUN [key=value ...]`: evaluate an adapter that was trained elsewhere, or a finished run.

An adapter is a folder in PEFT's format (adapter_config.json and adapter_model.safetensors), or a Hub id. It becomes a
run folder, on which `report`, `baselines`, `generate`, `push` and `frozen_adapter=` work.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from imsm.cli.common import add_config_dir, import_from_config_dir
from imsm.distributed.rendezvous import silence_other_ranks
from imsm.utils.errors import UserError
from imsm.utils.paths import runs_root
from imsm.utils.run_dir import RunDir


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(prog="imsm evaluate", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "reference", metavar="ADAPTER_OR_RUN", help="folder or Hub id of an adapter, or a finished run"
    )
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as of imsm run, e.g. evaluation.limit=100")
    parser.add_argument("--base", metavar="MODEL", help="folder or Hub id of the base model (default: the adapter's)")
    parser.add_argument(
        "--target", metavar="NAME", help="task that the adapter was trained for (the same as data=NAME)"
    )
    add_config_dir(parser)
    return parser


def main(arguments: list[str]) -> None:
    """Evaluate the original and the adapter, and print the report.

    Raises:
        UserError: the adapter cannot be used, or an override is invalid.
    """
    silence_other_ranks()
    options = parser().parse_intermixed_args(arguments)
    config_dir = import_from_config_dir(options.config_dir)
    overrides = [*options.overrides, *([f"data={options.target}"] if options.target else [])]
    from transformers.utils.logging import disable_progress_bar

    from imsm.pipeline.import_adapter import evaluated_run, import_adapter
    from imsm.pipeline.start import start_run

    disable_progress_bar()
    root, folder = runs_root(), find_run_folder(options.reference)
    if folder is None:
        imported = import_adapter(
            options.reference, runs_root=root, overrides=overrides, base=options.base, config_dir=config_dir
        )
        config = imported.config
    else:
        if options.base or options.target:
            raise UserError(
                f"{folder}: is a finished run, which has its own base model and target; omit --base/--target"
            )
        config = evaluated_run(folder, overrides=overrides, config_dir=config_dir)
    start_run(config, runs_root=root, overrides=overrides)


def find_run_folder(reference: str) -> Path | None:
    """Return the folder of a run, given its path or name; None if it is none."""
    for folder in (Path(reference).expanduser(), runs_root() / reference):
        if RunDir(folder).is_trained:
            return folder
    return None
