"""The registry of the baselines."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from imsm.studies.baselines.base import BaselineInfo, call_hook, list_baselines, load_baseline
from imsm.utils.errors import UserError


def test_every_shipped_baseline_has_its_modules_name() -> None:
    assert len(list_baselines()) == 9
    for name in list_baselines():
        info = load_baseline(name).INFO
        assert info.name == name and info.meaning
        assert all(info.low <= value <= info.high for value in (*info.grid, *info.ends))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("logit_mx", "--baselines logit_mx: .*did you mean logit_mix"),
        ("json", "--baselines json: .*is not a baseline"),
        (".logit_mix", "--baselines .logit_mix: no such baseline"),
        ("a..b", "--baselines a..b: no such baseline"),
    ],
)
def test_an_unknown_baseline_is_rejected(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_baseline(name)


def test_a_missing_hook_returns_the_default() -> None:
    baseline = SimpleNamespace(INFO=BaselineInfo(name="x", meaning="a test"), values=lambda run: (run,))
    assert call_hook(baseline, "values", "a run", None) == ("a run",)
    assert call_hook(baseline, "cache_key", "a run", {}) == {}
