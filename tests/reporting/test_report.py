"""The files of a report."""

from __future__ import annotations

import csv
import re
from typing import Any

import pytest

from imsm.cli.main import main
from imsm.evaluation.result import FILE, write_result
from imsm.reporting.render.markdown import render_markdown
from imsm.reporting.render.terminal import print_report
from imsm.reporting.report import build_report, report_subtitle, report_title, write_report
from tests.reporting.factories import data_of, evaluate_on_other_examples, predictions_file, three_results
from tests.reporting.render.test_html import Page


def test_page_markdown_tables_and_figures(runs: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder, record, _ = runs["imsm"]
    write_report(folder, record, runs_root=runs["root"])
    page, text = Page(), (folder / "report.html").read_text()
    page.feed(text)
    assert page.tags.count("img") == 6 and page.without_alt == 0
    assert all(source.startswith("data:image/png;base64,") for source in page.loaded)
    assert "script" not in page.tags and "&lt;script&gt;" in text
    assert not re.search(r"url\(|@import|https?://", text)
    markdown = (folder / "report.md").read_text()
    figures = re.findall(r"\]\((figures/\w+\.png)\)", markdown)
    assert len(figures) == 6 and all((folder / figure).is_file() for figure in figures)
    with (folder / "tables" / "differences.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 15 and rows[0]["task"] == "gsm8k (target)"
    printed = capsys.readouterr().out
    assert "imsm − peft" in printed and "logit mix 0.25" in printed


def test_a_repeated_report_has_the_same_bytes(runs: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _, _ = runs["imsm"]
    assert main(["report", str(folder)]) == 0
    first = (folder / "report.html").read_bytes()
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == first


def test_exclusions_are_in_every_form(runs: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_on_other_examples(runs, ["webq"])
    folder, record, _ = runs["imsm"]
    report = build_report(folder, record, runs_root=runs["root"])
    (line,) = report.excluded
    assert line.startswith("Excluded runs")
    print_report(report)
    assert line in capsys.readouterr().out.splitlines()
    assert line in render_markdown(report)


def test_load_errors_are_in_the_files_and_on_stderr(runs: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = predictions_file(runs["peft"], "webq")
    path.write_text("{")
    folder, record, _ = runs["imsm"]
    write_report(folder, record, runs_root=runs["root"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("imsm: peft: ")
    assert line.removeprefix("imsm: ") in (folder / "report.md").read_text()
    assert str(path) in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("config.evaluation.new_key", 1, "of another version of imsm"),
        ("evaluation.original", None, "lacks evaluation.original"),
        ("evaluation", [], "evaluation"),
        ("identity", None, "lacks identity"),
    ],
)
def test_an_unusable_result_is_one_line_and_exit_code_2(
    runs: dict[str, Any], capsys: pytest.CaptureFixture[str], key: str, value: Any, text: str
) -> None:
    folder, record, _ = runs["imsm"]
    *path, last = key.split(".")
    inner = record
    for part in path:
        inner = inner[part]
    inner[last] = value
    write_result(folder, record)
    for command in ("report", "predictions"):
        assert main([command, str(folder)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert text in line and str(folder / FILE) in line


def test_the_original_alone_has_a_report(runs: dict[str, Any]) -> None:
    folder, record, _ = runs["original"]
    report = build_report(folder, record, runs_root=runs["root"])
    assert report.subtitle == "mini · original"
    write_report(folder, record, runs_root=runs["root"])
    assert (folder / "report.html").is_file()


def test_the_title_names_a_quantized_original() -> None:
    data = data_of(three_results("backbone.quantization=nf4"))
    assert report_subtitle(data.focus.result, compared=True).startswith("mini in 4 bits (nf4) · ")
    original = data_of([three_results("backbone.quantization=nf4")[0]])
    assert report_title(original) == "mini in 4 bits (nf4) before training"
