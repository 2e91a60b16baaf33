"""Tokenizer of the miniature: a closed word-level vocabulary with decode(encode(text)) == text.

As in the tokenizer of Llama, a space belongs to the following word ("▁lamp"), and one is added to
the start of the text, so that a word at the start of an answer is the same token as within a
sentence. Numbers are single tokens ("▁12"). Other words are `<unk>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

BLANK = "▁"
PIECE = "▁?[A-Za-z]+|▁?[0-9]+|▁?[^A-Za-z0-9▁\n]|▁|\n"
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
LARGEST_NUMBER = 30


def vocabulary(texts: Iterable[str]) -> list[str]:
    """Return the pieces of the texts: special tokens and numbers first, then in alphabetical order."""
    pattern = re.compile(PIECE)
    pieces: set[str] = set()
    for text in texts:
        pieces.update(pattern.findall(BLANK + text.replace(" ", BLANK)))
    first = [*SPECIAL, "\n", BLANK, *(f"{BLANK}{number}" for number in range(LARGEST_NUMBER + 1))]
    return [*first, *sorted(pieces - set(first))]


def build_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """Build a fast tokenizer with these pieces; texts start with `<s>`."""
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    core.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    core.decoder = decoders.Sequence([decoders.Replace(BLANK, " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    core.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", words.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def write_tokenizer(folder: Path, words: list[str]) -> None:
    """Write the files of the tokenizer, reproducibly byte for byte."""
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer(words).save_pretrained(folder)
