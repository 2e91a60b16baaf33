"""Decoding with static caches gives the tokens of decoding with growing ones."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from imsm.evaluation.generation import Generation, generate_responses
from imsm.models.siamese import static_decoding
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.static_decoding import StaticDecodingSession, _StaticPart
from imsm.utils.errors import UserError
from tests.helpers.adapters import prompt_tuning
from tests.models.siamese.test_architectures import ROWS, built
from tests.models.siamese.tiny import CASES, QUERY_GATE, prompts, tiny_siamese, tiny_tokenizer

NEW = 20
SCALAR = {"_target_": "imsm.models.siamese.gate.Gate", "inputs": [], "rank": None, "init_value": 0.3}


def generated(model: SiameseForCausalLM, rows: list[list[int]], **options: Any) -> list[Generation]:
    session = DecodingSession(model, rows, pad_id=0, max_new_tokens=NEW)
    return generate_responses(session, tiny_tokenizer(), **{"max_new_tokens": NEW, "stop": None, **options})


def started(model: SiameseForCausalLM, rows: list[list[int]]) -> DecodingSession:
    """Return a session after the first token of each response."""
    session = DecodingSession(model, rows, pad_id=0, max_new_tokens=NEW)
    session.forward(session.logits.argmax(dim=-1)[:, None])
    return session


def answers(found: list[Generation]) -> list[tuple[str, int, bool]]:
    return [(each.text, each.tokens, each.ended) for each in found]


def make_eos_likely(model: SiameseForCausalLM, rows: list[list[int]]) -> None:
    """Declare tokens as EOS that end the responses of ``rows`` at different lengths."""
    words = [each.text.split()[4 * row : 4 * row + 4] for row, each in enumerate(generated(model, rows))]
    model.backbone.generation_config.eos_token_id = [2, *(int(each[-1][1:]) for each in words if each)]


@pytest.mark.parametrize(("architecture", "method"), CASES)
@pytest.mark.parametrize("stream", ["original", "tuned", "interwoven"])
def test_tokens_and_gates_are_those_of_growing_caches(architecture: str, method: str, stream: str) -> None:
    model = tiny_siamese(architecture, method)
    model.stream = stream  # type: ignore[assignment]
    rows = prompts(4, longest=12)
    make_eos_likely(model, rows)
    expected, found = generated(model, rows), generated(model, rows, static_cache=True)
    assert answers(found) == answers(expected)
    assert len({each.tokens for each in expected}) > 1  # rows end at different times
    for one, other in zip(found, expected, strict=True):
        assert one.gate_per_token == pytest.approx(other.gate_per_token, abs=2e-5)
    assert (found[0].gate_mean is not None) == (stream == "interwoven")


def test_attention_reads_the_columns_in_use(monkeypatch: pytest.MonkeyPatch, recordings: list[int]) -> None:
    """A recording is made for each number of columns, here 16, 32 and 48."""
    monkeypatch.setattr(static_decoding, "_BLOCK", 16)
    model, rows = tiny_siamese(), prompts(3, longest=12)
    growing, static = started(model, rows), StaticDecodingSession(started(model, rows), max_new_tokens=NEW)
    ((_, part),) = static._parts
    read = []
    for _ in range(NEW):
        tokens = growing.logits.argmax(dim=-1)[:, None]
        growing.forward(tokens)
        static.forward(tokens)
        read.append(part._length)
        torch.testing.assert_close(static.logits, growing.logits, atol=1e-5, rtol=1e-5)
    # 13 positions at the start
    assert read == [16] * 3 + [32] * 16 + [48]
    assert recordings == [3, 3, 3]


@pytest.mark.parametrize("gate", [QUERY_GATE, SCALAR])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_logits_are_within_1e_5(architecture: str, attention: str, gate: dict) -> None:
    model = tiny_siamese(architecture, gate=gate)
    model.backbone.set_attn_implementation(attention)
    rows = prompts(3, longest=12)  # Gemma's window of 8 is exceeded
    growing, static = started(model, rows), StaticDecodingSession(started(model, rows), max_new_tokens=NEW)
    for _ in range(NEW):
        tokens = growing.logits.argmax(dim=-1)[:, None]
        growing.forward(tokens)
        static.forward(tokens)
        torch.testing.assert_close(static.logits, growing.logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="full"):
        static.forward(tokens)


def test_rows_are_selected_and_the_addresses_stay() -> None:
    model, rows = tiny_siamese(), prompts(4)
    growing, static = started(model, rows), StaticDecodingSession(started(model, rows), max_new_tokens=NEW)
    for kept in ([0, 1, 2, 3], [3, 1], [1]):
        growing.select_rows(kept)
        static.select_rows(kept)
        addresses = [layer.keys.data_ptr() for layer in static._parts[0][1]._cache.layers]
        for _ in range(3):
            tokens = growing.logits.argmax(dim=-1)[:, None]
            growing.forward(tokens)
            static.forward(tokens)
            torch.testing.assert_close(static.logits, growing.logits, atol=1e-5, rtol=1e-5)
        assert [layer.keys.data_ptr() for layer in static._parts[0][1]._cache.layers] == addresses
    assert len(static) == 1


def test_two_passes_where_the_streams_cannot_share_a_batch() -> None:
    model, rows = tiny_siamese(), prompts(3)
    expected = answers(generated(model, rows))
    model.streams.batch_both = False
    assert answers(generated(model, rows, static_cache=True)) == expected


class FakeGraph:
    """A CUDA graph on a CPU: a recording changes no values, a replay runs the recorded step at its addresses."""

    session: _StaticPart

    def __enter__(self) -> None:
        # the operations that follow would only be recorded
        self.counters = [self.session._position, self.session._position_ids]
        self.counters += [layer.cumulative_length for layer in self.session._cache.layers]

    def __exit__(self, *_: object) -> None:
        for counter in self.counters:
            counter.sub_(1)

    def replay(self) -> None:
        logits, gate = self.session._step()
        self.session.logits.copy_(logits)
        assert gate is not None and self.session.gate is not None
        self.session.gate.copy_(gate)


class FakeStream:
    """A stream that runs everything at once."""

    def wait_stream(self, other: FakeStream) -> None: ...


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pretend that sessions can record CUDA graphs; return the number of rows of each recording."""
    recorded: list[int] = []
    record, made = _StaticPart._record, StaticDecodingSession.__init__

    def note(self: _StaticPart) -> None:
        FakeGraph.session = self
        recorded.append(len(self._tokens))
        record(self)

    monkeypatch.setattr(_StaticPart, "_record", note)
    monkeypatch.setattr(
        StaticDecodingSession,
        "__init__",
        lambda self, *given, **more: made(self, *given, **{"use_graph": True, **more}),
    )
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)
    return recorded


def test_a_recorded_step_is_replayed(recordings: list[int]) -> None:
    """The steps before a recording change neither positions nor tokens; fewer rows need a new recording."""
    model, rows = tiny_siamese(), prompts(8)
    make_eos_likely(model, rows)
    expected = answers(generated(model, rows))
    assert answers(generated(model, rows, static_cache=True)) == expected
    assert len(recordings) > 1 and recordings == sorted(set(recordings), reverse=True)


def test_a_step_that_cannot_be_recorded_runs_without_a_graph(
    recordings: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(graph: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph", fails)
    model, rows = tiny_siamese(), prompts(3)
    expected = answers(generated(model, rows))
    assert answers(generated(model, rows, static_cache=True)) == expected
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("no CUDA graph can be recorded (operation not permitted when stream is capturing)")
    assert len(recordings) == 1


def test_a_recording_without_memory_is_left_to_the_smaller_batch(
    recordings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(graph: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "graph", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        generated(tiny_siamese(), prompts(3), static_cache=True)


@pytest.mark.parametrize(
    ("reason", "key", "value"),
    [
        ("other masks than sdpa and eager", "_attn_implementation_internal", "flash_attention_2"),
        ("rotary frequencies", "rope_parameters", {"rope_type": "dynamic", "factor": 2.0}),
    ],
)
def test_a_configuration_that_cannot_be_decoded_so_is_one_line(reason: str, key: str, value: object) -> None:
    model = tiny_siamese()
    session = started(model, prompts(2))
    setattr(model.backbone.config, key, value)
    setattr(model.config.get_text_config(decoder=True), key, value)
    with pytest.raises(UserError, match=rf"^evaluation\.static_cache=true: .*{reason}.*; omit it$"):
        StaticDecodingSession(session, max_new_tokens=NEW)


def test_prompt_learning_cannot_be_decoded_so() -> None:
    virtual = tiny_siamese(method=prompt_tuning(num_virtual_tokens=3), gate=None)
    with pytest.raises(UserError, match=r"^evaluation\.static_cache=true: .*virtual tokens.*; omit it$"):
        generated(virtual, prompts(2), static_cache=True)


def deciding_threshold(model: SiameseForCausalLM, rows: list[list[int]]) -> float:
    """Return a threshold with which some rows of a batch, but not all, continue with one stream."""
    session = DecodingSession(model, rows, pad_id=0)
    assert session.gate is not None
    distances = torch.minimum(session.gate, 1 - session.gate).sort().values
    return float(distances[len(rows) // 2])


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("decided", ["some", "all", "none"])
def test_decided_rows_continue_with_their_stream(architecture: str, decided: str) -> None:
    model, rows = tiny_siamese(architecture), prompts(8)
    make_eos_likely(model, rows)
    threshold = {"some": deciding_threshold(model, rows), "all": 0.4999, "none": 1e-6}[decided]
    model.skip_threshold = threshold
    expected, found = generated(model, rows), generated(model, rows, static_cache=True)
    assert answers(found) == answers(expected)
    choices = [each.choice for each in expected]
    assert [each.choice for each in found] == choices
    assert ("both" in choices) == (decided != "all") and (set(choices) != {"both"}) == (decided != "none")
    for one, other in zip(found, expected, strict=True):
        assert one.gate_per_token == pytest.approx(other.gate_per_token, abs=2e-5)


@pytest.mark.parametrize("case", ["mistral", "gemma2", "gpt2", "opt", "mixtral", "gpt_oss", "deepseek_v3"])
def test_other_architectures(case: str) -> None:
    model, _ = built(case)
    growing, static = started(model, ROWS), StaticDecodingSession(started(model, ROWS), max_new_tokens=NEW)
    for _ in range(NEW):
        tokens = growing.logits.argmax(dim=-1)[:, None]
        growing.forward(tokens)
        static.forward(tokens)
        torch.testing.assert_close(static.logits, growing.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "case", ["bloom", "falcon, alibi", "bamba, attention behind a state space", "mamba2, no cache"]
)
def test_an_architecture_that_cannot_be_decoded_so_is_one_line(case: str) -> None:
    model, _ = built(case)
    session = DecodingSession(model, ROWS, pad_id=0, max_new_tokens=NEW)
    session.forward(session.logits.argmax(dim=-1)[:, None])
    with pytest.raises(UserError, match=r"^evaluation\.static_cache=true: .*; omit it$") as refused:
        StaticDecodingSession(session, max_new_tokens=NEW)
    assert "\n" not in str(refused.value)


def test_a_decoder_that_reads_its_mask_differently_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = _StaticPart._masks
    monkeypatch.setattr(_StaticPart, "_masks", lambda self: torch.ones_like(masks(self)))
    model = tiny_siamese()
    with pytest.raises(UserError, match=r"gives other logits with prepared masks \(by 0\.\d+\); omit it$"):
        StaticDecodingSession(started(model, prompts(2)), max_new_tokens=NEW)
    # a model that was compared once is not compared again
    monkeypatch.undo()
    StaticDecodingSession(started(model, prompts(2)), max_new_tokens=NEW)
    monkeypatch.setattr(DecodingSession, "fork", None)
    StaticDecodingSession(started(model, prompts(2)), max_new_tokens=NEW)
