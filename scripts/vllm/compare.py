"""Compare the vLLM plugin with `SiameseForCausalLM.generate` on a finished run, and measure its speed.

    IMSM_VLLM_PYTHON=.vllm/bin/python python -m scripts.vllm.compare RUN --prompts 200

The prompts are those of the run's predictions, evenly spaced by length. vLLM answers all of them in each stream in one
continuous batch, with a prefill of 16 tokens per step, prefix caching, and a cache so small that requests are
preempted; then a second round of prompts that contain the first round's answers. The script ends with an error if a
greedy token differs from that of `generate` where it was not tied, or a log probability by more than 1e-3.

The second table has tokens per second: vLLM without the plugin on the backbone and on the merged model, the plugin's
streams, `generate` in batches of 16, and the engine of `imsm serve` with 16 answers in flight, which end at EOS.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tabulate import tabulate

from imsm.cli.common import find_run
from imsm.data.tokenization import encode_prompts
from imsm.evaluation.predictions import FILE
from imsm.models.backbones.loading import load_tokenizer, resolve_path
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.export_merged import export_merged
from imsm.pipeline.export_vllm import export_vllm
from imsm.pipeline.vllm_backend import PYTHON, run_engine
from imsm.serving.engine import Engine, Model, Request, Step
from imsm.utils.run_dir import RunDir, read_identity

STREAMS = ("original", "tuned", "interwoven")
TIE = 1e-3
"""Two tokens whose log probabilities differ by less are tied."""
LOGPROB_TOLERANCE = 1e-3
_BATCH = 16
_BLOCK = 32
_STRICT = {"max_num_batched_tokens": 16, "enable_chunked_prefill": True, "enable_prefix_caching": True}


@dataclass
class Agreement:
    """How the answers of one stream agree.

    Attributes:
        tokens: compared tokens, up to the first difference of an answer.
        ties: answers that differ from a token on that was tied.
        differences: answers that differ elsewhere.
        logprob: largest difference of a log probability over equal tokens.
        gate: largest difference of the gate's mean over equal tokens.
    """

    tokens: int = 0
    ties: int = 0
    differences: int = 0
    logprob: float = 0.0
    gate: float = 0.0

    def add(self, answer: dict[str, Any], reference: dict[str, Any]) -> None:
        """Compare one answer."""
        for position, token in enumerate(reference["tokens"]):
            if answer["tokens"][position] != token:
                tied = reference["margins"][position] < TIE
                self.ties, self.differences = self.ties + tied, self.differences + (not tied)
                return
            self.tokens += 1
            difference = abs(answer["logprobs"][position] - reference["logprobs"][position])
            self.logprob = max(self.logprob, difference)
            if answer["gate"] is not None and reference["gates"]:
                self.gate = max(self.gate, abs(answer["gate"][position][0] - reference["gates"][position]))


def run_vllm(
    folder: Path, model: Path | str, rounds: Sequence[Sequence[dict[str, Any]]], *, max_tokens: int, **options: Any
) -> dict[str, Any]:
    """Return vLLM's answers (`imsm.serving.vllm.answers`); files are exchanged in ``folder``."""
    engine = {"dtype": "float32", "enforce_eager": True, **options}
    requests = [[{**request, "max_tokens": max_tokens} for request in each] for each in rounds]
    return run_engine({"model": str(model), "engine": engine, "stop_token_ids": None, "rounds": requests}, folder)


def read_prompts(run: RunDir, *, count: int, max_length: int) -> list[list[int]]:
    """Return ``count`` prompts of the run's predictions as tokens, evenly spaced by length."""
    chat = bool(read_identity(run, {"backbone": dict})["backbone"].get("chat_template", False))
    files = sorted(run.path.glob(f"evaluation/*/{FILE}"))
    texts = {json.loads(line)["prompt"]: None for path in files for line in path.read_text().splitlines()}
    tokenizer = load_tokenizer(name_or_path=str(run.model))
    encoded = sorted(map(list, encode_prompts(tokenizer, list(texts), chat=chat)), key=lambda ids: (len(ids), ids))
    fitting = [ids for ids in encoded if len(ids) <= max_length]
    count = min(count, len(fitting))
    return [fitting[index * len(fitting) // count] for index in range(count)]


@torch.inference_mode()
def generate(
    model: SiameseForCausalLM, prompts: Sequence[Sequence[int]], *, stream: str, max_tokens: int
) -> list[dict[str, Any]]:
    """Return greedy tokens, log probabilities, margins to the second best token, and the gate's means."""
    model.stream = stream  # type: ignore[assignment]
    answers: list[dict[str, Any]] = []
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in batch])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch])
        gates: list[torch.Tensor] = []
        hook = model.register_forward_hook(lambda _, __, output, seen=gates: seen.append(output.gate))
        output: Any = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        hook.remove()
        logprobs = torch.stack([logits.float().log_softmax(-1) for logits in output.logits], dim=1)
        tokens = output.sequences[:, width:]
        best = logprobs.topk(2).values
        chosen = logprobs.gather(2, tokens[..., None])[..., 0]
        for row in range(len(batch)):
            means = [float(gate[row, -1]) for gate in gates if gate is not None]
            margins = (best[row, :, 0] - best[row, :, 1]).tolist()
            values = {"tokens": tokens[row].tolist(), "logprobs": chosen[row].tolist(), "margins": margins}
            answers.append({**values, "gates": means})
    return answers


def compare(
    model: SiameseForCausalLM,
    exported: Path,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    streams: Sequence[str] = STREAMS,
) -> tuple[dict[str, Agreement], dict[str, int]]:
    """Return the agreement of each stream, and vLLM's counters."""
    streams = [stream for stream in streams if stream in model.available_streams()]
    references = [{s: generate(model, prompts, stream=s, max_tokens=max_tokens) for s in streams}]
    # prompts that continue an answer: the blocks of its tokens are in the prefix cache
    last = references[0][streams[-1]]
    follow_ups = [
        [*prompt, *answer["tokens"], *prompts[index - 1][1:9]]
        for index, (prompt, answer) in enumerate(zip(prompts, last, strict=True))
    ][::4]
    references.append({s: generate(model, follow_ups, stream=s, max_tokens=max_tokens) for s in streams})
    rounds = [
        [
            {"prompt": list(prompt), "arguments": _arguments(stream, f"{number}-{index}")}
            for index, prompt in enumerate(texts)
            for stream in streams
        ]
        for number, texts in enumerate((prompts, follow_ups))
    ]
    longest = max(map(len, [*prompts, *follow_ups])) + max_tokens
    # room for about three of the longest sequences: more requests run at once, so some are preempted
    blocks = 3 * (longest // _BLOCK + 1)
    small = {"block_size": _BLOCK, "num_gpu_blocks_override": blocks, "kv_cache_memory_bytes": 2**28}
    limits = {"max_model_len": longest + 1, "max_num_seqs": 16, "max_tokens": max_tokens}
    result = run_vllm(exported.parent, exported, rounds, **_STRICT, **small, **limits)
    agreements = {stream: Agreement() for stream in streams}
    for answers, reference in zip(result["rounds"], references, strict=True):
        for index, answer in enumerate(answers):
            stream = streams[index % len(streams)]
            agreements[stream].add(answer, reference[stream][index // len(streams)])
    return agreements, result["metrics"]


def _arguments(stream: str, name: str) -> dict[str, str]:
    return {"imsm_stream": stream} | ({"imsm_record": name} if stream == "interwoven" else {})


def measure_speed(
    run: RunDir, model: SiameseForCausalLM, exported: Path, prompts: Sequence[Sequence[int]], **limits: int
) -> dict[str, float]:
    """Return generated tokens per second of each way to answer the prompts."""
    max_tokens = limits["max_tokens"]
    backbone = model.config.backbone
    source = resolve_path(backbone["name_or_path"], local_resolver=backbone.get("local_resolver"))
    merged = exported.parent / "merged"
    export_merged(run, merged, stream="tuned")
    # without prefix caching, since the streams are answered one after another
    options = {"max_model_len": max(map(len, prompts)) + max_tokens + 1, "kv_cache_memory_bytes": 2**29}
    options |= {"enable_prefix_caching": False, **limits}
    generated, speeds = len(prompts) * max_tokens, {}
    plain = [[{"prompt": list(prompt), "arguments": {}} for prompt in prompts]]
    for name, folder in {"original": source, "tuned": str(merged)}.items():
        (seconds,) = run_vllm(exported.parent, folder, plain, **options)["seconds"]
        speeds[f"vLLM without the plugin, {name}"] = generated / seconds
    streams = [stream for stream in STREAMS if stream in model.available_streams()]
    rounds = [[{"prompt": list(p), "arguments": {"imsm_stream": s}} for p in prompts] for s in streams]
    for stream, seconds in zip(
        streams, run_vllm(exported.parent, exported, rounds, **options)["seconds"], strict=True
    ):
        speeds[f"vLLM with the plugin, {stream}"] = generated / seconds
    for stream in streams:
        start = time.perf_counter()
        generate(model, prompts, stream=stream, max_tokens=max_tokens)
        speeds[f"generate, {stream}"] = generated / (time.perf_counter() - start)
    for stream in streams:
        start = time.perf_counter()
        tokens = _serve(run, model, prompts, stream=stream, max_tokens=max_tokens)
        speeds[f"imsm serve, {stream}"] = tokens / (time.perf_counter() - start)
    return speeds


def _serve(
    run: RunDir, model: SiameseForCausalLM, prompts: Sequence[Sequence[int]], *, stream: str, max_tokens: int
) -> int:
    """Answer the prompts with the engine of `imsm serve`; return the number of generated tokens."""
    model.stream = stream  # type: ignore[assignment]
    served = Model(name=stream, model=model, tokenizer=load_tokenizer(name_or_path=str(run.model)))
    steps: SimpleQueue[Step] = SimpleQueue()
    tokens = 0
    with Engine(max_batch=_BATCH, max_waiting=len(prompts)) as engine:
        for prompt in prompts:
            engine.submit(Request(model=served, prompt=prompt, max_tokens=max_tokens, report=steps.put))
        left = len(prompts)
        while left:
            step = steps.get()
            if step.error is not None:
                raise RuntimeError(step.error)
            tokens, left = tokens + (step.token is not None), left - (step.finish_reason is not None)
    return tokens


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both tables; return 1 if the answers do not agree."""
    parser = argparse.ArgumentParser(prog="python -m scripts.vllm.compare", description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN", help="folder or name of a finished run")
    parser.add_argument("--prompts", type=int, default=200, metavar="N")
    parser.add_argument("--max-tokens", type=int, default=24, metavar="N")
    parser.add_argument("--max-length", type=int, default=400, metavar="N", help="longest prompt, in tokens")
    parser.add_argument("--streams", nargs="+", choices=STREAMS, default=STREAMS, help="streams to compare (all)")
    parser.add_argument("--speed", type=int, default=0, metavar="N", help="measure the speed on N prompts")
    options = parser.parse_args(arguments)
    if PYTHON not in os.environ:
        parser.error(f"{PYTHON}: set it to the interpreter of vLLM's environment")
    run = RunDir(find_run(options.run))
    prompts = read_prompts(run, count=options.prompts, max_length=options.max_length)
    model = SiameseForCausalLM.from_pretrained(run.path, dtype="float32", device="cpu")
    with TemporaryDirectory() as temporary:
        exported = Path(temporary) / "exported"
        export_vllm(run, exported, link=True)
        agreements, metrics = compare(model, exported, prompts, max_tokens=options.max_tokens, streams=options.streams)
        print(tabulate(_rows(agreements), headers=("stream", *vars(Agreement())), tablefmt="pipe", floatfmt=".1e"))
        print(", ".join(f"{name.removeprefix('vllm:')} {value:g}" for name, value in sorted(metrics.items())))
        if options.speed:
            sample = prompts[:: max(1, len(prompts) // options.speed)]
            speeds = measure_speed(run, model, exported, sample, max_tokens=options.max_tokens, max_num_seqs=_BATCH)
            print(tabulate(speeds.items(), headers=("", "tokens/s"), tablefmt="pipe", floatfmt=".1f"))
    wrong = [s for s, a in agreements.items() if a.differences or a.logprob > LOGPROB_TOLERANCE]
    return 1 if wrong else 0


def _rows(agreements: dict[str, Agreement]) -> Iterable[tuple[Any, ...]]:
    return [(stream, *vars(agreement).values()) for stream, agreement in agreements.items()]


if __name__ == "__main__":
    sys.exit(main())
