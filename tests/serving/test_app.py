"""OpenAI's client against the server, on runs of a tiny model."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline.data import load_run_tokenizer
from imsm.serving.app import API_KEY, MAX_BODY_BYTES
from imsm.serving.engine import Engine
from imsm.studies.baselines.finished_run import load_finished_run
from imsm.studies.baselines.logit_mixing import build_mixing_model, mix_logits
from tests.helpers.word_run import WORDS, run_words
from tests.serving.running import running

PROMPTS = [f"after {word} comes" for word in WORDS]
OPTIONS: dict[str, Any] = {"max_tokens": 3, "temperature": 0}


@pytest.fixture(scope="module")
def imsm_run(word_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_words(word_files, tmp_path_factory.mktemp("runs"), "trainer.num_epochs=60")


@pytest.fixture(scope="module")
def peft_run(word_files: Path, imsm_run: Path) -> Path:
    return run_words(word_files, imsm_run.parent, "trainer.num_epochs=60", method="peft")


@pytest.fixture(scope="module")
def generated(imsm_run: Path) -> dict[str, list[str]]:
    """Answers of `generate()`, one prompt at a time, by stream; computed before the server runs."""
    model = SiameseForCausalLM.from_pretrained(imsm_run, device=torch.device("cpu"))
    tokenizer = load_run_tokenizer(load_finished_run(imsm_run, option="RUN").config)
    answers = {}
    mixing = build_mixing_model(model, mix_logits(0.5))
    for name, served in {"logit_mix:0.5": mixing, **dict.fromkeys(model.available_streams(), model)}.items():
        served.stream = "interwoven" if served is mixing else name
        answers[name] = []
        for prompt in PROMPTS:
            ids = torch.tensor([tokenizer(prompt)["input_ids"]])
            output = served.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
            answers[name].append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    return answers


@pytest.fixture(scope="module")
def server(imsm_run: Path, peft_run: Path, generated: object) -> Iterator[tuple[str, Engine]]:
    with running([imsm_run, peft_run]) as started:
        yield started


@pytest.fixture
def client(server: tuple[str, Engine]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0)


def test_models(client: openai.OpenAI, imsm_run: Path, peft_run: Path) -> None:
    models = {model.id: model.model_dump()["imsm"] for model in client.models.list()}
    streams = [f"{imsm_run.name}:{stream}" for stream in ("original", "tuned", "interwoven")]
    assert list(models) == [*streams, f"{peft_run.name}:original", f"{peft_run.name}:tuned"]
    prints = {name: card["fingerprint"] for name, card in models.items()}
    # the original does not depend on the run, everything else does
    assert prints[streams[0]] == prints[f"{peft_run.name}:original"] and len(set(prints.values())) == 4
    assert [models[name]["passes"] for name in streams] == [1, 1, 2]
    mixed = client.models.retrieve(f"{imsm_run.name}:logit_mix:0.25").model_dump()["imsm"]
    assert (mixed["baseline"], mixed["value"]) == ("logit_mix", 0.25) and mixed["fingerprint"] not in prints.values()


def test_answers_equal_generate(client: openai.OpenAI, imsm_run: Path, generated: dict[str, list[str]]) -> None:
    assert generated["original"] != generated["tuned"]
    for name, expected in generated.items():
        model = f"{imsm_run.name}:{name}"
        response = client.completions.create(model=model, prompt=PROMPTS, **OPTIONS)
        assert [choice.text for choice in response.choices] == expected
        assert response.model == model
        chats = [
            client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}], **OPTIONS)
            for prompt in PROMPTS[:2]
        ]
        assert [chat.choices[0].message.content for chat in chats] == expected[:2]


def test_a_run_alone_is_the_stream_of_its_method(client: openai.OpenAI, imsm_run: Path, peft_run: Path) -> None:
    for run, stream in ((imsm_run, "interwoven"), (peft_run, "tuned")):
        response = client.completions.create(model=run.name, prompt=PROMPTS[0], **OPTIONS)
        assert response.model == f"{run.name}:{stream}"


def test_stream_equals_response(client: openai.OpenAI, imsm_run: Path) -> None:
    model = f"{imsm_run.name}:interwoven"
    whole = client.completions.create(model=model, prompt=PROMPTS[:3], **OPTIONS)
    texts = ["", "", ""]
    usage = None
    options = {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in client.completions.create(model=model, prompt=PROMPTS[:3], **options, **OPTIONS):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        usage = chunk.usage or usage
    assert texts == [choice.text for choice in whole.choices] and usage == whole.usage
    assert usage is not None and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_details_name_the_winner(client: openai.OpenAI, imsm_run: Path) -> None:
    extra = {"imsm": {"details": True, "top": 2}}
    for stream in ("original", "tuned", "interwoven"):
        model = f"{imsm_run.name}:{stream}"
        plain = client.completions.create(model=model, prompt=PROMPTS[1], **OPTIONS)
        whole = client.completions.create(model=model, prompt=PROMPTS[1], extra_body=extra, **OPTIONS)
        tokens = whole.choices[0].model_dump()["imsm"]["tokens"]
        assert "".join(token["text"] for token in tokens) == whole.choices[0].text == plain.choices[0].text
        messages = [{"role": "user", "content": PROMPTS[1]}]
        chunks = client.chat.completions.create(
            model=model, messages=messages, extra_body=extra, stream=True, **OPTIONS
        )
        assert [t for chunk in chunks for t in chunk.choices[0].model_dump()["imsm"]["tokens"]] == tokens
        for token in tokens:
            favourites = {name for name in ("original", "tuned") if token[name][0]["id"] == token["id"]}
            assert token["winner"] == ("both" if len(favourites) == 2 else next(iter(favourites), "neither"))
            assert stream == "interwoven" or stream in favourites
            assert (token["gate"] is not None) == (stream == "interwoven")
            assert len(token["tuned"]) == 2 and token["kl"] >= 0


def test_logprobs(client: openai.OpenAI, imsm_run: Path) -> None:
    model = f"{imsm_run.name}:tuned"
    found = client.completions.create(model=model, prompt=PROMPTS[0], logprobs=3, **OPTIONS).choices[0].logprobs
    messages: Any = [{"role": "user", "content": PROMPTS[0]}]
    chat = client.chat.completions.create(model=model, messages=messages, logprobs=True, top_logprobs=3, **OPTIONS)
    content = chat.choices[0].logprobs.content  # type: ignore[union-attr]
    assert found is not None and content is not None
    assert found.token_logprobs == [each.logprob for each in content]
    for tops, each, token in zip(found.top_logprobs, content, found.tokens, strict=True):  # type: ignore[arg-type]
        assert list(tops.values()) == [top.logprob for top in each.top_logprobs] == sorted(tops.values(), reverse=True)
        assert tops[token] == max(tops.values())  # greedy


def test_seed_and_stop(client: openai.OpenAI, imsm_run: Path, generated: dict[str, list[str]]) -> None:
    answer = next(text for text in generated["tuned"] if text.strip())
    model, prompt = f"{imsm_run.name}:tuned", PROMPTS[generated["tuned"].index(answer)]
    sampled = [
        client.completions.create(model=model, prompt=prompt, max_tokens=12, temperature=2, seed=seed).choices[0].text
        for seed in (1, 1, 2, 3)
    ]
    assert sampled[0] == sampled[1] and len(set(sampled)) > 1
    word = answer.split()[0]
    stopped = client.completions.create(model=model, prompt=prompt, stop=word, **OPTIONS).choices[0]
    assert stopped.text == answer[: answer.index(word)] and stopped.finish_reason == "stop"


@pytest.mark.parametrize(
    ("change", "status", "part"),
    [
        ({"model": "nothing"}, 404, "model=nothing: not served; choose from"),
        ({"model": "{run}:logit_mix:3"}, 404, "needs a value from -1 to 1"),
        ({"model": "{run}:query_router"}, 404, "evaluate it with imsm baselines"),
        ({"model": "{run}:logit_mx:0.5"}, 404, "choose from original, tuned, interwoven, adapter_scale"),
        ({"prompt": ""}, 400, "prompt: is empty"),
        ({"prompt": []}, 400, "prompt: is empty"),
        ({"prompt": "after lunch comes"}, 400, "vocabulary"),
        ({"prompt": [3, 10**6]}, 400, "token ids must be from 0 to"),
        ({"max_tokens": 10**6}, 400, "positions of the backbone"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"n": 2}, 400, "n: "),
        ({"presence_penalty": 0.5}, 400, "presence_penalty"),
        ({"echo": True}, 400, "echo"),
        ({"extra_body": {"min_p": 0.1}}, 400, "min_p: Extra inputs are not permitted"),
        ({"extra_body": {"imsm": {"top": 0}}}, 400, "imsm.top"),
    ],
)
def test_errors(client: openai.OpenAI, imsm_run: Path, change: dict[str, Any], status: int, part: str) -> None:
    arguments = {"model": "{run}:tuned", "prompt": PROMPTS[0], **OPTIONS, **change}
    arguments["model"] = arguments["model"].format(run=imsm_run.name)
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(**arguments)
    assert caught.value.status_code == status
    assert isinstance(caught.value.body, dict) and part in caught.value.body["message"]


def status(url: str, body: bytes | None = None, **headers: str) -> int:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        assert error.headers["Content-Security-Policy"].startswith("default-src 'none'") or error.code == 400
        return error.code


def test_malformed_requests(server: tuple[str, Engine]) -> None:
    url = f"{server[0]}/v1/completions"
    assert status(url, b"{") == 400
    # what a page of another site can send without asking (no CORS preflight)
    body = json.dumps({"model": "x", "prompt": "x"}).encode()
    assert status(url, body) == 404 and status(url, body, **{"Content-Type": "text/plain"}) == 400
    assert status(url, b"[]") == 400
    assert status(url, json.dumps({"model": "x", "prompt": {"a": 1}}).encode()) == 400
    connection = http.client.HTTPConnection(server[0].removeprefix("http://"), timeout=30)
    # the header suffices: the body is not read
    connection.request("POST", "/v1/completions", headers={"Content-Length": str(MAX_BODY_BYTES + 1)})
    assert connection.getresponse().status == 413
    connection.close()
    assert status(url, b"{}", Host="evil.example") == 400
    assert status(f"{server[0]}/v1/nothing") == 404
    assert status(f"{server[0]}/..%2f..%2fapp.py") == 404
    assert status(f"{server[0]}/api/items?run=..%2f..") == 404


def test_key(server: tuple[str, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY, "sécret")
    for path in ("v1/models", "api/runs"):
        assert status(f"{server[0]}/{path}") == 401
        assert status(f"{server[0]}/{path}", Authorization="Bearer wrong") == 401
        assert status(f"{server[0]}/{path}", Authorization="s\u00e9cret") == 401
    assert status(f"{server[0]}/") == 200
    monkeypatch.setenv(API_KEY, "secret")
    assert status(f"{server[0]}/v1/models", Authorization="Bearer secret") == 200


def test_an_unexpected_error_is_an_error_object(
    client: openai.OpenAI, imsm_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("secret path")

    monkeypatch.setattr("imsm.serving.app.completion_prompts", broken)
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model=imsm_run.name, prompt=PROMPTS[0])
    assert caught.value.body == {"message": "AssertionError", "type": "server_error", "param": None, "code": None}


def test_many_clients_at_once(client: openai.OpenAI, imsm_run: Path, generated: dict[str, list[str]]) -> None:
    work = [(name, index) for name in generated for index in range(len(PROMPTS))] * 2

    def ask(item: tuple[str, int]) -> str:
        model = f"{imsm_run.name}:{item[0]}"
        return client.completions.create(model=model, prompt=PROMPTS[item[1]], **OPTIONS).choices[0].text

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, work)) == [generated[name][index] for name, index in work]


def test_a_client_that_leaves_ends_its_work(
    server: tuple[str, Engine], client: openai.OpenAI, imsm_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Engine._step

    def slow(self: Engine, batch: Any) -> None:
        time.sleep(0.1)
        step(self, batch)

    monkeypatch.setattr(Engine, "_step", slow)
    monkeypatch.setattr("imsm.serving.engine.eos_token_ids", lambda *_: [])
    arguments: dict[str, Any] = {"model": imsm_run.name, "prompt": PROMPTS[0], "max_tokens": 100}
    stream = client.completions.create(stream=True, **arguments)
    next(iter(stream))
    assert server[1].in_flight == 1
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).completions.create(**arguments)
    # 100 tokens would take 10 s
    deadline = time.monotonic() + 5
    while server[1].in_flight and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server[1].in_flight == 0


def test_full_queue_answers_429(imsm_run: Path) -> None:
    with running([imsm_run], max_batch=1, max_waiting=1) as (url, _):
        crowd = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

        def ask(seed: int) -> str:
            try:
                options: dict[str, Any] = {"max_tokens": 50, "temperature": 10, "seed": seed}
                return crowd.completions.create(model=imsm_run.name, prompt=PROMPTS[0], **options).choices[0].text
            except openai.RateLimitError as error:
                return str(error)

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(ask, range(12)))
        refused = [answer for answer in answers if "try again later" in answer]
        assert 0 < len(refused) < 12
