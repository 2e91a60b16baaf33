"""Choose the number of prompts per batch for a loaded model, by the memory of its device."""

import math
from collections.abc import Callable, Sequence

import torch

from imsm.distributed.context import DistributedContext
from imsm.evaluation.batch_size import CPU_BATCH_SIZE, fitting_batch_size
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.model import SiameseForCausalLM

_PROBED_TOKENS = 16


def auto_batch_size(
    get_model: Callable[[], SiameseForCausalLM],
    lengths: Sequence[int],
    *,
    max_new_tokens: int,
    dist_context: DistributedContext,
    sessions: int = 1,
) -> int:
    """Return the prompts per batch of the selected stream: by free memory on a GPU, `CPU_BATCH_SIZE` elsewhere.

    ``lengths`` are those of all prompts, and ``sessions`` the number of `DecodingSession` that hold a batch at once.
    All processes must call it; they get the same number, which leaves none of them without a batch.
    """
    model = get_model()
    if model.device.type != "cuda":
        return CPU_BATCH_SIZE
    rows = CPU_BATCH_SIZE
    if model.config.supports_cache:
        rows = fitting_batch_size(
            free=_free_bytes(model.device),
            kv_bytes_per_token=sessions * kv_bytes_per_token(model),
            max_tokens=max(lengths) + max_new_tokens,
            vocab_size=int(model.config.vocab_size),
            max_rows=math.ceil(len(lengths) / dist_context.world_size),
        )
    return min(map(int, dist_context.all_gather(str(rows))))


def kv_bytes_per_token(model: SiameseForCausalLM) -> float:
    """Return the bytes that a token takes in the caches of the selected stream, measured with a short prompt."""
    return DecodingSession(model, [[0] * _PROBED_TOKENS], pad_id=0).row_bytes() / _PROBED_TOKENS


def _free_bytes(device: torch.device) -> int:
    """Return the free memory of a GPU, with what torch has reserved and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
