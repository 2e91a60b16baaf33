"""`imsm tradeoff RUN`: all that is known of a run's target, and the method to choose under a constraint.

All finished runs next to RUN with its backbone and its target are shown, with their baselines, seeds and evaluated
checkpoints. Results and predictions are read; no model is loaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from imsm.cli.common import add_config_dir, import_from_config_dir, write_output
from imsm.utils.errors import UserError, file_error
from imsm.utils.paths import check_links, resolve_run_dir, runs_root

_FORMATS = (".md", ".csv", ".png")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="imsm tradeoff", description="Compare all finished runs on one target, and recommend one."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder or name of a finished run; one for each target")
    parser.add_argument("--keep", type=float, default=95.0, metavar="PERCENT", help="least retention (default: 95)")
    parser.add_argument("--target-at-least", type=float, metavar="POINTS", help="least score on the target")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=f"write table or plot; ends in {', '.join(_FORMATS)}"
    )
    add_config_dir(parser)
    return parser


def main(arguments: list[str]) -> None:
    """Print the table and the recommendation of each run's target.

    Raises:
        UserError: a run is not finished or has no target, or the output is not possible.
    """
    options = parser().parse_args(arguments)
    output = options.output
    if output is not None and output.suffix not in _FORMATS:
        raise UserError(f"--output {output}: must end in {', '.join(_FORMATS)}")
    if output is not None and len(options.runs) > 1:
        raise UserError(f"--output {output}: is for one target; give one RUN")
    if not 0 <= options.keep <= 100:
        raise UserError(f"--keep {options.keep:g}: must be a percentage from 0 to 100")
    from rich.console import Console

    from imsm.evaluation.result import read_result
    from imsm.reporting.render.table import print_table
    from imsm.reporting.tradeoff_advice import advice_table, advise

    import_from_config_dir(options.config_dir)
    for run in options.runs:
        folder = resolve_run_dir(run)
        check_links(folder)
        result = read_result(folder)
        root = runs_root() if result["config"].get("run_dir") else folder.parent
        advice = advise(folder, result, runs_root=root, keep=options.keep, target_at_least=options.target_at_least)
        table = advice_table(advice)
        print_table(table, Console())
    if output is None:
        return
    if output.suffix == ".png":
        from imsm.reporting.tradeoff_advice import draw_advice

        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            draw_advice(advice).savefig(output, dpi=130, metadata={"Software": None})
        except OSError as error:
            raise file_error(error) or UserError(f"--output {output}: cannot be written ({error})") from error
    else:
        markdown = "\n\n".join([table.to_markdown(), *table.notes]) + "\n"
        write_output(output, markdown if output.suffix == ".md" else table.to_csv())
    print(f"tradeoff: {output}")
