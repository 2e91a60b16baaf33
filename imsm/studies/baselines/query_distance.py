"""How far a test's queries are from those that an adapter was trained on.

    s(x) = min over training queries i of | q_o(x) - q_o(i) |      (Euclidean)

Legend: N queries, T positions, D width, q_o the mean of a query's original memories (eq. 2).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from imsm.data.batching import collate_prompts, evaluation_order, training_order
from imsm.data.tokenization import TokenizedExample, tokenize_prompts
from imsm.models.siamese.inputs import decoder_inputs
from imsm.models.siamese.query_pooling import pool
from imsm.pipeline.data import training_examples
from imsm.utils.files import write_atomic
from imsm.utils.hashing import hash_json
from imsm.utils.progress import progress_bar

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from imsm.models.siamese.model import SiameseForCausalLM
    from imsm.studies.baselines.finished_run import FinishedRun

    Matrix = NDArray[np.float32]

PERCENTILE = 95
"""Of the distances of training queries held out: so many of a hundred of the target's are kept."""
HELD_OUT = 0.1
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class QueryDistances:
    """``tests``: s of each item by task, in the test set's order; ``threshold``: tau."""

    threshold: float
    by_task: dict[str, list[float]]


@lru_cache(maxsize=1)
def compute_query_distances(run: FinishedRun) -> QueryDistances:
    """The distances of a run's tests; computed once, then read from the run's `controls/`."""
    training = _training_queries(run)
    key = hash_json(
        [
            _VERSION,
            PERCENTILE,
            run.fingerprint("original"),
            [item.prompt_ids for item in training],
            {name: [p.prompt_ids for p in test.prompts] for name, test in run.eval_sets.items()},
        ]
    )
    path = run.folder / "baselines" / "query_distances.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.pop("key") == key:
            return QueryDistances(**kept)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # not there, of other queries, or damaged: computed anew
    found = _distances(run, training)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"key": key, **asdict(found)}) + "\n")
    return found


def _distances(run: FinishedRun, training: Sequence[TokenizedExample]) -> QueryDistances:
    model, pad_id = run.model(), run.tokenizer.pad_token_id
    size = run.config.evaluation.batch_size
    known = query_states(model, training, pad_id=pad_id, batch_size=size, label="training")
    tests = {
        name: query_states(model, test.prompts, pad_id=pad_id, batch_size=size, label=name)
        for name, test in run.eval_sets.items()
    }
    return measure_distances(known, tests, seed=run.config.seed)


def measure_distances(known: Matrix, tests: dict[str, Matrix], *, seed: int) -> QueryDistances:
    """Distances of tests to a part of the training queries; the rest decides the threshold.

    Args:
        known: q_o of the training queries, (N, D), at least two.
        tests: q_o of each test's queries, (N, D).
        seed: of which training queries are held out.
    """
    (order,) = training_order(len(known), batch_size=len(known), seed=seed, epoch=-2)
    count = max(1, round(HELD_OUT * len(known)))
    nearest = NearestNeighbors(n_neighbors=1).fit(known[order[count:]])

    def distance(queries: Matrix) -> NDArray[np.float64]:
        return nearest.kneighbors(queries)[0][:, 0].astype(np.float64)

    return QueryDistances(
        threshold=float(np.percentile(distance(known[order[:count]]), PERCENTILE)),
        by_task={name: distance(queries).tolist() for name, queries in tests.items()},
    )


@torch.inference_mode()
def query_states(
    model: SiameseForCausalLM, prompts: Sequence[TokenizedExample], *, pad_id: int, batch_size: int, label: str
) -> Matrix:
    """q_o of each prompt, (N, D)."""
    found = np.zeros((len(prompts), model.config.hidden_size), dtype=np.float32)
    batches = evaluation_order([len(p.prompt_ids) for p in prompts], batch_size=batch_size)
    with progress_bar(total=len(prompts), label=f"queries: {label}", unit="item", keep=False, shown=True) as done:
        for places in batches:
            ids, mask = collate_prompts(
                [prompts[place].prompt_ids for place in places], pad_id=pad_id, device=model.device
            )
            inputs = decoder_inputs(ids, inputs_embeds=None, attention_mask=mask, position_ids=None, cache=None)
            memory = model.streams.hidden_states(inputs, stream="original", cache=None)
            found[places] = pool(memory, mask, pooling="mean").float().cpu().numpy()
            done.update(len(places))
    return found


def _training_queries(run: FinishedRun) -> list[TokenizedExample]:
    """The target's training examples as prompts."""
    prompts, _ = tokenize_prompts(
        training_examples(run.config),
        run.tokenizer,
        max_prompt_tokens=run.config.data.max_prompt_tokens,
        closed_vocabulary=run.config.backbone.closed_vocabulary,
        chat=run.config.data.chat_template,
    )
    return prompts
