"""What the names in a configuration stand for: the tasks to be judged, and their metrics."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from imsm.config.interpolation import resolve
from imsm.config.schema import BackboneConfig, DataConfig, EvaluationConfig, ReplayConfig
from imsm.data.sources import DataSource, check_source
from imsm.data.task import Role, Task
from imsm.utils.errors import UserError
from imsm.utils.messages import describe_errors, format_value
from imsm.utils.options import closest_match, list_options, load_option

TARGET = "target"


def resolve_tasks(
    *,
    data: DataConfig,
    names: list[str],
    backbone: BackboneConfig | None,
    trained: bool,
    cfg: DictConfig,
    config_dir: Path | None,
) -> tuple[dict[str, Task], dict[str, str], list[str]]:
    """Resolve the tasks of an evaluation.

    Args:
        data: the run's target.
        names: of tasks; "target" stands for the run's own.
        backbone: says where the forgetting tests come from; None: it is not valid.
        trained: whether the target's training split is needed.
        cfg: what Hydra composed, for the interpolations in the tasks' yamls.
        config_dir: the folder of options of one's own.

    Returns:
        Tasks by name, modules of their metrics by name, and a line per problem.
    """
    tasks: dict[str, Task] = {}
    errors = [f"evaluation.tasks={name}: is named twice" for name in names if names.count(name) > 1]
    own = data
    for name in names:
        if name in (TARGET, data.name):
            tasks[data.name] = own
            continue
        task, wrong = _task(name, key="evaluation.tasks", known=[TARGET], cfg=cfg, config_dir=config_dir)
        errors += wrong
        if task is not None:
            tasks[name] = task
    metrics, wrong = _metrics({data.name: own} | tasks, config_dir=config_dir)
    errors += wrong + _modules([own, *tasks.values()])
    if backbone is not None:
        elsewhere = data.forgetting_source(backbone)
        target_roles: list[Role] = ["train", "test"] if trained else ["test"]
        errors += _check_files_exist(own, data.target_source(), roles=target_roles)
        for name, task in tasks.items():
            if name != data.name:
                errors += _check_files_exist(task, elsewhere, roles=["test"])
    return tasks, metrics, errors


def resolve_replay_tasks(
    replay: ReplayConfig,
    *,
    data: DataConfig,
    judged: list[str],
    backbone: BackboneConfig,
    cfg: DictConfig,
    config_dir: Path | None,
) -> tuple[dict[str, Task], list[str]]:
    """Resolve what `peft.replay` names: where its questions come from, and what they must not ask.

    What is learned must not hang on what is judged, so a test that is judged must be named as one
    to keep apart from.

    Args:
        replay: the section.
        data: the run's target.
        judged: the names of the evaluation's tasks.
        backbone: says where these datasets come from.
        cfg: as of `look_up`, like the rest.
        config_dir: likewise.

    Returns:
        Tasks by name, and a line per problem.
    """
    tasks: dict[str, Task] = {}
    errors = _replay_problems(replay, target=data.name, judged=judged)
    source = data.forgetting_source(backbone)
    keys = dict.fromkeys(replay.exclude_tests, "peft.replay.exclude_tests")
    for name, key in {**keys, replay.task: "peft.replay.task"}.items():
        task, wrong = _task(name, key=key, known=[], cfg=cfg, config_dir=config_dir)
        errors += wrong
        if task is None:
            continue
        tasks[name] = task
        if name == replay.task:
            if not task.splits.get("train"):
                errors.append(f"peft.replay.task={name}: has no split to learn from")
            errors += _check_files_exist(task, source, roles=["train"])
        if name in replay.exclude_tests:
            errors += _check_files_exist(task, source, roles=["test"])
    return tasks, errors + _modules(list(tasks.values()))


def apply_sequence(
    names: list[str],
    *,
    data: DataConfig,
    evaluation: EvaluationConfig,
    backbone: BackboneConfig | None,
    cfg: DictConfig,
    config_dir: Path | None,
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Resolve the tasks of a sequence; its last one is the run's target, all of them are judged.

    Args:
        names: of the tasks, in order.
        data: what is common to them; which dataset it describes does not count.
        evaluation: as it was chosen; "target" stands for the whole sequence.
        backbone: as of `look_up`, like the rest.
        cfg: likewise.
        config_dir: likewise.

    Returns:
        The sections `data` and `evaluation` as the sequence wants them, `sequence_tasks`, and a
        line per problem; the first two are empty if there is any.
    """
    errors = _common_problems(names, data)
    tasks: dict[str, Task] = {}
    elsewhere = None if backbone is None else data.forgetting_source(backbone)
    for name in names:
        task, wrong = _task(name, key="task_sequence", known=[], cfg=cfg, config_dir=config_dir)
        errors += wrong
        if task is None:
            continue
        tasks[name] = task
        if task.hub is None:
            errors.append(
                f"task_sequence={format_value(names)}: {name} is not on the hub, and one's own data can be the "
                "target of a single run only"
            )
        elif not task.splits.get("train"):
            errors.append(f"task_sequence={format_value(names)}: {name} has no split to train on")
        elif elsewhere is not None:
            errors += _check_files_exist(task, elsewhere, roles=["train", "test"])
    if errors:
        return {}, {}, errors
    common = data.model_dump(include=_COMMON_KEYS, exclude_unset=True)
    target = DataConfig(**tasks[names[-1]].model_dump(exclude_unset=True), **common)
    judged = [*dict.fromkeys(names), *(n for n in evaluation.tasks if n not in (TARGET, *names))]
    adopted = {"data": target, "evaluation": evaluation.model_copy(update={"tasks": judged})}
    return adopted, {"stage_tasks": tasks}, []


def _common_problems(names: list[str], data: DataConfig) -> list[str]:
    """What describes one dataset cannot be said of several."""
    given = {"local_dir": data.local_dir, "metric": data.metric}
    return [
        f"data.{key}={value}: is for a single target, not for task_sequence={format_value(names)}; leave it out"
        for key, value in given.items()
        if value is not None
    ]


def _replay_problems(replay: ReplayConfig, *, target: str, judged: list[str]) -> list[str]:
    errors = []
    if replay.task == target:
        errors.append(f"peft.replay.task={target}: is the target itself; choose another dataset")
    left_out = [name for name in judged if name not in (TARGET, target, *replay.exclude_tests)]
    if left_out:
        wanted = format_value([*replay.exclude_tests, *left_out])
        errors.append(
            f"evaluation.tasks={format_value(judged)}: replayed questions are not kept apart from "
            f"{', '.join(left_out)}; set peft.replay.exclude_tests={wanted}"
        )
    return errors


def _task(
    name: str, *, key: str, known: list[str], cfg: DictConfig, config_dir: Path | None
) -> tuple[Task | None, list[str]]:
    names = [*known, *list_options("data", config_dir=config_dir)]
    if name not in names:
        guess = closest_match(name, names)
        hint = f"; did you mean {guess}?" if guess else ""
        return None, [f"{key}={name}: no such task ({', '.join(names)}){hint}"]
    try:
        values, errors = _resolved(load_option("data", name, config_dir=config_dir), cfg)
    except UserError as error:
        return None, [str(error)]
    fields = {key: value for key, value in values.items() if key not in _COMMON_KEYS}
    try:
        return Task(**fields), errors
    except ValidationError as error:
        types = {key: field.annotation for key, field in Task.model_fields.items()}
        details = [dict(detail) for detail in error.errors()]
        return None, [f"data={name}: {line}" for line in describe_errors("data", types, details)]


def _resolved(option: dict[str, Any], cfg: DictConfig) -> tuple[dict[str, Any], list[str]]:
    """An option's values; its interpolations may point anywhere into the run's configuration."""
    if "${" not in str(option):
        return option, []
    root = OmegaConf.create({key: cfg._get_node(key) for key in cfg if key != "data"})
    root["data"] = option
    values, errors = resolve(root)
    return values["data"], [line for key, line in errors.items() if key.startswith("data.")]


_COMMON_KEYS = set(DataConfig.model_fields) - set(Task.model_fields)


def _metrics(tasks: dict[str, Task], *, config_dir: Path | None) -> tuple[dict[str, str], list[str]]:
    modules: dict[str, str] = {}
    errors = []
    names = list_options("metric", config_dir=config_dir)
    for task in tasks.values():
        for metric in (*task.metrics, *task.paper_code_metrics):
            if metric not in names:
                guess = closest_match(metric, names)
                hint = f"; did you mean {guess}?" if guess else ""
                listed = ", ".join(names)
                errors.append(f"metric {metric} of data={task.name}: no such metric ({listed}){hint}")
                continue
            try:
                module = load_option("metric", metric, config_dir=config_dir).get("module")
            except UserError as error:
                errors.append(f"metric {metric} of data={task.name}: {error}")
                continue
            if not isinstance(module, str) or not _exists(module):
                errors.append(f"metric {metric}: its module {module} cannot be found")
            else:
                modules[metric] = module
    return modules, errors


def _modules(tasks: list[Task]) -> list[str]:
    return [
        f"data.module={task.module} of data={task.name}: there is no such module; one of one's own "
        "lies in the folder given by --config-dir"
        for task in tasks
        if not _exists(task.module)
    ]


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _check_files_exist(task: Task, source: DataSource, *, roles: list[Role]) -> list[str]:
    """A mirror or folder that exists but lacks this task's files."""
    if source.path is not None and not Path(source.path).is_dir():
        return []  # said once, by the checks
    if task.hub is None and source.kind != "local":
        return []
    try:
        check_source(task, source=source, roles=roles)
    except UserError as error:
        return [" ".join(str(error).split())]
    return []
