"""A finished run's adapter and gate to the hub: `imsm push RUN OWNER/NAME`.

The model card is made from the run's `result.json`. The key is the hub's own (`hf auth login` or
HF_TOKEN). Exit codes: 0 pushed, 2 the input was wrong or the hub refused.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from imsm.utils.errors import UserError
from imsm.utils.paths import resolve_run_dir


def main(argv: list[str] | None = None) -> int:
    """Write the card and upload the model's folder."""
    parser = argparse.ArgumentParser(prog="imsm push", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", required=True, help="a run's folder, or its name")
    parser.add_argument("--to", required=True, metavar="OWNER/NAME", help="the model on the hub")
    parser.add_argument("--public", action="store_true", help="a new model is private otherwise")
    arguments = parser.parse_args(argv)
    try:
        url = push(resolve_run_dir(arguments.run, option="--run"), arguments.to, private=not arguments.public)
    except UserError as error:
        print(f"imsm: {error}", file=sys.stderr)
        return 2
    print(f"pushed: {url}")
    return 0


def push(folder: Path, name: str, *, private: bool) -> str:
    """Upload a run's `model/`, with its card; returns where it is.

    Args:
        folder: of the run.
        name: of the model on the hub; made if it is not there.
        private: whether a new one is.

    Raises:
        UserError: nothing was trained, or the hub refused.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from imsm.evaluation.result import read_result
    from imsm.reporting.model_card import model_card
    from imsm.utils.files import write_atomic

    result = read_result(folder)
    if not (folder / "model").is_dir():
        raise UserError(f"{folder}: nothing was trained in this run, there is nothing to push")
    write_atomic(folder / "model" / "README.md", model_card(result))
    api = HfApi()
    try:
        url = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=folder / "model")
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"--to {name}: the hub refused ({first})") from error
    return str(url)


if __name__ == "__main__":
    sys.exit(main())
