"""The measurement of large inputs, on few rows."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.bench.large_inputs import LIMITS, RESULT, WORK, key_of, measured, row_of, write_data

NUM_ROWS = 1200


def test_every_measurement_runs_and_states_its_limit(tmp_path: Path) -> None:
    write_data(tmp_path, NUM_ROWS)
    records = {name: measured(name, tmp_path, NUM_ROWS) for name in WORK}
    assert all(record["seconds"] >= 0 and record["mb"] >= 0 for record in records.values())
    assert {name for name, record in records.items() if "limit" in record} == set(LIMITS)
    assert records["cache: append all rows"]["file_mb"] > 0
    assert [path.suffix for path in (tmp_path / "response_cache").glob("*.damaged*")] == [".damaged-1"]


def test_rows_have_a_realistic_size_and_keys_differ() -> None:
    assert 300 < len(json.dumps(row_of(5))) < 420
    assert len({key_of(number) for number in range(100)}) == 100


def test_the_recorded_result_has_every_measurement() -> None:
    record = json.loads(RESULT.read_text())
    assert [each["name"] for each in record["measurements"]] == list(WORK)
    assert record["rows"] == 10**6
