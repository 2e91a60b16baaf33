"""The plugin in vLLM's own process, run by `make vllm` alone: each architecture, dense changes, the HTTP server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from imsm.models.backbones.loading import disable_dropout
from imsm.models.siamese.config import SiameseConfig
from imsm.models.siamese.gate import INPUTS, build_gate
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline import vllm_backend
from imsm.pipeline.export_vllm import export_vllm
from imsm.utils.run_dir import RunDir
from scripts.vllm import compare
from tests.models.siamese.tiny import ADAPTERS, perturb, tiny_tokenizer

PYTHON = os.environ.get(vllm_backend.PYTHON)
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(PYTHON is None, reason="IMSM_VLLM_PYTHON: names no environment of vLLM; run `make vllm`"),
]
COMMON = {
    "vocab_size": 97,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
GEMMA = {
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "query_pre_attn_scalar": 32,
    "tie_word_embeddings": True,
}
CASES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "llama, dora": ("llama", {}, "dora", "mean"),
    "mistral, lora, last": ("mistral", {"sliding_window": None}, "lora", "last"),
    "qwen2, ia3": ("qwen2", {"tie_word_embeddings": True}, "ia3", "mean"),
    "qwen3, adalora": ("qwen3", {}, "adalora", "mean"),
    "gemma3, lora": ("gemma3_text", GEMMA, "lora", "mean"),
}


def save_run(folder: Path, model_type: str, options: dict[str, Any], method: str, pooling: str) -> RunDir:
    """Save a random backbone and a random siamese model on it, as a run has it."""
    torch.manual_seed(11)
    backbone = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **COMMON | options))
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "norm" not in name and "embed" not in name:
                parameter.mul_(4)
    disable_dropout(backbone)
    backbone.save_pretrained(folder / "backbone")
    config = SiameseConfig(
        text_config=backbone.config,
        backbone={"name_or_path": str(folder / "backbone"), "dtype": "float32"},
        gate={"_target_": "imsm.models.siamese.gate.Gate", "inputs": list(INPUTS), "rank": 4},
        pooling=pooling,
    )
    adapted = get_peft_model(backbone.requires_grad_(False), ADAPTERS[method]().config)
    gate = build_gate(hidden_size=COMMON["hidden_size"], **config.gate)
    model = SiameseForCausalLM(config, adapted, gate)
    perturb(model, scale=0.1)
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return RunDir(folder)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
def test_plugin_answers_as_generate(case: str, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", *CASES[case])
    export_vllm(run, tmp_path / "exported", link=True)
    model = SiameseForCausalLM.from_pretrained(run.path)
    generator = torch.Generator().manual_seed(3)
    lengths = (3, 17, 40, 64, 65, 90, 100, 120)
    prompts = [torch.randint(3, 97, (length,), generator=generator).tolist() for length in lengths]
    agreements, metrics = compare.compare(model, tmp_path / "exported", prompts, max_tokens=40)
    assert metrics["vllm:num_preemptions"] > 0 and metrics["vllm:prefix_cache_hits"] > 0
    for stream, agreement in agreements.items():
        assert agreement.tokens > 200 and agreement.differences == 0, stream
        assert agreement.logprob < 1e-3 and agreement.gate < 1e-3, stream


@contextmanager
def server(folder: Path, log: Path) -> Iterator[str]:
    """Serve an exported folder on a free port; yield the URL of its API."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--model", str(folder), "--served-model-name", "run", "--host", "127.0.0.1", "--port", str(port)]
    options += ["--dtype", "float32", "--kv-cache-memory-bytes", str(2**26), "--max-model-len", "128"]
    environment = os.environ | {"VLLM_PLUGINS": "imsm,imsm_gates", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    command = [str(PYTHON), "-P", "-m", "vllm.entrypoints.openai.api_server", *options]
    with log.open("w") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + 540
            while process.poll() is None and time.monotonic() < deadline:
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
                time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def post(url: str, **values: Any) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, json.dumps(values).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.timeout(900)
def test_server_answers_in_the_requested_stream_and_gives_the_gate(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", *CASES["llama, dora"])
    export_vllm(run, tmp_path / "exported")
    model = SiameseForCausalLM.from_pretrained(run.path)
    prompt = [5, 80, 33, 12, 7]
    references = {s: compare.generate(model, [prompt], stream=s, max_tokens=12)[0] for s in compare.STREAMS}
    assert len({tuple(each["tokens"]) for each in references.values()}) == 3
    common = {"model": "run", "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    with server(tmp_path / "exported", tmp_path / "server.log") as url:
        for stream, reference in references.items():
            arguments = {"imsm_stream": stream, "imsm_record": stream}
            status, body = post(f"{url}/completions", vllm_xargs=arguments, return_token_ids=True, **common)
            assert (status, body["choices"][0]["token_ids"]) == (200, reference["tokens"])
        with urllib.request.urlopen(f"{url}/imsm/gates/interwoven", timeout=60) as response:
            means = [gate["mean"] for gate in json.load(response)["gates"]]
        assert means == pytest.approx(references["interwoven"]["gates"], abs=1e-3)
        for wrong in ({"imsm_stream": "other"}, {"imsm_gate": 2}, {"imsm_colour": "red"}):
            status, body = post(f"{url}/completions", vllm_xargs=wrong, **common)
            assert status == 400 and next(iter(wrong)) in body["error"]["message"]
