"""KL divergence of trained streams from the original."""

from __future__ import annotations

import pytest
import torch

from imsm.data.tokenization import TokenizedExample
from imsm.distributed.context import DistributedContext
from imsm.evaluation import kl_to_original
from imsm.evaluation.kl_to_original import kl_sums, mean_kl
from imsm.evaluation.response_cache import ResponseCache
from imsm.models.siamese.model import SiameseForCausalLM
from tests.evaluation.bench import Bench, cached_rows
from tests.helpers.adapters import prompt_tuning
from tests.models.siamese.tiny import prompts, tiny_siamese


def examples() -> list[TokenizedExample]:
    return [
        TokenizedExample(id=str(n), prompt_ids=tuple(row[:-cut]), answer_ids=tuple(row[-cut:]))
        for n, (row, cut) in enumerate(zip(prompts(), (3, 1, 2), strict=True))
    ]


def plain_sum(model: SiameseForCausalLM, example: TokenizedExample) -> float:
    """Sum p_o ln(p_o / p) over the positions that predict the answer, without a batch or padding."""
    ids = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
    query = torch.ones(1, len(example.prompt_ids), dtype=torch.int64)
    stream, log_p = model.stream, []
    for name in ("original", stream):
        model.stream = name
        with torch.no_grad():
            logits = model(ids, query_mask=query).logits[0, len(example.prompt_ids) - 1 : -1]
        log_p.append(logits.double().log_softmax(-1))
    model.stream = stream
    return float((log_p[0].exp() * (log_p[0] - log_p[1])).sum())


@pytest.mark.parametrize("stream", ["tuned", "interwoven"])
@pytest.mark.parametrize("chunk", [None, 3])
def test_sums_equal_their_equation(stream: str, chunk: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kl_to_original, "logit_chunk_size", lambda _: chunk)
    model = tiny_siamese()
    model.stream = stream
    expected = [plain_sum(model, example) for example in examples()]
    assert min(expected) > 0.01
    assert kl_sums(model, examples(), pad_id=0) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert model.stream == stream


def test_virtual_tokens_are_no_answer_positions() -> None:
    model = tiny_siamese(method=prompt_tuning(num_virtual_tokens=3), gate=None)
    expected = [plain_sum(model, example) for example in examples()]
    assert kl_sums(model, examples(), pad_id=0) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_original_has_no_divergence_from_itself() -> None:
    model = tiny_siamese()
    model.stream = "original"
    assert kl_sums(model, examples(), pad_id=0) == pytest.approx([0, 0, 0], abs=1e-6)


class Model(Bench):
    """The bench with a tuned stream."""

    def model(self) -> SiameseForCausalLM:
        self.loaded += 1
        return tiny_siamese()

    def mean(self, stream: str = "tuned") -> float | None:
        return mean_kl(
            self.eval_set(),
            get_model=self.model,
            stream=stream,
            tokenizer=self.tokenizer,
            fingerprint=stream,
            response_cache=ResponseCache(self.root / "response_cache", fingerprint=stream),
            batch_size=2,
            label="x",
            dist_context=DistributedContext(),
        )


def test_the_mean_is_over_positions_and_comes_from_the_cache(bench: Bench) -> None:
    tuned = Model(bench.root)
    first = tuned.mean()
    rows = list(cached_rows(tuned.cache_file("tuned")).values())
    assert len(rows) == 4 and {"kl", "tokens", "seconds"} == rows[0].keys()
    assert first == sum(row["kl"] for row in rows) / sum(row["tokens"] for row in rows)
    assert first is not None and first > 0
    assert (tuned.mean(), tuned.loaded) == (first, 1)


def test_a_result_of_the_original_has_no_divergence(bench: Bench) -> None:
    assert bench.evaluate().kl_to_original is None
