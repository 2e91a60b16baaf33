"""Table 5: tokens per second of PEFT and IMSM, all measured by turns in one process.

One model per PEFT method answers as the tuned and as the interwoven stream: the weights, the
prompts and the machine's other work are the same for both.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsm.evaluation.result import provenance
from imsm.studies.paper.runs import RunIndex
from imsm.studies.paper.spec import PaperTable
from imsm.utils.errors import UserError
from imsm.utils.files import write_atomic

if TYPE_CHECKING:
    import pandas
    import torch

    from imsm.models.siamese.model import SiameseForCausalLM

FILE = "speed.json"
PROMPT, NEW, ROUNDS = 64, 64, 5
"""Tokens of a prompt, tokens that are decoded (batch 1), and how often after a first time."""
STREAMS = {"peft": "tuned", "imsm": "interwoven"}

_KEYS = {"device", "date", "prompt_tokens", "new_tokens", "rounds", "rows"}
_ROW_KEYS = {"overrides", "method", "tokens_per_second", "lowest", "highest"}


def measure_speed(experiment: PaperTable, runs: RunIndex, *, scale: str, log: Callable[[str], None]) -> dict[str, Any]:
    """Decode with every arm; what `speed.json` keeps.

    Returns:
        device, date, versions, git, and rows of {overrides, method, tokens_per_second (the median
        of the rounds), lowest, highest}.
    """
    import torch

    from imsm.distributed.context import DistributedContext
    from imsm.pipeline.engine import local_device

    rows = []
    device = torch.device("cpu")
    wanted = {
        tuple(each for each in overrides if not each.startswith("method="))
        for overrides in _overrides(experiment, scale=scale)
    }
    for overrides in sorted(wanted):
        config = runs.config((*overrides, "method=imsm"))
        device = local_device(config, DistributedContext())
        log(f"decoding: {' '.join(overrides)}")
        model = _model(config, device)
        seconds = _by_turns(model, device=device)
        for method, found in seconds.items():
            speeds = [NEW / each for each in found]
            rows.append(
                {
                    "overrides": sorted([*overrides, f"method={method}"]),
                    "method": method,
                    "tokens_per_second": statistics.median(speeds),
                    "lowest": min(speeds),
                    "highest": max(speeds),
                }
            )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": name,
        "date": time.strftime("%Y-%m-%d"),
        "prompt_tokens": PROMPT,
        "new_tokens": NEW,
        "rounds": ROUNDS,
        **provenance(),
        "rows": rows,
    }


def read_speed(place: Path) -> dict[str, Any] | None:
    """What was measured and left in a folder; None if nothing was.

    Raises:
        UserError: the file is damaged.
    """
    try:
        found: dict[str, Any] = json.loads((place / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{place / FILE}: cannot be read ({error}); remove it") from error
    if not _is_measured(found):
        raise UserError(f"{place / FILE}: is not what was measured; remove it")
    return found


def _is_measured(found: Any) -> bool:
    """Whether it has what the table shows."""

    def has(values: Any, keys: set[str]) -> bool:
        return isinstance(values, dict) and keys <= values.keys()

    rows = found["rows"] if has(found, _KEYS) else None
    return isinstance(rows, list) and all(has(row, _ROW_KEYS) for row in rows)


def write_speed(found: dict[str, Any], place: Path) -> None:
    """Leave what was measured.

    Raises:
        OSError: the folder cannot be written.
    """
    place.mkdir(parents=True, exist_ok=True)
    write_atomic(place / FILE, json.dumps(found, indent=2) + "\n")


def speed_table(experiment: PaperTable, found: dict[str, Any], *, scale: str) -> tuple[pandas.DataFrame, list[str]]:
    """Ours and the paper's tokens per second, and IMSM's share of PEFT's; with notes."""
    import pandas

    columns = experiment.spec.columns if scale == "paper" else experiment.spec.columns[:1]
    by = {tuple(row["overrides"]): row for row in found["rows"]}
    lines = []
    for row in experiment.rows:
        line = dict(row.values)
        for column in columns:
            wanted = experiment.overrides(row, column, scale=scale, seed=0)
            mine = by.get(tuple(sorted(_plain(wanted))))
            name = "miniature" if scale == "mini" else column.name.removesuffix("_tokens_per_s")
            line[f"ours, {name}"] = "–" if mine is None else _speed(mine)
            line[f"share, {name}"] = _share(by, wanted, row.values["method"])
        for column in experiment.spec.columns:
            model_name = column.name.removesuffix("_tokens_per_s")
            line[f"paper, {model_name}"] = row.paper.get(column.name, "–")
            line[f"its share, {model_name}"] = _paper_share(experiment, row.values, column.name)
        lines.append(line)
    notes = [
        f"Tokens a second at batch 1: the median of {found['rounds']} rounds of "
        f"{found['new_tokens']} tokens after {found['prompt_tokens']} (lowest, highest), PEFT and "
        f"IMSM by turns in one process. Share: IMSM's speed of PEFT's. {found['device']}, "
        f"{found['date']}.",
        "Speeds are of different models on different machines; the shares may be compared.",
    ]
    return pandas.DataFrame(lines), notes


def _overrides(experiment: PaperTable, *, scale: str) -> list[tuple[str, ...]]:
    return [
        _plain(experiment.overrides(row, column, scale=scale, seed=0))
        for row in experiment.rows
        for column in experiment.spec.columns
    ]


def _plain(overrides: Sequence[str]) -> tuple[str, ...]:
    return tuple(each for each in overrides if not each.startswith("seed="))


def _model(config: Any, device: torch.device) -> SiameseForCausalLM:
    from imsm.models.builder import build_model
    from imsm.pipeline.model import build_adapter, model_kwargs

    model = build_model(adapter=build_adapter(config), **model_kwargs(config), device=device)
    return model.eval()


def _by_turns(model: SiameseForCausalLM, *, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each round by method; the first round of each is thrown away."""
    import torch
    from transformers import GenerationConfig

    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.config.vocab_size)
    prompt = torch.randint(8, vocabulary, (1, PROMPT), generator=generator).to(device)
    settings = GenerationConfig(do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=0)
    seconds: dict[str, list[float]] = {method: [] for method in STREAMS}
    for number in range(ROUNDS + 1):
        for method, stream in STREAMS.items():
            model.stream = stream  # type: ignore[assignment]
            started = time.perf_counter()
            with torch.inference_mode():
                out = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
            assert isinstance(out, torch.Tensor)
            out.cpu()  # a GPU has done its work by now
            if number:
                seconds[method].append(time.perf_counter() - started)
    return seconds


def _processor() -> str:
    import os

    return f"{platform.processor() or platform.machine()} CPU, {os.cpu_count()} cores"


def _speed(row: dict[str, Any]) -> str:
    middle, low, high = (row[key] for key in ("tokens_per_second", "lowest", "highest"))
    return f"{middle:.1f} ({low:.1f}, {high:.1f})"


def _share(by: dict[tuple[str, ...], Any], wanted: Sequence[str], method: str) -> str:
    if method == "peft":
        return ""
    other = [each if not each.startswith("method=") else "method=peft" for each in _plain(wanted)]
    mine, theirs = by.get(tuple(sorted(_plain(wanted)))), by.get(tuple(sorted(other)))
    if mine is None or theirs is None:
        return "–"
    return f"{mine['tokens_per_second'] / theirs['tokens_per_second']:.2f}"


def _paper_share(experiment: PaperTable, values: Any, column: str) -> str:
    if values["method"] == "peft":
        return ""
    rows = {tuple(row.values.values()): row for row in experiment.rows}
    mine = rows[tuple(values.values())].paper[column]
    theirs = rows[tuple({**values, "method": "peft"}.values())].paper[column]
    return f"{float(mine) / float(theirs):.2f}"
