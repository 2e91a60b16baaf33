"""Which files of a backbone are downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.models.backbones.download import cached_folder, fetch_backbone, weight_files
from imsm.utils.errors import UserError


def test_a_local_folder_is_returned_as_it_is(tmp_path: Path) -> None:
    assert fetch_backbone(name_or_path=str(tmp_path), revision=None, local_resolver=None) == tmp_path


def test_an_uncached_repository_has_no_folder() -> None:
    assert cached_folder("nobody/no-such-model", None) is None


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (["model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        (["model.safetensors.index.json", "pytorch_model.bin"], "model.safetensors.index.json"),
        (["pytorch_model.bin", "tf_model.h5"], "pytorch_model.bin"),
        (["pytorch_model.bin.index.json"], "pytorch_model.bin.index.json"),
    ],
)
def test_one_format_of_the_weights_is_downloaded(names: list[str], first: str) -> None:
    assert weight_files(names, source="a/b")[1] == first


def test_a_repository_without_weights_is_rejected() -> None:
    with pytest.raises(UserError, match=r"a/b: .* none of model\.safetensors"):
        weight_files(["consolidated.00.pth", "model.gguf"], source="a/b")
