"""The page: self-contained and escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from matplotlib.figure import Figure

from imsm.reporting.render.document import Report, ReportFigure, Section, TokenHeatmap
from imsm.reporting.render.html import render_html
from imsm.reporting.render.markdown import render_markdown
from imsm.reporting.render.table import Table

HOSTILE = '<script>alert("x")</script>'


class Page(HTMLParser):
    """The tags of a page, and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.without_alt = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for key, value in attrs if key in ("src", "srcset", "data")]
        self.loaded += [value or "" for key, value in attrs if tag == "link" and key == "href"]
        self.without_alt += tag == "img" and not dict(attrs).get("alt")


def test_nothing_is_loaded_and_no_text_is_markup() -> None:
    section = Section(
        name="scores",
        title=HOSTILE,
        paragraphs=[HOSTILE],
        table=Table(columns=[HOSTILE], rows=[[HOSTILE]], text_columns=1),
        notes=[HOSTILE],
        figures=[ReportFigure(name="scores", alt=HOSTILE, draw=Figure)],
        heatmaps=[
            TokenHeatmap(
                title=HOSTILE,
                prompt=HOSTILE,
                references=HOSTILE,
                others=[(HOSTILE, HOSTILE)],
                pieces=[HOSTILE, "\n", ""],
                weights=[0.1, 0.2, 0.3],
            )
        ],
    )
    report = Report(
        title=HOSTILE,
        subtitle=HOSTILE,
        headline=[HOSTILE],
        run=HOSTILE,
        excluded=[HOSTILE],
        load_errors=[HOSTILE],
        sections=[section],
        provenance=[HOSTILE],
    )
    text = render_html(report, {"scores": b"png"})
    page = Page()
    page.feed(text)
    assert "script" not in page.tags and text.count("&lt;script&gt;") == 22
    assert page.loaded == ["data:image/png;base64,cG5n"] and page.without_alt == 0
    assert not re.search(r"url\(|@import|https?://", text)


def test_shades_are_scaled_to_the_response() -> None:
    heatmap = TokenHeatmap(title="t", prompt="p", references="r", pieces=["a", "b", "\n"], weights=[0.5, 0.6, 0.5])
    section = Section(name="gate", title="Gate", heatmaps=[heatmap])
    report = Report(title="", subtitle="", excluded=[], load_errors=[], sections=[section], provenance=[])
    text = render_html(report, {})
    assert re.findall(r"rgba\(var\(--heat\), ([\d.]+)\)", text) == ["0.05", "0.65", "0.05"]
    assert 'title="0.600"' in text and "⏎\n" in text


def test_control_characters_are_visible_escapes() -> None:
    text = "\x1b]0;x\x07 \u202e \u2028"
    section = Section(
        name="a",
        title=text,
        paragraphs=[text],
        heatmaps=[TokenHeatmap(title=text, prompt=text, references=text, pieces=[text], weights=[0.5])],
    )
    report = Report(title=text, subtitle=text, excluded=[text], load_errors=[], sections=[section], provenance=[text])
    for page in (render_html(report, {}), render_markdown(report)):
        assert not set(page) & set("\x1b\x07\u202e\u2028") and r"\x1b]0;x\x07 \u202e \u2028" in page


def test_a_response_has_its_question_accepted_answers_and_the_other_runs_responses() -> None:
    heatmap = TokenHeatmap(
        title="t",
        prompt="Q" * 5000 + " Which town?",
        references="Lowmere",
        others=[("peft, wrong", "Port Senn")],
        pieces=["Lowmere"],
        weights=[0.5],
    )
    section = Section(name="gate", title="Gate", heatmaps=[heatmap])
    report = Report(title="", subtitle="", excluded=[], load_errors=[], sections=[section], provenance=[])
    text = render_html(report, {})
    assert "<dt>accepted</dt><dd>Lowmere</dd><dt>peft, wrong</dt><dd>Port Senn</dd>" in text
    assert " Which town?</dd>" in text and len(text) < 8000
