"""Packed rows give each sequence its own loss, whatever stands before it in the row."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, masking_utils

from imsm.data.batching import collate_packed, collate_training
from imsm.data.tokenization import TokenizedExample
from imsm.models.siamese.hidden_state_cache import compute_in_memory
from imsm.models.siamese.kl import KLRegularizer
from imsm.models.siamese.labels import index_queries, sequence_numbers
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.packed_sequences import attention_arguments, check_packing, known_sequences, packed_sdpa
from imsm.models.siamese.streams import StreamRunner
from imsm.utils.errors import UserError
from tests.models.siamese.tiny import CASES, COMMON, QUERY_GATE, tiny_siamese
from tests.training.tiny_run import tiny_examples

CPU = torch.device("cpu")


def losses_and_gradients(
    model: SiameseForCausalLM, examples: list[TokenizedExample], **options: object
) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
    found = []
    for batch in (collate_training(examples, pad_id=0), collate_packed(examples)):
        model.zero_grad()
        output = model(**batch, **options)
        loss = output.loss if output.route_loss is None else output.loss + output.route_loss
        loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in model.parameters() if p.requires_grad]))
    return found


def assert_equal(found: list[tuple[torch.Tensor, list[torch.Tensor]]]) -> None:
    (padded, gradients), (packed, others) = found
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-5)
    for one, other in zip(others, gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("architecture, method", CASES)
def test_packed_losses_and_gradients_equal_padded_ones(architecture: str, method: str) -> None:
    """Gemma 3's sliding window of 8 is shorter than the sequences."""
    assert_equal(losses_and_gradients(tiny_siamese(architecture, method).train(), tiny_examples()))


@pytest.mark.parametrize("pooling", ["mean", "max", "last"])
def test_queries_are_pooled_per_sequence(pooling: str) -> None:
    assert_equal(losses_and_gradients(tiny_siamese(pooling=pooling).train(), tiny_examples()[:5]))


@pytest.mark.parametrize("options", [{"gate_target": 1.0}, {"objective": "kl"}, {"objective": "ce"}])
def test_other_losses(options: dict) -> None:
    assert_equal(losses_and_gradients(tiny_siamese().train(), tiny_examples()[:5], **options))


def test_kl_to_the_original() -> None:
    model = tiny_siamese(gate=None).train()
    model.kl_regularizer = KLRegularizer(weight=0.7)
    assert_equal(losses_and_gradients(model, tiny_examples()[:5]))


@pytest.mark.parametrize("gate", [QUERY_GATE, None])
def test_without_gradients(gate: dict | None) -> None:
    model, examples = tiny_siamese(gate=gate), tiny_examples()
    with torch.no_grad():
        padded = model(**collate_training(examples, pad_id=0)).loss
        torch.testing.assert_close(model(**collate_packed(examples)).loss, padded, atol=1e-5, rtol=1e-5)


def test_with_cached_hidden_states() -> None:
    model, examples = tiny_siamese().train(), tiny_examples()
    cache = compute_in_memory(model, examples, pad_id=0)
    expected = model(**collate_training(examples, pad_id=0)).loss
    found = model(**collate_packed(examples), **cache.model_inputs(examples)).loss
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_row_may_be_longer_than_the_backbones_positions_a_sequence_may_not() -> None:
    model = tiny_siamese()
    limit = COMMON["max_position_embeddings"]
    assert model(**collate_packed(tiny_examples(30))).loss is not None
    assert collate_packed(tiny_examples(30))["input_ids"].shape[1] > limit
    long = TokenizedExample(id="0", prompt_ids=(5,) * limit, answer_ids=(2,))
    with pytest.raises(UserError, match=f"{limit + 1} tokens exceed the {limit} positions"):
        model(**collate_packed([*tiny_examples(3), long]))


def test_nothing_predicts_the_first_token_of_a_sequence() -> None:
    examples = [*tiny_examples(2), TokenizedExample(id="0", prompt_ids=(), answer_ids=(5, 6, 2))]
    assert_equal(losses_and_gradients(tiny_siamese(gate=None).train(), examples))


def test_a_sequence_without_a_query_is_an_error() -> None:
    empty = TokenizedExample(id="0", prompt_ids=(), answer_ids=(5, 2))
    with pytest.raises(ValueError, match="packed sequence has no query"):
        tiny_siamese()(**collate_packed([*tiny_examples(2), empty]))


def test_query_positions_are_those_before_each_sequences_first_label() -> None:
    examples = tiny_examples()[:4]
    batch = collate_packed(examples)
    numbers = sequence_numbers(batch["position_ids"])
    queries = index_queries(batch["labels"], attention_mask=None, query_mask=None, sequences=numbers, device=CPU)
    assert queries.columns is not None
    for example, columns, mask in zip(examples, queries.columns, queries.mask, strict=True):
        assert tuple(batch["input_ids"][0][columns[mask]].tolist()) == example.prompt_ids


def test_boundaries_for_flash_attention() -> None:
    model, positions = tiny_siamese(), torch.tensor([[0, 1, 2, 0, 0, 1]])
    model.backbone.config._attn_implementation = "flash_attention_2"
    found, masked = attention_arguments(
        model.streams.decoder, positions, sequence_numbers(positions), device=torch.device("cpu")
    )
    assert masked is None
    assert found["cu_seq_lens_q"].tolist() == found["cu_seq_lens_k"].tolist() == [0, 3, 4, 6]
    assert found["cu_seq_lens_q"].dtype == torch.int32
    assert (found["max_length_q"], found["max_length_k"]) == (3, 3)


@pytest.mark.parametrize("attention", ["eager", "sdpa per sequence"])
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_every_attention_keeps_sequences_apart(architecture: str, checkpointing: bool, attention: str) -> None:
    model, examples = tiny_siamese(architecture).train(), tiny_examples()
    (padded, gradients), _ = losses_and_gradients(model, examples)
    if checkpointing:
        model.activation_checkpointing_enable()
    if attention == "eager":
        model.backbone.set_attn_implementation("eager")
    with packed_sdpa(model.backbone):
        check(model)
        _, found = losses_and_gradients(model, examples)
    assert model.backbone.config._attn_implementation == ("eager" if attention == "eager" else "sdpa")
    assert_equal([(padded, gradients), found])


def test_rows_of_a_batch_may_be_packed() -> None:
    model, examples = tiny_siamese().train(), tiny_examples(4)
    one, other = (collate_packed(part) for part in (examples[:2], examples[2:]))
    width = min(one["input_ids"].shape[1], other["input_ids"].shape[1])
    batch = {name: torch.cat([one[name][:, :width], other[name][:, :width]]) for name in one}
    with packed_sdpa(model.backbone):
        found = model(**batch, num_items_in_batch=1).loss
    parts = [{name: each[name][:, :width] for name in each} for each in (one, other)]
    expected = sum(model(**part, num_items_in_batch=1).loss for part in parts)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_the_search_of_transformers_is_restored_after_an_error() -> None:
    search = masking_utils.find_packed_sequence_indices
    with pytest.raises(KeyError), known_sequences(None):
        raise KeyError
    assert masking_utils.find_packed_sequence_indices is search


def check(model: SiameseForCausalLM) -> None:
    check_packing(model.streams, vocab_size=97, device=CPU)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
def test_models_that_keep_sequences_apart_pass_the_check(architecture: str) -> None:
    check(tiny_siamese(architecture))


@pytest.mark.parametrize(
    "shape",
    [
        {"model_type": "mamba", "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        {"model_type": "bloom", "vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    ],
)
def test_models_that_do_not_are_a_user_error(shape: dict) -> None:
    torch.manual_seed(0)
    arguments = dict(shape)
    config = AutoConfig.for_model(arguments.pop("model_type"), **arguments)
    backbone = AutoModelForCausalLM.from_config(config).eval()
    streams = StreamRunner(backbone, backbone.base_model)
    with pytest.raises(UserError, match=r"^trainer.packing=true: \w+ does not separate packed sequences"):
        check_packing(streams, vocab_size=97, device=CPU)
