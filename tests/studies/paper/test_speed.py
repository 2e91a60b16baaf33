"""The speed table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imsm.studies.paper import speed
from imsm.studies.paper.runs import RunIndex
from imsm.studies.paper.spec import load_table
from imsm.studies.paper.speed import measure_speed, read_speed, speed_table, write_speed
from imsm.utils.errors import UserError


def measured() -> dict[str, Any]:
    rows = [
        {
            "overrides": sorted([f"peft={peft}", f"method={method}", "backbone=mini"]),
            "method": method,
            "tokens_per_second": tokens,
            "lowest": tokens - 1,
            "highest": tokens + 1,
        }
        for peft in ("lora", "ia3", "adalora")
        for method, tokens in (("peft", 80.0), ("imsm", 60.0))
    ]
    return {"device": "x", "date": "d", "rounds": 5, "new_tokens": 64, "prompt_tokens": 64, "rows": rows}


def test_our_speeds_and_shares_are_listed_next_to_the_papers(tmp_path: Path) -> None:
    assert read_speed(tmp_path / "mini") is None
    write_speed(measured(), tmp_path / "mini")
    table = speed_table(load_table("table5"), read_speed(tmp_path / "mini") or {}, scale="mini")
    assert table.column("ours, miniature")[:2] == ["80.0 (79.0, 81.0)", "60.0 (59.0, 61.0)"]
    assert table.column("share, miniature")[:2] == ["", "0.75"]
    assert table.column("its share, chatglm3")[1] == "0.93"
    unmeasured = speed_table(load_table("table5"), measured() | {"rows": []}, scale="paper")
    assert set(unmeasured.column("share, llama3")) == {"", "–"}


@pytest.mark.parametrize("text", ["[]", "{}", '{"rows": [1]}', "3", "{", json.dumps({**measured(), "rows": [1]})])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "speed.json").write_text(text)
    with pytest.raises(UserError, match=f"{tmp_path}/speed.json: .*; remove it"):
        read_speed(tmp_path)


def test_the_miniature_is_measured(runs: RunIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "NEW_TOKENS", 2)
    monkeypatch.setattr(speed, "ROUNDS", 1)
    lines: list[str] = []
    found = measure_speed(load_table("table5"), runs, scale="mini", log=lines.append)
    assert len(found["rows"]) == 2 * len(lines) == 6
    assert all(row["lowest"] <= row["tokens_per_second"] <= row["highest"] for row in found["rows"])
    assert "–" not in speed_table(load_table("table5"), found, scale="mini").column("share, miniature")
