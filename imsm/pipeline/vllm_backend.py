"""Evaluate with vLLM (`evaluation.backend=vllm`): its engine generates the responses, in its own environment.

vLLM needs another version of transformers, so its process is started with the interpreter in IMSM_VLLM_PYTHON and
exchanges JSON files with this one. The original is answered by vLLM's own model of the backbone, the other streams by
the plugin (`imsm.serving.vllm`). Likelihoods, KL and kept checkpoints are computed here, as without vLLM.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from imsm.config.schema import RunConfig
from imsm.evaluation.engine_responses import EngineAnswer, EngineRequest, Generate
from imsm.models.backbones.loading import resolve_path
from imsm.pipeline.export_vllm import export_vllm
from imsm.utils import stop_signals
from imsm.utils.errors import RunError
from imsm.utils.leftovers import remove_folders
from imsm.utils.paths import cache_folder
from imsm.utils.run_dir import RunDir

PYTHON = "IMSM_VLLM_PYTHON"
"""Environment variable with the interpreter of vLLM's environment."""
SETTINGS = {"engine": "vllm 0.32"}
"""Part of the key of the responses."""
_FOLDER = "vllm-"
_ANSWERS = "imsm.serving.vllm.answers"
_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
Work = Mapping[str, Any]


def vllm_generator(config: RunConfig, *, run: RunDir, stream: str, eos: Sequence[int]) -> Generate:
    """Return a function that answers prompts with vLLM.

    Raises:
        UserError: vLLM cannot compute the run's model; raised when prompts are answered.
        RunError: vLLM failed.
    """
    return partial(_generate, config=config, run=run, stream=stream, eos=eos)


def _generate(
    requests: Sequence[EngineRequest], *, config: RunConfig, run: RunDir, stream: str, eos: Sequence[int]
) -> list[EngineAnswer]:
    with _temporary_folder() as folder:
        if stream == "original":
            backbone = config.backbone
            model = resolve_path(backbone.name_or_path, local_resolver=backbone.local_resolver)
        else:
            export_vllm(run, folder / "model", link=True)
            model = str(folder / "model")
        longest = max(len(request.prompt) + request.max_tokens for request in requests)
        engine: dict[str, Any] = {
            "dtype": config.backbone.dtype,
            "max_model_len": longest + 1,
            "enable_prefix_caching": True,
        }
        if stream == "original":
            engine["revision"] = config.backbone.revision
        rows = [
            {
                "prompt": list(request.prompt),
                "max_tokens": request.max_tokens,
                "arguments": {} if stream == "original" else _arguments(stream, str(index)),
            }
            for index, request in enumerate(requests)
        ]
        work = {"model": model, "engine": engine, "stop_token_ids": list(eos), "rounds": [rows]}
        result = run_engine(work, folder)
    seconds = result["seconds"][0] / len(requests)
    return [
        EngineAnswer(
            tokens=answer["tokens"],
            gates=[mean for mean, _ in answer["gate"]] if answer["gate"] is not None else None,
            seconds=seconds,
        )
        for answer in result["rounds"][0]
    ]


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Yield a folder in the cache, removed afterwards, on a stop signal, or by the next evaluation after a kill."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    remove_folders(cache_folder(), prefix=_FOLDER)
    with (
        TemporaryDirectory(prefix=f"{_FOLDER}{os.getpid()}-", dir=cache_folder()) as name,
        stop_signals.on_stop(partial(shutil.rmtree, name, ignore_errors=True)),
    ):
        yield Path(name)


def _arguments(stream: str, name: str) -> dict[str, str]:
    return {"imsm_stream": stream} | ({"imsm_record": name} if stream == "interwoven" else {})


def run_engine(work: Work, folder: Path) -> dict[str, Any]:
    """Answer requests in vLLM's environment; the files of the exchange are written to ``folder``.

    Raises:
        RunError: the process failed; its output is on standard error.
    """
    request, response = folder / "work.json", folder / "answers.json"
    request.write_text(json.dumps(work), encoding="utf-8")
    command = [os.environ[PYTHON], "-P", "-m", _ANSWERS, str(request), str(response)]
    # vLLM prints to standard output, which belongs to the report; its processes end when the pipe to them closes
    process = subprocess.Popen(
        command, env=os.environ | _ENVIRONMENT, stdin=subprocess.PIPE, stdout=2, start_new_session=True
    )
    with process:
        code = process.wait()
    if code or not response.is_file():
        raise RunError(
            f"evaluation.backend=vllm: its process ended with exit code {code}; see its output above, "
            "or set evaluation.backend=transformers; the training is kept"
        )
    result: dict[str, Any] = json.loads(response.read_text(encoding="utf-8"))
    return result
