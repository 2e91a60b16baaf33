"""The typed configuration of one run.

Every key has a type and a range here; what one key demands of another stands in `imsm.config.cross_section`,
the way from Hydra's composition to here in `imsm.config.validate`.
Nothing below the entry sees these objects: the run's flow takes them apart into keyword arguments.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from imsm.data.sources import DataSource, Kind, Prompts
from imsm.data.task import Task
from imsm.utils.instantiate import Count, NotNegative, Positive, Probability
from imsm.utils.strict_model import StrictModel, Text

GateInput = Literal["query_original", "original", "tuned", "query_tuned"]
SHIPPED_GATE = "imsm.models.siamese.gate.Gate"


class ComponentConfig(StrictModel):
    """A section whose further keys are arguments of the builder that `_target_` names."""

    model_config = ConfigDict(extra="allow")

    name: Text
    target: Text = Field(alias="_target_")

    def arguments(self) -> dict[str, Any]:
        """The keys that go to the builder."""
        return dict(self.model_extra or {})


class BackboneConfig(StrictModel):
    """Which language model, and what its modules are called."""

    name: Text
    name_or_path: Text
    revision: str | None
    dtype: Literal["float32", "bfloat16"]
    attn_implementation: str | None
    default_data_source: Literal["hub", "miniature"]
    closed_vocabulary: bool
    local_resolver: str | None
    module_names: dict[str, list[Text]]
    architecture: dict[str, Any] | None = None
    """Keys of the model's config.json that decide its shape; a local folder's own go first."""


class ReplayConfig(StrictModel):
    """Questions of another dataset that are learned beside the target's."""

    task: Text
    ratio: Annotated[float, Field(gt=0, le=1)]
    exclude_tests: list[Text] = Field(min_length=1)


class PeftConfig(ComponentConfig):
    """Which PEFT method, on modules of which roles."""

    target_roles: list[Text]
    default_target_roles: list[Text] = Field(default=[])
    target_roles_by_backbone: dict[str, list[Text]] = Field(default={})
    recipes: dict[str, dict[str, Any]] = Field(default={})
    replay: ReplayConfig | None = None
    method_specific_keys: list[str] = Field(default=[])

    def target_modules(self, backbone: BackboneConfig) -> list[str]:
        """The names of the modules that the roles stand for, in the roles' order."""
        return [name for role in self.target_roles for name in backbone.module_names[role]]


class DataConfig(Task):
    """The target, and what is common to all datasets of a run."""

    source: Kind
    mirror_dir: str | None
    local_dir: str | None
    prompt_style: Prompts
    chat_template: bool = False
    max_train_examples: Count | None
    metric: str | None

    @model_validator(mode="before")
    @classmethod
    def _metric_replaces_metrics(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("metric"), str):
            return values | {"metrics": [values["metric"]], "paper_code_metrics": []}
        return values

    def target_source(self) -> DataSource:
        """Where the target comes from: one's own folder, else the mirror, else `source`."""
        if self.local_dir is not None:
            return DataSource(kind="local", path=self.local_dir)
        if self.mirror_dir is not None:
            return DataSource(kind="mirror", path=self.mirror_dir)
        return DataSource(kind=self.source)

    def forgetting_source(self, backbone: BackboneConfig) -> DataSource:
        """Where the other tasks come from: one's own folder serves the target alone."""
        if self.mirror_dir is not None:
            return DataSource(kind="mirror", path=self.mirror_dir)
        fixed = self.source in ("hub", "miniature")
        return DataSource(kind=self.source if fixed else backbone.default_data_source)


class GateConfig(ComponentConfig):
    """Which gate; a class of one's own may take other arguments than the shipped one."""

    pooling: Literal["mean", "max", "last"]
    inputs: list[GateInput] = Field(default=[])
    rank: Count | None = None
    granularity: Literal["vector", "scalar"] = "vector"
    bias: float | None = None
    init_value: Annotated[float, Field(ge=0, le=1)] | None = None
    query_scale: NotNegative | None = None
    min_original_weight: Probability = 0.0
    dropout: Probability = 0.0
    trainable: bool = True

    def arguments(self) -> dict[str, Any]:
        """What the yaml gives, without `name`, `_target_` and `pooling`."""
        return self.model_dump(exclude={"name", "target", "pooling"}, exclude_unset=True)


class MethodConfig(StrictModel):
    """Which arm: the stream that answers, and whether anything is trained."""

    name: Text
    stream: Literal["original", "tuned", "interwoven"]
    trainable: bool


class TrainerConfig(StrictModel):
    """The recipe."""

    name: Text
    optimizer: Literal["adamw", "adafactor"]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    gate_learning_rate: Annotated[float, Field(gt=0, le=1)] | None
    lr_scheduler_type: Literal["cosine", "linear", "constant_with_warmup"]
    warmup_ratio: Probability
    weight_decay: NotNegative
    max_grad_norm: Positive | None
    num_epochs: Count
    global_batch_size: Count
    micro_batch_size: Count | None
    group_by_length: bool = False
    gradient_checkpointing: bool
    save_minutes: Positive
    save_steps: Count | None
    save_total_limit: Count
    validation_size: Count | None = None
    metric_for_best_model: Literal["validation_loss"] | None = None
    kl_beta: Positive | None = None
    kl_mask_target: bool = False
    method_specific_keys: list[str] = Field(default=[])


class EvaluationConfig(StrictModel):
    """Which tasks are judged, on how many items of each, and by whose metrics."""

    protocol: Literal["strict", "paper_code"] = "strict"
    tasks: list[Text] = Field(min_length=1)
    limit: Count | None
    limit_by_task: dict[str, Count] | None
    batch_size: Count

    def limit_of(self, task: str) -> int | None:
        """How many items of a task are asked; None: all."""
        return (self.limit_by_task or {}).get(task, self.limit)


class LoggerConfig(StrictModel):
    """Where the local log is mirrored to."""

    name: Literal["none", "wandb"]
    project: str | None
    entity: str | None
    mode: Literal["auto", "online", "offline"]
    init_timeout: Positive


class EngineConfig(StrictModel):
    """What carries the training out."""

    name: Text
    stage: Literal[0, 1, 2, 3] | None
    """Of ZeRO; 0: one process, no DeepSpeed; None: decided by the GPUs that are there."""
    offload: bool
    device: Literal["auto", "cpu", "cuda"]
    nproc_per_node: Count | None
    nnodes: Count
    hostfile: str | None
    collective_timeout_minutes: Positive
    reduce_bucket_size: Count
    prefetch_bucket_size: Count
    max_live_parameters: Count


class PreviousStageConfig(StrictModel):
    """The stage of a sequence that a run goes on from."""

    run: Text
    """The name of its folder, under the same root."""
    tasks: list[Text] = Field(min_length=1)
    """What has been learned so far, in order."""
    identity: dict[str, Any]
    """What decided its training, the stages before it included."""


class FrozenAdapterConfig(StrictModel):
    """The finished training whose adapter is taken as it is."""

    tasks: list[Text] = Field(min_length=1)
    """What the adapter learned, in order."""
    identity: dict[str, Any]
    """What decided its training."""


class RunConfig(StrictModel):
    """One run: everything that was chosen, and what the names in it stand for."""

    mode: Literal["run", "evaluate", "plan", "download"]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    run_dir: Text | None
    resume: Text
    hidden_state_cache: Literal["auto", "disk", "ram", "off"] = "auto"
    """Whether the original's memories of the training examples are kept, and where."""
    hidden_state_cache_gb: Positive = 32.0
    """How much all banks on disk may take together, or the one in memory."""
    task_sequence: list[Text] | None = None
    """Tasks to be learned one after the other (`imsm.config.stages`); None: `data` alone."""
    frozen_adapter: Text | None = None
    """The folder of a finished run whose adapter is taken as it is, so that the gate alone learns
    (`imsm.config.frozen_adapter`); None: adapter and gate learn together."""
    backbone: BackboneConfig
    peft: PeftConfig
    data: DataConfig
    gate: GateConfig
    method: MethodConfig
    trainer: TrainerConfig
    evaluation: EvaluationConfig
    logger: LoggerConfig
    engine: EngineConfig
    tasks: dict[str, Task] = Field(default={})
    """The tasks to be judged by name, the target among them; filled by `examine`."""
    replay_tasks: dict[str, Task] = Field(default={})
    """The tasks that `peft.replay` names; filled by `examine`."""
    stage_tasks: dict[str, Task] = Field(default={})
    """The tasks that `sequence` names; filled by `examine`."""
    previous_stage: PreviousStageConfig | None = None
    """Of a stage: the one before it; filled by `imsm.config.stages`."""
    frozen_run: FrozenAdapterConfig | None = None
    """The run that `frozen_adapter` names; filled by `examine`."""
    metrics: dict[str, str] = Field(default={})
    """The modules of the metrics that these tasks name; filled by `examine`."""
    config_dir: str | None = None
    """The folder of options of one's own that was given."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in a `result.json`."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The inverse of `to_dict`, without looking anything up again."""
        return cls.model_validate(values)


def is_local(path: str) -> bool:
    """Whether a backbone's path means a folder here, not an id on the hub."""
    written = path.startswith(("/", "./", "../", "~")) or path in (".", "..")
    return written or path.count("/") > 1 or (not path.startswith("imsm:") and os.path.isdir(path))
