"""OpenAI's format of requests and answers: completions, chat completions, chunks of a stream, errors.

Parameters that would change an answer and are not supported are rejected, never ignored.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedTokenizerBase

from imsm.models.siamese.token_details import Candidates, TokenDetails
from imsm.serving.engine import Step

Stop = str | Annotated[list[str], Field(max_length=16)] | None
_Zero = Annotated[float, Field(ge=0, le=0)]


class DetailOptions(BaseModel):
    """The field ``imsm`` of a request.

    Attributes:
        details: Report what both streams predict at each token.
        top: Number of candidates of each stream.
    """

    model_config = ConfigDict(extra="forbid")
    details: bool = False
    top: int = Field(5, ge=1, le=20)


class StreamOptions(BaseModel):
    """The field ``stream_options``; ``include_usage`` adds a last chunk with token counts."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class _Body(BaseModel):
    """What both kinds of requests share."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(max_length=500)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(1.0, ge=0, le=10)
    top_p: float | None = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    imsm: DetailOptions = DetailOptions()
    # accepted with the value that changes nothing
    n: Literal[1] | None = 1
    presence_penalty: _Zero | None = 0
    frequency_penalty: _Zero | None = 0
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: str | None = None

    @property
    def stop_strings(self) -> list[str]:
        """The strings that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class CompletionBody(_Body):
    """Body of ``POST /v1/completions``; a prompt is a text or token ids, and there may be several."""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: Literal[False] | None = False
    best_of: Literal[1] | None = 1
    suffix: Literal[""] | None = None


class TextPart(BaseModel):
    """A part of a message; only texts are supported."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a conversation."""

    role: str = Field(max_length=50)
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(_Body):
    """Body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: dict[Literal["type"], Literal["text"]] | None = None


@dataclass
class Answer:
    """The steps of one answer so far."""

    steps: list[Step] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text that can be shown."""
        return "".join(step.text for step in self.steps)

    @property
    def finish_reason(self) -> str | None:
        """Why it ended; None if it has not."""
        return self.steps[-1].finish_reason if self.steps else None


@dataclass(frozen=True, kw_only=True)
class ResponseFormat:
    """Builds the objects of one response.

    Attributes:
        chat: Whether it is a chat completion.
        model: The model's name, with the stream that answers.
        fingerprint: SHA-256 of everything that the answers depend on.
        tokenizer: Decodes candidates.
        logprobs: Whether ln p of the tokens was requested.
        details: Whether the field ``imsm`` was requested.
    """

    chat: bool
    model: str
    fingerprint: str
    tokenizer: PreTrainedTokenizerBase
    logprobs: bool
    details: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def response(self, answers: Sequence[Answer], *, prompt_tokens: int) -> dict[str, Any]:
        """Return the object of a complete response."""
        choices = []
        for index, answer in enumerate(answers):
            content = (
                {"message": {"role": "assistant", "content": answer.text}} if self.chat else {"text": answer.text}
            )
            choices.append(self._choice(index, content, answer.steps, answer.finish_reason))
        return self._object(choices, chunk=False) | {"usage": usage(answers, prompt_tokens=prompt_tokens)}

    def chunk(self, index: int, step: Step, *, first: bool) -> dict[str, Any]:
        """Return the object of one step of a stream."""
        delta: dict[str, Any] = {"content": step.text}
        if first:
            delta = {"role": "assistant", **delta}
        content = {"delta": delta} if self.chat else {"text": step.text}
        return self._object([self._choice(index, content, [step], step.finish_reason)], chunk=True)

    def usage_chunk(self, answers: Sequence[Answer], *, prompt_tokens: int) -> dict[str, Any]:
        """Return the last object of a stream with ``include_usage``."""
        return self._object([], chunk=True) | {"usage": usage(answers, prompt_tokens=prompt_tokens)}

    def _object(self, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        kind = f"chat.completion{'.chunk' if chunk else ''}" if self.chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }

    def _choice(
        self, index: int, content: dict[str, Any], steps: Sequence[Step], finish_reason: str | None
    ) -> dict[str, Any]:
        logprobs = (self._chat_logprobs(steps) if self.chat else self._logprobs(steps)) if self.logprobs else None
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}
        if self.details:
            choice["imsm"] = {"tokens": [self._details(step) for step in steps if step.details is not None]}
        return choice

    def _chat_logprobs(self, steps: Sequence[Step]) -> dict[str, Any]:
        content = []
        for step in steps:
            top = [self._token(each.token, each.logprob) for each in step.top]
            content.append({**self._token(step.token or 0, step.logprob or 0.0), "top_logprobs": top})
        return {"content": content}

    def _logprobs(self, steps: Sequence[Step]) -> dict[str, Any]:
        tokens = [self._decode(step.token or 0) for step in steps]
        offsets = [sum(map(len, tokens[:index])) for index in range(len(tokens))]
        return {
            "tokens": tokens,
            "token_logprobs": [step.logprob for step in steps],
            "top_logprobs": [{self._decode(each.token): each.logprob for each in step.top} for step in steps],
            "text_offset": offsets,
        }

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._decode(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    def _details(self, step: Step) -> dict[str, Any]:
        details = step.details
        assert isinstance(details, TokenDetails)
        return {
            "text": step.token_text,
            "id": details.token,
            "gate": details.gate,
            "gate_std": details.gate_std,
            "kl": details.kl,
            "winner": details.winner,
            "original": self._candidates(details.original),
            "tuned": self._candidates(details.tuned),
        }

    def _candidates(self, candidates: Candidates) -> list[dict[str, Any]]:
        return [{"text": self._decode(token), "id": token, "logprob": logprob} for token, logprob in candidates]

    def _decode(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))


def usage(answers: Sequence[Answer], *, prompt_tokens: int) -> dict[str, int]:
    """Return the token counts of a response; EOS is counted."""
    generated = sum(len(answer.steps) for answer in answers)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": generated, "total_tokens": prompt_tokens + generated}


def error_object(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return the API's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ApiError(Exception):
    """An answer of the API other than 200; ``content`` is its error object."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        kind = {401: "authentication_error", 429: "rate_limit_error", 503: "server_error"}.get(
            status, "invalid_request_error"
        )
        self.status = status
        self.content = error_object(message, kind=kind, param=param, code=code)
