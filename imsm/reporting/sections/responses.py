"""Section: response lengths, unparsed answers and reference likelihoods."""

from imsm.reporting.render.document import Section
from imsm.reporting.render.formatting import format_number
from imsm.reporting.render.table import Table
from imsm.reporting.report_data import ReportData
from imsm.reporting.runs import ComparedRun

_TEXT = (
    "Truncated responses reached the token limit. The log-likelihood (ln p) of the most likely accepted answer, "
    "without the end-of-text token, does not depend on generation: it separates lost knowledge from a lost format. "
    "The metric `contain` favors long responses. KL to the original: mean over the tokens of the first accepted "
    "answer of KL(p_original || p), in nats (`evaluation.kl=true`)."
)


def build_responses(data: ReportData) -> Section | None:
    """Build the section."""
    records = [_record(data, run, task) for task in data.tasks for run in data.runs if run.task_result(task)]
    if not records:
        return None
    table = Table.from_records(records, text_columns=2)
    return Section(name="responses", title="Responses", paragraphs=[_TEXT], table=table)


def _record(data: ReportData, run: ComparedRun, task: str) -> dict[str, str]:
    entry, predictions = run.task_result(task), run.predictions(task)
    per_token = None
    if predictions is not None and predictions["reference_tokens"].notna().any():
        per_token = predictions["reference_loglik"].sum() / predictions["reference_tokens"].sum()
    return {
        "task": data.name(task),
        "run": run.label,
        "examples": str(entry["num_examples"]),
        "unparsed": str(entry["unparsed"]),
        "truncated": str(entry["truncated"]),
        "tokens per response": format_number(entry["new_tokens"] / max(1, entry["num_examples"])),
        "ln p of the reference": format_number(entry.get("reference_loglik"), digits=2),
        "per token": format_number(per_token, digits=2),
        "KL to the original": format_number(entry.get("kl_to_original"), digits=3),
    }
