"""Forgetting during training: the watched items, their scores, and the retention."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from imsm.data.replay import words_of
from imsm.data.sources import load_examples
from imsm.data.tokenization import TokenizedExample
from imsm.models.siamese.model import SiameseForCausalLM
from imsm.pipeline import watch as watch_module
from imsm.pipeline.data import load_run_tokenizer, source_of, tokenized_training_set
from imsm.pipeline.model import build_adapter, new_model
from imsm.pipeline.rehearsal import rehearsed_questions
from imsm.pipeline.run import run_experiment
from imsm.pipeline.watch import Watch, open_watch, watched_items
from imsm.utils.errors import UserError
from imsm.utils.run_dir import RunDir, read_training
from tests.helpers.config import config
from tests.models.siamese.tiny import perturb

OVERRIDES = ["method=peft", "trainer.watch_items=6", "trainer.validation_size=3", "data.max_train_examples=12"]


def opened(*more: str, held_out: int = 3, processes: int = 1) -> tuple[Watch, SiameseForCausalLM]:
    run_config = config(*OVERRIDES, *more)
    tokenizer = load_run_tokenizer(run_config)
    examples: list[TokenizedExample] = tokenized_training_set(run_config, tokenizer)[0][:held_out]
    model = new_model(run_config, build_adapter(run_config), device=torch.device("cpu"))
    watch = open_watch(run_config, model, tokenizer, examples, processes=processes)
    assert watch is not None
    return watch, model


def test_without_items_nothing_is_watched() -> None:
    run_config = config("method=peft")
    assert open_watch(run_config, None, None, [], processes=8) is None  # type: ignore[arg-type]


def test_an_adapter_that_changes_nothing_retains_all(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, model = opened()
    scores = watch()
    assert {*scores} == {"watch_webq", "watch_freebaseqa", "watch_multirc", "watch_mrpc", "watch_target", "retention"}
    assert scores["retention"] == 1
    assert {f"watch_{name}": points for name, points in watch.original.items()}.items() <= scores.items()
    assert model.stream == "tuned"
    perturb(model, scale=0.5)
    changed = watch()
    assert changed["watch_webq"] < scores["watch_webq"] and changed["retention"] < 1
    assert watch() == changed


def test_items_are_no_test_items_where_the_task_has_training_examples() -> None:
    run_config = config(*OVERRIDES)
    watch, _ = opened()
    assert watch.splits == {"webq": "train", "freebaseqa": "test", "multirc": "test", "mrpc": "train"}
    assert watch.record()["mrpc"] == {"split": "train", "items": 6, "original": watch.original["mrpc"]}
    task = run_config.tasks["webq"]
    tests = load_examples(task, "test", source=source_of(run_config, task), prompt_style="paper", limit=None)
    watched = {example.prompt for example in watch.eval_sets["webq"].examples}
    assert len(watched) == 6 and not watched & {example.prompt for example in tests}


def test_items_are_no_examples_that_are_replayed_or_whose_prompts_are_continued(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    chosen = [*OVERRIDES, "evaluation.tasks=[target,webq]"]
    run_config = config(*chosen)
    task = run_config.tasks["webq"]
    load = partial(load_examples, task, "train", source=source_of(run_config, task), prompt_style="paper")
    before, everything = watched_items(run_config, 6)["webq"][1], load(limit=None)
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": example.prompt}) + "\n" for example in before))
    count = len(everything)
    replay = ["rehearsal=replay", f"data.max_train_examples={3 * count // 4}", "rehearsal.ratio=1.0"]
    for more in (["rehearsal=self", f"rehearsal.prompts={file}"], replay):
        watching = config(*chosen, *more)
        texts = rehearsed_questions(watching)
        items = watched_items(watching, 6)["webq"][1]
        assert texts & {words_of(each.prompt) for each in before}
        assert len(items) == 6 and not texts & {words_of(each.prompt) for each in items}
    assert capsys.readouterr().err == ""
    for number, left, problem in ((count - 2, 2, "only 2 of 6 items"), (count, 6, "the training reads all")):
        overrides = ["rehearsal=self", "rehearsal.prompts=webq", f"rehearsal.num_texts={number}"]
        assert len(watched_items(config(*chosen, *overrides), 6)["webq"][1]) == left
        assert f"warning: webq (watched): {problem}" in capsys.readouterr().err


def test_the_target_is_measured_on_the_held_out_training_examples() -> None:
    watch, _ = opened(held_out=2)
    assert len(watch.eval_sets["target"].examples) == 2
    assert "target" not in watch.record()
    without, _ = opened(held_out=0)
    assert "watch_target" not in without()


def test_retention_is_the_mean_ratio_to_the_original(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points = {"original": {"webq": 80.0, "freebaseqa": 50.0, "multirc": 0.0, "mrpc": 40.0}}
    points["tuned"] = {"webq": 40.0, "freebaseqa": 50.0, "multirc": 30.0, "mrpc": 50.0, "target": 10.0}
    monkeypatch.setattr(Watch, "_score", lambda watch, name: points[watch.model.stream][name])
    watch, _ = opened()
    assert capsys.readouterr().err.splitlines()[-1] == (
        "warning: trainer.watch_items=6: the original has 0 points on multirc; left out of the retention"
    )
    scores = watch()
    assert scores["retention"] == pytest.approx((0.5 + 1 + 1.25) / 3)
    assert scores["watch_multirc"] == 30 and scores["watch_target"] == 10
    points["original"] = dict.fromkeys(points["original"], 0.0)
    with pytest.raises(UserError, match=r"^trainer.watch_items=6: the original answers none of these examples"):
        opened()


def test_several_processes_and_no_forgetting_tests_are_refused() -> None:
    with pytest.raises(UserError, match=r"^trainer.watch_items=6: needs a training in one process, not 2"):
        opened(processes=2)
    with pytest.raises(UserError, match=r"^trainer.watch_items=6: no forgetting test is evaluated"):
        opened("evaluation.tasks=[target]")


@pytest.mark.slow
def test_a_run_keeps_the_checkpoint_with_the_highest_retention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["trainer.save_steps=1", "trainer.metric_for_best_model=retention", "trainer.min_target=10"]
    more += ["trainer.num_epochs=3", "trainer.global_batch_size=9", "evaluation.tasks=[target,webq]", "logger=none"]
    scores = iter([(90.0, 5.0), (80.0, 30.0), (60.0, 90.0)])
    current: dict[str, float] = {}

    def score(watch: Watch, name: str) -> float:
        if watch.model.stream == "original":
            return 100.0
        if name == "webq":
            current["webq"], current["target"] = next(scores)
        return current[name]

    monkeypatch.setattr(watch_module.Watch, "_score", score)
    chosen = config(*OVERRIDES, *more, "evaluation.limit=2", f"run_dir={tmp_path / 'run'}")
    run_experiment(chosen, runs_root=tmp_path)
    training = read_training(RunDir(tmp_path / "run"))
    assert (training["best_step"], training["best_retention"]) == (2, 0.8)
    assert training["watch"]["webq"] == {"split": "train", "items": 6, "original": 100.0}
    lines = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert [line["watch_target"] for line in lines if "watch_target" in line] == [5, 30, 90]
