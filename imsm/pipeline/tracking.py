"""The log of a run, log.jsonl, and its copy in Weights & Biases.

Everything is written to `log.jsonl` first. If the service fails, one warning is printed and the run
continues without it.
"""

from __future__ import annotations

import json
import math
import netrc
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any, Protocol

import pandas

from imsm.config.sweep import GROUP
from imsm.reporting.runs import headline
from imsm.utils.files import write_atomic
from imsm.utils.paths import cache_folder

_SECRETS = ("key", "token", "secret", "password")


class LoggerBackend(Protocol):
    """A service that receives everything in the local log."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of one step."""

    def log_summary(self, values: Mapping[str, float]) -> None:
        """Log metrics of the complete run."""

    def log_report(self, folder: Path) -> None:
        """Upload the report in a finished run's folder."""

    def close(self, *, failed: bool) -> None:
        """End the run."""


@dataclass
class RunLogger:
    """Write the local log line by line, and forward it to a backend.

    Use as a context manager. Each line contains ``step``, ``time`` (seconds since 1970) and the
    metrics. A training that resumes from a checkpoint replaces the lines of repeated steps.
    """

    path: Path
    backend: LoggerBackend | None = None
    warn: Callable[[str], None] = field(default=lambda text: print(text, file=sys.stderr))
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
        """Log the scores of a finished run, e.g. ``webq/contain``, and to the backend their changes by training."""
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
        """Close the backend."""
        self._forward("end", lambda backend: backend.close(failed=kind is not None))
        self.backend = None

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
        if self.backend is None:
            return
        try:
            call(self.backend)
        except Exception as error:
            # a failed service is not called again: each call could wait for its timeout
            self.backend = None
            self.warn(_failure_warning(event, error, self.path))


def open_logger(
    folder: Path,
    *,
    config: Mapping[str, Any],
    name: str,
    project: str | None = None,
    entity: str | None = None,
    mode: str = "auto",
    init_timeout: float = 30.0,
) -> RunLogger:
    """Return the logger of a run; a backend that fails to start is only a warning.

    ``name`` is "none" or "wandb"; ``mode`` is "online", "offline", or "auto", which is offline
    without an API key. ``config`` is sent to the backend without secrets.
    """
    logger = RunLogger(folder / "log.jsonl")
    if name != "wandb":
        return logger
    try:
        logger.backend = WandbBackend(
            folder,
            config=without_secrets(config),
            project=project,
            entity=entity,
            offline=mode == "offline" or (mode == "auto" and not has_wandb_key()),
            init_timeout=init_timeout,
        )
    except Exception as error:
        logger.warn(_failure_warning("start", error, logger.path))
    return logger


class WandbBackend:
    """Log to Weights & Biases."""

    def __init__(
        self,
        folder: Path,
        *,
        config: Mapping[str, Any],
        project: str | None,
        entity: str | None,
        offline: bool,
        init_timeout: float,
    ) -> None:
        """Start a W&B run with its files in ``folder/wandb``."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # set before the import: wandb may read its environment when it is imported
        for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):  # where artifacts are prepared
            os.environ.setdefault(variable, str(cache_folder() / "wandb"))
        import wandb

        settings = wandb.Settings(  # send nothing but what is logged explicitly
            init_timeout=init_timeout,
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=project,
            entity=entity,
            name=folder.name,
            group=os.environ.get(GROUP),
            dir=str(folder),
            config=dict(config),
            mode="offline" if offline else "online",
            settings=settings,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of one step."""
        self._run.log(dict(values), step=step)

    def log_summary(self, values: Mapping[str, float]) -> None:
        """Log metrics of the complete run."""
        self._run.summary.update(dict(values))

    def log_report(self, folder: Path) -> None:
        """Upload the report as an artifact, and show its figures, tables and page."""
        import wandb

        report = [folder / "report.html", folder / "report.md"]
        files = [*report, *folder.glob("tables/*.csv"), *folder.glob("figures/*.png")]
        artifact = wandb.Artifact(f"report-{folder.name}", type="report")
        media: dict[str, Any] = {}
        for path in sorted(path for path in files if path.is_file()):
            artifact.add_file(str(path), name=str(path.relative_to(folder)))
            if path.suffix == ".png":
                media[f"report/{path.stem}"] = wandb.Image(str(path))
            elif path.suffix == ".csv":
                table = pandas.read_csv(path, dtype=str, keep_default_na=False)
                media[f"report/table_{path.stem}"] = wandb.Table(dataframe=table)
            elif path.suffix == ".html":
                media["report/page"] = wandb.Html(path.read_text(encoding="utf-8"), inject=False)
        self._run.log_artifact(artifact)
        self._run.log(media)

    def close(self, *, failed: bool) -> None:
        """End the W&B run."""
        self._run.finish(exit_code=1 if failed else 0)


def has_wandb_key() -> bool:
    """Return whether the environment or the user's netrc contains a W&B API key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return netrc.netrc(str(path)).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


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


def _failure_warning(event: str, error: Exception, log: Path) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"warning: logger: {event} failed ({reason}); continuing with {log} only"
