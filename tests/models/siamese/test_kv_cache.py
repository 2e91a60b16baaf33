"""`DualStreamCache`: reordering, repeating, selecting and cropping sequences."""

from __future__ import annotations

import pytest
import torch

from imsm.models.siamese.kv_cache import DualStreamCache
from imsm.models.siamese.model import SiameseForCausalLM
from tests.models.siamese.tiny import padded, prompts, tiny_siamese


@pytest.fixture(params=["llama", "gemma3"])
def model(request: pytest.FixtureRequest) -> SiameseForCausalLM:
    return tiny_siamese(request.param, "lora")


def filled(model: SiameseForCausalLM) -> tuple[DualStreamCache, torch.Tensor, torch.Tensor]:
    """Return a cache filled with three prompts, their ids and mask."""
    ids, mask = padded(prompts(), side="left")
    cache = model.new_cache()
    with torch.no_grad():
        model(ids, attention_mask=mask, past_key_values=cache)
    return cache, ids, mask


@torch.no_grad()
def check_next(model: SiameseForCausalLM, cache: DualStreamCache, rows: list[int]) -> None:
    """Check that next-token logits equal those of full passes over the given prompts."""
    ids, mask = padded(prompts(), side="left")
    ids, mask = ids[rows], mask[rows]
    following = torch.arange(5, 5 + len(rows))[:, None]
    longer = torch.cat([mask, torch.ones_like(following)], dim=1)
    after = model(following, attention_mask=longer, past_key_values=cache).logits[:, 0]
    full = model(torch.cat([ids, following], 1), attention_mask=longer, query_mask=mask).logits
    torch.testing.assert_close(after, full[:, -1], atol=1e-4, rtol=1e-4)


def test_next_token(model: SiameseForCausalLM) -> None:
    check_next(model, filled(model)[0], [0, 1, 2])


def test_reorder(model: SiameseForCausalLM) -> None:
    cache, *_ = filled(model)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    check_next(model, cache, [2, 0, 0])


def test_repeat_then_select(model: SiameseForCausalLM) -> None:
    cache, *_ = filled(model)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([5, 1, 2]))
    check_next(model, cache, [2, 0, 1])


def test_repeat_an_empty_cache(model: SiameseForCausalLM) -> None:
    ids, mask = padded(prompts(), side="left")
    cache = model.new_cache(query_mask=mask)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3, 5]))
    with torch.no_grad():
        model(ids[[0, 1, 2]], attention_mask=mask[[0, 1, 2]], past_key_values=cache)
    check_next(model, cache, [0, 1, 2])


def test_crop_keeps_the_query(model: SiameseForCausalLM) -> None:
    cache, ids, mask = filled(model)
    if model.config.text_config.model_type == "gemma3_text":
        length = cache.get_seq_length()
        with pytest.raises(ValueError, match="query"):
            cache.crop(-2)
        assert cache.get_seq_length() == length
        return
    longer = torch.cat([mask, torch.ones_like(mask[:, :2])], dim=1)
    with torch.no_grad():
        model(ids[:, :2], attention_mask=longer, past_key_values=cache)
    cache.crop(-2)
    with pytest.raises(ValueError, match="query"):
        cache.crop(-1)
    check_next(model, cache, [0, 1, 2])


def test_reset_clears_the_query(model: SiameseForCausalLM) -> None:
    cache, ids, mask = filled(model)
    cache.reset()
    with torch.no_grad():
        model(ids[:, 6:], attention_mask=mask[:, 6:], past_key_values=cache)
        fresh = model.new_cache()
        model(ids[:, 6:], attention_mask=mask[:, 6:], past_key_values=fresh)
    assert torch.equal(cache.queries[0].pooled, fresh.queries[0].pooled)
    assert torch.equal(cache.queries[1].count, mask[:, 6:].sum(1, keepdim=True).float())
