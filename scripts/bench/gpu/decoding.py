"""Rows about decoding and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch

from imsm.data.batching import collate_prompts
from imsm.evaluation.generation import generate_responses
from imsm.models.siamese.decoding_session import DecodingSession
from scripts.bench.decoding import generate_without_cache, two_passes
from scripts.bench.gpu.session import Measured, Method, Session
from scripts.bench.timing import decode, now

Generate = Callable[..., Any]


class _Words:
    """A tokenizer whose texts are empty, so that only the model is timed."""

    pad_token_id = 0

    def __init__(self, eos_token_id: int) -> None:
        self.eos_token_id = eos_token_id

    def decode(self, *_: Any, **__: Any) -> str:
        return ""

    def batch_decode(self, rows: list[Any], **_: Any) -> list[str]:
        return ["" for _ in rows]


def decoding(session: Session, *, rows: int) -> Measured:
    """Time each token after the first, of ``rows`` prompts of MRPC's lengths; with one row also other ways."""
    model = session.model.eval()
    tokens = 6 if session.tiny else 40
    prompts = [item.prompt_ids for item in session.examples("mrpc", rows)]
    ids, mask = collate_prompts(prompts, pad_id=0, device=session.device)

    def original(**options: Any) -> Any:
        with model.streams.adapter_disabled():
            return model.backbone.generate(**options)

    def twice(**options: Any) -> Any:
        with two_passes(model):
            return model.generate(**options)

    ways: dict[str, Generate] = {"peft": model.adapted.generate, "imsm": model.generate}  # type: ignore[dict-item]
    if rows == 1:
        ways |= {"original": original, "two passes": twice}
    run = partial(decode, prompts=ids, mask=mask, tokens=tokens, device=session.setup.device)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(1 + (2 if session.tiny else 3)):
        for name, generate in ways.items():
            # the second token of a session still allocates
            seconds = run(generate)[2:]
            times[name] += seconds if round_ else []
    found: Measured = {"rows": rows}
    for name, seconds in times.items():
        typical = median(seconds)
        found[name] = {"ms": 1e3 * typical, "ms_p10": 1e3 * sorted(seconds)[len(seconds) // 10]}
        found[name] |= {"tokens_per_s": rows / typical, "speed_to_peft": median(times["peft"]) / typical}
    found["peak_gb"] = session.peak_gb(lambda: run(model.generate))
    return found


def evaluation(
    session: Session, *, rows: int, methods: Sequence[Method] = ("imsm",), static_cache: bool = False
) -> Measured:
    """Time prefill and responses of ``rows`` prompts of GSM8K's lengths, as an evaluation runs them.

    Random weights end hardly any response early. With ``static_cache`` a GPU replays CUDA graphs.
    """
    tokens = 6 if session.tiny else 48
    prompts = [item.prompt_ids for item in session.examples("gsm8k", rows)]
    words: Any = _Words(session.vocab_size - 1)
    model = session.model.eval()

    def run(method: Method) -> None:
        with session.method(method):
            decoding_session = DecodingSession(model, prompts, pad_id=0, max_new_tokens=tokens)
            generate_responses(decoding_session, words, max_new_tokens=tokens, stop=None, static_cache=static_cache)

    runs = {method: partial(run, method) for method in methods}
    found: Measured = {"rows": rows}
    for name, values in session.compared(runs, rounds=2, warm_up=1).items():
        found[name] = values | {"tokens_per_s": 1e3 * rows * tokens / values["ms"]}
        found[name]["peak_gb"] = session.peak_gb(partial(run, name))
    return found


def paper_code(session: Session) -> Measured:
    """Time the algorithm of the paper's code, without caches: both models read all tokens again for each token."""
    tokens = 8 if session.tiny else 128
    model = session.model.eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(16, session.vocab_size, (1, tokens), generator=generator).to(session.device)
    run = {
        "ours": lambda: decode(model.generate, ids, tokens=tokens, device=session.setup.device),  # type: ignore[arg-type]
        "theirs": lambda: generate_without_cache(model, ids, tokens=tokens),
    }
    seconds = {}
    for name, generate in run.items():
        started = now(session.setup.device)
        generate()
        seconds[name] = now(session.setup.device) - started
    return {f"{name}_tokens_per_s": tokens / each for name, each in seconds.items()} | {
        "ratio": seconds["theirs"] / seconds["ours"]
    }
