"""`imsm export RUN`: write a finished run in a format of other programs.

`--merged DIR` writes the tuned stream as a plain model folder of transformers, without imsm.
"""

import argparse
from pathlib import Path

from imsm.cli.common import add_config_dir, find_run, import_from_config_dir
from imsm.utils.errors import UserError
from imsm.utils.run_dir import RunDir


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(prog="imsm export", description="Write a run in a format of other programs.")
    parser.add_argument("run", metavar="RUN", help="folder or name of a finished run")
    formats = parser.add_mutually_exclusive_group(required=True)
    formats.add_argument("--merged", type=Path, metavar="DIR", help="plain model folder with the adapter merged")
    parser.add_argument("--stream", choices=["tuned"], help="of a run with a gate: export this stream alone")
    add_config_dir(parser)
    return parser


def main(arguments: list[str]) -> None:
    """Write the export and print where it is.

    Raises:
        UserError: the run cannot be exported in this format, or the output exists.
    """
    options = parser().parse_args(arguments)
    import_from_config_dir(options.config_dir)
    if options.stream is not None and options.merged is None:
        raise UserError(f"--stream {options.stream}: is for --merged; omit it")
    _export_merged(RunDir(find_run(options.run)), options.merged, stream=options.stream)


def _export_merged(run: RunDir, folder: Path, *, stream: str | None) -> None:
    from imsm.pipeline.export_merged import export_merged

    change = export_merged(run, folder.expanduser().absolute(), stream=stream)
    print(f"{folder}: the tuned stream of {run.path.name}; merging changed log probabilities by at most {change:.1g}")
