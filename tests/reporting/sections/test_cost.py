"""Training curves; parameters, time and memory."""

from __future__ import annotations

from typing import Any

from imsm.reporting.report_data import ReportData
from imsm.reporting.sections.cost import _describe_selection, build_training
from tests.reporting.factories import cell, data_of, report_data, section, three_results


def test_loss_and_gate_are_drawn(data: ReportData) -> None:
    found = build_training(data)
    assert found is not None and len(found.figures[0].draw().axes) == 2


def test_a_single_step_is_no_curve(runs: dict[str, Any]) -> None:
    (runs["imsm"][0] / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert build_training(report_data(runs)[1]) is None


def test_the_original_has_no_training_cost() -> None:
    found = section(data_of(three_results()), "cost")
    assert [cell(found, name, run="original") for name in ("adapter", "training", "memory")] == ["0", "–", "–"]
    row = [cell(found, name, run="imsm") for name in ("adapter", "gate", "training", "memory", "evaluation")]
    assert row == ["1,000", "50", "1m 15s", "810.0 MB", "5m 10s"]
    assert cell(found, "eval tok/s", run="imsm") == "100"


def selection_sentences(**training: Any) -> list[str]:
    results = three_results()
    (record,) = [each for each in results if each["method"] == "peft"]
    record["config"]["trainer"]["min_target"] = 60.0
    record["training"] |= training
    (run,) = [run for run in data_of(results).runs if run.label == "peft"]
    return _describe_selection(run)


def test_the_selected_checkpoint_is_named_with_what_is_not_independent() -> None:
    assert selection_sentences() == []
    watched = {"split": "test", "items": 32, "original": 50.0}
    watch = {"webq": watched | {"split": "train"}, "multirc": watched}
    chosen, tests = selection_sentences(best_step=40, best_retention=0.954, watch=watch)
    assert chosen.startswith(
        "peft: the model is the checkpoint of step 40, whose retention on the watched items, 0.95,"
    )
    assert "trainer.min_target=60" in chosen
    assert tests.startswith("The watched items of multirc are from the test set")
    (last,) = selection_sentences(min_target_reached=False, watch=watch)
    assert last.startswith("peft: no checkpoint reached trainer.min_target=60 on the held-out training examples")
