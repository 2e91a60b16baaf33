"""The answers that an adapter gives to prompts, as training data for a gate where no target data is available.

They are generated greedily by the tuned stream, kept in the response cache, and written as JSON lines:

    <cache>/own_answers/<hash>.jsonl        {"input": prompt, "output": answer}, sorted as the prompts
"""

import json
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from imsm.config.schema import RunConfig
from imsm.data.example import Example
from imsm.data.tokenization import TokenizedExample, tokenize_prompts
from imsm.distributed.context import DistributedContext
from imsm.evaluation.auto_batch_size import auto_batch_size
from imsm.evaluation.generation import generate_responses
from imsm.evaluation.inference import through_cache
from imsm.evaluation.response_cache import ResponseCache, Row
from imsm.models.backbones.fingerprint import backbone_fingerprint
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.data import load_run_tokenizer, max_positions
from imsm.pipeline.engine import local_device
from imsm.pipeline.model import inference_settings, load_run_model, model_hash
from imsm.utils.errors import UserError
from imsm.utils.files import write_atomic
from imsm.utils.hashing import hash_json
from imsm.utils.manifest import verify_run_model
from imsm.utils.paths import own_answers_folder
from imsm.utils.run_dir import RunDir


def write_own_answers(config: RunConfig, run: RunDir, prompts: Sequence[str], *, runs_root: Path) -> Path:
    """Generate the adapter's answers to prompts and return the file of prompts and answers.

    ``config`` is that of the adapter's ``run``; the lengths and the stop pattern are those of its section `data`.

    Raises:
        UserError: A prompt is too long, or all answers are empty.
    """
    examples = [Example(id=f"prompt/{number}", prompt=prompt, golds=("-",)) for number, prompt in enumerate(prompts)]
    tokenizer = load_run_tokenizer(config)
    data = config.data
    tokenized, _ = tokenize_prompts(
        examples,
        tokenizer,
        max_prompt_tokens=data.max_prompt_tokens,
        max_new_tokens=data.max_new_tokens,
        max_positions=max_positions(config),
        closed_vocabulary=config.backbone.closed_vocabulary,
        chat=data.chat_template,
    )
    answers = _answers(config, run, tokenized, tokenizer, runs_root=runs_root)
    rows = [{"input": p, "output": a} for p, a in zip(prompts, answers, strict=True) if a.strip()]
    if not rows:
        raise UserError(
            f"--prompts: the adapter's answers to all {len(prompts)} prompts are empty; give other prompts"
        )
    if len(rows) < len(prompts):
        print(f"warning: {len(prompts) - len(rows)} prompts with an empty answer are left out", file=sys.stderr)
    path = own_answers_folder() / f"{hash_json(rows)[:32]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def _answers(
    config: RunConfig,
    run: RunDir,
    prompts: Sequence[TokenizedExample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    runs_root: Path,
) -> list[str]:
    """Return the tuned stream's answers, generated as far as the response cache lacks them."""
    backbone, data = config.backbone, config.data
    device = local_device(config, DistributedContext())
    backbone_hash = backbone_fingerprint(
        name_or_path=backbone.name_or_path, revision=backbone.revision, local_resolver=backbone.local_resolver
    )
    settings, files = inference_settings(config, device=device), verify_run_model(run)
    fingerprint = model_hash("tuned", backbone_hash=backbone_hash, settings=settings, files=files)
    limit, stop = data.max_new_tokens, data.stop
    keys = [hash_json(["own answer", fingerprint, prompt.prompt_ids, limit, stop]) for prompt in prompts]
    lengths, dist_context = [len(prompt.prompt_ids) for prompt in prompts], DistributedContext()

    @cache
    def model() -> SiameseForCausalLM:
        loaded = load_run_model(config, run, device=device)
        loaded.stream = "tuned"
        return loaded

    def compute(indices: Sequence[int], missing: set[str]) -> list[dict[str, Row]]:
        ids = [prompts[index].prompt_ids for index in indices]
        session = DecodingSession(model(), ids, pad_id=tokenizer.pad_token_id, max_new_tokens=limit)
        options: dict[str, Any] = {"stop": stop, "static_cache": config.evaluation.static_cache}
        generations = generate_responses(session, tokenizer, max_new_tokens=limit, **options)
        return [{keys[i]: {"text": each.text}} for i, each in zip(indices, generations, strict=True)]

    automatic = partial(auto_batch_size, model, lengths, max_new_tokens=limit, dist_context=dist_context)
    rows = through_cache(
        [[key] for key in keys],
        shapes={key: {"text": str} for key in keys},
        lengths=lengths,
        compute=compute,
        response_cache=ResponseCache(runs_root / "response_cache", fingerprint=fingerprint),
        batch_size=config.evaluation.batch_size or automatic,
        label="tuned: own answers",
        dist_context=dist_context,
    )
    return [str(rows[key]["text"]) for key in keys]
