"""`imsm baselines` on finished runs: results, cached responses, and rejected arguments."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pandas
import pytest
from pandas.testing import assert_frame_equal

from imsm.cli.main import main
from imsm.evaluation import inference
from imsm.evaluation.result import read_result
from imsm.studies.baselines.finished_run import FinishedRun
from imsm.studies.baselines.registry import list_baselines
from imsm.utils.files import file_lock
from tests.helpers.paths import ROOT
from tests.studies.baselines.finished import ITEMS, finished, original_of, predictions, write_files

WITH_VALUES = ("logit_mix", "probability_mix", "adapter_scale", "lines")
Tables = dict[str, pandas.DataFrame]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def user_runs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(root))


@pytest.fixture(scope="module")
def peft(made: Path, root: Path) -> Path:
    finished(made, root, method="original")
    return finished(made, root)


def baselines(folder: Path, *arguments: str) -> int:
    return main(["baselines", str(folder), *arguments])


def baseline_predictions(folder: Path, name: str) -> Tables:
    return predictions(folder / "baselines" / name)


def baseline_names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "baselines").iterdir() if path.is_dir())


def response_cache(folder: Path) -> dict[Path, bytes]:
    """Return the files next to the runs: the cached responses."""
    return {path: path.read_bytes() for path in folder.parent.glob("response_cache/*.sqlite")}


def forbid_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FinishedRun, "model", lambda run: pytest.fail("a model was loaded"))


def test_every_baseline_writes_a_result_and_a_second_command_generates_nothing(
    peft: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = peft.with_name("copy")
    shutil.copytree(peft, copy, ignore=shutil.ignore_patterns("baselines"))
    assert baselines(peft, "--other", str(copy), "--values", "0.3") == 0
    printed = capsys.readouterr().out
    assert "skipped: constant_gate:" in printed
    expected = {f"{name}-0.30" for name in WITH_VALUES}
    expected |= {*list_baselines()} - {*WITH_VALUES, "constant_gate", "gate_skip"}
    assert expected <= {*baseline_names(peft)}
    for name in expected:
        result = read_result(peft / "baselines" / name)
        assert result["method"] == "baseline"
        assert result["config"]["baseline"]["name"] == name.removesuffix("-0.30")
        assert result["config"]["baseline"]["value"] == (0.3 if name.endswith("0.30") else None)
        for task, table in baseline_predictions(peft, name).items():
            assert len(table) == ITEMS == result["evaluation"]["tasks"][task]["num_examples"]
            assert table.reference_loglik.lt(0).all()
        assert name in printed
    # the ensemble of an adapter with itself is that adapter
    for task, table in baseline_predictions(peft, "seed_ensemble").items():
        tuned = predictions(peft)[task]
        assert table.response.equals(tuned.response)
        assert table.reference_loglik.to_numpy() == pytest.approx(tuned.reference_loglik.to_numpy(), abs=1e-4)
    first = {name: baseline_predictions(peft, name) for name in expected}
    before = response_cache(peft)
    forbid_models(monkeypatch)
    assert baselines(peft, "--other", str(copy), "--values", "0.3") == 0
    assert before and response_cache(peft) == before
    for name in expected:
        for task, table in baseline_predictions(peft, name).items():
            assert_frame_equal(table, first[name][task])


def test_an_interrupted_command_resumes(peft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = inference.generate_responses
    calls: list[int] = []
    interrupts: set[int] = set()

    def counted(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) in interrupts:
            raise KeyboardInterrupt
        return generate(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(inference, "generate_responses", counted)
    arguments = ("--baselines", "logit_mix,adapter_scale", "--values", "0.6,0.9")
    outcomes = []
    for name, interrupts in (("complete", set()), ("interrupted", {2, 5, 9, 14})):
        calls.clear()
        shutil.copytree(peft.parent, tmp_path / name, ignore=shutil.ignore_patterns("baselines"))
        monkeypatch.setenv("IMSM_RUNS", str(tmp_path / name))  # each has a response cache of its own
        folder = tmp_path / name / peft.name
        codes = [baselines(folder, *arguments)]
        while codes[-1] == 130:
            codes.append(baselines(folder, *arguments))
        assert codes == [130] * len(interrupts) + [0]
        batches = len(calls) - len(interrupts)
        outcomes.append((batches, {each: baseline_predictions(folder, each) for each in baseline_names(folder)}))
    (batches, complete), (batches_interrupted, interrupted) = outcomes
    assert batches == batches_interrupted == 2 * 2 * 2 * ITEMS // 4  # baselines, values, tasks, batches of 4
    assert complete.keys() == interrupted.keys()
    for name, tables in complete.items():
        for task, table in tables.items():
            assert_frame_equal(table, interrupted[name][task])


def test_a_baseline_that_does_not_apply_is_skipped_or_rejected(
    made: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(made, root, "peft=prompt_tuning", "trainer.num_epochs=1")
    capsys.readouterr()
    assert baselines(folder, "--baselines", "adapter_scale") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("imsm: adapter_scale: PROMPT_TUNING ")
    assert baselines(folder, "--values", "0.5") == 0
    assert capsys.readouterr().out.count("skipped: adapter_scale: PROMPT_TUNING") == 1
    assert "logit_mix-0.50" in baseline_names(folder) and "adapter_scale-0.50" not in baseline_names(folder)


CUSTOM = """
from imsm.studies.baselines.base import BaselineInfo

INFO = BaselineInfo(name="first_to_original", meaning="a test")


def route_to_original(run, value, task):
    return [position == 0 for position in range(len(run.eval_sets[task].prompts))]
"""


def test_a_custom_baseline_is_one_file(peft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "custom_baseline.py").write_text(CUSTOM)
    assert baselines(peft, "--baselines", "custom_baseline", "--config-dir", str(tmp_path)) == 0
    tuned, original = predictions(peft), predictions(original_of(peft))
    for task, table in baseline_predictions(peft, "first_to_original").items():
        expected = pandas.concat([original[task][:1], tuned[task][1:]])
        assert table.response.equals(expected.response)


def test_every_baseline_is_in_the_documentation() -> None:
    text = (ROOT / "docs" / "baselines.md").read_text()
    assert [name for name in list_baselines() if f"| `{name}` |" not in text] == []


def test_the_baseline_of_the_documentation_works(peft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    guide = (ROOT / "docs" / "baselines.md").read_text(encoding="utf-8")
    (tmp_path / "documented_baseline.py").write_text(guide.split("```python\n")[1].split("```")[0])
    assert baselines(peft, "--baselines", "documented_baseline", "--config-dir", str(tmp_path)) == 0
    for table in baseline_predictions(peft, "louder").values():
        assert table.gate_mean.between(0, 1).all()


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["--baselines", "logit_mx"], "--baselines logit_mx: .*did you mean logit_mix"),
        (["--baselines", ","], "--baselines ','"),
        (["--baselines", "json"], "--baselines json"),
        (["--baselines", ".foo"], r"--baselines \.foo"),
        (["--baselines", "a..b"], r"--baselines a\.\.b"),
        (["--values", "1.5"], r"--values 1.5: alpha of lines must be in 0\.\.1"),
        (["--values", "a"], "--values a"),
        (["--values", "nan"], "--values nan"),
        (["--baselines", "entropy_mix", "--values", "0.5"], "--values: none of entropy_mix takes a value"),
        (["--baselines", "seed_ensemble"], "seed_ensemble: .*--other"),
        (["--baselines", "constant_gate"], "constant_gate: .*no gate"),
        (["--other", "nowhere"], "--other nowhere"),
        (["--config-dir", "nowhere"], "--config-dir nowhere"),
    ],
)
def test_a_wrong_argument_is_one_line(
    peft: Path, arguments: list[str], pattern: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert baselines(peft, *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.match(f"imsm: {pattern}", line), line


def test_a_folder_without_an_adapter_is_rejected(
    peft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    for folder in (tmp_path / "none", tmp_path, original_of(peft)):
        assert baselines(folder) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert str(folder) in line
    assert baselines(peft, "--other", str(peft)) == 2
    assert f"--other {peft}" in capsys.readouterr().err
    with file_lock(peft / "baselines"):
        assert baselines(peft, "--baselines", "oracle_router") == 2
    assert str(peft / "baselines") in capsys.readouterr().err


def test_a_run_is_found_by_its_name(peft: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baselines", peft.name, "--baselines", "oracle_router"]) == 0
    assert str(peft / "baselines") in capsys.readouterr().out
    assert main(["baselines", "no-such-run"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("imsm: run") and "no-such-run" in line
