"""Which PEFT methods and which language models can be interwoven: tried, not claimed.

    python -m scripts.compatibility.__main__

Writes docs/compatibility.json (for programs) and docs/compatibility.md (for readers) from one try of
every tuner of the installed PEFT and of every causal language model of the installed transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from imsm.utils.files import write_atomic

DOCS = Path(__file__).parents[2] / "docs"
Found = dict[str, list[dict[str, Any]]]
"""Rows by table, as docs/compatibility.json has them."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table: what its rows are, and what each column of yes and no means."""

    title: str
    tried: str
    columns: dict[str, str]


TABLES = {
    "tuners": Table(
        title="PEFT methods",
        tried=(
            "Every tuner of PEFT on a tiny random Llama, its adapter moved away from its initial "
            "value (there a wrong stream looks right). `peft=generic peft.peft_type=NAME` takes those that "
            "train."
        ),
        columns={
            "original_exact": "with the adapter off the model is the original, bit for bit",
            "doubled_exact": (
                "one pass over a doubled batch gives what two passes give, so both streams are "
                "decoded at once; where not, there are two passes, slower and as exact"
            ),
            "trains": "inside IMSM the loss falls",
            "saves": "saved and loaded again it gives the same tokens",
        },
    ),
    "architectures": Table(
        title="Language models",
        tried=(
            "Every architecture that `AutoModelForCausalLM` knows, tiny and random, with LoRA on "
            "its linear layers. A model whose architecture says no is refused when it is loaded, "
            "with the same reason."
        ),
        columns={
            "forward": (
                "the interwoven logits are those of two plain passes, the gate's formula and the "
                "model's own head, with and without padding; the original stream is the untouched "
                "model, bit for bit"
            ),
            "trains": "the loss falls, and the original stream stays what it was",
            "generates": (
                "`generate()` gives a padded batch the tokens of two plain passes per step, without cache or padding"
            ),
        },
    ),
}


def collect() -> Found:
    """Try everything; some minutes on one core."""
    from scripts.compatibility import architectures, tuners

    found: Found = {"tuners": tuners.rows(), "architectures": architectures.rows()}
    return {
        name: [
            {key: row[key] for key in ("name", *table.columns, "reason")}
            for row in sorted(found[name], key=lambda row: row["name"].lower())
        ]
        for name, table in TABLES.items()
    }


def page(found: Found) -> str:
    """The page for readers."""
    versions = " and ".join(f"{name} {version(name)}" for name in ("peft", "transformers"))
    parts = [
        "# What can be interwoven",
        f"Found out by trying, with {versions}; made by `make capabilities`.",
        "`yes`: seen. `no`: it does not hold, the last column says why. `–`: not tried, since it "
        "is refused before, or cannot be built tiny. Where all is `yes`, the last column has a "
        "condition, if there is one.",
        *(section(table, found[name]) for name, table in TABLES.items()),
    ]
    return "\n\n".join(parts) + "\n"


def section(table: Table, rows: list[dict[str, Any]]) -> str:
    """One table with its columns explained."""
    whole = sum(all(row[column] is True for column in table.columns) for row in rows)
    trained = sum(row["trains"] is True for row in rows)
    meanings = [f"- **{_title(column)}**: {meaning}" for column, meaning in table.columns.items()]
    heads = ["name", *map(_title, table.columns), "why, or under which condition"]
    lines = [_line(heads), _line(["---", *[":-:"] * len(table.columns), "---"])]
    for row in rows:
        cells = [_cell(row[column]) for column in table.columns]
        lines.append(_line([f"`{row['name']}`", *cells, row["reason"].replace("|", r"\|")]))
    return "\n\n".join(
        [
            f"## {table.title}",
            f"{table.tried} Of {len(rows)}, {trained} train and {whole} hold in every column.",
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
    """Write both files."""
    found = collect()
    write_atomic(DOCS / "capabilities.json", json.dumps(found, indent=1) + "\n")
    write_atomic(DOCS / "capabilities.md", page(found))
    for name, rows in found.items():
        print(f"{name}: {len(rows)} rows in {DOCS / 'capabilities.md'}")


if __name__ == "__main__":
    main()
