"""The lens in headless Chromium, against a server with fixed answers full of markup; skipped without Chromium."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import imsm.serving
from imsm.evaluation.statistics.forgetting import OUTCOMES
from imsm.serving.run_views import MAX_ITEMS, list_items
from tests.helpers.word_run import run_words, write_word_files
from tests.reporting.factories import HOSTILE, N, write_runs
from tests.serving.lens_server import ANSWER, MARKUP, WINNERS, LensServer, fingerprint, serve

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
expect = sync_api.expect
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LENS = Path(imsm.serving.__file__).parent / "lens"
TOKENS = len(ANSWER)
SECONDS = 90
"""Time for an expected state; long, because tests also run on busy machines."""
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def server(runs: dict[str, Any]) -> Iterator[LensServer]:
    with serve([runs["imsm"][0], runs["peft"][0]]) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # closed with the module: Playwright's event loop would forbid asyncio.run() in later tests
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        expect.set_options(timeout=SECONDS * 1000)
        yield browser
        browser.close()


@pytest.fixture
def messages() -> list[str]:
    """Messages of the console and uncaught errors; must be empty at the end of a test."""
    return []


@pytest.fixture
def open_page(browser: Any, messages: list[str]) -> Iterator[Open]:
    """Open the page of a server; check that nothing else is requested."""
    contexts = []

    def open_page(url: str, *, width: int = 1280, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SECONDS * 1000)
        origin = re.match(r"http://[^/]+/", url)
        assert origin is not None
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        allowed = (origin[0], "data:image/svg+xml")
        page.on("request", lambda each: each.url.startswith(allowed) or messages.append(each.url))
        page.goto(url)
        expect(page.locator("#run option").first).to_be_attached()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert messages == []


@pytest.fixture
def page(open_page: Open, server: LensServer) -> Any:
    return open_page(server.url)


def column(page: Any, kind: str) -> Any:
    return page.locator(f".column[data-kind={kind}]")


def ask(page: Any, prompt: str = "why?", *, columns: int = 4) -> None:
    """Type a prompt, send it by keyboard, and wait for all answers."""
    page.locator("#prompt").fill(prompt)
    page.keyboard.press("Control+Enter")
    expect(page.locator(".column .state", has_text="done")).to_have_count(columns)


def test_the_page_has_neither_inline_code_nor_an_outside_resource() -> None:
    texts = {path.name: path.read_text() for path in LENS.iterdir()}
    assert set(texts) == {"index.html", "lens.css", "lens.js"}
    html = texts["index.html"]
    assert not re.search(r"\sstyle=|\son[a-z]+=|<style|<script(?![^>]*\ssrc=)|javascript:", html)
    assert re.findall(r'(?:src|href)="([^"#]+)"', html.replace("data:", ""))[1:] == ["/lens.css", "/lens.js"]
    for text in texts.values():
        assert set(re.findall(r"https?://[^\s'\")]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(", texts["lens.css"])
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", texts["lens.js"])


@needs_chromium
def test_all_streams_and_a_mix_answer_one_prompt(page: Any, server: LensServer, runs: dict[str, Any]) -> None:
    ask(page, "why?\nbecause")
    run = runs["imsm"][0].name
    models = [f"{run}:{name}" for name in ("original", "tuned", "interwoven", "logit_mix:0.5")]
    assert sorted(request["model"] for request in server.asked) == sorted(models)
    for request in server.asked:
        assert request["messages"] == [{"role": "user", "content": "why?\nbecause"}]
        assert request["imsm"] == {"details": True, "top": 5} and request["stream"] is True
        assert (request["temperature"], request["max_tokens"]) == (0, 128)
    for kind, model in zip(("original", "tuned", "interwoven", "mix"), models, strict=True):
        head = column(page, kind).locator(".identity")
        expect(head).to_contain_text(run)
        expect(head).to_contain_text(f"{model.removeprefix(run + ':')} · {fingerprint(model)[:8]}")
        expect(column(page, kind).locator(".mismatch")).to_be_hidden()
        tokens = column(page, kind).locator(".token")
        expect(tokens).to_have_count(TOKENS)
        assert [tokens.nth(n).get_attribute("data-winner") for n in range(4)] == list(WINNERS)
        expect(column(page, kind).locator(".summary")).to_contain_text(f"{TOKENS} tokens · original 29 %")
    expect(column(page, "interwoven").locator(".summary")).to_contain_text("mean gate 0.30")
    expect(column(page, "tuned").locator(".summary")).not_to_contain_text("gate")
    expect(column(page, "tuned").locator(".gated")).to_have_count(0)
    style = "node => [getComputedStyle(node).backgroundColor, getComputedStyle(node).textDecorationStyle]"
    shown = [column(page, "interwoven").locator(".token").nth(n).evaluate(style) for n in range(4)]
    assert len({background for background, _ in shown}) == 4
    # readable without color: the lines of original, tuned and neither differ
    assert [line for _, line in shown][1:] == ["solid", "dashed", "wavy"]


@needs_chromium
def test_tokens_appear_as_they_arrive_and_stop_ends_the_requests(page: Any, server: LensServer) -> None:
    page.locator("#prompt").fill("hold")
    page.locator("#ask").click()
    for kind in ("original", "tuned", "interwoven", "mix"):
        expect(column(page, kind).locator(".token")).to_have_count(1)
    expect(column(page, "tuned").locator(".state")).to_have_text("answering …")
    expect(column(page, "tuned").locator(".answer")).to_have_attribute("aria-busy", "true")
    page.locator("#stop").click()
    expect(page.locator(".column .state", has_text="stopped")).to_have_count(4)
    expect(page.locator("#stop")).to_be_hidden()
    assert server.disconnected.wait(SECONDS)
    server.release.set()
    ask(page, "hold")
    expect(column(page, "tuned").locator(".token")).to_have_count(TOKENS)


@needs_chromium
def test_pointing_at_a_token_shows_both_streams(page: Any) -> None:
    ask(page)
    details = page.locator("#details")
    column(page, "interwoven").locator(".token").nth(2).hover()
    expect(details).to_be_visible()
    expect(details).to_contain_text("favorite of the tuned model alone")
    expect(details).to_contain_text("0.20 ± 0.05")
    expect(details).to_contain_text("0.500 nats")
    for stream, shares in (("original", ["50 %", "25 %", "13 %", "6.3 %", "3.1 %"]), ("tuned", ["3.1 %", "6.3 %"])):
        rows = details.locator(f".{stream} .candidate")
        expect(rows).to_have_count(5)
        for row, share in enumerate(shares):
            expect(rows.nth(row)).to_contain_text(share)
    widths = [details.locator(".original .fill").nth(n).bounding_box()["width"] for n in range(2)]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.02)
    page.mouse.move(5, 5)
    expect(details).to_be_hidden()
    # a click keeps it open until Escape
    column(page, "tuned").locator(".token").nth(1).click()
    page.mouse.move(5, 5)
    expect(details).to_contain_text("One stream: no gate.")
    page.keyboard.press("Escape")
    expect(details).to_be_hidden()


@needs_chromium
def test_arrow_keys_move_through_the_tokens(page: Any) -> None:
    ask(page)
    answer = column(page, "interwoven").locator(".answer")
    answer.focus()
    focused = "() => [document.activeElement.dataset.index, document.activeElement.getAttribute('aria-label')]"
    for key, index in (
        ("ArrowRight", 0),
        ("ArrowRight", 1),
        ("End", TOKENS - 1),
        ("ArrowLeft", TOKENS - 2),
        ("Home", 0),
    ):
        page.keyboard.press(key)
        found, label = page.evaluate(focused)
        assert found == str(index) and re.fullmatch(r".*favorite of .*, gate \d\.\d\d", label, re.DOTALL)
        expect(page.locator("#details")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#details")).to_be_hidden()


@needs_chromium
def test_the_slider_asks_the_mix_again_once(page: Any, server: LensServer) -> None:
    ask(page)
    slider = column(page, "mix").locator("input[type=range]")
    assert [slider.get_attribute(name) for name in ("min", "max")] == ["-1", "1"]
    server.asked.clear()
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    expect(column(page, "mix").locator("output")).to_have_text("λ = 0.55")
    expect(column(page, "mix").locator(".identity")).to_contain_text("logit_mix:0.55 · ")
    assert [request["model"].split(":", 1)[1] for request in server.asked] == ["logit_mix:0.55"]
    column(page, "mix").locator("select").select_option("adapter_scale")
    expect(column(page, "mix").locator(".identity")).to_contain_text("adapter_scale:1 · ")
    expect(column(page, "mix").locator("output")).to_have_text("α = 1.00")
    assert len(server.asked) == 2


@needs_chromium
def test_a_column_that_another_model_answers_is_marked(page: Any, server: LensServer, runs: dict[str, Any]) -> None:
    run = runs["imsm"][0].name
    server.answered_by[f"{run}:original"] = f"{run}:tuned"
    ask(page)
    original = column(page, "original")
    expect(original.locator(".mismatch")).to_contain_text(
        f"Asked for {run}:original; the server answered as {run}:tuned."
    )
    expect(original.locator(".identity")).to_contain_text(f"tuned · {fingerprint(f'{run}:tuned')[:8]}")
    expect(page.locator(".mismatch:visible")).to_have_count(1)


@needs_chromium
@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("busy", "429: the queue is full <b>now</b>"),
        ("broken", "the engine <i>failed</i>"),
        ("cut", "The connection ended before the answer was complete."),
    ],
)
def test_an_error_is_shown_as_text(page: Any, messages: list[str], prompt: str, text: str) -> None:
    page.locator("#prompt").fill(prompt)
    page.locator("#ask").click()
    expect(page.locator(".problem:visible")).to_have_text([text] * 4)
    expect(page.locator(".column .state", has_text="failed")).to_have_count(4)
    expect(page.locator("#stop")).to_be_hidden()
    # Chromium reports each response of 429 itself
    assert len(messages) == (4 if prompt == "busy" else 0)
    messages.clear()


@needs_chromium
def test_a_run_without_a_gate_has_two_streams_and_a_mix(page: Any, server: LensServer, runs: dict[str, Any]) -> None:
    page.locator("#run").select_option(runs["peft"][0].name)
    kinds = [node.get_attribute("data-kind") for node in page.locator(".column").all()]
    assert kinds == ["original", "tuned", "mix"]
    # one of the run's own questions
    page.locator("#examples button").first.click()
    expect(page.locator(".column .state", has_text="done")).to_have_count(3)
    expect(page.locator("#asked-item")).to_contain_text("gsm8k/0 · gold paris")
    assert {request["model"].split(":")[0] for request in server.asked} == {runs["peft"][0].name}


@needs_chromium
def test_markup_of_answers_prompts_and_gold_stays_text(page: Any) -> None:
    ask(page, MARKUP)
    tokens = column(page, "interwoven").locator(".token")
    assert tokens.nth(ANSWER.index(MARKUP)).text_content() == MARKUP
    tokens.nth(ANSWER.index(MARKUP)).hover()
    expect(page.locator("#details h4 code")).to_have_text(MARKUP)
    page.locator("#tab-items").click()
    expect(page.locator("#items-table td.prompt").first).to_contain_text(HOSTILE)
    expect(page.locator("#items-table .reply .text").first).to_have_text(HOSTILE)
    page.locator("#items-search").fill(MARKUP)
    expect(page.locator("#items-table")).to_have_text("No item matches.")
    assert page.locator("main img, main script, main b i").count() == 0
    assert page.evaluate("window.hacked") is None


@needs_chromium
@pytest.mark.slow
def test_items_are_filtered_as_the_views_count_them(page: Any, runs: dict[str, Any]) -> None:
    folder = runs["imsm"][0]
    page.locator("#tab-items").click()
    expect(page.locator("#range")).to_have_text(f"1–25 of {5 * N}")
    page.locator("#items-task").select_option("webq")
    options: dict[str, Any] = {"task": "webq", "search": None, "offset": 0, "limit": MAX_ITEMS}
    for change in OUTCOMES:
        expected = list_items(folder, change=change, **options)
        chip = page.locator(f"#changes [data-value={change}]")
        expect(chip.locator(".count")).to_have_text(str(expected["total"]))
        chip.click()
        total = expected["total"]
        expect(page.locator("#range")).to_have_text(f"1–{min(25, total)} of {total}" if total else "none")
        ids = [item["id"] for item in expected["items"][:25]]
        expect(page.locator("#items-table .id")).to_have_text(ids)
        expect(page.locator("#items-table .badge")).to_have_text([change.replace("_", " ")] * len(ids))
    page.locator("#changes [data-value='']").click()
    page.locator("#items-search").fill("QUESTION 17:")
    expect(page.locator("#items-table .id")).to_have_text(["webq/17"])
    page.locator("#items-search").fill("")
    expect(page.locator("#range")).to_have_text(f"1–25 of {N}")
    page.locator("#next").click()
    expect(page.locator("#range")).to_have_text(f"26–50 of {N}")
    page.locator("#previous").click()
    expect(page.locator("#previous")).to_be_disabled()


@needs_chromium
@pytest.mark.parametrize("by", ["click", "Enter"])
def test_an_item_is_asked_in_the_first_tab(page: Any, server: LensServer, runs: dict[str, Any], by: str) -> None:
    page.locator("#tab-items").click()
    page.locator("#items-run").select_option(runs["peft"][0].name)
    page.locator("#items-task").select_option("mrpc")
    expect(page.locator("#items-table .id").nth(1)).to_have_text("mrpc/1")
    if by == "click":
        page.locator("tbody tr").nth(1).click()
    else:
        page.locator("tbody button").nth(1).press("Enter")
    expect(page.locator("#panel-ask")).to_be_visible()
    expect(page.locator(".column .state", has_text="done")).to_have_count(3)
    prompt = f"Question 1: {HOSTILE}"
    assert page.locator("#prompt").input_value() == prompt
    assert {request["messages"][0]["content"] for request in server.asked} == {prompt}
    assert {request["model"].split(":")[0] for request in server.asked} == {runs["peft"][0].name}
    expect(page.locator("#asked-item")).to_contain_text("mrpc/1 · gold yes")


@needs_chromium
def test_the_cards_show_the_runs_scores(page: Any, runs: dict[str, Any]) -> None:
    page.locator("#tab-runs").click()
    card = page.locator(".card").first
    folder, record, _ = runs["imsm"]
    expect(card.locator("h3")).to_have_text("IMSM with lora on gsm8k")
    for task, entry in record["evaluation"]["tasks"].items():
        before, after = (
            each["evaluation"]["tasks"][task]["metrics"][entry["headline"]] for each in (runs["original"][1], record)
        )
        row = card.locator(".score", has=page.locator(".task", has_text=task))
        expect(row).to_contain_text(f"{before:.1f} → {after:.1f}")
    expect(card).to_contain_text(fingerprint(f"{folder.name}:interwoven")[:8])
    page.locator(".card").nth(1).get_by_text("Its items").click()
    expect(page.locator("#panel-items")).to_be_visible()
    assert page.locator("#items-run").input_value() == runs["peft"][0].name
    expect(page.locator("#range")).to_have_text(f"1–25 of {5 * N}")


@needs_chromium
def test_tabs_and_theme_by_keyboard(page: Any, server: LensServer) -> None:
    page.locator("#tab-ask").focus()
    for key, name in (
        ("ArrowRight", "runs"),
        ("ArrowRight", "items"),
        ("ArrowRight", "ask"),
        ("End", "items"),
        ("Home", "ask"),
    ):
        page.keyboard.press(key)
        expect(page.locator(f"#tab-{name}")).to_be_focused()
        expect(page.locator(f"#tab-{name}")).to_have_attribute("aria-selected", "true")
        expect(page.locator("[role=tabpanel]:visible")).to_have_id(f"panel-{name}")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.locator("#theme").press("Enter")
    expect(page.locator("#theme")).to_have_attribute("aria-label", "Color theme: dark")
    dark = page.evaluate(background)
    page.reload()
    assert page.evaluate(background) == dark != light
    # an empty prompt is not sent
    page.locator("#prompt").press("Control+Enter")
    assert server.asked == []


@needs_chromium
def test_a_key_is_asked_for_and_sent(browser: Any, runs: dict[str, Any]) -> None:
    with serve([runs["imsm"][0]], key="secret") as server:
        page = browser.new_page()
        page.set_default_timeout(SECONDS * 1000)
        page.goto(server.url)
        expect(page.locator("#key-form")).to_be_visible()
        page.locator("#key").fill("wrong")
        page.locator("#key").press("Enter")
        expect(page.locator("#page-error")).to_have_text("401: a key is needed")
        page.locator("#key").fill("secret")
        page.locator("#key").press("Enter")
        expect(page.locator("#key-form")).to_be_hidden()
        ask(page)
        page.close()


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1280, "light")])
def test_nothing_is_wider_than_the_page(open_page: Open, server: LensServer, width: int, scheme: str) -> None:
    page = open_page(server.url, width=width, color_scheme=scheme, reduced_motion="reduce")
    ask(page)
    for tab in ("ask", "runs", "items"):
        page.locator(f"#tab-{tab}").click()
        expect(page.locator(f"#panel-{tab}")).to_be_visible()
        if tab == "items":
            expect(page.locator("#items-table .id").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#tab-ask").click()
    column(page, "interwoven").locator(".token").nth(1).click()
    box = page.locator("#details").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] >= 0 and box["y"] + box["height"] <= 900
    assert not page.evaluate("document.getAnimations().length")


@needs_chromium
def test_every_control_has_a_name(page: Any) -> None:
    ask(page)
    for tab in ("ask", "runs", "items"):
        page.locator(f"#tab-{tab}").click()
        if tab == "items":
            expect(page.locator("#items-table .id").first).to_be_visible()
        for role in ("button", "textbox", "searchbox", "combobox", "slider", "spinbutton", "listbox", "tab", "radio"):
            every = page.get_by_role(role)
            named = page.get_by_role(role, name=re.compile(r"\S"))
            expect(named).to_have_count(every.count())
    expect(page.get_by_role("status")).to_have_count(1)


@needs_chromium
@pytest.mark.slow
def test_the_lens_of_a_real_server(tmp_path: Path, open_page: Open) -> None:
    running = pytest.importorskip("tests.serving.running").running
    folder = run_words(write_word_files(tmp_path), tmp_path / "runs", "trainer.num_epochs=40")
    with running([folder]) as (address, _):
        page = open_page(f"{address}/")
        page.locator("#tab-items").click()
        page.locator("tbody tr").first.click()
        expect(page.locator(".column .state", has_text="done")).to_have_count(4)
        expect(page.locator(".mismatch:visible")).to_have_count(0)
        for kind in ("original", "tuned", "interwoven", "mix"):
            assert column(page, kind).locator(".token").count() > 0
        prints = {
            column(page, kind).locator(".identity code").text_content()
            for kind in ("original", "tuned", "interwoven", "mix")
        }
        assert len(prints) == 4
        assert column(page, "interwoven").locator(".gated").count() > 0
        item = list_items(folder, task=None, change=None, search=None, offset=0, limit=1)["items"][0]
        responses = {answer["label"]: answer["response"].strip() for answer in item["answers"]}
        assert responses["original"] != responses["imsm"]
        for kind, label in (("original", "original"), ("interwoven", "imsm")):
            # greedy as in the evaluation, whose limit is 3 tokens
            text = column(page, kind).locator(".answer").text_content().replace("∎", "").strip()
            assert responses[label] and text.startswith(responses[label])
