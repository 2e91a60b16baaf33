"""Decoder inputs and query masks: positions, defaults and rejected arguments."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from imsm.models.siamese.inputs import decoder_inputs, query_mask_from_labels, select_positions
from imsm.models.siamese.model import SiameseForCausalLM
from tests.models.siamese.tiny import prompts, tiny_siamese


def test_positions_count_tokens_wherever_the_padding_is() -> None:
    ids = torch.tensor([[0, 0, 5, 6], [5, 0, 6, 0]])
    inputs = decoder_inputs(ids, attention_mask=(ids != 0).long())
    assert inputs["position_ids"].tolist() == [[0, 0, 0, 1], [0, 0, 1, 1]]


def test_query_is_everything_before_the_first_label() -> None:
    labels = torch.tensor([[-100, -100, 7, -100], [-100, 3, 4, 5]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    query = query_mask_from_labels(labels, attention_mask=mask, query_mask=None)
    assert query.tolist() == [[False, True, False, False], [True, False, False, False]]


@pytest.mark.parametrize("keep", [2, torch.tensor([1, 3])])
def test_selected_positions_are_contiguous(keep: int | torch.Tensor) -> None:
    values = torch.arange(24).view(2, 4, 3)
    selected = select_positions(values, keep)
    assert selected.is_contiguous() and selected.shape == (2, 2, 3)
    assert torch.equal(select_positions(values, 0), values)


def test_forward_without_query_positions_is_rejected() -> None:
    model = tiny_siamese()
    ids = torch.tensor(prompts()[:1])
    with pytest.raises(ValueError, match="query_mask"):
        model(ids)
    with pytest.raises(ValueError, match="query_mask"):
        model(ids, attention_mask=torch.ones_like(ids))
    model(ids, use_cache=True)  # the first chunk of a cache is the query
    for stream in ("original", "tuned"):
        model.stream = stream
        model(ids)


def assert_rejected(model: SiameseForCausalLM, message: str, **arguments: object) -> None:
    with pytest.raises(ValueError, match=message):
        model(**arguments)


def test_contradicting_arguments_are_rejected() -> None:
    model = tiny_siamese()
    ids = torch.tensor(prompts()[:1])
    answer = ids.where(torch.arange(ids.shape[1]) > 3, -100)
    query = torch.ones(1, 4)
    assert_rejected(model, "input_ids or inputs_embeds", query_mask=query)
    assert_rejected(model, "attention_mask", input_ids=ids, attention_mask=ids[:, :3], query_mask=query)
    assert_rejected(model, "query_mask", input_ids=ids, query_mask=torch.ones(1, 40))
    assert_rejected(model, "return_dict", input_ids=ids, query_mask=query, return_dict=False)
    assert_rejected(model, "^past_key_values: ", input_ids=ids, labels=answer, past_key_values=model.new_cache())
    assert_rejected(model, "new_cache", input_ids=ids, query_mask=query, past_key_values=DynamicCache())
    assert_rejected(model, "^labels: ", input_ids=ids, labels=torch.full_like(ids, -100))
    assert_rejected(model, "no query", input_ids=ids, labels=ids)
    assert_rejected(model, "first label", input_ids=ids, labels=answer, query_mask=torch.ones(1, 6))
    cache = model.new_cache()
    model.stream = "tuned"
    assert_rejected(model, "new_cache", input_ids=ids, past_key_values=cache)


@torch.no_grad()
def test_cache_rejects_another_query_mask() -> None:
    model = tiny_siamese()
    row = prompts()[0]
    ids = torch.tensor([row])
    cache = model.new_cache()
    model(ids[:, :6], past_key_values=cache)
    model(ids[:, 6:7], past_key_values=cache, query_mask=torch.ones(1, 6))  # the same mask
    with pytest.raises(ValueError, match=r"^query_mask: "):
        model(ids[:, 7:8], past_key_values=cache, query_mask=torch.ones(1, 7))
