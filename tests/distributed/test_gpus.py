"""GPUs in use by other processes are reported, with free ones as the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.distributed import gpus
from imsm.distributed.gpus import check_gpus_free, free_gpu_names, gpu_names, smallest_gpu_memory
from imsm.utils.errors import UserError

FOUR = """\
0, GPU-aaa, NVIDIA H200, 12, 143771
1, GPU-bbb, NVIDIA H200, 34816, 143771
2, GPU-ccc, NVIDIA H200, 90000, 143771
3, GPU-ddd, NVIDIA H200, 0, 143771
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install an nvidia-smi with a fixed output."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def install(text: str, code: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\nexit {code}\n")
        program.chmod(0o755)

    return install


def error(num_processes: int) -> str:
    with pytest.raises(UserError) as caught:
        check_gpus_free(num_processes=num_processes, engine="zero2")
    return str(caught.value)


def test_busy_gpus_are_named_and_free_ones_offered(smi) -> None:
    smi(FOUR)
    message = error(4)
    assert message.startswith("engine=zero2: GPUs 1 (NVIDIA H200: 34.0 of 140.4 GiB in use), 2 (NVIDIA H200: 87.9 of ")
    assert message.endswith("CUDA_VISIBLE_DEVICES=0,3 engine.nproc_per_node=2")
    assert error(2).endswith("or use CUDA_VISIBLE_DEVICES=0,3")
    check_gpus_free(num_processes=1, engine="zero2")


@pytest.mark.parametrize("visible", ["0,3", "3, 0", "GPU-aaa,GPU-ddd"])
def test_only_visible_gpus_are_checked(smi, monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    smi(FOUR)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    check_gpus_free(num_processes=2, engine="zero2")


def test_gpus_are_checked_in_the_order_of_cuda_visible_devices(smi, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(FOUR)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0,3")
    assert "GPU 2 (" in error(1)
    assert error(1).endswith("CUDA_VISIBLE_DEVICES=0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert error(1).endswith("wait until they are free")


@pytest.mark.parametrize(
    ("text", "code"), [("", 9), ("no devices were found\n", 0), ("0, GPU-a, X, [N/A], [N/A]\n", 0)]
)
def test_an_unusable_nvidia_smi_rejects_nothing(smi, text: str, code: int) -> None:
    smi(text, code)
    check_gpus_free(num_processes=1, engine="zero2")


def test_without_nvidia_smi_nothing_is_checked(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check_gpus_free(num_processes=8, engine="zero2")


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        (None, 3, ["0", "1", "2"]),
        ("4,5, 7", 3, ["4", "5", "7"]),
        ("GPU-5f,MIG-7", 2, ["GPU-5f", "MIG-7"]),
        ("1,-1,2", 1, ["1"]),  # CUDA ignores what follows an invalid name
        ("", 0, []),
        ("0,1", 0, []),  # no driver
    ],
)
def test_visible_gpus_have_the_names_that_a_process_can_be_given(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int, expected: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(gpus, "visible_gpus", lambda: count)
    assert gpu_names() == expected


def test_the_smallest_visible_gpu_decides(smi, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(FOUR.replace("0, 143771", "0, 81559"))
    assert smallest_gpu_memory() == 81559 * 2**20
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert smallest_gpu_memory() == 143771 * 2**20
    # nvidia-smi lists GPUs, not their MIG devices
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-7")
    assert smallest_gpu_memory() is None


def test_a_sweep_leaves_out_gpus_in_use(
    smi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    smi(FOUR)
    monkeypatch.setattr(gpus, "visible_gpus", lambda: 4)
    assert free_gpu_names() == ["0", "3"]
    line = capsys.readouterr().err
    assert line.startswith(
        "GPUs in use by another process are left out: 1 (NVIDIA H200: 34.0 of 140.4 GiB in use), 2 ("
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-ddd,2")
    monkeypatch.setattr(gpus, "visible_gpus", lambda: 2)
    assert free_gpu_names() == ["GPU-ddd"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    with pytest.raises(UserError, match=r"every GPU is in use by another process, 1 .*; wait until one is free$"):
        free_gpu_names()
    # MIG devices are not listed, and without nvidia-smi nothing is known
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1,MIG-2")
    assert free_gpu_names() == ["MIG-1", "MIG-2"]
    monkeypatch.setattr(gpus, "visible_gpus", lambda: 0)
    assert free_gpu_names() == []
    # the only one may be shared
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(gpus, "visible_gpus", lambda: 1)
    assert free_gpu_names() == ["1"]
