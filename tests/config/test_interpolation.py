"""Resolving `${...}`: all failures are collected."""

from __future__ import annotations

from omegaconf import OmegaConf

from imsm.config.interpolation import resolve


def test_interpolations_become_plain_values() -> None:
    values, errors = resolve(OmegaConf.create({"a": 1, "b": {"c": "${a}"}, "d": ["${a}", 2]}))
    assert values == {"a": 1, "b": {"c": 1}, "d": [1, 2]}
    assert errors == {}


def test_every_failure_is_reported_by_its_key() -> None:
    values, errors = resolve(OmegaConf.create({"a": "${x}", "b": {"c": "???"}, "d": ["${y.z}", 2]}))
    assert values == {"b": {}, "d": [2]}
    assert set(errors) == {"a", "b.c", "d.0"}
    assert all(line.startswith(key) for key, line in errors.items())
