"""Command, date, hyperparameters and cost."""

from __future__ import annotations

from imsm.reporting.sections.settings import build_settings
from tests.helpers.config import result
from tests.reporting.factories import data_of, three_results


def cells(*results: dict) -> dict[str, str]:
    table = build_settings(data_of(results)).table
    assert table is not None
    return dict(table.rows)


def test_a_run_is_described_by_its_settings_and_its_cost() -> None:
    original, peft, imsm = three_results("seed=3")
    imsm["training"] |= {"command": "imsm run seed=3", "finished": "2026-01-31 12:00"}
    found = cells(original, peft, imsm)
    assert found["command"] == "imsm run seed=3" and found["trained"] == "2026-01-31 12:00"
    assert "gate query of rank 8" in found["hyperparameters"] and found["hyperparameters"].endswith("seed 3")
    assert "1,050 trainable parameters, 12 steps on 100 examples, 9,000 tokens, 1m 15s on test" in found["training"]
    assert found["evaluation"] == "1,000 examples, 5m 10s (0.31 s per example)"
    assert "gate" not in cells(original, peft)["hyperparameters"]


def test_what_is_not_recorded_is_left_out() -> None:
    assert list(cells(*three_results())) == ["model", "hyperparameters", "training", "evaluation"]
    assert list(cells(result("original"))) == ["model", "evaluation"]


def test_a_quantized_original_is_named() -> None:
    found = cells(*three_results("backbone.quantization=nf4"))
    assert found["model"].startswith("mini in 4 bits (nf4) (")
    assert found["original"].endswith("is the quantized one, not the published weights.")
