"""Sampling from a decoding session."""

from __future__ import annotations

import random
from itertools import accumulate

import torch

from imsm.evaluation.sampling import sample_tokens
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.model import SiameseForCausalLM
from tests.models.siamese.tiny import ADAPTERS, tiny_siamese

PROMPTS = [(1,), (1, 5, 6), (1, 9), (1, 20, 21, 22)] * 2


def sample(
    model: SiameseForCausalLM, rows: list[int], *, temperature: float = 1.0, eos: tuple[int, ...] = ()
) -> list[list[int]]:
    session = DecodingSession(model, [PROMPTS[row] for row in rows], pad_id=0, max_new_tokens=6)
    uniforms = [[random.Random(f"{row}/{place}").random() for place in range(6)] for row in rows]
    return sample_tokens(session, uniforms, max_new_tokens=6, temperature=temperature, eos=eos)


def test_texts_do_not_depend_on_the_batch() -> None:
    model = tiny_siamese("llama", ADAPTERS["lora"]()).eval()
    model.stream = "original"
    together = sample(model, list(range(8)))
    assert [sample(model, [row])[0] for row in range(8)] == together
    assert together[0] != together[4]  # the same prompt with other random numbers
    # rows that end do not change the others
    eos = (together[0][2], together[3][4])
    ended = sample(model, list(range(8)), eos=eos)
    for row, full in zip(ended, together, strict=True):
        end = next((place for place, token in enumerate(full) if token in eos), 5)
        assert row == full[: end + 1]


def test_tokens_have_the_probabilities_of_the_model() -> None:
    """At a low temperature the most likely token, in general the inverse of the cumulative probability."""
    model = tiny_siamese("llama", ADAPTERS["lora"]()).eval()
    model.stream = "original"
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[1]])).logits[0, -1].double()
    assert sample(model, [1], temperature=1e-4)[0][0] == int(logits.argmax())
    drawn = random.Random("1/0").random()
    sums = list(accumulate(logits.softmax(dim=-1).tolist()))
    assert sample(model, [1])[0][0] == next(token for token, total in enumerate(sums) if total > drawn)
