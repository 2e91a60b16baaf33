"""Form and knowledge: lengths, unparsed answers, likelihoods."""

from __future__ import annotations

from imsm.reporting.render.formatting import number
from imsm.reporting.report_data import ReportData
from imsm.reporting.sections.base import Section, table_section


def build(evidence: ReportData) -> Section | None:
    """The part; None where there is nothing to say."""
    rows = []
    for task in evidence.tasks:
        for arm in evidence.arms:
            entry = arm.entry(task)
            if not entry:
                continue
            items = arm.items(task)
            per_token = None
            if items is not None and items["reference_tokens"].notna().any():
                per_token = items["reference_loglik"].sum() / items["reference_tokens"].sum()
            rows.append(
                {
                    "task": evidence.name(task),
                    "arm": arm.label,
                    "items": str(entry["num_examples"]),
                    "unparsed": str(entry["unparsed"]),
                    "cut off": str(entry["truncated"]),
                    "tokens an answer": number(entry["new_tokens"] / max(1, entry["num_examples"])),
                    "ln p of the gold": number(entry.get("reference_loglik"), places=2),
                    "per token": number(per_token, places=2),
                }
            )
    lines = [
        "Whether knowledge or only the form is lost: the likelihood of the accepted answer (the "
        "likeliest, without the end of text) needs no generation. `contain` rewards long answers."
    ]
    return table_section("answers", "Answers", rows, lines, 2, [])
