"""`imsm continual FOLDER ...`: tables and heat map of a finished task sequence.

FOLDER is the run folder of the last stage. With one folder, comparable sequences of the other
methods in the same parent folder are shown too. `sequence.json`, `.md`, `.csv` and `.png` are
written into the last folder given.
"""

import argparse
from pathlib import Path

from imsm.cli.common import add_config_dir, import_from_config_dir
from imsm.utils.paths import check_links


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="imsm continual", description="Show the tables and the heat map of a finished task sequence."
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="run folder of the last stage")
    add_config_dir(parser)
    return parser


def main(arguments: list[str]) -> None:
    """Print and write the tables.

    Raises:
        UserError: a folder has no finished sequence, or the sequences are not comparable.
    """
    options = parser().parse_args(arguments)
    import_from_config_dir(options.config_dir)
    check_links(options.folders[-1])
    from imsm.reporting.continual.report import write_sequence_report

    write_sequence_report(*options.folders)
