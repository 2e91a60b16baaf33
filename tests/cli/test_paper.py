"""The paper's tables and figures: grids that compose, cells and their marks, what is missing."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import scipy.stats
from matplotlib.image import imread
from rich.console import Console

from imsm.cli import paper as command
from imsm.config.compose import ConfigComposer
from imsm.config.identity import baseline_config, run_identity, run_name
from imsm.evaluation.predictions import task_dir, write_predictions
from imsm.evaluation.result import build_result, write_result
from imsm.evaluation.statistics.intervals import Interval, mean_ci
from imsm.evaluation.statistics.significance import mcnemar
from imsm.pipeline.run_status import write_failure
from imsm.studies.paper.cells import TableCell, build_cell, row_average, trainable_millions
from imsm.studies.paper.render import show_table
from imsm.studies.paper.runs import RunIndex, RunRef, required_runs, run_missing, validate_runs
from imsm.studies.paper.spec import list_tables, load_table
from imsm.studies.paper.table import build_table
from imsm.utils.paths import conf_folder

NAMES = ["figure3", "figure4", "table1", "table2", "table3", "table4", "table5", "table6"]
N = 50


@pytest.fixture(scope="module")
def preflight() -> ConfigComposer:
    return ConfigComposer()


def test_all_of_the_papers_tables_are_there() -> None:
    assert list_tables() == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_every_run_of_a_grid_can_be_carried_out(
    preflight: ConfigComposer, name: str, scale: str, tmp_path: Path
) -> None:
    validate_runs(load_table(name), RunIndex(preflight, runs_root=tmp_path), scale=scale)


@pytest.mark.parametrize(
    ("name", "rows", "first"),
    [
        ("table1", 21, {"mrpc_accuracy": "74.72", "average": "54.75"}),
        ("table2", 7, {"ropes": "58.47", "average": "53.45"}),
        ("table3", 9, {"gsm8k": "45.79", "average": "50.91"}),
        ("table4", 12, {"mrpc_accuracy": "86.67", "average": "78.82"}),
        ("table5", 6, {"llama3_tokens_per_s": "22.98"}),
        ("table6", 9, {"params_millions": "6.898", "gsm8k": "59.44"}),
        ("figure3", 6, {}),
        ("figure4", 12, {}),
    ],
)
def test_the_papers_numbers(name: str, rows: int, first: dict[str, str]) -> None:
    experiment = load_table(name)
    assert len(experiment.rows) == rows
    assert first.items() <= dict(experiment.rows[0].paper).items()


def test_at_the_miniatures_scale_equal_rows_are_one_run(preflight: ConfigComposer, tmp_path: Path) -> None:
    runs = RunIndex(preflight, runs_root=tmp_path)
    table3 = load_table("table3")
    assert len(required_runs(table3, runs, scale="mini", seeds=1)) == 2
    assert len(required_runs(table3, runs, scale="mini", seeds=3)) == 6
    assert len(required_runs(table3, runs, scale="paper", seeds=1)) == 6


def leave(run: RunRef, runs: RunIndex, *, known: float, seed: int) -> dict[str, numpy.ndarray]:
    """A finished run and its original's answers, made up; returns its items' scores by task."""
    config = runs.config(run.overrides)
    rng = numpy.random.default_rng(seed)
    original = run_name(baseline_config(config))
    entries: dict[str, Any] = {}
    scores = {}
    for name, task in config.tasks.items():
        fingerprint = f"{name:x<8}"[:8]
        values = (rng.random(N) < known).astype(float)
        scores[name] = values
        metrics = dict.fromkeys(task.metrics, 100 * float(values.mean()))
        entries[name] = {
            "role": "target" if name == config.data.name else "forgetting",
            "trained_on": name == config.data.name,
            "test_set": fingerprint,
            "items": N,
            "metrics": metrics,
            "headline": task.metrics[0],
            "protocol": "strict",
            "protocols": {"strict": {"metrics": metrics}},
            "seconds": 1.0,
            "new_tokens": N,
            "unparsed": 0,
            "truncated": 0,
        }
        for folder in (run.folder, runs.runs_root / original):
            write_predictions(
                task_dir(folder, task=name, test_set=fingerprint),
                (
                    {
                        "id": str(number),
                        "group": str(number),
                        "prompt_hash": "0",
                        "response": "x",
                        "tokens": 1,
                        "ended": True,
                        "answer": "yes" if value else "no",
                        "references": ["yes"],
                        "scores": dict.fromkeys(task.metrics, value),
                        "reference_loglik": -1.0,
                        "reference_tokens": 1,
                        "gate_mean": None,
                        "gate_per_token": None,
                        "token_texts": None,
                    }
                    for number, value in enumerate(values)
                ),
            )
    result = build_result(
        name=run.name,
        method=config.method.name,
        config=config.to_dict(),
        identity=run_identity(config),
        fingerprints={"backbone": "f"},
        trainable_parameters={"adapter": 1_500_000, "gate": 0},
        training={"seconds": 1.0},
        evaluation={
            "settings": config.evaluation.model_dump(),
            "tasks": entries,
            "original": {name: {**e, "trained_on": False} for name, e in entries.items()},
        },
    )
    write_result(run.folder, result)
    return scores


def test_cells_marks_averages_and_what_is_missing(preflight: ConfigComposer, tmp_path: Path) -> None:
    runs = RunIndex(preflight, runs_root=tmp_path)
    table2 = load_table("table2")
    found = {run.name: run for run in required_runs(table2, runs, scale="mini", seeds=1)}
    lora = next(run for name, run in found.items() if name.startswith("mini-lora-ropes-peft"))
    imsm = next(run for name, run in found.items() if name.startswith("mini-lora-ropes-imsm"))
    broken = next(run for name, run in found.items() if name.startswith("mini-ia3-ropes-peft"))
    one = leave(lora, runs, known=0.2, seed=1)
    other = leave(imsm, runs, known=0.9, seed=2)
    broken.folder.mkdir()
    write_failure(broken.folder, error="no memory", exit_code=1, command=broken.command)
    runs.refresh()
    rows = {tuple(row.values.values()): row for row in table2.rows}
    row = rows["chatglm3", "ropes", "lora", "imsm"]
    column = next(c for c in table2.spec.columns if c.name == "webq")
    options: dict[str, Any] = {"runs": runs, "scale": "mini", "seeds": 1, "protocol": "strict"}
    cell = build_cell(table2, row, column, **options)
    assert cell.interval == mean_ci(100 * other["webq"], groups=[str(n) for n in range(N)])
    assert mcnemar(other["webq"], one["webq"]).p_value < 0.05 and cell.mark == "mcnemar"
    assert build_cell(table2, rows["chatglm3", "ropes", "lora", "peft"], column, **options).mark is None

    table = build_table(table2, runs, scale="mini", seeds=1, protocol="strict")
    assert "the miniature in every row" in table.title and "strict" in table.title
    ours = table.frame[table.frame["whose"] == "ours"].reset_index(drop=True)
    line = ours[(ours["peft"] == "lora") & (ours["method"] == "imsm")].iloc[0]
    kept = [100 * other[name].mean() for name in ("webq", "multirc", "mrpc", "freebaseqa")]
    target = 100 * other["ropes"].mean()
    assert line["retention average"].startswith(f"{numpy.mean(kept):.1f} [")
    assert line["average"].startswith(f"{numpy.mean([target, *kept]):.1f} [")
    assert line["webq"].startswith(f"{kept[0]:.1f}* [")
    assert ours[(ours["peft"] == "ia3") & (ours["method"] == "peft")]["webq"].iloc[0] == "failed"
    assert ours[ours["peft"] == "adalora"]["webq"].tolist() == ["missing", "missing"]
    assert len(ours[ours["method"] == "original"]) == 1
    assert ours[ours["method"] == "original"]["webq"].iloc[0] != "missing"
    assert {run.name for run in table.missing} == set(found) - {lora.name, imsm.name}
    paper = table.frame[table.frame["whose"] == "paper (chatglm3)"]
    assert paper["webq"].iloc[0] == "25.49"

    text = io.StringIO()
    console = Console(file=text, width=100)
    place = tmp_path / "out"
    show_table(table2, runs, scale="mini", seeds=1, protocol="strict", folder=place, console=console)
    shown = text.getvalue()
    assert "failed (no memory)" in shown and "python -m imsm.run backbone=mini" in shown
    assert "25.49" in (place / "table.md").read_text()
    with (place / "table.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == len(table.frame)
    assert r"\toprule" in (place / "table.tex").read_text()


def test_over_seeds_the_mark_is_students(preflight: ConfigComposer, tmp_path: Path) -> None:
    runs = RunIndex(preflight, runs_root=tmp_path)
    table3 = load_table("table3")
    for number, run in enumerate(required_runs(table3, runs, scale="mini", seeds=3)):
        leave(run, runs, known=0.9 if "-imsm-" in run.name else 0.3, seed=number)
    runs.refresh()
    table = build_table(table3, runs, scale="mini", seeds=3, protocol="strict")
    imsm = table.frame[(table.frame["whose"] == "ours") & (table.frame["method"] == "imsm")]
    assert all("‡" in text for text in imsm["gsm8k"])
    assert any("Student" in note for note in table.notes)
    assert table.missing == []


def test_a_figure_is_drawn_with_gaps(preflight: ConfigComposer, tmp_path: Path) -> None:
    runs = RunIndex(preflight, runs_root=tmp_path)
    figure3 = load_table("figure3")
    for number, run in enumerate(required_runs(figure3, runs, scale="mini", seeds=1)[:4]):
        leave(run, runs, known=0.6, seed=number)
    runs.refresh()
    console = Console(file=io.StringIO())
    options: dict[str, Any] = {"scale": "mini", "seeds": 1, "protocol": "strict"}
    show_table(figure3, runs, folder=tmp_path / "out", console=console, **options)
    assert imread(tmp_path / "out" / "figure.png").std() > 0
    assert (tmp_path / "out" / "figure.svg").is_file()


def test_a_failed_run_ends_no_other_and_says_why(tmp_path: Path) -> None:
    def run(name: str, *overrides: str) -> RunRef:
        return RunRef(
            overrides=overrides,
            name=name,
            folder=tmp_path / name,
            state="missing",
            result=None,
            failure=None,
            trained=True,
        )

    told: list[str] = []
    wanted = [run("a", "peft=lorra"), run("b", "--help")]
    assert run_missing(wanted, log_dir=tmp_path / "logs", jobs=1, log=told.append) == ["a"]
    failure = json.loads((tmp_path / "a" / "failure.json").read_text())
    assert "lorra" in failure["error"] and failure["exit_code"] == 2
    assert not (tmp_path / "b" / "failure.json").exists()
    assert any("b: done" in line for line in told)


def test_wrong_input_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path))
    assert command.main(["status", "tabel1"]) == 2
    assert "did you mean table1?" in capsys.readouterr().err
    assert command.main(["show", "table3", "--seeds", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
    assert command.main(["status", "table3"]) == 0
    assert "table3 (mini): 0 done, 2 missing, 0 failed" in capsys.readouterr().out


def test_speed_is_measured_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from imsm.studies.paper.speed import read_speed, speed_table, write_speed

    table5 = load_table("table5")
    rows = [
        {
            "overrides": sorted([f"peft={peft}", f"method={method}", "backbone=mini"]),
            "method": method,
            "tokens_per_second": speed,
            "lowest": speed - 1,
            "highest": speed + 1,
        }
        for peft in ("lora", "ia3", "adalora")
        for method, speed in (("peft", 80.0), ("imsm", 60.0))
    ]
    found = {"device": "x", "date": "d", "rounds": 5, "new_tokens": 64, "prompt_tokens": 64}
    place = tmp_path / "table5" / "mini"
    write_speed(found | {"rows": rows}, place)
    frame, _ = speed_table(table5, read_speed(place) or {}, scale="mini")
    assert frame["ours, miniature"].tolist()[:2] == ["80.0 (79.0, 81.0)", "60.0 (59.0, 61.0)"]
    assert frame["share, miniature"].tolist()[:2] == ["", "0.75"]
    assert frame["its share, chatglm3"].tolist()[1] == "0.93"
    assert command.main(["run", "table5", "--output", str(tmp_path)]) == 0
    assert "0.75" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["[]", "{}", '{"rows": [1]}', "3", "{"])
def test_a_damaged_speed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    place = tmp_path / "table5" / "mini" / "speed.json"
    place.parent.mkdir(parents=True)
    place.write_text(text)
    for verb in ("show", "status"):
        assert command.main([verb, "table5", "--output", str(tmp_path)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"imsm: {place}: ") and line.endswith("remove it")


def test_a_run_that_is_killed_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(name: str) -> RunRef:
        return RunRef(
            overrides=(name,),
            name=name,
            folder=tmp_path / name,
            state="missing",
            result=None,
            failure=None,
            trained=True,
        )

    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\ncase "$3" in big) kill -9 $$;; hand) exit 130;; esac\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    told: list[str] = []
    wanted = [run("big"), run("small")]
    assert run_missing(wanted, log_dir=tmp_path / "logs", jobs=1, log=told.append) == ["big"]
    failure = json.loads((tmp_path / "big" / "failure.json").read_text())
    assert "SIGKILL" in failure["error"] and failure["exit_code"] == 137
    assert any("small: done" in line for line in told)

    told.clear()
    with pytest.raises(KeyboardInterrupt):
        run_missing([run("hand"), run("small")], log_dir=tmp_path / "logs", jobs=1, log=told.append)
    assert not any("small" in line for line in told)
    assert not (tmp_path / "hand" / "failure.json").exists()


def test_figure_3_has_the_target_and_the_papers_average(preflight: ConfigComposer, tmp_path: Path) -> None:
    runs = RunIndex(preflight, runs_root=tmp_path)
    figure3 = load_table("figure3")
    made = {}
    for number, run in enumerate(required_runs(figure3, runs, scale="mini", seeds=1)):
        made[run.name] = leave(run, runs, known=0.3 + 0.1 * number, seed=number)
    runs.refresh()
    table = build_table(figure3, runs, scale="mini", seeds=1, protocol="strict")
    kept = ("webq", "multirc", "mrpc", "freebaseqa")
    for row, cells in table.cells:
        target = row.values["tuned_on"]
        assert list(cells) == [target, *kept]
        column = figure3.spec.columns[0]
        name = runs.find(figure3.overrides(row, column, scale="mini", seed=0)).name
        points = [100 * made[name][task].mean() for task in (target, *kept)]
        line = table.frame[(table.frame["tuned_on"] == target) & (table.frame["arm"] == row.values["arm"])].iloc[0]
        assert line["average"].startswith(f"{numpy.mean(points):.1f} [")
        assert line["retention average"].startswith(f"{numpy.mean(points[1:]):.1f} [")
    assert any("1.85" in note and "8.77" in note for note in table.notes)


def test_what_was_trained_on_is_averaged_nowhere() -> None:
    def cell(value: float, *, trained_on: bool = False) -> TableCell:
        interval = Interval(estimate=value, low=value, high=value, level=0.95)
        return TableCell(interval=interval, mark=None, trained_on=trained_on, missing=[], test="t", seeds=[value])

    found = {"a": cell(10), "b": cell(90, trained_on=True), "c": cell(20)}
    average = row_average(found, ["a", "b", "c"])
    assert average is not None and average.estimate == 15
    lacking = TableCell(interval=None, mark=None, trained_on=False, missing=[], test="t")
    assert row_average({**found, "c": lacking}, ["a", "c"]) is None


def test_an_average_has_the_interval_of_its_columns_or_of_its_seeds() -> None:
    def cell(*seeds: float, reach: float, test: str = "a") -> TableCell:
        mean = sum(seeds) / len(seeds)
        interval = Interval(estimate=mean, low=mean - reach, high=mean + 2 * reach, level=0.95)
        return TableCell(interval=interval, mark=None, trained_on=False, missing=[], test=test, seeds=seeds)

    same = row_average({"a": cell(40, reach=3), "b": cell(60, reach=4)}, ["a", "b"])
    assert same == Interval(estimate=50, low=46.5, high=57, level=0.95)
    one = row_average({"a": cell(40, reach=3), "b": cell(60, reach=4, test="b")}, ["a", "b"])
    assert one == Interval(estimate=50, low=47.5, high=55, level=0.95)
    rows = numpy.array([[40, 43, 41], [60, 61, 66]])
    found = {name: cell(*row, reach=1) for name, row in zip("ab", rows, strict=True)}
    several = row_average(found, ["a", "b"])
    means = rows.mean(axis=0)
    low, high = scipy.stats.t.interval(0.95, 2, means.mean(), scipy.stats.sem(means))
    assert several is not None
    assert (several.estimate, several.low, several.high) == pytest.approx((means.mean(), low, high))


def test_the_released_table_replaces_no_clean_one(preflight: ConfigComposer, tmp_path: Path) -> None:
    runs = RunIndex(preflight, runs_root=tmp_path)
    console = Console(file=io.StringIO())
    for protocol in ("strict", "paper_code"):
        show_table(
            load_table("table3"),
            runs,
            scale="mini",
            seeds=1,
            protocol=protocol,
            folder=tmp_path / "out",
            console=console,
        )
    assert "clean protocol" in (tmp_path / "out" / "table.md").read_text()
    assert "released protocol" in (tmp_path / "out" / "paper_code" / "table.md").read_text()


@pytest.mark.parametrize("name", ["table1", "table6"])
def test_parameters_are_the_papers_before_anything_ran(name: str, preflight: ConfigComposer, tmp_path: Path) -> None:
    experiment = load_table(name)
    runs = RunIndex(preflight, runs_root=tmp_path)
    counted = 0
    for row in experiment.rows:
        ours = trainable_millions(experiment, row, runs=runs, scale="paper", seeds=1)
        assert (f"{ours:.3f}" if ours else "") == row.paper["params_millions"], row.values
        counted += ours is not None
    assert counted == {"table1": 18, "table6": 9}[name]


def test_a_total_is_tested_by_the_bootstrap(preflight: ConfigComposer, tmp_path: Path) -> None:
    runs = RunIndex(preflight, runs_root=tmp_path)
    table1 = load_table("table1")
    column = next(c for c in table1.spec.columns if c.name == "mrpc_f1")
    rows = {tuple(row.values.values()): row for row in table1.rows}
    peft, imsm = (rows["chatglm3", "lora", method] for method in ("peft", "imsm"))
    for number, (row, known) in enumerate(((peft, 0.3), (imsm, 0.95))):
        wanted = table1.overrides(row, column, scale="mini", seed=0)
        leave(runs.find(wanted), runs, known=known, seed=number)
    runs.refresh()
    options: dict[str, Any] = {"runs": runs, "scale": "mini", "seeds": 1, "protocol": "strict"}
    assert build_cell(table1, imsm, column, **options).mark == "bootstrap"
    assert build_cell(table1, peft, column, **options).mark is None
