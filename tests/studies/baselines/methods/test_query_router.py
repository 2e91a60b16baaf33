"""The nearest-query router."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.studies.baselines.finished_run import FinishedRun
from imsm.studies.baselines.methods import query_router
from imsm.studies.baselines.query_distance import compute_query_distances
from tests.studies.baselines.finished import FORGETTING


def test_distances_are_stored_and_decide_the_route(
    peft_folder: Path, peft_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes = {task: query_router.route_to_original(peft_run, None, task) for task in ("jsonl", FORGETTING)}
    distances = compute_query_distances(peft_run)
    for task, route in routes.items():
        assert route == [distance > distances.threshold for distance in distances.by_task[task]]
    compute_query_distances.cache_clear()
    monkeypatch.setattr(FinishedRun, "model", lambda run: pytest.fail("a model was loaded"))
    assert compute_query_distances(peft_run) == distances
    assert (peft_folder / "baselines" / "query_distances.json").is_file()
