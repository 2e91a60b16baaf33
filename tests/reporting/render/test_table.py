"""The report card: who is compared with whom, the differences, marks and averages."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from imsm.evaluation.result import FILE, write_result
from imsm.reporting.render.table import render_markdown, render_terminal
from imsm.reporting.runs import find_comparable_runs
from imsm.reporting.score_table import compare
from tests.helpers.config import result


def keep(root: Path, record: dict[str, Any], *, name: str = "", age: int = 0) -> None:
    folder = root / (name or record["name"])
    folder.mkdir(parents=True)
    write_result(folder, record)
    os.utime(folder / FILE, (1e9 - age, 1e9 - age))


def results(record: dict[str, Any], root: Path) -> list[dict[str, Any]]:
    return [found for found, _ in find_comparable_runs(root, record)]


def terminal(results: list[dict[str, Any]], width: int) -> str:
    text = io.StringIO()
    render_terminal(results, console=Console(file=text, width=width))
    return text.getvalue()


def three_arms(*overrides: str) -> list[dict[str, Any]]:
    points = {"original": 50.0, "peft": 42.3, "imsm": 47.8}
    return [result(arm, *overrides, points=value) for arm, value in points.items()]


def test_siblings_are_the_other_arms_in_order(tmp_path: Path) -> None:
    original, peft, imsm = three_arms()
    token = result("imsm", "gate=no_query")
    keep(tmp_path, imsm)
    keep(tmp_path, token, name="token")
    keep(tmp_path, peft)
    keep(tmp_path, original)
    for name, stranger in {
        "seed": result("peft", "seed=1"),
        "data": result("peft", "data=mrpc"),
        "items": result("peft", "peft=lora", test_set="other"),
        "backbone": result("original", "backbone=gemma3_270m"),
    }.items():
        keep(tmp_path, stranger, name=name, age=100)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / FILE).write_text("{")
    (tmp_path / "unfinished").mkdir()
    assert results(imsm, tmp_path) == [original, peft, token]
    assert results(peft, tmp_path) == [original, imsm, token]
    assert find_comparable_runs(tmp_path / "nowhere", imsm) == []
    assert find_comparable_runs(tmp_path, original) == []


def test_of_the_same_arm_the_newest_counts(tmp_path: Path) -> None:
    keep(tmp_path, result("peft", points=10.0), name="old", age=50)
    keep(tmp_path, result("peft", points=20.0), name="new")
    ((found, _),) = find_comparable_runs(tmp_path, result("imsm"))
    assert found["evaluation"]["tasks"]["webq"]["metrics"]["contain"] == 20.0


def test_differences_to_the_original_and_to_peft() -> None:
    card = compare(three_arms())
    assert card.arms == ["original", "peft", "imsm"]
    target = card.headlines[0]
    assert (target.task, target.role, target.metric) == ("gsm8k", "target", "gsm8k_accuracy")
    original, peft, imsm = target.scores
    assert (original.to_original, original.to_peft, peft.to_peft) == (None, None, None)
    assert peft.to_original == pytest.approx(-7.7)
    assert (imsm.to_original, imsm.to_peft) == (pytest.approx(-2.2), pytest.approx(5.5))


def test_the_average_leaves_out_the_target() -> None:
    results = three_arms()
    for record, values in zip(results, [(10, 20, 30, 40), (2, 4, 6, 8), (1, 1, 1, 5)], strict=True):
        tasks = record["evaluation"]["tasks"]
        for name, value in zip(("webq", "freebaseqa", "multirc", "mrpc"), values, strict=True):
            tasks[name]["metrics"][tasks[name]["headline"]] = float(value)
    average = compare(results).headlines[-1]
    assert average.role == "average"
    assert [score.value for score in average.scores] == [25.0, 5.0, 2.0]
    assert average.scores[2].to_peft == -3.0


def test_a_forgetting_test_that_was_trained_on_is_marked_and_not_averaged() -> None:
    card = compare(three_arms("data=mrpc"))
    rows = {row.task: row for row in card.headlines}
    assert rows["mrpc"].marked and rows["mrpc"].role == "target"
    assert not rows["webq"].marked
    assert rows["average"].metric == "3 forgetting tests"
    assert any(note.startswith("† mrpc") for note in card.notes)
    assert not any(row.marked for row in compare(three_arms("data=cola")).headlines)
    text = render_markdown(three_arms("data=mrpc"))
    assert "| mrpc (target) † |" in text


def test_what_a_mark_says_holds_for_every_task_of_a_sequence() -> None:
    arms = three_arms("data=ropes", "evaluation.tasks=[mrpc,ropes,webq]")
    for record in arms[1:]:
        record["evaluation"]["tasks"]["mrpc"]["trained_on"] = True
    notes = [note for note in compare(arms).notes if note.startswith("†")]
    assert [note.split(":")[0] for note in notes] == ["† ropes", "† mrpc"]
    assert all("trained on it" in note and "one of the forgetting" not in note for note in notes)


def test_what_an_arm_lacks_is_not_compared() -> None:
    results = [result("original", points=50.0), result("imsm", points=40.0)]
    results[0]["evaluation"]["tasks"] = {}
    card = compare(results)
    original, imsm = card.headlines[0].scores
    assert (original.value, imsm.to_original) == (None, None)
    assert all(row.role != "average" for row in card.headlines)
    assert any("other items" in note for note in card.notes)


def test_arms_of_one_method_are_told_apart() -> None:
    card = compare([result("imsm", "gate=no_query"), result("imsm", "gate=no_gate"), result("imsm")])
    assert card.arms == ["imsm (token r8)", "imsm (mean)", "imsm (query r8)"]


def test_arms_whose_gates_differ_in_one_key_keep_their_own_differences(tmp_path: Path) -> None:
    original, peft, mean = three_arms()
    other = result("imsm", "gate.pooling=max", points=30.0)
    for number, record in enumerate((original, peft, other)):
        keep(tmp_path, record, name=str(number))
    shown = [*results(mean, tmp_path), mean]
    assert shown == [original, peft, other, mean]
    card = compare(shown)
    assert card.arms == [
        "original", "peft", "imsm (query r8 pooling=max)", "imsm (query r8 pooling=mean)"
    ]  # fmt: skip
    text = render_markdown(shown)
    assert "| 50.0 | 42.3 | 30.0 | 47.8 | −7.7 | −20.0 | −2.2 | −12.3 | +5.5 |" in text


def test_results_without_an_identity_are_passed_over(tmp_path: Path) -> None:
    old = result("peft")
    del old["identity"]
    keep(tmp_path, old)
    assert find_comparable_runs(tmp_path, result("imsm")) == []
    assert find_comparable_runs(tmp_path, old) == []


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_card_fits_and_is_whole(width: int) -> None:
    text = terminal(three_arms("data=mrpc"), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in text
    for arm, points, to_original, to_peft in (
        ("original", "50.0", "", ""),
        ("peft", "42.3", "−7.7", ""),
        ("imsm", "47.8", "−2.2", "+5.5"),
    ):
        # four tasks and the average
        cells = [arm, points, to_original, to_peft]
        assert sum(all(cell in line for cell in cells) for line in lines) == 5
    assert "1,000" in text and "1m 15s" in text and "0.81 GB" in text
    assert "† mrpc" in text


def test_the_original_alone_has_a_card() -> None:
    (record,) = three_arms()[:1]
    text = terminal([record], 80)
    assert "200 items" in text
    assert "to original" not in text and "to PEFT" not in text
    assert "original − " not in render_markdown([record])


def test_markdown_tables_are_regular() -> None:
    text = render_markdown(three_arms())
    blocks = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 4
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert "| webq | exact_match | 200 | 50.0 | 42.3 | 47.8 | −7.7 | −2.2 | +5.5 |" in text
    assert "| imsm | webq | 200 | 3 | 1 |" in text
    assert "- backbone ffff" in text
