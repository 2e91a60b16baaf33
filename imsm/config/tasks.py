"""Look up the tasks and metrics that a configuration names."""

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from imsm.config.interpolation import resolve
from imsm.config.schema import FROM_BOS, BackboneConfig, DataConfig, EvaluationConfig, RehearsalConfig, ReplayConfig
from imsm.data.prompts import read_prompts
from imsm.data.sources import DataSource, check_source
from imsm.data.task import ROLES, Role, Task
from imsm.evaluation.metrics import resolve_metric
from imsm.utils.errors import UserError
from imsm.utils.hashing import hash_file
from imsm.utils.messages import did_you_mean, format_value, validation_errors
from imsm.utils.options import closest_match, list_options, load_option
from imsm.utils.trust import TASKS, check_trusted

TARGET = "target"
SHARED_KEYS = set(DataConfig.model_fields) - set(Task.model_fields)
"""Keys of the section `data` that are not part of a dataset's yaml."""


@dataclass
class TaskLookup:
    """Looks up tasks by name and collects one line per error.

    ``cfg`` is the composed configuration, for interpolations in the tasks' yamls.
    """

    cfg: DictConfig
    config_dir: Path | None
    errors: list[str] = field(default_factory=list)

    def evaluation_tasks(
        self, names: Sequence[str], data: DataConfig, *, backbone: BackboneConfig | None, trained: bool
    ) -> dict[str, Task]:
        """Return the evaluated tasks by name.

        ``names`` may contain "target". Without a backbone, files are not checked, because their source is
        unknown; with ``trained``, the target needs all splits.
        """
        tasks: dict[str, Task] = {}
        for name in dict.fromkeys(names):
            if name in (TARGET, data.name):
                tasks[data.name] = data.as_task()
            elif task := self._load(name, key="evaluation.tasks", also=[TARGET]):
                tasks[name] = task
        self._check_modules([data, *tasks.values()])
        if backbone is not None:
            self._check_files(data, data.target_source(), ROLES if trained else ["test"])
            for name in tasks.keys() - {data.name}:
                self._check_files(tasks[name], data.forgetting_source(backbone), ["test"])
        return tasks

    def metric_modules(self, tasks: Iterable[Task]) -> dict[str, str]:
        """Return the module of each metric that the tasks name."""
        modules: dict[str, str] = {}
        names = list_options("metric", config_dir=self.config_dir)
        for task in tasks:
            for metric in (*task.metrics, *task.paper_code_metrics):
                prefix = f"metric {metric} of data={task.name}"
                if metric not in names:
                    hint = did_you_mean(closest_match(metric, names))
                    self.errors.append(f"{prefix}: no such metric ({', '.join(names)}){hint}")
                    continue
                try:
                    module = str(load_option("metric", metric, config_dir=self.config_dir).get("module"))
                    resolve_metric(module)
                    modules[metric] = module
                except UserError as error:
                    self.errors.append(f"{prefix}: {error}")
        return modules

    def replay_tasks(
        self,
        replay: ReplayConfig | RehearsalConfig,
        data: DataConfig,
        *,
        key: str = "peft.replay",
        evaluated: Sequence[str],
        backbone: BackboneConfig,
        in_sequence: bool,
    ) -> dict[str, Task]:
        """Return the tasks in the section ``key`` by name: the replayed one, and those whose tests are excluded.

        The training data must not depend on which tasks are evaluated, so `exclude_tests` has to
        name every evaluated task explicitly; ``evaluated`` has the names in `evaluation.tasks`. The target's own
        test is excluded without being named, but not in a sequence, whose earlier stages have other targets.
        """
        if replay.task == data.name:
            self.errors.append(f"{key}.task={data.name}: is the target itself; choose another dataset")
        named = [data.name if name == TARGET else name for name in evaluated]
        implied = () if in_sequence else (data.name,)
        missing = [name for name in dict.fromkeys(named) if name not in (*implied, *replay.exclude_tests)]
        texts = "replayed examples" if replay.task is not None else "the texts"
        if missing:
            self.errors.append(
                f"evaluation.tasks={format_value(list(evaluated))}: {texts} are not checked against the "
                f"tests of {', '.join(missing)}; set {key}.exclude_tests="
                f"{format_value([*replay.exclude_tests, *missing])}"
            )
        tasks: dict[str, Task] = {}
        source = data.forgetting_source(backbone)
        # The replayed task comes second, so that its key is named where a task is in both.
        keys = dict.fromkeys(replay.exclude_tests, f"{key}.exclude_tests")
        read = {replay.task: f"{key}.task"} if replay.task is not None else {}
        prompts = getattr(replay, "prompts", None)
        read |= {prompts: f"{key}.prompts"} if prompts in self.dataset_names() else {}
        for name, full_key in {**keys, **read}.items():
            task = self._load(name, key=full_key)
            if task is None:
                continue
            tasks[name] = task
            if name in read:
                if not task.splits.get("train"):
                    self.errors.append(f"{full_key}={name}: has no training split; choose another dataset")
                self._check_files(task, source, ["train"])
            if name in replay.exclude_tests:
                self._check_files(task, source, ["test"])
        self._check_modules(tasks.values())
        return tasks

    def dataset_names(self) -> list[str]:
        """Return the names of all datasets."""
        return list_options("data", config_dir=self.config_dir)

    def prompts_hash(self, prompts: str | None) -> str | None:
        """Return the SHA-256 of the file that `rehearsal.prompts` names; None for BOS and a dataset."""
        if prompts is None or prompts in (FROM_BOS, *self.dataset_names()):
            return None
        given = f"rehearsal.prompts={prompts}"
        try:
            found = hash_file(Path(prompts))
        except OSError:
            hint = did_you_mean(closest_match(prompts, [FROM_BOS, *self.dataset_names()]))
            problem = "is neither bos, a file that can be read, nor a dataset"
            self.errors.append(f"{given}: {problem} ({', '.join(self.dataset_names())}){hint}")
            return None
        try:
            read_prompts(Path(prompts), given=given)
        except UserError as error:
            self.errors.append(str(error))
        return found

    def task_sequence(
        self, names: list[str], data: DataConfig, evaluation: EvaluationConfig, *, backbone: BackboneConfig | None
    ) -> tuple[dict[str, Any], dict[str, Task]]:
        """Resolve the tasks of a sequence: the last one is the run's target, all of them are evaluated.

        Return the new sections `data` and `evaluation` (empty if there are errors), and the tasks by name.
        In `evaluation.tasks`, "target" means the complete sequence. Without a backbone, files are not checked.
        """
        given, before = f"task_sequence={format_value(names)}", len(self.errors)
        for key, value in (("local_dir", data.local_dir), ("metric", data.metric)):
            if value is not None:
                self.errors.append(f"data.{key}={value}: is for a single target, not for {given}; omit it")
        tasks: dict[str, Task] = {}
        for name in names:
            task = self._load(name, key="task_sequence")
            if task is None:
                continue
            tasks[name] = task
            if task.hub is None:
                self.errors.append(f"{given}: {name} is not on the Hub; use local data as the target of a single run")
            elif not task.splits.get("train"):
                self.errors.append(f"{given}: {name} has no training split; omit it")
            elif backbone is not None:
                self._check_files(task, data.forgetting_source(backbone), ROLES)
        if len(self.errors) > before:
            return {}, {}
        evaluated = [*dict.fromkeys(names), *(name for name in evaluation.tasks if name not in (TARGET, *names))]
        section = evaluation.model_copy(update={"tasks": evaluated})
        return {"data": data.with_task(tasks[names[-1]]), "evaluation": section}, tasks

    def _load(self, name: str, *, key: str, also: Sequence[str] = ()) -> Task | None:
        """Load a task's yaml, or collect why it cannot be loaded; ``also`` lists other allowed names."""
        # load_option would report the name without the key that it was given by.
        names = [*also, *list_options("data", config_dir=self.config_dir)]
        if name not in names:
            hint = did_you_mean(closest_match(name, names))
            self.errors.append(f"{key}={name}: no such task ({', '.join(names)}){hint}")
            return None
        try:
            values = self._resolved(load_option("data", name, config_dir=self.config_dir))
            return Task(**{key: value for key, value in values.items() if key not in SHARED_KEYS})
        except UserError as error:
            self.errors.append(str(error))
        except ValidationError as error:
            types = {key: field.annotation for key, field in Task.model_fields.items()}
            self.errors += [f"data={name}: {line}" for line in validation_errors("data", types, error.errors())]
        return None

    def _resolved(self, option: dict[str, Any]) -> dict[str, Any]:
        """Resolve the interpolations of an option, which may point anywhere into the configuration."""
        if "${" not in str(option):
            return option
        # _get_node keeps the interpolations of other sections unresolved: only those that are used can fail.
        root = OmegaConf.create({key: self.cfg._get_node(key) for key in self.cfg if key != "data"})
        root["data"] = option
        values, errors = resolve(root)
        self.errors += [line for key, line in errors.items() if key.startswith("data.")]
        return values["data"]

    def _check_modules(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            try:
                check_trusted(task.module, within=TASKS, key=f"data={task.name} data.module")
            except UserError as error:
                self.errors.append(str(error))
                continue
            if not _module_exists(task.module):
                problem = "no such module; put a custom one into the folder given by --config-dir"
                self.errors.append(f"data.module={task.module} of data={task.name}: {problem}")

    def _check_files(self, task: Task, source: DataSource, roles: Sequence[Role]) -> None:
        """Check that an existing mirror or folder has the files of a task."""
        # A missing folder is reported once by `imsm.config.validate`, a target without a source by the schema.
        missing_folder = source.path is not None and not Path(source.path).exists()
        if missing_folder or (task.hub is None and source.kind != "local"):
            return
        try:
            check_source(task, source=source, roles=roles)
        except UserError as error:
            self.errors.append(" ".join(str(error).split()))


def _module_exists(name: str) -> bool:
    # find_spec imports the parents of a dotted name, which may be missing or no package.
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
