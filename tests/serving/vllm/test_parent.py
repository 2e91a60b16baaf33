"""vLLM's processes end with the process that started them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

PROGRAM = """
import subprocess, sys, time
from imsm.serving.vllm.parent import end_with_parent
end_with_parent()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def test_the_group_is_killed_when_standard_input_ends() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    child = Path(f"/proc/{int(process.stdout.readline())}")
    assert child.exists() and process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=20) == -9
    deadline = time.monotonic() + 20
    # a killed orphan may stay as a zombie where nothing reaps it
    while child.exists() and "State:\tZ" not in (child / "status").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or "State:\tZ" in (child / "status").read_text()
