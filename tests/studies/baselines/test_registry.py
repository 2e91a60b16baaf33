"""The registry of the baselines."""

from __future__ import annotations

import pytest

from imsm.studies.baselines.registry import list_baselines, load_baseline
from imsm.utils.errors import UserError


def test_all_shipped_baselines_are_listed() -> None:
    assert len(list_baselines()) == 11


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("logit_mx", "--baselines logit_mx: .*did you mean logit_mix"),
        ("imsm.studies.baselines.base", "--baselines imsm.*is not a baseline"),
        ("json", "--baselines json: no such baseline"),
        (".logit_mix", "--baselines .logit_mix: no such baseline"),
        ("a..b", "--baselines a..b: no such baseline"),
    ],
)
def test_an_unknown_baseline_is_rejected(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_baseline(name)
