"""Rehearsal in complete runs: texts that are generated once, replayed examples, prompts, and errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from imsm.config.identity import baseline_config
from imsm.data.tasks.webq import PROMPT
from imsm.data.tokenization import TokenizedExample
from imsm.distributed.context import DistributedContext
from imsm.pipeline import rehearsal, train
from imsm.pipeline.data import load_run_tokenizer
from imsm.pipeline.model import new_model
from imsm.utils.errors import UserError
from imsm.utils.run_dir import RunDir, read_training
from tests.helpers.config import config
from tests.helpers.word_run import interrupt_at, run_words, word_overrides

ADAPTER = "model/adapter/adapter_model.safetensors"
SELF = (
    "rehearsal=self", "rehearsal.num_texts=8", "rehearsal.max_tokens=6", "rehearsal.exclude_tests=[]",
    "trainer.num_epochs=2",
)  # fmt: skip


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """The texts of each run, and the numbers of texts that were generated."""
    found: dict[str, list[Any]] = {"texts": [], "generated": []}
    examples, sample = rehearsal.rehearsal_examples, rehearsal.sample_tokens

    def recording(*arguments: Any, **keywords: Any) -> tuple[list[TokenizedExample], dict[str, Any]]:
        found["texts"].append(examples(*arguments, **keywords))
        return found["texts"][-1]

    def counting(session: Any, uniforms: Any, **keywords: Any) -> list[list[int]]:
        found["generated"].append(len(uniforms))
        return sample(session, uniforms, **keywords)

    monkeypatch.setattr(train, "rehearsal_examples", recording)
    monkeypatch.setattr(rehearsal, "sample_tokens", counting)
    return found


def test_texts_are_generated_once_for_all_methods_and_seeds(
    word_files: Path, tmp_path: Path, seen: dict[str, list[Any]]
) -> None:
    run_words(word_files, tmp_path, *SELF, method="peft")
    assert sum(seen["generated"]) == 8
    run_words(word_files, tmp_path, *SELF, "seed=1", "rehearsal.loss=ce", method="imsm")
    assert sum(seen["generated"]) == 8
    assert seen["texts"][0] == seen["texts"][1]


def test_an_interrupted_run_resumes_to_the_same_weights(
    word_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_words(word_files, tmp_path / "whole", *SELF, method="peft")
    steps = interrupt_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        run_words(word_files, tmp_path / "parts", *SELF, method="peft")
    parts = run_words(word_files, tmp_path / "parts", *SELF, method="peft")
    assert steps == [1, 2, 3, 4]
    assert (parts / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()


def test_texts_continue_the_prompts_of_a_file(word_files: Path, tmp_path: Path, seen: dict[str, list[Any]]) -> None:
    lines, rows = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    prompts = ["red green", "pink blue"]  # a prompt of the target's test would be dropped
    lines.write_text("\n\n".join(prompts))
    rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    for path in (lines, rows):
        run_words(word_files, tmp_path / path.suffix[1:], *SELF, f"rehearsal.prompts={path}", method="peft")
    (one, _), (other, _) = seen["texts"]
    assert one == other and len({text.prompt_ids[:2] for text in one}) == 2


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A mirror with three training questions of WebQ, one of which is in its test set."""
    folder = tmp_path / "mirror" / "stanfordnlp" / "web_questions"
    folder.mkdir(parents=True)
    for split, words in (("train", ["red green", "blue", "pink"]), ("test", ["blue"])):
        made = [{"question": each, "answers": ["grey"]} for each in words]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    files = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in ("train", "test"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")
    return tmp_path / "mirror"


def test_prompts_of_an_instruct_model_are_user_turns_of_its_chat_template(
    word_files: Path, tmp_path: Path, mirror: Path, seen: dict[str, list[Any]]
) -> None:
    files = tmp_path / "instruct"
    shutil.copytree(word_files, files)
    tokenizer = AutoTokenizer.from_pretrained(files / "backbone")
    turn = "{% if m.role == 'user' %}after {{ m.content }} comes{% else %}{{ m.content }}</s>{% endif %}"
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}" + turn + "{% endfor %}"
    tokenizer.save_pretrained(files / "backbone")
    file = tmp_path / "prompts.txt"
    file.write_text("red green\npink blue")
    webq = [PROMPT.format(question=question) for question in ("red green", "blue", "pink")]
    for name, prompts in ((str(file), ["red green", "pink blue"]), ("webq", webq)):
        seen["generated"].clear()
        # the turns are other prompts, with texts of their own
        for chat, generated in (("false", 8), ("true", 16), ("true", 16)):
            given = (f"data.mirror_dir={mirror}", f"rehearsal.prompts={name}", f"data.chat_template={chat}")
            run = config(*word_overrides(files, *SELF, *given, method="peft"))
            model = new_model(baseline_config(run), None, device=torch.device("cpu"))
            texts, _ = rehearsal.rehearsal_examples(
                run, model, load_run_tokenizer(run), dist_context=DistributedContext(), response_cache_dir=tmp_path
            )
            assert sum(seen["generated"]) == generated
        turns = [tokenizer(f"<s>after {each} comes", add_special_tokens=False)["input_ids"] for each in prompts]
        assert texts and all(any([*text.prompt_ids][: len(turn)] == turn for turn in turns) for text in texts)


def test_examples_of_another_dataset_are_replayed(
    word_files: Path, tmp_path: Path, mirror: Path, seen: dict[str, list[Any]]
) -> None:
    given = ("rehearsal=replay", "rehearsal.exclude_tests=[webq]", "rehearsal.ratio=0.5", "trainer.num_epochs=2")
    folder = run_words(word_files, tmp_path / "runs", *given, f"data.mirror_dir={mirror}", method="peft")
    ((texts, _),) = seen["texts"]
    # "blue" is a question of the test
    assert {text.id for text in texts} == {"webq/train/0", "webq/train/2"} and not seen["generated"]
    assert read_training(RunDir(folder))["rehearsal"]["texts"] == 2
    assert any("rehearsal_loss" in json.loads(line) for line in (folder / "log.jsonl").open())


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["rehearsal.prompts=webqq"], r"rehearsal\.prompts=webqq: .*did you mean webq"),
        (["rehearsal.num_texts=0"], r"rehearsal\.num_texts=0: must be at least 1"),
        (["evaluation.tasks=[target,webq]"], r"set rehearsal\.exclude_tests=\[webq\]"),
    ],
)
def test_invalid_settings_are_one_line(word_files: Path, overrides: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        config(*word_overrides(word_files, *SELF, *overrides, method="peft"))


def test_a_file_without_prompts_is_one_line(word_files: Path, tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text("\n")
    with pytest.raises(UserError, match=r"empty\.txt: contains no prompt"):
        config(*word_overrides(word_files, *SELF, f"rehearsal.prompts={path}", method="peft"))
