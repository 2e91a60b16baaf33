"""A finished run's report again, with what came after it: `imsm report RUN`.

Nothing is asked and no model is loaded. Exit codes: 0 all went well, 2 the input was wrong.
"""

from __future__ import annotations

import argparse
import sys

from imsm.utils.errors import UserError
from imsm.utils.paths import resolve_run_dir, runs_root


def main(argv: list[str] | None = None) -> int:
    """Write the report and print the card."""
    parser = argparse.ArgumentParser(prog="imsm report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="a run's folder, or its name under the root of all runs")
    arguments = parser.parse_args(argv)
    try:
        _report(arguments.run)
    except UserError as error:
        print(f"imsm: {error}", file=sys.stderr)
        return 2
    return 0


def _report(named: str) -> None:
    from imsm.evaluation.result import read_result
    from imsm.reporting.report import write_report

    folder = resolve_run_dir(named)
    result = read_result(folder)
    # of a run in a folder of its own the original lies under the root of all runs
    root = runs_root() if result["config"].get("run_dir") else folder.parent
    try:
        write_report(folder, result, runs_root=root)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error


if __name__ == "__main__":
    sys.exit(main())
