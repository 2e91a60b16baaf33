"""Views of served runs against the report and the prediction files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from imsm.evaluation.statistics.forgetting import OUTCOMES
from imsm.serving.run_views import MAX_ITEMS, list_items, list_runs
from imsm.utils.errors import UserError
from tests.reporting.factories import HOSTILE, TASKS, N, cell, predictions_file, report_data, section, write_runs

ALL: dict[str, Any] = {"task": None, "change": None, "search": None, "offset": 0, "limit": MAX_ITEMS}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("method", ["peft", "imsm"])
def test_the_items_of_each_outcome_are_as_many_as_the_report_counts(shared: dict[str, Any], method: str) -> None:
    found = section(report_data(shared)[1], "transitions")
    folder = shared[method][0]
    (card,) = list_runs([folder])
    for task in TASKS:
        name = f"{task} (target)" if task == "gsm8k" else task
        counts = {}
        for change in OUTCOMES:
            column = {"kept": "retained", "never_known": "never known"}.get(change, change)
            view = list_items(folder, **ALL | {"task": task, "change": change})
            counts[change] = int(cell(found, column, task=name, run=method))
            assert view["total"] == len(view["items"]) == counts[change]
            assert view["changes"] == list_items(folder, **ALL | {"task": task})["changes"]
            assert {item["change"] for item in view["items"]} <= {change}
        (entry,) = [entry for entry in card["scores"] if entry["task"] == task]
        assert entry["changes"] == counts and sum(counts.values()) == N == entry["examples"]


def test_an_item_has_its_prompt_gold_and_all_answers(shared: dict[str, Any]) -> None:
    view = list_items(shared["imsm"][0], **ALL | {"task": "webq", "limit": 7, "offset": 3})
    assert (view["total"], view["offset"], view["limit"], len(view["items"])) == (N, 3, 7, 7)
    for number, item in enumerate(view["items"], start=3):
        scores = {method: shared[method][2]["webq"][number] for method in ("original", "peft", "imsm")}
        assert item["id"] == f"webq/{number}" and item["references"] == ["paris"]
        assert item["prompt"] == f"Question {number}: {HOSTILE}"
        assert {answer["label"]: answer["score"] for answer in item["answers"]} == scores
        assert [answer["label"] for answer in item["answers"]] == list(scores)
        before, after = scores["original"], scores["imsm"]
        assert item["change"] == {(1, 1): "kept", (1, 0): "forgotten", (0, 1): "learned"}.get(
            (before, after), "never_known"
        )
    json.dumps(view, allow_nan=False)


def test_search_ignores_case_and_finds_prompts_gold_and_responses(shared: dict[str, Any]) -> None:
    folder = shared["imsm"][0]
    found = list_items(folder, **ALL | {"search": "QUESTION 17:", "task": "mrpc"})
    assert [item["id"] for item in found["items"]] == ["mrpc/17"]
    assert list_items(folder, **ALL | {"search": "PARIS"})["total"] == 3 * N
    assert list_items(folder, **ALL | {"search": "a|b", "task": "webq"})["total"] == N
    assert list_items(folder, **ALL | {"search": "a.b"})["total"] == 0


def test_pages_cover_every_item_once(shared: dict[str, Any]) -> None:
    pages = [list_items(shared["peft"][0], **ALL | {"offset": offset})["items"] for offset in range(0, 400, MAX_ITEMS)]
    ids = [item["id"] for page in pages for item in page]
    assert len(ids) == len(set(ids)) == N * len(TASKS)
    large = list_items(shared["peft"][0], **ALL | {"limit": 10**9})
    assert large["limit"] == len(large["items"]) == MAX_ITEMS


@pytest.mark.parametrize(
    ("key", "value"), [("task", "../etc"), ("change", "lost"), ("offset", -1), ("limit", 0), ("task", "")]
)
def test_an_unknown_filter_is_an_error(shared: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"{key}="):
        list_items(shared["imsm"][0], **ALL | {key: value})


def test_a_card_has_the_scores_of_the_result(shared: dict[str, Any]) -> None:
    cards = list_runs([shared[method][0] for method in ("original", "peft", "imsm")])
    assert [card["method"] for card in cards] == ["original", "peft", "imsm"]
    assert [len(card["streams"]) for card in cards] == [1, 2, 3]
    for card, method in zip(cards, ("original", "peft", "imsm"), strict=True):
        folder, record, _ = shared[method]
        assert card["run"] == folder.name and card["settings"] and card["headline"]
        tasks = record["evaluation"]["tasks"]
        for entry in card["scores"]:
            assert entry["score"] == tasks[entry["task"]]["metrics"][entry["metric"]]
            expected = shared["original"][1]["evaluation"]["tasks"][entry["task"]]["metrics"][entry["metric"]]
            assert entry["original"] == (None if method == "original" else expected)
    json.dumps(cards, allow_nan=False)


def test_without_the_originals_predictions_no_outcome_is_claimed(tmp_path: Path) -> None:
    runs = write_runs(tmp_path)
    path = predictions_file(runs["original"], "webq")
    path.write_text(path.read_text().replace("0.0", "1.0", 1))
    view = list_items(runs["imsm"][0], **ALL | {"task": "webq"})
    assert view["total"] == N and sum(view["changes"].values()) == 0
    assert {item["change"] for item in view["items"]} == {None}
    assert [answer["label"] for answer in view["items"][0]["answers"]] == ["peft", "imsm"]
    (card,) = list_runs([runs["imsm"][0]])
    assert [entry["changes"] is None for entry in card["scores"] if entry["task"] == "webq"] == [True]


def test_the_original_of_a_run_in_a_custom_folder_is_in_the_runs_root(
    shared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "elsewhere" / "mine"
    shutil.copytree(shared["peft"][0], folder)
    monkeypatch.setenv("IMSM_RUNS", str(shared["root"]))
    assert sum(list_items(folder, **ALL)["changes"].values()) == N * len(TASKS)


def test_an_unfinished_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"result\.json"):
        list_items(tmp_path, **ALL)
    with pytest.raises(UserError, match=r"result\.json"):
        list_runs([tmp_path])
