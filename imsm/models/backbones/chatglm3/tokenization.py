"""Tokenizer of ChatGLM3: a SentencePiece model, nine special tokens after it, and a prefix.

`[gMASK] sop` precedes every text, `</s>` (2) ends it, and id 0 (the unknown piece) pads on the
left. Special tokens are never parsed from text: "<|user|>" or "sop" in a text is tokenized like
any other text (``split_special_tokens`` of transformers, which is the default here).

Source: behavior of the published tokenizer (zai-org/chatglm3-6b), whose SentencePiece model is used.
"""

import shutil
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from transformers import AddedToken, BatchEncoding, PreTrainedTokenizer

ROLES = ("system", "user", "assistant", "observation")
SPECIAL_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", *(f"<|{role}|>" for role in ROLES))
"""In the order of their ids, which follow the last piece (64789 in the published model)."""
Texts = str | list[Any]
_PUBLISHED_CODE = {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}
"""Saved but never executed. Without imsm, transformers then reports the missing code instead of
silently building another kind of tokenizer from the same file."""


class ChatGLMTokenizer(PreTrainedTokenizer):
    """A `PreTrainedTokenizer` based on a SentencePiece file, with the published class name.

    Raises:
        ValueError: ``vocab_file`` is missing, or not a SentencePiece model.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"

    def __init__(self, vocab_file: str | None = None, **options: Any) -> None:
        # All set before super().__init__(), which reads the vocabulary.
        self.pieces = _sentencepiece(vocab_file)
        self.vocab_file = vocab_file
        first = len(self.pieces)
        self.special_ids = {token: first + place for place, token in enumerate(SPECIAL_TOKENS)}
        self._added_tokens_decoder = {
            place: AddedToken(token, special=True, normalized=False) for token, place in self.special_ids.items()
        }
        self.prefix_tokens = [self.special_ids["[gMASK]"], self.special_ids["sop"]]
        # Special tokens and their ids follow from the SentencePiece model; saved values would be added again.
        for key in ("added_tokens_decoder", "bos_token", "additional_special_tokens"):
            options.pop(key, None)
        options |= {
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<unk>",
            "extra_special_tokens": list(SPECIAL_TOKENS),
            "special_tokens_pattern": "prefix_suffix",
            "clean_up_tokenization_spaces": False,
            "auto_map": _PUBLISHED_CODE,
        }
        options.setdefault("split_special_tokens", True)
        super().__init__(**options)

    @property
    def vocab_size(self) -> int:
        """Number of pieces and special tokens; the embedding of the model has more rows."""
        return len(self.pieces) + len(SPECIAL_TOKENS)

    def get_vocab(self) -> dict[str, int]:
        """Return the ids of all pieces and special tokens; names are unique, since transformers counts them."""
        vocabulary = {}
        for index in range(len(self.pieces)):
            piece = self.pieces.id_to_piece(index)
            vocabulary[f"{piece} (piece)" if piece in self.special_ids else piece] = index
        return vocabulary | self.special_ids | self.added_tokens_encoder

    def _convert_token_to_id(self, token: str) -> int:
        return self.pieces.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        """Return the piece of an id, or "" for the padding rows of the embedding."""
        return self.pieces.id_to_piece(index) if 0 <= index < len(self.pieces) else ""

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        pieces: list[str] = self.pieces.encode(text, out_type=str)
        return pieces

    def _encode_plus(  # type: ignore[override]
        self, text: Texts, text_pair: Texts | None = None, **options: Any
    ) -> BatchEncoding:
        """Encode through ids, because a piece may be spelled like a special token ("sop")."""
        if options.get("split_special_tokens") and not options.get("is_split_into_words"):
            text = self._ids(text)
            text_pair = None if text_pair is None else self._ids(text_pair)
        return super()._encode_plus(text, text_pair, **options)

    def _ids(self, text: Texts) -> Texts:
        """Replace every string in nested lists by its ids; keep empty strings."""
        if isinstance(text, str):
            return self.pieces.encode(text) or ""
        if text and isinstance(text[0], int):
            return text
        return type(text)(self._ids(each) for each in text)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces to a text."""
        text: str = self.pieces.decode(tokens)
        return text

    def _decode(  # type: ignore[override]
        self, token_ids: int | list[int], skip_special_tokens: bool = False, **_: Any
    ) -> str:
        """Decode pieces with SentencePiece and special tokens to their names, or skip these."""
        ids = [token_ids] if isinstance(token_ids, int) else [int(token) for token in token_ids]
        # SentencePiece decodes runs of pieces: a piece alone would lose the space before it.
        special = set(self.all_special_ids)
        text = ""
        for is_special, run in groupby(ids, special.__contains__):
            if not is_special:
                text += self.pieces.decode([token for token in run if token < len(self.pieces)])
            elif not skip_special_tokens:
                text += "".join(self.convert_ids_to_tokens(list(run)))
        return text

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[dict[str, str]],
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        return_tensors: str | None = None,
    ) -> BatchEncoding | list[int]:
        """Encode a conversation: the prefix, then role, metadata, line break and content per message.

        A message has a ``role`` (one of `ROLES`), ``content``, and ``metadata`` for tool calls.

        Raises:
            ValueError: unknown role, or ``tokenize=False``.
        """
        if not tokenize:
            raise ValueError("tokenize=False: roles of ChatGLM3 have ids but no text; use tokenize=True")
        ids = list(self.prefix_tokens)
        for message in conversation:
            if message["role"] not in ROLES:
                raise ValueError(f"role={message['role']!r}: must be one of {', '.join(ROLES)}")
            ids.append(self.special_ids[f"<|{message['role']}|>"])
            # Encoded separately, as the published tokenizer does: no piece spans the line break.
            ids += self.pieces.encode(f"{message.get('metadata', '')}\n")
            ids += self.pieces.encode(message["content"])
        if add_generation_prompt:
            ids.append(self.special_ids["<|assistant|>"])
        encoded = self.prepare_for_model(
            ids, add_special_tokens=False, return_tensors=return_tensors, prepend_batch_axis=return_tensors is not None
        )
        return encoded if return_dict else encoded["input_ids"]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copy the SentencePiece model into ``save_directory``."""
        name = self.vocab_files_names["vocab_file"]
        target = Path(save_directory) / (f"{filename_prefix}-{name}" if filename_prefix else name)
        assert self.vocab_file is not None
        # shutil.copyfile raises SameFileError when a model is saved into its own folder.
        if not (target.exists() and target.samefile(self.vocab_file)):
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)


def _sentencepiece(file: str | None) -> SentencePieceProcessor:
    try:
        if file is None:
            raise RuntimeError("file not found")
        return SentencePieceProcessor(model_file=file)
    except RuntimeError as error:
        raise ValueError(
            f"{file or 'tokenizer.model'}: not a SentencePiece model ({error}); put the published tokenizer.model "
            "next to the weights"
        ) from error
