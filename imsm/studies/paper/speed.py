"""Table 5: tokens per second of PEFT and IMSM, measured alternately in one process.

One model per PEFT method runs both the tuned and the interwoven stream, so that weights, prompts and
background load are the same for both.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from imsm.config.schema import RunConfig
from imsm.distributed.context import DistributedContext
from imsm.evaluation.result import provenance
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.engine import local_device
from imsm.pipeline.model import build_adapter, new_model
from imsm.reporting.render.table import Table
from imsm.studies.paper.runs import RunIndex
from imsm.studies.paper.spec import PaperTable
from imsm.utils.errors import UserError
from imsm.utils.files import write_atomic
from imsm.utils.json_files import read_json

FILE = "speed.json"
PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 64, 64, 5
"""Prompt and decoded tokens at batch 1, and number of rounds after one warm-up round."""
STREAMS = {"peft": "tuned", "imsm": "interwoven"}
_KEYS = {"device", "date", "prompt_tokens", "new_tokens", "rounds", "rows"}
_ROW_KEYS = {"overrides", "method", "tokens_per_second", "lowest", "highest"}


def measure_speed(table: PaperTable, runs: RunIndex, *, scale: str, log: Callable[[str], None]) -> dict[str, Any]:
    """Measure all rows; return the content of `speed.json`, with the median speed of the rounds."""
    rows = []
    device = torch.device("cpu")
    # Rows that differ only in the method share a model, which runs both streams.
    models = {
        _without(table.overrides(row, column, scale=scale, seed=0), "method", "seed")
        for row in table.rows
        for column in table.spec.columns
    }
    for overrides in sorted(models):
        config = runs.config((*overrides, "method=imsm"))
        device = local_device(config, DistributedContext())
        log(f"decoding: {' '.join(overrides)}")
        for method, seconds in _measure_model(config, device=device).items():
            speeds = [NEW_TOKENS / each for each in seconds]
            rows.append(
                {
                    "overrides": sorted([*overrides, f"method={method}"]),
                    "method": method,
                    "tokens_per_second": statistics.median(speeds),
                    "lowest": min(speeds),
                    "highest": max(speeds),
                }
            )
    processor = f"{platform.processor() or platform.machine()} CPU, {os.cpu_count()} cores"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
        "date": time.strftime("%Y-%m-%d"),
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "rounds": ROUNDS,
        **provenance(),
        "rows": rows,
    }


def read_speed(folder: Path) -> dict[str, Any] | None:
    """Read `speed.json`; None if it does not exist.

    Raises:
        UserError: The file is damaged.
    """
    path = folder / FILE
    if not os.path.lexists(path):
        return None
    measured: dict[str, Any] = read_json(path, fix="remove it")
    rows = measured["rows"] if measured.keys() >= _KEYS else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= _ROW_KEYS for row in rows):
        raise UserError(f"{path}: is not a speed measurement; remove it")
    return measured


def write_speed(measured: dict[str, Any], folder: Path) -> None:
    """Write `speed.json`.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FILE, json.dumps(measured, indent=2) + "\n")


def speed_table(table: PaperTable, measured: dict[str, Any], *, scale: str) -> Table:
    """Build the table of our and the paper's tokens per second, with the ratio of IMSM to PEFT."""
    by_overrides = {tuple(row["overrides"]): row for row in measured["rows"]}
    records = []
    for row in table.rows:
        is_peft = row.values["method"] == "peft"
        peft_row = next(r for r in table.rows if r.values == {**row.values, "method": "peft"})
        record = dict(row.values)
        for column in table.spec.columns if scale == "paper" else table.spec.columns[:1]:
            ours, peft = (
                by_overrides.get(tuple(sorted(_without(table.overrides(r, column, scale=scale, seed=0), "seed"))))
                for r in (row, peft_row)
            )
            name = "miniature" if scale == "mini" else _model_name(column.name)
            record[f"ours, {name}"] = "–" if ours is None else _format_speed(ours)
            ratio = f"{ours['tokens_per_second'] / peft['tokens_per_second']:.2f}" if ours and peft else "–"
            record[f"share, {name}"] = "" if is_peft else ratio
        for column in table.spec.columns:
            name, speeds = _model_name(column.name), [r.paper.get(column.name) for r in (row, peft_row)]
            record[f"paper, {name}"] = speeds[0] or "–"
            ratio = f"{float(speeds[0]) / float(speeds[1]):.2f}" if speeds[0] and speeds[1] else "–"
            record[f"its share, {name}"] = "" if is_peft else ratio
        records.append(record)
    return Table(
        columns=list(records[0]),
        rows=[list(record.values()) for record in records],
        text_columns=len(table.spec.keys),
        caption=f"{table.spec.title} · {'ours: the miniature' if scale == 'mini' else 'paper'}",
        notes=[
            f"Tokens per second at batch 1: the median of {measured['rounds']} rounds of {measured['new_tokens']} "
            f"tokens after {measured['prompt_tokens']} (lowest, highest), PEFT and IMSM alternately in one process. "
            f"Share: IMSM's speed as a fraction of PEFT's. {measured['device']}, {measured['date']}.",
            "Speeds are of different models on different machines; only the shares are comparable.",
        ],
    )


def _measure_model(config: RunConfig, *, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds of each round by method, without the warm-up round."""
    # The adapter is untrained: the values of the weights do not change the speed.
    model: SiameseForCausalLM = new_model(config, build_adapter(config), device=device).eval()
    generator = torch.Generator().manual_seed(0)
    # The first ids of many vocabularies are special tokens.
    prompt = torch.randint(8, int(model.config.vocab_size), (1, PROMPT_TOKENS), generator=generator).to(device)
    # The minimum prevents an early EOS; without a pad token, transformers logs a warning each time.
    settings = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, pad_token_id=0)
    seconds: dict[str, list[float]] = {method: [] for method in STREAMS}
    for number in range(ROUNDS + 1):
        # Alternating, so that a change in background load affects both methods.
        for method, stream in STREAMS.items():
            model.stream = stream  # type: ignore[assignment]
            started = time.perf_counter()
            with torch.inference_mode():
                output = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
            assert isinstance(output, torch.Tensor)
            # Copying waits for the GPU, whose kernels run asynchronously.
            output.cpu()
            # The first round is slower: kernels are loaded and memory is allocated.
            if number:
                seconds[method].append(time.perf_counter() - started)
    return seconds


def _without(overrides: Sequence[str], *keys: str) -> tuple[str, ...]:
    return tuple(text for text in overrides if text.partition("=")[0] not in keys)


def _model_name(column: str) -> str:
    return column.removesuffix("_tokens_per_s")


def _format_speed(row: dict[str, Any]) -> str:
    return f"{row['tokens_per_second']:.1f} ({row['lowest']:.1f}, {row['highest']:.1f})"
