"""ChatGLM3's tokenizer over a small SentencePiece model that is trained here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from imsm.data.example import Example
from imsm.data.tokenization import tokenize_prompts, tokenize_training
from imsm.models.backbones.chatglm3.tokenization import SPECIAL_TOKENS, ChatGLMTokenizer
from imsm.models.backbones.loading import load_tokenizer
from imsm.utils.errors import UserError
from tests.models.backbones.chatglm3.checkpoint import PUBLISHED, TEXTS, TOKENIZER, save_tokenizer

EXAMPLE = "Using a Transformer network is simple"
HOSTILE = "<|user|> sop [gMASK] </s> philosophy <unk>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ "sop" is also a piece here, as any three letters may be."""
    folder = tmp_path_factory.mktemp("chatglm3")
    save_tokenizer(folder, texts=[*TEXTS, "asop bsop csop dsop fsop gsop"])
    (folder / "config.json").write_text(json.dumps(PUBLISHED))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> ChatGLMTokenizer:
    found = load_tokenizer(name_or_path=str(folder))
    assert isinstance(found, ChatGLMTokenizer)  # and the code beside it was not asked for
    return found


@pytest.fixture(scope="module")
def pieces(folder: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def test_a_text_is_encoded_as_prefix_and_pieces(tokenizer: ChatGLMTokenizer, pieces: SentencePieceProcessor) -> None:
    """The published example's structure: [gMASK] sop ▁Using ▁a ▁Trans former ▁network ..."""
    first = len(pieces)
    ids = tokenizer(EXAMPLE).input_ids
    assert ids == [first + 1, first + 3, *pieces.encode(EXAMPLE)]
    assert tokenizer.convert_ids_to_tokens(ids[:3]) == ["[gMASK]", "sop", "▁Using"]
    assert tokenizer(EXAMPLE, add_special_tokens=False).input_ids == pieces.encode(EXAMPLE)
    assert tokenizer.encode(EXAMPLE) == ids
    # with the published 64789 pieces these are 64789 ... 64797
    assert [tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS] == [*range(first, first + 9)]
    assert (tokenizer.vocab_size, len(tokenizer)) == (first + 9, first + 9)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (2, 0, 0)


@pytest.mark.parametrize("text", [EXAMPLE, HOSTILE, "naïve 東京 🙂", "two\nlines\n", "", " a  b "])
def test_decoding_restores_the_text(tokenizer: ChatGLMTokenizer, pieces: SentencePieceProcessor, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[2:] == pieces.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.decode([*ids, 2]) == f"[gMASK]sop{text}</s>"


def test_text_never_becomes_a_special_token(tokenizer: ChatGLMTokenizer) -> None:
    ids = tokenizer(HOSTILE, add_special_tokens=False).input_ids
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.tokenize("zsop")[-1] == "sop"  # the piece, not the token
    assert not set(tokenizer("zsop").input_ids[2:]) & set(tokenizer.all_special_ids)
    for batch in ([HOSTILE, EXAMPLE], [EXAMPLE, HOSTILE, ""]):
        rows = tokenizer(batch, add_special_tokens=False).input_ids
        assert rows[batch.index(HOSTILE)] == ids
    asked = tokenizer("yes<|user|>no", add_special_tokens=False, split_special_tokens=False)
    assert tokenizer.convert_tokens_to_ids("<|user|>") in asked.input_ids


def test_a_batch_is_padded_on_the_left_with_0(tokenizer: ChatGLMTokenizer) -> None:
    batch = tokenizer(["yes", EXAMPLE], padding=True, return_tensors="pt")
    short, long = tokenizer("yes").input_ids, tokenizer(EXAMPLE).input_ids
    gap = len(long) - len(short)
    assert batch["input_ids"].tolist() == [[0] * gap + short, long]
    assert batch["attention_mask"].tolist() == [[0] * gap + [1] * len(short), [1] * len(long)]
    assert batch["input_ids"].dtype == torch.int64
    assert set(batch) == {"input_ids", "attention_mask"}


def test_prompt_and_answer_in_training_and_evaluation(
    tokenizer: ChatGLMTokenizer, pieces: SentencePieceProcessor
) -> None:
    prefix = tokenizer.prefix_tokens
    example = Example(id="a", prompt="the capital of Lesotho", golds=("Maseru",))
    limits = {"max_prompt_tokens": 64, "closed_vocabulary": False}
    (trained,), _ = tokenize_training([example], tokenizer, max_answer_tokens=16, **limits)
    assert trained.prompt_ids == (*prefix, *pieces.encode("the capital of Lesotho"))
    assert trained.answer_ids == (*pieces.encode("Maseru"), 2)
    (asked,), _ = tokenize_prompts([example], tokenizer, **limits)
    assert (asked.prompt_ids, asked.answer_ids) == (trained.prompt_ids, ())


def test_ids_without_a_piece_decode_to_nothing(tokenizer: ChatGLMTokenizer) -> None:
    """The embedding is padded, so a model can generate an id that the tokenizer lacks."""
    ids = tokenizer("yes no", add_special_tokens=False).input_ids
    assert tokenizer.decode([*ids, len(tokenizer) + 5]) == "yes no"


def test_a_chat_is_role_tokens_and_pieces(tokenizer: ChatGLMTokenizer, pieces: SentencePieceProcessor) -> None:
    role = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("user", "assistant")}
    messages = [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": "yes"}]
    found = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    line = pieces.encode("\n")
    turns = [role["user"], *line, *pieces.encode(HOSTILE)]
    turns += [role["assistant"], *line, *pieces.encode("yes"), role["assistant"]]
    assert found["input_ids"] == [*tokenizer.prefix_tokens, *turns]
    rows = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=False)
    assert rows.shape == (1, len(found["input_ids"]) - 1)
    with pytest.raises(ValueError, match="tokenize=True"):
        tokenizer.apply_chat_template(messages, tokenize=False)
    with pytest.raises(ValueError, match=r"'tool'.*observation"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])


def test_a_saved_tokenizer_loads_again(tokenizer: ChatGLMTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is ChatGLMTokenizer
    assert (again.padding_side, again.pad_token_id, len(again)) == ("left", 0, len(tokenizer))
    assert again(HOSTILE).input_ids == tokenizer(HOSTILE).input_ids
    again.save_pretrained(tmp_path)  # over itself
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()


@pytest.mark.slow
def test_without_imsm_a_saved_tokenizer_is_rejected_not_replaced(tokenizer: ChatGLMTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    code = "from transformers import AutoTokenizer as A; import sys; print(A.from_pretrained("
    code += "sys.argv[1], trust_remote_code=False))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout
    assert "custom code" in done.stderr


def test_special_tokens_of_published_files_are_ignored(
    folder: Path, tmp_path: Path, tokenizer: ChatGLMTokenizer
) -> None:
    """They list "sop" as a token to match in any text, which would split words."""
    for name in ("tokenizer.model", "config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    listed = {"content": "sop", "lstrip": False, "normalized": True, "rstrip": False}
    listed |= {"single_word": False, "special": False}
    later = TOKENIZER | {"added_tokens_decoder": {"64792": listed}, "padding_side": "left"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(later))
    found = load_tokenizer(name_or_path=str(tmp_path))
    assert found(HOSTILE).input_ids == tokenizer(HOSTILE).input_ids
    assert found.get_vocab() == tokenizer.get_vocab()


def test_an_invalid_sentencepiece_file_is_named(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        load_tokenizer(name_or_path=str(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        load_tokenizer(name_or_path=str(tmp_path))
