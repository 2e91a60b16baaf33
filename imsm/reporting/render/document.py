"""The document model: a report, its sections, figures and token heatmaps."""

from collections.abc import Callable
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from imsm.reporting.render.table import Table


@dataclass(kw_only=True)
class ReportFigure:
    """A figure that is drawn on demand; ``alt`` describes it."""

    name: str
    alt: str
    draw: Callable[[], Figure]


@dataclass(kw_only=True)
class TokenHeatmap:
    """A generated response with the original's gate weight at each token."""

    title: str
    prompt: str
    references: str  # accepted answers
    others: list[tuple[str, str]] = field(default_factory=list)  # label and response of the compared runs
    pieces: list[str]
    weights: list[float]


@dataclass(kw_only=True)
class Section:
    """A section of a report."""

    name: str  # file name of its table, and its anchor in the page
    title: str
    paragraphs: list[str] = field(default_factory=list)  # text above the table
    table: Table | None = None
    terminal_table: Table | None = None  # the table shown in a terminal; None hides the section there
    notes: list[str] = field(default_factory=list)  # text below the table
    figures: list[ReportFigure] = field(default_factory=list)  # figures below the notes
    heatmaps: list[TokenHeatmap] = field(default_factory=list)  # token heatmaps, shown in the HTML page only
    wrap: bool = False  # long cells of the table are wrapped in the HTML page
    lead: bool = False  # shown before the links to the sections, figures next to or above the table


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a report shows; ``provenance`` lists versions, commit and fingerprints."""

    title: str  # readable name, e.g. "IMSM with lora on gsm8k"
    subtitle: str
    headline: list[str] = field(default_factory=list)  # the result in a few sentences
    run: str = ""  # name of the run's folder
    excluded: list[str]
    load_errors: list[str]
    sections: list[Section]
    provenance: list[str]
