"""Controls through the same judge and ledger as every arm; each leaves a folder of its own.

<run>/controls/<name>/result.json, evaluation/<task>-<fingerprint>/predictions.jsonl
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from imsm.distributed.context import DistributedContext
from imsm.evaluation.evaluator import score_responses
from imsm.evaluation.predictions import task_dir
from imsm.evaluation.result import build_result, write_result
from imsm.pipeline.data import all_training_examples
from imsm.pipeline.evaluate import metrics_of, result_entry
from imsm.studies.baselines.base import Baseline, BaselineInfo, call_hook, is_router
from imsm.studies.baselines.finished_run import FinishedRun, Responses
from imsm.utils.hashing import hash_json

if TYPE_CHECKING:
    from imsm.models.siamese.model import SiameseForCausalLM


@dataclass(frozen=True)
class BaselineRun:
    """A control at one value; None where it has none."""

    baseline: Baseline
    value: float | None

    @property
    def info(self) -> BaselineInfo:
        """Of the control."""
        return self.baseline.INFO

    @property
    def name(self) -> str:
        """Of its folder: `logit_mix-0.50`, `confidence`."""
        return self.info.name if self.value is None else f"{self.info.name}-{_shown(self.value)}"


FOLDER = "baselines"
"""Of a run's folder."""
TUNED = BaselineInfo(name="tuned", meaning="the adapter alone, without the run's gate", stream="tuned")


def baseline_runs(control: Baseline, run: FinishedRun, values: Sequence[float] | None) -> list[BaselineRun]:
    """A control's arms on a run, at the values asked for or at its own.

    Raises:
        UserError: the control does not fit the run.
    """
    call_hook(control, "check", run, None)
    info = control.INFO
    if not info.symbol:
        return [BaselineRun(control, None)]
    found: Sequence[float] | None = call_hook(control, "values", run, None)
    if found is None:
        found = info.grid if values is None else values
    return [BaselineRun(control, value) for value in dict.fromkeys(found)]


def evaluate_baseline(arm: BaselineRun, run: FinishedRun) -> dict[str, Any]:
    """Ask what the ledger lacks, score, and leave the arm's folder.

    Raises:
        UserError: the control does not fit the run's adapter.
    """

    @cache
    def model() -> SiameseForCausalLM:
        found: SiameseForCausalLM = cast("Any", arm.baseline).build_model(run, arm.value)
        return found

    fingerprint = baseline_fingerprint(arm, run)
    answers: dict[str, Responses] = {}
    for task in run.eval_sets:
        if is_router(arm.baseline):
            chosen = cast("Any", arm.baseline).route_to_original(run, arm.value, task)
            answers[task] = run.route(task, chosen)
        elif arm.value in arm.info.ends:
            end = arm.info.ends[arm.value] == "original"
            answers[task] = run.route(task, [end] * len(run.eval_sets[task].prompts))
        else:
            answers[task] = run.run_inference(
                task, model=model, stream=arm.info.stream, fingerprint=fingerprint, label=f"{arm.name}: {task}"
            )
    about = {"name": arm.info.name, "value": arm.value, "meaning": arm.info.meaning}
    return _leave(
        run,
        arm.name,
        about=about | call_hook(arm.baseline, "cache_key", run, {}),
        fingerprint=fingerprint,
        answers=answers,
        adapted=arm.value is None or arm.info.ends.get(arm.value) != "original",
    )


def evaluate_tuned(run: FinishedRun) -> dict[str, Any]:
    """The adapter alone: the run's own result, or for an interwoven run an arm of its own."""
    if run.config.method.stream == "tuned":
        return run.result
    answers = {task: run.responses(task, "tuned") for task in run.eval_sets}
    about = {"name": TUNED.name, "value": None, "meaning": TUNED.meaning}
    fingerprint = run.fingerprint("tuned")
    return _leave(run, TUNED.name, about=about, fingerprint=fingerprint, answers=answers, adapted=True)


def baseline_fingerprint(arm: BaselineRun, run: FinishedRun) -> str:
    """Identifies a control's answers: the run's adapter, the control, its value."""
    more = call_hook(arm.baseline, "cache_key", run, {})
    return hash_json([run.fingerprint("tuned"), arm.info.name, arm.info.version, arm.value, more])


def _leave(
    run: FinishedRun, name: str, *, about: dict[str, Any], fingerprint: str, answers: dict[str, Responses], adapted: bool
) -> dict[str, Any]:
    """Score the answers, and write items and result into the arm's folder."""
    folder = run.folder / FOLDER / name
    learned_from = all_training_examples(run.config) if adapted else None
    tasks = {}
    for task, (rows, golds) in answers.items():
        test = run.eval_sets[task]
        judgement = score_responses(
            test,
            responses=rows,
            references=golds,
            metrics=metrics_of(run.config, test),
            protocol=run.config.evaluation.protocol,
            output_dir=task_dir(folder, task=task, test_set=test.fingerprint),
            dist_context=DistributedContext(),
        )
        tasks[task] = result_entry(run.config, task, test, judgement, trained_on=learned_from)
    result = build_result(
        name=f"{run.folder.name}/{name}",
        method="baseline",
        identity={**run.result["identity"], "baseline": about},
        config={**run.config.to_dict(), "baseline": about},
        fingerprints={**run.result["fingerprints"], "answers": fingerprint},
        trainable_parameters={**run.result["trainable_parameters"], "gate": 0},
        training=run.result["training"],
        evaluation={
            "settings": run.config.evaluation.model_dump(),
            "tasks": tasks,
            "original": run.result["evaluation"]["original"],
        },
    )
    write_result(folder, result)
    return result


def _shown(value: float) -> str:
    """A value with two places, or with as many as it has."""
    short = f"{value:.2f}"
    return short if float(short) == value else repr(value)
