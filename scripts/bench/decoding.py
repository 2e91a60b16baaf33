"""Decoding: tokens per second of IMSM, plain PEFT, two passes, and the paper code's algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from peft import get_peft_model

from imsm.models.siamese.decoder import find_decoder
from imsm.models.siamese.gate import apply_gate
from imsm.models.siamese.model import SiameseForCausalLM
from scripts.bench.comparison import Comparison
from scripts.bench.steps import lora_config
from scripts.bench.timing import decode, interleaved, now
from scripts.bench.workloads import Setup, build, plain_backbone, random_batch

NEW, LONG = 32, 128


def compare_decoding(setup: Setup, *, rounds: int) -> list[Comparison]:
    """One row at a time in bfloat16, all through `generate()`, the first token not counted."""
    setup = replace(setup, dtype="bfloat16", batch=1)
    gpu = setup.device.startswith("cuda")
    imsm = build(setup, stream="interwoven").eval()
    peft = get_peft_model(plain_backbone(setup), lora_config(setup)).eval()
    prompts = _prompts(setup, vocabulary=imsm.config.vocab_size, tokens=setup.prompt_tokens)

    def twice(**options: torch.Tensor) -> torch.Tensor:
        with _two_passes(imsm):
            return imsm.generate(**options)  # type: ignore[return-value]

    generates: dict[str, Callable[..., torch.Tensor]] = {
        "imsm": imsm.generate,  # type: ignore[dict-item]
        "peft": peft.generate,
        "twice": twice,
    }
    timers = {
        name: partial(_later, generate, prompts, tokens=NEW, device=setup.device)
        for name, generate in generates.items()
    }
    found = interleaved(timers, rounds=rounds)
    speed = {name: 1 / median(seconds) for name, seconds in found.items()}
    return [
        Comparison(
            name=f"decoding, batch 1, bfloat16: IMSM / {against}",
            ours=speed["imsm"],
            theirs=speed[name],
            unit="tokens/s",
            bar=gpu_bar if gpu else bar,
            at_least=True,
        )
        for name, against, bar, gpu_bar in (
            ("peft", "PEFT's own generate", 0.70, 0.97),
            ("twice", "two passes with caches", 1.15, 1.7),
        )
    ]


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
def _two_passes(model: SiameseForCausalLM) -> Iterator[None]:
    """Run each stream in a separate pass with a separate cache."""
    if not model.streams.batch_both:
        raise RuntimeError("both streams do not run as one batch: nothing to compare")
    model.streams.batch_both = False
    try:
        yield
    finally:
        model.streams.batch_both = True


@torch.inference_mode()
def _paper_code(original: torch.nn.Module, tuned: torch.nn.Module, gate: torch.nn.Module, ids: torch.Tensor) -> None:
    """Both copies read the full sequence for each token; the head runs at its last position."""
    query = ids.shape[1]
    decoders = find_decoder(original), find_decoder(tuned.get_base_model())  # type: ignore[operator]
    for _ in range(LONG):
        hidden_states = [decoder(input_ids=ids, use_cache=False).last_hidden_state for decoder in decoders]
        queries = [states[:, :query].mean(dim=1, keepdim=True) for states in hidden_states]
        mixed, _ = apply_gate(gate, *hidden_states, *queries)
        logits = original.get_output_embeddings()(mixed[:, -1:])  # type: ignore[operator]
        ids = torch.cat([ids, logits.argmax(dim=-1)], dim=1)
