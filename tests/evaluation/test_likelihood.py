"""Likelihoods of accepted answers."""

from __future__ import annotations

import pytest
import torch

from tests.evaluation.bench import Bench


def test_likelihoods_equal_those_of_one_forward_pass(bench: Bench) -> None:
    bench.evaluate()
    model = bench.model()
    for prompt, row in zip(bench.eval_set().prompts, bench.rows(), strict=True):
        answer = bench.tokenizer(row["references"][0], add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*prompt.prompt_ids, *answer]])
        with torch.no_grad():
            log_p = model(ids).logits.float().log_softmax(dim=-1)
        start = len(prompt.prompt_ids) - 1
        expected = sum(float(log_p[0, start + i, token]) for i, token in enumerate(answer))
        assert row["reference_loglik"] == pytest.approx(expected, abs=1e-4)
        assert row["reference_tokens"] == len(answer)
