"""Judging: what is asked again and what is not, likelihoods, gates, damage, kills."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from imsm.data.sources import DataSource
from imsm.data.task import Task
from imsm.distributed.context import DistributedContext
from imsm.evaluation import inference as asking
from imsm.evaluation.eval_set import EvalSet, load_eval_set
from imsm.evaluation.evaluator import EvalResult, evaluate
from imsm.evaluation.inference import run_inference
from imsm.evaluation.predictions import COLUMNS, read_predictions
from imsm.evaluation.response_cache import ResponseCache
from imsm.models.builder import build_model
from imsm.models.siamese.decoding_session import DecodingSession
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.utils.errors import UserError
from tests.helpers.adapters import lora
from tests.helpers.tiny_backbone import save_backbone

ROWS = [{"input": f"say {word}:", "output": word} for word in ("red", "green", "blue", "black")]


EvalSet.__test__ = False  # type: ignore[attr-defined]  # its name is no test's


class Bench:
    """A tiny model, four items, and a count of how often the model was asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "data").mkdir(exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in ROWS)
        (root / "data" / "test.jsonl").write_text(lines)
        texts = [text for row in ROWS for text in (f"{row['input']} {row['output']}", row["output"])]
        self.backbone = save_backbone(root / "backbone", texts=texts)
        self.tokenizer = AutoTokenizer.from_pretrained(self.backbone, padding_side="left")
        self.asked = 0

    def model(self) -> SiameseForCausalLM:
        self.asked += 1
        return build_model(
            backbone={"name_or_path": str(self.backbone)},
            adapter=None,
            gate=None,
            pooling="mean",
            stream="original",
            seed=0,
        )

    def test_set(self, *, max_new_tokens: int = 4) -> EvalSet:
        task = Task(
            name="colours",
            module="imsm.data.tasks.jsonl",
            hub=None,
            splits={"train": [], "test": ["test"]},
            metrics=["contain"],
            max_prompt_tokens=64,
            max_new_tokens=max_new_tokens,
            stop=None,
        )
        return load_eval_set(
            task,
            source=DataSource(kind="local", path=str(self.root / "data")),
            prompt_style="paper",
            limit=None,
            tokenizer=self.tokenizer,
            closed_vocabulary=False,
            chat=False,
        )

    def judge(
        self,
        *,
        fingerprint: str = "one",
        max_new_tokens: int = 4,
        metrics: tuple[str, ...] = ("contain", "exact_match"),
    ) -> EvalResult:
        return evaluate(
            self.test_set(max_new_tokens=max_new_tokens),
            get_model=self.model,
            stream="original",
            tokenizer=self.tokenizer,
            model_fingerprint=fingerprint,
            metrics={"strict": metrics, "paper_code": ["token_f1"]},
            protocol="strict",
            batch_size=2,
            response_cache_dir=self.root / "response_cache",
            output_dir=self.root / "out",
            label="x",
            dist_context=DistributedContext(),
        )

    def rows(self) -> list[dict]:
        lines = (self.root / "out" / "predictions.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def response_cache(self, fingerprint: str = "one") -> Path:
        return self.root / "response_cache" / f"{fingerprint}.jsonl"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_every_item_stands_once_with_all_that_is_known_of_it(bench: Bench) -> None:
    judgement = bench.judge()
    rows = bench.rows()
    assert [set(row) for row in rows] == [set(COLUMNS)] * 4
    assert [row["references"] for row in rows] == [[row["output"]] for row in ROWS]
    scores = [row["scores"]["contain"] for row in rows]
    assert judgement.metrics["contain"] == pytest.approx(100 * sum(scores) / 4)
    assert (judgement.num_examples, judgement.headline, judgement.protocol) == (4, "contain", "strict")
    assert set(judgement.protocols) == {"strict", "paper_code"}
    assert judgement.gate_mean is None


def test_items_are_read_as_a_table(bench: Bench) -> None:
    bench.judge()
    place = bench.root / "evaluation" / "colours-12345678"
    place.parent.mkdir()
    (bench.root / "out").rename(place)
    table = read_predictions(bench.root, task="colours", test_set="1234567890")
    assert list(table.index) == [f"jsonl/test/{number}" for number in range(4)]
    assert {"score.contain", "score.exact_match", "score.token_f1"} <= set(table.columns)
    (place / "predictions.jsonl").write_text('{"id": 1')
    with pytest.raises(UserError, match="is damaged"):
        read_predictions(bench.root, task="colours", test_set="1234567890")
    with pytest.raises(UserError, match="is not there"):
        read_predictions(bench.root, task="colours", test_set="0" * 8)


def test_nothing_is_asked_twice(bench: Bench) -> None:
    first = bench.judge()
    again = bench.judge()
    assert bench.asked == 1
    assert again == first


def test_scoring_again_asks_nothing(bench: Bench) -> None:
    bench.judge()
    text = bench.response_cache().read_text()
    judgement = bench.judge(metrics=("token_f1", "contain"))
    assert bench.asked == 1
    assert list(judgement.metrics) == ["token_f1", "contain"]
    assert bench.response_cache().read_text() == text


def test_another_model_or_another_limit_is_asked_anew(bench: Bench) -> None:
    bench.judge()
    bench.judge(fingerprint="two")
    bench.judge(fingerprint="two", max_new_tokens=3)
    assert bench.asked == 3
    assert all(row["tokens"] <= 3 for row in bench.rows())


def test_a_raw_text_of_the_ledger_is_what_is_scored(bench: Bench) -> None:
    bench.judge()
    response_cache = ResponseCache(bench.root / "response_cache", fingerprint="one")
    rows = response_cache.read()
    bench.response_cache().unlink()
    response_cache.append({key: {**row, "text": "it is red"} if "text" in row else row for key, row in rows.items()})
    judgement = bench.judge()
    assert bench.asked == 1
    assert judgement.metrics == {"contain": 25.0, "exact_match": 0.0}


@pytest.mark.parametrize("damage", ["cut", "line", "flipped", "noise"])
def test_a_damaged_line_is_set_aside_and_made_again(
    bench: Bench, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = bench.judge()
    items = (bench.root / "out" / "predictions.jsonl").read_text()
    text = bench.response_cache().read_text()
    if damage == "cut":
        bench.response_cache().write_text(text[:-20])
    elif damage == "line":
        bench.response_cache().write_text("".join(text.splitlines(keepends=True)[1:]))
    elif damage == "flipped":
        place = text.index('"tokens": ') + 10
        bench.response_cache().write_text(text[:place] + "3" + text[place:])
    else:
        bench.response_cache().write_bytes(b"\xff\x00{\n" + text.encode())
    again = bench.judge()
    assert (bench.root / "out" / "predictions.jsonl").read_text() == items
    assert again.metrics == first.metrics
    assert bench.asked == (1 if damage == "noise" else 2)
    told = capsys.readouterr().err
    assert ("1 damaged line(s) set aside" in told) == (damage != "line")
    assert bench.response_cache().with_suffix(".damaged").is_file() == (damage != "line")
    bench.judge()
    assert "damaged" not in capsys.readouterr().err
    lines = bench.response_cache().read_text().splitlines()
    assert len(lines) == len({json.loads(line)["key"] for line in lines}) == 8


def test_golds_are_as_likely_as_the_whole_logits_say(bench: Bench) -> None:
    bench.judge()
    model = bench.model()
    for item, row in zip(bench.test_set().prompts, bench.rows(), strict=True):
        answer = bench.tokenizer(row["references"][0], add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*item.prompt_ids, *answer]])
        with torch.no_grad():
            log_p = model(ids).logits.float().log_softmax(dim=-1)
        start = len(item.prompt_ids) - 1
        expected = sum(float(log_p[0, start + i, token]) for i, token in enumerate(answer))
        assert row["reference_loglik"] == pytest.approx(expected, abs=1e-4)
        assert row["reference_tokens"] == len(answer)


def test_the_gate_is_that_of_the_items_own_answer(bench: Bench) -> None:
    """Against one pass over each prompt and what was generated, the query's mask given."""
    torch.manual_seed(0)
    model = build_model(
        backbone={"name_or_path": str(bench.backbone)},
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
        for name, value in model.named_parameters():
            if value.requires_grad:
                value.normal_(std=0.5 if "gate" in name else 0.2)
        model.get_output_embeddings().weight[: bench.tokenizer.eos_token_id + 1] = 0  # never ends
    test = bench.test_set()
    answers, golds = run_inference(
        test,
        get_model=lambda: model,
        stream="interwoven",
        tokenizer=bench.tokenizer,
        fingerprint="woven",
        response_cache=ResponseCache(bench.root / "response_cache", fingerprint="woven"),
        batch_size=3,
        label="x",
        dist_context=DistributedContext(),
    )
    assert all(golds)
    for prompt, row in zip(test.prompts, answers, strict=True):
        start = torch.tensor([prompt.prompt_ids])
        ids = model.generate(start, max_new_tokens=4, do_sample=False, pad_token_id=bench.tokenizer.pad_token_id)
        with torch.no_grad():
            output = model(ids, query_mask=torch.ones_like(start))
        own = output.gate[0, start.shape[1] - 1 : -1].tolist()
        assert row["gate_per_token"] == pytest.approx(own, abs=2e-5)
        assert row["gate_mean"] == pytest.approx(sum(own) / len(own), abs=2e-5)
    means = [row["gate_mean"] for row in answers]
    assert max(means) - min(means) > 1e-3  # they are each item's own


def test_more_items_ask_only_what_is_new(bench: Bench) -> None:
    bench.judge()
    before = set(ResponseCache(bench.root / "response_cache", fingerprint="one").read())
    lines = "".join(json.dumps(row) + "\n" for row in [*ROWS, {"input": "say red: ", "output": "red"}])
    (bench.root / "data" / "test.jsonl").write_text(lines)
    bench.judge()
    after = set(ResponseCache(bench.root / "response_cache", fingerprint="one").read())
    assert before < after
    assert len(after) == len(before) + 2


def _killed(root: Path, lines: int) -> None:
    """Judge in this process; it dies in the middle of what it writes after so many lines."""
    own = ResponseCache.append

    def append(response_cache: ResponseCache, rows: dict) -> None:
        held = len(response_cache.path.read_text().splitlines()) if response_cache.path.is_file() else 0
        if held + len(rows) <= lines:
            own(response_cache, rows)
            return
        own(response_cache, rows)
        whole = response_cache.path.read_bytes()
        response_cache.path.write_bytes(whole[: -(7 + 13 * lines)])
        os.kill(os.getpid(), signal.SIGKILL)

    ResponseCache.append = append  # type: ignore[method-assign]
    Bench(root).judge()


def _judged(root: Path) -> None:
    Bench(root).judge()


@pytest.mark.slow
def test_killed_ten_times_it_is_complete_and_nothing_stands_twice(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = Bench(tmp_path / "whole")
    whole.judge()
    fork = multiprocessing.get_context("fork")
    killed = 0
    for number in range(10):
        process = fork.Process(target=_killed, args=(tmp_path / "parts", number % 8))
        process.start()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= 5
    parts = Bench(tmp_path / "parts")
    parts.judge()
    assert parts.rows() == whole.rows()
    lines = [json.loads(line) for line in parts.response_cache().read_text().splitlines()]
    assert len(lines) == len({line["key"] for line in lines}) == 8


@pytest.mark.slow
def test_two_processes_at_once_keep_each_row_whole(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for root in (first, second):
        root.mkdir()
    Bench(first)
    (second / "response_cache").symlink_to(first / "response_cache")
    (first / "response_cache").mkdir()
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_judged, args=(root,)) for root in (first, second)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert Bench(first).rows() == Bench(second).rows()
    assert len(ResponseCache(first / "response_cache", fingerprint="one").read()) == 8
    assert not (first / "response_cache" / "one.damaged").exists()


def test_too_large_a_batch_is_asked_in_halves_with_the_same_answers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.judge()
    expected = [row["response"] for row in bench.rows()]
    sizes: list[int] = []

    def limited(model: SiameseForCausalLM, prompts: Sequence[Any], **options: Any) -> DecodingSession:
        sizes.append(len(prompts))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return DecodingSession(model, prompts, **options)

    monkeypatch.setattr(asking, "DecodingSession", limited)
    bench.judge(fingerprint="another")
    assert [row["response"] for row in bench.rows()] == expected
    assert sizes == [2, 1, 1, 1, 1]
    assert "retrying with batch size 1" in capsys.readouterr().err


@pytest.mark.parametrize(("kept", "never"), [("text", "generate_answers"), ("loglik", "log_likelihoods")])
def test_of_what_is_held_nothing_is_asked_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kept: str, never: str
) -> None:
    bench.judge()
    before = bench.rows()
    lines = bench.response_cache().read_text().splitlines(keepends=True)
    held = [line for line in lines if f'"{kept}"' in line]
    assert len(held) == 4 == len(lines) / 2
    bench.response_cache().write_text("".join(held))
    monkeypatch.setattr(asking, never, lambda *_, **__: pytest.fail("asked again"))
    bench.judge()
    assert bench.rows() == before
    assert len(ResponseCache(bench.root / "response_cache", fingerprint="one").read()) == 8
