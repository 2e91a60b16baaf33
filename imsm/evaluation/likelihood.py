"""Log-likelihood of given answers to prefilled prompts.

Shapes: B prompts, R answers scored at once, T tokens of the longest of them, V vocabulary.
"""

from collections.abc import Sequence

import torch

from imsm.models.siamese.chunked_loss import logit_chunk_size
from imsm.models.siamese.decoding_session import DecodingSession

TokenIds = tuple[int, ...]
MAX_COPY_BYTES = 2**31
"""Bytes of KV cache copied at once: each answer is scored on a copy of its prompt's cache."""


@torch.inference_mode()
def log_likelihoods(
    session: DecodingSession, answers: Sequence[Sequence[TokenIds]], *, pad_id: int
) -> list[list[float]]:
    """Sum ln p over the tokens of each answer, in the order of ``answers``.

    Each of the B prompts has any number of answers of at least one token. The session is unchanged.
    """
    sums: list[list[float]] = [[] for _ in answers]
    # In float32: bfloat16 has three significant digits, too few for a sum of log-probabilities.
    first = session.logits.float().log_softmax(dim=-1)  # (B, V)
    pairs = [(row, ids) for row, row_answers in enumerate(answers) for ids in row_answers]
    # At most as many rows as the prefill, whose activations did fit into memory.
    chunk = max(1, min(len(session), MAX_COPY_BYTES // max(1, session.row_bytes())))
    for start in range(0, len(pairs), chunk):
        rows, texts = zip(*pairs[start : start + chunk], strict=True)
        width = max(map(len, texts))
        ids = torch.tensor([[*text, *[pad_id] * (width - len(text))] for text in texts])
        mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
        ids, mask = ids.to(first.device), mask.to(first.device)
        # The prompt's last logits predict the first token of every answer.
        total = first[list(rows)].gather(1, ids[:, :1])[:, 0]
        if width > 1:
            total = total + _sum_after_first(session.fork(rows), ids, mask)
        for row, value in zip(rows, total.tolist(), strict=True):
            sums[row].append(value)
    return sums


def _sum_after_first(session: DecodingSession, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum ln p over all tokens but the first; ids and mask (R, T), returns (R,)."""
    total = torch.zeros(len(ids), device=ids.device)
    # A large vocabulary allows only some positions' float32 logits (R, T, V) at a time.
    chunk = logit_chunk_size(session.model.backbone)
    step = ids.shape[1] if chunk is None else max(1, chunk // len(ids))
    for start in range(0, ids.shape[1] - 1, step):
        stop = min(start + step, ids.shape[1] - 1)
        logits = session.forward(ids[:, start:stop], mask=mask[:, start:stop])
        following = slice(start + 1, stop + 1)
        # Padding tokens have a log-probability too; the mask removes it.
        log_p = logits.float().log_softmax(dim=-1).gather(2, ids[:, following, None])[..., 0]
        total += (log_p * mask[:, following]).sum(dim=1)
    return total
