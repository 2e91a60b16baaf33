"""`imsm cache`: list and delete hidden-state caches."""

from __future__ import annotations

from pathlib import Path

import pytest

from imsm.cli.main import main
from imsm.training.hidden_state_store import caches_dir
from imsm.utils.files import file_lock
from imsm.utils.paths import own_answers_folder
from tests.training.test_hidden_state_store import computed, tiny_key


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMSM_CACHE", str(tmp_path / "cache"))


def test_caches_are_listed_with_their_label_and_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "list"]) == 0
    assert capsys.readouterr().out.startswith("0 caches, ")
    computed()
    assert main(["cache", "list"]) == 0
    output = capsys.readouterr().out
    assert "tiny tests" in output and tiny_key().folder_name[:8] in output
    assert output.splitlines()[-1].startswith("1 cache, ") and str(caches_dir().parent) in output


def test_caches_are_deleted_by_the_start_of_their_key(capsys: pytest.CaptureFixture[str]) -> None:
    path = computed()
    assert main(["cache", "clear", "nothing"]) == 2
    assert "imsm: KEY=nothing: " in capsys.readouterr().err
    assert path.is_dir()
    assert main(["cache", "clear", tiny_key().folder_name[:6]]) == 0
    assert "deleted 1 cache, " in capsys.readouterr().out and not path.exists()
    path = computed()
    assert main(["cache", "clear"]) == 0
    assert not path.exists()


def test_a_cache_in_use_is_not_deleted(capsys: pytest.CaptureFixture[str]) -> None:
    path = computed()
    with file_lock(path.parent):
        assert main(["cache", "clear"]) == 2
    assert path.is_dir()


def test_an_incomplete_cache_is_listed_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    (caches_dir() / "0123456789" / "incomplete").mkdir(parents=True)
    assert main(["cache", "list"]) == 0
    assert "incomplete" in capsys.readouterr().out


def test_own_answers_are_listed_and_deleted_like_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    path = computed()
    answers = [own_answers_folder() / f"{letter * 32}.jsonl" for letter in "xy"]
    answers[0].parent.mkdir(parents=True)
    for each in answers:
        each.write_text('{"input": "a", "output": "b"}\n' * 3)
    assert main(["cache", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:6] for line in lines if "own answers" in line] == [
        [letter * 8, "own", "answers", "of", "an", "adapter"] for letter in "xy"
    ]
    assert lines[-1].startswith("3 caches, ")
    assert main(["cache", "clear", "xxx"]) == 0
    assert capsys.readouterr().out == "deleted 1 cache, 90 B\n"
    assert [each.exists() for each in answers] == [False, True] and path.exists()
    assert main(["cache", "clear"]) == 0
    assert not answers[1].exists() and not path.exists()
