"""Tables: our rows and the paper's, averages, missing runs, notes."""

from __future__ import annotations

from pathlib import Path

import numpy
import pandas

from imsm.pipeline.run_status import write_failure
from imsm.reporting.render.table import Table
from imsm.studies.paper.runs import RunIndex, required_runs
from imsm.studies.paper.spec import load_table
from imsm.studies.paper.table import build_table, write_table
from tests.studies.paper.finished import write_run


def frame_of(table: Table) -> pandas.DataFrame:
    return pandas.DataFrame(table.rows, columns=table.columns)


def test_our_rows_the_papers_rows_and_missing_runs(runs: RunIndex, tmp_path: Path) -> None:
    table = load_table("table2")
    required = required_runs(table, runs, scale="mini", seeds=1)
    found = {"-".join(run.name.split("-")[:4]): run for run in required}
    peft, imsm = found["mini-lora-ropes-peft"], found["mini-lora-ropes-imsm"]
    write_run(peft, runs, known=0.2, seed=1)
    scores = write_run(imsm, runs, known=0.9, seed=2)
    failed = found["mini-ia3-ropes-peft"]
    failed.folder.mkdir()
    write_failure(failed.folder, error="no memory", exit_code=1, command=failed.command)
    runs.refresh()

    filled = build_table(table, runs, scale="mini", seeds=1, protocol="strict")
    assert "the miniature in every row" in filled.text.caption and "strict protocol" in filled.text.caption
    frame = frame_of(filled.text)
    ours = frame[frame["whose"] == "ours"].reset_index(drop=True)
    line = ours[(ours["peft"] == "lora") & (ours["method"] == "imsm")].iloc[0]
    retained = [100 * scores[name].mean() for name in ("webq", "multirc", "mrpc", "freebaseqa")]
    assert line["retention average"].startswith(f"{numpy.mean(retained):.1f} [")
    assert line["average"].startswith(f"{numpy.mean([100 * scores['ropes'].mean(), *retained]):.1f} [")
    assert line["webq"].startswith(f"{retained[0]:.1f} [")
    assert ours[(ours["peft"] == "ia3") & (ours["method"] == "peft")]["webq"].iloc[0] == "failed"
    assert ours[ours["peft"] == "adalora"]["webq"].tolist() == ["missing", "missing"]
    assert len(ours[ours["method"] == "original"]) == 1
    assert ours[ours["method"] == "original"]["webq"].iloc[0] != "missing"
    assert {run.name for run in filled.missing} == {run.name for run in required} - {peft.name, imsm.name}
    assert frame[frame["whose"] == "paper (chatglm3)"]["webq"].iloc[0] == "25.49"

    assert set(ours["backbone"]) == {"mini (for chatglm3)"}
    assert any("one seed" in note for note in filled.text.notes)

    write_table(filled.text, tmp_path / "out", missing=filled.missing)
    markdown = (tmp_path / "out" / "table.md").read_text()
    assert "25.49" in markdown and "failed (no memory)" in markdown and "backbone=mini" in markdown
    assert len(pandas.read_csv(tmp_path / "out" / "table.csv")) == len(frame)
    latex = (tmp_path / "out" / "table.tex").read_text()
    assert r"\toprule" in latex
    for text in (markdown, latex, (tmp_path / "out" / "table.csv").read_text()):
        assert "mini (for chatglm3)" in text


def test_over_seeds_the_mark_is_students_t_adjusted_over_the_table(runs: RunIndex) -> None:
    table3 = load_table("table3")
    for number, run in enumerate(required_runs(table3, runs, scale="mini", seeds=3)):
        write_run(run, runs, known=0.9 if "-imsm-" in run.name else 0.3, seed=number)
    runs.refresh()
    filled = build_table(table3, runs, scale="mini", seeds=3, protocol="strict")
    frame = frame_of(filled.text)
    imsm = frame[(frame["whose"] == "ours") & (frame["method"] == "imsm")]
    assert all("*" in text for text in imsm["gsm8k"])
    assert any("Student" in note and "Holm" in note for note in filled.text.notes)
    assert filled.missing == []


def test_figure_3_has_the_target_and_the_papers_average(runs: RunIndex) -> None:
    figure3 = load_table("figure3")
    scores = {}
    for number, run in enumerate(required_runs(figure3, runs, scale="mini", seeds=1)):
        scores[run.name] = write_run(run, runs, known=0.3 + 0.1 * number, seed=number)
    runs.refresh()
    filled = build_table(figure3, runs, scale="mini", seeds=1, protocol="strict")
    retained = ("webq", "multirc", "mrpc", "freebaseqa")
    frame = frame_of(filled.text)
    for row, cells in filled.cells:
        target = row.values["tuned_on"]
        assert list(cells) == [target, *retained]
        column = figure3.spec.columns[0]
        name = runs.find(figure3.overrides(row, column, scale="mini", seed=0)).name
        points = [100 * scores[name][task].mean() for task in (target, *retained)]
        line = frame[(frame["tuned_on"] == target) & (frame["method"] == row.values["method"])].iloc[0]
        assert line["average"].startswith(f"{numpy.mean(points):.1f} [")
        assert line["retention average"].startswith(f"{numpy.mean(points[1:]):.1f} [")
    assert any("1.85" in note and "8.77" in note for note in filled.text.notes)
