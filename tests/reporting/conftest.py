"""Three finished runs and a swept baseline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imsm.config.identity import run_name
from imsm.config.schema import RunConfig
from imsm.evaluation.result import write_result
from tests.helpers.config import result
from tests.reporting.factories import write_run


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Any]:
    """An original, a PEFT and an IMSM run in one root; two logit mixes as baselines of the last."""
    found: dict[str, Any] = {"root": tmp_path}
    for seed, method in enumerate(("original", "peft", "imsm")):
        record = result(method)
        record["name"] = run_name(RunConfig.from_dict(record["config"]))
        folder = tmp_path / record["name"]
        found[method] = (folder, record, write_run(folder, record, seed))
    originals = found["original"][1]["evaluation"]["tasks"]
    for method in ("original", "peft", "imsm"):
        folder, record, _ = found[method]
        if method != "original":
            record["evaluation"]["original"] = originals
        write_result(folder, record)
    folder, record, _ = found["imsm"]
    for value in (0.25, 0.75):
        about = {"name": "logit_mix", "value": value}
        baseline = json.loads(json.dumps(record)) | {"method": "baseline", "name": f"mix-{value}"}
        baseline["config"]["baseline"] = baseline["identity"]["baseline"] = about
        baseline_folder = folder / "baselines" / f"logit_mix-{value:.2f}"
        write_run(baseline_folder, baseline, 10 + round(4 * value))
        write_result(baseline_folder, baseline)
    steps = [{"step": n, "loss": 5.0 / n, "gate_mean": 0.5 - 0.01 * n} for n in range(1, 9)]
    (folder / "log.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return found
