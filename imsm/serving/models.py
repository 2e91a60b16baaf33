"""The models that a server answers with: the streams of finished runs, and their baselines.

A model's name is ``RUN:STREAM``, or ``RUN:BASELINE:VALUE``; ``RUN`` alone is the stream of the run's method.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.skip import CHOICES
from imsm.models.siamese.streams import STREAMS, Stream
from imsm.serving.engine import Model
from imsm.studies.baselines.base import BaselineInfo
from imsm.studies.baselines.evaluate import BaselineRun, baseline_fingerprint, call_hook
from imsm.studies.baselines.finished_run import FinishedRun, load_finished_run
from imsm.studies.baselines.logit_mixing import derive_model
from imsm.studies.baselines.registry import list_baselines, load_baseline
from imsm.utils.errors import UserError

MAX_BASELINES = 8
"""Baseline models kept for each run; each is a view of the run's weights."""


@dataclass(frozen=True)
class ModelCard:
    """What is known of a model without building it.

    Attributes:
        id: Its name in requests.
        run: Name of the run.
        stream: The stream that answers.
        baseline: Name of the baseline; None for a stream of the run.
        value: The baseline's value.
        fingerprint: SHA-256 of everything that the answers depend on.
        passes: Streams that are run for each token.
    """

    id: str
    run: str
    stream: str
    baseline: str | None
    value: float | None
    fingerprint: str
    passes: int


class ServedRun:
    """A finished run, loaded; its streams and baselines are views of the same weights.

    Raises:
        UserError: the folder has no finished run with an adapter.
    """

    def __init__(self, folder: Path) -> None:
        self.run: FinishedRun = load_finished_run(folder, option="RUN")
        self.name = self.run.folder.name
        base = self.run.model()
        self._streams = {stream: self._view(base, stream) for stream in base.available_streams()}
        self._baselines: OrderedDict[str, Model] = OrderedDict()

    @cached_property
    def backbone(self) -> str:
        """Name of the backbone."""
        return self.run.config.backbone.name

    @property
    def chat(self) -> bool:
        """Whether the run's prompts are in the tokenizer's chat template."""
        return self.run.config.data.chat_template

    @property
    def default_id(self) -> str:
        """Name of the model that the run's method evaluates."""
        return f"{self.name}:{self.run.config.method.stream}"

    def cards(self) -> list[ModelCard]:
        """Return the streams of the run."""
        return [self._stream_card(stream) for stream in self._streams]

    def baselines(self) -> list[dict[str, Any]]:
        """Return the baselines that can be served: {name, symbol, low, high, grid, meaning}."""
        infos = [load_baseline(name).INFO for name in list_baselines() if self._problem(name) is None]
        keys = ("name", "symbol", "low", "high", "grid", "meaning")
        return [{key: getattr(info, key) for key in keys} for info in infos if info.symbol]

    def card(self, rest: str) -> ModelCard:
        """Return the card of the model ``rest``, the part of a name after the run.

        Raises:
            UserError: no such stream or baseline, or a value outside its range.
        """
        if rest in STREAMS and rest in self._streams:
            return self._stream_card(rest)
        name, _, text = rest.partition(":")
        if problem := self._problem(name):
            raise UserError(problem)
        info = load_baseline(name).INFO
        value = _value(info, text)
        baseline_run = BaselineRun(load_baseline(name), value)
        fingerprint = baseline_fingerprint(baseline_run, self.run)
        passes = 1 if info.stream != "interwoven" else 2
        return ModelCard(f"{self.name}:{rest}", self.name, info.stream, name, value, fingerprint, passes)

    def model(self, card: ModelCard) -> Model:
        """Return the model of a card, built on first use.

        Raises:
            UserError: the baseline does not apply to the run.
        """
        if card.baseline is None:
            return self._streams[cast("Stream", card.stream)]
        if card.id not in self._baselines:
            built: SiameseForCausalLM = cast(Any, load_baseline(card.baseline)).build_model(self.run, card.value)
            built.stream = card.stream  # type: ignore[assignment]
            self._baselines[card.id] = Model(name=card.id, model=built, tokenizer=self.run.tokenizer)
            if len(self._baselines) > MAX_BASELINES:
                self._baselines.popitem(last=False)
        self._baselines.move_to_end(card.id)
        return self._baselines[card.id]

    def _view(self, base: SiameseForCausalLM, stream: str, *, skip: bool = True) -> Model:
        view = derive_model(base, SiameseForCausalLM, stream=stream, gate=base.gate)
        view.streams.copy_capabilities(base.streams)
        name, tokenizer = f"{self.name}:{stream}", self.run.tokenizer
        if not skip or stream != "interwoven" or base.skip_threshold is None:
            return Model(name=name, model=view, tokenizer=tokenizer)
        view.skip_threshold = base.skip_threshold
        targets = {"both": self._view(base, stream, skip=False)}
        targets |= {choice: self._view(base, choice) for choice in CHOICES if choice != "both"}
        return Model(name=name, model=view, tokenizer=tokenizer, continued_by=targets)

    def _stream_card(self, stream: str) -> ModelCard:
        passes = 2 if stream == "interwoven" else 1
        return ModelCard(f"{self.name}:{stream}", self.name, stream, None, None, self.run.fingerprint(stream), passes)

    def _problem(self, name: str) -> str | None:
        """Return why a baseline cannot be served, or None."""
        if name not in list_baselines():
            choices = ", ".join([*self._streams, *(info["name"] for info in self.baselines())])
            return f"{name}: no such stream or baseline of {self.name}; choose from {choices}"
        baseline: Any = load_baseline(name)
        if not hasattr(baseline, "build_model"):
            return f"{name}: routes the prompts of a test, not a single one; evaluate it with imsm baselines"
        try:
            call_hook(baseline, "check", self.run, None)
        except UserError as error:
            return str(error)
        return None


class ServedModels:
    """The runs of a server.

    Raises:
        UserError: a run cannot be loaded, or two have one name.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.runs: dict[str, ServedRun] = {}
        for folder in folders:
            run = ServedRun(folder)
            if run.name in self.runs:
                raise UserError(f"RUN {folder}: another run named {run.name} is given; serve one of them")
            self.runs[run.name] = run

    def card(self, name: str) -> tuple[ServedRun, ModelCard]:
        """Return a model's run and card.

        Raises:
            UserError: no such model.
        """
        # the longest match, because a folder's name may contain a colon
        found = [run for run in self.runs if name == run or name.startswith(f"{run}:")]
        if not found:
            raise UserError(f"model={name[:200]}: not served; choose from {', '.join(self.names())}")
        run = self.runs[max(found, key=len)]
        rest = name[len(run.name) + 1 :]
        return run, run.card(rest or run.run.config.method.stream)

    def names(self) -> list[str]:
        """Return the names of all streams."""
        return [card.id for run in self.runs.values() for card in run.cards()]


def _value(info: BaselineInfo, text: str) -> float | None:
    if not info.symbol:
        if text:
            raise UserError(f"{info.name}:{text[:50]}: has no value; use {info.name}")
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not info.low <= value <= info.high:
        example = info.grid[0] if info.grid else (info.low + info.high) / 2
        raise UserError(
            f"{info.name}:{text[:50]}: needs a value from {info.low:g} to {info.high:g}; for example "
            f"{info.name}:{example:g}"
        )
    return value
