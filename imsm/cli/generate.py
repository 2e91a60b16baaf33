"""`imsm generate RUN TEXT`: generate an answer to a prompt with a finished run.

By default each method that the run has answers: the original model, the tuned one, and both interwoven.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from imsm.cli.common import add_config_dir, find_run, import_from_config_dir
from imsm.utils.control_characters import escape_controls
from imsm.utils.errors import UserError
from imsm.utils.run_dir import RunDir, read_identity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TextStreamer

    from imsm.models.siamese.streams import Stream

STREAMS: tuple[Stream, ...] = ("original", "tuned", "interwoven")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(prog="imsm generate", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="folder or name of a finished run")
    parser.add_argument("text", nargs="?", metavar="TEXT", help="prompt; default: standard input")
    parser.add_argument("--stream", choices=[*STREAMS, "all"], default="all", help="stream that answers (all)")
    parser.add_argument(
        "--skip",
        type=float,
        metavar="T",
        help="continue with one stream if the gate is below T or above 1 - T; default: the run's gate.skip_threshold",
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add_config_dir(parser)
    return parser


def main(arguments: list[str]) -> None:
    """Print the answers.

    Raises:
        UserError: the prompt is empty, or the run does not exist.
    """
    options = parser().parse_args(arguments)
    text = options.text if options.text is not None else sys.stdin.read().removesuffix("\n")
    if not text.strip():
        raise UserError("TEXT: is empty; give a prompt as an argument or on standard input")
    if options.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {options.max_new_tokens}: must be at least 1")
    import_from_config_dir(options.config_dir)
    print_answers(
        find_run(options.run),
        text,
        stream=options.stream,
        skip_threshold=_check_skip(options.skip),
        max_new_tokens=options.max_new_tokens,
        device=options.device,
    )


def _check_skip(threshold: float | None) -> float | None:
    if threshold is not None and not 0 < threshold < 0.5:
        raise UserError(f"--skip {threshold:g}: must be above 0 and below 0.5; choose 0.1")
    return threshold


def print_answers(
    folder: Path, text: str, *, stream: str, max_new_tokens: int, device: str, skip_threshold: float | None = None
) -> None:
    """Print the answer of one stream, or of each stream that the run has.

    ``skip_threshold`` replaces the run's own; the streams that the interwoven answer is from are printed after it.

    Raises:
        UserError: the run lacks the stream, or the prompt has words outside a closed vocabulary.
    """
    import torch

    from imsm.data.tokenization import encode_prompts
    from imsm.evaluation.generation import eos_token_ids
    from imsm.models.backbones.loading import load_tokenizer
    from imsm.models.siamese.kv_cache import DualStreamCache
    from imsm.models.siamese.model import SiameseForCausalLM
    from imsm.training.engines.single_device import choose_device

    model = SiameseForCausalLM.from_pretrained(folder, device=choose_device(device))
    tokenizer = load_tokenizer(name_or_path=str(folder / "model"))
    (ids,) = encode_prompts(tokenizer, [text], chat=_uses_chat_template(folder))
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise UserError(
            f"TEXT={text[:80]!r}: has words that are not in the backbone's vocabulary; the bundled tiny model only "
            "knows the words of its synthetic datasets"
        )
    prompt = torch.tensor([ids], device=model.device)
    available = model.available_streams()
    if stream not in ("all", *available):
        raise UserError(f"--stream {stream}: {folder.name} has {', '.join(available)}")
    if skip_threshold is not None and "interwoven" not in available:
        raise UserError(f"--skip {skip_threshold:g}: {folder.name} has no gate; give a run of method=imsm")
    model.skip_threshold = model.skip_threshold if skip_threshold is None else skip_threshold
    streams = [each for each in STREAMS if each in available and stream in ("all", each)]
    # one model answers for all streams: they share the backbone's weights
    for each in streams:
        model.stream = each
        print(f"{each}: " if len(streams) > 1 else "", end="", flush=True)
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=eos_token_ids(model, tokenizer),
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            streamer=_streamer(tokenizer),
            return_dict_in_generate=True,
        )
        cache = getattr(output, "past_key_values", None)
        if isinstance(cache, DualStreamCache) and cache.choice_names and cache.decision_gate is not None:
            print(f"decided: {cache.choice_names[0]}, gate {cache.decision_gate.item():.3f}")


def _streamer(tokenizer: PreTrainedTokenizerBase) -> TextStreamer:
    """Return a streamer to standard output that writes no control characters to a terminal."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(escape_controls(text) if sys.stdout.isatty() else text, stream_end)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _uses_chat_template(folder: Path) -> bool:
    """Return whether the run used a chat template; False for a model without the run's files."""
    run = RunDir(folder)
    if not run.is_trained and not run.identity.exists():
        return False
    return bool(read_identity(run, {"backbone": dict})["backbone"].get("chat_template", False))
