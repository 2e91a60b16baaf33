"""`imsm predictions`: real runs as tables and files."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import pytest

from imsm.cli.main import main
from imsm.evaluation.result import read_result
from imsm.reporting.prediction_table import prediction_table, summarize_predictions
from tests.studies.baselines.finished import ITEMS, finished, write_files


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    files, root = write_files(tmp_path_factory.mktemp("files")), tmp_path_factory.mktemp("runs")
    found = [finished(files, root, method=method) for method in ("original", "peft", "imsm")]
    assert main(["baselines", str(found[1]), "--baselines", "oracle_router,max_confidence"]) == 0
    return found[1:]


def test_the_summary_agrees_with_the_results(runs: list[Path]) -> None:
    summary = summarize_predictions(prediction_table(runs))
    assert list(dict.fromkeys(summary["method"])) == ["original", "peft", "max confidence", "oracle router", "imsm"]
    assert set(summary["examples"]) == {ITEMS}
    for folder, method in zip(runs, ("peft", "imsm"), strict=True):
        for task, entry in read_result(folder)["evaluation"]["tasks"].items():
            row = summary[(summary["method"] == method) & (summary["task"] == task)].squeeze()
            assert row["metric"] == entry["headline"]
            assert row["unparsed"] == entry["protocols"]["strict"]["unparsed"]
            assert row["truncated"] == entry["truncated"]
            assert row["tokens"] == pytest.approx(entry["new_tokens"] / ITEMS)
            assert row["reference_loglik"] == pytest.approx(entry["reference_loglik"])
            if entry["headline"] in ("accuracy", "contain", "exact_match"):
                assert row["score"] == pytest.approx(entry["metrics"][entry["headline"]])


def test_tables_are_printed_and_written(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(run) for run in runs]
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["predictions", *names]) == 0
    printed = capsys.readouterr().out
    assert "oracle router" in printed and "gate_mean" in printed and "nan" not in printed and "…" not in printed
    expected = prediction_table(runs)
    assert main(["predictions", *names, "--full", "--output", str(tmp_path / "new" / "all.csv")]) == 0
    read = pandas.read_csv(tmp_path / "new" / "all.csv")
    assert list(read["id"]) == list(expected["id"])
    logliks = expected["reference_loglik"].to_numpy(float)
    assert read["reference_loglik"].to_numpy() == pytest.approx(logliks, rel=1e-5, nan_ok=True)
    assert main(["predictions", *names, "--seeds", "--output", str(tmp_path / "seeds.md")]) == 0
    assert "lowest" in (tmp_path / "seeds.md").read_text()
    for kind in ("md", "jsonl"):
        assert main(["predictions", *names, "--output", str(tmp_path / f"summary.{kind}")]) == 0
    lines = (tmp_path / "summary.md").read_text().splitlines()
    assert len(lines) == 2 + len(summarize_predictions(expected))
    assert len(pandas.read_json(tmp_path / "summary.jsonl", lines=True)) == len(summarize_predictions(expected))


def test_an_example_has_one_row_with_the_responses_of_all_runs(runs: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "examples.csv"
    assert main(["predictions", *map(str, runs), "--by-example", "--output", str(output)]) == 0
    read = pandas.read_csv(output)
    assert len(read) == len(prediction_table(runs).drop_duplicates(["task", "id"]))
    assert {"prompt", "references", "original: response", "peft: response", "imsm: response"} <= set(read.columns)


def test_the_seed_of_a_csv_is_an_integer(runs: list[Path], tmp_path: Path) -> None:
    assert main(["predictions", str(runs[0]), "--output", str(tmp_path / "out.csv")]) == 0
    seeds = {line.split(",")[2] for line in (tmp_path / "out.csv").read_text().splitlines()[1:]}
    assert seeds == {"0", ""}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere"], "nowhere"),
        (["{run}", "--output", "x.xlsx"], "must end in .csv, .md, .jsonl"),
        (["{run}", "--full"], "add --output FILE"),
        (["{run}", "--by-example"], "add --output FILE"),
        (["{run}", "--full", "--output", "x.md"], ".csv or .jsonl"),
        (["{empty}"], "result.json"),
    ],
)
def test_bad_input_is_one_line(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    assert main(["predictions", *(each.format(run=runs[0], empty=tmp_path) for each in arguments)]) == 2
    error = capsys.readouterr().err
    assert text in error and len(error.splitlines()) == 1


def test_json_has_the_rows_of_the_table(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    names = [str(run) for run in runs]
    assert main(["predictions", *names, "--json"]) == 0
    summary = summarize_predictions(prediction_table(runs))
    rows = json.loads(capsys.readouterr().out)
    assert [row["score"] for row in rows] == pytest.approx(list(summary["score"]))
    assert rows[0]["method"] == "original" and rows[0]["seed"] is None  # not NaN, which JSON lacks
    assert main(["predictions", *names, "--full", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(prediction_table(runs))
    assert main(["predictions", *names, "--json", "--output", "table.csv"]) == 2
    assert "--json" in capsys.readouterr().err
