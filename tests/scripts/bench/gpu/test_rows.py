"""The rows of a GPU with tiny shapes on the CPU: what they run and what they record."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from scripts.bench.gpu.bars import BARS
from scripts.bench.gpu.machine import first_step_bits
from scripts.bench.gpu.rows import BUILD, MACHINE, ROWS
from scripts.bench.gpu.session import LENGTHS, Session
from scripts.bench.result import ROOT
from tests.scripts.bench.test_bench import BARE

ON_A_GPU_ONLY = ("peak_gb", "gpu_busy_share")
"""Keys of values that a CPU does not have."""


@pytest.mark.parametrize("row", [MACHINE, BUILD, *ROWS], ids=lambda row: row.name)
def test_a_row_measures_what_its_bars_need(session: Session, row: Any) -> None:
    if row.name.endswith("compiled layers"):
        pytest.skip("compiling takes a minute on a CPU")
    if row.name.endswith("Liger"):
        pytest.skip("its kernels need a GPU")
    if row.name.startswith("trl"):
        pytest.importorskip("trl")
    found = json.loads(json.dumps(row.measure(session)))
    for bar in BARS:
        for path in (bar.ours, bar.theirs):
            if isinstance(path, str) and path.startswith(f"{row.name}/") and not path.endswith(ON_A_GPU_ONLY):
                value: Any = found
                for key in path.split("/")[1:]:
                    value = value[key]
                assert value >= 0, path
    assert session.model.stream == "interwoven" and not session.model.adapted.is_gradient_checkpointing


def test_equal_bits_before_the_first_update_are_found_after_other_rows_have_trained(session: Session) -> None:
    matrices = [p for name, p in session.model.named_parameters() if "lora_B" in name]
    for matrix in matrices:
        matrix.data.fill_(0.1)
    found = first_step_bits(session)
    assert all(task["equal"] and task["difference"] == 0 for task in found.values())
    assert all(bool((matrix == matrix.new_tensor(0.1)).all()) for matrix in matrices)


@pytest.mark.parametrize("task", LENGTHS)
def test_lengths_are_spread_as_the_tasks(session: Session, task: Any) -> None:
    full = Session(session.setup)
    items = full.examples(task, 400)
    assert items == full.examples(task, 400)
    for lengths, (average, _, most) in zip(
        ([len(item.prompt_ids) for item in items], [len(item.answer_ids) for item in items]),
        LENGTHS[task],
        strict=True,
    ):
        assert mean(lengths) == pytest.approx(average, rel=0.05) and max(lengths) <= most
        assert average == 2 or max(lengths) > 1.3 * average


@pytest.mark.slow  # a process of its own
def test_the_rows_run_without_packages_that_a_bare_machine_lacks(tmp_path: Path) -> None:
    program = f"""
import sys
for name in {BARE!r}:
    sys.modules[name] = None
from scripts.bench import __main__ as bench
bench.main(["--tiny", "--device", "cpu", "--seconds", "100", "--output", {str(tmp_path)!r}, "--name", "bare", "--only",
            "steps mrpc 16", "decoding 1", "syncs", "evaluation 16", "trl mrpc"])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "bare.json").read_text())
    failed = {name: row["error"] for name, row in record["rows"].items() if "error" in row}
    assert failed.keys() == {"trl mrpc"}, failed
    assert len(record["comparisons"]) == 5 and record["left_out"][0]["name"] == "trl mrpc"
    assert "decoding, batch 1: IMSM" in done.stdout and (tmp_path / "bare.md").is_file()
