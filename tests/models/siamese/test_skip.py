"""A query whose gate is decided continues with one stream, and gets exactly that stream's answer."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig

from imsm.data.batching import collate_training
from imsm.data.tokenization import TokenizedExample
from imsm.evaluation.generation import generate_responses
from imsm.evaluation.likelihood import log_likelihoods
from imsm.models.adapters.base import AdapterSpec
from imsm.models.siamese import decoding_session
from imsm.models.siamese.config import SiameseConfig
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.skip import CHOICES, check_threshold, choose_streams, follow_choices
from tests.models.siamese.tiny import QUERY_GATE, decoded, padded, prompts, tiny_backbone, tiny_siamese, tiny_tokenizer

NEW = 6
OPTIONS: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
STREAM = {"tuned": "tuned", "original": "original", "both": "interwoven"}


def prompt_gate(model: SiameseForCausalLM, row: list[int]) -> float:
    """Return the gate at the position that predicts the first token, without skipping."""
    query = torch.ones(1, len(row))
    return float(model(torch.tensor([row]), query_mask=query, logits_to_keep=1).gate)


@torch.no_grad()
def mixed(method: str = "lora") -> SiameseForCausalLM:
    """Return a model, without a threshold yet, that decides four prompts in three ways at a threshold of 0.3."""
    model = tiny_siamese("llama", method, gate={**QUERY_GATE, "granularity": "scalar", "bias": 0.0})
    # the logits are moved and scaled: one is 0, the others are on both sides of it
    logits = sorted(math.log(gate / (1 - gate)) for gate in (prompt_gate(model, row) for row in prompts(4)))
    scale = 1.2 / min(logits[1] - logits[0], logits[3] - logits[1])
    model.gate.up.weight.mul_(scale)
    model.gate.bias.sub_(logits[1]).mul_(scale)
    return model


def by_hand(model: SiameseForCausalLM, rows: list[list[int]], threshold: float) -> list[tuple[str, list[int]]]:
    """Choose the stream of each prompt from its gate, and decode the prompt alone with it."""
    results = []
    model.skip_threshold = None
    for row in rows:
        gate = prompt_gate(model, row)
        choice = "tuned" if gate < threshold else "original" if gate > 1 - threshold else "both"
        model.stream = STREAM[choice]  # type: ignore[assignment]
        results.append((choice, decoded(model, row, eos_token_id=None, max_new_tokens=NEW)))
        model.stream = "interwoven"
    return results


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "prefix", "prompt"])
def test_a_mixed_batch_answers_as_the_streams_chosen_by_hand(method: str) -> None:
    configs = {"prefix": PrefixTuningConfig, "prompt": PromptTuningConfig}
    if method in configs:
        adapter = AdapterSpec(configs[method](task_type="CAUSAL_LM", num_virtual_tokens=3))
        model = tiny_siamese("llama", adapter)
        gates = [prompt_gate(model, row) for row in prompts(4)]
        threshold = sorted(gate if gate < 0.5 else 1 - gate for gate in gates)[1] + 1e-3
        threshold = min(threshold, 0.499)
    else:
        model, threshold = mixed(method), 0.3
    rows = prompts(4)
    expected = by_hand(model, rows, threshold)
    assert len({choice for choice, _ in expected}) > 1
    model.skip_threshold = threshold
    ids, mask = padded(rows, side="left")
    output = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, **OPTIONS)
    cache = output.past_key_values
    assert cache.choice_names == [choice for choice, _ in expected]
    assert output.sequences[:, ids.shape[1] :].tolist() == [tokens for _, tokens in expected]
    alone = [decoded(model, row, eos_token_id=None, max_new_tokens=NEW) for row in rows]
    assert alone == [tokens for _, tokens in expected]
    model.config.supports_cache = False
    ids_alone = model.generate(ids, attention_mask=mask, **OPTIONS)
    assert torch.equal(ids_alone, output.sequences)


def test_a_decided_row_reads_one_stream_and_keeps_one_cache() -> None:
    model = mixed()
    model.skip_threshold = 0.3
    ids, mask = padded(prompts(4), side="left")
    cache = model.new_cache()
    model(ids, attention_mask=mask, past_key_values=cache)
    rows_read: list[int] = []
    hook = model.streams.decoder.layers[0].register_forward_pre_hook(lambda _, args: rows_read.append(len(args[0])))
    mask = torch.cat([mask, mask[:, -1:]], dim=1)
    output = model(ids[:, -1:], attention_mask=mask, past_key_values=cache)
    hook.remove()
    costs = [2 if name == "both" else 1 for name in cache.choice_names]
    assert sum(rows_read) == sum(costs) < 8
    assert sum(len(layer.keys) for layer in cache.layers) == 3 * sum(costs)
    weights = {"tuned": 0.0, "original": 1.0}
    for name, gate in zip(cache.choice_names, output.gate[:, 0].tolist(), strict=True):
        assert gate == weights.get(name, gate)
    assert [CHOICES[choice] for choice in output.choices] == cache.choice_names


@pytest.mark.parametrize("stream", ["tuned", "original"])
def test_logits_of_a_decided_prompt_equal_the_stream_bit_for_bit(stream: str) -> None:
    # prefix tuning runs each stream in its own pass, so that the shapes are those of the stream alone
    model = tiny_siamese("llama", AdapterSpec(PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)))
    with torch.no_grad():
        model.gate.bias = torch.nn.Parameter(torch.full((32,), -40.0 if stream == "tuned" else 40.0))
    ids, mask = padded(prompts(4), side="left")
    found = []
    for name, threshold in (("interwoven", 0.1), (stream, None)):
        model.stream, model.skip_threshold = name, threshold  # type: ignore[assignment]
        output = model.generate(ids, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **OPTIONS)
        found.append(torch.stack(output.logits))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}, {"prompt_lookup_num_tokens": 2}],
    ids=["beams", "several sequences", "prompt lookup"],
)
def test_other_decoding_methods_follow_the_decision(options: dict[str, Any]) -> None:
    model, rows = mixed(), prompts(4)
    choices = [choice for choice, _ in by_hand(model, rows, 0.3)]
    for row, choice in zip(rows, choices, strict=True):
        model.stream, model.skip_threshold = STREAM[choice], None  # type: ignore[assignment]
        expected = model.generate(torch.tensor([row]), **OPTIONS, **options)
        model.stream, model.skip_threshold = "interwoven", 0.3
        assert torch.equal(model.generate(torch.tensor([row]), **OPTIONS, **options), expected)


@pytest.mark.parametrize("assistant", ["another model", "its tuned stream"])
def test_an_assistant_changes_no_token_of_the_chosen_stream(assistant: str) -> None:
    model, helper = mixed(), tiny_siamese()
    helper.stream = "tuned"
    assistant_model = helper if assistant == "its tuned stream" else tiny_backbone("llama")
    answers = by_hand(model, prompts(4), 0.3)
    model.skip_threshold = 0.3
    for row, (_, expected) in zip(prompts(4), answers, strict=True):
        found = decoded(model, row, eos_token_id=None, max_new_tokens=NEW, assistant_model=assistant_model)
        assert found == expected
    helper.stream, helper.skip_threshold = "interwoven", 0.3
    with pytest.raises(ValueError, match="assistant_model: its interwoven stream cannot assist"):
        decoded(model, prompts(4)[0], assistant_model=helper)


def test_beams_of_a_mixed_batch_equal_those_of_each_row() -> None:
    model, rows = mixed(), prompts(4)
    model.skip_threshold = 0.3
    ids, mask = padded(rows, side="left")
    batch = model.generate(ids, attention_mask=mask, num_beams=3, **OPTIONS)[:, ids.shape[1] :]
    alone = [decoded(model, row, num_beams=3, eos_token_id=None, max_new_tokens=NEW) for row in rows]
    assert batch.tolist() == alone


def test_sampling_draws_from_the_chosen_stream() -> None:
    model = mixed()
    choices = [choice for choice, _ in by_hand(model, prompts(4), 0.3)]
    choice, row = next(pair for pair in zip(choices, prompts(4), strict=True) if pair[0] != "both")
    found = []
    for stream, threshold in (("interwoven", 0.3), (STREAM[choice], None)):
        model.stream, model.skip_threshold = stream, threshold  # type: ignore[assignment]
        torch.manual_seed(0)
        found.append(model.generate(torch.tensor([row]), **{**OPTIONS, "do_sample": True}))
    assert torch.equal(*found)


def test_a_prompt_in_chunks_is_decided_at_its_end() -> None:
    model, rows = mixed(), prompts(4)
    expected = by_hand(model, rows, 0.3)
    model.skip_threshold = 0.3
    for row, (choice, tokens) in zip(rows, expected, strict=True):
        output = model.generate(torch.tensor([row]), prefill_chunk_size=3, return_dict_in_generate=True, **OPTIONS)
        assert output.past_key_values.choice_names == [choice]
        assert output.sequences[0, len(row) :].tolist() == tokens


def test_a_finished_answer_continues_with_its_stream_and_a_longer_query_is_refused() -> None:
    model = mixed()
    choices = [choice for choice, _ in by_hand(model, prompts(4), 0.3)]
    row = prompts(4)[choices.index("tuned")]
    model.skip_threshold = 0.3
    tokens = decoded(model, row, eos_token_id=None, max_new_tokens=NEW)
    query = torch.ones(1, len(row))
    cache, first = model.new_cache(query_mask=query), {**OPTIONS, "max_new_tokens": 3}
    part = torch.tensor([row])
    for _ in range(2):
        mask = torch.ones_like(part)
        part = model.generate(part, attention_mask=mask, past_key_values=cache, query_mask=query, **first)
    assert part[0, len(row) :].tolist() == tokens
    longer = torch.cat([query, torch.zeros(1, 5), torch.ones(1, 2)], dim=1)
    with pytest.raises(ValueError, match=r"query_mask: extends a query whose stream is decided"):
        model(torch.tensor([[5, 6]]), past_key_values=cache, query_mask=longer)


def test_responses_and_likelihoods_are_of_the_chosen_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = mixed(), prompts(4)
    expected = by_hand(model, rows, 0.3)
    answers = [[(5, 9, 31), (7,)], [(44, 3)], [(8, 9)], [(3, 3, 8, 60)]]
    sums = []
    for row, own, (choice, _) in zip(rows, answers, expected, strict=True):
        model.stream = STREAM[choice]  # type: ignore[assignment]
        sums.append([likelihoods(model, [row], [answer])[0] for answer in own])
    model.stream, model.skip_threshold = "interwoven", 0.3
    tokenizer = tiny_tokenizer()
    # in one pass, in several that are joined, and after a common prefix
    for limit, prefix in ((2048, []), (16, []), (2048, [11] * 120)):
        monkeypatch.setattr(decoding_session, "MAX_PREFILL_TOKENS", limit)
        if prefix:
            rows, model.config.supports_inner_padding = [[*prefix, *row] for row in rows], True
            expected = by_hand(model, rows, 0.3)
            model.skip_threshold, sums = 0.3, []
            for row, own in zip(rows, answers, strict=True):
                sums.append([likelihoods(model, [row], [answer])[0] for answer in own])
        session = DecodingSession(model, rows, pad_id=0, max_new_tokens=NEW)
        for own, values in zip(sums, log_likelihoods(session, answers, pad_id=0), strict=True):
            assert values == pytest.approx(own, abs=2e-4)
        model.backbone.generation_config.eos_token_id = None
        made = generate_responses(session, tokenizer, max_new_tokens=NEW, stop=None)
        assert [each.choice for each in made] == [choice for choice, _ in expected]
        for each, (choice, tokens) in zip(made, expected, strict=True):
            until = tokens[: tokens.index(2)] if 2 in tokens else tokens
            assert each.text == tokenizer.decode(until, skip_special_tokens=True)
            assert each.gate_mean == {"tuned": 0, "original": 1}.get(choice, each.gate_mean)


def likelihoods(model: SiameseForCausalLM, rows: list[list[int]], answers: list[tuple[int, ...]]) -> list[float]:
    examples = [
        TokenizedExample(id="", prompt_ids=tuple(row), answer_ids=ids) for row, ids in zip(rows, answers, strict=True)
    ]
    batch = collate_training(examples, pad_id=0)
    sums, _ = model.log_likelihood(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
    return sums.tolist()


def test_log_likelihood_of_a_batch_follows_each_row() -> None:
    model, rows = mixed(), prompts(4)
    answers = [(5, 9, 31), (7,), (44, 3), (8, 9, 1, 2)]
    expected = []
    for row, answer, (choice, _) in zip(rows, answers, by_hand(model, rows, 0.3), strict=True):
        model.stream = STREAM[choice]  # type: ignore[assignment]
        expected += likelihoods(model, [row], [answer])
    model.stream, model.skip_threshold = "interwoven", 0.3
    assert likelihoods(model, rows, answers) == pytest.approx(expected, abs=2e-4)


def test_without_a_decided_row_nothing_changes_and_losses_never_do() -> None:
    model = tiny_siamese()
    ids, mask = padded(prompts(4), side="left")
    labels = ids.where(torch.arange(ids.shape[1]) > ids.shape[1] - 3, -100)
    with torch.no_grad():
        expected = model.generate(ids, attention_mask=mask, **OPTIONS)
        loss = model(ids, attention_mask=mask, labels=labels).loss
        model.skip_threshold = 0.01
        assert torch.equal(model.generate(ids, attention_mask=mask, **OPTIONS), expected)
        model.skip_threshold = 0.49
        assert torch.equal(model(ids, attention_mask=mask, labels=labels).loss, loss)


def test_rows_of_a_decided_batch_can_be_selected_repeated_and_forked() -> None:
    model, rows = mixed(), prompts(4)
    model.skip_threshold = 0.3
    session = DecodingSession(model, rows, pad_id=0, max_new_tokens=4)
    session.forward(torch.tensor([[5], [6], [7], [8]]))
    fork = session.fork([3, 0, 0, 2, 1])
    for state, order in ((fork, [3, 0, 0, 2, 1]), (session, [0, 1, 2, 3])):
        found = state.forward(torch.full((len(order), 1), 9))
        single = [DecodingSession(model, [rows[row]], pad_id=0, max_new_tokens=4) for row in order]
        for one, row, logits in zip(single, order, found, strict=True):
            one.forward(torch.tensor([[5 + row]]))
            assert torch.allclose(one.forward(torch.tensor([[9]]))[0], logits, atol=1e-3)


def test_a_reset_cache_decides_again() -> None:
    model, rows = mixed(), prompts(4)
    model.skip_threshold = 0.3
    cache, outputs = model.new_cache(), []
    ids, mask = padded(rows, side="left")
    for _ in range(2):
        outputs.append(model(ids, attention_mask=mask, past_key_values=cache).logits)
        model(ids[:, -1:], attention_mask=torch.cat([mask, mask[:, -1:]], dim=1), past_key_values=cache)
        assert cache.parts
        cache.reset()
        assert cache.choice_names is None and cache.get_seq_length() == 0
    assert torch.equal(*outputs)


def test_the_threshold_is_saved_with_the_model_and_absent_at_its_default(tmp_path: Path) -> None:
    model = tiny_siamese()
    model.save_pretrained(tmp_path / "without")
    assert "skip_threshold" not in json.loads((tmp_path / "without" / "config.json").read_text())
    model.skip_threshold = 0.2
    model.save_pretrained(tmp_path / "with")
    assert SiameseConfig.from_pretrained(tmp_path / "with").skip_threshold == 0.2
    assert copy.copy(model.config).skip_threshold == 0.2


@pytest.mark.parametrize("value", [0, 0.5, -0.1, 0.7, True, "0.1", float("nan")])
def test_other_thresholds_are_refused_in_one_line(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^skip_threshold=.*: must be above 0 and below 0.5[^\n]*$"):
        tiny_siamese().skip_threshold = value
    with pytest.raises(ValueError, match="skip_threshold"):
        SiameseConfig(skip_threshold=value)


def test_choices_and_their_hidden_states() -> None:
    choices = choose_streams(torch.tensor([0.05, 0.1, 0.5, 0.9, 0.95, torch.nan]), threshold=0.1)
    assert [CHOICES[each] for each in choices] == ["tuned", "both", "both", "both", "original", "both"]
    parts = [torch.full((6, 2), value) for value in (1.0, 2.0, 3.0)]
    hidden, gate = follow_choices(choices, parts[0], torch.full((6,), 0.5), original=parts[1], tuned=parts[2])
    assert hidden[:, 0].tolist() == [3, 1, 1, 1, 2, 1]
    assert gate.tolist() == [0, 0.5, 0.5, 0.5, 1, 0.5]
    assert check_threshold(None) is None and check_threshold(0.1) == 0.1
