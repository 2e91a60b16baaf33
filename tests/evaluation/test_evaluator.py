"""Evaluation end to end: predictions, metrics, and what is computed again."""

from __future__ import annotations

import pytest

from imsm.evaluation.predictions import COLUMNS
from imsm.evaluation.response_cache import ResponseCache
from tests.evaluation.bench import ROWS, Bench, cached_rows


def test_every_example_has_one_complete_prediction(bench: Bench) -> None:
    result = bench.evaluate()
    rows = bench.rows()
    assert [set(row) for row in rows] == [set(COLUMNS)] * 4
    assert [row["references"] for row in rows] == [[row["output"]] for row in ROWS]
    scores = [row["scores"]["contain"] for row in rows]
    assert result.metrics["contain"] == pytest.approx(100 * sum(scores) / 4)
    assert (result.num_examples, result.headline, result.protocol) == (4, "contain", "strict")
    assert set(result.protocols) == {"strict", "paper_code"}
    assert result.gate_mean is None


def test_a_second_evaluation_loads_no_model(bench: Bench) -> None:
    first = bench.evaluate()
    again = bench.evaluate()
    assert bench.loaded == 1
    assert again == first


def test_other_metrics_need_no_inference(bench: Bench) -> None:
    bench.evaluate()
    content = bench.cache_file().read_bytes()
    result = bench.evaluate(metrics=("token_f1", "contain"))
    assert bench.loaded == 1
    assert list(result.metrics) == ["token_f1", "contain"]
    assert bench.cache_file().read_bytes() == content


def test_another_model_or_token_limit_needs_inference(bench: Bench) -> None:
    bench.evaluate()
    bench.evaluate(fingerprint="two")
    bench.evaluate(fingerprint="two", max_new_tokens=3)
    assert bench.loaded == 3
    assert all(row["tokens"] <= 3 for row in bench.rows())


def test_cached_responses_are_scored(bench: Bench) -> None:
    bench.evaluate()
    response_cache = ResponseCache(bench.root / "response_cache", fingerprint="one")
    rows = cached_rows(bench.cache_file())
    bench.cache_file().unlink()
    response_cache.append({key: {**row, "text": "it is red"} if "text" in row else row for key, row in rows.items()})
    result = bench.evaluate()
    assert bench.loaded == 1
    assert result.metrics == {"contain": 25.0, "exact_match": 0.0}
