"""Which sequences are comparable, and their differences from PEFT."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from imsm.config.identity import run_identity
from imsm.evaluation.result import FILE as RESULT
from imsm.evaluation.result import read_result, write_result
from imsm.reporting.continual.record import FILE, FORMAT, read_record, write_record
from imsm.reporting.continual.report import Built, _common_tasks, _differences_from_peft, _sequences_of_other_methods
from imsm.utils.errors import UserError
from tests.helpers.config import config, result
from tests.helpers.damage import flip_bit
from tests.reporting.continual.records import record


def test_tasks_on_other_examples_are_not_common() -> None:
    other = record("peft")
    other["tasks"][2] = other["tasks"][2] | {"test_set": "other"}
    assert _common_tasks([record(), other]) == {"mrpc", "cola"}


def test_sequences_that_differ_in_a_learned_task_are_rejected() -> None:
    for changed in ({"task_sequence": ["cola", "mrpc"]}, {"tasks": record()["tasks"][1:]}):
        with pytest.raises(UserError, match="not comparable"):
            _common_tasks([record(), record("peft") | changed])


@pytest.mark.parametrize("changed", [{FILE}, {RESULT}])
def test_a_changed_sequence_of_another_method_is_named_and_an_older_one_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changed: set[str]
) -> None:
    def build(folder: Path) -> Built:
        read_result(folder)
        return read_record(folder), None

    monkeypatch.setattr("imsm.reporting.continual.report.build_record", build)
    own = record() | {"format": FORMAT, "identity": run_identity(config("method=imsm"))}
    other = own | {"method": "peft", "identity": run_identity(config("method=peft"))}
    for age, name in enumerate(("newer", "older")):
        (tmp_path / name).mkdir()
        write_record(tmp_path / name, other)
        write_result(tmp_path / name, result("peft"))
        os.utime(tmp_path / name / FILE, ns=(0, 10**18 - age))
    assert list(_sequences_of_other_methods(tmp_path / "own", own)) == [tmp_path / "newer"]
    for name in changed:
        flip_bit(tmp_path / "newer" / name)
        os.utime(tmp_path / "newer" / FILE, ns=(0, 10**18))
    capsys.readouterr()
    assert list(_sequences_of_other_methods(tmp_path / "own", own)) == [tmp_path / "older"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("left out: ") and str(tmp_path / "newer") in line


def test_differences_use_the_same_draws() -> None:
    scores = np.random.default_rng(0).uniform(0, 100, (50, 3, 3))
    peft, imsm = record("peft"), record("imsm")
    imsm["measures"] = {"BWT": {"value": 4.0}}
    peft["measures"] = {"BWT": {"value": 1.0}}
    found = _differences_from_peft([(peft, scores), (imsm, scores + np.array([0.0, 0.0, 3.0])[None, :, None])])
    assert found["BWT"]["value"] == 3.0
    assert (found["BWT"]["low"], found["BWT"]["high"]) == pytest.approx((3.0, 3.0))
    assert _differences_from_peft([(imsm, None)]) == {}
    assert _differences_from_peft([(peft, None), (record(missing=True), None)]) == {}
