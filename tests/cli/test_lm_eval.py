"""`imsm lm-eval`: results, and rejected arguments."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.tasks import TaskManager  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from imsm.cli.main import main  # noqa: E402
from imsm.models.siamese.model import SiameseForCausalLM  # noqa: E402
from tests.evaluation.lm_eval_files import WORDS, perturbed_model, write_backbone, write_tasks  # noqa: E402
from tests.helpers.peft_folder import save_peft_adapter  # noqa: E402


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
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def run(model: SiameseForCausalLM, tokenizer: Any, tmp_path: Path) -> Path:
    """A run directory that contains the model."""
    model.stream = "interwoven"
    model.save_pretrained(tmp_path / "run" / "model")
    tokenizer.save_pretrained(tmp_path / "run" / "model")
    return tmp_path / "run"


@pytest.fixture
def own_tasks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not index the thousands of tasks of the harness, which takes seconds."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))


@pytest.fixture(autouse=True)
def no_list_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness adds one to its results, by a process of pip."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


def evaluate(run: Path, tasks: Path, *arguments: str) -> int:
    return main(["lm-eval", str(run), "--include-path", str(tasks), *arguments])


def test_results_are_printed_and_written(run: Path, tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(run, tasks, "--limit", "3", "--tasks", "toy_choice", "--num-fewshot", "2") == 0
    assert "| toy_choice" in capsys.readouterr().out
    record = json.loads((run / "harness-interwoven-toy_choice-2-limit3.json").read_text())
    assert record["stream"] == "interwoven" and record["limit"] == 3
    assert 0 <= record["results"]["toy_choice"]["acc,none"] <= 1


@pytest.mark.usefixtures("own_tasks_only")
def test_a_wrong_argument_is_one_line(
    run: Path, tasks: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, message in (
        (["--tasks", "toy_chois"], "--tasks toy_chois"),
        (["--tasks", "toy_choice", "--limit", "0"], "--limit 0: must be at least 1"),
        (["--tasks", "toy_choice", "--include-path", str(run / "no")], "--include-path "),
        (["--tasks", "toy_lacking"], "--tasks toy_lacking: a template does not match"),
    ):
        assert evaluate(run, tasks, *arguments) == 2
        assert f"imsm: {message}" in capsys.readouterr().err.strip().splitlines()[-1]
    assert evaluate(run.parent, tasks, "--tasks", "toy_choice") == 2
    assert str(run.parent) in capsys.readouterr().err
    (run / "file").write_text("")
    monkeypatch.setattr(lm_eval, "simple_evaluate", lambda **_: pytest.fail("the model was evaluated"))
    for path in (run, run / "file" / "results.json"):
        assert evaluate(run, tasks, "--tasks", "toy_choice", "--output", str(path)) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"imsm: --output {path}: cannot be written (")


@pytest.mark.usefixtures("own_tasks_only")
def test_limited_results_do_not_replace_complete_ones(run: Path, tasks: Path) -> None:
    output = run.parent / "new folder" / "results.json"
    for arguments in ([], ["--limit", "2"], ["--limit", "3", "--output", str(output)]):
        assert evaluate(run, tasks, "--tasks", "toy_choice", "--stream", "tuned", *arguments) == 0
    names = sorted(path.name for path in run.glob("harness-*"))
    assert names == ["harness-tuned-toy_choice-default-limit2.json", "harness-tuned-toy_choice-default.json"]
    sizes = [json.loads((run / name).read_text())["n-samples"]["toy_choice"] for name in names]
    assert [size["effective"] for size in sizes] == [2, len(WORDS)]
    assert json.loads(output.read_text())["limit"] == 3


@pytest.mark.slow
@pytest.mark.usefixtures("own_tasks_only")
def test_an_imported_adapter_and_a_gate_fitted_on_it_are_evaluated(
    folder: Path, tasks: Path, word_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    adapter = save_peft_adapter(tmp_path / "lora", folder)
    data = [f"data.local_dir={word_files / 'data'}", "data.metric=contain", "data.max_new_tokens=3"]
    assert (
        main(["evaluate", str(adapter), "--target", "jsonl", *data, "evaluation.tasks=[target]", "logger=none"]) == 0
    )
    (imported,) = (tmp_path / "runs").glob("*-imported-*")
    few = ["rehearsal.num_texts=4", "rehearsal.max_tokens=4", "rehearsal.exclude_tests=[]", "trainer.num_epochs=1"]
    assert main(["fit-gate", str(imported), *few, "gate.skip=true"]) == 0
    (fitted,) = (tmp_path / "runs").glob("*-frozen-*")
    samples = {}
    for run, stream in ((imported, "tuned"), (fitted, "tuned"), (fitted, "interwoven")):
        assert evaluate(run, tasks, "--tasks", "toy_choice", "--stream", stream, "--log-samples", "--limit", "4") == 0
        record = json.loads((run / f"harness-{stream}-toy_choice-default-limit4.json").read_text())
        assert (record["run"], record["stream"]) == (run.name, stream)
        samples[run, stream] = [sample["resps"] for sample in record["samples"]["toy_choice"]]
    # the gate leaves the adapter as it is
    assert samples[imported, "tuned"] == samples[fitted, "tuned"] != samples[fitted, "interwoven"]
