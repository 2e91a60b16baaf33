"""The compatibility tests of PEFT methods."""

from __future__ import annotations

import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from imsm.models.adapters.unsupported import TYPES
from scripts.compatibility.tuners import cases, rows


def test_every_tuner_of_the_installed_peft_has_a_row() -> None:
    known = {
        str(kind.value)
        for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if config.__module__.startswith("peft.")
    }
    assert len(known) > 40 and known <= cases().keys()


def test_rows_of_each_kind() -> None:
    found = {row["name"]: row for row in rows(["LORA", "PREFIX_TUNING", "LORA (PiSSA)", "POLY"])}
    yes = {"original_exact": True, "dual_stream_exact": True, "trains": True, "saves": True}
    assert found["LORA"] == {"name": "LORA", **yes, "reason": ""}
    assert {**found["PREFIX_TUNING"], "reason": ""} == {
        **{"name": "PREFIX_TUNING", **yes, "dual_stream_exact": False, "reason": ""}
    }
    assert "two passes" in found["PREFIX_TUNING"]["reason"]
    rejected = found["LORA (PiSSA)"]
    assert (rejected["original_exact"], rejected["trains"]) == (False, None)
    assert "pissa" in rejected["reason"]
    assert found["POLY"]["trains"] is None and "task id" in found["POLY"]["reason"]


@pytest.mark.slow
def test_number_of_supported_methods() -> None:
    found = rows()
    tested = [row for row in found if row["original_exact"] is not None]
    trained = [row for row in found if row["trains"] and row["saves"] and row["original_exact"]]
    types = [row for row in trained if "(" not in row["name"]]
    assert len(tested) >= 30 and len(types) >= 25
    for row in found:
        assert row in trained or row["reason"]
    assert {row["name"] for row in found if row not in trained and "(" not in row["name"]} == {*TYPES}
