"""Sample texts from a prefilled decoding session, the same ones for every batch."""

from collections.abc import Sequence

import torch

from imsm.models.siamese.decoding_session import DecodingSession


@torch.inference_mode()
def sample_tokens(
    session: DecodingSession,
    uniforms: Sequence[Sequence[float]],
    *,
    max_new_tokens: int,
    temperature: float,
    eos: Sequence[int],
) -> list[list[int]]:
    """Sample until every row has an EOS token, which it keeps, or ``max_new_tokens``; the session is consumed.

    ``uniforms`` holds, for each row, one random number in [0, 1) per token: the token is the one at which the
    cumulative probability of softmax(logits / temperature) exceeds it. So a row does not depend on the others,
    except for the rounding of the logits.
    """
    rows: list[list[int]] = [[] for _ in range(len(session))]
    unfinished = list(range(len(session)))
    for place in range(max_new_tokens):
        # float64: the sum over a large vocabulary decides the token
        sums = (session.logits.double() / temperature).softmax(dim=-1).cumsum(dim=-1)
        drawn = torch.tensor([uniforms[row][place] for row in unfinished], dtype=sums.dtype, device=sums.device)
        tokens = torch.searchsorted(sums, drawn[:, None] * sums[:, -1:], right=True)[:, 0]
        tokens = tokens.clamp(max=sums.shape[-1] - 1)
        for row, token in zip(unfinished, tokens.tolist(), strict=True):
            rows[row].append(token)
        going = [index for index, row in enumerate(unfinished) if rows[row][-1] not in eos]
        if not going or place == max_new_tokens - 1:
            break
        session.select_rows(going)
        unfinished, tokens = [unfinished[index] for index in going], tokens[going]
        session.forward(tokens[:, None])
    return rows
