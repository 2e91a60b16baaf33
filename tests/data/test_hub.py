"""Loading with the `datasets` library."""

from __future__ import annotations

import shutil
from pathlib import Path

import datasets
import pytest

from imsm.data import hub
from imsm.data.hub import load_from_hub, load_mirror
from imsm.data.task import HubDataset
from imsm.utils.errors import UserError
from tests.data.mirrors import GLUE, PAIRS, write_lines, write_mirror

MRPC = HubDataset(path="nyu-mll/glue", name="mrpc", revision="main")


def test_a_mirror_is_not_mistaken_for_another_or_for_its_old_content(tmp_path: Path) -> None:
    mirror, copy = write_mirror(tmp_path / "mirror"), tmp_path / "copy"
    shutil.copytree(mirror, copy)
    file = GLUE / "mrpc" / "test.jsonl"
    write_lines(copy / file, PAIRS[:1])
    assert len(load_mirror(mirror, MRPC, split="test")) == 4
    assert len(load_mirror(copy, MRPC, split="test")) == 1
    write_lines(mirror / file, PAIRS[:9])
    assert len(load_mirror(mirror, MRPC, split="test")) == 9


def test_an_unreadable_mirror_is_a_user_error(tmp_path: Path) -> None:
    mirror = write_mirror(tmp_path)
    (mirror / GLUE / "mrpc" / "test.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"data\.mirror_dir=.*nyu-mll/glue \(mrpc, split test.*cannot be read"):
        load_mirror(mirror, MRPC, split="test")


@pytest.mark.parametrize("offline", [False, True])
def test_a_failed_download_names_the_alternatives(offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(hub.datasets, "load_dataset", fail)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    with pytest.raises(UserError) as error:
        load_from_hub(MRPC, split="test")
    message = str(error.value)
    assert "nyu-mll/glue (mrpc, split test, revision main)" in message
    assert "hf download nyu-mll/glue --revision main" in message
    assert "mode=download" in message and "data.mirror_dir=MIRROR" in message
    assert ("HF_HUB_OFFLINE is set" in message) == offline
    assert ("no route to host" in message and "backbone=mini" in message) != offline
