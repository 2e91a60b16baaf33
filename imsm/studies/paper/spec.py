"""The definition of a table: its rows, its columns, and the runs that fill its cells.

experiments/table6/
  grid.yaml    overrides of `imsm run` for each row value and column
  paper.csv    the rows, and the paper's numbers (none for a figure)
  README.md    how to read it, and its cost
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imsm.utils.errors import UserError
from imsm.utils.options import closest_match
from imsm.utils.paths import checkout

SCALES = ("mini", "paper")
Text = Annotated[str, Field(min_length=1)]


class _StrictModel(BaseModel):
    # A misspelled key must be an error, not a default.
    model_config = ConfigDict(extra="forbid", frozen=True)


class ColumnSpec(_StrictModel):
    """A score: of which run, on which task, and by which metric of each protocol."""

    name: Text
    overrides: list[Text] = []  # overrides of this column's run, e.g. [data=mrpc]
    task: str = ""
    strict: str = ""  # metric of the strict protocol
    paper_code: str = ""  # metric of the paper_code protocol
    rows: dict[str, str] = {}  # row values that the column applies to; empty: all rows


class TableSpec(_StrictModel):
    """`grid.yaml`."""

    title: Text
    kind: Literal["table", "bars", "speed"] = "table"
    keys: list[Text]  # columns of `paper.csv` that identify a row; the others are the paper's numbers
    values: dict[str, dict[str, list[Text]]]  # overrides by key and value
    common: list[Text] = []  # overrides of every run
    columns: list[ColumnSpec]
    averages: dict[str, list[Text]] = {}  # columns averaged, by name; "average" is the paper's own
    reference: dict[str, str]  # each row is tested against the row with these values instead
    untested: dict[str, list[str]] = {}  # values of rows that are not tested, by key
    panel: str | None = None  # the key that separates the panels of a bar chart
    paper_text: str = ""  # the paper's text about it, if its numbers cannot be read


@dataclass(frozen=True, kw_only=True)
class RowSpec:
    """A row: its values by key, and the paper's numbers by column."""

    values: Mapping[str, str]
    paper: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table of the paper: its definition and its rows."""

    name: str
    folder: Path
    spec: TableSpec
    rows: Sequence[RowSpec]

    def columns_of(self, row: RowSpec) -> list[ColumnSpec]:
        """Return the columns that apply to a row."""
        return [c for c in self.spec.columns if all(row.values[key] == value for key, value in c.rows.items())]

    def overrides(self, row: RowSpec, column: ColumnSpec, *, scale: str, seed: int) -> tuple[str, ...]:
        """Return the overrides of `imsm run` for a cell; scale "mini" replaces every backbone by the miniature."""
        chosen = [text for key in self.spec.keys if row.values[key] for text in self.spec.values[key][row.values[key]]]
        chosen += [*self.spec.common, *column.overrides]
        if scale == "mini":
            chosen = ["backbone=mini" if text.startswith("backbone=") else text for text in chosen]
        return (*chosen, f"seed={seed}")

    def reference_of(self, row: RowSpec) -> RowSpec | None:
        """Return the row that a row is tested against; None if there is none, or it is the row itself."""
        if any(row.values[key] in values for key, values in self.spec.untested.items()):
            return None
        wanted = {**row.values, **self.spec.reference}
        if wanted == row.values:
            return None
        return next((other for other in self.rows if other.values == wanted), None)


def experiments_dir() -> Path:
    """Return the directory of the tables.

    Raises:
        UserError: The package was installed without the repository.
    """
    repository = checkout()
    if repository is None or not (repository / "experiments").is_dir():
        raise UserError("experiments: are part of the repository only; run this command in a clone of it")
    return repository / "experiments"


def list_tables() -> list[str]:
    """Return the names of all tables and figures."""
    return sorted(path.parent.name for path in experiments_dir().glob("*/grid.yaml"))


def load_table(name: str) -> PaperTable:
    """Load a table's files.

    Raises:
        UserError: Unknown name, or its files are inconsistent.
    """
    names = list_tables()
    if name not in names:
        match = closest_match(name, names)
        hint = f"; did you mean {match}?" if match else ""
        raise UserError(f"{name}: no such table ({', '.join(names)}){hint}")
    folder = experiments_dir() / name
    path = folder / "grid.yaml"
    try:
        spec = TableSpec.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError, RecursionError) as error:
        raise UserError(f"{path}: is invalid ({str(error).splitlines()[-1].strip()})") from error
    with (folder / "paper.csv").open(encoding="utf-8", newline="") as stream:
        rows = [
            RowSpec(
                values={key: line[key] for key in spec.keys},
                paper={column: value for column, value in line.items() if column not in spec.keys},
            )
            for line in csv.DictReader(stream)
        ]
    # An empty value is a row without this choice, such as the original's PEFT method.
    for row in rows:
        for key, value in row.values.items():
            if value and value not in spec.values.get(key, {}):
                raise UserError(f"{path}: values.{key} lacks {value!r}; add it, or fix paper.csv")
    return PaperTable(name=name, folder=folder, spec=spec, rows=rows)
