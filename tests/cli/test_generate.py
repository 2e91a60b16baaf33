"""`imsm generate`: answers of a finished run's streams."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from imsm.cli.generate import _streamer
from imsm.cli.main import main
from tests.helpers.word_run import run_words


@pytest.fixture(scope="module")
def run(word_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_words(word_files, tmp_path_factory.mktemp("runs"))


@pytest.fixture(autouse=True)
def runs_root(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(run.parent))
    capsys.readouterr()


def test_every_stream_answers_and_one_alone_is_unlabelled(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", run.name, "after red comes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines if ":" in line] == ["original", "tuned", "interwoven"]
    assert main(["generate", str(run), "after red comes", "--stream", "interwoven"]) == 0
    (predictions,) = run.glob("evaluation/jsonl-*/predictions.jsonl")
    response = json.loads(predictions.read_text().splitlines()[0])["response"]
    assert capsys.readouterr().out.strip().startswith(response.strip())


def test_the_prompt_is_read_from_standard_input(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for arguments, text in ((["after red comes"], ""), ([], "after red comes\n")):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        assert main(["generate", run.name, *arguments, "--stream", "interwoven"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["{run}", "after lunch comes"], "vocabulary"),
        (["nothing-here", "after red comes"], "finished: {run}"),
        (["{run}", " "], "TEXT"),
        (["{run}", "after red comes", "--max-new-tokens", "0"], "--max-new-tokens 0"),
        (["{run}", "after red comes", "--skip", "0.5"], "--skip 0.5: must be above 0 and below 0.5"),
    ],
)
def test_bad_input_is_one_line(run: Path, arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *(each.format(run=run.name) for each in arguments)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("imsm: ") and part.format(run=run.name) in line


@pytest.mark.parametrize(("terminal", "shown"), [(True, "a\tb\n" + r"\x1b[2J\u202e"), (False, "a\tb\n\x1b[2J\u202e")])
def test_a_terminal_gets_no_control_characters_of_a_response(
    terminal: bool, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout = io.StringIO()
    monkeypatch.setattr(stdout, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdout", stdout)
    _streamer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel()))).on_finalized_text(
        "a\tb\n\x1b[2J\u202e"
    )
    assert stdout.getvalue() == shown


def test_a_decided_query_is_answered_by_one_stream(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", run.name, "after red comes", "--skip", "0.4999"]) == 0
    text = capsys.readouterr().out
    choice = re.search(r"^decided: (tuned|original|both), gate (0\.\d+)$", text, re.MULTILINE)
    assert choice is not None
    answers = dict(re.findall(r"^(\w+): (.*)$", text, re.MULTILINE))
    assert answers["interwoven"] == answers.get(choice[1], answers["interwoven"])
    assert (choice[1] == "tuned") == (float(choice[2]) < 0.5)
