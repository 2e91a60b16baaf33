"""What IMSM costs beside vanilla PEFT: memory and time of a training step, time of a decoded token.

    python -m scripts.bench_step --backbone gemma3_270m

in the checkout; writes `benchmarks/results/<name>.json` and prints a table. "Ours" is IMSM,
"theirs" the tuned stream alone (our vanilla PEFT) unless a row says otherwise; both run by turns
in one process, each memory in a process of its own. Bars are what a change must not exceed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from imsm.options import find_option
from scripts.comparison import ROOT, Comparison, table, write
from scripts.measure import (
    Setup,
    build,
    decode,
    interleaved,
    memory_arguments,
    random_batch,
    timed,
    train_step,
)

SHAPES = {"mrpc": {"prompt_tokens": 80, "answer_tokens": 2}}
"""Tokens of an example: MRPC's prompts have about 80, its answers a word and the end."""
MEMORY_BAR, BANKED_BAR, STEP_BAR, DECODE_BAR = 1.10, 1.10, 1.7, 1.8
STREAMS = ("interwoven", "tuned")


def compare_memory(setup: Setup, *, dtype: str, steps: int) -> list[Comparison]:
    """Peak memory of training, each arm in a process of its own."""
    peaks = {}
    for stream in STREAMS:
        arguments = memory_arguments(setup, stream=stream, dtype=dtype, steps=steps)
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        )
        peaks[stream] = int(done.stdout.split()[-1]) / 2**20
    return [
        Comparison(
            name=f"peak training memory, batch {setup.batch}, {dtype}",
            ours=peaks["interwoven"],
            theirs=peaks["tuned"],
            unit="MiB",
            bar=MEMORY_BAR,
        )
    ]


def compare_steps(setup: Setup, *, dtype: str, rounds: int) -> list[Comparison]:
    """Time of a training step, with a filled memory bank and without: medians of ``rounds``."""
    interwoven, tuned = (build(setup, stream=stream, dtype=dtype) for stream in STREAMS)
    steps = {
        "bank": train_step(interwoven, setup, banked=True),
        "no bank": train_step(interwoven, setup),
        "peft": train_step(tuned, setup),
    }
    arms = {arm: timed(step, device=setup.device) for arm, step in steps.items()}
    median = {arm: statistics.median(s) for arm, s in interleaved(arms, rounds=rounds).items()}
    return [
        Comparison(
            name=f"training step, {arm}, batch {setup.batch}, {dtype}",
            ours=median[arm],
            theirs=median["peft"],
            unit="s",
            bar=bar,
        )
        for arm, bar in {"bank": BANKED_BAR, "no bank": STEP_BAR}.items()
    ]


def compare_decoding(
    setup: Setup, *, dtype: str, batches: Sequence[int], tokens: int, rounds: int
) -> list[Comparison]:
    """Time of a decoded token by `generate()`, and of the first one, which reads the prompt.

    A last row holds our vanilla PEFT against PEFT's own `generate()`.
    """
    ours, theirs = (build(setup, stream=each, dtype=dtype).eval() for each in STREAMS)
    generates = {"imsm": ours.generate, "peft": theirs.generate, "plain": theirs.adapted.generate}
    rows = random_batch(setup, vocabulary=theirs.config.vocab_size)
    found = []
    for batch in batches:
        ids = [rows[index % len(rows)].prompt_ids for index in range(batch)]
        prompts = torch.tensor(ids, device=setup.device)
        arms = {
            arm: partial(decode, generate, prompts, tokens=tokens, device=setup.device)
            for arm, generate in generates.items()
        }
        seconds = interleaved(arms, rounds=rounds)
        first = {arm: _milliseconds(each[::tokens]) for arm, each in seconds.items()}
        later = {
            arm: _milliseconds([value for i, value in enumerate(each) if i % tokens])
            for arm, each in seconds.items()
        }
        about = f"batch {batch}, {dtype}"
        found += [
            _decoding(f"decoding a token, {about}", later["imsm"], later["peft"], DECODE_BAR),
            _decoding(f"the first token, {about}", first["imsm"], first["peft"], None),
            _decoding(f"our PEFT against PEFT's own, {about}", later["peft"], later["plain"], None),
        ]
    return found


def _milliseconds(seconds: list[float]) -> float:
    return 1000 * statistics.median(seconds)


def _decoding(name: str, ours: float, theirs: float, bar: float | None) -> Comparison:
    return Comparison(name=name, ours=ours, theirs=theirs, unit="ms", bar=bar)


def make_setup(arguments: argparse.Namespace) -> Setup:
    """The setup that the command line asks for."""
    values = find_option("backbone", arguments.backbone)
    local = None if arguments.path else values["local"]
    roles = _linear(values["roles"])
    roles = roles if arguments.all_linear else _query_and_value(roles)
    gate = find_option("gate", "query")
    keys = ("_target_", "inputs", "rank", "width", "bias", "trained")  # dropout is the recipe's
    return Setup(
        backbone={
            "path": arguments.path or values["path"],
            "revision": values["revision"],
            "attn_implementation": values["attn_implementation"],
            "local": local,
        },
        target_modules=[module for modules in roles.values() for module in modules],
        gate={key: gate[key] for key in keys},
        rank=arguments.rank,
        batch=arguments.batch,
        device=arguments.device,
        **SHAPES[arguments.shape],
    )


def _linear(roles: dict[str, list[str]]) -> dict[str, list[str]]:
    return {role: names for role, names in roles.items() if not role.endswith("_norm")}


def _query_and_value(roles: dict[str, list[str]]) -> dict[str, list[str]]:
    return {role: roles[role] for role in ("attention_query", "attention_value")}


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure, write and show; returns the file's path."""
    arguments = _parser().parse_args(argv)
    setup = make_setup(arguments)
    found: list[Comparison] = []
    dtype, rounds = arguments.dtype, arguments.rounds
    if "memory" in arguments.measure:
        found += compare_memory(setup, dtype=dtype, steps=min(3, rounds))
    if "step" in arguments.measure:
        found += compare_steps(setup, dtype=dtype, rounds=rounds)
    if "decode" in arguments.measure:
        for decode_dtype in arguments.decode_dtypes:
            found += compare_decoding(
                setup,
                dtype=decode_dtype,
                batches=arguments.decode_batches,
                tokens=arguments.new_tokens,
                rounds=rounds,
            )
    linear = "_all_linear" if arguments.all_linear else ""
    name = arguments.name or f"{arguments.backbone}_{arguments.shape}_{arguments.batch}{linear}"
    path = arguments.output / f"{name}.json"
    settings = {k: v for k, v in vars(arguments).items() if k not in ("output", "path", "name")}
    write(found, path, settings=settings)
    Console().print(table(found), f"written to {path}")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--backbone", default="mini", help="a name in conf/backbone")
    add("--path", help="a hub id or folder in place of that backbone's own")
    add("--batch", type=int, default=16, help="rows of a training batch, one forward pass")
    add("--shape", choices=sorted(SHAPES), default="mrpc", help="the task whose lengths are taken")
    add("--rank", type=int, default=16, help="LoRA's")
    add("--all-linear", action="store_true", help="LoRA on all linear layers, not query and value")
    add("--dtype", default="float32", help="the backbone's in training")
    kinds = ["memory", "step", "decode"]
    add("--measure", nargs="+", choices=kinds, default=kinds, help="what to measure")
    add("--decode-dtypes", nargs="+", default=["float32", "bfloat16"], help="the backbone's")
    add("--decode-batches", nargs="+", type=int, default=[1, 16], help="rows of a decoded batch")
    add("--new-tokens", type=int, default=16, help="decoded tokens of a row, at least 2")
    add("--rounds", type=int, default=5, help="measurements that the medians are taken of")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where")
    add("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the file")
    add("--name", help="of the file; default: backbone, shape and batch")
    return parser


if __name__ == "__main__":
    main()
