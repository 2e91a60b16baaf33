"""Answer a text of one's own with a finished run: `imsm generate RUN "text"`.

Every arm that the run has answers: the original model, the tuned one, and both interwoven.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from imsm.utils.errors import UserError
from imsm.utils.paths import runs_root
from imsm.utils.run_dir import RunDir

if TYPE_CHECKING:
    from imsm.models.siamese.streams import Stream

ARMS: dict[str, Stream] = {"original": "original", "peft": "tuned", "imsm": "interwoven"}


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, print the answers; returns the exit code."""
    parser = argparse.ArgumentParser(prog="imsm generate", description=__doc__)
    parser.add_argument("run", help="folder of a finished run, or its name under the runs' root")
    parser.add_argument("text", nargs="?", help="what to answer; read from standard input if left out")
    parser.add_argument("--method", choices=[*ARMS, "all"], default="all", help="which arm answers (default: all)")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    options = parser.parse_args(arguments)
    try:
        text = options.text if options.text is not None else sys.stdin.read().removesuffix("\n")
        if not text.strip():
            raise UserError("there is no text to answer: give one, or send one on standard input")
        if options.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens {options.max_new_tokens}: must be at least 1")
        answers(
            _run_folder(options.run),
            text,
            method=options.method,
            max_new_tokens=options.max_new_tokens,
            device=options.device,
        )
    except UserError as error:
        print(f"imsm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def answers(folder: Path, text: str, *, method: str, max_new_tokens: int, device: str) -> None:
    """Print the answer of one arm, or of each arm that the run has under its name.

    Raises:
        UserError: no run there, an arm that it does not have, or a word that its closed
            vocabulary lacks.
    """
    import torch
    from transformers import AutoTokenizer, TextStreamer

    from imsm.data.tokenization import prompt_tokens
    from imsm.evaluation.generation import eos_token_ids
    from imsm.models.siamese.model import SiameseForCausalLM
    from imsm.training.engines.single_device import choose_device

    model = SiameseForCausalLM.from_pretrained(folder, device=choose_device(device))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
    (ids,) = prompt_tokens(tokenizer, [text], chat=_was_chatting(folder))
    _refuse_unknown_words(text, list(ids), tokenizer.unk_token_id)
    prompt = torch.tensor([ids], device=model.device)
    available = model.available_streams()
    chosen = [arm for arm, stream in ARMS.items() if stream in available]
    if method != "all":
        if method not in chosen:
            raise UserError(f"--method {method}: {folder.name} has {', '.join(chosen)}")
        chosen = [method]
    for arm in chosen:
        model.stream = ARMS[arm]
        print(f"{arm}: " if len(chosen) > 1 else "", end="", flush=True)
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=eos_token_ids(model, tokenizer),
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        )


def _run_folder(name: str) -> Path:
    """The folder that ``name`` is, or is the name of under the runs' root."""
    for folder in (Path(name).expanduser(), runs_root() / name):
        if (folder / "model" / "config.json").is_file():
            return folder
    root = runs_root()
    finished = sorted(path.parent.parent.name for path in root.glob("*/model/config.json"))
    raise UserError(f"{name}: no finished run here or under {root}; finished: {', '.join(finished) or 'none'}")


def _was_chatting(folder: Path) -> bool:
    """Whether the run's prompts were turns of a chat; a model without a run's records: no."""
    try:
        identity = json.loads(RunDir(folder).identity.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(identity["backbone"].get("chat_template", False))


def _refuse_unknown_words(text: str, ids: list[int], unknown: int | None) -> None:
    """A model with a closed vocabulary cannot read a word that it does not have."""
    if unknown is not None and unknown in ids:
        raise UserError(
            f"{text[:80]!r}: the backbone's vocabulary lacks some of these words; the miniature "
            "knows its own world alone"
        )


if __name__ == "__main__":
    sys.exit(main())
