"""lm-evaluation-harness on a siamese model: its own model's numbers, item by item."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from imsm.cli import lm_eval as command  # noqa: E402
from imsm.evaluation.lm_eval import SiameseLM  # noqa: E402
from imsm.models.builder import build_model  # noqa: E402
from imsm.models.siamese.model import SiameseForCausalLM  # noqa: E402
from tests.helpers.adapters import lora  # noqa: E402
from tests.helpers.tiny_backbone import save_backbone  # noqa: E402

WORDS = ["red", "green", "blue", "black", "white", "grey", "pink", "brown"]
LIMIT = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone that knows some words, before and after blanks."""
    texts = [f"say {word} then {other}\n {word}" for word in WORDS for other in WORDS]
    return save_backbone(tmp_path_factory.mktemp("backbone"), texts=[*texts, *WORDS])


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, padding_side="left")


@pytest.fixture(scope="module")
def model(folder: Path) -> SiameseForCausalLM:
    torch.manual_seed(0)
    made = build_model(
        backbone={"name_or_path": str(folder)},
        adapter=lora(target_modules=["q_proj", "v_proj"], r=2, lora_alpha=8, lora_dropout=0.0),
        gate={
            "_target_": "imsm.models.siamese.gate.Gate",
            "inputs": ["query_original", "original", "tuned", "query_tuned"],
            "rank": 2,
        },
        pooling="mean",
        stream="interwoven",
        seed=0,
    )
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.4)
    return made.eval()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multiple-choice, a generating and a rolling task on a file of one's own."""
    place = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": f"say {word}", "choices": [word, WORDS[i - 1], f"{word} then pink"], "label": 0}
        for i, word in enumerate(WORDS)
    ]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(place / "rows.jsonl")}},
        "test_split": "test",
        "fewshot_split": "test",
    }
    (place / "choice.yaml").write_text(
        json.dumps(
            common
            | {
                "task": "toy_choice",
                "output_type": "multiple_choice",
                "doc_to_text": "{{question}} then",
                "doc_to_choice": "{{choices}}",
                "doc_to_target": "{{label}}",
                "metric_list": [{"metric": "acc"}],
            }
        )
    )
    (place / "lacking.yaml").write_text(
        json.dumps(
            common
            | {
                "task": "toy_lacking",
                "output_type": "generate_until",
                "doc_to_text": "{{missing}} then",
                "doc_to_target": "{{choices[0]}}",
                "metric_list": [{"metric": "exact_match"}],
            }
        )
    )
    (place / "generate.yaml").write_text(
        json.dumps(
            common
            | {
                "task": "toy_generate",
                "output_type": "generate_until",
                "doc_to_text": "{{question}} then",
                "doc_to_target": "{{choices[0]}}",
                "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
                "metric_list": [{"metric": "exact_match"}],
            }
        )
    )
    (place / "rolling.yaml").write_text(
        json.dumps(
            common
            | {
                "task": "toy_rolling",
                "output_type": "loglikelihood_rolling",
                "doc_to_text": "",
                "doc_to_target": "{{question}} then {{choices[2]}}",
                "metric_list": [{"metric": "word_perplexity"}],
            }
        )
    )
    return place


def answers(asked: Any, tasks: Path, *, shots: int) -> dict[str, list[Any]]:
    """What a model said to every request of every task."""
    found = lm_eval.simple_evaluate(
        model=asked,
        tasks=["toy_choice", "toy_generate", "toy_rolling"],
        num_fewshot=shots,
        task_manager=TaskManager(include_path=str(tasks)),
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = found["samples"]
    return {task: [(each["doc_id"], each["resps"], each["arguments"]) for each in samples[task]] for task in samples}


def same(ours: dict[str, list[Any]], theirs: dict[str, list[Any]]) -> None:
    assert ours.keys() == theirs.keys()
    for task in ours:
        assert len(ours[task]) == len(theirs[task]) == len(WORDS)
        for one, other in zip(ours[task], theirs[task], strict=True):
            assert one[0] == other[0] and one[2] == other[2]
            flat = [list(_flat(each[1])) for each in (one, other)]
            assert len(flat[0]) == len(flat[1])
            for a, b in zip(*flat, strict=True):
                assert a == pytest.approx(b, abs=1e-4) if isinstance(a, float) else a == b


def _flat(value: Any) -> Any:
    if isinstance(value, list | tuple):
        for each in value:
            yield from _flat(each)
    else:
        yield value


@pytest.mark.slow
@pytest.mark.parametrize("shots", [0, 3])
@pytest.mark.parametrize("stream", ["original", "tuned"])
def test_a_stream_is_the_harness_own_model_item_by_item(
    model: SiameseForCausalLM, tokenizer: Any, folder: Path, tasks: Path, stream: str, shots: int
) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(folder) if stream == "original" else model.adapted
    theirs = HFLM(pretrained=plain, tokenizer=tokenizer, batch_size=3, max_length=LIMIT)
    model.stream = stream  # type: ignore[assignment]
    ours = SiameseLM(model, tokenizer, batch_size=3, max_length=LIMIT)
    same(answers(ours, tasks, shots=shots), answers(theirs, tasks, shots=shots))


def test_the_interwoven_stream_reads_a_requests_context_as_its_query(
    model: SiameseForCausalLM, tokenizer: Any
) -> None:
    model.stream = "interwoven"
    pairs = [(f"say {word} then", f" {other}") for word in WORDS[:3] for other in WORDS[3:5]]
    pairs.append(("say red then blue then", " red then"))
    requests = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i) for i, pair in enumerate(pairs)]
    found = {
        size: SiameseLM(model, tokenizer, batch_size=size, max_length=LIMIT).loglikelihood(requests, disable_tqdm=True)
        for size in (1, 4)
    }
    for (context, answer), (total, greedy), (again, _) in zip(pairs, found[1], found[4], strict=True):
        start = tokenizer(context, add_special_tokens=False)["input_ids"]
        whole = tokenizer(context + answer, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([whole])
        with torch.no_grad():
            log_p = model(ids, query_mask=torch.ones(1, len(start))).logits.log_softmax(dim=-1)
        own = whole[len(start) :]
        places = range(len(start) - 1, len(whole) - 1)
        expected = sum(float(log_p[0, place, token]) for place, token in zip(places, own, strict=True))
        assert total == pytest.approx(expected, abs=1e-4)
        assert again == pytest.approx(total, abs=1e-4)
        likeliest = [int(log_p[0, place].argmax()) for place in places]
        assert greedy == (likeliest == own)


def test_what_is_too_long_loses_its_beginning_and_never_its_query(model: SiameseForCausalLM, tokenizer: Any) -> None:
    model.stream = "interwoven"
    asked = SiameseLM(model, tokenizer, batch_size=2, max_length=4)
    item = asked._item([1, 2, 3, 4, 5], [6, 7])
    assert (item.prompt_ids, item.answer_ids) == ((3, 4, 5), (6, 7))
    item = asked._item([1, 2], [3, 4, 5, 6, 7, 8])
    assert (item.prompt_ids, item.answer_ids) == ((2,), (3, 4, 5, 6))


def test_the_command_leaves_what_it_found(
    model: SiameseForCausalLM,
    tokenizer: Any,
    tasks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    model.stream = "interwoven"
    model.save_pretrained(run / "model")
    tokenizer.save_pretrained(run / "model")
    common = ["--run", str(run), "--include-path", str(tasks), "--limit", "3"]
    assert command.main([*common, "--tasks", "toy_choice", "--num-fewshot", "2"]) == 0
    assert "| toy_choice" in capsys.readouterr().out
    kept = json.loads((run / "harness-interwoven-toy_choice-2-limit3.json").read_text())
    assert kept["stream"] == "interwoven" and kept["limit"] == 3
    assert 0 <= kept["results"]["toy_choice"]["acc,none"] <= 1
    for wrong, told in (
        (["--tasks", "toy_chois"], "the harness has no such task"),
        (["--tasks", "toy_choice", "--limit", "0"], "--limit 0: must be at least 1"),
        (["--tasks", "toy_choice", "--run", str(tmp_path)], "holds no finished run"),
        (["--tasks", "toy_choice", "--include-path", str(tmp_path / "no")], "no such folder"),
        (["--tasks", "toy_lacking"], "a template does not fit the data's columns ('missing' is"),
    ):
        assert command.main([*common, *wrong]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert told in error[-1]
    (run / "file").write_text("")
    monkeypatch.setattr(lm_eval, "simple_evaluate", lambda **_: pytest.fail("it was asked"))
    for place in (run, run / "file" / "found.json"):
        assert command.main([*common, "--tasks", "toy_choice", "--output", str(place)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"imsm: --output {place}: cannot be written (")


def test_results_of_a_part_and_of_all_lie_side_by_side(
    model: SiameseForCausalLM, tokenizer: Any, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    model.stream = "tuned"
    model.save_pretrained(run / "model")
    tokenizer.save_pretrained(run / "model")
    asked = ["--run", str(run), "--include-path", str(tasks), "--tasks", "toy_choice"]
    own = tmp_path / "a new" / "folder" / "found.json"
    for more in ([], ["--limit", "2"], ["--limit", "3", "--output", str(own)]):
        assert command.main([*asked, "--stream", "tuned", *more]) == 0
    names = sorted(each.name for each in run.glob("harness-*"))
    assert names == ["harness-tuned-toy_choice-default-limit2.json",
                     "harness-tuned-toy_choice-default.json"]  # fmt: skip
    sizes = [json.loads((run / name).read_text())["n-samples"]["toy_choice"] for name in names]
    assert [size["effective"] for size in sizes] == [2, len(WORDS)]
    assert json.loads(own.read_text())["limit"] == 3
