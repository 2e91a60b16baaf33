"""`imsm check`: exit codes, output, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imsm.cli.main import main
from imsm.evaluation.response_cache import ResponseCache
from imsm.studies.repeated_evaluation import batch_sizes
from tests.reporting.factories import predictions_file, write_runs
from tests.studies.baselines.finished import FORGETTING, finished, write_files


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files, root = write_files(tmp_path_factory.mktemp("files")), tmp_path_factory.mktemp("runs")
    return finished(files, root, "logger=none", method="peft")


def test_exit_code_and_output_are_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    folder = write_runs(tmp_path)["peft"][0]
    # the PEFT run of the factory loses 10 and 13 points on tests of 60 items, and reaches less than 80 on its target
    for options, code, line in (
        ("--margin 2", 4, f"INSUFFICIENT_EVIDENCE: {folder.name} is undecided on webq, freebaseqa"),
        ("--margin 90", 0, f"PASS: {folder.name} loses less than 90 points on each of 2 tests"),
        ("--target-at-least 80", 3, f"FAIL: {folder.name} is significantly worse than allowed on gsm8k (target)"),
    ):
        assert main(["check", str(folder), *options.split()]) == code
        printed = capsys.readouterr().out
        assert printed.startswith(line) and len(printed.splitlines()) < 24


def test_json_is_the_only_output_and_agrees_with_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_runs(tmp_path)["peft"][0]
    assert main(["check", str(folder), "--json", "--target-at-least", "80"]) == 3
    record = json.loads(capsys.readouterr().out)
    assert (record["verdict"], record["exit_code"], record["margin"], record["repeats"]) == ("FAIL", 3, 2.0, 0)
    assert list(record["tests"]) == ["webq", "freebaseqa", "gsm8k (target)"]
    assert list(record["not_counted"]) == ["multirc", "mrpc"]
    for test in record["tests"].values():
        assert test["low"] <= (test["score"] if test["required"] else test["change"]) <= test["high"]


def test_edited_results_and_predictions_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs: dict[str, Any] = write_runs(tmp_path)
    for name in ("original", "peft"):
        path = predictions_file(runs[name], "webq")
        text = path.read_text()
        path.write_text(text.replace('"answer": "no"', '"answer": "yes"'))
        assert main(["check", str(runs["peft"][0])]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(path) in line and "changed since its result was written" in line
        path.write_text(text)
    result = runs["peft"][0] / "result.json"
    result.write_text(
        result.read_text().replace('"above_chance": true', '"above_chance": false').replace("peft", "tfep")
    )
    assert main(["check", str(runs["peft"][0])]) == 2
    assert "changed since it was written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["{peft}", "{imsm}"], "a verdict is about one adapter"),
        (["{original}"], "is the original model"),
        (["{peft}", "--margin", "-1"], "--margin -1"),
        (["{peft}", "--margin", "nan"], "--margin nan"),
        (["{peft}", "--repeat", "-1"], "--repeat -1"),
        (["{peft}", "--target-at-least", "0"], "--target-at-least 0"),
        (["{peft}", "--repeat", "1"], "training.json"),
        (["./nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    runs = write_runs(tmp_path)
    folders = {name: runs[name][0] for name in ("original", "peft", "imsm")}
    assert main(["check", *(each.format(**folders) for each in arguments)]) == 2
    found = capsys.readouterr()
    assert text in found.err and len(found.err.splitlines()) == 1 and not found.out


def test_repeats_generate_the_answers_again_without_the_response_cache(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(trained.parent))
    before = {path: path.stat().st_mtime_ns for path in trained.parent.rglob("*") if path.is_file()}
    written: list[Path] = []
    append = ResponseCache.append

    def recorded(cache: ResponseCache, rows: Any) -> None:
        written.append(cache.path)
        append(cache, rows)

    monkeypatch.setattr(ResponseCache, "append", recorded)
    assert main(["check", trained.name, "--repeat", "2", "--json"]) == 4
    record = json.loads(capsys.readouterr().out)
    # on the CPU in float32 the batch size changes no answer
    floors = {test["floor"] for test in record["tests"].values()}
    assert record["repeats"] == 2 and floors <= {0.0}
    assert record["tests"].keys() | record["not_counted"].keys() == {FORGETTING}
    # 2 repeats of the run and of the original, in temporary folders
    assert len(set(written)) == 4 and not any(path.is_relative_to(trained.parent) for path in written)
    assert not any(path.exists() for path in written)
    assert before == {path: path.stat().st_mtime_ns for path in trained.parent.rglob("*") if path.is_file()}


def test_an_adapter_is_evaluated_first(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Path]] = []

    def imported(reference: str, config_dir: Path | None) -> Path:
        calls.append((reference, trained))
        print("a report")
        return trained

    monkeypatch.setenv("IMSM_RUNS", str(trained.parent))
    monkeypatch.setattr("imsm.cli.check._evaluate_adapter", imported)
    adapter = str(trained / "model" / "adapter")
    assert main(["check", adapter, "--json"]) == 4
    found = capsys.readouterr()
    assert calls == [(adapter, trained)] and json.loads(found.out)["run"] == trained.name
    # the report of the evaluation must not be in the JSON
    assert "a report" in found.err


def test_batch_sizes_differ_from_the_first_and_from_each_other() -> None:
    assert batch_sizes(32, 3) == [24, 16, 8]
    assert batch_sizes(1, 3) == [2, 3, 4] and batch_sizes(3, 3) == [1, 2, 4]
    for first in range(1, 30):
        for count in range(1, 21):
            sizes = batch_sizes(first, count)
            assert len({*sizes, first}) == count + 1 and min(sizes) >= 1
