"""Answer prompts with vLLM; runs in vLLM's own environment and imports nothing of imsm.

    VLLM_PYTHON scripts/vllm/answers.py REQUESTS.json ANSWERS.json

REQUESTS holds "model", "engine" (arguments of `vllm.LLM`), "max_tokens" and "requests": each with "prompt" (token
ids) and "arguments" (extra_args of the plugin). ANSWERS holds per request "tokens", "logprobs" and, if it was
recorded, "gate"; "seconds" of the generation; and "metrics", counters of vLLM.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams

_COUNTERS = ("vllm:num_preemptions", "vllm:prefix_cache_hits", "vllm:prefix_cache_queries")


def main() -> None:
    """Read the requests, answer all of them in one continuous batch, write the answers."""
    work: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    llm = LLM(work["model"], disable_log_stats=False, **work["engine"])
    requests = work["requests"]
    prompts: Any = [{"prompt_token_ids": request["prompt"]} for request in requests]
    options = {"temperature": 0.0, "max_tokens": work["max_tokens"], "ignore_eos": True, "logprobs": 0}
    params = [SamplingParams(**options, extra_args=request["arguments"]) for request in requests]
    llm.generate(prompts[:1], params[:1], use_tqdm=False)  # the first pass allocates
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - start
    recorded = _recorded_gates(llm, requests)
    answers = []
    for request, output in zip(requests, outputs, strict=True):
        (answer,) = output.outputs
        logprobs = [step[token].logprob for token, step in zip(answer.token_ids, answer.logprobs or (), strict=True)]
        gate = recorded.get(request["arguments"].get("imsm_record"))
        answers.append({"tokens": list(answer.token_ids), "logprobs": logprobs, "gate": gate})
    metrics = {metric.name: metric.value for metric in llm.get_metrics() if metric.name in _COUNTERS}
    Path(sys.argv[2]).write_text(json.dumps({"answers": answers, "seconds": seconds, "metrics": metrics}))


def _recorded_gates(llm: LLM, requests: list[dict[str, Any]]) -> dict[str, list[float]]:
    names = [request["arguments"]["imsm_record"] for request in requests if "imsm_record" in request["arguments"]]
    if not names:
        return {}
    (gates,) = llm.collective_rpc("take_gates", args=(names,))
    return gates


if __name__ == "__main__":
    main()
