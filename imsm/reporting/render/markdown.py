"""Render a report as Markdown, `report.md`."""

from imsm.reporting.render.document import Report, Section
from imsm.reporting.render.escaping import markdown_text
from imsm.utils.control_characters import escape_controls


def render_markdown(report: Report) -> str:
    """Return the report; its figures are linked as ``figures/<name>.png``."""
    blocks = [f"# {markdown_text(report.title)}"]
    # what came out is bold; the other sentences are about it
    first, others = report.headline[:1], [" ".join(report.headline[1:]), *report.excluded, *report.load_errors]
    blocks += [markdown_text(report.subtitle), *(f"**{markdown_text(text)}**" for text in first)]
    blocks += map(markdown_text, others)
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
    shown = [*figures, *table, *below] if section.lead else [*table, *below, *figures]
    return [f"## {markdown_text(section.title)}", *above, *shown]
