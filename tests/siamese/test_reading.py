"""One reading of a prompt: rows let go of, answers weighed and decoded, against whole passes."""

from __future__ import annotations

import pytest
import torch

from imsm.adapters.adapter import Adapter
from imsm.data.batches import collate_training
from imsm.data.tokenise import TokenisedExample
from imsm.evaluation.generate import generate_answers
from imsm.evaluation.likelihood import log_likelihoods
from imsm.siamese import long_answers
from imsm.siamese.model import SiameseForCausalLM
from imsm.siamese.reading import Reading
from imsm.siamese.streams import STREAMS
from tests.siamese.test_architectures import built
from tests.siamese.tiny import CASES, decoded, padded, prompts, tiny_siamese, tiny_tokenizer

OTHERS = ["bamba, attention behind a state space", "mamba2, no cache", "openai-gpt, no cache"]
OTHERS += ["falcon, alibi", "gpt_oss", "gpt2"]
GOLDS = [[(5, 9, 31), (7,)], [(44,)], [], [(3, 3, 8, 60, 12), (80, 2), (4, 5, 6)]]


def reading(model: SiameseForCausalLM, rows: list[list[int]]) -> Reading:
    ids, mask = padded(rows, side="left")
    with torch.inference_mode():
        return Reading(model, ids, mask=mask)


def whole(model: SiameseForCausalLM, row: list[int], answer: tuple[int, ...]) -> float:
    """By one pass over prompt and answer, without a cache."""
    item = TokenisedExample(id="", prompt_ids=tuple(row), answer_ids=answer)
    batch = collate_training([item], pad_id=0)
    sums, _ = model.log_likelihood(
        batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]
    )
    return float(sums[0])


def check(model: SiameseForCausalLM) -> None:
    """Likelihoods and answers of one reading, with rows that end at different steps."""
    rows = prompts(4)
    read = reading(model, rows)
    found = log_likelihoods(read, GOLDS, pad_id=0)
    assert [len(own) for own in found] == [2, 1, 0, 3]
    for row, own, values in zip(rows, GOLDS, found, strict=True):
        for answer, value in zip(own, values, strict=True):
            assert value == pytest.approx(whole(model, row, answer), abs=2e-4)
    answers = [decoded(model, row, max_new_tokens=9, eos_token_id=None) for row in rows]
    ends = [answers[1][1], answers[3][4]]  # two rows end early, others perhaps
    model.backbone.generation_config.eos_token_id = ends
    expected = [
        decoded(model, row, max_new_tokens=9, eos_token_id=[2, *ends], pad_token_id=0)
        for row in rows
    ]
    seen: list[int] = []
    plain = Reading.read

    def counted(self: Reading, tokens: torch.Tensor) -> torch.Tensor:
        seen.append(len(tokens))
        return plain(self, tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reading, "read", counted)
        tokenizer = tiny_tokenizer()
        made = generate_answers(read, tokenizer, max_new_tokens=9, stop=None)
    for answer, tokens in zip(made, expected, strict=True):
        said = tokens[: len(tokens) - (tokens[-1] in (2, *ends))]
        assert answer.text == tokenizer.decode(said, skip_special_tokens=True)
        assert (answer.tokens, answer.ended) == (len(said), len(said) < 9)
        assert (answer.gate_mean is None) == (model.stream != "interwoven")
        if answer.gate_tokens is not None:
            assert len(answer.gate_tokens) == len(tokens)
    still = [sum(len(tokens) > step for tokens in expected) for step in range(1, 9)]
    assert seen == [count for count in still if count]  # of four rows one is 15 %: all are let go
    assert min(map(len, expected)) < max(map(len, expected))


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_equals_whole_passes(architecture: str, method: str, stream: str) -> None:
    model = tiny_siamese(architecture, method)
    model.stream = stream  # type: ignore[assignment]
    check(model)


@pytest.mark.parametrize("case", OTHERS)
def test_of_other_architectures_too(case: str) -> None:
    model, _ = built(case)
    check(model)


@pytest.mark.parametrize("pooling", ["max", "last"])
def test_of_other_poolings_too(pooling: str) -> None:
    check(tiny_siamese("qwen2", "lora", pooling=pooling))


def test_with_learned_prompts() -> None:
    from peft import PrefixTuningConfig

    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    check(tiny_siamese("llama", Adapter(config)))


def test_long_answers_are_weighed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_siamese()
    read = reading(model, prompts(4))
    expected = log_likelihoods(read, GOLDS, pad_id=0)
    sizes: list[int] = []
    plain = Reading.read

    def counted(self: Reading, tokens: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor:
        sizes.append(tokens.numel())
        return plain(self, tokens, mask=mask)

    monkeypatch.setattr(Reading, "read", counted)
    monkeypatch.setattr(long_answers, "LARGEST", 97 * 4)
    pieces = log_likelihoods(read, GOLDS, pad_id=0)
    assert max(sizes) <= 4 < sum(sizes)
    for one, other in zip(pieces, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_copy_leaves_the_reading_where_it_is() -> None:
    model = tiny_siamese()
    rows = prompts(3)
    read, untouched = reading(model, rows), reading(model, rows)
    with torch.inference_mode():
        other = read.copy([2, 0])
        other.read(torch.tensor([[5, 6], [7, 8]]))
        assert len(other) == 2 and len(read) == 3
        on = torch.tensor([[9], [10], [11]])
        assert torch.equal(read.read(on), untouched.read(on))
        alone = reading(model, [rows[2] + [5, 6]])  # the query is another one there
        assert not torch.allclose(alone.logits[0], other.logits[0], atol=1e-4)
        model.stream = "tuned"
        other = reading(model, rows).copy([2, 0])
        other.read(torch.tensor([[5, 6], [7, 8]]))
        torch.testing.assert_close(
            other.logits[0], reading(model, [rows[2] + [5, 6]]).logits[0], atol=1e-4, rtol=0
        )
