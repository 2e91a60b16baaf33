"""What is read of a folder in PEFT's format; tests/integration/test_foreign_adapters.py has hostile ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file

from imsm.models.adapters.imported import copy_adapter, imported_adapter, read_foreign_adapter
from imsm.utils.errors import UserError
from tests.helpers.peft_folder import save_peft_adapter

FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def folder(word_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.1, target_modules=["v_proj", "q_proj"])
    return save_peft_adapter(tmp_path_factory.mktemp("adapters") / "lora", word_files / "backbone", config)


def test_only_fields_that_are_not_at_their_defaults_are_kept(folder: Path, word_files: Path) -> None:
    adapter = read_foreign_adapter(folder)
    assert adapter.arguments["peft_type"] == "LORA" and adapter.base == str(word_files / "backbone")
    assert adapter.arguments["kwargs"] == {"r": 4, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
    assert adapter.num_parameters == sum(value.numel() for value in load_file(folder / FILES[1]).values())


def test_a_copy_is_the_same_adapter_with_another_base(folder: Path, tmp_path: Path) -> None:
    adapter = read_foreign_adapter(folder)
    copy_adapter(adapter, tmp_path / "copy", backbone_path="owner/base")
    copy = read_foreign_adapter(tmp_path / "copy")
    assert copy.arguments == adapter.arguments and copy.base == "owner/base"


def test_weights_that_change_while_they_are_copied_are_an_error(folder: Path, tmp_path: Path) -> None:
    source = save_peft_adapter(tmp_path / "lora", Path(read_foreign_adapter(folder).base or ""))
    adapter = read_foreign_adapter(source)
    (source / FILES[1]).write_bytes(b"other")
    with pytest.raises(UserError, match="changed while they were read"):
        copy_adapter(adapter, tmp_path / "copy", backbone_path="owner/base")


def test_links_into_the_blobs_of_a_hub_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in FILES:
        (blobs / name).write_bytes((folder / name).read_bytes())
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    assert read_foreign_adapter(snapshot).arguments == read_foreign_adapter(folder).arguments
    (snapshot / FILES[1]).unlink()
    (snapshot / FILES[1]).symlink_to(folder / FILES[1])
    with pytest.raises(UserError, match="symbolic link that leads out"):
        read_foreign_adapter(snapshot)


def test_methods_of_imsm_are_known_and_others_are_not() -> None:
    assert "LORAMOE" in PEFT_TYPE_TO_CONFIG_MAPPING
    with pytest.raises(UserError, match="peft_type=EVIL: is not a method of the installed PEFT"):
        imported_adapter(peft_type="EVIL", kwargs={}, sha256="0")
    with pytest.raises(UserError, match=r"r=many: must be a whole number|r=.many.: must be a whole number"):
        imported_adapter(peft_type="LORA", kwargs={"r": "many"}, sha256="0")
