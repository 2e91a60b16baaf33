"""A finished run as the baselines use it: its model, evaluation sets and cached responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas
import torch
from transformers import PreTrainedTokenizerBase

from imsm.config.identity import identity_without_seed, run_identity
from imsm.config.schema import RunConfig
from imsm.distributed.context import DistributedContext
from imsm.evaluation.eval_set import EvalSet
from imsm.evaluation.inference import GetModel, run_inference
from imsm.evaluation.predictions import read_predictions
from imsm.evaluation.response_cache import ResponseCache, Row
from imsm.evaluation.result import FILE as RESULT
from imsm.evaluation.result import read_result
from imsm.models.backbones.fingerprint import backbone_fingerprint
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.data import load_eval_sets, load_run_tokenizer
from imsm.pipeline.engine import local_device
from imsm.pipeline.model import inference_settings, load_run_model, model_hash
from imsm.utils.dicts import diff_dicts
from imsm.utils.errors import UserError
from imsm.utils.manifest import verify_run_model
from imsm.utils.messages import format_value
from imsm.utils.paths import check_links, runs_root
from imsm.utils.run_dir import RunDir, check_input_hashes, read_input_hashes

_MAX_DIFFERENCES = 3
"""Number of settings listed when two runs differ."""
Responses = tuple[list[Row], list[Row | None]]
"""A task's response rows and likelihood rows of its references, as returned by `run_inference`."""


@dataclass(frozen=True, eq=False)  # hashable by identity, for lru_cache
class FinishedRun:
    """A run directory, opened by `load_finished_run`; ``other`` is the same run with another seed."""

    folder: Path
    config: RunConfig
    result: dict[str, Any]
    other: FinishedRun | None = None
    # Containers, because a frozen dataclass cannot assign what is loaded later.
    _models: list[SiameseForCausalLM] = field(default_factory=list)
    _responses: dict[tuple[str, str], Responses] = field(default_factory=dict)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer."""
        return load_run_tokenizer(self.config)

    @cached_property
    def eval_sets(self) -> dict[str, EvalSet]:
        """The run's evaluation sets by task."""
        return load_eval_sets(self.config, self.tokenizer)

    @cached_property
    def device(self) -> torch.device:
        """Device of the run's model."""
        return local_device(self.config, DistributedContext())

    def model(self) -> SiameseForCausalLM:
        """Return the run's model, loaded once."""
        if not self._models:
            self._models.append(load_run_model(self.config, RunDir(self.folder), device=self.device))
        return self._models[0]

    def predictions(self) -> dict[str, pandas.DataFrame]:
        """Return the run's own predictions by task.

        Raises:
            UserError: A file is missing or damaged.
        """
        return {
            task: read_predictions(
                self.folder,
                task=task,
                test_set=eval_set.fingerprint,
                sha256=self.result["evaluation"]["tasks"].get(task, {}).get("predictions_sha256"),
            )
            for task, eval_set in self.eval_sets.items()
        }

    def fingerprint(self, stream: str) -> str:
        """Return the model hash of a stream; only that of the "interwoven" one includes the gate."""
        files = None if stream == "original" else self._files
        return model_hash(stream, backbone_hash=self._backbone_hash, settings=self._settings, files=files)

    @cached_property
    def _files(self) -> dict[str, str]:
        return verify_run_model(RunDir(self.folder))

    @cached_property
    def _settings(self) -> dict[str, str]:
        return inference_settings(self.config, device=self.device)

    @cached_property
    def _backbone_hash(self) -> str:
        return read_input_hashes(RunDir(self.folder))["backbone"]

    def responses(self, task: str, stream: str) -> Responses:
        """Return the responses of the original or the tuned stream, from the cache if they are there."""
        key = (task, stream)
        if key not in self._responses:
            fingerprint, label = self.fingerprint(stream), f"{stream}: {task}"
            self._responses[key] = self.run_inference(
                task, get_model=self.model, stream=stream, fingerprint=fingerprint, label=label
            )
        return self._responses[key]

    def run_inference(self, task: str, *, get_model: GetModel, stream: str, fingerprint: str, label: str) -> Responses:
        """Run a stream of a model on a task, for uncached responses only."""
        return run_inference(
            self.eval_sets[task],
            get_model=get_model,
            stream=stream,
            tokenizer=self.tokenizer,
            fingerprint=fingerprint,
            # Of this user, not the one next to the run: a downloaded cache could hold any response.
            response_cache=ResponseCache(runs_root() / "response_cache", fingerprint=fingerprint),
            batch_size=self.config.evaluation.batch_size,
            label=label,
            dist_context=DistributedContext(),
            static_cache=self.config.evaluation.static_cache,
        )

    def route(self, task: str, to_original: Sequence[bool]) -> Responses:
        """Take each example's response from the original (True; its gate is 1) or the tuned stream."""
        # Indexed by the choice: False is the tuned stream, True the original.
        sources = [self.responses(task, stream) for stream in ("tuned", "original")]
        rows: list[Row] = [
            {**sources[choice][0][index], "gate_mean": float(choice), "gate_per_token": None, "token_texts": None}
            for index, choice in enumerate(to_original)
        ]
        return rows, [sources[choice][1][index] for index, choice in enumerate(to_original)]


def load_finished_run(folder: Path, *, option: str, other: FinishedRun | None = None) -> FinishedRun:
    """Open a run directory; ``option`` is the command-line argument that names it, for messages.

    Raises:
        UserError: The folder does not contain a finished run with an adapter, the backbone has changed,
            or the second run ``other`` differs in more than its seed.
    """
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"{option} {folder}: is not a directory; give the directory of a run")
    check_links(folder)
    result = read_result(folder)
    if result["method"] == "original":
        raise UserError(f"{option} {folder}: has no adapter; give a finished run of method=peft or method=imsm")
    if not (run := RunDir(folder)).is_trained:
        raise UserError(f"{option} {folder}: its {run.trained.name} is missing; run its command again to train it")
    config = RunConfig.from_file(result["config"], source=folder / RESULT)
    backbone = config.backbone
    backbone_hash = backbone_fingerprint(
        name_or_path=backbone.name_or_path, revision=backbone.revision, local_resolver=backbone.local_resolver
    )
    check_input_hashes(RunDir(folder), {"backbone": backbone_hash})
    if other is not None:
        _check_differs_in_seed(config, other, folder)
    return FinishedRun(folder, config, result, other)


def _check_differs_in_seed(config: RunConfig, other: FinishedRun, folder: Path) -> None:
    if other.folder == folder:
        raise UserError(f"--other {folder}: is the run itself; give a run with another seed")
    other_identity, identity = (identity_without_seed(run_identity(each)) for each in (other.config, config))
    differences = [
        f"{key} is {format_value(one)}, not {format_value(two)}"
        for key, (one, two) in diff_dicts(other_identity, identity).items()
    ]
    if differences:
        hidden = len(differences) - _MAX_DIFFERENCES
        more = f" (and {hidden} more)" if hidden > 0 else ""
        raise UserError(
            f"--other {other.folder}: its {'; its '.join(differences[:_MAX_DIFFERENCES])}{more} as in {folder}; "
            "give a run that differs in its seed only"
        )
