"""A stream of a siamese model as lm-evaluation-harness asks for one.

The gate reads the query, and the harness says what it is: a request's context. So the harness's
own batches of whole sequences will not do; each request's likelihood is computed with its context
as the query. A rolling likelihood, whose text is all continuation, has its prefix (the beginning of
the text, or the window before) as query.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from imsm.data.batching import collate_training, evaluation_order
from imsm.data.tokenization import TokenizedExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from imsm.models.siamese.model import SiameseForCausalLM

Request = tuple[tuple[str, str], list[int], list[int]]
"""Texts of context and continuation, and their tokens."""


class SiameseLM(HFLM):
    """The stream that a model is set to.

    Args:
        model: with its ``stream`` chosen.
        tokenizer: the backbone's.
        batch_size: requests in one pass.
        max_length: the tokens that the backbone reads at most.
    """

    def __init__(
        self, model: SiameseForCausalLM, tokenizer: PreTrainedTokenizerBase, *, batch_size: int, max_length: int
    ) -> None:
        super().__init__(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size, max_length=max_length
        )
        self.siamese = model

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Each continuation's ln p after its context, and whether greedy decoding gives it.

        As in the harness, what is longer than ``max_length`` loses its beginning; a context of
        which nothing is left keeps its last token, since the gate cannot do without a query.
        """
        items = [self._item(context, answer) for _, context, answer in requests]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(items)
        order = evaluation_order(
            [len(item.prompt_ids) + len(item.answer_ids) for item in items], batch_size=override_bs or self.batch_size
        )
        for places in tqdm(order, disable=disable_tqdm, desc="loglikelihood requests"):
            batch = collate_training([items[p] for p in places], pad_id=self.tokenizer.pad_token_id)
            sums, greedy = self.siamese.log_likelihood(
                batch["input_ids"].to(self.device),
                attention_mask=batch["attention_mask"].to(self.device),
                labels=batch["labels"].to(self.device),
            )
            for place, total, same in zip(places, sums.tolist(), greedy.tolist(), strict=True):
                found[place] = (total, same)
                self.cache_hook.add_partial("loglikelihood", requests[place][0], found[place])
        return found

    def _item(self, context: Sequence[int], answer: Sequence[int]) -> TokenizedExample:
        limit = self.max_length + 1  # the last token is only predicted
        cut = max(0, len(context) + len(answer) - limit)
        kept = context[min(cut, len(context) - 1) :]
        return TokenizedExample(id="", prompt_ids=tuple(kept), answer_ids=tuple(answer[: limit - len(kept)]))
