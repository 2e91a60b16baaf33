"""`imsm predictions`: every arm as a table, against its items and its result."""

from __future__ import annotations

from pathlib import Path

import pandas
import pytest

from imsm.cli.main import main
from imsm.evaluation.result import read_result
from imsm.pipeline.run import run_experiment
from imsm.reporting.prediction_table import average_over_seeds, prediction_table, summarize_predictions
from tests.helpers.config import config
from tests.studies.baselines.finished import ITEMS, choices, finished, make


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    made, root = make(tmp_path_factory.mktemp("made")), tmp_path_factory.mktemp("runs")
    found = [finished(made, root, method=method) for method in ("original", "peft", "imsm")]
    assert main(["baselines", str(found[1]), "--baselines", "oracle_router,confidence"]) == 0
    return found[1:]


def test_every_arm_is_there_once_with_what_its_result_says(runs: list[Path]) -> None:
    table = prediction_table(runs)
    short = summarize_predictions(table)
    assert list(dict.fromkeys(short["arm"])) == ["original", "peft", "confidence", "oracle router", "imsm"]
    assert set(short["items"]) == {ITEMS}
    assert len(table) == short["items"].sum() == 5 * ITEMS * len(set(table["task"]))
    for folder, label in zip(runs, ("peft", "imsm"), strict=True):
        for task, entry in read_result(folder)["evaluation"]["tasks"].items():
            row = short[(short["arm"] == label) & (short["task"] == task)].squeeze()
            assert row["headline"] == entry["headline"]
            assert row["unparsed"] == entry["protocols"]["strict"]["unparsed"]
            assert row["truncated"] == entry["truncated"]
            assert row["tokens"] == pytest.approx(entry["new_tokens"] / ITEMS)
            assert row["reference_loglik"] == pytest.approx(entry["reference_loglik"])
            if entry["headline"] in ("accuracy", "contain", "exact_match"):
                assert row["score"] == pytest.approx(entry["metrics"][entry["headline"]])
    assert short[short["arm"] == "original"]["seed"].isna().all()
    assert short[short["arm"] == "peft"]["gate_mean"].isna().all()
    assert short[short["arm"] == "imsm"]["gate_mean"].between(0, 1).all()


def test_what_is_written_and_shown(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(run) for run in runs]
    assert main(["predictions", *names]) == 0
    shown = capsys.readouterr().out
    assert "oracle router" in shown and "gate_mean" in shown and "nan" not in shown
    expected = prediction_table(runs)
    assert main(["predictions", *names, "--full", "--output", str(tmp_path / "new" / "all.csv")]) == 0
    read = pandas.read_csv(tmp_path / "new" / "all.csv")
    assert list(read["id"]) == list(expected["id"])
    assert read["reference_loglik"].to_numpy() == pytest.approx(
        expected["reference_loglik"].to_numpy(float), rel=1e-5, nan_ok=True
    )
    assert main(["predictions", *names, "--seeds", "--output", str(tmp_path / "seeds.md")]) == 0
    assert "lowest" in (tmp_path / "seeds.md").read_text()
    for kind in ("md", "jsonl"):
        assert main(["predictions", *names, "--output", str(tmp_path / f"short.{kind}")]) == 0
    lines = (tmp_path / "short.md").read_text().splitlines()
    assert len(lines) == 2 + len(summarize_predictions(expected))
    assert len(pandas.read_json(tmp_path / "short.jsonl", lines=True)) == len(summarize_predictions(expected))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["{run}", "--output", "x.xlsx"], "must end in .csv, .md, .jsonl"),
        (["{run}", "--full"], "add --output FILE"),
        (["{run}", "--full", "--output", "x.md"], "must end in .csv or .jsonl"),
        (["{empty}"], "result.json"),
    ],
)
def test_what_is_refused(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    given = [each.format(run=runs[0], empty=tmp_path) for each in arguments]
    assert main(["predictions", *given]) == 2
    error = capsys.readouterr().err
    assert told in error and len(error.splitlines()) == 1


def test_damaged_items_are_named(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    shutil.copytree(runs[0].parent, tmp_path / "runs")
    folder = tmp_path / "runs" / runs[0].name
    (found, *_) = sorted(folder.glob("evaluation/*/predictions.jsonl"))
    found.write_text('{"id": 1')
    assert main(["predictions", str(folder)]) == 2
    assert "not there or damaged" in capsys.readouterr().err


def test_runs_of_different_tests_keep_their_originals(runs: list[Path], tmp_path: Path) -> None:
    """The original is one, but each run asked it of its own tests."""
    made, root = make(tmp_path), tmp_path / "runs"
    root.mkdir()
    few = finished(made, root, "evaluation.limit=3", "seed=20240101")
    many = finished(made, root, "seed=1")
    for order in ([few, many], [many, few]):
        found = summarize_predictions(prediction_table(order))
        original = found[found["arm"] == "original"]
        assert sorted(original["items"]) == [3, 3, ITEMS, ITEMS]
        assert len(found) == 8
    other = finished(made, root, "seed=2")
    short = summarize_predictions(prediction_table([many, other]))
    means = average_over_seeds(short)
    assert list(means["seeds"]) == [1, 1, 2, 2]
    for row in means.itertuples():
        chosen = short[(short["arm"] == row.arm) & (short["task"] == row.task)]["score"]
        assert (row.score, row.lowest, row.highest) == (chosen.mean(), chosen.min(), chosen.max())
    assert list(means["run"])[2:] == [many.name, many.name]
    # another configuration, by the same arm's name, is no seed of it
    third = finished(made, root, "seed=3", "trainer.learning_rate=0.02")
    apart = average_over_seeds(summarize_predictions(prediction_table([many, other, third])))
    trained = apart[apart["arm"] == "peft"]
    assert list(trained["seeds"]) == [2, 2, 1, 1]
    assert list(trained["run"]) == [many.name] * 2 + [third.name] * 2
    assert main(["predictions", str(few), "--output", str(tmp_path / "few.csv")]) == 0
    assert {"20240101", ""} == {line.split(",")[2] for line in (tmp_path / "few.csv").read_text().splitlines()[1:]}


def test_a_run_in_a_place_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, root = make(tmp_path), tmp_path / "runs"
    root.mkdir()
    folder = tmp_path / "own" / "a[b]"
    chosen = config(*choices(made, f"run_dir={str(folder)!r}", method="peft"))
    run_experiment(chosen, runs_root=root)
    monkeypatch.setenv("IMSM_RUNS", str(root))
    monkeypatch.setenv("COLUMNS", "60")
    capsys.readouterr()
    assert main(["predictions", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"seed", "task", "score", "gate_mean"} <= set(lines[0].split())
    assert sum(line.startswith("a[b] ") for line in lines) == 2
    assert len(lines) == 5
