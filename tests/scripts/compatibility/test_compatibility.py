"""What can be interwoven: the rows are true, the page shows them, the shipped page is theirs."""

from __future__ import annotations

import json

import pytest

from scripts.compatibility import __main__ as capabilities
from scripts.compatibility.architectures import row
from scripts.compatibility.tiny_models import ARCHITECTURES

NAMED = [
    *("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "gpt_neox", "opt"),
    *("bloom", "falcon", "olmo2", "glm", "cohere", "granite", "stablelm", "mixtral", "qwen2_moe"),
]


@pytest.mark.parametrize("name", ["llama", "phimoe", "openai-gpt"])
def test_an_architecture_that_holds(name: str) -> None:
    found = row(name)
    assert (found.forward, found.trains, found.generates) == (True, True, True)
    assert ("without a cache" in found.reason or "cache" in found.reason) == (name == "openai-gpt")
    assert ("router" in found.reason) == (name == "phimoe")


@pytest.mark.parametrize(
    ("name", "holds", "reason"),
    [
        ("bart", False, "padding changes its memories"),
        ("roberta", False, "with is_decoder=true: its positions do not count from 0"),
        ("bert", True, "with is_decoder=true"),
        ("musicgen", None, "no tiny model of it can be built"),
    ],
)
def test_what_does_not_hold_says_why(name: str, holds: bool | None, reason: str) -> None:
    found = row(name)
    assert (found.forward, found.trains, found.generates) == (holds,) * 3
    assert found.reason.startswith(reason)


def test_a_check_sees_an_interwoven_stream_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imsm.models.siamese.model.interweave", lambda original, tuned, gate: tuned)
    found = row("llama")
    assert (found.forward, found.generates) == (False, False)
    assert "forward: logits are off by" in found.reason


def test_the_page_has_every_row_once_and_says_what_its_columns_mean() -> None:
    tuner = {"original_exact": True, "doubled_exact": False, "trains": True, "saves": True}
    model = {"forward": None, "trains": None, "generates": None}
    found = {
        "tuners": [{"name": "LORA", **tuner, "reason": "two passes | each"}],
        "architectures": [{"name": "blt", **model, "reason": "too large"}],
    }
    page = capabilities.page(found)
    assert r"| `LORA` | yes | no | yes | yes | two passes \| each |" in page
    assert "| `blt` | – | – | – | too large |" in page
    assert "Of 1, 1 train and 0 hold in every column." in page
    assert "Of 1, 0 train and 0 hold in every column." in page
    for table in capabilities.TABLES.values():
        assert all(meaning in page for meaning in table.columns.values())


def test_the_shipped_page_is_made_of_the_shipped_rows() -> None:
    found = json.loads((capabilities.DOCS / "capabilities.json").read_text())
    shipped = (capabilities.DOCS / "capabilities.md").read_text()
    for name, table in capabilities.TABLES.items():
        assert capabilities.section(table, found[name]) in shipped
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
