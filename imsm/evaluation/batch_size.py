"""The number of prompts that an evaluation runs at once, where `evaluation.batch_size` leaves it open.

    rows = (share of the free memory - what does not depend on the rows) / bytes of a row, as a power of two

A power of two stays the same when the free memory differs a little, so that an interrupted evaluation continues with
the batches that it began with. If the estimate is too high, `imsm.utils.oom` halves the batch.

This module imports nothing slow, because the configuration reads its constant.
"""

CPU_BATCH_SIZE = 16
"""Prompts per batch on a CPU, and where memory is shared with something else, such as a training."""
MAX_BATCH_SIZE = 256
"""Larger batches hardly gain speed, and wait for their longest response."""
# a growing cache leaves blocks behind that are too small for its next size
_SHARE = 0.7
# of a prefill's activations and of the copies that reference answers are scored on (`MAX_COPY_BYTES`)
_FIXED_BYTES = 3 * 2**30


def fitting_batch_size(
    *, free: int, kv_bytes_per_token: float, max_tokens: int, vocab_size: int, max_rows: int = MAX_BATCH_SIZE
) -> int:
    """Return how many prompts fit into ``free`` bytes at once, a power of two from 1 to ``max_rows``.

    ``kv_bytes_per_token`` is the size of one token's keys and values in all layers, of both streams if both run.
    ``max_tokens`` is the length of the longest prompt with its response.
    """
    # the logits in float32, and their log-probabilities
    row = kv_bytes_per_token * max_tokens + 2 * 4 * vocab_size
    rows = min((_SHARE * free - _FIXED_BYTES) / row, max_rows, MAX_BATCH_SIZE)
    return 1 << (max(1, int(rows)).bit_length() - 1)
