"""Details of tokens equal a computation from full passes of each stream."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import kl_div

from imsm.models.siamese.config import SiameseConfig
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.streams import STREAMS
from imsm.models.siamese.token_details import MIN_LOGPROB, token_details
from tests.models.siamese.tiny import prompts, tiny_backbone, tiny_siamese


def log_probabilities(model: SiameseForCausalLM, stream: str, row: list[int]) -> torch.Tensor:
    model.stream = stream  # type: ignore[assignment]
    ids = torch.tensor([row])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), query_mask=torch.ones_like(ids)).logits
    return logits[0, -1].log_softmax(dim=-1)


@pytest.mark.parametrize("stream", STREAMS)
def test_details_of_each_stream(stream: str) -> None:
    model = tiny_siamese()
    rows = prompts(3)
    expected = {each: [log_probabilities(model, each, row) for row in rows] for each in STREAMS}
    model.stream = stream  # type: ignore[assignment]
    session = DecodingSession(model, rows, pad_id=0, both_streams=True)
    torch.testing.assert_close(session.logits.log_softmax(dim=-1), torch.stack(expected[stream]), atol=1e-5, rtol=0)
    assert session.streams is not None
    original, tuned, gate = session.streams
    assert (gate is None) == (stream != "interwoven")
    chosen = session.logits.argmax(dim=-1).tolist()
    details = token_details(
        model, chosen, original=original[:, 0], tuned=tuned[:, 0], gate=None if gate is None else gate[:, 0], top=4
    )
    for row, (token, each) in enumerate(zip(chosen, details, strict=True)):
        first, second = expected["original"][row], expected["tuned"][row]
        assert each.token == token
        kl = kl_div(second, first, reduction="sum", log_target=True).item()
        assert each.kl == pytest.approx(kl, abs=1e-5)
        favourites = (int(first.argmax()) == token, int(second.argmax()) == token)
        assert each.winner == {(0, 0): "neither", (1, 0): "original", (0, 1): "tuned", (1, 1): "both"}[favourites]
        assert [id for id, _ in each.tuned] == second.topk(4).indices.tolist()
        assert [p for _, p in each.original] == pytest.approx(first.topk(4).values.tolist(), abs=1e-5)
        if stream == "interwoven":
            assert session.gate is not None and gate is not None
            assert each.gate == pytest.approx(session.gate[row].item())
            assert each.gate_std == pytest.approx(gate[row, 0].std(correction=0).item())


def test_decided_queries_take_the_logits_of_their_stream() -> None:
    model = tiny_siamese()
    rows = prompts(4)
    model.stream = "interwoven"
    gates = DecodingSession(model, rows, pad_id=0).gate
    assert gates is not None
    # between the gates of two rows, so that one is decided and another is not
    low = sorted(gates.tolist())
    model.skip_threshold = (low[0] + low[1]) / 2 if low[1] < 0.5 else None
    assert model.skip_threshold is not None
    plain = DecodingSession(model, rows, pad_id=0, max_new_tokens=3)
    both = DecodingSession(model, rows, pad_id=0, max_new_tokens=3, both_streams=True)
    for _ in range(3):
        torch.testing.assert_close(both.logits, plain.logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(both.gate, plain.gate, atol=1e-5, rtol=0)
        tokens = plain.logits.argmax(dim=-1)[:, None]
        plain.forward(tokens)
        both.forward(tokens)
    assert plain.choices is not None and len(set(plain.choices.tolist())) == 2


def test_a_model_without_adapter_has_one_stream() -> None:
    config = SiameseConfig(
        text_config=tiny_backbone("llama").config, backbone={"name_or_path": "tiny"}, stream="original"
    )
    bare = SiameseForCausalLM(config, tiny_backbone("llama"))
    ids = torch.tensor([[5, 6]])
    with pytest.raises(ValueError, match="no adapter"):
        bare.forward_streams(ids, attention_mask=torch.ones_like(ids))


def test_excluded_tokens_have_finite_values() -> None:
    class Excluding:
        """Its head gives one token the logit -inf."""

        def head(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.stack([hidden[:, 0], torch.full((len(hidden),), -torch.inf)], dim=-1)

    (details,) = token_details(Excluding(), [0], original=torch.ones(1, 3), tuned=torch.zeros(1, 3), gate=None, top=2)
    assert details.kl == 0 and details.original == ((0, 0.0), (1, MIN_LOGPROB))
