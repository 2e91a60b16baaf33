"""Gemma 3 270M from its package: created once, verified, created again when damaged."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import resource
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from imsm.models.backbones import gemma3_gguf as gemma3
from imsm.utils.errors import UserError

CHUNKS = (b"one", b"two" * 1000, b"three")


@pytest.fixture
def chunks(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"weights.part0{index}" for index in range(len(CHUNKS))]
    for path, content in zip(paths, CHUNKS, strict=True):
        path.write_bytes(content)
    return paths


@pytest.fixture
def package(chunks: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An installed package of fake chunks and an empty cache; the hashes of the dequantized files."""
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "site" / "fake_gguf"
    source.mkdir(parents=True)
    (source / "__init__.py").write_text(
        "from pathlib import Path\n"
        f"EXPECTED_SHA256 = {hashlib.sha256(b''.join(CHUNKS)).hexdigest()!r}\n"
        f"def chunk_paths(): return [Path(path) for path in {list(map(str, chunks))!r}]\n"
    )
    monkeypatch.syspath_prepend(str(source.parent))
    monkeypatch.delitem(sys.modules, "fake_gguf", raising=False)
    monkeypatch.setattr(gemma3, "PACKAGE", "fake_gguf")
    created: list[str] = []

    def dequantize(gguf: Path, folder: Path) -> None:
        content = gguf.read_bytes()
        created.append(hashlib.sha256(content).hexdigest())
        gguf.unlink()
        (folder / "model.safetensors").write_bytes(content)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(gemma3, "_dequantize", dequantize)
    return created


def create_folder() -> Path:
    folder = gemma3.local_path()
    assert folder is not None
    return folder


def test_without_the_package_there_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gemma3, "PACKAGE", "gguf_package_that_is_not_installed")
    assert gemma3.local_path() is None
    assert not (tmp_path / "cache").exists()


def test_chunks_are_joined_in_order(chunks: list[Path], tmp_path: Path) -> None:
    digest = hashlib.sha256(b"".join(CHUNKS)).hexdigest()
    gemma3.join_chunks(chunks, tmp_path / "joined", sha256=digest)
    assert (tmp_path / "joined").read_bytes() == b"".join(CHUNKS)
    with pytest.raises(UserError, match=r"part02.*damaged.*expected.*\bpip install"):
        gemma3.join_chunks(chunks[::-1], tmp_path / "joined", sha256=digest)


def test_created_once_and_announced(package: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = create_folder()
    assert (folder / "model.safetensors").read_bytes() == b"".join(CHUNKS)
    assert "is created once" in capsys.readouterr().err
    assert create_folder() == folder
    assert capsys.readouterr().err == ""
    assert len(package) == 1
    assert {entry.name for entry in folder.parent.iterdir()} == {"lock", "float32"}


def test_a_damaged_chunk_leaves_nothing(package: list[str], chunks: list[Path]) -> None:
    chunks[1].write_bytes(b"tw0" * 1000)
    with pytest.raises(UserError, match="damaged"):
        gemma3.local_path()
    assert package == []
    chunks[1].write_bytes(CHUNKS[1])
    home = create_folder().parent
    assert {entry.name for entry in home.iterdir()} == {"lock", "float32"}


def test_a_missing_chunk_is_named(package: list[str], chunks: list[Path]) -> None:
    chunks[2].unlink()
    with pytest.raises(UserError, match=r"part02: is missing.*pip install"):
        gemma3.local_path()


def cut(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"half")


def change(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(b"O" + content[1:])


def lose_a_file(folder: Path) -> None:
    (folder / "config.json").unlink()


def lose_the_marker(folder: Path) -> None:
    (folder / "complete.json").unlink()


def empty_the_marker(folder: Path) -> None:
    (folder / "complete.json").write_text("{}")


def damage_the_marker(folder: Path) -> None:
    (folder / "complete.json").write_text('["mod')


@pytest.mark.parametrize("damage", [cut, change, lose_a_file, lose_the_marker, empty_the_marker, damage_the_marker])
def test_a_damaged_folder_is_created_again(
    package: list[str], capsys: pytest.CaptureFixture[str], damage: object
) -> None:
    folder = create_folder()
    damage(folder)
    assert create_folder() == folder
    assert "is damaged and is created again" in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == b"".join(CHUNKS)
    assert (folder / "config.json").is_file()
    assert gemma3.is_complete(folder)
    assert len(package) == 2


def test_a_partial_folder_of_a_killed_process_is_removed(package: list[str]) -> None:
    partial = gemma3.cache_folder() / "gemma-3-270m-q4_k_m" / "partial"
    partial.mkdir(parents=True)
    (partial / "rest.bin").write_bytes(b"rest")
    folder = create_folder()
    assert not (folder / "rest.bin").exists()
    assert not partial.exists()


def test_too_little_disk_space_is_reported_first(package: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(gemma3.shutil, "disk_usage", lambda _: usage(2e9, 1.9e9, 1e8))
    with pytest.raises(UserError, match=r"0\.1 GB free.*needs 1\.5 GB.*IMSM_CACHE"):
        gemma3.local_path()
    assert package == []


def test_a_full_disk_is_reported(package: list[str], tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match=r"could not be created \(.*IMSM_CACHE"):
            gemma3.local_path()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in (tmp_path / "cache").rglob("*")] == ["gemma-3-270m-q4_k_m", "lock"]
    create_folder()


def test_the_module_imports_no_torch() -> None:
    code = "import imsm.models.backbones.gemma3_gguf, sys; sys.exit(bool({'torch', 'transformers'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(gemma3.PACKAGE) is None, reason="needs the extra `gemma`")
def test_the_real_model_generates_english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoTokenizer

    from imsm.models.backbones.loading import load_backbone, load_tokenizer

    monkeypatch.setenv("IMSM_CACHE", str(tmp_path))
    source = {"name_or_path": "google/gemma-3-270m", "local_resolver": "imsm.models.backbones.gemma3_gguf.local_path"}
    model, tokenizer = load_backbone(**source), load_tokenizer(**source)
    folder = create_folder()
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == 1
    assert tokenizer.eos_token_id != tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    text = "Spaces  two,\n\tdon 't change 1,234.5 é <b>"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size == 262144

    def answer(prompt: str) -> str:
        inputs = tokenizer(prompt, return_tensors="pt")
        rows = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        return tokenizer.decode(rows[0, inputs.input_ids.shape[1] :])

    assert "Shakespeare" in answer("Question: who wrote Romeo and Juliet?\nAnswer:")
    assert answer("2 + 2 =").strip().startswith("4")
    read = tokenizer("Paris is the capital and most populous city of France.", return_tensors="pt")
    with torch.no_grad():
        loss = model(**read, labels=read.input_ids).loss
    assert loss.item() < 3  # nats a token; a wrong layout of the weights gives 10 or more
