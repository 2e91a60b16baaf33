"""Evaluate baselines with the same evaluator and response cache as every run.

Each writes <run>/baselines/<name>/result.json and evaluation/<task>-<fingerprint>/predictions.jsonl.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from imsm.distributed.context import DistributedContext
from imsm.evaluation.evaluator import score_responses
from imsm.evaluation.predictions import task_dir
from imsm.evaluation.result import build_result, write_result
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.data import all_training_examples
from imsm.pipeline.evaluate import metrics_of, result_entry
from imsm.studies.baselines.base import Baseline, BaselineInfo
from imsm.studies.baselines.finished_run import FinishedRun, Responses
from imsm.utils.hashing import hash_json
from imsm.utils.machine import describe_machine

FOLDER = "baselines"
"""Directory of a run's baselines."""
TUNED = BaselineInfo(name="tuned", meaning="the adapter alone, without the run's gate", stream="tuned")


@dataclass(frozen=True)
class BaselineRun:
    """A baseline at one value; None if it has no value."""

    baseline: Baseline
    value: float | None

    @property
    def info(self) -> BaselineInfo:
        """Description of the baseline."""
        return self.baseline.INFO

    @property
    def name(self) -> str:
        """Name of its directory, such as `logit_mix-0.50` or `entropy_mix`."""
        if self.value is None:
            return self.info.name
        # The name is a directory, so two values must not be rounded to the same one.
        short = f"{self.value:.2f}"
        return f"{self.info.name}-{short if float(short) == self.value else repr(self.value)}"


def baseline_runs(baseline: Baseline, run: FinishedRun, values: Sequence[float] | None) -> list[BaselineRun]:
    """Return one `BaselineRun` per value; ``values`` replaces the default grid.

    Raises:
        UserError: The baseline does not apply to the run.
    """
    call_hook(baseline, "check", run, None)
    info = baseline.INFO
    if not info.symbol:
        return [BaselineRun(baseline, None)]
    # Values that follow from the run, such as the gate's mean, take precedence over the user's.
    own_values: Sequence[float] | None = call_hook(baseline, "values", run, None)
    if own_values is None:
        own_values = info.grid if values is None else values
    return [BaselineRun(baseline, value) for value in dict.fromkeys(own_values)]


def evaluate_baseline(baseline_run: BaselineRun, run: FinishedRun) -> dict[str, Any]:
    """Run inference for uncached responses, score them, and write and return the result.

    Raises:
        UserError: The baseline does not apply to the run's adapter.
    """
    # Any: the functions that only some baselines define are not part of the protocol.
    baseline, info, value = cast(Any, baseline_run.baseline), baseline_run.info, baseline_run.value
    fingerprint = baseline_fingerprint(baseline_run, run)

    # One model for all tasks, and none if every response is cached.
    @cache
    def get_model() -> SiameseForCausalLM:
        model: SiameseForCausalLM = baseline.build_model(run, value)
        return model

    def responses_to(task: str) -> Responses:
        if hasattr(baseline, "route_to_original"):
            return run.route(task, baseline.route_to_original(run, value, task))
        # At its ends a baseline is one of the streams, whose responses are cached.
        if value is not None and value in info.ends:
            return run.route(task, [info.ends[value] == "original"] * len(run.eval_sets[task].prompts))
        label = f"{baseline_run.name}: {task}"
        return run.run_inference(task, get_model=get_model, stream=info.stream, fingerprint=fingerprint, label=label)

    description = {"name": info.name, "value": value, "meaning": info.meaning}
    return _write_result(
        run,
        baseline_run.name,
        description=description | call_hook(baseline, "cache_key", run, {}),
        fingerprint=fingerprint,
        responses={task: responses_to(task) for task in run.eval_sets},
        uses_adapter=value is None or info.ends.get(value) != "original",
    )


def evaluate_tuned(run: FinishedRun) -> dict[str, Any]:
    """Evaluate the adapter alone; for a run of the tuned stream this is the run's own result."""
    if run.config.method.stream == "tuned":
        return run.result
    return _write_result(
        run,
        TUNED.name,
        description={"name": TUNED.name, "value": None, "meaning": TUNED.meaning},
        fingerprint=run.fingerprint("tuned"),
        responses={task: run.responses(task, "tuned") for task in run.eval_sets},
        uses_adapter=True,
    )


def baseline_fingerprint(baseline_run: BaselineRun, run: FinishedRun) -> str:
    """Return the hash of everything a baseline's responses depend on, for the response cache."""
    info, extra = baseline_run.info, call_hook(baseline_run.baseline, "cache_key", run, {})
    return hash_json([run.fingerprint("tuned"), info.name, info.version, baseline_run.value, extra])


def _write_result(
    run: FinishedRun,
    name: str,
    *,
    description: Mapping[str, Any],
    fingerprint: str,
    responses: Mapping[str, Responses],
    uses_adapter: bool,
) -> dict[str, Any]:
    """Score the responses by task; write predictions and result into the baseline's directory."""
    folder = run.folder / FOLDER / name
    trained_on = all_training_examples(run.config) if uses_adapter else None
    tasks = {}
    for task, (rows, references) in responses.items():
        eval_set = run.eval_sets[task]
        evaluated = score_responses(
            eval_set,
            responses=rows,
            references=references,
            metrics=metrics_of(run.config, eval_set),
            protocol=run.config.evaluation.protocol,
            output_dir=task_dir(folder, task=task, test_set=eval_set.fingerprint),
            dist_context=DistributedContext(),
        )
        tasks[task] = result_entry(run.config, task, eval_set, evaluated, trained_on=trained_on)
    result = build_result(
        name=name,
        method="baseline",
        identity={**run.result["identity"], "baseline": description},
        config={**run.config.to_dict(), "baseline": description},
        fingerprints={**run.result["fingerprints"], "responses": fingerprint},
        machine=describe_machine(run.device),
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


def call_hook(baseline: Baseline, name: str, run: FinishedRun, default: Any) -> Any:
    """Call an optional function of a baseline, or return the default."""
    function = getattr(baseline, name, None)
    return default if function is None else function(run)
