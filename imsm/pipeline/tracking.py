"""The log of a run, log.jsonl, and its copies in tracking services (`imsm.pipeline.tracking_services`).

Everything is written to `log.jsonl` first. If a service fails, one warning is printed and the run
continues without it.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any

from tqdm import tqdm

from imsm.config.schema import LoggerConfig
from imsm.pipeline.tracking_services import BACKENDS, LoggerBackend
from imsm.reporting.runs import headline
from imsm.utils.files import write_atomic

_SECRETS = ("key", "token", "secret", "password")


@dataclass
class RunLogger:
    """Write the local log line by line, and forward it to the services by name.

    Use as a context manager. Each line contains ``step``, ``time`` (seconds since 1970) and the
    metrics. A training that resumes from a checkpoint replaces the lines of repeated steps.
    """

    path: Path
    backends: dict[str, LoggerBackend] = field(default_factory=dict)
    # print() would append to the line of a live progress bar
    warn: Callable[[str], None] = field(default=lambda text: tqdm.write(text, file=sys.stderr))
    _training_started: bool = False
    _repaired: bool = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log metrics of one training step."""
        if not self._training_started:
            self._training_started = True
            self._drop_from(step)
        self._write({"step": step, "time": time.time(), **values})
        self._forward("log", lambda backend: backend.log(values, step))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Log the scores of a finished run, e.g. ``webq/contain``, and to the services their changes by training."""
        scores = flat_scores(result)
        self._write({"step": None, "time": time.time(), **scores})
        self._forward("summary", lambda backend: backend.log_summary(scores | score_changes(result)))

    def log_report(self, folder: Path) -> None:
        """Upload the report of a finished run: page, tables, figures."""
        self._forward("report", lambda backend: backend.log_report(folder))

    def __enter__(self) -> RunLogger:
        """Return the logger; the file is opened for each line."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the services."""
        self._forward("end", lambda backend: backend.close(failed=kind is not None))
        self.backends = {}

    def _write(self, record: Mapping[str, Any]) -> None:
        # JSON has no NaN, and other programs could not read the line
        plain = {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        if not self._repaired:
            self._repaired = True
            self._drop_incomplete_line()
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(plain) + "\n")

    def _drop_incomplete_line(self) -> None:
        """Remove a last line that an earlier process could not finish."""
        text = self._text()
        if text and not text.endswith("\n"):
            write_atomic(self.path, text[: text.rfind("\n") + 1])

    def _drop_from(self, step: int) -> None:
        """Remove the lines of this step and later ones, written by an earlier process."""
        lines = self._text().splitlines(keepends=True)
        kept = [line for line in lines if _step_of(line) < step]
        if len(kept) < len(lines):
            write_atomic(self.path, "".join(kept))

    def _text(self) -> str:
        # a failing disk may have damaged earlier lines, which the report leaves out
        return self.path.read_text(encoding="utf-8", errors="replace") if os.path.lexists(self.path) else ""

    def _forward(self, event: str, call: Callable[[LoggerBackend], None]) -> None:
        for name, backend in list(self.backends.items()):
            try:
                call(backend)
            except Exception as error:
                # a failed service is not called again: each call could wait for its timeout
                del self.backends[name]
                self.warn(_failure_warning(name, event, error, self.path))


def open_logger(folder: Path, *, config: Mapping[str, Any], settings: LoggerConfig) -> RunLogger:
    """Return the logger of a run; a service that fails to start is only a warning.

    ``config`` is sent to the services without secrets.
    """
    logger = RunLogger(folder / "log.jsonl")
    for name in settings.selected():
        try:
            logger.backends[name] = BACKENDS[name](folder, without_secrets(config), settings)
        except Exception as error:
            logger.warn(_failure_warning(name, "start", error, logger.path))
    return logger


def without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without entries that are secret by their names."""
    kept = {}
    for key, value in values.items():
        if any(str(key).lower().split("_")[-1] == secret for secret in _SECRETS):
            continue
        kept[str(key)] = without_secrets(value) if isinstance(value, Mapping) else value
    return kept


def flat_scores(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of a result, in points, by ``task/metric``."""
    tasks = result.get("evaluation", {}).get("tasks", {})
    return {f"{task}/{metric}": value for task, entry in tasks.items() for metric, value in entry["metrics"].items()}


def score_changes(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the headline scores minus the original's in points, and the averages over the forgetting tests.

    Keys are ``change/<task>``, ``average/forgetting`` and ``average/change``; no changes for the original.
    """
    evaluation = result.get("evaluation", {})
    tasks, original = evaluation.get("tasks", {}), evaluation.get("original") or {}
    metrics = {name: headline(entry) for name, entry in tasks.items()}
    changes = {
        name: entry["metrics"][metrics[name]] - original[name]["metrics"][metrics[name]]
        for name, entry in tasks.items()
        if metrics[name] in original.get(name, {}).get("metrics", {})
    }
    forgetting = [name for name, entry in tasks.items() if entry["role"] == "forgetting"]
    values = {f"change/{name}": value for name, value in changes.items()}
    if forgetting:
        values["average/forgetting"] = fmean(tasks[name]["metrics"][metrics[name]] for name in forgetting)
    if forgetting and changes.keys() >= set(forgetting):
        values["average/change"] = fmean(changes[name] for name in forgetting)
    return values


def _step_of(line: str) -> float:
    """Return the step of a line; an incomplete line sorts after all steps."""
    try:
        step = json.loads(line)["step"]
        return math.inf if step is None else float(step)
    except (ValueError, LookupError, TypeError, RecursionError, OverflowError):
        return math.inf


def _failure_warning(name: str, event: str, error: Exception, log: Path) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    missing = isinstance(error, ModuleNotFoundError) and error.name == name
    fix = f"; pip install {name}" if missing else ""
    return f"warning: logger={name}: {event} failed ({reason}{fix}); continuing without it, {log} is complete"
