"""`imsm baselines` on finished runs: what it leaves, what it reads, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas
import pytest
from pandas.testing import assert_frame_equal

from imsm.cli.baselines import main
from imsm.evaluation import inference as asking
from imsm.evaluation.predictions import read_predictions
from imsm.evaluation.result import read_result
from imsm.studies.baselines.base import list_baselines
from imsm.studies.baselines.finished_run import FinishedRun
from imsm.utils.files import file_lock
from tests.helpers.paths import ROOT
from tests.studies.baselines.finished import FORGETTING, ITEMS, finished, make

WITH_VALUES = ("logit_mix", "probability_mix", "adapter_scale")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def peft(made: Path, root: Path) -> Path:
    finished(made, root, method="original")
    return finished(made, root)


@pytest.fixture(scope="module")
def imsm_run(made: Path, root: Path, peft: Path) -> Path:
    return finished(made, root, method="imsm")


def command(folder: Path, *more: str) -> int:
    return main(["--run", str(folder), *more])


def original_of(folder: Path) -> Path:
    (found,) = folder.parent.glob("*-original-*")
    return found


def items(folder: Path) -> dict[str, pandas.DataFrame]:
    tasks = read_result(folder)["evaluation"]["tasks"]
    return {task: read_predictions(folder, task=task, test_set=entry["test_set"]) for task, entry in tasks.items()}


def same(one: pandas.DataFrame, other: pandas.DataFrame) -> bool:
    """Whether the answers and all that follows from them are equal; a router has its own gate."""
    columns = [name for name in one.columns if not name.startswith("gate")]
    assert_frame_equal(one[columns], other[columns])
    return True


def arm(folder: Path, name: str) -> dict[str, pandas.DataFrame]:
    return items(folder / "baselines" / name)


def response_cache_dir(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.parent.glob("ledger/*.jsonl")}


def test_the_ends_are_read_from_what_is_there(peft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = response_cache_dir(peft)
    monkeypatch.setattr(FinishedRun, "model", lambda run: pytest.fail("a model was loaded"))
    assert command(peft, "--controls", ",".join(WITH_VALUES), "--values", "0,1") == 0
    assert response_cache_dir(peft) == before
    tuned, original = items(peft), items(original_of(peft))
    for task in tuned:
        assert not tuned[task].response.equals(original[task].generation)
        for name in WITH_VALUES:
            low, high = (original, tuned) if name == "adapter_scale" else (tuned, original)
            assert same(arm(peft, f"{name}-0.00")[task], low[task])
            assert same(arm(peft, f"{name}-1.00")[task], high[task])
    results = {name: read_result(peft / "baselines" / name) for name in ("logit_mix-1.00",)}
    entries = results["logit_mix-1.00"]["evaluation"]["tasks"]
    assert not any(entry["trained_on"] for entry in entries.values())


def test_the_oracle_forgets_nothing(peft: Path) -> None:
    assert command(peft, "--controls", "oracle_router") == 0
    routed = arm(peft, "oracle_router")
    assert same(routed["jsonl"], items(peft)["jsonl"])
    assert same(routed[FORGETTING], items(original_of(peft))[FORGETTING])
    result = read_result(peft / "baselines" / "oracle_router")
    entries, original = (result["evaluation"]["tasks"], read_result(original_of(peft))["evaluation"]["tasks"])
    assert entries[FORGETTING]["metrics"] == original[FORGETTING]["metrics"]
    assert routed[FORGETTING].gate_mean.eq(1).all() and routed["jsonl"].gate_mean.eq(0).all()


def test_every_control_leaves_an_arm_and_a_second_command_asks_nothing(
    peft: Path, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = peft.with_name("twin")
    shutil.copytree(peft, twin, ignore=shutil.ignore_patterns("baselines"))
    assert command(peft, "--with", str(twin), "--values", "0.3") == 0
    told = capsys.readouterr().out
    assert "left out: constant_gate:" in told
    folders = {each.name for each in (peft / "baselines").iterdir() if each.is_dir()}
    expected = {f"{name}-0.30" for name in WITH_VALUES}
    expected |= {*list_baselines()} - {*WITH_VALUES, "constant_gate"}
    assert expected <= folders
    for name in expected:
        result = read_result(peft / "baselines" / name)
        assert result["method"] == "control"
        assert result["config"]["control"]["name"] == name.removesuffix("-0.30")
        assert result["config"]["control"]["value"] == (0.3 if name.endswith("0.30") else None)
        for task, found in arm(peft, name).items():
            assert len(found) == ITEMS == result["evaluation"]["tasks"][task]["num_examples"]
            assert found.reference_loglik.lt(0).all()
        assert name in told
    # two adapters that are one and the same say what that one says
    for task, found in arm(peft, "seed_ensemble").items():
        assert found.response.equals(items(peft)[task].generation)
        assert found.reference_loglik.to_numpy() == pytest.approx(
            items(peft)[task].reference_loglik.to_numpy(), abs=1e-4
        )
    left = {name: arm(peft, name) for name in expected}
    before = response_cache_dir(peft)
    monkeypatch.setattr(FinishedRun, "model", lambda run: pytest.fail("a model was loaded"))
    assert command(peft, "--with", str(twin), "--values", "0.3") == 0
    assert response_cache_dir(peft) == before
    for name in expected:
        for task, found in arm(peft, name).items():
            assert_frame_equal(found, left[name][task])


def test_a_command_that_was_stopped_goes_on(peft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = asking.generate_responses
    calls: list[int] = []

    def counted(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) in stops:
            raise KeyboardInterrupt
        return generate(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(asking, "generate_answers", counted)
    arguments = ("--controls", "logit_mix,adapter_scale", "--values", "0.6,0.9")
    copies = []
    for name, stops in (("whole", set()), ("stopped", {2, 5, 9, 14})):
        calls.clear()
        shutil.copytree(peft.parent, tmp_path / name, ignore=shutil.ignore_patterns("baselines"))
        folder = tmp_path / name / peft.name
        codes = [command(folder, *arguments)]
        while codes[-1] == 130:
            codes.append(command(folder, *arguments))
        assert codes == [130] * len(stops) + [0]
        asked = len(calls) - len(stops)
        copies.append((asked, {each: arm(folder, each) for each in arms(folder)}))
    (asked, whole), (again, stopped) = copies
    assert asked == again == 2 * 2 * 2 * ITEMS // 4  # controls, values, tasks, batches of 4
    assert whole.keys() == stopped.keys()
    for name, tasks in whole.items():
        for task, found in tasks.items():
            assert_frame_equal(found, stopped[name][task])


def arms(folder: Path) -> list[str]:
    return sorted(each.name for each in (folder / "baselines").iterdir() if each.is_dir())


def test_of_an_interwoven_run_the_adapter_is_taken(imsm_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(imsm_run, "--controls", "logit_mix,constant_gate", "--values", "0") == 0
    told = capsys.readouterr().out
    assert "imsm" in told
    tuned, mixed = arm(imsm_run, "tuned"), arm(imsm_run, "logit_mix-0.00")
    for task in tuned:
        assert same(mixed[task], tuned[task])
        assert not tuned[task].reference_loglik.equals(items(imsm_run)[task].reference_loglik)
    total = weights = 0.0
    for found in items(imsm_run).values():
        for row in found.itertuples():
            total += row.gate_mean * max(row.tokens, 1)
            weights += max(row.tokens, 1)
    (name,) = (each for each in arms(imsm_run) if each.startswith("constant_gate"))
    value = round(total / weights, 2)
    assert name == f"constant_gate-{value:.2f}"
    for found in arm(imsm_run, name).values():
        assert found.gate_mean.to_numpy() == pytest.approx(value, abs=1e-3)


def test_a_method_that_cannot_be_scaled_is_left_out_or_refused(
    made: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(made, root, "peft=prompt_tuning", "trainer.num_epochs=1")
    capsys.readouterr()
    assert command(folder, "--controls", "adapter_scale") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("imsm: adapter_scale: PROMPT_TUNING changes no weights")
    assert command(folder, "--values", "0.5") == 0
    told = capsys.readouterr().out
    assert told.count("left out: adapter_scale: PROMPT_TUNING") == 1
    assert "logit_mix-0.50" in arms(folder) and "adapter_scale-0.50" not in arms(folder)


OWN = """
from imsm.studies.baselines.base import Info

INFO = Info(name="first_to_original", meaning="a test")


def of_original(run, value, task):
    return [place == 0 for place in range(len(run.tests[task].prompts))]
"""


def test_a_control_of_ones_own_is_one_file(peft: Path, tmp_path: Path) -> None:
    (tmp_path / "own_control.py").write_text(OWN)
    more = ("--controls", "own_control", "--config-dir", str(tmp_path))
    assert command(peft, *more) == 0
    tuned, original = items(peft), items(original_of(peft))
    for task, found in arm(peft, "first_to_original").items():
        wanted = pandas.concat([original[task][:1], tuned[task][1:]])
        assert found.response.equals(wanted.response)


def test_the_guides_control(peft: Path, tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "controls.md").read_text(encoding="utf-8")
    (tmp_path / "own_louder.py").write_text(guide.split("```python\n")[1].split("```")[0])
    assert command(peft, "--controls", "own_louder", "--config-dir", str(tmp_path)) == 0
    for found in arm(peft, "louder").values():
        assert found.gate_mean.between(0, 1).all()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--controls", "logit_mx"], "no such control .*did you mean logit_mix?"),
        (["--controls", ","], "name at least one of"),
        (["--controls", "json"], "the module json is no control"),
        (["--controls", ".foo"], r"--controls .foo: there is no such control"),
        (["--controls", "a..b"], "there is no such control"),
        (["--values", "1.5"], "--values 1.5: lambda of logit_mix must be in -1..1"),
        (["--values", "a"], "--values a: must be numbers"),
        (["--values", "nan"], "--values nan: must be finite"),
        (["--controls", "confidence", "--values", "0.5"], "none of confidence takes a value"),
        (["--controls", "seed_ensemble"], "give its folder by --with"),
        (["--controls", "constant_gate"], "has no gate whose mean could be taken"),
        (["--with", "nowhere"], "--with .*nowhere: there is no such folder"),
        (["--config-dir", "nowhere"], "--config-dir nowhere: there is no such folder"),
    ],
)
def test_wrong_input_is_one_line(peft: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    capsys.readouterr()
    assert command(peft, *more) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("imsm: ") and re.search(said.rstrip("?"), line), line


def test_folders_that_are_no_finished_run(peft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    for folder, said in (
        (tmp_path / "none", "there is no such folder"),
        (tmp_path, "holds no finished run"),
        (original_of(peft), "has no adapter"),
    ):
        assert command(folder) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert said in line
    assert command(peft, "--with", str(peft)) == 2
    assert "is the run itself" in capsys.readouterr().err
    with file_lock(peft / "baselines"):
        assert command(peft, "--controls", "oracle_router") == 2
    assert "another process is at work" in capsys.readouterr().err


def test_an_ensemble_is_of_seeds_alone(made: Path, root: Path, peft: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limited = finished(made, root, "data.max_train_examples=4", "trainer.num_epochs=1", "seed=1")
    seed = finished(made, root, "seed=1")
    capsys.readouterr()
    assert command(peft, "--controls", "seed_ensemble", "--with", str(limited)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"imsm: --with {limited}: its data.max_train_examples is 4, not null; its ")
    assert "its trainer.num_epochs is 1, not 30" in line and "nothing but the seed" in line
    assert command(peft, "--controls", "seed_ensemble", "--with", str(seed)) == 0
    said = read_result(peft / "baselines" / "seed_ensemble")["config"]["control"]
    assert said["with"] == seed.name


def test_a_run_goes_by_its_name_too(
    peft: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(peft.parent))
    assert main(["--run", peft.name, "--controls", "oracle_router"]) == 0
    assert str(peft / "baselines") in capsys.readouterr().out
    assert main(["--run", "no-such-run"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("imsm: --run no-such-run: not a folder, and not a run in")


def test_answers_of_another_adapter_are_not_served(peft: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(peft.parent, tmp_path / "runs")
    folder = tmp_path / "runs" / peft.name
    more = ("--controls", "logit_mix", "--values", "0.4")
    assert command(folder, *more) == 0
    before = json.loads((folder / "controls/logit_mix-0.40/result.json").read_text())
    old = arm(folder, "logit_mix-0.40")
    path = folder / "model/adapter/adapter_model.safetensors"
    save_file({name: value + 0.3 for name, value in load_file(path).items()}, path)
    assert command(folder, *more) == 0
    after = json.loads((folder / "controls/logit_mix-0.40/result.json").read_text())
    assert before["fingerprints"]["answers"] != after["fingerprints"]["answers"]
    for task, found in arm(folder, "logit_mix-0.40").items():
        assert not found.reference_loglik.equals(old[task].reference_loglik)
