"""Task sequences as chains of runs: `task_sequence=[gsm8k,mrpc]` is gsm8k, then mrpc continuing from it.

Each stage starts from the adapter and gate of the previous one, with a new optimizer, schedule and
PEFT state, and is evaluated on all tasks of the sequence and the forgetting tests. The first stage
is the ordinary run of its task; sequences with a common beginning share those stages.
"""

from imsm.config.identity import run_identity, run_name
from imsm.config.schema import PreviousStageConfig, RunConfig


def expand_stages(config: RunConfig) -> list[RunConfig]:
    """Return the runs of a task sequence, in order; without a sequence, the run itself.

    Without training there is one run, evaluated on all tasks of the sequence.
    """
    if config.task_sequence is None:
        return [config]
    # The stages would be the same model; one run avoids evaluating it several times.
    if not config.method.trainable:
        return [_stage(config, config.task_sequence[-1], previous=None)]
    stages: list[RunConfig] = []
    for index, name in enumerate(config.task_sequence):
        previous = None
        if stages:
            previous = PreviousStageConfig(
                run=run_name(stages[-1]), tasks=config.task_sequence[:index], identity=run_identity(stages[-1])
            )
        stages.append(_stage(config, name, previous=previous))
    return stages


def final_stage(config: RunConfig) -> RunConfig:
    """Return the run whose model is the result of a configuration."""
    return expand_stages(config)[-1]


def _stage(config: RunConfig, name: str, *, previous: PreviousStageConfig | None) -> RunConfig:
    """Return the run of one task: the same as composing it with `data=<name>`."""
    data = config.data.with_task(config.stage_tasks[name])
    tasks = config.tasks | config.stage_tasks | {name: data.as_task()}
    # Not model_copy: validation checks the new sections, and only set fields are saved (`RunConfig.to_dict`).
    values = {key: getattr(config, key) for key in config.model_fields_set - {"stage_tasks", "previous_stage"}}
    values |= {"task_sequence": None, "data": data, "tasks": {key: tasks[key] for key in config.tasks}}
    return RunConfig(**values | ({"previous_stage": previous} if previous is not None else {}))
