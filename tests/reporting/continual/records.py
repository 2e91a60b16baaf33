"""Records of task sequences for the tests."""

from __future__ import annotations

from typing import Any


def record(method: str = "imsm", *, missing: bool = False) -> dict[str, Any]:
    """A sequence of two tasks, and a third task that no stage learns."""
    names = {"mrpc": 1, "cola": 2, "webq": None}
    bounds = {"value": -1.0, "low": -2.0, "high": 0.5}
    return {
        "name": f"run-{method}",
        "method": method,
        "task_sequence": ["mrpc", "cola"],
        "tasks": [
            {"name": name, "metric": "exact_match", "num_examples": 8, "test_set": name, "stage": stage}
            for name, stage in names.items()
        ],
        "scores": [[50.0, 40.0, 30.0], [70.0, 41.0, 29.0], [60.0, None if missing else 80.0, 28.0]],
        "measures": {} if missing else {"BWT": bounds, "OP": {"value": 70.0}},
        "forgetting": {} if missing else {"mrpc": bounds},
    }
