"""The response cache under damage, kills and concurrent writers."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from imsm.evaluation import response_cache
from imsm.evaluation.response_cache import ResponseCache
from imsm.utils.errors import UserError
from tests.evaluation.bench import Bench, cached_rows

PAGE = 4096
ROWS = {f"{number:064x}": {"text": "é" * 100, "number": number} for number in range(2000)}
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The content of a database with all rows."""
    cache = ResponseCache(tmp_path_factory.mktemp("intact"), fingerprint="one")
    cache.append(ROWS)
    return cache.path.read_bytes()


@pytest.fixture
def cache(tmp_path: Path) -> ResponseCache:
    return ResponseCache(tmp_path, fingerprint="one")


def flipped(data: bytes, *, bits: int, seed: int = 0) -> bytes:
    """Flip bits after the file header, without which nothing is readable."""
    generator, content = random.Random(seed), bytearray(data)
    for _ in range(bits):
        content[generator.randrange(100, len(content))] ^= 1 << generator.randrange(8)
    return bytes(content)


def with_page(data: bytes, number: int, content: bytes) -> bytes:
    return data[: (number - 1) * PAGE] + content + data[number * PAGE :]


def damaged_files(cache: ResponseCache) -> list[Path]:
    return sorted(cache.folder.glob("*.damaged-*"))


def test_rows_survive_and_the_first_of_duplicates_counts(tmp_path: Path) -> None:
    cache = ResponseCache(tmp_path / "cache", fingerprint="0123456789abcdef+")
    assert cache.get(["a"]) == {}
    cache.append({})
    assert not cache.folder.exists()
    cache.append({"a": {"text": "é\u2028"}, "b": {"text": "2"}})
    cache.append({"a": {"text": "another"}, "c": {}})
    assert cache.path.name == "0123456789abcdef.sqlite"
    assert cache.get(["a", "c", "d"]) == {"a": {"text": "é\u2028"}, "c": {}}


@pytest.mark.parametrize(
    ("damage", "least"),
    [
        (lambda data: data[: len(data) // 2], 900),
        (lambda data: data[:-100], 1980),
        (lambda data: flipped(data, bits=1), 1980),
        (lambda data: flipped(data, bits=50), 1000),
        (lambda data: flipped(data, bits=50, seed=1), 1000),
        (lambda data: with_page(data, 20, bytes(PAGE)), 1980),
        (lambda data: with_page(data, 3, bytes(PAGE)), 2000),
        (lambda data: with_page(data, 1, bytes(PAGE)), 0),
        (lambda data: b'{"check": "9f2c", "key": "41ab", "row": {}}\n' * 200, 0),
        (lambda data: bytes(PAGE), 0),
    ],
)
def test_intact_rows_of_a_damaged_file_are_kept_with_one_warning(
    cache: ResponseCache,
    intact: bytes,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[bytes], bytes],
    least: int,
) -> None:
    cache.path.write_bytes(damage(intact))
    found = cache.get(ROWS)
    assert len(found) >= least
    assert all(ROWS[key] == row for key, row in found.items())
    assert len(capsys.readouterr().err.splitlines()) == len(damaged_files(cache)) <= 1
    assert cache.get(ROWS) == found
    cache.append(ROWS)
    assert cache.get(ROWS) == ROWS
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("seed", range(8))
def test_no_row_of_a_file_with_random_pages_is_wrong(cache: ResponseCache, intact: bytes, seed: int) -> None:
    generator = random.Random(seed)
    content = bytearray(intact)
    for _ in range(20):
        start = generator.randrange(100, len(content) - 600)
        content[start : start + 600] = generator.randbytes(600)
    cache.path.write_bytes(content)
    assert all(ROWS[key] == row for key, row in cache.get(ROWS).items())
    cache.append(ROWS)
    assert cache.get(ROWS) == ROWS


def test_an_empty_file_is_an_empty_cache(cache: ResponseCache, capsys: pytest.CaptureFixture[str]) -> None:
    cache.path.touch()
    assert cache.get(["a"]) == {}
    cache.append({"a": {}})
    assert cache.get(["a"]) == {"a": {}}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("first", ["get", "append"])
def test_a_folder_in_place_of_the_file_is_renamed(cache: ResponseCache, first: str) -> None:
    (cache.path / "content").mkdir(parents=True)
    if first == "get":
        assert cache.get(["a"]) == {}
    cache.append({"a": {}})
    assert cache.get(["a"]) == {"a": {}}
    assert [(path / "content").is_dir() for path in damaged_files(cache)] == [True]


def entry(key: str, text: str) -> tuple[str, str, str]:
    return key, hashlib.sha256(f"{key}\0{text}".encode()).hexdigest()[:16], text


@pytest.mark.parametrize(
    "wrong",
    [
        ("a", "0" * 16, "{}"),
        entry("a", "[" * 100_000),
        entry("a", "[1]"),
        entry("a", '{"text"'),
        entry("a", '{"text": 5}'),
        ("a", 5, 7.5),
        ("a", None, b"\xff"),
    ],
)
def test_a_wrong_row_is_missing_and_replaced_by_the_next_one(cache: ResponseCache, wrong: tuple) -> None:
    cache.append({"b": {"text": "b"}})
    with closing(sqlite3.connect(cache.path)) as connection, connection:
        connection.execute("INSERT INTO responses VALUES (?, ?, ?)", wrong)

    def is_valid(key: str, row: response_cache.Row) -> bool:
        return isinstance(row["text"], str)

    assert cache.get(["a", "b"], is_valid=is_valid) == {"b": {"text": "b"}}
    cache.append({"a": {"text": "a"}})
    assert cache.get(["a", "b"], is_valid=is_valid) == {"a": {"text": "a"}, "b": {"text": "b"}}


def test_a_database_with_other_tables_is_set_aside(cache: ResponseCache) -> None:
    with closing(sqlite3.connect(cache.path)) as connection, connection:
        connection.execute("CREATE TABLE responses (name TEXT)")
    cache.append({"a": {}})
    assert cache.get(["a"]) == {"a": {}}
    assert len(damaged_files(cache)) == 1


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 3 * PAGE, 300_000])
def test_a_full_disk_is_an_os_error_and_loses_nothing(cache: ResponseCache, size: int) -> None:
    cache.append({"a": {"text": "a"}})
    with largest_file(size), pytest.raises(OSError, match=r"."):
        cache.append(ROWS)
    assert cache.get(["a", *ROWS]) == {"a": {"text": "a"}}
    cache.append(ROWS)
    assert len(cache.get(ROWS)) == len(ROWS)


def test_a_full_disk_during_a_repair_keeps_the_damaged_file(cache: ResponseCache, intact: bytes) -> None:
    cache.path.write_bytes(intact[:-100])
    with largest_file(100_000), pytest.raises(UserError):
        cache.get(ROWS)
    assert {path.suffix for path in cache.folder.iterdir()} == {".sqlite", ".lock"}
    assert len(cache.get(ROWS)) > 1980


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not apply to root")
def test_permissions(cache: ResponseCache, intact: bytes) -> None:
    cache.path.write_bytes(intact)
    cache.folder.chmod(0o500)
    try:
        assert cache.get(ROWS) == ROWS
        with pytest.raises(OSError, match=r"."):
            cache.append({"a": {}})
    finally:
        cache.folder.chmod(0o700)
    cache.path.chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        cache.get(ROWS)


def test_a_read_only_folder_can_be_read(cache: ResponseCache, intact: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.path.write_bytes(intact)
    cache.folder.joinpath("one.lock").mkdir()
    assert cache.get(ROWS) == ROWS
    with pytest.raises(OSError, match=r"."):
        cache.append({"a": {}})


def _append_slowly(folder: Path, first: int) -> None:
    cache = ResponseCache(folder, fingerprint="one")
    for start in range(first, first + 400, 4):
        cache.append({f"{number}": {"text": f"{number}"} for number in range(start, start + 4)})


def _append_until_killed(folder: Path) -> None:
    cache = ResponseCache(folder, fingerprint="one")
    start = len(cached_rows(cache.path)) if cache.path.is_file() else 0
    with (folder / "committed").open("a") as stream:
        for number in range(start, start + 10_000):
            cache.append({f"{number}": {"text": "x" * 20_000}})
            stream.write(f"{number}\n")
            stream.flush()


@pytest.mark.slow
def test_no_committed_row_is_lost_by_kills(cache: ResponseCache, capsys: pytest.CaptureFixture[str]) -> None:
    generator = random.Random(0)
    log = cache.folder / "committed"
    log.touch()
    for _ in range(15):
        size = log.stat().st_size
        process = FORK.Process(target=_append_until_killed, args=(cache.folder,))
        process.start()
        while log.stat().st_size == size and process.is_alive():
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        committed = log.read_text().split()
        assert len(cache.get(committed)) == len(committed)
    assert len(committed) >= 15
    assert not damaged_files(cache)
    with closing(sqlite3.connect(cache.path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_transaction_that_a_kill_interrupted_is_rolled_back(cache: ResponseCache) -> None:
    cache.append({"a": {"text": "a"}})

    def killed() -> None:
        with closing(sqlite3.connect(cache.path, isolation_level=None)) as connection:
            connection.execute("PRAGMA cache_size = 1")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM responses")
            connection.executemany("INSERT INTO responses VALUES (?, ?, ?)", [(k, "", "x" * 900) for k in ROWS])
            os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=killed)
    process.start()
    process.join()
    assert cache.path.with_name("one.sqlite-journal").is_file()
    assert cache.get(["a", *ROWS]) == {"a": {"text": "a"}}
    assert not damaged_files(cache)


def test_processes_and_threads_append_at_once(cache: ResponseCache) -> None:
    processes = [FORK.Process(target=_append_slowly, args=(cache.folder, first)) for first in (0, 200)]
    for process in processes:
        process.start()
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(_append_slowly, cache.folder, first) for first in (100, 300)]:
            future.result()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert cached_rows(cache.path) == {f"{number}": {"text": f"{number}"} for number in range(700)}


def test_processes_that_find_the_same_damage_repair_it_once(cache: ResponseCache, intact: bytes) -> None:
    cache.path.write_bytes(intact[: len(intact) // 2])
    with ThreadPoolExecutor(4) as pool:
        counts = {len(found) for found in pool.map(cache.get, [ROWS] * 4)}
    assert len(counts) == 1
    assert len(damaged_files(cache)) == 1


def test_a_damaged_row_is_computed_again(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    first = bench.evaluate()
    items = (bench.root / "out" / "predictions.jsonl").read_text()
    with closing(sqlite3.connect(bench.cache_file())) as connection, connection:
        connection.execute("UPDATE responses SET row = replace(row, '\"tokens\": ', '\"tokens\": 3') WHERE rowid = 2")
    again = bench.evaluate()
    assert (bench.root / "out" / "predictions.jsonl").read_text() == items
    assert again.metrics == first.metrics
    assert bench.loaded == 2
    assert "computed again" in capsys.readouterr().err
    bench.evaluate()
    assert bench.loaded == 2
    assert capsys.readouterr().err.count("computed again") == 0
    assert len(cached_rows(bench.cache_file())) == 8


def test_a_row_of_another_shape_is_computed_again(bench: Bench) -> None:
    bench.evaluate()
    items = bench.rows()
    rows = cached_rows(bench.cache_file())
    bench.cache_file().unlink()
    cache = ResponseCache(bench.root / "response_cache", fingerprint="one")
    cache.append({key: {"tokens": row["tokens"]} if "loglik" in row else row for key, row in rows.items()})
    bench.evaluate()
    assert bench.loaded == 2
    assert bench.rows() == items
