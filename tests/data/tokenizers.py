"""Small tokenizers: word level, byte level and slow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def word_tokenizer(texts: Sequence[str], *, eos_added: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word or punctuation mark, BOS and optionally EOS."""
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=list(SPECIAL.values()), show_progress=False)
    core.train_from_iterator(texts, trainer)
    template = "<s> $A </s>" if eos_added else "<s> $A"
    core.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=core, **SPECIAL)


def byte_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE without BOS, where a space belongs to the next word."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="</s>")


class SlowTokenizer(PreTrainedTokenizer):
    """One token per character, in plain Python."""

    def __init__(self, **options: Any) -> None:
        self.characters = "~?abcdefghijklmnopqrstuvwxyzQAC:. \n"
        super().__init__(unk_token="~", eos_token="</s>", pad_token="<pad>", **options)

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def get_vocab(self) -> dict[str, int]:
        return {character: n for n, character in enumerate(self.characters)}

    def _tokenize(self, text: str, **options: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.get_vocab().get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return self.characters[index]
