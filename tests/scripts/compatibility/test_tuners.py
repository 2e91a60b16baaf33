"""The table of tuners: every one of the installed PEFT is in it, and what it says is measured."""

from __future__ import annotations

import pytest
from peft import PeftType

from imsm.models.adapters.unsupported import TYPES
from scripts.compatibility.tuners import cases, rows


def test_every_tuner_of_the_installed_peft_has_a_row() -> None:
    assert {str(kind.value) for kind in PeftType} <= cases().keys()


def test_rows_of_each_kind() -> None:
    found = {row["name"]: row for row in rows(["LORA", "PREFIX_TUNING", "LORA (PiSSA)", "POLY"])}
    yes = {"original_exact": True, "doubled_exact": True, "trains": True, "saves": True}
    assert found["LORA"] == {"name": "LORA", **yes, "reason": ""}
    assert {**found["PREFIX_TUNING"], "reason": ""} == {
        **{"name": "PREFIX_TUNING", **yes, "doubled_exact": False, "reason": ""}
    }
    assert "two passes" in found["PREFIX_TUNING"]["reason"]
    refused = found["LORA (PiSSA)"]
    assert (refused["original_exact"], refused["trains"]) == (False, None)
    assert "pissa" in refused["reason"]
    assert found["POLY"]["trains"] is None and "task id" in found["POLY"]["reason"]


@pytest.mark.slow
def test_how_many_there_are() -> None:
    found = rows()
    probed = [row for row in found if row["original_exact"] is not None]
    trained = [row for row in found if row["trains"] and row["saves"] and row["original_exact"]]
    types = [row for row in trained if "(" not in row["name"]]
    assert len(probed) >= 30 and len(types) >= 25
    for row in found:
        assert row in trained or row["reason"]
    assert {row["name"] for row in found if row not in trained and "(" not in row["name"]} == {*TYPES}
