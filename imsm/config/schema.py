"""The typed configuration of one run.

Fields have types and ranges, sections check themselves (`StrictModel.check`); checks across
sections and of files are in `imsm.config.validate`. Only config/ and pipeline/ use a `RunConfig`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from imsm.data.sources import DataSource, Kind, PromptStyle
from imsm.data.task import Task
from imsm.evaluation.batch_size import CPU_BATCH_SIZE
from imsm.utils import trust
from imsm.utils.errors import UserError
from imsm.utils.instantiate import Count, NotNegative, Positive, Probability
from imsm.utils.strict_model import PathName, StrictModel, Text
from imsm.utils.trust import check_trusted

GateInput = Literal["query_original", "original", "tuned", "query_tuned"]
TrackingService = Literal["wandb", "trackio", "tensorboard"]
LearningRate = Annotated[float, Field(gt=0, le=1)]
SHIPPED_GATE = "imsm.models.siamese.gate.Gate"
IMPORTED_ADAPTER = "imsm.models.adapters.imported.imported_adapter"
"""`_target_` of the section `peft` of an adapter that was trained elsewhere."""


class ComponentConfig(StrictModel):
    """A section whose extra keys are arguments of its `_target_`."""

    model_config = ConfigDict(extra="allow")

    name: PathName
    target: Text = Field(alias="_target_")

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of the target."""
        return dict(self.model_extra or {})


class BackboneConfig(StrictModel):
    """The language model and the names of its modules."""

    name: PathName
    name_or_path: Text
    revision: str | None
    dtype: Literal["float32", "bfloat16", "float16"]
    attn_implementation: str | None
    default_data_source: Literal["hub", "miniature"]
    closed_vocabulary: bool
    local_resolver: str | None
    quantization: Literal["nf4"] | None = None
    """4-bit format of the decoder's linear weights (bitsandbytes); the original model is then the quantized one."""
    module_names: dict[str, list[Text]]
    architecture: dict[str, Any] | None = None
    """Shape values of the model's config.json, used where no config.json is available locally."""


class ReplayConfig(StrictModel):
    """Examples of another dataset to train on in addition to the target."""

    task: PathName
    ratio: Annotated[float, Field(gt=0, le=1)]
    exclude_tests: list[PathName] = Field(min_length=1)


class RehearsalConfig(StrictModel):
    """Texts that each training step reads in addition to its global batch (`imsm.training.rehearsal`)."""

    name: PathName = "none"
    source: Literal["none", "replay", "self"] = "none"
    """Nothing, training examples of another dataset, or texts that the original model generates."""
    loss: Literal["ce", "kl"] = "kl"
    weight: NotNegative = 1.0
    batch_size: Count | None = None
    num_texts: Count | None = None
    max_tokens: Annotated[int, Field(ge=2)] | None = None
    temperature: Positive | None = None
    prompts: Text | None = None
    """What the texts continue: "bos", a file, or the name of a dataset."""
    seed: Annotated[int, Field(ge=0)] | None = None
    task: PathName | None = None
    ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    exclude_tests: list[PathName] = Field(default=[])

    def check(self) -> Iterator[tuple[str, str]]:
        """Yield (field, problem) for fields that are missing, or of another source."""
        for source, keys in REHEARSAL_KEYS.items():
            for key in keys:
                if source == self.source and getattr(self, key) is None:
                    yield key, f"is needed by rehearsal={source}; give rehearsal.{key}=..."
                # batch_size is of both sources
                elif self.source not in (source, "none") and key != "batch_size" and getattr(self, key) is not None:
                    yield key, f"is for rehearsal={source}; omit it"
        if self.source == "replay" and not self.exclude_tests:
            yield "exclude_tests", "names the test sets whose questions are never replayed; name at least one"

    def replay(self) -> ReplayConfig | None:
        """Return what is replayed; None for other sources."""
        if self.source != "replay" or self.task is None or self.ratio is None:
            return None
        return ReplayConfig(task=self.task, ratio=self.ratio, exclude_tests=self.exclude_tests)

    def own_values(self) -> dict[str, Any]:
        """Return the settings of the source in use."""
        keys = {"source", "loss", "weight", "exclude_tests", *REHEARSAL_KEYS.get(self.source, ())}
        return self.model_dump(mode="json", include=keys)


REHEARSAL_KEYS = {
    "self": ("batch_size", "num_texts", "max_tokens", "temperature", "prompts", "seed"),
    "replay": ("batch_size", "task", "ratio"),
}
"""Keys that a source of rehearsal needs."""
FROM_BOS = "bos"
"""`rehearsal.prompts` of texts that begin with the tokenizer's first token."""


class PeftConfig(ComponentConfig):
    """The PEFT method and the roles of the modules it adapts."""

    target_roles: list[Text]
    default_target_roles: list[Text] = Field(default=[])
    target_roles_by_backbone: dict[str, list[Text]] = Field(default={})
    recipes: dict[str, dict[str, Any]] = Field(default={})
    replay: ReplayConfig | None = None
    method_specific_keys: list[str] = Field(default=[])

    def target_modules(self, backbone: BackboneConfig) -> list[str]:
        """Return the module names of the roles, in order."""
        return [name for role in self.target_roles for name in backbone.module_names[role]]


class DataConfig(Task):
    """The target task and the data settings that all tasks of a run share."""

    source: Kind
    mirror_dir: str | None
    local_dir: str | None
    test_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the local rows that is the test set; None: there is a test file."""
    prompt_style: PromptStyle
    chat_template: bool = False
    max_train_examples: Count | None
    metric: str | None

    @model_validator(mode="before")
    @classmethod
    def _metric_replaces_metrics(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("metric"), str):
            return values | {"metrics": [values["metric"]], "paper_code_metrics": []}
        return values

    @field_validator("mirror_dir", "local_dir")
    @classmethod
    def _set_if_source(cls, value: str | None, info: ValidationInfo) -> str | None:
        # pydantic validates in the order of the fields, so `source` is in info.data, unless it is invalid.
        kind = str(info.field_name).removesuffix("_dir")
        if value is None and info.data.get("source") == kind:
            raise ValueError(f"data.source={kind} needs a folder; give data.{kind}_dir=FOLDER")
        return value

    def check(self) -> Iterator[tuple[str, str]]:
        """Yield (field, problem) for fields that contradict each other."""
        if self.hub is None and self.target_source().kind != "local":
            yield ("hub", f"{self.name} is not on the Hub; give data.local_dir=FOLDER with train.jsonl and test.jsonl")
        if self.test_share is not None and self.local_dir is None:
            yield "test_share", "is for local files; give data.local_dir=FOLDER_OR_FILE, or omit it"

    def as_task(self) -> Task:
        """Return the target without the settings that all tasks share."""
        # Only what was set: defaults would appear in saved configurations and in comparisons of them.
        return Task(**self.model_dump(include=set(Task.model_fields), exclude_unset=True))

    def with_task(self, task: Task) -> DataConfig:
        """Return the section with another target and the same shared settings."""
        shared = self.model_dump(exclude=set(Task.model_fields), exclude_unset=True)
        return DataConfig(**task.model_dump(exclude_unset=True), **shared)

    def target_source(self) -> DataSource:
        """Return the source of the target: the local folder, else the mirror, else `source`."""
        if self.local_dir is not None:
            return DataSource(kind="local", path=self.local_dir, test_share=self.test_share)
        if self.mirror_dir is not None:
            return DataSource(kind="mirror", path=self.mirror_dir)
        return DataSource(kind=self.source)

    def forgetting_source(self, backbone: BackboneConfig) -> DataSource:
        """Return the source of all other tasks; a local folder has the target only."""
        if self.mirror_dir is not None:
            return DataSource(kind="mirror", path=self.mirror_dir)
        explicit = self.source in ("hub", "miniature")
        return DataSource(kind=self.source if explicit else backbone.default_data_source)


class GateConfig(ComponentConfig):
    """The gate; only the shipped class is limited to these arguments."""

    pooling: Literal["mean", "max", "last"]
    inputs: list[GateInput] = Field(default=[])
    rank: Count | None = None
    granularity: Literal["vector", "scalar"] = "vector"
    bias: float | None = None
    init_value: Annotated[float, Field(ge=0, le=1)] | None = None
    query_share: Probability | None = None
    min_original_weight: Probability = 0.0
    dropout: Probability = 0.0
    output_dropout: Probability = 0.0
    trainable: bool = True
    loss: Literal["lm", "route", "route_kl"] = "lm"
    """What trains the gate: the training loss, the route loss, or one after the other."""
    skip: bool = False
    """Whether a query whose gate is decided continues with one stream."""
    skip_threshold: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """Distance from 0 or 1 below which the gate is decided."""

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of the gate, without defaults."""
        # A default that is passed explicitly would become part of the run's identity and rename old runs.
        excluded = {"name", "target", "pooling", "loss", "skip", "skip_threshold"}
        excluded |= set() if self.output_dropout else {"output_dropout"}
        return self.model_dump(exclude=excluded, exclude_unset=True)

    def check(self) -> Iterator[tuple[str, str]]:
        """Yield (field, problem) for arguments of the shipped gate that contradict each other."""
        if not self.skip and self.skip_threshold != GateConfig.model_fields["skip_threshold"].default:
            yield "skip_threshold", "has no effect without gate.skip; set gate.skip=true as well"
        if self.target != SHIPPED_GATE:
            return
        if len(set(self.inputs)) < len(self.inputs):
            yield "inputs", "an input is repeated; list each input once"
        if self.inputs and self.rank is None:
            yield "rank", "a gate with inputs needs a rank; gate.rank=8 is the paper's"
        if not self.inputs and self.rank is not None:
            yield "rank", f"gate={self.name} has no inputs, so it has no rank; omit gate.rank, or choose gate=query"
        if self.inputs and not self.trainable:
            problem = "a gate with inputs has random weights until it is trained"
            yield "trainable", f"{problem}; choose gate=no_gate for a gate that is not trained"
        if self.init_value is not None and (self.inputs or self.bias is not None):
            problem = "only a gate without inputs and without a bias has an initial value"
            yield "init_value", f"{problem}; set gate.bias for a gate with inputs, or choose gate=constant"
        # The gate learns a logit, which is infinite at 0 and 1.
        elif self.init_value in (0, 1) and self.trainable:
            problem = "a trained gate cannot leave 0 or 1"
            yield "init_value", f"{problem}; choose a value between them, or gate=constant"
        if self.query_share is not None and set(self.inputs) not in ({"original"}, {"tuned"}, {"original", "tuned"}):
            problem = "the query is added to the hidden states of the streams"
            fix = "choose gate.inputs=[original], [tuned] or both, or gate=additive"
            yield "query_share", f"{problem}; {fix}"


class MethodConfig(StrictModel):
    """The compared method: which stream generates, and whether anything is trained."""

    name: PathName
    stream: Literal["original", "tuned", "interwoven"]
    trainable: bool
    recipes: dict[str, dict[str, Any]] = Field(default={})
    """Values that a recipe (the option of trainer) sets for this method."""

    def check(self) -> Iterator[tuple[str, str]]:
        """Yield (field, problem) for fields that contradict each other."""
        if self.trainable == (self.stream == "original"):
            needed = "false" if self.trainable else "true"
            fix = "choose method=original, peft or imsm"
            yield "trainable", f"the {self.stream} stream needs method.trainable={needed}; {fix}"


class TrainerConfig(StrictModel):
    """Optimization, checkpoints and regularization."""

    name: PathName
    optimizer: Literal["adamw", "adafactor"]
    learning_rate: LearningRate
    gate_learning_rate: LearningRate | None
    lr_scheduler_type: Literal["cosine", "linear", "constant_with_warmup"]
    warmup_ratio: Probability
    weight_decay: NotNegative
    max_grad_norm: Positive | None
    num_epochs: Count
    global_batch_size: Count
    micro_batch_size: Count | None
    micro_batch_tokens: Count | None = None
    """Tokens of a micro-batch, padding included, in place of its size."""
    packing: bool = False
    """Whether the examples of a micro-batch are concatenated in one row."""
    group_by_length: bool = False
    gradient_checkpointing: bool
    save_minutes: Positive
    save_steps: Count | None
    save_total_limit: Count
    validation_size: Count | None = None
    metric_for_best_model: Literal["validation_loss", "retention"] | None = None
    min_target: Annotated[float, Field(ge=0, le=100)] | None = None
    watch_items: Count | None = None
    kl_beta: Positive | None = None
    kl_mask_target: bool = False
    token_weight: Literal["none", "dft", "eaft", "infosft"] = "none"
    loss_reduction: Literal["tokens", "micro_batches"] = "tokens"
    carry_over: bool = False
    warmup_rounding: Literal["up", "down"] = "up"
    truncation: Literal["context", "right"] = "context"
    max_prompt_tokens: Count | None = None
    max_answer_tokens: Count | None = None
    mixed_precision: Literal["fp16"] | None = None
    adapter_precision: Literal["float32", "backbone"] = "float32"
    """Precision of the products with LoRA's matrices in training; the matrices stay in float32."""
    compile_layers: bool = False
    """Whether decoder layers are compiled for training."""
    liger_kernel: bool = False
    """Whether training runs norms and MLPs as Liger's fused kernels."""
    deterministic: bool = False
    """Whether gradients are computed with deterministic algorithms, for equal bits on the same GPU."""
    method_specific_keys: list[str] = Field(default=[])

    def check(self) -> Iterator[tuple[str, str]]:
        """Yield (field, problem) for fields that contradict each other."""
        size, micro = self.global_batch_size, self.micro_batch_size
        if micro is not None and size % micro:
            divisor = max(n for n in range(1, micro) if size % n == 0)
            problem = f"must be a multiple of trainer.micro_batch_size={micro}"
            yield "global_batch_size", f"{problem}; set trainer.micro_batch_size={divisor}"
        if self.metric_for_best_model is not None and self.save_steps is None:
            yield "metric_for_best_model", "compares checkpoints at fixed steps; set trainer.save_steps as well"
        if self.metric_for_best_model is not None and self.validation_size is None:
            yield "metric_for_best_model", "needs validation examples; set trainer.validation_size as well"
        needed = {"min_target": (self.min_target, "60"), "watch_items": (self.watch_items, "32")}
        for key, (value, example) in needed.items() if self.metric_for_best_model == "retention" else ():
            if value is None:
                yield "metric_for_best_model", f"needs a value for trainer.{key}; set trainer.{key}={example} as well"
        if self.min_target is not None and self.metric_for_best_model != "retention":
            fix = "set trainer.metric_for_best_model=retention as well"
            yield "min_target", f"is the floor of the selection by retention; {fix}"
        if self.carry_over and self.loss_reduction != "micro_batches":
            yield "carry_over", "carries micro-batches over; set trainer.loss_reduction=micro_batches as well"
        if self.loss_reduction == "micro_batches" and micro is None:
            yield "loss_reduction", "needs the size of a micro-batch; set trainer.micro_batch_size as well"
        if self.micro_batch_tokens is not None and self.loss_reduction == "micro_batches":
            fix = "set trainer.loss_reduction=tokens, or omit it"
            yield "micro_batch_tokens", f"would change a loss that is a mean over micro-batches; {fix}"
        if self.packing and self.micro_batch_tokens is None:
            yield "packing", "needs the length of a packed row; set trainer.micro_batch_tokens=4096 as well"
        if self.kl_mask_target and self.kl_beta is None:
            yield "kl_mask_target", "has no effect without the KL term; set trainer.kl_beta as well"


class EvaluationConfig(StrictModel):
    """The evaluated tasks, the number of examples, and the protocol."""

    protocol: Literal["strict", "paper_code"] = "strict"
    tasks: list[PathName] = Field(min_length=1)
    limit: Count | None
    limit_by_task: dict[str, Count] | None
    batch_size: Count | None
    """Prompts per forward pass; None: 16 on a CPU, by free memory on a GPU."""
    checkpoints: bool = False
    """Whether the models at each `trainer.save_steps` are evaluated, too."""
    kl: bool = False
    """Whether a trained model's KL divergence from the original is computed."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """What generates the responses; vLLM in its own environment (IMSM_VLLM_PYTHON)."""
    static_cache: bool = False
    """Whether responses are decoded with caches of fixed length, on a GPU as a CUDA graph."""

    def check(self) -> Iterator[tuple[str, str]]:
        """Yield (field, problem) for fields that contradict each other."""
        for name in dict.fromkeys(name for name in self.tasks if self.tasks.count(name) > 1):
            yield "tasks", f"{name} is named twice; name each task once"
        if self.static_cache and self.backend == "vllm":
            yield "static_cache", "is of evaluation.backend=transformers; omit it with vllm"

    @field_validator("batch_size", mode="before", json_schema_input_type=Count | Literal["auto"] | None)
    @classmethod
    def _none_if_auto(cls, value: Any) -> Any:
        return None if value == "auto" else value

    @property
    def fixed_batch_size(self) -> int:
        """The batch size where it is not chosen by free memory."""
        return self.batch_size or CPU_BATCH_SIZE

    def limit_of(self, task: str) -> int | None:
        """Return the number of evaluated examples of a task, or None for all."""
        return (self.limit_by_task or {}).get(task, self.limit)


class LoggerConfig(StrictModel):
    """The tracking services that mirror the local log; several options of this group are merged."""

    name: Literal["none", "wandb", "trackio", "tensorboard"]
    """The last of the selected options."""
    services: dict[TrackingService, bool] = Field(default={})
    project: str | None
    entity: str | None
    mode: Literal["auto", "online", "offline"]
    init_timeout: Positive
    space_id: Text | None = None
    """Hugging Face Space that Trackio logs to; None: this machine."""

    def check(self) -> Iterator[tuple[str, str]]:
        """Yield (field, problem) for fields that contradict each other."""
        if self.services and self.name not in self.services:
            yield "name", f"is not one of {', '.join(self.services)}; select options of the group: logger={self.name}"

    def selected(self) -> list[str]:
        """Return the names of the services, in the order of their selection."""
        # results of earlier versions and custom options may have the name alone
        names = [name for name, used in self.services.items() if used] if self.services else [self.name]
        return [name for name in names if name != "none"]


class EngineConfig(StrictModel):
    """The training backend and its processes."""

    name: PathName
    stage: Literal[0, 1, 2, 3] | None
    """ZeRO stage; 0: one process without DeepSpeed; None: chosen by the number of GPUs."""
    offload: bool
    fsdp2: bool = False
    """Whether the decoder layers are sharded over the processes with torch's FSDP2, from loading on."""
    device: Literal["auto", "cpu", "cuda"]
    nproc_per_node: Count | None
    nnodes: Count
    hostfile: str | None
    collective_timeout_minutes: Positive
    reduce_bucket_size: Count
    prefetch_bucket_size: Count
    max_live_parameters: Count

    def check(self) -> Iterator[tuple[str, str]]:
        """Yield (field, problem) for fields that contradict each other."""
        if self.hostfile is not None and self.nnodes == 1:
            yield "hostfile", "is for several nodes; set engine.nnodes as well, or omit it"
        if self.fsdp2 and (self.stage != 0 or self.offload):
            yield "fsdp2", "is an engine without ZeRO; set engine=fsdp2, or omit it"


class PreviousStageConfig(StrictModel):
    """The stage of a task sequence that a run continues from."""

    run: PathName
    tasks: list[PathName] = Field(min_length=1)
    """Tasks trained on so far, in order."""
    identity: dict[str, Any]
    """Its `run_identity`, which includes the stages before it."""


class FrozenAdapterConfig(StrictModel):
    """The finished run whose adapter is used frozen."""

    tasks: list[PathName]
    """Tasks that the adapter was trained on, in order; unknown, hence empty, for an imported adapter."""
    identity: dict[str, Any]


class ImportedConfig(StrictModel):
    """An adapter that was trained elsewhere; the run evaluates it and trains nothing."""

    source: Text
    """Folder or Hub id that it was imported from."""
    target: PathName | None
    """Task that counts as the target; None: every task is a forgetting test."""


class RunConfig(StrictModel):
    """The configuration of one run, with the tasks and metrics that it names."""

    mode: Literal["run", "evaluate", "plan", "download"]
    # NumPy accepts only 32-bit seeds.
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    run_dir: Text | None
    resume: Text
    hidden_state_cache: Literal["auto", "disk", "ram", "off"] = "auto"
    """Where the original model's hidden states of the training examples are cached."""
    hidden_state_cache_gb: Positive = 32.0
    """Size limit in GB of all caches on disk, or of the one in RAM."""
    task_sequence: list[PathName] | None = None
    """Tasks to train on one after the other (`imsm.config.stages`); None: the target only."""
    frozen_adapter: Text | None = None
    """Run directory whose adapter is used frozen, so that only the gate is trained; None: train both."""
    backbone: BackboneConfig
    peft: PeftConfig
    data: DataConfig
    gate: GateConfig
    method: MethodConfig
    trainer: TrainerConfig
    rehearsal: RehearsalConfig = RehearsalConfig()
    evaluation: EvaluationConfig
    logger: LoggerConfig
    engine: EngineConfig
    # Set by imsm.config.validate and stages; saved, so that results can be loaded after the yamls have changed.
    tasks: dict[PathName, Task] = Field(default={})
    """The evaluated tasks by name, including the target."""
    replay_tasks: dict[PathName, Task] = Field(default={})
    """Tasks that replay and rehearsal name."""
    prompts_hash: str | None = None
    """SHA-256 of the file that `rehearsal.prompts` names."""
    stage_tasks: dict[PathName, Task] = Field(default={})
    previous_stage: PreviousStageConfig | None = None
    frozen_run: FrozenAdapterConfig | None = None
    imported: ImportedConfig | None = None
    metrics: dict[str, str] = Field(default={})
    """Modules of the tasks' metrics by name."""
    config_dir: str | None = None
    """Folder with custom options (`--config-dir`)."""

    @property
    def is_imported(self) -> bool:
        """Whether the run's adapter was trained elsewhere; the original of such a run has no adapter."""
        return self.imported is not None and self.method.trainable

    @property
    def target(self) -> str | None:
        """Name of the target task; None for an imported adapter without one."""
        return self.imported.target if self.imported is not None else self.data.name

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types, as saved in `result.json`."""
        # Unset fields stay unset when loaded again, so that the run's identity and name are the same.
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, config_dir: Path | None = None) -> RunConfig:
        """Load the result of `to_dict`, without looking up tasks or files again.

        ``config_dir`` is the folder given by `--config-dir` on this command line; the saved one is not used, because
        its modules would be imported. A configuration that is more than compared is loaded by `from_file`.
        """
        return cls.model_validate({**values, "config_dir": None if config_dir is None else str(config_dir)})

    @classmethod
    def from_file(cls, values: Mapping[str, Any], *, source: Path, config_dir: Path | None = None) -> RunConfig:
        """Load a configuration that the file ``source`` contains; see `from_dict`.

        Raises:
            UserError: It is invalid, or names a module that is not trusted (`imsm.utils.trust`).
        """
        try:
            config = cls.from_dict(values, config_dir=config_dir)
        except (TypeError, ValidationError) as error:
            raise UserError(
                f"{source}: its configuration is damaged or of another version of imsm; run the same command again"
            ) from error
        for key, name, package in config._module_names():
            check_trusted(name, within=package, key=f"config.{key}", source=source)
        return config

    def _module_names(self) -> Iterator[tuple[str, str, str]]:
        """Yield key, value and package of everything that is imported by name."""
        if not self.peft.target.startswith("peft."):  # an attribute of PEFT is not imported
            yield "peft._target_", self.peft.target, trust.ADAPTERS
        if self.backbone.local_resolver is not None:
            yield "backbone.local_resolver", self.backbone.local_resolver, trust.RESOLVERS
        yield "gate._target_", self.gate.target, trust.GATES
        yield "data.module", self.data.module, trust.TASKS
        for key in ("tasks", "replay_tasks", "stage_tasks"):
            for name, task in getattr(self, key).items():
                yield f"{key}.{name}.module", task.module, trust.TASKS
        for name, module in self.metrics.items():
            yield f"metrics.{name}", module, trust.METRICS
