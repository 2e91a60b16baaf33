"""Hashes are SHA-256; saved runs and caches depend on these digests."""

from __future__ import annotations

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imsm.utils import hashing
from imsm.utils.hashing import HashingWriter, hash_chunks, hash_file, hash_file_cached, hash_json, hash_text
from tests.helpers.damage import DAMAGES


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
    times = path.stat()
    path.write_bytes(b"abd")
    # size and modification time as before: the change time differs
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert hash_file_cached(path) == hash_text("abd")
    assert len(reads) == 2


def cached_entries(cache: Path) -> list[Path]:
    return list((cache / "file_hashes").glob("*.json"))


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_a_damaged_entry_of_the_cache_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    hash_file_cached(path)
    (entry,) = cached_entries(tmp_path / "cache")
    DAMAGES[damage](entry)
    assert hash_file_cached(path) == hash_text("abc")


def test_another_digit_in_the_cache_is_never_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    right = hash_file_cached(path)
    (entry,) = cached_entries(tmp_path / "cache")
    wrong = ("0" if right[0] != "0" else "1") + right[1:]
    entry.write_text(entry.read_text().replace(right, wrong))
    assert hash_file_cached(path) == right


def test_an_unwritable_cache_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "file" / "below"))
    assert hash_file_cached(path) == hash_text("abc")


def test_entries_of_deleted_files_and_the_oldest_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashing, "_MAX_CACHED", 3)
    paths = [tmp_path / str(number) for number in range(6)]
    for path in paths:
        path.write_bytes(b"abc")
    for path in paths[:2]:
        hash_file_cached(path)
        path.unlink()
    hash_file_cached(paths[2])
    assert len(cached_entries(tmp_path / "cache")) == 1
    for path in paths[3:]:
        hash_file_cached(path)
    assert len(cached_entries(tmp_path / "cache")) == 3


def test_processes_that_cache_hashes_at_once_lose_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "cache"))
    paths = [tmp_path / str(number) for number in range(40)]
    for path in paths:
        path.write_bytes(path.name.encode())
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(hash_file_cached, paths)) == [hash_text(path.name) for path in paths]
    assert len(cached_entries(tmp_path / "cache")) == len(paths)
