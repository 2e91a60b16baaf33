"""The text of an answer while its tokens arrive."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "�"
"""What a tokenizer decodes a part of a character to."""


class AnswerText:
    """Decode token by token, and end at the first stop string.

    The texts that `add` and `finish` return are the decoded answer up to a stop string. A text is held back as long
    as it may be the beginning of a stop string, or part of a character.

    Attributes:
        stopped: Whether a stop string was found.
        token_text: What the last token added to the decoded answer, also if it is held back.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = [each for each in stop if each]
        self._tokens: list[int] = []
        # tokens before `_start` are not decoded again; those before `_end` are in the text already
        self._start = self._end = 0
        self._held = ""
        self.stopped = False
        self.token_text = ""

    def add(self, token: int) -> str:
        """Return the text that can be shown after one more token."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._start : self._end])
        text = self._decode(self._tokens[self._start :])
        if text.endswith(_INCOMPLETE):
            self.token_text = ""
            return ""
        self.token_text = text[len(before) :]
        if self.token_text:
            self._start, self._end = self._end, len(self._tokens)
        return self._show(self.token_text)

    def finish(self) -> str:
        """Return the text that was held back."""
        if self.stopped:
            return ""
        before = self._decode(self._tokens[self._start : self._end])
        rest = self._decode(self._tokens[self._start :])[len(before) :] if self._end < len(self._tokens) else ""
        shown = self._show(rest)
        if self.stopped:
            return shown
        held, self._held = self._held, ""
        return shown + held

    def _show(self, text: str) -> str:
        self._held += text
        ends = [position for stop in self._stop if (position := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            shown, self._held = self._held[: min(ends)], ""
            return shown
        # the longest end of the text that begins a stop string
        keep = max((n for stop in self._stop for n in range(1, len(stop)) if self._held.endswith(stop[:n])), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))
