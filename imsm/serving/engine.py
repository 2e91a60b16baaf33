"""Generate the answers of all requests in flight in common batches (continuous batching).

One thread owns the models. At every step it admits waiting requests, runs one forward pass for each model with
answers in flight, chooses a token for each row, and reports it. Requests for the same model share its passes and
its weights; the streams and baselines of one run share the run's weights.

    waiting --admit--> prefill --extend--> lane (rows of one model) --step--> token --> request.report
                                             rows leave when they end or their client leaves

A row's tokens do not depend on the other rows: prompts are padded on the left, and every answer has its own random
numbers. Where a backbone cannot be padded (virtual tokens, narrow attention windows), each request is a batch.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from imsm.evaluation.generation import eos_token_ids
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.skip import CHOICES
from imsm.models.siamese.token_details import MIN_LOGPROB, TokenDetails, token_details
from imsm.serving.answer_text import AnswerText
from imsm.serving.sampling import Sampling, choose_token
from imsm.utils.oom import is_out_of_memory

Result = TypeVar("Result")
MAX_ADMITTED = 8
"""Requests that are prefilled between two steps, so that running answers do not wait for long."""


@dataclass(frozen=True, kw_only=True)
class Logprob:
    """A token with its ln p under the model that answers."""

    token: int
    logprob: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """One token of an answer, or its end.

    Attributes:
        text: Text that can be shown now.
        token: The token's id; None if the request failed.
        token_text: What the token adds to the decoded answer.
        logprob: Its ln p, and the most likely tokens; None unless requested.
        top: The most likely tokens.
        details: What both streams predict; None unless requested.
        finish_reason: "stop" (EOS or a stop string) or "length"; None if more tokens follow.
        error: Why the request failed.
    """

    text: str = ""
    token: int | None = None
    token_text: str = ""
    logprob: float | None = None
    top: tuple[Logprob, ...] = ()
    details: TokenDetails | None = None
    finish_reason: str | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that answers: the object that computes, and what belongs to it.

    Attributes:
        name: Name in messages.
        model: The model, with its stream selected.
        tokenizer: The run's tokenizer.
        continued_by: With `skip_threshold`: the models that a decided query continues with, by choice.
    """

    name: str
    model: SiameseForCausalLM
    tokenizer: PreTrainedTokenizerBase
    continued_by: dict[str, Model] = field(default_factory=dict)


@dataclass(eq=False, kw_only=True)
class Request:
    """One answer to generate.

    Attributes:
        model: The model that answers.
        prompt: Token ids.
        max_tokens: Tokens to generate at most.
        report: Called with each step, in the engine's thread.
        sampling: How tokens are chosen.
        stop: Strings that end the answer.
        logprobs: Most likely tokens to report at each step; None: no ln p.
        details: Candidates of each stream to report at each step; None: no details.
        cancelled: Set to end the answer without a further report.
    """

    model: Model
    prompt: Sequence[int]
    max_tokens: int
    report: Callable[[Step], None]
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    logprobs: int | None = None
    details: int | None = None
    cancelled: bool = False


class QueueFullError(Exception):
    """The engine has no place for another request."""


@dataclass(eq=False)
class _Row:
    """A request in a batch."""

    request: Request
    text: AnswerText
    generator: torch.Generator
    eos: list[int]
    length: int = 0
    token: int = -1


@dataclass(eq=False)
class _Batch:
    """Rows of one model that are decoded together."""

    session: DecodingSession
    rows: list[_Row]


class Engine:
    """Runs requests until it is closed; use as a context manager.

    Args:
        max_batch: Answers in flight at once.
        max_waiting: Requests that may wait beyond these.

    Attributes:
        in_flight: Answers that are being generated.
    """

    def __init__(self, *, max_batch: int = 32, max_waiting: int = 128) -> None:
        self.max_batch, self.max_waiting = max_batch, max_waiting
        self._waiting: deque[Request] = deque()
        self._calls: list[Callable[[], None]] = []
        self._lanes: dict[tuple[int, bool], list[_Batch]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self.in_flight = 0
        self._thread = threading.Thread(target=self._run, name="imsm-engine", daemon=True)

    def __enter__(self) -> Engine:
        """Start the engine's thread."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread after its current step; unfinished requests are reported as failed."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            QueueFullError: `max_waiting` requests wait for a place already, or the engine is closed.
        """
        with self._changed:
            if self._closed or len(self._waiting) >= self.max_waiting:
                raise QueueFullError
            self._waiting.append(request)
            self._changed.notify()

    def _count(self) -> int:
        return sum(len(batch.rows) for batches in self._lanes.values() for batch in batches)

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """Run a function in the engine's thread, between two steps: the streams patch the layers that they share.

        Raises:
            QueueFullError: the engine is closed.
        """
        future: Future[Result] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            # of any type: the caller receives it
            except Exception as error:
                future.set_exception(error)

        with self._changed:
            if self._closed:
                raise QueueFullError
            self._calls.append(run)
            self._changed.notify()
        return future

    @property
    def waiting(self) -> int:
        """Number of requests that wait for a place."""
        return len(self._waiting)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._calls or self._waiting or self._lanes)
                if self._closed:
                    break
                calls, self._calls = self._calls, []
                admitted = self._admit()
                self.in_flight = self._count() + len(admitted)
            for call in calls:
                call()
            for requests in _by_lane(admitted).values():
                self._guarded(self._prefill, requests, requests)
            for lane, batches in list(self._lanes.items()):
                for batch in batches:
                    self._guarded(self._step, batch, [row.request for row in batch.rows])
                self._lanes[lane] = [batch for batch in batches if batch.rows]
                if not self._lanes[lane]:
                    del self._lanes[lane]
            self.in_flight = self._count()
        unfinished = [row.request for batches in self._lanes.values() for batch in batches for row in batch.rows]
        for call in self._calls:
            call()
        for request in [*unfinished, *self._waiting]:
            request.report(Step(error="the server is shutting down"))

    def _admit(self) -> list[Request]:
        """Take requests from the queue, as many as there are places."""
        admitted: list[Request] = []
        room = min(MAX_ADMITTED, self.max_batch - self._count())
        while self._waiting and len(admitted) < room:
            request = self._waiting.popleft()
            if not request.cancelled:
                admitted.append(request)
        return admitted

    def _guarded(self, work: Callable[..., None], item: object, requests: Sequence[Request]) -> None:
        """Do a piece of work; if it fails, only its requests fail."""
        try:
            work(item)
        # of any type: an error in one batch must not end the server
        except Exception as error:
            reason = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
            if isinstance(item, _Batch):
                item.rows = []
            for request in requests:
                request.report(Step(error=f"the model failed ({reason})"))

    def _prefill(self, requests: list[Request]) -> None:
        """Compute the prompts of requests for one model, choose their first tokens, and let them join its lane."""
        first = requests[0]
        session = DecodingSession(
            first.model.model,
            [request.prompt for request in requests],
            pad_id=first.model.tokenizer.pad_token_id or 0,
            max_new_tokens=max(request.max_tokens for request in requests),
            both_streams=first.details is not None,
        )
        if session.choices is not None and first.model.continued_by:
            self._continue_decided(session, requests)
            return
        eos = eos_token_ids(first.model.model, first.model.tokenizer)
        rows = [
            _Row(each, AnswerText(each.model.tokenizer, stop=each.stop), each.sampling.generator(), eos)
            for each in requests
        ]
        batch = _Batch(session, rows)
        self._choose(batch)
        if batch.rows:
            self._join(_lane(first), batch)

    def _continue_decided(self, session: DecodingSession, requests: list[Request]) -> None:
        """Prefill each query again with the streams that it continues with, so that it joins that model's lane."""
        assert session.choices is not None
        for request, choice in zip(requests, session.choices.tolist(), strict=True):
            request.model = request.model.continued_by[CHOICES[choice]]
        for group in _by_lane(requests).values():
            self._prefill(group)

    def _join(self, lane: tuple[int, bool], batch: _Batch) -> None:
        batches = self._lanes.setdefault(lane, [])
        for other in batches:
            if other.rows and other.session.can_extend(batch.session):
                other.session.extend(batch.session)
                other.rows += batch.rows
                return
        batches.append(batch)

    def _step(self, batch: _Batch) -> None:
        """Run one forward pass with the last tokens, and choose the next ones."""
        kept = [index for index, row in enumerate(batch.rows) if not row.request.cancelled]
        if len(kept) < len(batch.rows):
            self._keep(batch, kept)
        if not batch.rows:
            return
        tokens = torch.tensor([[row.token] for row in batch.rows], device=batch.session.logits.device)
        batch.session.forward(tokens)
        self._choose(batch)

    def _choose(self, batch: _Batch) -> None:
        """Choose and report the next token of every row; ended rows leave the batch."""
        session, rows = batch.session, batch.rows
        greedy = session.logits.argmax(dim=-1).tolist()
        tokens = [
            token
            if row.request.sampling.temperature == 0
            else choose_token(session.logits[index], row.request.sampling, row.generator)
            for index, (row, token) in enumerate(zip(rows, greedy, strict=True))
        ]
        details = _details(session, rows, tokens)
        kept = []
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            step = _step_of(row, token, session.logits[index], None if details is None else details[index])
            if step.finish_reason is None:
                kept.append(index)
            if not row.request.cancelled:
                row.request.report(step)
        if len(kept) < len(rows):
            self._keep(batch, kept)

    def _keep(self, batch: _Batch, kept: list[int]) -> None:
        batch.rows = [batch.rows[index] for index in kept]
        if kept:
            batch.session.select_rows(kept)
            batch.session.trim()


def _lane(request: Request) -> tuple[int, bool]:
    return id(request.model.model), request.details is not None


def _by_lane(requests: Sequence[Request]) -> dict[tuple[int, bool], list[Request]]:
    lanes: dict[tuple[int, bool], list[Request]] = {}
    for request in requests:
        lanes.setdefault(_lane(request), []).append(request)
    return lanes


def _details(session: DecodingSession, rows: Sequence[_Row], tokens: Sequence[int]) -> list[TokenDetails] | None:
    if session.streams is None:
        return None
    original, tuned, gate = session.streams
    found = token_details(
        session.model,
        tokens,
        original=original[:, 0],
        tuned=tuned[:, 0],
        gate=None if gate is None else gate[:, 0],
        top=max(row.request.details or 0 for row in rows),
    )
    # a row gets what it asked for, whatever the others asked for
    return [
        replace(each, original=each.original[: row.request.details], tuned=each.tuned[: row.request.details])
        for row, each in zip(rows, found, strict=True)
    ]


def _step_of(row: _Row, token: int, logits: torch.Tensor, details: TokenDetails | None) -> Step:
    """Return what is reported of a row's next token."""
    request = row.request
    row.token, row.length = token, row.length + 1
    ended = token in row.eos
    text = "" if ended else row.text.add(token)
    reason = "stop" if ended or row.text.stopped else "length" if row.length == request.max_tokens else None
    if reason is not None:
        text += row.text.finish()
        reason = "stop" if row.text.stopped else reason
    logprob, top = None, tuple[Logprob, ...]()
    if request.logprobs is not None:
        log_probabilities = logits.float().log_softmax(dim=-1).clamp(min=MIN_LOGPROB)
        logprob = float(log_probabilities[token])
        best = log_probabilities.topk(min(request.logprobs, len(log_probabilities)))
        top = tuple(
            Logprob(token=t, logprob=p) for t, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        )
    return Step(
        text=text,
        token=token,
        token_text="" if ended else row.text.token_text,
        logprob=logprob,
        top=top,
        details=details,
        finish_reason=reason,
    )
