"""Render a report as Markdown, `report.md`."""

from imsm.reporting.render.document import Report, Section
from imsm.reporting.render.escaping import markdown_text
from imsm.utils.control_characters import escape_controls


def render_markdown(report: Report) -> str:
    """Return the report; its figures are linked as ``figures/<name>.png``."""
    blocks = [f"# {markdown_text(report.title)}"]
    blocks += map(markdown_text, [report.subtitle, " ".join(report.headline), *report.excluded, *report.load_errors])
    blocks = [block for block in blocks if block]
    for section in report.sections:
        blocks += _section_blocks(section)
    provenance = [*([f"run {report.run}"] if report.run else []), *report.provenance]
    blocks += ["## Provenance", "\n".join(f"- {markdown_text(line)}" for line in provenance)]
    return escape_controls("\n\n".join(blocks) + "\n")


def _section_blocks(section: Section) -> list[str]:
    table = [] if section.table is None else [section.table.to_markdown()]
    figures = [f"![{figure.alt}](figures/{figure.name}.png)" for figure in section.figures]
    above, below = (list(map(markdown_text, lines)) for lines in (section.paragraphs, section.notes))
    return [f"## {markdown_text(section.title)}", *above, *table, *below, *figures]
