"""Composed configurations and results of finished runs for tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from imsm.config.compose import ConfigComposer
from imsm.config.identity import run_identity
from imsm.config.schema import RunConfig
from imsm.config.validate import load_config
from imsm.evaluation.result import build_result

# it composes each choice of options once; Hydra's `compose` reads all yamls for every call, 0.3 s
composer = cache(ConfigComposer)


@cache
def composed(*overrides: str) -> DictConfig:
    """Return the composed configuration, with the last value of each key; it is cached, so do not change it."""
    return composer().compose(list({text.partition("=")[0]: text for text in overrides}.values()))


def config(*overrides: str, config_dir: Path | None = None) -> RunConfig:
    """Return the validated configuration."""
    return load_config(composed(*overrides), config_dir=config_dir)


def result(method: str, *overrides: str, points: float = 50.0, test_set: str = "a", **changed: Any) -> dict[str, Any]:
    """Return the `result.json` of a finished run in which every metric is ``points``."""
    run_config = config(f"method={method}", *overrides)
    trained = run_config.method.trainable
    tasks = {
        name: {
            "role": "target" if name == run_config.data.name else "forgetting",
            "trained_on": trained and name == run_config.data.name,
            "test_set": f"{name}-{test_set}",
            "num_examples": 200,
            "metrics": dict.fromkeys(task.metrics, points),
            "headline": task.metrics[0],
            "seconds": 62.0,
            "new_tokens": 6200,
            "unparsed": 3,
            "truncated": 1,
        }
        for name, task in run_config.tasks.items()
    }
    training = {
        "steps": 12,
        "seconds": 75.0,
        "tokens": 9000,
        "tokens_per_second": 120.0,
        "peak_memory_bytes": 810_000_000,
        "final_loss": 0.5,
        "examples": 100,
        "cut": 0,
        "dropped": 0,
    }
    return (
        build_result(
            name=f"run-{method}",
            method=method,
            config=run_config.to_dict(),
            identity=run_identity(run_config),
            fingerprints={"backbone": "f" * 64},
            machine={"device": "cpu", "device_name": "test", "cpu": "test", "threads": 1},
            trainable_parameters={"adapter": 1000 if trained else 0, "gate": 50 if trained else 0},
            training=training if trained else None,
            evaluation={"settings": run_config.evaluation.model_dump(), "tasks": tasks},
        )
        | changed
    )
