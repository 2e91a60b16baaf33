"""Answer prompts greedily with vLLM; runs in vLLM's own environment.

    VLLM_PYTHON -m imsm.serving.vllm.answers WORK.json ANSWERS.json

It is started in a process group of its own, which it kills when its standard input ends.

WORK holds "model", "engine" (arguments of `vllm.LLM`), "stop_token_ids" (null: generate "max_tokens" tokens, EOS or
not) and "rounds". A round is a list of requests that are answered in one continuous batch, each with "prompt" (token
ids), "max_tokens" and "arguments" (extra_args of the plugin).
ANSWERS holds per round and request "tokens", "logprobs" and the recorded "gate"; "seconds" per round; and "metrics",
counters of vLLM.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams

from imsm.serving.vllm.parent import end_with_parent

_COUNTERS = ("vllm:num_preemptions", "vllm:prefix_cache_hits", "vllm:prefix_cache_queries")


def main() -> None:
    """Read the requests, answer them, write the answers."""
    end_with_parent()
    work: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    llm = LLM(work["model"], disable_log_stats=False, **work["engine"])
    warm_up = SamplingParams(temperature=0.0, max_tokens=1)
    llm.generate([{"prompt_token_ids": [1]}], warm_up, use_tqdm=False)
    rounds, seconds = [], []
    for requests in work["rounds"]:
        start = time.perf_counter()
        rounds.append(_answer(llm, requests, stop_token_ids=work["stop_token_ids"]))
        seconds.append(time.perf_counter() - start)
    metrics = {metric.name: getattr(metric, "value", None) for metric in llm.get_metrics() if metric.name in _COUNTERS}
    Path(sys.argv[2]).write_text(json.dumps({"rounds": rounds, "seconds": seconds, "metrics": metrics}))


def _answer(llm: LLM, requests: list[dict[str, Any]], *, stop_token_ids: list[int] | None) -> list[dict[str, Any]]:
    prompts: Any = [{"prompt_token_ids": request["prompt"]} for request in requests]
    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=request["max_tokens"],
            ignore_eos=stop_token_ids is None,
            stop_token_ids=stop_token_ids,
            logprobs=0,
            extra_args=request["arguments"],
        )
        for request in requests
    ]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    names = [request["arguments"].get("imsm_record") for request in requests]
    gates: dict[str, Any] = {}
    if any(names):
        (gates,) = llm.collective_rpc("take_gates", args=([name for name in names if name],))
    answers = []
    for name, output in zip(names, outputs, strict=True):
        (answer,) = output.outputs
        steps = zip(answer.token_ids, answer.logprobs or (), strict=True)
        logprobs = [step[token].logprob for token, step in steps]
        answers.append({"tokens": list(answer.token_ids), "logprobs": logprobs, "gate": gates.get(name)})
    return answers


if __name__ == "__main__":
    main()
