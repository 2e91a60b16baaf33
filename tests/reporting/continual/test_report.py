"""Which sequences are comparable, and their differences from PEFT."""

from __future__ import annotations

import numpy as np
import pytest

from imsm.reporting.continual.report import _common_tasks, _differences_from_peft
from imsm.utils.errors import UserError
from tests.reporting.continual.records import record


def test_tasks_on_other_examples_are_not_common() -> None:
    other = record("peft")
    other["tasks"][2] = other["tasks"][2] | {"test_set": "other"}
    assert _common_tasks([record(), other]) == {"mrpc", "cola"}


def test_sequences_that_differ_in_a_learned_task_are_rejected() -> None:
    for changed in ({"task_sequence": ["cola", "mrpc"]}, {"tasks": record()["tasks"][1:]}):
        with pytest.raises(UserError, match="not comparable"):
            _common_tasks([record(), record("peft") | changed])


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
