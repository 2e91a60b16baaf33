"""Test which PEFT methods and which language models can be interwoven.

    python -m scripts.compatibility

Tests every method of the installed PEFT and every causal language model of the installed
transformers. Writes docs/compatibility.json (for programs) and docs/compatibility.md (for readers).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from imsm.utils.files import write_atomic
from scripts.compatibility import architectures, tuners

DOCS = Path(__file__).parents[2] / "docs"
Results = dict[str, list[dict[str, Any]]]
"""Rows by table, as in docs/compatibility.json."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table: what its rows are, and the meaning of each yes/no column."""

    title: str
    setup: str
    columns: dict[str, str]


TABLES = {
    "tuners": Table(
        title="PEFT methods",
        setup=(
            "Every method of PEFT on a tiny random Llama, with a perturbed adapter (at the initial values a wrong "
            "stream would look right). `peft=generic peft.peft_type=NAME` accepts those that train."
        ),
        columns={
            "original_exact": "with the adapter disabled the model is the original, bit for bit",
            "dual_stream_exact": (
                "one pass over a dual-stream batch equals two passes, so both streams are decoded at once; otherwise "
                "decoding runs two passes, slower and equally exact"
            ),
            "trains": "the loss of the interwoven stream falls",
            "saves": "saved and loaded again, the model generates the same tokens",
        },
    ),
    "architectures": Table(
        title="Language models",
        setup=(
            "Every architecture of `AutoModelForCausalLM`, tiny and random, with LoRA on its linear layers. Loading "
            "a model of an unsupported architecture fails with the same reason."
        ),
        columns={
            "forward": (
                "the interwoven logits equal those of two plain passes, the formula of the gate and the model's LM "
                "head, with and without padding; the original stream is the unmodified model, bit for bit"
            ),
            "trains": "the loss falls, and the original stream does not change",
            "generates": (
                "`generate()` on a padded batch gives the tokens of two plain passes per step without cache or padding"
            ),
        },
    ),
}


def collect() -> Results:
    """Run all tests; takes some minutes on one core."""
    results: Results = {"tuners": tuners.rows(), "architectures": architectures.rows()}
    return {
        name: [
            {key: row[key] for key in ("name", *table.columns, "reason")}
            for row in sorted(results[name], key=lambda row: row["name"].lower())
        ]
        for name, table in TABLES.items()
    }


def page(results: Results) -> str:
    """Render docs/compatibility.md."""
    versions = " and ".join(f"{name} {version(name)}" for name in ("peft", "transformers"))
    parts = [
        "# Compatibility",
        f"Measured with {versions} by `make compatibility`.",
        "`yes`: verified. `no`: does not hold, for the reason in the last column. `–`: not tested, because the method "
        "or model is rejected before, or no tiny model can be built. If every column is `yes`, the last column "
        "contains a condition, if any.",
        *(section(table, results[name]) for name, table in TABLES.items()),
    ]
    return "\n\n".join(parts) + "\n"


def section(table: Table, rows: list[dict[str, Any]]) -> str:
    """Render one table and the meaning of its columns."""
    complete = sum(all(row[column] is True for column in table.columns) for row in rows)
    trained = sum(row["trains"] is True for row in rows)
    meanings = [f"- **{_title(column)}**: {meaning}" for column, meaning in table.columns.items()]
    heads = ["name", *map(_title, table.columns), "reason or condition"]
    lines = [_line(heads), _line(["---", *[":-:"] * len(table.columns), "---"])]
    for row in rows:
        cells = [_cell(row[column]) for column in table.columns]
        lines.append(_line([f"`{row['name']}`", *cells, row["reason"].replace("|", r"\|")]))
    return "\n\n".join(
        [
            f"## {table.title}",
            f"{table.setup} Of {len(rows)}, {trained} train and {complete} have yes in every column.",
            "\n".join(meanings),
            "\n".join(lines),
        ]
    )


def _title(column: str) -> str:
    return column.replace("_", " ")


def _cell(value: Any) -> str:
    return {True: "yes", False: "no", None: "–"}.get(value, str(value))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run all tests and write both files."""
    results = collect()
    write_atomic(DOCS / "compatibility.json", json.dumps(results, indent=1) + "\n")
    write_atomic(DOCS / "compatibility.md", page(results))
    for name, rows in results.items():
        print(f"{name}: {len(rows)} rows in {DOCS / 'compatibility.md'}")


if __name__ == "__main__":
    main()
