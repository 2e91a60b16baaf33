"""Explain an answer token by token: the gate, and whose most likely token was generated."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import pandas
import torch
from transformers import PreTrainedTokenizerBase

from imsm.data.tokenization import encode_answers, encode_prompts
from imsm.models.backbones.loading import load_tokenizer
from imsm.models.siamese.token_details import Candidates, TokenDetails, token_details
from imsm.utils.control_characters import escape_controls
from imsm.utils.errors import UserError

COLUMNS = ("text", "token", "gate", "gate_std", "winner", "kl", "original", "tuned")
_ORIGINAL, _TUNED = "0, 114, 178", "230, 159, 0"
"""RGB of the streams; drawn translucent, so that the text keeps the notebook's color in light and dark themes."""
_MAX_OPACITY = 0.45
_MARKS = {
    "original": f"underline solid rgb({_ORIGINAL})",
    "tuned": f"underline dashed rgb({_TUNED})",
    "neither": "underline wavy rgb(165, 90, 190)",
    "both": "none",
}
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer decodes a part of a character to."""


class Explanation(pandas.DataFrame):
    """One row per token of an answer; a notebook shows the answer shaded by the gate.

    Columns: ``text`` that the token adds to the decoded answer, its id ``token``, ``gate`` and ``gate_std`` (mean and
    standard deviation over D of the original's weight; None without a gate), ``winner`` ("original", "tuned", "both"
    or "neither": the streams whose most likely token it is), ``kl`` = KL(p_o || p_t) in nats, and the most likely
    tokens of the streams ``original`` and ``tuned`` as (text, probability).

    ``attrs`` has the ``stream``, the ``prompt`` and the ``answer``. A selection of it is a plain DataFrame.
    """

    def _repr_html_(self) -> str:
        """Return the shaded answer, a legend, and the table; all text is escaped."""
        tokens = "".join(_token_html(row) for row in self.to_dict("records"))
        frame: Any = pandas.DataFrame(self)
        table = frame.to_html(float_format=lambda value: f"{value:.3f}", formatters={"text": _visible}, border=0)
        return escape_controls(
            f'<div><div style="white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.9">{tokens}</div>'
            f'<p style="font-size:85%">{_legend(self)}</p><details><summary>table</summary>{table}</details></div>'
        )


class SiameseExplanationMixin:
    """`explain` of a siamese model."""

    # members of the model class
    config: Any
    device: Any
    stream: Any
    head: Any
    generate: Any
    forward_streams: Any
    generation_config: Any

    @torch.no_grad()
    def explain(
        self,
        prompt: str,
        *,
        answer: str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat: bool = False,
        max_new_tokens: int = 64,
        top: int = 5,
    ) -> Explanation:
        """Generate an answer with the selected stream by greedy search, and return what both streams predict.

        Args:
            prompt: text of the prompt.
            answer: explain this text as the answer, in one forward pass, instead of generating one.
            tokenizer: default: the backbone's, which a run saves unchanged.
            chat: format the prompt as a user turn of the tokenizer's chat template, for models trained so.
            max_new_tokens: length of a generated answer.
            top: number of most likely tokens of each stream.

        Raises:
            ValueError: the model has no adapter.
            UserError: prompt or answer is empty, or too long for the backbone.
        """
        tokenizer = tokenizer or _backbone_tokenizer(self.config)
        (prompt_ids,) = encode_prompts(tokenizer, [prompt], chat=chat)
        if not prompt_ids:
            raise UserError("prompt: is empty; give a text")
        ids = torch.tensor([prompt_ids], device=self.device)
        if answer is None:
            tokens = self._generate_tokens(ids, tokenizer, max_new_tokens)
        else:
            tokens = list(encode_answers(tokenizer, [answer])[0])
        if not tokens:
            raise UserError(f"answer={answer!r}: has no token; give a text")
        # the last token predicts nothing here
        read = torch.cat([ids, ids.new_tensor([tokens[:-1]])], dim=1)
        output = self.forward_streams(
            read, attention_mask=torch.ones_like(read), query_mask=torch.ones_like(ids), logits_to_keep=len(tokens)
        )
        gate = None if output.gate is None else output.gate[0]
        model: Any = self
        details = token_details(model, tokens, original=output.original[0], tuned=output.tuned[0], gate=gate, top=top)

        def top_of(each: TokenDetails) -> list[list[tuple[str, float]]]:
            return [_top(tokenizer, candidates) for candidates in (each.original, each.tuned)]

        rows = [
            (text, each.token, each.gate, each.gate_std, each.winner, each.kl, *top_of(each))
            for text, each in zip(_token_texts(tokenizer, tokens), details, strict=True)
        ]
        explanation = Explanation(rows, columns=list(COLUMNS))
        explanation.attrs = {"stream": self.stream, "prompt": prompt, "answer": _decode(tokenizer, tokens)}
        return explanation

    def _generate_tokens(
        self, prompt: torch.Tensor, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
    ) -> list[int]:
        """Return the new tokens of greedy search, EOS included."""
        listed = self.generation_config.eos_token_id
        eos = {tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])} - {None}
        output = self.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(eos),
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(eos),
        )
        tokens: list[int] = output[0, prompt.shape[1] :].tolist()
        return tokens


def _backbone_tokenizer(config: Any) -> PreTrainedTokenizerBase:
    if not config.backbone:
        raise UserError("tokenizer: the model names no backbone; give explain(..., tokenizer=...)")
    return load_tokenizer(**{key: config.backbone.get(key) for key in ("name_or_path", "revision", "local_resolver")})


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


def _token_texts(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[str]:
    """Return the text that each token adds to the decoded answer; a character belongs to its last token."""
    texts, shown = [], ""
    for end in range(1, len(tokens) + 1):
        text = _decode(tokenizer, tokens[:end])
        if text.endswith(_INCOMPLETE) and end < len(tokens):
            texts.append("")
            continue
        texts.append(text[len(shown) :])
        shown = text
    return texts


def _top(tokenizer: PreTrainedTokenizerBase, candidates: Candidates) -> list[tuple[str, float]]:
    # special tokens by name: EOS may be the most likely one
    return [(str(tokenizer.decode([token])), math.exp(logprob)) for token, logprob in candidates]


def _token_html(row: dict[Any, Any]) -> str:
    gate = None if pandas.isna(row["gate"]) else float(row["gate"])
    style = f"text-decoration:{_MARKS[row['winner']]};text-underline-offset:0.2em"
    if gate is not None:
        color, strength = (_ORIGINAL, 2 * gate - 1) if gate > 0.5 else (_TUNED, 1 - 2 * gate)
        style += f";background:rgba({color}, {_MAX_OPACITY * strength:.2f})"
    lines = [
        _WINNERS[row["winner"]],
        *([] if gate is None else [f"gate {gate:.2f} ± {row['gate_std']:.2f}"]),
        f"KL(original || tuned) {row['kl']:.3f} nats",
        *(
            f"{name}: {', '.join(f'{_visible(text)} {p:.2f}' for text, p in row[name])}"
            for name in ("original", "tuned")
        ),
    ]
    title = html.escape("\n".join(lines), quote=True)
    # a token without a text, e.g. EOS, would be invisible
    text = html.escape(row["text"]) or "∎"
    return f'<span style="{style}" title="{title}">{text}</span>'


_WINNERS = {
    "original": "most likely token of the original only",
    "tuned": "most likely token of the tuned model only",
    "both": "most likely token of both streams",
    "neither": "most likely token of neither stream",
}


def _visible(text: str) -> str:
    """Return a token's text in quotes, with spaces and line breaks visible."""
    return repr(text)


def _legend(explanation: pandas.DataFrame) -> str:
    counts = explanation["winner"].value_counts()
    parts = [
        f'<span style="text-decoration:{mark}">{winner}</span> {counts[winner]}'
        for winner, mark in _MARKS.items()
        if winner in counts
    ]
    shades = (
        f'<span style="background:rgba({_TUNED}, {_MAX_OPACITY})">gate 0: tuned</span> '
        f'<span style="background:rgba({_ORIGINAL}, {_MAX_OPACITY})">gate 1: original</span>'
    )
    gates = explanation["gate"].dropna()
    shown = f"{shades}, mean {gates.mean():.2f}" if len(gates) else "no gate"
    stream = html.escape(str(explanation.attrs.get("stream", "")))
    return f"{stream} stream; {shown}; most likely token of: {', '.join(parts)}"
