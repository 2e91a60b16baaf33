"""What is available locally and what has to be downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from imsm.data.task import HubDataset
from imsm.models.backbones.loading import MINIATURE
from imsm.pipeline.plan.downloads import dataset_folder, needed_backbone, needed_dataset


@pytest.fixture(autouse=True)
def _empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def test_a_backbone_on_the_hub_takes_two_bytes_per_parameter() -> None:
    item = needed_backbone("some/llama", revision=None, local_source=None, parameters=10)
    assert (item.name, item.location, item.size) == ("model some/llama", None, 20)


def test_local_backbones_need_no_download(tmp_path: Path) -> None:
    for path, local_source in ((MINIATURE, None), (str(tmp_path), None), ("some/llama", "a local copy")):
        assert needed_backbone(path, revision=None, local_source=local_source, parameters=None).location is not None


def test_a_dataset_is_found_in_both_caches(tmp_path: Path) -> None:
    hub = HubDataset(path="openai/gsm8k", name="main", revision=None)
    item = needed_dataset(hub, megabytes=3)
    assert (item.name, item.location, item.size) == ("dataset openai/gsm8k (main)", None, 3e6)
    downloaded = tmp_path / "hub" / "datasets--openai--gsm8k"
    downloaded.mkdir(parents=True)
    assert dataset_folder("openai/gsm8k", name="main") == downloaded
    processed = tmp_path / "datasets" / "openai___gsm8k" / "main"
    processed.mkdir(parents=True)
    assert dataset_folder("openai/gsm8k", name="main") == processed
    assert str(processed) in str(needed_dataset(hub, megabytes=None).location)
