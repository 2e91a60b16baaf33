"""Scores over seeds, and the paper's test."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from imsm.evaluation.statistics.significance import TTest, student_t
from imsm.reporting.render.formatting import number, p_value
from imsm.reporting.report_data import ReportData
from imsm.reporting.sections.base import Section, table_section


def build(evidence: ReportData) -> Section | None:
    """The part; None where there is nothing to say."""
    peft = next((arm for arm in evidence.arms if arm.method == "peft"), None)
    rows = []
    for arm in evidence.arms:
        runs = evidence.seeds.get(arm.label, {})
        for task in evidence.tasks if len(runs) > 1 else []:
            scores = _scores(runs, task, evidence.metrics[task])
            row = {
                "task": evidence.name(task),
                "arm": arm.label,
                "seeds": str(len(scores)),
                "mean": number(fmean(scores.values())) if scores else "–",
                "lowest": number(min(scores.values(), default=None)),
                "highest": number(max(scores.values(), default=None)),
                "t to PEFT": "–",
                "p, Student": "–",
            }
            if peft is not None and arm is not peft:
                others = _scores(evidence.seeds.get(peft.label, {}), task, evidence.metrics[task])
                found = _student(scores, others)
                if found is not None and found.t is not None:
                    row |= {"t to PEFT": f"{found.t:+.2f}", "p, Student": p_value(found.p_value)}
            rows.append(row)
    if not rows:
        return None
    lines = ["Runs that differ in the seed alone; Student's t-test over seeds is the paper's test."]
    return table_section("seeds", "Over seeds", rows, lines, 2, [])


def _student(scores: Mapping[int, float], others: Mapping[int, float]) -> TTest | None:
    return student_t([*scores.values()], [*others.values()]) if scores and others else None


def _scores(runs: Mapping[int, Mapping[str, Any]], task: str, metric: str) -> dict[int, float]:
    found = {}
    for seed, result in sorted(runs.items()):
        value = result["evaluation"]["tasks"].get(task, {}).get("metrics", {}).get(metric)
        if value is not None:
            found[seed] = float(value)
    return found
