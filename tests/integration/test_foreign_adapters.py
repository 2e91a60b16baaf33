"""Adapter folders from elsewhere: each that cannot be used gives one line, runs no code and leaves no run behind."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file

from imsm.cli.main import main
from tests.helpers.peft_folder import save_peft_adapter
from tests.helpers.tiny_backbone import save_backbone
from tests.integration.test_foreign_folders import PAYLOAD, ran

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


class Payload:
    """A pickle that runs code when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


@pytest.fixture(scope="module")
def saved(word_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_peft_adapter(tmp_path_factory.mktemp("saved") / "dl", word_files / "backbone")


@pytest.fixture
def folder(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the adapter with modules that write a file `ran` when they are imported, next to a secret."""
    shutil.copytree(saved, tmp_path / "dl")
    (tmp_path / "outside").mkdir()
    for name in ("dl/payload.py", "dl/modeling.py", "dl/sitecustomize.py", "payload.py"):
        (tmp_path / name).write_text(PAYLOAD)
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("SECRET", "s3cret")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    return tmp_path / "dl"


def change(folder: Path, **values: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def link(folder: Path, name: str) -> None:
    target = folder.parent / "outside" / name
    (folder / name).rename(target)
    (folder / name).symlink_to(target)


def fifo(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)


def only_pickle(folder: Path, name: str = "adapter_model.bin") -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Payload()))


def other_base(folder: Path) -> None:
    values = load_file(folder / WEIGHTS)
    save_file({name: torch.cat([value, value], dim=-1) for name, value in values.items()}, folder / WEIGHTS)


def without_a_layer(folder: Path) -> None:
    values = load_file(folder / WEIGHTS)
    del values[min(values)]
    save_file(values, folder / WEIGHTS)


def with_weights_of_the_base(folder: Path) -> None:
    more = {"base_model.model.model.embed_tokens.weight": torch.zeros(3, 32)}
    save_file(load_file(folder / WEIGHTS) | more, folder / WEIGHTS)


def hostile_base(folder: Path, **values: Any) -> None:
    """Save a base model with its own code, next to the adapter."""
    base = save_backbone(folder / "base", texts=["a b"])
    (base / "modeling.py").write_text(PAYLOAD)
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    change(folder, base_model_name_or_path=str(base))


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a linked configuration": (lambda f: link(f, CONFIG), "symbolic link that leads out"),
    "linked weights": (lambda f: link(f, WEIGHTS), "symbolic link that leads out"),
    "a broken link": (lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).symlink_to("gone")), "is not a file"),
    "a FIFO": (lambda f: fifo(f, CONFIG), "is not a file"),
    "weights that are a folder": (lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()), "is not a file"),
    "a pickle": (only_pickle, "is a pickle, which can run code and is not loaded; if you trust it, convert it"),
    "an old pickle": (
        lambda f: only_pickle(f, "adapter_model.pt"),
        "torch.load('adapter_model.pt', weights_only=True)",
    ),
    "a renamed pickle": (lambda f: (f / WEIGHTS).write_bytes(pickle.dumps(Payload())), "cannot be read"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "no configuration": (lambda f: (f / CONFIG).unlink(), f"{CONFIG} is missing"),
    "cut weights": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:200]), "cannot be read"),
    "no JSON": (lambda f: (f / CONFIG).write_text("[" * 100_000), "is damaged"),
    "a large configuration": (lambda f: (f / CONFIG).write_text(" " * 2**21), "is larger than"),
    "a module": (
        lambda f: change(f, peft_type="EVIL", python_module="dl.payload"),
        "is not a method of the installed",
    ),
    "no method": (lambda f: change(f, peft_type=["LORA"]), "peft_type must be a text"),
    "an interpolation": (lambda f: change(f, target_modules="${oc.env:SECRET}"), "which is not part of a PEFT"),
    "another task": (lambda f: change(f, task_type="SEQ_CLS"), "only adapters of causal language models"),
    "an absurd rank": (lambda f: change(f, r=2**30), "does not fit its base model"),
    "a larger rank": (lambda f: change(f, r=2**40), "r=1099511627776: must be at most 2147483647"),
    "a negative rank": (lambda f: change(f, r=-1), "must be at least 1"),
    "an absurd pattern of ranks": (lambda f: change(f, rank_pattern={"q_proj": 2**30}), "does not fit its base model"),
    "a slow pattern": (lambda f: change(f, target_modules="(a+)+$"), "may take very long to match"),
    "a slow pattern of ranks": (lambda f: change(f, rank_pattern={"(.*)*x": 2}), "may take very long to match"),
    "Megatron": (lambda f: change(f, megatron_config={"a": 1}, megatron_core="dl.payload"), "requires Megatron"),
    "another initialization": (lambda f: change(f, init_lora_weights="pissa"), "overwrites them with the remainder"),
    "a later field": (
        lambda f: change(f, new_field=0.5, peft_version="9.0"),
        "install the version that saved it (9.0)",
    ),
    "other modules": (lambda f: change(f, target_modules=["evil_proj"]), "does not fit the base model"),
    "another base": (other_base, "has the shape [4, 64], and"),
    "a missing layer": (without_a_layer, f"are missing in {WEIGHTS}"),
    "weights of the base": (with_weights_of_the_base, "contains weights of the base model itself"),
    "no base": (lambda f: change(f, base_model_name_or_path=None), "names no base model"),
    "a base that is a list": (lambda f: change(f, base_model_name_or_path=["/"]), "must be a text"),
    "a path as the revision": (lambda f: change(f, revision="../../x"), "is not a branch, tag or commit"),
    "a missing base": (
        lambda f: change(f, base_model_name_or_path="/no/model"),
        "no such folder; give it by backbone=",
    ),
    "an adapter as the base": (lambda f: change(f, base_model_name_or_path=str(f)), "cannot be loaded"),
    "no base at all": (lambda f: change(f, base_model_name_or_path="/"), "cannot be loaded"),
    "an unknown architecture": (
        lambda f: hostile_base(f, model_type="evil", auto_map={"AutoConfig": "modeling.X"}),
        "cannot be loaded",
    ),
    "a kernel": (lambda f: hostile_base(f, attn_implementation="someone/kernel"), "kernels of the Hub are code"),
    "a head": (lambda f: save_peft_adapter(f, base_of(f), lora(modules_to_save=["lm_head"])), "outside the decoder"),
}
HARMLESS: dict[str, Callable[[Path], Any]] = {
    "modules that PEFT would import": lambda f: change(
        f, auto_mapping={"base_model_class": "X", "parent_library": "dl.payload"}, python_module="dl.payload"
    ),
    "a library that is not used": lambda f: change(f, megatron_core="dl.payload"),
    "other files": lambda f: only_more(f),
    "a tokenizer with code": lambda f: (
        save_peft_adapter(f, base_of(f), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)),
        change(
            f,
            prompt_tuning_init="TEXT",
            prompt_tuning_init_text="a",
            tokenizer_name_or_path=str(f),
            tokenizer_kwargs={"trust_remote_code": True},
        ),
    ),
}


def base_of(folder: Path) -> Path:
    return Path(json.loads((folder / CONFIG).read_text())["base_model_name_or_path"])


def lora(**fields: Any) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], **fields)


def only_more(folder: Path) -> None:
    """Files that no import reads."""
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload()))
    (folder / "training_args.bin").write_bytes(pickle.dumps(Payload()))
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["modeling.X", null]}}')
    (folder / "link").symlink_to("/etc")


@pytest.mark.parametrize("name", REFUSED)
def test_an_adapter_that_cannot_be_used_is_one_line(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, problem = REFUSED[name]
    damage(folder)
    capsys.readouterr()
    code = main(["evaluate", "dl", "evaluation.tasks=[webq]", "logger=none"])
    lines = [line for line in capsys.readouterr().err.splitlines() if "Loading weights" not in line]
    assert code == 2 and len(lines) == 1 and lines[0].startswith("imsm: ") and problem in lines[0]
    assert "s3cret" not in lines[0] and ran(folder) == []
    assert not (folder.parent / "runs").exists()


@pytest.mark.parametrize("name", HARMLESS)
def test_nothing_of_an_adapter_is_run(name: str, folder: Path) -> None:
    from imsm.pipeline.import_adapter import import_adapter

    HARMLESS[name](folder)
    run = import_adapter("dl", runs_root=folder.parent / "runs", overrides=["evaluation.tasks=[webq]"]).run
    assert run.is_trained and ran(folder) == []
    names = {path.relative_to(run.model).as_posix() for path in run.model.rglob("*") if path.is_file()}
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors"}
    kept = json.loads((run.adapter / CONFIG).read_text())
    assert kept["auto_mapping"] is None and "payload" not in str(kept)
