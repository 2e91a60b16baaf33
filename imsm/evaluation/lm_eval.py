"""A siamese model as a model of lm-evaluation-harness.

The gate reads the query, which is a request's context. The harness batches complete sequences without
marking the context, so likelihoods are computed here, with the context as query. A rolling likelihood
has no context: its prefix (BOS, or the previous window) is the query.
"""

from collections.abc import Sequence

from lm_eval.models.huggingface import HFLM
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from imsm.data.batching import collate_training, evaluation_order
from imsm.data.tokenization import TokenizedExample
from imsm.models.siamese.model import SiameseForCausalLM

Request = tuple[tuple[str, str], list[int], list[int]]
"""Context and continuation as strings, and their token ids."""


class SiameseLM(HFLM):
    """The current stream of a siamese model; longer sequences than ``max_length`` tokens are cut."""

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
        """Return each continuation's ln p given its context, and whether greedy decoding produces it.

        As in the harness, sequences longer than ``max_length`` are cut from the left; here at least one
        context token is kept, because the gate needs a query.
        """
        examples = [self._example(context, continuation) for _, context, continuation in requests]
        results: list[tuple[float, bool]] = [(0.0, True)] * len(examples)
        batches = evaluation_order(
            [len(e.prompt_ids) + len(e.answer_ids) for e in examples], batch_size=override_bs or self.batch_size
        )
        for indices in tqdm(batches, disable=disable_tqdm, desc="loglikelihood requests"):
            batch = collate_training([examples[i] for i in indices], pad_id=self.tokenizer.pad_token_id)
            sums, greedy = self.siamese.log_likelihood(
                batch["input_ids"].to(self.device),
                attention_mask=batch["attention_mask"].to(self.device),
                labels=batch["labels"].to(self.device),
            )
            for index, total, is_greedy in zip(indices, sums.tolist(), greedy.tolist(), strict=True):
                results[index] = (total, is_greedy)
                # lm_eval stores finished requests through this hook (its `use_cache` option).
                self.cache_hook.add_partial("loglikelihood", requests[index][0], results[index])
        return results

    def _example(self, context: Sequence[int], continuation: Sequence[int]) -> TokenizedExample:
        # The last token is only predicted, not read.
        limit = self.max_length + 1
        cut = max(0, len(context) + len(continuation) - limit)
        query = context[min(cut, len(context) - 1) :]
        return TokenizedExample(id="", prompt_ids=tuple(query), answer_ids=tuple(continuation[: limit - len(query)]))
