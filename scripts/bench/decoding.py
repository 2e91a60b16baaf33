"""Decoding: tokens per second of IMSM, plain PEFT, two passes, and the paper code's algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from peft import get_peft_model

from imsm.models.backbones.decoder import find_decoder
from imsm.models.siamese.gate import apply_gate
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.streams import Stream
from scripts.bench.comparison import Comparison
from scripts.bench.steps import lora_config
from scripts.bench.timing import decode, interleaved, medians, now, timed
from scripts.bench.workloads import Setup, build, plain_backbone, random_batch

NEW, LONG = 32, 128


def compare_decoding(setup: Setup, *, rounds: int) -> list[Comparison]:
    """One row at a time, all through `generate()`, the first token not counted; also in bfloat16."""
    return [
        row
        for dtype, bars in (("float32", (0.90, None)), ("bfloat16", (0.70, 1.15)))
        for row in _decoding(replace(setup, dtype=dtype, batch=1), bars, rounds=rounds)
    ]


def _decoding(setup: Setup, bars: tuple[float, float | None], *, rounds: int) -> list[Comparison]:
    """IMSM against PEFT's own generate, and against two passes if that has a bar."""
    imsm = build(setup, stream="interwoven").eval()
    peft = get_peft_model(plain_backbone(setup), lora_config(setup)).eval()
    prompts = _prompts(setup, vocabulary=imsm.config.vocab_size, tokens=setup.prompt_tokens)

    def twice(**options: torch.Tensor) -> torch.Tensor:
        with two_passes(imsm):
            return imsm.generate(**options)  # type: ignore[return-value]

    others: dict[str, tuple[str, Callable[..., torch.Tensor], float | None]] = {
        "peft": ("PEFT's own generate", peft.generate, bars[0]),
        "twice": ("two passes with caches", twice, bars[1]),
    }
    others = {name: each for name, each in others.items() if each[2] is not None}
    generates = {"imsm": imsm.generate, **{name: generate for name, (_, generate, _) in others.items()}}
    timers = {
        name: partial(_later, generate, prompts, tokens=NEW, device=setup.device)
        for name, generate in generates.items()
    }
    found = interleaved(timers, rounds=rounds)
    speed = {name: 1 / median(seconds) for name, seconds in found.items()}
    rows = [
        Comparison(
            name=f"decoding, batch 1, {setup.dtype}: IMSM / {against}",
            ours=speed["imsm"],
            theirs=speed[name],
            unit="tokens/s",
            bar=bar,
            at_least=True,
        )
        for name, (against, _, bar) in others.items()
    ]
    return [_with_floor(rows[0], second_row_seconds(imsm, rounds=rounds)), *rows[1:]]


def _with_floor(row: Comparison, extra: float) -> Comparison:
    """State that a row cannot meet its bar if the products of a second stream alone take ``extra`` s per token."""
    best = 1 / (1 + extra * row.theirs)
    if row.met or row.bar is None or best >= row.bar:
        return row
    reason = (
        f"the decoder's products of two rows take {1e3 * extra:.1f} ms more than those of one, PEFT's token "
        f"{1e3 / row.theirs:.1f} ms: without any other cost the ratio is {best:.2f}"
    )
    return replace(row, floor=True, reason=reason)


@torch.inference_mode()
def second_row_seconds(model: SiameseForCausalLM, *, rounds: int) -> float:
    """Return how much longer this machine takes for a token's products in the decoder with two rows than with one."""
    weights = [module.weight for module in model.streams.decoder.modules() if isinstance(module, torch.nn.Linear)]
    inputs = {rows: [weight.new_ones(rows, weight.shape[1]) for weight in weights] for rows in (1, 2)}

    def products(rows: int) -> None:
        for each, weight in zip(inputs[rows], weights, strict=True):
            torch.nn.functional.linear(each, weight)

    device = str(model.device)
    timers = {str(rows): timed(partial(products, rows), device=device) for rows in (1, 2)}
    seconds = medians(timers, rounds=2 * rounds)
    return max(0.0, seconds["2"] - seconds["1"])


SKIP_SHAPE = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
"""32 layers of small width, where the time of a step is that of calling the layers."""


def compare_skip(setup: Setup, *, rounds: int) -> list[Comparison]:
    """Eight rows whose gate is decided for the tuned stream: IMSM with and without skipping, against PEFT."""
    setup = replace(setup, shape=SKIP_SHAPE, dtype="float32", batch=8, target_modules=["q_proj", "v_proj"])
    imsm = build(setup, stream="interwoven").eval()
    assert imsm.gate is not None
    imsm.gate.bias = torch.nn.Parameter(torch.full((SKIP_SHAPE["hidden_size"],), -20.0, device=setup.device))  # type: ignore[call-overload]
    peft = get_peft_model(plain_backbone(setup), lora_config(setup)).eval()
    prompts = _prompts(setup, vocabulary=imsm.config.vocab_size, tokens=setup.prompt_tokens)

    def skip(**options: torch.Tensor) -> torch.Tensor:
        imsm.skip_threshold = 0.1
        try:
            return imsm.generate(**options)  # type: ignore[return-value]
        finally:
            imsm.skip_threshold = None

    generates = {"imsm": imsm.generate, "skip": skip, "peft": peft.generate}
    timers = {
        name: partial(_later, generate, prompts, tokens=LONG, device=setup.device)
        for name, generate in generates.items()
    }
    # the second token drops the other stream's cache, so it is counted
    speed = {name: setup.batch / median(each) for name, each in interleaved(timers, rounds=rounds).items()}
    return [
        Comparison(
            name=f"decoding, 32 small layers, batch 8: {name} / PEFT's own generate",
            ours=speed[key],
            theirs=speed["peft"],
            unit="tokens/s",
            bar=bar,
            at_least=True,
        )
        for key, name, bar in (("skip", "IMSM with all rows decided", 0.95), ("imsm", "IMSM", None))
    ]


def compare_paper_code(setup: Setup) -> list[Comparison]:
    """The algorithm of the paper's code: two copies of the weights, full sequences at every token, no cache."""
    setup = replace(setup, dtype="bfloat16", batch=1)
    imsm = build(setup, stream="interwoven").eval()
    prompts = _prompts(setup, vocabulary=imsm.config.vocab_size, tokens=LONG)
    copies = plain_backbone(setup), get_peft_model(plain_backbone(setup), lora_config(setup)).eval()
    seconds = {}
    for name, run in {
        "ours": partial(_generate_long, imsm, prompts),
        "theirs": partial(_paper_code, *copies, imsm.gate, prompts),
    }.items():
        start = now(setup.device)
        run()
        seconds[name] = now(setup.device) - start
    return [
        Comparison(
            name=f"decoding {LONG} after {LONG}, batch 1, bfloat16: IMSM / the paper code's algorithm",
            ours=LONG / seconds["ours"],
            theirs=LONG / seconds["theirs"],
            unit="tokens/s",
            bar=10,
            at_least=True,
        )
    ]


def _prompts(setup: Setup, *, vocabulary: int, tokens: int) -> torch.Tensor:
    """Return random token ids, (B, T)."""
    rows = random_batch(replace(setup, prompt_tokens=tokens), vocabulary=vocabulary)
    return torch.tensor([row.prompt_ids for row in rows], device=setup.device)


def _later(generate: Callable[..., torch.Tensor], prompts: torch.Tensor, *, tokens: int, device: str) -> list[float]:
    """Return the seconds of each new token except the first."""
    return decode(generate, prompts, tokens=tokens, device=device)[1:]


def _generate_long(model: SiameseForCausalLM, prompts: torch.Tensor) -> None:
    decode(model.generate, prompts, tokens=LONG, device=str(model.device))  # type: ignore[arg-type]


@contextmanager
def two_passes(model: SiameseForCausalLM) -> Iterator[None]:
    """Run each stream in a separate pass with a separate cache."""
    if not model.streams.batch_both:
        raise RuntimeError("both streams do not run as one batch: nothing to compare")
    model.streams.batch_both = False
    try:
        yield
    finally:
        model.streams.batch_both = True


def _paper_code(original: torch.nn.Module, tuned: torch.nn.Module, gate: torch.nn.Module, ids: torch.Tensor) -> None:
    """Decode with two copies of the weights."""
    decoders = find_decoder(original), find_decoder(tuned.get_base_model())  # type: ignore[operator]
    read = [
        lambda ids, decoder=decoder: decoder(input_ids=ids, use_cache=False).last_hidden_state for decoder in decoders
    ]
    _generate_without_cache(read, gate, original.get_output_embeddings(), ids, tokens=LONG)  # type: ignore[operator]


def generate_without_cache(model: SiameseForCausalLM, ids: torch.Tensor, *, tokens: int) -> None:
    """Decode with the paper code's algorithm, both streams over the same weights."""
    streams: tuple[Stream, ...] = ("original", "tuned")
    read = [
        lambda ids, stream=stream: model.streams.hidden_states({"input_ids": ids}, stream=stream, cache=None)
        for stream in streams
    ]
    assert model.gate is not None
    _generate_without_cache(read, model.gate, model.head, ids, tokens=tokens)


@torch.inference_mode()
def _generate_without_cache(
    read: Sequence[Callable[[torch.Tensor], torch.Tensor]],
    gate: torch.nn.Module,
    head: Callable[[torch.Tensor], torch.Tensor],
    ids: torch.Tensor,
    *,
    tokens: int,
) -> None:
    """Both streams read the full sequence for each token; the head runs at its last position."""
    query = ids.shape[1]
    for _ in range(tokens):
        hidden_states = [each(ids) for each in read]
        queries = [states[:, :query].mean(dim=1, keepdim=True) for states in hidden_states]
        mixed, _ = apply_gate(gate, *hidden_states, *queries)
        ids = torch.cat([ids, head(mixed[:, -1:]).argmax(dim=-1)], dim=1)
