"""`imsm push RUN OWNER/NAME`: upload a finished run's adapter and gate to the Hugging Face Hub.

Only known files are sent: configuration, adapter, gate, tokenizer, their hashes, `result.json` and a model card made
from it. Paths of this machine are replaced. Log in with `hf auth login` or set HF_TOKEN.
"""

import argparse
import json
import os
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from imsm.utils.errors import UserError, first_line
from imsm.utils.json_files import read_json
from imsm.utils.paths import resolve_run_dir
from imsm.utils.run_dir import RunDir

_CONFIGURATIONS = ("config.json", "generation_config.json", "adapter/adapter_config.json", "tokenizer_config.json")
"""JSON files in which paths are replaced."""
_CONTENTS = (
    *("adapter/adapter_model.safetensors", "gate.safetensors"),
    *("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "tokenizer.model"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
)
"""Files that are sent as they are."""
_HUB_CACHE = re.compile(r".*/models--([^/]+)--([^/]+)/snapshots/[^/]+")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(prog="imsm push", description="Upload a finished run's adapter and gate.")
    parser.add_argument("run", metavar="RUN", help="folder or name of a finished run")
    parser.add_argument("name", metavar="OWNER/NAME", help="model repository on the Hub")
    parser.add_argument("--public", action="store_true", help="create a public repository (default: private)")
    parser.add_argument("--dry-run", action="store_true", help="list the files that would be sent, and send nothing")
    return parser


def main(arguments: list[str]) -> None:
    """Write the files to send to a temporary folder, and upload or list them.

    Raises:
        UserError: the run trained nothing, its files changed, or the upload failed.
    """
    options = parser().parse_args(arguments)
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(options.name)
    except HFValidationError as error:
        raise UserError(f"OWNER/NAME {options.name}: is not the name of a repository ({first_line(error)})") from error
    with TemporaryDirectory(prefix="imsm-push-") as temporary:
        folder = Path(temporary)
        collect_files(resolve_run_dir(options.run, option="run"), folder)
        if options.dry_run:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                print(f"{path.stat().st_size:>14,} bytes  {path.relative_to(folder)}")
            return
        print(f"pushed: {push(folder, options.name, private=not options.public)}")


def collect_files(run: Path, folder: Path) -> None:
    """Copy the files of a run that are published to ``folder``, without paths of this machine.

    Raises:
        UserError: the run trained nothing, contains symbolic links, or its files changed.
    """
    from imsm.evaluation.result import read_result, write_result
    from imsm.models.siamese.serialization import verify_model_folder
    from imsm.reporting.model_card import model_card
    from imsm.utils.manifest import write_manifest

    model = RunDir(run).model
    result = read_result(run)
    if not (model / _CONFIGURATIONS[0]).is_file():
        raise UserError(f"run={run}: has no trained model to upload")
    for path in (model, *model.rglob("*")):
        if path.is_symlink():
            raise UserError(f"{path}: is a symbolic link, which is not uploaded; replace it by a copy")
    verify_model_folder(model)
    (folder / "adapter").mkdir()
    for name in _CONTENTS:
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
    for name in _CONFIGURATIONS:
        if (model / name).is_file():
            values = replace_paths(read_json(model / name, fix="remove the model and run its command again"))
            (folder / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_manifest(folder)
    # of the original result: a local backbone is not a base model on the Hub
    (folder / "README.md").write_text(model_card(result), encoding="utf-8")
    write_result(folder, replace_paths(result))


def replace_paths(value: Any) -> Any:
    """Replace absolute paths in JSON values: by the Hub id for a folder in the Hub's cache, else by the last name."""
    if isinstance(value, dict):
        return {key: replace_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [replace_paths(each) for each in value]
    if not isinstance(value, str) or not re.match(r"(/|~/|[A-Za-z]:[\\/])[^/]", value) or "\n" in value:
        return value
    cached = _HUB_CACHE.match(value)
    return f"{cached[1]}/{cached[2]}" if cached else os.path.basename(value.replace("\\", "/").rstrip("/"))


def push(folder: Path, name: str, *, private: bool) -> str:
    """Upload a folder and return the URL of the repository.

    The repository is created if it does not exist; ``private`` applies only to a new one.

    Raises:
        UserError: the upload failed.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    api = HfApi()
    try:
        url = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=folder)
    except OfflineModeIsEnabled as error:
        raise UserError(f"{name}: HF_HUB_OFFLINE is set; unset it to upload") from error
    # without a network the Hub's client raises the errors of its HTTP library, which depends on its version
    except Exception as error:
        raise UserError(
            f"{name}: the upload failed ({first_line(error)}); check the network, `hf auth whoami` and OWNER"
        ) from error
    return str(url)
