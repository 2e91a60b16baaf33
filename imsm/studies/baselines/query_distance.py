"""Distance of evaluation queries to the training queries of an adapter.

    s(x) = min over training queries i of | q_o(x) - q_o(i) |      (Euclidean)

Shapes: N queries, T positions, D hidden size; q_o is the mean of a query's original hidden states (eq. 2).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from imsm.data.batching import collate_prompts, evaluation_order, training_order
from imsm.data.tokenization import TokenizedExample, tokenize_prompts
from imsm.models.siamese.inputs import decoder_inputs
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.query_pooling import pool
from imsm.pipeline.data import training_examples
from imsm.studies.baselines.finished_run import FinishedRun
from imsm.utils.errors import UserError
from imsm.utils.hashing import hash_json
from imsm.utils.json_files import read_hashed_json, write_hashed_json
from imsm.utils.progress import progress_bar

Matrix = NDArray[np.float32]
PERCENTILE = 95
"""Percentile of held-out training distances used as the threshold."""
HELD_OUT = 0.1
"""Fraction of the training queries that is held out for the threshold."""
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class QueryDistances:
    """``by_task``: s of each example, in the order of the evaluation set; ``threshold``: tau."""

    threshold: float
    by_task: dict[str, list[float]]


@lru_cache(maxsize=1)
def compute_query_distances(run: FinishedRun) -> QueryDistances:
    """Compute the distances of a run's evaluation sets, or read them from `baselines/`."""
    data = run.config.data
    training, _ = tokenize_prompts(
        training_examples(run.config),
        run.tokenizer,
        max_prompt_tokens=data.max_prompt_tokens,
        closed_vocabulary=run.config.backbone.closed_vocabulary,
        chat=data.chat_template,
    )
    key = hash_json(
        [
            _VERSION,
            PERCENTILE,
            run.fingerprint("original"),
            [query.prompt_ids for query in training],
            {name: [p.prompt_ids for p in eval_set.prompts] for name, eval_set in run.eval_sets.items()},
        ]
    )
    path = run.folder / "baselines" / "query_distances.json"
    try:
        stored = read_hashed_json(path, fix="it is computed again")
        if stored.pop("key", None) == key:
            return QueryDistances(**stored)
    # A missing, stale or damaged file is computed again.
    except (UserError, TypeError):
        pass
    states = partial(
        query_states, run.model(), pad_id=run.tokenizer.pad_token_id, batch_size=run.config.evaluation.fixed_batch_size
    )
    queries = {name: states(eval_set.prompts, label=name) for name, eval_set in run.eval_sets.items()}
    distances = measure_distances(states(training, label="training"), queries, seed=run.config.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_hashed_json(path, {"key": key, **asdict(distances)})
    return distances


def measure_distances(training: Matrix, queries: dict[str, Matrix], *, seed: int) -> QueryDistances:
    """Measure distances to a part of the training queries; the held-out rest sets the threshold.

    Queries are q_o, (N, D); at least two training queries are needed. ``seed`` selects the held-out part.
    """
    # Epochs are counted from 0 and the validation split is -1, so this order is independent of both.
    (order,) = training_order(len(training), batch_size=len(training), seed=seed, epoch=-2)
    count = max(1, round(HELD_OUT * len(training)))
    nearest = NearestNeighbors(n_neighbors=1).fit(training[order[count:]])

    def distance(rows: Matrix) -> NDArray[np.float64]:
        return nearest.kneighbors(rows)[0][:, 0].astype(np.float64)

    return QueryDistances(
        threshold=float(np.percentile(distance(training[order[:count]]), PERCENTILE)),
        by_task={name: distance(rows).tolist() for name, rows in queries.items()},
    )


@torch.inference_mode()
def query_states(
    model: SiameseForCausalLM, prompts: Sequence[TokenizedExample], *, pad_id: int, batch_size: int, label: str
) -> Matrix:
    """Compute q_o of each prompt, (N, D)."""
    states = np.zeros((len(prompts), model.config.hidden_size), dtype=np.float32)
    batches = evaluation_order([len(p.prompt_ids) for p in prompts], batch_size=batch_size)
    with progress_bar(total=len(prompts), label=f"queries: {label}", unit="item", keep=False, shown=True) as bar:
        for indices in batches:
            ids, mask = collate_prompts([prompts[i].prompt_ids for i in indices], pad_id=pad_id, device=model.device)
            inputs = decoder_inputs(ids, inputs_embeds=None, attention_mask=mask, position_ids=None, cache=None)
            hidden = model.streams.hidden_states(inputs, stream="original", cache=None)
            states[indices] = pool(hidden, mask, pooling="mean").float().cpu().numpy()
            bar.update(len(indices))
    return states
