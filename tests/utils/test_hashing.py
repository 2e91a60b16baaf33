"""Hashes are SHA-256; saved runs and caches depend on these digests."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest

from imsm.utils import hashing
from imsm.utils.hashing import HashingWriter, hash_chunks, hash_file, hash_file_cached, hash_json, hash_text


def test_json_is_hashed_compactly_as_utf8() -> None:
    assert hash_json({"a": [1, None], "b": "é"}) == hashlib.sha256('{"a":[1,null],"b":"é"}'.encode()).hexdigest()


def test_chunks_text_and_file_of_the_same_bytes_have_the_same_hash(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert hash_text("abc") == hash_chunks([b"a", b"bc"]) == hash_file(path) == hashlib.sha256(b"abc").hexdigest()


def test_the_writer_hashes_what_it_writes() -> None:
    stream = io.BytesIO()
    writer = HashingWriter(stream)
    writer.write(b"ab")
    writer.write(memoryview(b"c"))
    assert (stream.getvalue(), writer.hexdigest()) == (b"abc", hash_text("abc"))


def test_a_file_is_read_again_only_if_size_or_time_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    reads: list[Path] = []
    original = hash_file
    monkeypatch.setattr(hashing, "hash_file", lambda file: reads.append(file) or original(file))
    assert hash_file_cached(path) == hash_file_cached(path) == hash_text("abc")
    assert len(reads) == 1
    path.write_bytes(b"abd")
    os.utime(path, ns=(1, 1))
    assert hash_file_cached(path) == hash_text("abd")
    assert len(reads) == 2


def test_an_unwritable_or_damaged_cache_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    for name in ("file/below", "damaged"):
        monkeypatch.setenv("IMSM_CACHE", str(tmp_path / name))
        (tmp_path / "file").write_text("")
        (tmp_path / "damaged").mkdir(exist_ok=True)
        (tmp_path / "damaged" / "fingerprints.json").write_text("{")
        assert hash_file_cached(path) == hash_text("abc")
