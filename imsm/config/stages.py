"""A sequence as a chain of ordinary runs: `task_sequence=[gsm8k,mrpc]` is gsm8k, then mrpc after it.

Stage i learns task i from the adapter and the gate that stage i-1 left, with an optimizer, a
schedule and a PEFT method's own bookkeeping that begin anew. Each stage is judged on all tasks of
the sequence and on the evaluation's forgetting tests. The first stage is the ordinary run of its
task, and two sequences with a common beginning share those stages.
"""

from __future__ import annotations

from imsm.config.identity import run_identity, run_name
from imsm.config.schema import DataConfig, PreviousStageConfig, RunConfig
from imsm.data.task import Task

_COMMON = set(DataConfig.model_fields) - set(Task.model_fields)


def expand_stages(config: RunConfig) -> list[RunConfig]:
    """The runs that a configuration stands for, in order; a run without a sequence is its own.

    Where nothing is trained there is one, which is asked all the sequence's tasks.
    """
    if config.task_sequence is None:
        return [config]
    if not config.method.trainable:
        return [_stage(config, config.task_sequence[-1], after=None)]
    stages: list[RunConfig] = []
    for place, name in enumerate(config.task_sequence):
        after = None
        if stages:
            before = stages[-1]
            after = PreviousStageConfig(
                run=run_name(before), tasks=config.task_sequence[:place], identity=run_identity(before)
            )
        stages.append(_stage(config, name, after=after))
    return stages


def final_stage(config: RunConfig) -> RunConfig:
    """The run whose model is what a configuration asks for."""
    return expand_stages(config)[-1]


def _stage(config: RunConfig, name: str, *, after: PreviousStageConfig | None) -> RunConfig:
    """The run that learns one task of a sequence: what one would compose by `data=<name>`."""
    common = config.data.model_dump(include=_COMMON, exclude_unset=True)
    task = config.stage_tasks[name].model_dump(exclude_unset=True)
    data = DataConfig(**task, **common)
    tasks = config.tasks | config.stage_tasks | {name: data}
    given = config.model_fields_set - {"stage_tasks", "previous_stage"}
    values = {key: getattr(config, key) for key in given}
    values |= {"task_sequence": None, "data": data, "tasks": {key: tasks[key] for key in config.tasks}}
    return RunConfig(**values | ({"previous_stage": after} if after is not None else {}))
