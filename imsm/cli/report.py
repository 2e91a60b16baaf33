"""`imsm report RUN`: write a finished run's report again, with the runs and baselines added since."""

import argparse

from imsm.cli.common import add_config_dir, import_from_config_dir
from imsm.utils.errors import UserError, file_error
from imsm.utils.paths import check_links, resolve_run_dir, runs_root


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(prog="imsm report", description="Write a finished run's report again.")
    parser.add_argument("run", metavar="RUN", help="folder or name of a finished run")
    add_config_dir(parser)
    return parser


def main(arguments: list[str]) -> None:
    """Write the report and print its tables.

    Raises:
        UserError: no finished run, its metric is not trusted, or its folder cannot be written.
    """
    options = parser().parse_args(arguments)
    from imsm.evaluation.result import read_result
    from imsm.reporting.report import write_report

    import_from_config_dir(options.config_dir)
    folder = resolve_run_dir(options.run)
    check_links(folder)
    result = read_result(folder)
    # a run with its own run_dir is compared with the original in the runs' folder
    root = runs_root() if result["config"].get("run_dir") else folder.parent
    try:
        write_report(folder, result, runs_root=root)
    except OSError as error:
        raise file_error(error) or UserError(f"{folder}: cannot be written ({error.strerror or error})") from error
