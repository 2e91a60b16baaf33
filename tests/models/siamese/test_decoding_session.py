"""A decoding session scores and decodes continuations as full passes do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig

from imsm.data.batching import collate_training
from imsm.data.tokenization import TokenizedExample
from imsm.evaluation.generation import generate_responses
from imsm.evaluation.likelihood import log_likelihoods
from imsm.models.adapters.base import AdapterSpec
from imsm.models.siamese import chunked_loss
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.streams import STREAMS
from tests.models.siamese.test_architectures import built
from tests.models.siamese.tiny import ARCHITECTURES, CASES, decoded, prompts, tiny_siamese, tiny_tokenizer

OTHERS = ["bamba, attention behind a state space", "mamba2, no cache", "openai-gpt, no cache"]
OTHERS += ["falcon, alibi", "gpt_oss", "gpt2"]
GOLDS = [[(5, 9, 31), (7,)], [(44,)], [], [(3, 3, 8, 60, 12), (80, 2), (4, 5, 6)]]


def session(model: SiameseForCausalLM, rows: list[list[int]], *, then: int = 9) -> DecodingSession:
    return DecodingSession(model, rows, pad_id=0, max_new_tokens=then)


def full_pass(model: SiameseForCausalLM, row: list[int], answer: tuple[int, ...]) -> float:
    """Return the log-likelihood by one pass over prompt and answer, without a cache."""
    example = TokenizedExample(id="", prompt_ids=tuple(row), answer_ids=answer)
    batch = collate_training([example], pad_id=0)
    sums, _ = model.log_likelihood(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
    return float(sums[0])


def end_tokens(answers: list[list[int]]) -> list[int]:
    """Return two tokens at which the answers end, at different steps."""
    tokens = [token for answer in answers for token in answer[1:]]
    for one, other in product(tokens, tokens):
        lengths = {next((n for n, t in enumerate(a) if t in (one, other)), 9) for a in answers}
        if len(lengths) > 1:
            return [one, other]
    raise AssertionError("the answers are all alike")


def check(model: SiameseForCausalLM, rows: list[list[int]] | None = None) -> None:
    """Compare likelihoods and responses of a session with full passes; rows end at different steps."""
    rows = rows or prompts(4)
    state = session(model, rows)
    found = log_likelihoods(state, GOLDS, pad_id=0)
    assert [len(own) for own in found] == [2, 1, 0, 3]
    for row, own, values in zip(rows, GOLDS, found, strict=True):
        for answer, value in zip(own, values, strict=True):
            assert value == pytest.approx(full_pass(model, row, answer), abs=2e-4)
    answers = [decoded(model, row, max_new_tokens=9, eos_token_id=None) for row in rows]
    ends = end_tokens(answers)
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
        made = generate_responses(state, tokenizer, max_new_tokens=9, stop=None)
    for answer, tokens in zip(made, expected, strict=True):
        kept = tokens[: len(tokens) - (tokens[-1] in (2, *ends))]
        assert answer.text == tokenizer.decode(kept, skip_special_tokens=True)
        assert (answer.tokens, answer.ended) == (len(kept), len(kept) < 9)
        assert (answer.gate_mean is None) == (model.stream != "interwoven")
        if answer.gate_per_token is not None:
            assert len(answer.gate_per_token) == len(tokens)
    running = [sum(len(tokens) > step for tokens in expected) for step in range(1, 9)]
    assert seen == [count for count in running if count]  # of four rows one is 15 %: the batch is always compacted
    assert min(map(len, expected)) < max(map(len, expected))


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_session_equals_full_passes(architecture: str, method: str, stream: str) -> None:
    model = tiny_siamese(architecture, method)
    model.stream = stream  # type: ignore[assignment]
    check(model)


@pytest.mark.parametrize("case", OTHERS)
def test_session_of_other_architectures(case: str) -> None:
    model, _ = built(case)
    check(model)


@pytest.mark.parametrize("pooling", ["max", "last"])
def test_session_with_other_poolings(pooling: str) -> None:
    check(tiny_siamese("qwen2", "lora", pooling=pooling))


def test_session_with_prefix_tuning() -> None:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    check(tiny_siamese("llama", AdapterSpec(config)))


def test_long_answers_are_scored_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_siamese()
    state = session(model, prompts(4))
    expected = log_likelihoods(state, GOLDS, pad_id=0)
    sizes: list[int] = []
    plain = DecodingSession.forward

    def counted(self: DecodingSession, tokens: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor:
        sizes.append(tokens.numel())
        return plain(self, tokens, mask=mask)

    monkeypatch.setattr(DecodingSession, "forward", counted)
    monkeypatch.setattr(chunked_loss, "MAX_LOGITS", 97 * 4)
    pieces = log_likelihoods(state, GOLDS, pad_id=0)
    assert max(sizes) <= 4 < sum(sizes)
    for one, other in zip(pieces, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_forks_are_limited_in_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_siamese()
    state = session(model, prompts(4))
    expected = log_likelihoods(state, GOLDS, pad_id=0)
    longest = max(map(len, prompts(4)))
    assert state.row_bytes() == 2 * 3 * 2 * 2 * 8 * 4 * longest  # streams, layers, k and v, heads
    sizes: list[int] = []
    plain = DecodingSession.fork

    def counted(self: DecodingSession, rows: list[int]) -> DecodingSession:
        sizes.append(len(rows))
        return plain(self, rows)

    monkeypatch.setattr(DecodingSession, "fork", counted)
    monkeypatch.setattr("imsm.evaluation.likelihood.MAX_COPY_BYTES", 2 * state.row_bytes() + 1)
    found = log_likelihoods(state, GOLDS, pad_id=0)
    assert sizes == [2, 2, 2]  # of six answers, two at a time
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_fork_leaves_the_session_unchanged() -> None:
    model = tiny_siamese()
    rows = prompts(3)
    state, untouched = session(model, rows), session(model, rows)
    with torch.inference_mode():
        other = state.fork([2, 0])
        other.forward(torch.tensor([[5, 6], [7, 8]]))
        assert len(other) == 2 and len(state) == 3
        on = torch.tensor([[9], [10], [11]])
        assert torch.equal(state.forward(on), untouched.forward(on))
        alone = session(model, [rows[2] + [5, 6]])  # its query is longer
        assert not torch.allclose(alone.logits[0], other.logits[0], atol=1e-4)
        model.stream = "tuned"
        other = session(model, rows).fork([2, 0])
        other.forward(torch.tensor([[5, 6], [7, 8]]))
        torch.testing.assert_close(other.logits[0], session(model, [rows[2] + [5, 6]]).logits[0], atol=1e-4, rtol=0)


def decode(state: DecodingSession, steps: int) -> list[list[int]]:
    """Return the greedy tokens of each row."""
    tokens: list[list[int]] = [[] for _ in range(len(state))]
    for _ in range(steps):
        chosen = state.logits.argmax(dim=-1)
        for row, token in zip(tokens, chosen.tolist(), strict=True):
            row.append(token)
        state.forward(chosen[:, None])
    return tokens


@pytest.mark.parametrize("both_streams", [False, True])
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("architecture", "method"), [("llama", "lora"), ("gemma3", "lora"), ("qwen2", "ia3")])
def test_rows_join_and_leave(architecture: str, method: str, stream: str, both_streams: bool) -> None:
    model = tiny_siamese(architecture, method)
    model.stream = stream  # type: ignore[assignment]
    rows = [row[:2] for row in prompts(4)]
    rows[3] = rows[3][:1]
    options = {"pad_id": 0, "max_new_tokens": 5, "both_streams": both_streams}
    alone = [decode(DecodingSession(model, [row], **options), 5)[0] for row in rows]
    running = DecodingSession(model, rows[:2], **options)
    first = decode(running, 2)
    other = DecodingSession(model, rows[2:], **options)
    assert running.can_extend(other)
    running.extend(other)
    assert len(running) == 4
    # the longest row leaves, so that all others begin with padding
    running.select_rows([3, 1, 2])
    second = decode(running, 1)
    running.trim()
    assert running._mask.any(dim=0)[0] and running._mask.shape[1] == 5
    third = decode(running, 2)
    assert second[0] + third[0] == alone[3][:3]
    assert first[1] + second[1] + third[1] == alone[1][:5]
    assert second[2] + third[2] == alone[2][:3]
    running.select_rows([0])
    running.trim()
    assert running._mask.shape[1] == 4 and decode(running, 2)[0] == alone[3][3:5]


def test_rows_do_not_join_where_padding_matters() -> None:
    model = tiny_siamese("gemma3")
    options = {"pad_id": 0, "max_new_tokens": 3}
    short = DecodingSession(model, [[5, 6, 7]], **options)
    long = DecodingSession(model, [[5] * 20], **options)
    assert short.can_extend(short) and not short.can_extend(long)
    prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    virtual = DecodingSession(tiny_siamese("llama", AdapterSpec(prefix)), [[5, 6]], **options)
    assert not virtual.can_extend(virtual)


PREFIX = [11, 47, 5, 90, 23, 64, 8]


@contextmanager
def recorded_shapes() -> Iterator[list[tuple[int, ...]]]:
    """Record the shape of every forward pass; saving 8 positions suffices to share a prefix."""
    shapes: list[tuple[int, ...]] = []
    plain = DecodingSession._forward

    def recorded(self: DecodingSession, tokens: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        shapes.append(tuple(tokens.shape))
        return plain(self, tokens, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodingSession, "_forward", recorded)
        patch.setattr("imsm.models.siamese.decoding_session.MIN_SAVED_POSITIONS", 8)
        yield shapes


def with_inner_padding(model: SiameseForCausalLM) -> SiameseForCausalLM:
    """Allow padding inside sequences, as `check_backbone` does."""
    model.config.supports_inner_padding = True
    return model


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("architecture", "method"), [c for c in CASES if c[0] != "gemma3"])
def test_shared_prefix_is_processed_once(architecture: str, method: str, stream: str) -> None:
    model = with_inner_padding(tiny_siamese(architecture, method))
    model.stream = stream  # type: ignore[assignment]
    with recorded_shapes() as shapes:
        check(model, [[*PREFIX, *row] for row in prompts(4)])
    longest = max(map(len, prompts(4)))
    assert shapes[:2] == [(1, len(PREFIX)), (4, longest)]


@pytest.mark.parametrize("case", OTHERS)
def test_shared_prefix_of_other_architectures(case: str) -> None:
    model, _ = built(case)
    with recorded_shapes() as shapes:
        check(model, [[*PREFIX, *row] for row in prompts(4)])
    shared = model.config.supports_inner_padding and not case.startswith("bamba")
    assert (shapes[0] == (1, len(PREFIX))) == shared
    assert shared == (case in ("falcon, alibi", "gpt2"))


def test_backbone_without_inner_padding_shares_prefixes_of_equal_lengths_only() -> None:
    """MPT's ALiBi counts columns, so padding inside a sequence changes its output."""
    model, _ = built("mpt")
    assert model.config.supports_cache and not model.config.supports_inner_padding
    with recorded_shapes() as shapes:
        check(model, [[*PREFIX, *row] for row in prompts(4)])
    assert shapes[0] == (4, len(PREFIX) + max(map(len, prompts(4))))
    with recorded_shapes() as shapes:  # equal lengths need no padding
        check(model, [[*PREFIX, *row[:5], 7] for row in prompts(4, longest=20)])
    assert shapes[0] == (1, len(PREFIX))


@pytest.mark.parametrize(("window", "shared"), [(8, False), (27, False), (28, True)])
def test_shared_prefix_within_a_window(monkeypatch: pytest.MonkeyPatch, window: int, shared: bool) -> None:
    monkeypatch.setitem(ARCHITECTURES["gemma3"], "sliding_window", window)
    model = with_inner_padding(tiny_siamese("gemma3"))
    rows = [[*PREFIX, *row] for row in prompts(4)]
    assert max(map(len, rows)) + 9 == 28
    with recorded_shapes() as shapes:
        check(model, rows)
    assert (shapes[0] == (1, len(PREFIX))) == shared


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("equal", [False, True])
def test_shared_prefix_with_length_dependent_rope(monkeypatch: pytest.MonkeyPatch, kind: str, equal: bool) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [5.0] * 4, "factor": 4.0}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    rope |= factors if kind == "longrope" else {}
    rope["original_max_position_embeddings"] = 24
    monkeypatch.setitem(ARCHITECTURES["llama"], "rope_parameters", rope)
    monkeypatch.setitem(ARCHITECTURES["llama"], "max_position_embeddings", 96)
    model = with_inner_padding(tiny_siamese("llama"))
    rows = [[*PREFIX, *(row[:2] if equal else row)] for row in prompts(4)]
    for then, shared in ((24 - max(map(len, rows)), True), (25 - max(map(len, rows)), False)):
        with recorded_shapes() as shapes:
            state = session(model, rows, then=then)
        assert (shapes[0] == (1, len(PREFIX))) == shared
        for row, logits in zip(rows, state.logits, strict=True):
            torch.testing.assert_close(logits, session(model, [row]).logits[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("pooling", ["max", "last"])
def test_shared_prefix_with_other_poolings(pooling: str) -> None:
    with recorded_shapes() as shapes:
        check(
            with_inner_padding(tiny_siamese("llama", "lora", pooling=pooling)), [[*PREFIX, *row] for row in prompts(4)]
        )
    assert shapes[0] == (1, len(PREFIX))


def test_shared_prefix_with_prefix_tuning() -> None:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = with_inner_padding(tiny_siamese("llama", AdapterSpec(config)))
    with recorded_shapes() as shapes:
        check(model, [[*PREFIX, *row] for row in prompts(4)])
    assert shapes[0] == (1, len(PREFIX))


def test_shared_prefix_of_equal_prompts() -> None:
    model = with_inner_padding(tiny_siamese())
    row = [*PREFIX, 9]
    with recorded_shapes() as shapes:
        state = session(model, [row] * 4)
    assert shapes == [(1, len(PREFIX)), (4, 1)]
    torch.testing.assert_close(state.logits[3], session(model, [row]).logits[0])


BATCH_SHAPES = [(1, 12), (1, 9), (2, 6)]
"""Shapes of the prefill batches of four prompts, with at most twelve tokens each."""


@contextmanager
def small_batches() -> Iterator[list[tuple[int, ...]]]:
    with recorded_shapes() as shapes, pytest.MonkeyPatch.context() as patch:
        patch.setattr("imsm.models.siamese.decoding_session.MAX_PREFILL_TOKENS", 12)
        yield shapes


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("architecture", "method"), [c for c in CASES if c[0] != "gemma3"])
def test_prompts_are_prefilled_in_batches(architecture: str, method: str, stream: str) -> None:
    model = tiny_siamese(architecture, method)
    model.stream = stream  # type: ignore[assignment]
    with small_batches() as shapes:
        check(model)
    assert shapes[:3] == BATCH_SHAPES


@pytest.mark.parametrize("case", OTHERS)
def test_prefill_batches_of_other_architectures(case: str) -> None:
    model, _ = built(case)
    with small_batches() as shapes:
        check(model)
    # no keys and values by position, or a narrow window
    together = case.startswith(("bamba", "mamba2", "openai-gpt", "gpt_oss"))
    assert shapes[0] == ((4, 12) if together else BATCH_SHAPES[0])


@pytest.mark.parametrize("pooling", ["max", "last"])
def test_prefill_batches_with_other_poolings(pooling: str) -> None:
    with small_batches() as shapes:
        check(tiny_siamese("llama", "lora", pooling=pooling), prompts(4)[::-1])
    assert shapes[:3] == [(2, 6), (1, 9), (1, 12)]


@pytest.mark.parametrize(("window", "together"), [(8, True), (20, True), (21, False)])
def test_prefill_batches_within_a_window(monkeypatch: pytest.MonkeyPatch, window: int, together: bool) -> None:
    monkeypatch.setitem(ARCHITECTURES["gemma3"], "sliding_window", window)
    with small_batches() as shapes:
        check(tiny_siamese("gemma3"))
    assert shapes[0] == ((4, 12) if together else BATCH_SHAPES[0])


def test_prefix_tuning_is_prefilled_in_one_batch() -> None:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with small_batches() as shapes:
        check(tiny_siamese("llama", AdapterSpec(config)))
    assert shapes[0] == (4, 12)


@pytest.mark.parametrize("stream", ["tuned", "interwoven"])
def test_each_prefill_batch_has_its_own_prefix(stream: str) -> None:
    model = with_inner_padding(tiny_siamese("llama"))
    model.stream = stream  # type: ignore[assignment]
    other = [PREFIX[0], *PREFIX[:0:-1]]
    rows = [[*other, 9, 31], [*other, 7, 5, 3], [*PREFIX, 7], [*PREFIX, 9, 12, 4]]
    with recorded_shapes() as shapes, pytest.MonkeyPatch.context() as patch:
        patch.setattr("imsm.models.siamese.decoding_session.MAX_PREFILL_TOKENS", 22)
        patch.setattr("imsm.models.siamese.decoding_session.MIN_SAVED_POSITIONS", 7)
        check(model, rows)
    assert shapes[:4] == [(1, 7), (2, 3), (1, 7), (2, 3)]


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_logits_do_not_depend_on_requires_grad(architecture: str) -> None:
    """Bit for bit: whether the gate's parameters require gradients changes nothing."""
    model = tiny_siamese(architecture)
    found = []
    for trained in (True, False):
        model.gate.requires_grad_(trained)  # type: ignore[union-attr]
        state = session(model, prompts(8))
        sums = log_likelihoods(state, [[(5, 9, 31), (7,)]] * 8, pad_id=0)
        found.append((state.logits, sums))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]
