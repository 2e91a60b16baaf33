"""`imsm push RUN OWNER/NAME`: upload a finished run's adapter and gate to the Hugging Face Hub.

The model card is made from the run's `result.json`. Log in with `hf auth login` or set HF_TOKEN.
"""

import argparse
from pathlib import Path

from imsm.utils.errors import UserError
from imsm.utils.files import write_atomic
from imsm.utils.paths import resolve_run_dir


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(prog="imsm push", description="Upload a finished run's adapter and gate.")
    parser.add_argument("run", metavar="RUN", help="folder or name of a finished run")
    parser.add_argument("name", metavar="OWNER/NAME", help="model repository on the Hub")
    parser.add_argument("--public", action="store_true", help="create a public repository (default: private)")
    return parser


def main(arguments: list[str]) -> None:
    """Write the model card and upload the model's folder."""
    options = parser().parse_args(arguments)
    print(f"pushed: {push(resolve_run_dir(options.run), options.name, private=not options.public)}")


def push(folder: Path, name: str, *, private: bool) -> str:
    """Upload a run's `model/` with its model card and return its URL.

    The repository is created if it does not exist; ``private`` applies only to a new one.

    Raises:
        UserError: the run trained nothing, or the upload failed.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from imsm.evaluation.result import read_result
    from imsm.reporting.model_card import model_card

    result = read_result(folder)
    if not (folder / "model").is_dir():
        raise UserError(f"run={folder}: has no trained model to upload")
    write_atomic(folder / "model" / "README.md", model_card(result))
    api = HfApi()
    try:
        url = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=folder / "model")
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{name}: the Hub rejected the upload ({first})") from error
    return str(url)
