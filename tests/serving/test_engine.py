"""Answers in common batches equal `generate()` of one prompt, whoever joins and leaves."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig

from imsm.models.adapters.base import AdapterSpec
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.models.siamese.streams import STREAMS
from imsm.serving.engine import Engine, Model, QueueFullError, Request, Step
from imsm.serving.sampling import Sampling
from imsm.studies.baselines.logit_mixing import derive_model
from tests.models.siamese.tiny import decoded, prompts, tiny_siamese, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def views(model: SiameseForCausalLM) -> dict[str, Model]:
    """Return a model for each stream, on the same weights."""
    streams = {each: derive_model(model, SiameseForCausalLM, stream=each, gate=model.gate) for each in STREAMS}
    return {name: Model(name=name, model=view, tokenizer=TOKENIZER) for name, view in streams.items()}


class Client:
    """Collects the steps of one request."""

    def __init__(self, engine: Engine, model: Model, prompt: list[int], **options: Any) -> None:
        self.steps: queue.Queue[Step] = queue.Queue()
        self.request = Request(model=model, prompt=prompt, report=self.steps.put, **{"max_tokens": 8, **options})
        engine.submit(self.request)

    def answer(self) -> list[Step]:
        """Return all steps."""
        found = [self.steps.get(timeout=60)]
        while found[-1].finish_reason is None and found[-1].error is None:
            found.append(self.steps.get(timeout=60))
        return found

    def tokens(self) -> list[int | None]:
        return [step.token for step in self.answer()]


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(max_batch=3) as started:
        yield started


@pytest.mark.parametrize(("architecture", "method"), [("llama", "lora"), ("gemma3", "lora"), ("qwen2", "ia3")])
def test_answers_equal_generate(engine: Engine, architecture: str, method: str) -> None:
    model = tiny_siamese(architecture, method)
    served, rows = views(model), prompts(4)
    lengths = random.Random(5).choices(range(1, 14), k=24)
    # before the engine runs: the streams patch the layers that they share
    answers = [
        decoded(served[STREAMS[n % 3]].model, rows[n % 4][: 1 + n % 5], max_new_tokens=length)
        for n, length in enumerate(lengths)
    ]
    clients = [
        Client(
            engine,
            served[STREAMS[n % 3]],
            rows[n % 4][: 1 + n % 5],
            max_tokens=length,
            details=[None, 1 + n % 3][n % 2],
        )
        for n, length in enumerate(lengths)
    ]
    for n, (client, expected) in enumerate(zip(clients, answers, strict=True)):
        steps = client.answer()
        assert [step.token for step in steps] == expected
        assert steps[-1].finish_reason == ("stop" if expected[-1] == 2 else "length")
        kept = [token for token in expected if token != 2]
        assert "".join(step.text for step in steps) == TOKENIZER.decode(kept)
        tops = {step.details and len(step.details.original) for step in steps}
        assert tops == {[None, 1 + n % 3][n % 2]}


def test_models_whose_rows_cannot_join(engine: Engine) -> None:
    served = views(tiny_siamese("llama", AdapterSpec(PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))))
    rows = prompts(4)
    expected = [decoded(served[STREAMS[n % 3]].model, rows[n % 4]) for n in range(9)]
    clients = [Client(engine, served[STREAMS[n % 3]], rows[n % 4]) for n in range(9)]
    assert [client.tokens() for client in clients] == expected


def test_decided_queries_move_to_the_model_of_their_stream(engine: Engine) -> None:
    model, rows = tiny_siamese(), prompts(4)
    gates = sorted(float(model(input_ids=torch.tensor([row]), use_cache=True).gate[0, -1]) for row in rows)
    threshold = (gates[1] + gates[2]) / 2
    assert threshold < 0.5
    served = views(model)
    skipping = derive_model(model, SiameseForCausalLM, stream="interwoven", gate=model.gate)
    skipping.skip_threshold = threshold
    continued = {"both": served["interwoven"], "original": served["original"], "tuned": served["tuned"]}
    deciding = Model(name="skip", model=skipping, tokenizer=TOKENIZER, continued_by=continued)
    expected = [decoded(skipping, row) for row in rows]
    clients = [Client(engine, deciding, row) for row in rows]
    assert [client.tokens() for client in clients] == expected
    assert {client.request.model.name for client in clients} == {"interwoven", "tuned"}


def test_seeded_samples_do_not_depend_on_the_batch(engine: Engine) -> None:
    served, rows = views(tiny_siamese()), prompts(4)
    sampling = [Sampling(temperature=1.5, top_p=0.8, seed=seed) for seed in range(6)]
    together = [Client(engine, served["interwoven"], rows[0], sampling=each) for each in sampling]
    answers = [client.tokens() for client in together]
    assert answers == [Client(engine, served["interwoven"], rows[0], sampling=each).tokens() for each in sampling]
    assert len(set(map(tuple, answers))) > 3


def test_log_probabilities(engine: Engine) -> None:
    served, row = views(tiny_siamese()), prompts(1)[0]
    (step,) = Client(engine, served["tuned"], row, max_tokens=1, logprobs=3).answer()
    with torch.no_grad():
        expected = served["tuned"].model(input_ids=torch.tensor([row])).logits[0, -1].log_softmax(dim=-1)
    best = expected.topk(3)
    assert [each.token for each in step.top] == best.indices.tolist()
    assert [each.logprob for each in step.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert step.token == best.indices[0] and step.logprob == pytest.approx(best.values[0].item(), abs=1e-5)


def test_stop_string_ends_an_answer(engine: Engine) -> None:
    served, row = views(tiny_siamese()), prompts(1)[0]
    answer = TOKENIZER.decode(decoded(served["tuned"].model, row))
    stop = answer.split()[3]
    assert answer.count(stop) == 1
    steps = Client(engine, served["tuned"], row, stop=["unseen", stop]).answer()
    assert "".join(step.text for step in steps) == answer[: answer.index(stop)]
    assert len(steps) == 4 and steps[-1].finish_reason == "stop"


def test_a_cancelled_request_frees_its_place(engine: Engine) -> None:
    served, row = views(tiny_siamese()), prompts(1)[0]
    expected = decoded(served["original"].model, row)
    endless = [Client(engine, served["tuned"], row, max_tokens=200) for _ in range(3)]
    endless[0].steps.get(timeout=60)
    waiting = Client(engine, served["original"], row)
    for client in endless:
        client.request.cancelled = True
    assert waiting.tokens() == expected
    assert engine.in_flight <= 1 and not engine.waiting


def test_an_error_fails_its_batch_only(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    served, row = views(tiny_siamese()), prompts(1)[0]

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(served["original"].model.streams, "hidden_states", broken)
    expected = decoded(served["tuned"].model, row)
    failing, working = Client(engine, served["original"], row), Client(engine, served["tuned"], row)
    assert failing.answer()[0].error == "the model failed (out of memory)"
    assert working.tokens() == expected


def test_calls_run_in_the_engine(engine: Engine) -> None:
    assert engine.call(lambda: threading.current_thread().name).result(timeout=60) == "imsm-engine"
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 // 0).result(timeout=60)


def test_full_queue_and_shutdown() -> None:
    served, row = views(tiny_siamese()), prompts(1)[0]
    engine = Engine(max_batch=1, max_waiting=2)
    clients = [Client(engine, served["tuned"], row, max_tokens=200) for _ in range(2)]
    with pytest.raises(QueueFullError):
        Client(engine, served["tuned"], row)
    with engine:
        clients[0].steps.get(timeout=60)
    for client in clients:
        assert client.answer()[-1].error == "the server is shutting down"
    with pytest.raises(QueueFullError):
        Client(engine, served["tuned"], row)
