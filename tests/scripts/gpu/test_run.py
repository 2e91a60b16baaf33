"""The script for a GPU machine, with a fake Python: each part may fail, and the others still run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from scripts.bench.result import ROOT

PARTS = ["install", "checks", "single", "bench", "zero2", "zero3", "fsdp2"]
FAKE = """#!/bin/bash
# the part that a command belongs to, by its arguments
case "$*" in
  *"pip install"*) part=install ;;
  *"-m pytest"*) part=checks ;;
  *"-m scripts.bench"*) part=bench ;;
  *engine=*) part=$(sed 's/.*engine=\\([a-z0-9]*\\).*/\\1/' <<< "$*") ;;
  *) echo 1; exit ;;
esac
echo "$*" >> "$CALLS"
[ "$part" != "$HANGING" ] || sleep 60
[ "$part" != "$FAILING" ] || { echo "no such device"; exit 3; }
"""


def run(
    folder: Path, *options: str, failing: str = "", hanging: str = "", seconds: int = 520
) -> tuple[int, list[str]]:
    """Run the script and return its exit code and summary."""
    python, wheels = folder / "python", folder / "wheels"
    python.write_text(FAKE)
    python.chmod(0o755)
    wheels.mkdir()
    (wheels / "a-1-py3-none-any.whl").touch()
    environment = {**os.environ, "PYTHON": str(python), "CALLS": str(folder / "calls"), "FAILING": failing}
    environment |= {"HANGING": hanging, "SECONDS_IN_ALL": str(seconds)}
    command = [ROOT / "scripts" / "gpu" / "run.sh", folder / "out", "--wheels", wheels, *options]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    lines = (folder / "out" / "summary.txt").read_text().splitlines()
    assert done.stdout.splitlines() == lines
    return done.returncode, lines


@pytest.mark.parametrize("failing", ["", *PARTS])
def test_a_failed_part_is_reported_and_the_others_run(tmp_path: Path, failing: str) -> None:
    code, lines = run(tmp_path, failing=failing)
    assert code == (1 if failing else 0)
    assert [line.split(":")[0] for line in lines] == PARTS
    assert [line.split(":")[0] for line in lines if ": passed (" not in line] == ([failing] if failing else [])
    calls = (tmp_path / "calls").read_text().splitlines()
    # the benchmark is run again, because a second call continues
    assert len(calls) == len(PARTS) + (failing == "bench")
    if failing and failing != "bench":
        assert f"{failing}: failed, exit code 3: no such device (" in "\n".join(lines)


@pytest.mark.slow  # waits for the time limit
def test_a_hanging_part_is_stopped_and_parts_without_time_are_named(tmp_path: Path) -> None:
    """Of 11 seconds the first part may take all."""
    code, lines = run(tmp_path, hanging="install", seconds=11)
    assert code == 1
    assert lines[0].startswith("install: stopped after 11 s (")
    assert lines[1:] == [f"{part}: not run, no time left" for part in PARTS[1:]]


def test_options_reach_the_parts(tmp_path: Path) -> None:
    run(tmp_path, "--device", "cpu", "--tiny")
    calls = (tmp_path / "calls").read_text()
    assert "-m scripts.bench --device cpu --tiny --seconds" in calls
    assert "engine=zero2 engine.device=cpu" in calls and "engine.nproc_per_node=2" in calls
    assert "--no-index --no-deps --no-compile" in calls and "a-1-py3-none-any.whl" in calls


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    command = [ROOT / "scripts" / "gpu" / "run.sh", tmp_path, "--fast"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "scripts/gpu/run.sh: --fast: no such option\n")
