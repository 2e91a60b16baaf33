"""GPUs that others are at work on are named, with a way round."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.distributed.gpus import check_gpus_free
from imsm.utils.errors import UserError

FOUR = """\
0, GPU-aaa, NVIDIA H200, 12, 143771
1, GPU-bbb, NVIDIA H200, 34816, 143771
2, GPU-ccc, NVIDIA H200, 90000, 143771
3, GPU-ddd, NVIDIA H200, 0, 143771
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put an nvidia-smi on the path that says what it is told."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def say(text: str, code: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\nexit {code}\n")
        program.chmod(0o755)

    return say


def refused(processes: int) -> str:
    with pytest.raises(UserError) as error:
        check_gpus_free(processes=processes, engine="zero2")
    return str(error.value)


def test_busy_gpus_are_named_with_those_that_are_free(smi) -> None:
    smi(FOUR)
    assert refused(4) == (
        "engine=zero2: GPUs 1 (NVIDIA H200: 34.0 of 140.4 GiB in use), 2 (NVIDIA H200: 87.9 of "
        "140.4 GiB in use): not free for a process of this run; wait until they are free, or use "
        "CUDA_VISIBLE_DEVICES=0,3 engine.nproc_per_node=2"
    )
    assert refused(2).endswith("or use CUDA_VISIBLE_DEVICES=0,3")
    check_gpus_free(processes=1, engine="zero2")


@pytest.mark.parametrize("chosen", ["0,3", "3, 0", "GPU-aaa,GPU-ddd"])
def test_only_visible_gpus_count(smi, monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    smi(FOUR)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    check_gpus_free(processes=2, engine="zero2")


def test_the_order_of_the_visible_ones_counts(smi, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(FOUR)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0,3")
    assert "GPU 2 (" in refused(1)
    assert refused(1).endswith("CUDA_VISIBLE_DEVICES=0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert refused(1).endswith("wait until they are free")


@pytest.mark.parametrize(
    ("text", "code"), [("", 9), ("no devices were found\n", 0), ("0, GPU-a, X, [N/A], [N/A]\n", 0)]
)
def test_what_cannot_be_known_is_not_refused(smi, text: str, code: int) -> None:
    smi(text, code)
    check_gpus_free(processes=1, engine="zero2")


def test_without_the_program_nothing_is_looked_at(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check_gpus_free(processes=8, engine="zero2")
