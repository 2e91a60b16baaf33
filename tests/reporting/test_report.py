"""What a report leaves: the statistics' numbers, honest gaps, a page that loads nothing."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from imsm.cli.main import main
from imsm.evaluation.predictions import write_predictions
from imsm.evaluation.result import FILE, write_result
from imsm.evaluation.statistics.forgetting import hypervolume
from imsm.evaluation.statistics.intervals import paired_difference, proportion_ci
from imsm.evaluation.statistics.significance import mcnemar
from imsm.reporting.paired_comparison import score_interval
from imsm.reporting.report import write_report
from imsm.reporting.report_data import build_report_data
from imsm.reporting.runs import baselines_of, runs_to_compare
from imsm.reporting.sections.order import build_sections
from imsm.reporting.sections.tradeoff import kept_there
from imsm.reporting.tradeoff import TradeoffCurve, TradeoffPoint
from tests.reporting.factories import N, items_file


def evidence_of(runs: dict[str, Any]):
    folder, record, _ = runs["imsm"]
    return build_report_data(runs_to_compare(folder, record, runs_root=runs["root"]), baselines_of(folder))


def test_differences_are_those_of_the_statistics(runs: dict[str, Any]) -> None:
    evidence = evidence_of(runs)
    assert [arm.label for arm in evidence.arms] == ["original", "peft", "imsm"]
    assert len(evidence.contrasts) == 5 * 3
    groups = [number // 2 for number in range(N)]
    for each in evidence.contrasts:
        one, other = (runs[name][2][each.task] for name in (each.arm, each.reference))
        expected = paired_difference(100 * one, 100 * other, groups=groups)
        assert each.difference.estimate == pytest.approx(expected.estimate)
        if each.metric != "mcc":
            assert (each.difference.low, each.difference.high) == pytest.approx((expected.low, expected.high))
        assert each.test == mcnemar(one, other)
    adjusted = [each.adjusted for each in evidence.contrasts]
    assert all(a >= e.test.p_value for a, e in zip(adjusted, evidence.contrasts, strict=True))


def test_kept_and_forgotten_add_up(runs: dict[str, Any]) -> None:
    for each in evidence_of(runs).kept:
        before, after = runs["original"][2][each.task], runs[each.arm][2][each.task]
        assert each.counts.items == N
        assert each.counts.forgotten == int(((before == 1) & (after == 0)).sum())
        if each.task == "mrpc":  # all golds are yes: always yes is right, nobody is above chance
            assert each.chance == 100.0 and each.retained is None
        if each.task == "webq":
            assert each.retained == pytest.approx(100 * after.mean() / before.mean())


def test_a_curve_goes_from_peft_to_the_original(runs: dict[str, Any]) -> None:
    evidence = evidence_of(runs)
    (curve,) = evidence.curves
    assert curve.control == "logit_mix"
    assert [trade.label for trade in curve.trades] == [
        "peft", "logit mix 0.25", "logit mix 0.75", "original",
    ]  # fmt: skip
    ends = curve.trades[0], curve.trades[-1]
    assert [(round(end.plasticity or 0), end.method) for end in ends] == [(100, "peft"), (0, "original")]
    assert ends[1].stability == pytest.approx(100.0)
    corners = [((t.plasticity or 0) / 100, (t.stability or 0) / 100) for t in curve.trades]
    assert curve.area == pytest.approx(hypervolume(corners))


class Page(HTMLParser):
    """What a browser would load, run and show."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.without_alt = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.loaded += [value or "" for key, value in attrs if key in ("src", "srcset", "data")]
        if tag == "link":
            self.loaded.append(found.get("href") or "")
        if tag == "img" and not found.get("alt"):
            self.without_alt += 1


def test_the_page_loads_nothing_and_nothing_in_it_runs(
    runs: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, record, _ = runs["imsm"]
    write_report(folder, record, runs_root=runs["root"])
    text = (folder / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.tags.count("img") == 6 and page.without_alt == 0
    assert all(source.startswith("data:image/png;base64,") for source in page.loaded)
    assert "script" not in page.tags and "&lt;script&gt;" in text
    assert not re.search(r"url\(|@import|https?://", text)
    markdown = (folder / "report.md").read_text()
    pictures = re.findall(r"\]\((figures/\w+\.png)\)", markdown)
    assert len(pictures) == 6 and all((folder / each).is_file() for each in pictures)
    with (folder / "tables" / "differences.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 15 and rows[0]["task"] == "gsm8k (target)"
    shown = capsys.readouterr().out
    assert "imsm − peft" in shown and "logit mix 0.25" in shown


def test_a_report_is_made_again_from_what_lies_there(runs: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _, _ = runs["imsm"]
    assert main(["report", str(folder)]) == 0
    first = (folder / "report.html").read_bytes()
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == first
    capsys.readouterr()
    assert main(["report", str(folder / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["report", str(runs["root"])]) == 2
    assert "holds no finished run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        ("config.evaluation.new_key", 1, "of another version of imsm; give the run's command"),
        ("evaluation.original", None, "lacks evaluation.original"),
        ("evaluation", [], "evaluation is no mapping"),
        ("identity", None, "lacks identity"),
    ],
)
def test_a_result_that_cannot_be_used_is_told_in_a_line(
    runs: dict[str, Any], capsys: pytest.CaptureFixture[str], where: str, value: Any, told: str
) -> None:
    folder, record, _ = runs["imsm"]
    *path, last = where.split(".")
    inner = record
    for key in path:
        inner = inner[key]
    inner[last] = value
    write_result(folder, record)
    for command in ("report", "predictions"):
        assert main([command, str(folder)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line and str(folder / FILE) in line


def test_without_items_points_remain(runs: dict[str, Any]) -> None:
    for method in ("original", "peft", "imsm"):
        for path in runs[method][0].glob("evaluation/*/predictions.jsonl"):
            path.unlink()
    folder, record, _ = runs["imsm"]
    evidence = build_report_data(runs_to_compare(folder, record, runs_root=runs["root"]))
    assert evidence.contrasts == [] and evidence.kept == []
    names = {section.name for section in build_sections(evidence)}
    assert {"averages", "answers"} <= names and "differences" not in names
    write_report(folder, record, runs_root=runs["root"])


def test_the_original_alone_has_a_report(runs: dict[str, Any]) -> None:
    folder, record, _ = runs["original"]
    write_report(folder, record, runs_root=runs["root"])
    assert (folder / "report.html").is_file()


def test_a_cell_that_was_trained_on_is_marked_and_in_no_average(runs: dict[str, Any]) -> None:
    folder, record, _ = runs["imsm"]
    record["evaluation"]["tasks"]["webq"]["trained_on"] = True
    evidence = build_report_data(runs_to_compare(folder, record, runs_root=runs["root"]))
    assert evidence.marked == {"webq"}
    assert "webq" not in evidence.forgetting
    assert all(each.adjusted is None for each in evidence.contrasts if each.task == "webq")
    averages = next(part for part in build_sections(evidence) if part.name == "averages")
    assert averages.table is not None
    own = [100 * runs["imsm"][2][task].mean() for task in ("freebaseqa", "multirc", "mrpc")]
    assert averages.table["retention average"].iloc[-1] == f"{sum(own) / 3:.1f}"


def test_where_all_are_right_the_interval_has_a_width(runs: dict[str, Any]) -> None:
    path = items_file(runs["original"], "webq")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for share in (1.0, 0.0):
        write_predictions(path.parent, (row | {"scores": dict.fromkeys(row["scores"], share)} for row in rows))
        evidence = evidence_of(runs)
        found = score_interval(evidence.arms[0], "webq", evidence.metrics["webq"])
        groups = [number // 2 for number in range(N)]
        expected = proportion_ci([share] * N, groups=groups)
        assert found is not None and found[0] == 100 * share
        assert (found[1].low, found[1].high) == (100 * expected.low, 100 * expected.high)
        assert 10 < found[1].high - found[1].low < 15
    scores = next(part for part in build_sections(evidence) if part.name == "scores")
    assert "Wilson" in scores.lines[0]


def test_the_hypervolume_is_not_said_to_end_at_one(runs: dict[str, Any]) -> None:
    trade = next(part for part in build_sections(evidence_of(runs)) if part.name == "trade")
    (line,) = [line for line in trade.lines if "hypervolume" in line]
    assert "1 is PEFT's whole gain with all kept, and no bound" in line


def test_leaks_are_told(runs: dict[str, Any]) -> None:
    folder, record, _ = runs["imsm"]
    record["evaluation"]["tasks"]["gsm8k"]["contamination"] = {"count": 2, "ids": ["gsm8k/1", "gsm8k/7"]}
    write_report(folder, record, runs_root=runs["root"])
    assert "2 items of gsm8k" in (folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (70.0, "keeps 70.0 %"),  # half way from (60, 100) to (80, 40)
        (59.0, "has learned more everywhere, and keeps up to 100.0 %"),
        (81.0, "does not reach it"),
    ],
)
def test_what_a_curve_keeps_at_a_target_score(target: float, told: str) -> None:
    def place(score: float, kept: float) -> TradeoffPoint:
        about = {"label": "x", "method": "baseline", "control": "x", "value": 0.5}
        return TradeoffPoint(**about, target=score, plasticity=None, stability=kept)

    curve = TradeoffCurve(control="logit_mix", letter="λ", trades=[place(80, 40), place(60, 100)])
    assert kept_there(curve, target) == told
