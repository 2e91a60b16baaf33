"""A run from its configuration to its report, on a tiny model and a folder of one's own data."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import imsm
from imsm.cli.main import main
from imsm.models.siamese.model import SiameseForCausalLM, SiameseOutput
from imsm.pipeline.run import run_experiment
from imsm.training import trainer as loop
from imsm.utils.errors import RunError, UserError
from tests.helpers.config import config
from tests.helpers.tiny_backbone import save_backbone

WORDS = ["red", "green", "blue", "black", "white", "brown", "pink", "grey"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone and data; the answer to a word is the word after it."""
    root = tmp_path_factory.mktemp("made")
    data = root / "data"
    data.mkdir()
    pairs = list(zip(WORDS, WORDS[1:] + WORDS[:1], strict=True))
    rows = [{"input": f"after {one} comes", "output": f" {other}"} for one, other in pairs]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("train", "test"):
        (data / f"{name}.jsonl").write_text(lines)
    save_backbone(root / "backbone", texts=[row["input"] + row["output"] for row in rows])
    return root


def choices(made: Path, *more: str, method: str = "imsm") -> list[str]:
    return [
        "backbone=llama3",
        f"backbone.name_or_path={made / 'backbone'}",
        "backbone.dtype=float32",
        "data=jsonl",
        f"data.local_dir={made / 'data'}",
        "data.metric=contain",
        "data.max_new_tokens=3",
        "evaluation.tasks=[target]",
        "trainer.num_epochs=8",
        "trainer.learning_rate=0.03",
        "trainer.global_batch_size=4",
        f"method={method}",
        *more,
    ]


def run(made: Path, root: Path, *more: str, method: str = "imsm") -> Path:
    """Carry a run out; returns its folder."""
    chosen = config(*choices(made, *more, method=method))
    run_experiment(chosen, runs_root=root)
    (folder,) = root.glob(f"*-{method}-*")
    return folder


def test_a_run_leaves_its_model_its_answers_and_its_report(made: Path, tmp_path: Path) -> None:
    folder = run(made, tmp_path)
    result = json.loads((folder / "result.json").read_text())
    entry = result["evaluation"]["tasks"]["jsonl"]
    assert entry["num_examples"] == len(WORDS)
    assert entry["headline"] == "contain"
    assert result["trainable_parameters"]["gate"] == 4 * 32 * 8 + 8 * 32
    assert result["training"]["steps"] == 16
    log = [json.loads(line) for line in (folder / "log.jsonl").open()]
    losses = [record["loss"] for record in log if "loss" in record]
    assert len(losses) == 16
    assert losses[-1] < losses[0]
    report = (folder / "report.md").read_text()
    assert "imsm" in report and "original" in report
    assert not list(folder.glob("checkpoint*"))
    assert {p.suffix for p in folder.rglob("*") if p.is_file()} <= {
        ".json", ".jsonl", ".md", ".safetensors", "", ".jinja", ".html", ".csv", ".png",
    }  # fmt: skip

    # the saved model gives, token by token, the answers that were judged
    model = imsm.SiameseForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
    (generations,) = folder.glob("evaluation/jsonl-*/predictions.jsonl")
    for word, line in zip(WORDS, generations.open(), strict=True):
        prompt = tokenizer(f"after {word} comes", return_tensors="pt")
        out = model.generate(**prompt, max_new_tokens=3, do_sample=False)
        new = out[0, prompt["input_ids"].shape[1] :]
        assert tokenizer.decode(new, skip_special_tokens=True) == json.loads(line)["response"]


def test_three_arms_stand_side_by_side_and_the_original_answers_once(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(made, tmp_path, method="original")
    (response_cache,) = tmp_path.glob("ledger/*.jsonl")
    asked = response_cache.read_text()
    peft = run(made, tmp_path, method="peft")
    folder = run(made, tmp_path, method="imsm")
    assert response_cache.read_text() == asked
    report = (folder / "report.md").read_text()
    assert all(f"| {arm} " in report for arm in ("original", "peft", "imsm"))
    assert not (peft / "model" / "gate.safetensors").exists()
    shown = capsys.readouterr().out
    assert "to PEFT" in shown and "original" in shown


def test_peft_and_imsm_start_from_the_same_adapter(made: Path, tmp_path: Path) -> None:
    """A recipe that changes nothing shows what they start from."""
    still = ("trainer.learning_rate=1e-12", "trainer.num_epochs=1")
    arms = [run(made, tmp_path, *still, method=method) for method in ("peft", "imsm")]
    one, other = (load_file(arm / "model/adapter/adapter_model.safetensors") for arm in arms)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.allclose(one[name], other[name], atol=1e-9), name


def test_a_finished_run_is_not_trained_again(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(made, tmp_path)
    before = json.loads((folder / "result.json").read_text())["evaluation"]
    monkeypatch.setattr(loop, "train_step", None)  # a step would fail
    run(made, tmp_path)
    assert json.loads((folder / "result.json").read_text())["evaluation"] == before
    # judged again, with fewer items
    run(made, tmp_path, "mode=evaluate", "evaluation.limit=5")
    again = json.loads((folder / "result.json").read_text())
    assert again["evaluation"]["tasks"]["jsonl"]["num_examples"] == 5
    assert again["training"]["steps"] == 16


def test_interrupted_and_given_again_it_ends_as_if_nothing_had_been(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(made, tmp_path / "whole")
    step = loop.train_step

    def interrupting(*arguments: object, **named: object) -> dict[str, float]:
        if named["step"] == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "train_step", interrupting)
    with pytest.raises(KeyboardInterrupt):
        run(made, tmp_path / "parts")
    assert "give the same command again" in capsys.readouterr().err
    monkeypatch.setattr(loop, "train_step", step)
    parts = run(made, tmp_path / "parts")
    for file in ("adapter/adapter_model.safetensors", "gate.safetensors"):
        assert (parts / "model" / file).read_bytes() == (whole / "model" / file).read_bytes()


def test_a_folder_of_another_run_is_refused_with_a_difference(made: Path, tmp_path: Path) -> None:
    place = f"run_dir={tmp_path / 'mine'}"
    run_experiment(config(*choices(made, place, "trainer.num_epochs=1")), runs_root=tmp_path)
    with pytest.raises(UserError, match=r"trainer.num_epochs: saved 1, now 2"):
        run_experiment(config(*choices(made, place, "trainer.num_epochs=2")), runs_root=tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="contains files but no run"):
        run_experiment(config(*choices(made, f"run_dir={other}")), runs_root=tmp_path)
    assert sorted(path.name for path in other.iterdir() if path.name != "lock") == ["thesis.tex"]


def test_judging_a_run_that_was_never_trained_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mode=run first"):
        run_experiment(config(*choices(made, "mode=evaluate")), runs_root=tmp_path)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_what_was_good(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = SiameseForCausalLM._training_forward
    calls = []

    def broken(*arguments: object) -> SiameseOutput:
        output = learn(*arguments)  # type: ignore[arg-type]
        calls.append(output)
        output.loss = output.loss * (float("nan") if len(calls) == 4 else 1)
        return output

    monkeypatch.setattr(SiameseForCausalLM, "_training_forward", broken)
    with pytest.raises(RunError, match=r"the loss of step 4 is nan.*last good checkpoint"):
        run(made, tmp_path)
    (folder,) = tmp_path.glob("*-imsm-*")
    (kept,) = (folder / "checkpoints").iterdir()
    assert json.loads((kept / "state.json").read_text())["training_state"]["step"] == 3
    assert not (folder / "training.json").exists()
    run(made, tmp_path)  # goes on from there
    assert len(calls) == 4 + 13


@pytest.mark.parametrize(
    "more",
    [
        ("backbone.dtype=bfloat16", "trainer.gradient_checkpointing=true"),
        ("peft=adalora", "gate=no_query"),
        ("peft=ia3", "gate=no_gate"),
        ("peft=dora", "gate.pooling=last", "trainer.micro_batch_size=1"),
        ("trainer=paper_code", "trainer.learning_rate=0.03"),
    ],
)
def test_other_choices_run_too(made: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    folder = run(made, tmp_path, "trainer.num_epochs=1", *more)
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "finished"
    assert imsm.SiameseForCausalLM.from_pretrained(folder).stream == "interwoven"


def test_answering_a_text_of_ones_own(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(made, tmp_path)
    capsys.readouterr()
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path))
    assert main(["generate", folder.name, "after red comes"]) == 0
    arms = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines() if ":" in line]
    assert arms == ["original", "tuned", "interwoven"]
    assert main(["generate", str(folder), "after red comes", "--stream", "interwoven"]) == 0
    (generations,) = folder.glob("evaluation/jsonl-*/predictions.jsonl")
    judged = json.loads(generations.read_text().splitlines()[0])["response"]
    assert capsys.readouterr().out.strip().startswith(judged.strip())
    assert main(["generate", str(folder), "after lunch comes"]) == 2
    assert "vocabulary" in capsys.readouterr().err
    assert main(["generate", "nothing-here", "after red comes"]) == 2
    assert folder.name in capsys.readouterr().err
