"""The response cache under damage, kills and concurrent writers."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from imsm.evaluation.response_cache import ResponseCache
from tests.evaluation.bench import Bench


def test_rows_survive_and_the_first_of_duplicates_counts(tmp_path: Path) -> None:
    cache = ResponseCache(tmp_path / "cache", fingerprint="0123456789abcdef+")
    assert cache.read() == {}
    cache.append({})
    assert not cache.folder.exists()
    cache.append({"a": {"text": "é\u2028"}, "b": {"text": "2"}})
    cache.append({"a": {"text": "another"}})
    assert cache.path.name == "0123456789abcdef.jsonl"
    assert cache.read() == {"a": {"text": "é\u2028"}, "b": {"text": "2"}}


@pytest.mark.parametrize("damage", ["cut", "line", "flipped", "noise"])
def test_a_damaged_line_is_moved_away_and_computed_again(
    bench: Bench, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = bench.evaluate()
    items = (bench.root / "out" / "predictions.jsonl").read_text()
    text = bench.cache_file().read_text()
    if damage == "cut":
        bench.cache_file().write_text(text[:-20])
    elif damage == "line":
        bench.cache_file().write_text("".join(text.splitlines(keepends=True)[1:]))
    elif damage == "flipped":
        position = text.index('"tokens": ') + 10
        bench.cache_file().write_text(text[:position] + "3" + text[position:])
    else:
        bench.cache_file().write_bytes(b"\xff\x00{\n" + text.encode())
    again = bench.evaluate()
    assert (bench.root / "out" / "predictions.jsonl").read_text() == items
    assert again.metrics == first.metrics
    assert bench.loaded == (1 if damage == "noise" else 2)
    error = capsys.readouterr().err
    assert ("1 damaged line(s) moved to" in error) == (damage != "line")
    assert bench.cache_file().with_suffix(".damaged").is_file() == (damage != "line")
    bench.evaluate()
    assert "damaged" not in capsys.readouterr().err
    lines = bench.cache_file().read_text().splitlines()
    assert len(lines) == len({json.loads(line)["key"] for line in lines}) == 8


def _killed(root: Path, lines: int) -> None:
    """Evaluate in this process, which is killed in the middle of a write after ``lines`` lines."""
    original_append = ResponseCache.append

    def append(response_cache: ResponseCache, rows: dict) -> None:
        count = len(response_cache.path.read_text().splitlines()) if response_cache.path.is_file() else 0
        if count + len(rows) <= lines:
            original_append(response_cache, rows)
            return
        original_append(response_cache, rows)
        content = response_cache.path.read_bytes()
        response_cache.path.write_bytes(content[: -(7 + 13 * lines)])
        os.kill(os.getpid(), signal.SIGKILL)

    ResponseCache.append = append  # type: ignore[method-assign]
    Bench(root).evaluate()


def _evaluate(root: Path) -> None:
    Bench(root).evaluate()


@pytest.mark.slow
def test_after_ten_kills_it_is_complete_without_duplicates(tmp_path: Path) -> None:
    (tmp_path / "complete").mkdir()
    (tmp_path / "parts").mkdir()
    complete = Bench(tmp_path / "complete")
    complete.evaluate()
    fork = multiprocessing.get_context("fork")
    killed = 0
    for number in range(10):
        process = fork.Process(target=_killed, args=(tmp_path / "parts", number % 8))
        process.start()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= 5
    parts = Bench(tmp_path / "parts")
    parts.evaluate()
    assert parts.rows() == complete.rows()
    lines = [json.loads(line) for line in parts.cache_file().read_text().splitlines()]
    assert len(lines) == len({line["key"] for line in lines}) == 8


@pytest.mark.slow
def test_two_processes_can_write_at_once(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for root in (first, second):
        root.mkdir()
    Bench(first)
    (second / "response_cache").symlink_to(first / "response_cache")
    (first / "response_cache").mkdir()
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_evaluate, args=(root,)) for root in (first, second)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert Bench(first).rows() == Bench(second).rows()
    assert len(ResponseCache(first / "response_cache", fingerprint="one").read()) == 8
    assert not (first / "response_cache" / "one.damaged").exists()
