"""One reading of a prompt: rows let go of, answers weighed and decoded, against whole passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch

from imsm.data.batching import collate_training
from imsm.data.tokenization import TokenizedExample
from imsm.evaluation.generation import generate_responses
from imsm.evaluation.likelihood import log_likelihoods
from imsm.models.adapters.base import AdapterSpec
from imsm.models.siamese import chunked_loss as long_answers
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.streams import STREAMS
from tests.models.siamese.test_architectures import built
from tests.models.siamese.tiny import ARCHITECTURES, CASES, decoded, prompts, tiny_siamese, tiny_tokenizer

OTHERS = ["bamba, attention behind a state space", "mamba2, no cache", "openai-gpt, no cache"]
OTHERS += ["falcon, alibi", "gpt_oss", "gpt2"]
GOLDS = [[(5, 9, 31), (7,)], [(44,)], [], [(3, 3, 8, 60, 12), (80, 2), (4, 5, 6)]]


def reading(model: SiameseForCausalLM, rows: list[list[int]], *, then: int = 9) -> DecodingSession:
    return DecodingSession(model, rows, pad_id=0, max_new_tokens=then)


def whole(model: SiameseForCausalLM, row: list[int], answer: tuple[int, ...]) -> float:
    """By one pass over prompt and answer, without a cache."""
    item = TokenizedExample(id="", prompt_ids=tuple(row), answer_ids=answer)
    batch = collate_training([item], pad_id=0)
    sums, _ = model.log_likelihood(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
    return float(sums[0])


def ending(answers: list[list[int]]) -> list[int]:
    """Two tokens at which answers end, at different steps."""
    tokens = [token for answer in answers for token in answer[1:]]
    for one, other in product(tokens, tokens):
        lengths = {next((n for n, t in enumerate(a) if t in (one, other)), 9) for a in answers}
        if len(lengths) > 1:
            return [one, other]
    raise AssertionError("the answers are all alike")


def check(model: SiameseForCausalLM, rows: list[list[int]] | None = None) -> None:
    """Likelihoods and answers of one reading, with rows that end at different steps."""
    rows = rows or prompts(4)
    read = reading(model, rows)
    found = log_likelihoods(read, GOLDS, pad_id=0)
    assert [len(own) for own in found] == [2, 1, 0, 3]
    for row, own, values in zip(rows, GOLDS, found, strict=True):
        for answer, value in zip(own, values, strict=True):
            assert value == pytest.approx(whole(model, row, answer), abs=2e-4)
    answers = [decoded(model, row, max_new_tokens=9, eos_token_id=None) for row in rows]
    ends = ending(answers)
    model.backbone.generation_config.eos_token_id = ends
    expected = [decoded(model, row, max_new_tokens=9, eos_token_id=[2, *ends], pad_token_id=0) for row in rows]
    seen: list[int] = []
    plain = DecodingSession.forward

    def counted(self: DecodingSession, tokens: torch.Tensor) -> torch.Tensor:
        seen.append(len(tokens))
        return plain(self, tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodingSession, "forward", counted)
        tokenizer = tiny_tokenizer()
        made = generate_responses(read, tokenizer, max_new_tokens=9, stop=None)
    for answer, tokens in zip(made, expected, strict=True):
        said = tokens[: len(tokens) - (tokens[-1] in (2, *ends))]
        assert answer.text == tokenizer.decode(said, skip_special_tokens=True)
        assert (answer.tokens, answer.ended) == (len(said), len(said) < 9)
        assert (answer.gate_mean is None) == (model.stream != "interwoven")
        if answer.gate_per_token is not None:
            assert len(answer.gate_per_token) == len(tokens)
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
    check(tiny_siamese("llama", AdapterSpec(config)))


def test_long_answers_are_weighed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_siamese()
    read = reading(model, prompts(4))
    expected = log_likelihoods(read, GOLDS, pad_id=0)
    sizes: list[int] = []
    plain = DecodingSession.forward

    def counted(self: DecodingSession, tokens: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor:
        sizes.append(tokens.numel())
        return plain(self, tokens, mask=mask)

    monkeypatch.setattr(DecodingSession, "forward", counted)
    monkeypatch.setattr(long_answers, "LARGEST", 97 * 4)
    pieces = log_likelihoods(read, GOLDS, pad_id=0)
    assert max(sizes) <= 4 < sum(sizes)
    for one, other in zip(pieces, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_few_rows_are_copied_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_siamese()
    read = reading(model, prompts(4))
    expected = log_likelihoods(read, GOLDS, pad_id=0)
    longest = max(map(len, prompts(4)))
    assert read.row_bytes() == 2 * 3 * 2 * 2 * 8 * 4 * longest  # streams, layers, k and v, heads
    sizes: list[int] = []
    plain = DecodingSession.fork

    def counted(self: DecodingSession, rows: list[int]) -> DecodingSession:
        sizes.append(len(rows))
        return plain(self, rows)

    monkeypatch.setattr(DecodingSession, "fork", counted)
    monkeypatch.setattr("imsm.evaluation.likelihood.COPIED", 2 * read.row_bytes() + 1)
    found = log_likelihoods(read, GOLDS, pad_id=0)
    assert sizes == [2, 2, 2]  # of six answers, two at a time
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_copy_leaves_the_reading_where_it_is() -> None:
    model = tiny_siamese()
    rows = prompts(3)
    read, untouched = reading(model, rows), reading(model, rows)
    with torch.inference_mode():
        other = read.fork([2, 0])
        other.forward(torch.tensor([[5, 6], [7, 8]]))
        assert len(other) == 2 and len(read) == 3
        on = torch.tensor([[9], [10], [11]])
        assert torch.equal(read.forward(on), untouched.forward(on))
        alone = reading(model, [rows[2] + [5, 6]])  # the query is another one there
        assert not torch.allclose(alone.logits[0], other.logits[0], atol=1e-4)
        model.stream = "tuned"
        other = reading(model, rows).fork([2, 0])
        other.forward(torch.tensor([[5, 6], [7, 8]]))
        torch.testing.assert_close(other.logits[0], reading(model, [rows[2] + [5, 6]]).logits[0], atol=1e-4, rtol=0)


BEGINNING = [11, 47, 5, 90, 23, 64, 8]


@contextmanager
def noted() -> Iterator[list[tuple[int, ...]]]:
    """The shapes of what is read."""
    shapes: list[tuple[int, ...]] = []
    plain = DecodingSession._forward

    def read(self: DecodingSession, tokens: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        shapes.append(tuple(tokens.shape))
        return plain(self, tokens, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodingSession, "_forward", read)
        patch.setattr("imsm.models.siamese.decoding_session.MIN_SAVED_POSITIONS", 8)
        yield shapes


def examined(model: SiameseForCausalLM) -> SiameseForCausalLM:
    """Padding may stand inside its texts (which `imsm.models.builder` finds out)."""
    model.config.padded_inside = True
    return model


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("architecture", "method"), [c for c in CASES if c[0] != "gemma3"])
def test_a_common_beginning_is_read_once(architecture: str, method: str, stream: str) -> None:
    model = examined(tiny_siamese(architecture, method))
    model.stream = stream  # type: ignore[assignment]
    with noted() as shapes:
        check(model, [[*BEGINNING, *row] for row in prompts(4)])
    longest = max(map(len, prompts(4)))
    assert shapes[:2] == [(1, len(BEGINNING)), (4, longest)]


@pytest.mark.parametrize("case", OTHERS)
def test_a_common_beginning_of_other_architectures(case: str) -> None:
    model, _ = built(case)
    with noted() as shapes:
        check(model, [[*BEGINNING, *row] for row in prompts(4)])
    shared = model.config.padded_inside and not case.startswith("bamba")
    assert (shapes[0] == (1, len(BEGINNING))) == shared
    assert shared == (case in ("falcon, alibi", "gpt2"))


def test_places_are_no_tokens_to_some() -> None:
    """ALiBi by places (MPT): padding inside a text would change its answers."""
    model, _ = built("mpt")
    assert model.config.supports_cache and not model.config.padded_inside
    with noted() as shapes:
        check(model, [[*BEGINNING, *row] for row in prompts(4)])
    assert shapes[0] == (4, len(BEGINNING) + max(map(len, prompts(4))))
    with noted() as shapes:  # without padding there is none inside
        check(model, [[*BEGINNING, *row[:5], 7] for row in prompts(4, longest=20)])
    assert shapes[0] == (1, len(BEGINNING))


@pytest.mark.parametrize(("window", "shared"), [(8, False), (27, False), (28, True)])
def test_a_window_counts_places(monkeypatch: pytest.MonkeyPatch, window: int, shared: bool) -> None:
    monkeypatch.setitem(ARCHITECTURES["gemma3"], "sliding_window", window)
    model = examined(tiny_siamese("gemma3"))
    rows = [[*BEGINNING, *row] for row in prompts(4)]
    assert max(map(len, rows)) + 9 == 28
    with noted() as shapes:
        check(model, rows)
    assert (shapes[0] == (1, len(BEGINNING))) == shared


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("equal", [False, True])
def test_positions_that_turn_otherwise_in_longer_texts(
    monkeypatch: pytest.MonkeyPatch, kind: str, equal: bool
) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [5.0] * 4, "factor": 4.0}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    rope |= factors if kind == "longrope" else {}
    rope["original_max_position_embeddings"] = 24
    monkeypatch.setitem(ARCHITECTURES["llama"], "rope_parameters", rope)
    monkeypatch.setitem(ARCHITECTURES["llama"], "max_position_embeddings", 96)
    model = examined(tiny_siamese("llama"))
    rows = [[*BEGINNING, *(row[:2] if equal else row)] for row in prompts(4)]
    for then, shared in ((24 - max(map(len, rows)), True), (25 - max(map(len, rows)), False)):
        with noted() as shapes:
            read = reading(model, rows, then=then)
        assert (shapes[0] == (1, len(BEGINNING))) == shared
        for row, logits in zip(rows, read.logits, strict=True):
            torch.testing.assert_close(logits, reading(model, [row]).logits[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("pooling", ["max", "last"])
def test_a_common_beginning_under_other_poolings(pooling: str) -> None:
    with noted() as shapes:
        check(examined(tiny_siamese("llama", "lora", pooling=pooling)), [[*BEGINNING, *row] for row in prompts(4)])
    assert shapes[0] == (1, len(BEGINNING))


def test_a_common_beginning_after_learned_prompts() -> None:
    from peft import PrefixTuningConfig

    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = examined(tiny_siamese("llama", AdapterSpec(config)))
    with noted() as shapes:
        check(model, [[*BEGINNING, *row] for row in prompts(4)])
    assert shapes[0] == (1, len(BEGINNING))


def test_equal_prompts_are_told_apart_by_nothing() -> None:
    model = examined(tiny_siamese())
    row = [*BEGINNING, 9]
    with noted() as shapes:
        read = reading(model, [row] * 4)
    assert shapes == [(1, len(BEGINNING)), (4, 1)]
    torch.testing.assert_close(read.logits[3], reading(model, [row]).logits[0])


PARTS = [(1, 12), (1, 9), (2, 6)]
"""In which four prompts are read, twelve tokens at a time."""


@contextmanager
def in_parts() -> Iterator[list[tuple[int, ...]]]:
    with noted() as shapes, pytest.MonkeyPatch.context() as patch:
        patch.setattr("imsm.models.siamese.decoding_session.MAX_PREFILL_TOKENS", 12)
        yield shapes


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("architecture", "method"), [c for c in CASES if c[0] != "gemma3"])
def test_prompts_are_read_in_parts(architecture: str, method: str, stream: str) -> None:
    model = tiny_siamese(architecture, method)
    model.stream = stream  # type: ignore[assignment]
    with in_parts() as shapes:
        check(model)
    assert shapes[:3] == PARTS


@pytest.mark.parametrize("case", OTHERS)
def test_parts_of_other_architectures(case: str) -> None:
    model, _ = built(case)
    with in_parts() as shapes:
        check(model)
    # no keys and values by place, or a narrow window
    together = case.startswith(("bamba", "mamba2", "openai-gpt", "gpt_oss"))
    assert shapes[0] == ((4, 12) if together else PARTS[0])


@pytest.mark.parametrize("pooling", ["max", "last"])
def test_parts_under_other_poolings(pooling: str) -> None:
    with in_parts() as shapes:
        check(tiny_siamese("llama", "lora", pooling=pooling), prompts(4)[::-1])
    assert shapes[:3] == [(2, 6), (1, 9), (1, 12)]


@pytest.mark.parametrize(("window", "together"), [(8, True), (20, True), (21, False)])
def test_parts_within_a_window(monkeypatch: pytest.MonkeyPatch, window: int, together: bool) -> None:
    monkeypatch.setitem(ARCHITECTURES["gemma3"], "sliding_window", window)
    with in_parts() as shapes:
        check(tiny_siamese("gemma3"))
    assert shapes[0] == ((4, 12) if together else PARTS[0])


def test_no_parts_with_learned_prompts() -> None:
    from peft import PrefixTuningConfig

    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with in_parts() as shapes:
        check(tiny_siamese("llama", AdapterSpec(config)))
    assert shapes[0] == (4, 12)


@pytest.mark.parametrize("stream", ["tuned", "interwoven"])
def test_each_part_has_its_own_beginning(stream: str) -> None:
    model = examined(tiny_siamese("llama"))
    model.stream = stream  # type: ignore[assignment]
    other = [BEGINNING[0], *BEGINNING[:0:-1]]
    rows = [[*other, 9, 31], [*other, 7, 5, 3], [*BEGINNING, 7], [*BEGINNING, 9, 12, 4]]
    with noted() as shapes, pytest.MonkeyPatch.context() as patch:
        patch.setattr("imsm.models.siamese.decoding_session.MAX_PREFILL_TOKENS", 22)
        patch.setattr("imsm.models.siamese.decoding_session.MIN_SAVED_POSITIONS", 7)
        check(model, rows)
    assert shapes[:4] == [(1, 7), (2, 3), (1, 7), (2, 3)]


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_finished_model_reads_as_the_one_that_was_trained(architecture: str) -> None:
    """To the bit: a gate whose parameters want gradients is the same gate."""
    model = tiny_siamese(architecture)
    found = []
    for trained in (True, False):
        model.gate.requires_grad_(trained)  # type: ignore[union-attr]
        read = reading(model, prompts(8))
        sums = log_likelihoods(read, [[(5, 9, 31), (7,)]] * 8, pad_id=0)
        found.append((read.logits, sums))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]
