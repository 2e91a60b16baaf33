"""A siamese model in lm-evaluation-harness, against the harness's own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from imsm.evaluation.lm_eval import SiameseLM  # noqa: E402
from imsm.models.siamese.model import SiameseForCausalLM  # noqa: E402
from tests.evaluation.lm_eval_files import WORDS, perturbed_model, write_backbone, write_tasks  # noqa: E402

LIMIT = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, padding_side="left")


@pytest.fixture(scope="module")
def model(folder: Path) -> SiameseForCausalLM:
    return perturbed_model(folder)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    """The tasks of these tests alone: indexing the harness's own takes seconds."""
    return TaskManager(include_path=str(write_tasks(tmp_path_factory.mktemp("tasks"))), include_defaults=False)


@pytest.fixture(autouse=True)
def no_list_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness adds one to its results, by a process of pip."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


def responses(lm: Any, tasks: TaskManager, *, shots: int) -> dict[str, list[Any]]:
    """Return a model's responses to every request of every task."""
    results = lm_eval.simple_evaluate(
        model=lm,
        tasks=["toy_choice", "toy_generate", "toy_rolling"],
        num_fewshot=shots,
        task_manager=tasks,
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = results["samples"]
    return {task: [(each["doc_id"], each["resps"], each["arguments"]) for each in samples[task]] for task in samples}


def assert_equal_responses(ours: dict[str, list[Any]], theirs: dict[str, list[Any]]) -> None:
    assert ours.keys() == theirs.keys()
    for task in ours:
        assert len(ours[task]) == len(theirs[task]) == len(WORDS)
        for one, other in zip(ours[task], theirs[task], strict=True):
            assert one[0] == other[0] and one[2] == other[2]
            flat = [list(flatten(each[1])) for each in (one, other)]
            assert len(flat[0]) == len(flat[1])
            for a, b in zip(*flat, strict=True):
                assert a == pytest.approx(b, abs=1e-4) if isinstance(a, float) else a == b


def flatten(value: Any) -> Any:
    if isinstance(value, list | tuple):
        for each in value:
            yield from flatten(each)
    else:
        yield value


@pytest.mark.parametrize("shots", [0, 3])
@pytest.mark.parametrize("stream", ["original", "tuned"])
def test_a_stream_equals_the_harness_own_model(
    model: SiameseForCausalLM, tokenizer: Any, folder: Path, tasks: TaskManager, stream: str, shots: int
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder) if stream == "original" else model.adapted
    theirs = HFLM(pretrained=plain, tokenizer=tokenizer, batch_size=3, max_length=LIMIT)
    model.stream = stream  # type: ignore[assignment]
    ours = SiameseLM(model, tokenizer, batch_size=3, max_length=LIMIT)
    assert_equal_responses(responses(ours, tasks, shots=shots), responses(theirs, tasks, shots=shots))


def test_the_query_is_the_context_of_a_request(model: SiameseForCausalLM, tokenizer: Any) -> None:
    model.stream = "interwoven"
    pairs = [(f"say {word} then", f" {other}") for word in WORDS[:3] for other in WORDS[3:5]]
    pairs.append(("say red then blue then", " red then"))
    requests = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i) for i, pair in enumerate(pairs)]
    found = {
        size: SiameseLM(model, tokenizer, batch_size=size, max_length=LIMIT).loglikelihood(requests, disable_tqdm=True)
        for size in (1, 4)
    }
    for (context, answer), (total, greedy), (again, _) in zip(pairs, found[1], found[4], strict=True):
        query = tokenizer(context, add_special_tokens=False)["input_ids"]
        ids = tokenizer(context + answer, add_special_tokens=False)["input_ids"]
        tokens = torch.tensor([ids])
        with torch.no_grad():
            log_p = model(tokens, query_mask=torch.ones(1, len(query))).logits.log_softmax(dim=-1)
        continuation = ids[len(query) :]
        positions = range(len(query) - 1, len(ids) - 1)
        expected = sum(
            float(log_p[0, position, token]) for position, token in zip(positions, continuation, strict=True)
        )
        assert total == pytest.approx(expected, abs=1e-4)
        assert again == pytest.approx(total, abs=1e-4)
        likeliest = [int(log_p[0, position].argmax()) for position in positions]
        assert greedy == (likeliest == continuation)


def test_long_sequences_are_cut_from_the_left_but_keep_a_query(model: SiameseForCausalLM, tokenizer: Any) -> None:
    model.stream = "interwoven"
    lm = SiameseLM(model, tokenizer, batch_size=2, max_length=4)
    example = lm._example([1, 2, 3, 4, 5], [6, 7])
    assert (example.prompt_ids, example.answer_ids) == ((3, 4, 5), (6, 7))
    example = lm._example([1, 2], [3, 4, 5, 6, 7, 8])
    assert (example.prompt_ids, example.answer_ids) == ((2,), (3, 4, 5, 6))
