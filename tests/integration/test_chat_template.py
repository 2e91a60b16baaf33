"""A run of an instruct model: asked in its chat template in training, in judging, and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import imsm
from imsm.cli.main import main
from imsm.config.identity import comparable_up_to_method, run_identity
from imsm.pipeline.run import run_experiment
from imsm.utils.errors import UserError
from tests.helpers.config import config
from tests.helpers.tiny_backbone import save_backbone

WORDS = ["red", "green", "blue", "black"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    pairs = list(zip(WORDS, WORDS[1:] + WORDS[:1], strict=True))
    rows = [{"input": f"after {one} comes", "output": f" {other}"} for one, other in pairs]
    (root / "data").mkdir()
    for name in ("train", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (root / "data" / f"{name}.jsonl").write_text(lines)
    marks = ["<|user|>", "<|assistant|>", "<|end|>"]
    texts = [row["input"] + row["output"] for row in rows]
    save_backbone(root / "backbone", texts=[*texts, *marks, "after"])
    tokenizer = AutoTokenizer.from_pretrained(root / "backbone")
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(root / "backbone")
    return root


def choices(made: Path, *more: str) -> list[str]:
    return [
        "backbone=llama3",
        f"backbone.name_or_path={made / 'backbone'}",
        "backbone.dtype=float32",
        "data=jsonl",
        f"data.local_dir={made / 'data'}",
        "data.metric=exact_match",
        "data.max_new_tokens=3",
        "evaluation.tasks=[target]",
        "trainer.num_epochs=60",
        "trainer.learning_rate=0.03",
        "trainer.global_batch_size=4",
        *more,
    ]


def test_training_evaluation_and_generation_use_the_template(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_experiment(config(*choices(made, "data.chat_template=true")), runs_root=tmp_path)
    (folder,) = tmp_path.glob("*-imsm-*")
    result = json.loads((folder / "result.json").read_text())
    assert result["evaluation"]["tasks"]["jsonl"]["metrics"]["exact_match"] > 70  # it learned so
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert tokenizer.eos_token == "<|end|>"

    model = imsm.SiameseForCausalLM.from_pretrained(folder)
    (judged,) = folder.glob("evaluation/jsonl-*/predictions.jsonl")
    texts = [json.loads(line)["response"] for line in judged.open()]
    for word, text in zip(WORDS, texts, strict=True):
        prompt = f"<s><|user|>after {word} comes<|end|><|assistant|>"
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        new = model.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=tokenizer.eos_token_id)[
            0, ids.shape[1] :
        ]
        assert tokenizer.decode(new, skip_special_tokens=True) == text
    capsys.readouterr()
    assert main(["generate", str(folder), "after red comes", "--stream", "interwoven"]) == 0
    assert capsys.readouterr().out.strip() == texts[0].strip()


INSTRUCT = "backbone=llama3_1_instruct"


def test_it_is_another_run_with_another_original(made: Path, tmp_path: Path) -> None:
    for template in ("true", "false"):
        chosen = choices(made, f"data.chat_template={template}", "method=original")
        run_experiment(config(*chosen), runs_root=tmp_path)
    lines = [json.loads(p.read_text().split("\n")[0]) for p in tmp_path.rglob("predictions.jsonl")]
    asked = {line["prompt_hash"] for line in lines}
    assert len(list(tmp_path.glob("*-original-*"))) == len(lines) == len(asked) == 2
    plain, chatting = (
        run_identity(config(INSTRUCT, f"data.chat_template={template}", "method=peft"))
        for template in ("false", "true")
    )
    assert not comparable_up_to_method(plain, chatting)
    original = run_identity(config(INSTRUCT, "data.chat_template=true", "method=original"))
    assert comparable_up_to_method(original, chatting)
    assert not comparable_up_to_method(original, plain)
    assert "chat_template" not in json.dumps(plain)  # runs without keep their names


def test_a_tokenizer_without_a_template_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no chat template"):
        run_experiment(config("data.chat_template=true", "method=peft"), runs_root=tmp_path)
    assert not list(tmp_path.rglob("log.jsonl"))
