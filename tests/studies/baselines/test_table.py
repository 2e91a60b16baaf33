"""The table of baselines: scores, differences, and runs of other examples."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from imsm.studies.baselines.table import print_table


def entries(target: float, one: float, other: float, *, test_set: str = "a") -> dict[str, Any]:
    return {
        name: {
            "role": role,
            "trained_on": role == "target",
            "test_set": f"{name}-{test_set}",
            "headline": "accuracy",
            "metrics": {"accuracy": points},
        }
        for name, role, points in (
            ("gsm8k", "target", target),
            ("webq", "forgetting", one),
            ("mrpc", "forgetting", other),
        )
    }


def printed(**runs: dict[str, Any]) -> dict[str, list[str]]:
    stream = io.StringIO()
    print_table(runs, tuned="peft", focus=["original", "peft"], console=Console(file=stream, width=100))
    lines = stream.getvalue().splitlines()
    numbers = {name: n for n, line in enumerate(lines) for name in runs if line.split()[:1] == [name]}
    return {name: lines[n].split()[1:] + lines[n + 1].split() for name, n in numbers.items()}


def test_scores_and_differences_to_tuned_and_original() -> None:
    found = printed(
        original=entries(10.0, 90.0, 60.0), peft=entries(80.0, 50.0, 40.0), oracle_router=entries(80.0, 90.0, 60.0)
    )
    assert found["oracle_router"] == [
        *("80.0", "90.0", "60.0", "75.0"),
        *("+0.0", "+70.0", "+40.0", "+0.0", "+20.0", "+0.0", "+30.0", "+0.0"),
    ]
    assert found["peft"][4:6] == ["·", "+70.0"] and found["original"][4:6] == ["-70.0", "·"]


def test_results_on_other_examples_are_not_compared() -> None:
    found = printed(original=entries(10.0, 90.0, 60.0, test_set="b"), peft=entries(80.0, 50.0, 40.0))
    assert found["original"][:4] == ["-"] * 4
    assert found["peft"][:4] == ["80.0", "50.0", "40.0", "45.0"]
    assert "+" not in " ".join(found["peft"])
