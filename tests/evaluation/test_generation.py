"""Generating answers: order, early stop, what is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from imsm.data.tokenization import TokenizedExample
from imsm.evaluation.generation import Generation, generate_responses
from imsm.models.builder import build_model
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.model import SiameseForCausalLM
from tests.helpers.tiny_backbone import save_backbone

TEXTS = [" the answer is 1 2 3 4 5 6 7 8 9 \n a b c d e f g h i j k l m n o p q r s t u v"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("backbone"), texts=TEXTS)


def scripted(model: SiameseForCausalLM, prompts: list[TokenizedExample], script: dict) -> None:
    """Make ``model`` continue a prompt that begins with token k by ``script[k]``."""
    forward = model.forward
    lengths = {prompt.prompt_ids[0]: len(prompt.prompt_ids) for prompt in prompts}

    def answer(**inputs: torch.Tensor):
        output = forward(**inputs)
        for row, mask in enumerate(inputs["attention_mask"].bool()):
            text = inputs["input_ids"][row][mask].tolist()
            token = script[text[0]][len(text) - lengths[text[0]]]
            output.logits[row, -1] = 0
            output.logits[row, -1, token] = 1
        return output

    model.config.cached = False  # each pass is fed whole texts
    model.forward = answer  # type: ignore[method-assign]


def answered(model, tokenizer, prompts, **options) -> list[Generation]:
    ids = [prompt.prompt_ids for prompt in prompts]
    reading = DecodingSession(model, ids, pad_id=tokenizer.pad_token_id)
    return generate_responses(reading, tokenizer, **options)


def test_early_stop_order_and_counts(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = build_model(
        backbone={"name_or_path": str(folder)}, adapter=None, gate=None, pooling="mean", stream="original", seed=0
    )

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    line, end = ids("\n"), [tokenizer.eos_token_id]
    firsts = {name: ids(f" {name}")[0] for name in "abcd"}
    never = ids(" 1") * 40
    script = {
        firsts["a"]: line + ids(" 7 8") + line + never,  # a blank line, then an answer and its end
        firsts["b"]: ids(" 9") + end + never,  # ends by itself
        firsts["c"]: never,  # never ends
        firsts["d"]: ids(" the answer is 3") + line + never,
    }
    prompts = [
        TokenizedExample(id=name, prompt_ids=(first, *[5] * extra), answer_ids=())
        for extra, (name, first) in enumerate(firsts.items(), start=1)
    ]
    scripted(model, prompts, script)
    answers = answered(model, tokenizer, prompts, max_new_tokens=12, stop=r"\S[^\n]*\n")
    assert [a.text for a in answers] == ["\n 7 8\n", " 9", " 1" * 12, " the answer is 3\n"]
    assert [a.ended for a in answers] == [True, True, False, True]
    assert [a.tokens for a in answers] == [4, 1, 12, 5]


def test_batching_changes_no_answer(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = build_model(
        backbone={"name_or_path": str(folder)}, adapter=None, gate=None, pooling="mean", stream="original", seed=0
    )
    generator = torch.Generator().manual_seed(0)
    prompts = [
        TokenizedExample(
            id=str(n),
            prompt_ids=tuple(torch.randint(4, 30, (3 + n % 7,), generator=generator).tolist()),
            answer_ids=(),
        )
        for n in range(20)
    ]

    def run(batch_size: int) -> list[str]:
        return [
            answer.text
            for start in range(0, len(prompts), batch_size)
            for answer in answered(model, tokenizer, prompts[start : start + batch_size], max_new_tokens=6, stop=None)
        ]

    alone = run(1)
    assert run(7) == alone
    assert len(set(alone)) > 5  # the answers differ, so the order is tested too
