"""Render a report as Markdown, `report.md`."""

from imsm.reporting.render.document import Report, Section


def render_markdown(report: Report) -> str:
    """Return the report; its figures are linked as ``figures/<name>.png``."""
    blocks = [f"# {report.title}", report.subtitle, *report.excluded, *report.load_errors]
    for section in report.sections:
        blocks += _section_blocks(section)
    blocks += ["## Provenance", "\n".join(f"- {line}" for line in report.provenance)]
    return "\n\n".join(blocks) + "\n"


def _section_blocks(section: Section) -> list[str]:
    table = [] if section.table is None else [section.table.to_markdown()]
    figures = [f"![{figure.alt}](figures/{figure.name}.png)" for figure in section.figures]
    return [f"## {section.title}", *section.paragraphs, *table, *section.notes, *figures]
