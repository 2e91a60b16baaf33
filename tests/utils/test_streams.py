"""Standard streams of a process that can be written only in part, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

TEXT = "Δ −3.5 ± 0.2 … 東"
PROGRAM = f"""
import os, sys
from imsm.utils.streams import output_error, protect_standard_streams
protect_standard_streams()
print({TEXT!r})
print("error", file=sys.stderr)
for _ in range(5):
    print("x" * 5000, flush=True)
error = output_error()
sys.exit(0 if error is None else 50 + error.errno)
"""


def shell(redirection: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"$0" -c "$1" {redirection}', sys.executable, PROGRAM],
        capture_output=True,
        env=os.environ | environment,
        timeout=30,
        encoding="latin-1",
    )


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("latin-1", "delta -3.5 ± 0.2 ... ?"), ("ascii", "delta -3.5 +- 0.2 ... ?"), ("cp1252", "delta -3.5 ± 0.2")],
)
def test_characters_that_an_encoding_lacks_are_replaced_and_a_minus_stays_a_minus(
    encoding: str, expected: str
) -> None:
    done = shell("", PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and done.stderr == "error\n"
    assert done.stdout.startswith(expected)


def test_utf_8_is_unchanged() -> None:
    assert shell("", PYTHONIOENCODING="utf-8").stdout.encode("latin-1").decode().startswith(f"{TEXT}\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("redirection", "code"),
    [(">/dev/full", 50 + 28), ("| true", 50 + 32), (">&-", 0), ("<&- >&- 2>&-", 0), ("2>/dev/full", 0)],
)
def test_a_stream_that_cannot_be_written_raises_nothing(redirection: str, code: int, unbuffered: str) -> None:
    done = shell(redirection, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == code
    assert done.stderr == ("" if "2>" in redirection else "error\n")


def test_no_file_gets_the_descriptor_of_a_closed_stream() -> None:
    program = PROGRAM.replace("sys.exit(", "print(open(os.devnull).fileno(), file=sys.stderr); sys.exit(")
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" >&- <&-', sys.executable, program], capture_output=True, text=True, timeout=30
    )
    assert int(done.stderr.split()[-1]) > 2
