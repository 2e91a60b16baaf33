"""The compatibility tests and the page that shows their results."""

from __future__ import annotations

import json

import pytest

from scripts.compatibility import __main__ as compatibility
from scripts.compatibility.architectures import row
from scripts.compatibility.tiny_models import ARCHITECTURES

NAMED = [
    *("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "gpt_neox", "opt"),
    *("bloom", "falcon", "olmo2", "glm", "cohere", "granite", "stablelm", "mixtral", "qwen2_moe"),
]


@pytest.mark.parametrize("name", ["llama", "phimoe", "openai-gpt"])
def test_a_supported_architecture(name: str) -> None:
    found = row(name)
    assert (found.forward, found.trains, found.generates) == (True, True, True)
    assert ("KV cache" in found.reason) == (name == "openai-gpt")
    assert ("router" in found.reason) == (name == "phimoe")


@pytest.mark.parametrize(
    ("name", "holds", "reason"),
    [
        ("bart", False, "padding changes its hidden states"),
        ("roberta", False, "with is_decoder=true: its positions do not count from 0"),
        ("bert", True, "with is_decoder=true"),
        ("musicgen", None, "no tiny model can be built"),
    ],
)
def test_unsupported_architectures_have_a_reason(name: str, holds: bool | None, reason: str) -> None:
    found = row(name)
    assert (found.forward, found.trains, found.generates) == (holds,) * 3
    assert found.reason.startswith(reason)


def test_a_wrong_interwoven_stream_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imsm.models.siamese.gate.interweave", lambda original, tuned, gate: tuned)
    found = row("llama")
    assert (found.forward, found.generates) == (False, False)
    assert "forward: logits are off by" in found.reason


def test_the_page_shows_every_row_and_the_meaning_of_its_columns() -> None:
    tuner = {"original_exact": True, "dual_stream_exact": False, "trains": True, "saves": True}
    model = {"forward": None, "trains": None, "generates": None}
    found = {
        "tuners": [{"name": "LORA", **tuner, "reason": "two passes | each"}],
        "architectures": [{"name": "blt", **model, "reason": "too large"}],
    }
    page = compatibility.page(found)
    assert r"| `LORA` | yes | no | yes | yes | two passes \| each |" in page
    assert "| `blt` | – | – | – | too large |" in page
    assert "Of 1, 1 train and 0 have yes in every column." in page
    assert "Of 1, 0 train and 0 have yes in every column." in page
    for table in compatibility.TABLES.values():
        assert all(meaning in page for meaning in table.columns.values())


def test_the_shipped_page_shows_the_shipped_rows() -> None:
    found = json.loads((compatibility.DOCS / "compatibility.json").read_text())
    shipped = (compatibility.DOCS / "compatibility.md").read_text()
    for name, table in compatibility.TABLES.items():
        assert compatibility.section(table, found[name]) in shipped
        names = [each["name"] for each in found[name]]
        assert names == sorted(set(names), key=str.lower)
        for each in found[name]:
            assert set(each) == {"name", *table.columns, "reason"}
            values = [each[column] for column in table.columns]
            assert all(value in (True, False, None) for value in values)
            assert all(values) or each["reason"]
    models = {each["name"]: each for each in found["architectures"]}
    assert set(models) == set(ARCHITECTURES)
    assert sum(each["trains"] is True for each in found["tuners"]) >= 25
    for name in NAMED:
        assert models[name]["forward"] and models[name]["trains"] and models[name]["generates"]
