"""Greedy decoding: order, early stopping, token counts."""

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
    """Make ``model`` continue a prompt that starts with token k with ``script[k]``."""
    forward = model.forward
    lengths = {prompt.prompt_ids[0]: len(prompt.prompt_ids) for prompt in prompts}

    def forward_scripted(**inputs: torch.Tensor):
        output = forward(**inputs)
        for row, mask in enumerate(inputs["attention_mask"].bool()):
            text = inputs["input_ids"][row][mask].tolist()
            token = script[text[0]][len(text) - lengths[text[0]]]
            output.logits[row, -1] = 0
            output.logits[row, -1, token] = 1
        return output

    model.config.supports_cache = False  # every pass receives complete sequences
    model.forward = forward_scripted  # type: ignore[method-assign]


def generate(model, tokenizer, prompts, **options) -> list[Generation]:
    ids = [prompt.prompt_ids for prompt in prompts]
    session = DecodingSession(model, ids, pad_id=tokenizer.pad_token_id)
    return generate_responses(session, tokenizer, **options)


def test_order_stop_pattern_and_token_counts(folder: Path) -> None:
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
        firsts["a"]: line + ids(" 7 8") + line + never,  # a blank line, then an answer and a line break
        firsts["b"]: ids(" 9") + end + never,  # ends with EOS
        firsts["c"]: never,  # never ends
        firsts["d"]: ids(" the answer is 3") + line + never,
    }
    prompts = [
        TokenizedExample(id=name, prompt_ids=(first, *[5] * extra), answer_ids=())
        for extra, (name, first) in enumerate(firsts.items(), start=1)
    ]
    scripted(model, prompts, script)
    responses = generate(model, tokenizer, prompts, max_new_tokens=12, stop=r"\S[^\n]*\n")
    assert [a.text for a in responses] == ["\n 7 8\n", " 9", " 1" * 12, " the answer is 3\n"]
    assert [a.ended for a in responses] == [True, True, False, True]
    assert [a.tokens for a in responses] == [4, 1, 12, 5]


def test_responses_do_not_depend_on_the_batch_size(folder: Path) -> None:
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
            for answer in generate(model, tokenizer, prompts[start : start + batch_size], max_new_tokens=6, stop=None)
        ]

    alone = run(1)
    assert run(7) == alone
    assert len(set(alone)) > 5  # the responses differ, so the order is tested too
