"""Measure speed and memory, each row together with what it is compared with.

    python -m scripts.bench            # at most 30 minutes on two cores
    python -m scripts.bench --full     # also plots of how cost grows
    python -m scripts.bench --device cuda --seconds 300 --output DIR

Run it in the checkout. Writes `benchmarks/results/<device>.json` and a page with plots, and prints a
table. On a GPU it measures other rows (`scripts.bench.gpu`) with random weights of Llama 3 8B's
shape in bfloat16, writes the file after each, and a second call continues; `--tiny` measures these
rows with tiny shapes on any device. Rows whose libraries are not installed are skipped and listed.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers.utils import logging

from imsm.utils.paths import conf_folder
from scripts.bench.comparison import Comparison
from scripts.bench.curves import Curve, decoding_curve, processes_curve, runs_curve, step_curves
from scripts.bench.decoding import compare_decoding, compare_paper_code, compare_skip
from scripts.bench.evaluation import compare_evaluation
from scripts.bench.gpu import main as gpu_main
from scripts.bench.gpu import rows as gpu_rows
from scripts.bench.host import compare_host
from scripts.bench.memory import compare_memory
from scripts.bench.padding import compare_padding
from scripts.bench.report import write_page
from scripts.bench.result import ROOT, commit, device_name, print_table, write_result
from scripts.bench.startup import compare_startup
from scripts.bench.steps import compare_sft, compare_steps, compare_trainer
from scripts.bench.sweep import compare_sweep
from scripts.bench.workloads import Setup

SHAPES = {"mrpc": {"prompt_tokens": 80, "answer_tokens": 2}, "gsm8k": {"prompt_tokens": 128, "answer_tokens": 128}}
"""Tokens of an example: MRPC's answers are one word and the end token, GSM8K's are worked solutions."""
CPU_NAMES = [
    "steps",
    "trainer",
    "sft",
    "padding",
    "memory",
    "decoding",
    "host",
    "skip",
    "paper_code",
    "evaluation",
    "sweep",
]
CPU_NAMES += ["startup"]
Compare = Callable[[], list[Comparison]]
Draw = Callable[[], list[Curve]]


def comparisons(setup: Setup, mini: Setup, *, rounds: int) -> dict[str, Compare]:
    """Return the comparisons by name, in order of measurement; ``mini`` is the miniature."""
    return {
        "steps": partial(compare_steps, setup, rounds=rounds),
        "trainer": partial(compare_trainer, setup, rounds=rounds),
        "sft": partial(compare_sft, setup, rounds=rounds),
        "padding": partial(compare_padding, setup, rounds=rounds),
        "memory": partial(compare_memory, setup),
        "decoding": partial(compare_decoding, setup, rounds=rounds),
        "host": partial(compare_host, setup),
        "skip": partial(compare_skip, setup, rounds=rounds),
        "paper_code": partial(compare_paper_code, setup),
        "evaluation": partial(compare_evaluation, mini),
        "sweep": partial(compare_sweep, mini),
        "startup": compare_startup,
    }


def curves(setup: Setup, mini: Setup, *, rounds: int) -> dict[str, Draw]:
    """Return what `--full` adds."""
    long = replace(setup, batch=4, **SHAPES["gsm8k"])

    def gsm8k() -> list[Comparison]:
        return [replace(row, name=f"GSM8K's shape: {row.name}") for row in long_rows()]

    long_rows = partial(compare_steps, long, rounds=rounds)
    return {
        "gsm8k": gsm8k,  # type: ignore[dict-item]
        "step curves": partial(step_curves, setup, rounds=rounds),
        "decoding curve": lambda: [decoding_curve(setup, rounds=rounds)],
        "runs": lambda: [runs_curve(mini)],
        "processes": lambda: [processes_curve(mini)],
    }


def make_setup(backbone: str, *, device: str, dtype: str, random: bool, batch: int) -> Setup:
    """LoRA of rank 16 on query and value, a gate of rank 8, MRPC's shape."""
    values = _values(backbone)
    roles = values["module_names"]
    keys = ("name_or_path", "revision", "attn_implementation", "local_resolver")
    return Setup(
        backbone={key: values[key] for key in keys},
        shape=values["architecture"] if random else None,
        target_modules=[*roles["attention_query"], *roles["attention_value"]],
        gate_rank=8,
        lora_rank=16,
        batch=batch,
        dtype=dtype,
        device=device,
        **SHAPES["mrpc"],
    )


def measure(requested: dict[str, Callable[[], list[Any]]]) -> tuple[list[Any], list[dict[str, str]]]:
    """Return all rows, and the skipped comparisons with the module that they need."""
    found: list[Any] = []
    left_out = []
    for name, compare in requested.items():
        started = time.monotonic()
        try:
            rows = compare()
        except ModuleNotFoundError as error:
            needs = error.name or str(error)
            if needs.split(".")[0] in ("imsm", "scripts"):
                raise
            print(f"{name}: skipped, needs {needs}", file=sys.stderr)
            left_out.append({"name": name, "needs": needs})
            continue
        found += rows
        for row in rows:
            ratio = f", ratio {row.ratio:.2f}" if isinstance(row, Comparison) else ""
            print(f"{row.name}{ratio}", file=sys.stderr, flush=True)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        gc.collect()
    return found, left_out


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure, write and print; return the path of the result file."""
    parser = _parser()
    options = parser.parse_args(argv)
    commit_at_start = commit()
    logging.disable_progress_bar()  # while weights are loaded
    warnings.filterwarnings("ignore", category=FutureWarning)  # between libraries
    gpu = options.device.startswith("cuda") or options.tiny
    names = [row.name for row in gpu_rows.ROWS] if gpu else CPU_NAMES
    if unknown := sorted(set(options.only or ()) - set(names)):
        parser.error(f"--only={', '.join(unknown)}: not measured on this device; choose from {', '.join(names)}")
    setup = make_setup(
        options.backbone or ("llama3" if gpu else "gemma3_270m"),
        device=options.device,
        dtype="bfloat16" if gpu else "float32",
        random=options.random or gpu,
        batch=options.batch,
    )
    name = options.name or device_name(options.device)
    if gpu:
        try:
            return gpu_main.run(options, setup, name=name, commit=commit_at_start)
        except ValueError as error:
            parser.error(str(error))
    return _measure_on_cpu(options, setup, path=options.output / f"{name}.json", commit_at_start=commit_at_start)


def _measure_on_cpu(options: argparse.Namespace, setup: Setup, *, path: Path, commit_at_start: str | None) -> Path:
    mini = make_setup("mini", device=options.device, dtype="float32", random=False, batch=16)
    mini = replace(mini, target_modules=_linear("mini"))
    everything = comparisons(setup, mini, rounds=options.rounds)
    wanted = {name: everything[name] for name in options.only or everything}
    rows, left_out = measure(wanted)
    drawn: list[Curve] = []
    if options.full:
        more, lacking = measure(curves(setup, mini, rounds=options.rounds))
        rows += [each for each in more if isinstance(each, Comparison)]
        drawn = [each for each in more if isinstance(each, Curve)]
        left_out += lacking
    settings = {
        "backbone": options.backbone or "gemma3_270m",
        "random_weights": setup.shape is not None,
        "batch": setup.batch,
        "prompt_tokens": setup.prompt_tokens,
        "answer_tokens": setup.answer_tokens,
        "dtype": setup.dtype,
        "rounds": options.rounds,
    }
    record = write_result(
        path,
        rows,
        curves=drawn,
        left_out=left_out,
        device=options.device,
        settings=settings,
        commit_at_start=commit_at_start,
    )
    print_table(record)
    print(f"written: {path} and {write_page(path, record)}")
    return path


def _values(backbone: str) -> dict[str, Any]:
    """Read a YAML file of conf/backbone without Hydra, which a bare GPU machine may lack."""
    text = (conf_folder() / "backbone" / f"{backbone}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def _linear(backbone: str) -> list[str]:
    """Return the names of all linear layers."""
    roles = _values(backbone)["module_names"]
    return [name for role, names in roles.items() if not role.endswith("_norm") for name in names]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench",
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--only", nargs="+", metavar="NAME", help=f"which comparisons; default: all; on a CPU {', '.join(CPU_NAMES)}")
    add("--full", action="store_true", help="CPU: also GSM8K's shape, and curves")
    add("--seconds", type=float, default=300, help="GPU: start no row after this time")
    add("--tiny", action="store_true", help="the GPU's rows with tiny shapes, on any device")
    backbones = sorted(path.stem for path in (conf_folder() / "backbone").glob("*.yaml"))
    add(
        "--backbone",
        choices=backbones,
        metavar="NAME",
        help="a name in conf/backbone; default: gemma3_270m, on a GPU llama3",
    )
    add("--random", action="store_true", help="random weights of that backbone's shape")
    add("--batch", type=int, default=16, help="rows of a training batch")
    add("--rounds", type=int, default=3, help="measurements per median")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device")
    add("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the result files")
    add("--name", help="name of the result files; default: the device's")
    return parser


if __name__ == "__main__":
    main()
