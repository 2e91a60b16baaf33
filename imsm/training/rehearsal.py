"""Rehearsal: texts added to each global batch, on which the model learns to predict as the original does.

    loss = target loss + weight * sum over the texts' counted positions of l / number of these positions

l is KL(p_o || p) over the whole vocabulary, with p_o of the original model (``loss="kl"``), or the cross-entropy of
the text's token (``loss="ce"``). The counted positions of a text are its `answer_ids`.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from imsm.data.tokenization import TokenizedExample
from imsm.models.siamese.hidden_state_cache import HiddenStateCache


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """The texts of a training.

    Args:
        texts: all of them, the same in every process.
        loss: "kl" or "ce".
        weight: factor of the texts' loss; with 0 no step reads them.
        batch_size: texts of a step.
        seed: of their order.
        get_hidden_state_cache: returns h_o and q_o of the texts, or None to run the original stream.
    """

    texts: Sequence[TokenizedExample]
    loss: Literal["kl", "ce"]
    weight: float
    batch_size: int
    seed: int
    get_hidden_state_cache: Callable[[], HiddenStateCache | None] = lambda: None

    def batch(self, step: int) -> list[TokenizedExample]:
        """Return the texts of a step, counted from 1.

        All texts are taken in a random order, then again in another one. The order depends on ``seed`` and ``step``
        alone, so it is the same after a resume.
        """
        if not (self.weight and self.texts):
            return []
        first = (step - 1) * self.batch_size
        rounds = [divmod(number, len(self.texts)) for number in range(first, first + self.batch_size)]
        return [self.texts[_order(len(self.texts), self.seed, each)[place]] for each, place in rounds]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, number: int) -> tuple[int, ...]:
    order = list(range(count))
    random.Random(f"imsm.rehearsal_order/{seed}/{number}").shuffle(order)
    return tuple(order)
