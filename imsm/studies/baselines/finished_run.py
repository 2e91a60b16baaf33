"""A finished run as controls see it: its adapter, its tests, and what its streams answered."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from imsm.config.identity import identity_without_seed, run_identity
from imsm.config.schema import RunConfig
from imsm.data.chat_template import use_chat_template
from imsm.distributed.context import DistributedContext
from imsm.evaluation.inference import run_inference
from imsm.evaluation.predictions import read_predictions
from imsm.evaluation.response_cache import ResponseCache, Row
from imsm.evaluation.result import read_result
from imsm.models.backbones.fingerprint import backbone_fingerprint
from imsm.models.backbones.loading import load_tokenizer
from imsm.models.serialization import ADAPTER
from imsm.pipeline.data import load_eval_sets
from imsm.pipeline.engine import local_device
from imsm.pipeline.model import load_run_model, model_hash, weight_hashes
from imsm.utils.dicts import diff_dicts
from imsm.utils.errors import UserError
from imsm.utils.messages import format_value
from imsm.utils.paths import runs_root
from imsm.utils.run_dir import RunDir, check_input_hashes

if TYPE_CHECKING:
    import pandas
    from transformers import PreTrainedTokenizerBase

    from imsm.evaluation.eval_set import EvalSet
    from imsm.evaluation.inference import GetModel
    from imsm.models.siamese.model import SiameseForCausalLM

_NAMED = 3
"""Of the choices in which two runs differ."""
Responses = tuple[list[Row], list["Row | None"]]
"""Of a task's items: what was answered, and how likely the accepted answers were."""


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """Opened by `open_finished`.

    Attributes:
        folder: of the run.
        config: the run's.
        result: its `result.json`.
        other: the same run at another seed (--with), or None.
    """

    folder: Path
    config: RunConfig
    result: dict[str, Any]
    other: FinishedRun | None = None
    _models: list[SiameseForCausalLM] = field(default_factory=list)
    _answers: dict[tuple[str, str], Responses] = field(default_factory=dict)

    @cached_property
    def runs_root(self) -> Path:
        """Under which the run, the original and the ledgers lie."""
        return runs_root() if self.config.run_dir else self.folder.parent

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's."""
        backbone = self.config.backbone
        found = load_tokenizer(
            name_or_path=backbone.name_or_path, revision=backbone.revision, local_resolver=backbone.local_resolver
        )
        if self.config.data.chat_template:
            use_chat_template(found)
        return found

    @cached_property
    def eval_sets(self) -> dict[str, EvalSet]:
        """The tasks that judged the run."""
        return load_eval_sets(self.config, self.tokenizer)

    def model(self) -> SiameseForCausalLM:
        """The run's model; loaded once."""
        if not self._models:
            device = local_device(self.config, DistributedContext())
            self._models.append(load_run_model(self.config, RunDir(self.folder), device=device))
        return self._models[0]

    def predictions(self) -> dict[str, pandas.DataFrame]:
        """The run's own items by task.

        Raises:
            UserError: there are none, or they are damaged.
        """
        return {
            task: read_predictions(self.folder, task=task, test_set=test.fingerprint) for task, test in self.eval_sets.items()
        }

    def fingerprint(self, stream: str) -> str:
        """Identifies the "original" or the "tuned" stream: to the tuned one the gate is nothing."""
        digests = self._adapter if stream == "tuned" else ()
        return model_hash(self.config, stream, backbone_hash=self._weights, trained_hashes=digests)

    @cached_property
    def _adapter(self) -> list[list[str]]:
        digests = weight_hashes(RunDir(self.folder).model)
        return [each for each in digests if Path(each[0]).parts[0] == ADAPTER]

    @cached_property
    def _weights(self) -> str:
        inputs = json.loads(RunDir(self.folder).inputs.read_text(encoding="utf-8"))
        return str(inputs["backbone"])

    def responses(self, task: str, stream: str) -> Responses:
        """What the original or the tuned stream answered; asked if the ledger lacks it."""
        key = (task, stream)
        if key not in self._answers:
            self._answers[key] = self.run_inference(
                task, model=self.model, stream=stream, fingerprint=self.fingerprint(stream), label=f"{stream}: {task}"
            )
        return self._answers[key]

    def run_inference(self, task: str, *, model: GetModel, stream: str, fingerprint: str, label: str) -> Responses:
        """What a stream of a model answers to a task; only what the ledger lacks is asked."""
        return run_inference(
            self.eval_sets[task],
            get_model=model,
            stream=stream,
            tokenizer=self.tokenizer,
            fingerprint=fingerprint,
            response_cache=ResponseCache(self.runs_root / "response_cache", fingerprint=fingerprint),
            batch_size=self.config.evaluation.batch_size,
            label=label,
            dist_context=DistributedContext(),
        )

    def route(self, task: str, of_original: Sequence[bool]) -> Responses:
        """Of each item the original's answer (True: its gate is 1) or the tuned stream's."""
        sources = [self.responses(task, stream) for stream in ("tuned", "original")]
        rows = [sources[first][0][place] for place, first in enumerate(of_original)]
        golds = [sources[first][1][place] for place, first in enumerate(of_original)]
        shares = [{"gate_mean": float(first), "gate_per_token": None, "token_texts": None} for first in of_original]
        return [{**row, **share} for row, share in zip(rows, shares, strict=True)], golds


def load_finished_run(folder: Path, *, option: str, other: FinishedRun | None = None) -> FinishedRun:
    """Read a run's folder.

    Args:
        folder: of the run.
        option: of the command line, for the messages.
        other: a second run.

    Raises:
        UserError: it holds no finished run with an adapter, the backbone is another one now, or
            the second run differs in more than its seed.
    """
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"{option} {folder}: there is no such folder; give the folder of a run")
    result = read_result(folder)
    if result["method"] == "original" or not RunDir(folder).trained.is_file():
        raise UserError(
            f"{option} {folder}: has no adapter; give the folder of a finished run of method=peft or method=imsm"
        )
    try:
        config = RunConfig.from_dict(result["config"])
    except ValidationError as error:
        raise UserError(
            f"{option} {folder}: its configuration is of another version of imsm; give the run's command again"
        ) from error
    if config.config_dir is not None and config.config_dir not in sys.path:
        sys.path.insert(0, config.config_dir)
    backbone = config.backbone
    weights = backbone_fingerprint(
        name_or_path=backbone.name_or_path, revision=backbone.revision, local_resolver=backbone.local_resolver
    )
    check_input_hashes(RunDir(folder), {"backbone": weights})
    if other is not None:
        _check_pair(config, other, folder)
    return FinishedRun(folder, config, result, other)


def _check_pair(config: RunConfig, other: FinishedRun, folder: Path) -> None:
    """The second run must be the first one at another seed."""
    if other.folder == folder:
        raise UserError(f"--with {folder}: is the run itself; give one of another seed")
    there, here = (identity_without_seed(run_identity(each)) for each in (other.config, config))
    found = [
        f"{key} is {format_value(one)}, not {format_value(two)}" for key, (one, two) in diff_dicts(there, here).items()
    ]
    if found:
        more = f" (and {len(found) - _NAMED} more)" if len(found) > _NAMED else ""
        raise UserError(
            f"--with {other.folder}: its {'; its '.join(found[:_NAMED])}{more} as in {folder}; "
            "give a run that differs from it in nothing but the seed"
        )
