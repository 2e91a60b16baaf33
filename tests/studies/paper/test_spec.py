"""The definitions of all tables."""

from __future__ import annotations

import pytest

from imsm.studies.paper.spec import list_tables, load_table
from imsm.utils.errors import UserError

NAMES = ["figure3", "figure4", "table1", "table2", "table3", "table4", "table5", "table6"]


def test_all_tables_are_listed() -> None:
    assert list_tables() == NAMES


@pytest.mark.parametrize(
    ("name", "rows", "first"),
    [
        ("table1", 21, {"mrpc_accuracy": "74.72", "average": "54.75"}),
        ("table2", 7, {"ropes": "58.47", "average": "53.45"}),
        ("table3", 9, {"gsm8k": "45.79", "average": "50.91"}),
        ("table4", 12, {"mrpc_accuracy": "86.67", "average": "78.82"}),
        ("table5", 6, {"llama3_tokens_per_s": "22.98"}),
        ("table6", 9, {"params_millions": "6.898", "gsm8k": "59.44"}),
        ("figure3", 6, {}),
        ("figure4", 12, {}),
    ],
)
def test_the_rows_contain_the_papers_numbers(name: str, rows: int, first: dict[str, str]) -> None:
    table = load_table(name)
    assert len(table.rows) == rows
    assert first.items() <= dict(table.rows[0].paper).items()


def test_an_unknown_table_is_rejected() -> None:
    with pytest.raises(UserError, match=r"tabel1: no such table .*did you mean table1\?"):
        load_table("tabel1")


def test_a_row_is_compared_with_its_reference() -> None:
    table = load_table("table2")
    rows = {(row.values["peft"], row.values["method"]): row for row in table.rows}
    assert table.reference_of(rows["lora", "imsm"]) is rows["lora", "peft"]
    assert table.reference_of(rows["lora", "peft"]) is None


def test_the_miniature_replaces_every_backbone() -> None:
    table = load_table("table1")
    row, column = table.rows[0], table.spec.columns[0]
    assert "backbone=chatglm3" in table.overrides(row, column, scale="paper", seed=2)
    mini = table.overrides(row, column, scale="mini", seed=2)
    assert "backbone=mini" in mini and "data=mrpc" in mini and mini[-1] == "seed=2"
