"""What an experiment is: the rows of a paper's table, its columns, and the runs that fill them.

experiments/table6/
  grid.yaml    what a row's values and a column mean as overrides of `python -m imsm.run`
  paper.csv    the rows, and the paper's numbers (a figure's rows have none)
  README.md    how to read it, what it costs
"""

from __future__ import annotations

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


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ColumnSpec(_Strict):
    """A score: of which run, on which task, by which metric of each protocol."""

    name: Text
    overrides: list[Text] = []
    """Overrides that a run needs for this column alone, e.g. [data=mrpc]."""
    task: str = ""
    strict: str = ""
    paper_code: str = ""
    rows: dict[str, str] = {}
    """The rows that have it: those with these values; none: all."""


class TableSpec(_Strict):
    """`grid.yaml`."""

    title: Text
    kind: Literal["table", "bars", "speed"] = "table"
    keys: list[Text]
    """The columns of `paper.csv` that name a row; the others are the paper's numbers."""
    values: dict[str, dict[str, list[Text]]]
    """By key and value: overrides."""
    common: list[Text] = []
    columns: list[ColumnSpec]
    averages: dict[str, list[Text]] = {}
    """By name: the columns that it is over. "average" is the paper's own."""
    reference: dict[str, str]
    """What a row is tested against: the row with these values in place of its own."""
    untested: dict[str, list[str]] = {}
    """By key: the values of rows that are not tested."""
    panel: str | None = None
    """Of bars: the key that makes panels."""
    paper_text: str = ""
    """What the paper's text says of it, where its numbers cannot be read."""


@dataclass(frozen=True, kw_only=True)
class RowSpec:
    """One row: its values by key, and the paper's numbers by column."""

    values: Mapping[str, str]
    paper: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A grid with its rows."""

    name: str
    folder: Path
    spec: TableSpec
    rows: Sequence[RowSpec]

    def columns_of(self, row: RowSpec) -> list[ColumnSpec]:
        """The columns that a row has a cell in."""
        return [
            column
            for column in self.spec.columns
            if all(row.values[key] == value for key, value in column.rows.items())
        ]

    def overrides(self, row: RowSpec, column: ColumnSpec, *, scale: str, seed: int) -> tuple[str, ...]:
        """What makes a row's run for a column, after `python -m imsm.run`.

        At the miniature's scale every backbone is the miniature.
        """
        found: list[str] = []
        for key in self.spec.keys:
            value = row.values[key]
            if value:
                found += self.spec.values[key][value]
        chosen = (*found, *self.spec.common, *column.overrides)
        if scale == "mini":
            chosen = tuple("backbone=mini" if c.startswith("backbone=") else c for c in chosen)
        return (*chosen, f"seed={seed}")

    def reference_of(self, row: RowSpec) -> RowSpec | None:
        """The row that a row is tested against; None if there is none, or it is that itself."""
        if any(row.values[key] in values for key, values in self.spec.untested.items()):
            return None
        wanted = {**row.values, **self.spec.reference}
        if wanted == row.values:
            return None
        return next((other for other in self.rows if other.values == wanted), None)


def experiments_dir() -> Path:
    """Where the experiments lie: in the checkout.

    Raises:
        UserError: the package was installed without it.
    """
    here = checkout()
    if here is None or not (here / "experiments").is_dir():
        raise UserError("the experiments lie in a checkout; run this in a clone of the repository")
    return here / "experiments"


def list_tables() -> list[str]:
    """All experiments that have a grid."""
    return sorted(path.parent.name for path in experiments_dir().glob("*/grid.yaml"))


def load_table(name: str) -> PaperTable:
    """Read an experiment's files.

    Raises:
        UserError: there is none of that name, or its files do not fit each other.
    """
    names = list_tables()
    if name not in names:
        guess = closest_match(name, names)
        hint = f"; did you mean {guess}?" if guess else ""
        raise UserError(f"{name}: no such experiment ({', '.join(names)}){hint}")
    folder = experiments_dir() / name
    path = folder / "grid.yaml"
    try:
        grid = TableSpec.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise UserError(f"{path}: is wrong ({str(error).splitlines()[-1].strip()})") from error
    with (folder / "paper.csv").open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    rows = [
        RowSpec(
            values={key: line[key] for key in grid.keys},
            paper={name: value for name, value in line.items() if name not in grid.keys},
        )
        for line in lines
    ]
    for row in rows:
        for key, value in row.values.items():
            if value and value not in grid.values.get(key, {}):
                raise UserError(f"{path}: values.{key} lacks {value!r}, which paper.csv has")
    return PaperTable(name=name, folder=folder, spec=grid, rows=rows)
