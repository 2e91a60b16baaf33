"""Inference: what the cache lacks, gates, and batches that do not fit in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from imsm.distributed.context import DistributedContext
from imsm.evaluation import inference
from imsm.evaluation.inference import run_inference
from imsm.evaluation.response_cache import ResponseCache
from imsm.models.builder import build_model
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.model import SiameseForCausalLM
from tests.evaluation.bench import ROWS, Bench, cached_rows
from tests.helpers.adapters import lora


def test_gates_are_those_of_each_response(bench: Bench) -> None:
    """Compare with one forward pass over prompt and response, with an explicit query mask."""
    torch.manual_seed(0)
    model = build_model(
        backbone={"name_or_path": str(bench.backbone)},
        adapter=lora(target_modules=["q_proj", "v_proj"], r=2, lora_alpha=8, lora_dropout=0.0),
        gate={
            "_target_": "imsm.models.siamese.gate.Gate",
            "inputs": ["query_original", "original", "tuned", "query_tuned"],
            "rank": 2,
        },
        pooling="mean",
        stream="interwoven",
        seed=0,
    )
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad:
                value.normal_(std=0.5 if "gate" in name else 0.2)
        model.get_output_embeddings().weight[: bench.tokenizer.eos_token_id + 1] = 0  # EOS is never generated
    eval_set = bench.eval_set()
    responses, references = run_inference(
        eval_set,
        get_model=lambda: model,
        stream="interwoven",
        tokenizer=bench.tokenizer,
        fingerprint="woven",
        response_cache=ResponseCache(bench.root / "response_cache", fingerprint="woven"),
        batch_size=3,
        label="x",
        dist_context=DistributedContext(),
    )
    assert all(references)
    for prompt, row in zip(eval_set.prompts, responses, strict=True):
        start = torch.tensor([prompt.prompt_ids])
        ids = model.generate(start, max_new_tokens=4, do_sample=False, pad_token_id=bench.tokenizer.pad_token_id)
        with torch.no_grad():
            output = model(ids, query_mask=torch.ones_like(start))
        expected = output.gate[0, start.shape[1] - 1 : -1].tolist()
        assert row["gate_per_token"] == pytest.approx(expected, abs=2e-5)
        assert row["gate_mean"] == pytest.approx(sum(expected) / len(expected), abs=2e-5)
    means = [row["gate_mean"] for row in responses]
    assert max(means) - min(means) > 1e-3  # each example has its own


def test_only_new_examples_are_computed(bench: Bench) -> None:
    bench.evaluate()
    before = set(cached_rows(bench.cache_file()))
    lines = "".join(json.dumps(row) + "\n" for row in [*ROWS, {"input": "say red: ", "output": "red"}])
    (bench.root / "data" / "test.jsonl").write_text(lines)
    bench.evaluate()
    after = set(cached_rows(bench.cache_file()))
    assert before < after
    assert len(after) == len(before) + 2


def test_a_batch_that_does_not_fit_is_halved_with_equal_responses(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.evaluate()
    expected = [row["response"] for row in bench.rows()]
    sizes: list[int] = []

    def limited(model: SiameseForCausalLM, prompts: Sequence[Any], **options: Any) -> DecodingSession:
        sizes.append(len(prompts))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return DecodingSession(model, prompts, **options)

    monkeypatch.setattr(inference, "DecodingSession", limited)
    bench.evaluate(fingerprint="another")
    assert [row["response"] for row in bench.rows()] == expected
    assert sizes == [2, 1, 1, 1, 1]
    assert "retrying with batch size 1" in capsys.readouterr().err


def test_a_static_cache_gives_equal_responses(bench: Bench) -> None:
    bench.evaluate()
    expected = [row["response"] for row in bench.rows()]
    bench.evaluate(fingerprint="another", static_cache=True)
    assert [row["response"] for row in bench.rows()] == expected


@pytest.mark.parametrize(("kept", "function"), [("text", "generate_responses"), ("loglik", "log_likelihoods")])
def test_cached_rows_are_not_computed_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kept: str, function: str
) -> None:
    bench.evaluate()
    before = bench.rows()
    rows = cached_rows(bench.cache_file())
    kept_rows = {key: row for key, row in rows.items() if kept in row}
    assert len(kept_rows) == 4 == len(rows) / 2
    bench.cache_file().unlink()
    ResponseCache(bench.root / "response_cache", fingerprint="one").append(kept_rows)
    monkeypatch.setattr(inference, function, lambda *_, **__: pytest.fail("computed again"))
    bench.evaluate()
    assert bench.rows() == before
    assert len(cached_rows(bench.cache_file())) == 8
