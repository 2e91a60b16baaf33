"""Explanations equal a computation from one pass per prefix and stream; their HTML is escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import kl_div
from transformers import PreTrainedTokenizerFast

from imsm.models.siamese.config import SiameseConfig
from imsm.models.siamese.explanation import COLUMNS, Explanation, _token_texts
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.streams import STREAMS
from imsm.utils.errors import UserError
from tests.models.siamese.tiny import tiny_backbone, tiny_siamese, tiny_tokenizer

PROMPT, ANSWER = "w5 w17 w80 w9 w30", "w40 w7 w96 w12"


class Parsed(HTMLParser):
    """Elements with their attributes, and the text, of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def plain(model: SiameseForCausalLM, stream: str, prompt: list[int], answer: list[int]) -> Any:
    """Output of a pass for the last position, with the prompt as the query."""
    model.stream = stream  # type: ignore[assignment]
    ids = torch.tensor([[*prompt, *answer]])
    query = torch.tensor([[1] * len(prompt) + [0] * len(answer)])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), query_mask=query)


@pytest.mark.parametrize("stream", STREAMS)
def test_a_given_answer_is_explained_as_by_one_pass_per_token(stream: str) -> None:
    model, tokenizer = tiny_siamese(), tiny_tokenizer()
    model.stream = stream  # type: ignore[assignment]
    found = model.explain(PROMPT, answer=ANSWER, tokenizer=tokenizer, top=3)
    prompt, answer = tokenizer(PROMPT).input_ids, tokenizer(ANSWER).input_ids
    assert list(found["token"]) == answer and "".join(found["text"]) == ANSWER
    assert list(found.columns) == list(COLUMNS)
    assert found.attrs == {"stream": stream, "prompt": PROMPT, "answer": ANSWER}
    for index, row in enumerate(found.to_dict("records")):
        original, tuned = (
            plain(model, each, prompt, answer[:index]).logits[0, -1].log_softmax(dim=-1) for each in STREAMS[:2]
        )
        kl = kl_div(tuned, original, reduction="sum", log_target=True).item()
        assert row["kl"] == pytest.approx(kl, abs=1e-4)
        wins = (int(original.argmax()) == answer[index], int(tuned.argmax()) == answer[index])
        assert row["winner"] == {(0, 0): "neither", (1, 0): "original", (0, 1): "tuned", (1, 1): "both"}[wins]
        for name, expected in (("original", original), ("tuned", tuned)):
            values, ids = expected.exp().topk(3)
            assert [text for text, _ in row[name]] == [tokenizer.decode([token]) for token in ids.tolist()]
            assert [value for _, value in row[name]] == pytest.approx(values.tolist(), abs=1e-5)
        if stream == "interwoven":
            gate = plain(model, "interwoven", prompt, answer[:index]).gate[0, -1].item()
            assert row["gate"] == pytest.approx(gate, abs=1e-5) and row["gate_std"] > 0
    assert found["gate"].isna().all() == (stream != "interwoven")


@pytest.mark.parametrize("stream", STREAMS)
def test_a_generated_answer_is_that_of_generate(stream: str) -> None:
    model, tokenizer = tiny_siamese(), tiny_tokenizer()
    model.stream = stream  # type: ignore[assignment]
    found = model.explain(PROMPT, tokenizer=tokenizer, max_new_tokens=6)
    ids = torch.tensor([tokenizer(PROMPT).input_ids])
    generated = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()
    assert list(found["token"]) == generated
    if stream != "interwoven":  # whose token is then the stream's own favourite
        assert set(found["winner"]) <= {stream, "both"}
    again = model.explain(PROMPT, answer=found.attrs["answer"], tokenizer=tokenizer)
    assert list(again["kl"]) == pytest.approx(list(found["kl"]), abs=1e-5)


def test_a_decided_query_has_the_gate_of_its_stream() -> None:
    model, tokenizer = tiny_siamese(), tiny_tokenizer()
    model.stream = "interwoven"
    gates = {
        prompt: float(model.explain(prompt, answer=ANSWER, tokenizer=tokenizer)["gate"].iloc[0])
        for prompt in ("w5", "w17 w80", "w9 w30 w11", "w40 w41")
    }
    prompt = max(gates, key=lambda each: abs(gates[each] - 0.5))
    model.skip_threshold = min(gates[prompt], 1 - gates[prompt]) + 0.001
    decided = model.explain(prompt, answer=ANSWER, tokenizer=tokenizer)
    assert list(decided["gate"]) == [float(gates[prompt] > 0.5)] * 4


def test_the_page_shades_by_the_gate_and_marks_the_winner() -> None:
    model, tokenizer = tiny_siamese(), tiny_tokenizer()
    model.stream = "interwoven"
    found = model.explain(PROMPT, answer=ANSWER, tokenizer=tokenizer)
    page = Parsed(found._repr_html_())
    tokens = [attributes for tag, attributes in page.elements if tag == "span" and "title" in attributes]
    assert len(tokens) == len(found)
    for row, token in zip(found.to_dict("records"), tokens, strict=True):
        style, title = str(token["style"]), str(token["title"])
        rgb, opacity = re.findall(r"rgba\((\d+), \d+, \d+, ([\d.]+)\)", style)[-1]
        assert rgb == ("0" if row["gate"] > 0.5 else "230")
        assert float(opacity) == pytest.approx(0.45 * abs(2 * row["gate"] - 1), abs=0.006)
        assert f"gate {row['gate']:.2f} ± {row['gate_std']:.2f}" in title
        assert ("underline" in style.split("text-underline-offset")[0]) == (row["winner"] != "both")
    assert ANSWER in page.text and "interwoven stream" in page.text
    model.stream = "tuned"
    page = Parsed(model.explain(PROMPT, answer=ANSWER, tokenizer=tokenizer)._repr_html_())
    assert "no gate" in page.text and not any(
        "rgba" in str(attributes.get("style")) for _, attributes in page.elements
    )


def test_hostile_text_stays_text() -> None:
    hostile = '"><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[2J\u202e&'
    row = (hostile, 5, 0.7, 0.1, "tuned", 0.2, [(hostile, 0.5)], [(hostile, 0.5)])
    found = Explanation([row], columns=list(COLUMNS))
    found.attrs = {"stream": hostile, "prompt": hostile}
    page = Parsed(found._repr_html_())
    assert {tag for tag, _ in page.elements} <= {
        *("div", "span", "p", "details", "summary", "table", "thead", "tbody", "tr", "th", "td")
    }
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "<script>alert(1)</script>" in page.text and "\x1b" not in page.text and "\u202e" not in page.text


def test_a_selection_is_a_plain_frame() -> None:
    model, tokenizer = tiny_siamese(), tiny_tokenizer()
    found = model.explain(PROMPT, answer=ANSWER, tokenizer=tokenizer)
    assert "<table" in found[["kl"]]._repr_html_() and len(found[found["kl"] > 0]) == 4


def test_a_character_of_several_tokens_belongs_to_the_last() -> None:
    vocabulary = {"<pad>": 0, **{letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 1)}}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")
    tokens = tokenizer("aé☃b").input_ids
    assert _token_texts(tokenizer, tokens) == ["a", "", "é", "", "", "☃", "b"]


def test_unusable_input_is_an_error(tmp_path: Any) -> None:
    model, tokenizer = tiny_siamese(), tiny_tokenizer()
    with pytest.raises(UserError, match="prompt: is empty"):
        model.explain("", tokenizer=tokenizer)
    with pytest.raises(UserError, match="answer='': has no token"):
        model.explain(PROMPT, answer="", tokenizer=tokenizer)
    with pytest.raises(UserError, match="positions of the backbone"):
        model.explain("w5 " * 300, answer="w6", tokenizer=tokenizer)
    config = SiameseConfig(text_config=tiny_backbone("llama").config, backbone=None, stream="original")
    bare = SiameseForCausalLM(config, tiny_backbone("llama"))
    with pytest.raises(ValueError, match="no adapter"):
        bare.explain(PROMPT, answer=ANSWER, tokenizer=tokenizer)
    with pytest.raises(UserError, match="tokenizer: the model names no backbone"):
        bare.explain(PROMPT)
