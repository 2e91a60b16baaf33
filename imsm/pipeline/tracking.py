"""The local log of a run, and its mirror in Weights & Biases.

Everything goes to `log.jsonl` in the run's folder first. The mirror may fail in any way it likes:
that is one warning, and the run goes on without it.
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
from types import TracebackType
from typing import Any, Protocol

from imsm.utils.files import write_atomic
from imsm.utils.paths import cache_folder

_SECRETS = ("key", "token", "secret", "password")


class LoggerBackend(Protocol):
    """A service that shows what the local log holds."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step."""

    def summarise(self, values: Mapping[str, float]) -> None:
        """Numbers of the whole run."""

    def attach(self, folder: Path) -> None:
        """The report that lies in a finished run's folder."""

    def close(self, *, failed: bool) -> None:
        """Nothing more will come."""


@dataclass
class RunLogger:
    """Writes the local log, line by line, and tells a mirror the same.

    Use as a context manager; each line of the log holds ``step``, ``time`` (seconds since 1970)
    and the values. A training that goes on from a checkpoint repeats the steps after it: their
    lines are replaced, so that each step stands once.
    """

    path: Path
    mirror: LoggerBackend | None = None
    warn: Callable[[str], None] = field(default=lambda text: print(text, file=sys.stderr))
    _begun: bool = False
    _whole: bool = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one training step."""
        if not self._begun:
            self._begun = True
            self._forget_from(step)
        self._write({"step": step, "time": time.time(), **values})
        self._mirror("log", lambda mirror: mirror.log(values, step))

    def finish(self, result: Mapping[str, Any]) -> None:
        """The scores of a finished run, e.g. ``webq/contain``."""
        scores = flat_scores(result)
        self._write({"step": None, "time": time.time(), **scores})
        self._mirror("summary", lambda mirror: mirror.summarise(scores))

    def attach(self, folder: Path) -> None:
        """The report that a finished run left in its folder: page, tables, pictures."""
        self._mirror("report", lambda mirror: mirror.attach(folder))

    def __enter__(self) -> RunLogger:
        """Nothing to open: the log is opened for each line."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the mirror, whatever happened."""
        self._mirror("end", lambda mirror: mirror.close(failed=kind is not None))
        self.mirror = None

    def _write(self, record: Mapping[str, Any]) -> None:
        # JSON has no NaN; a text is better than a line that other programs cannot read.
        plain = {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        if not self._whole:
            self._whole = True
            self._drop_half_a_line()
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(plain) + "\n")

    def _drop_half_a_line(self) -> None:
        """Take out what an earlier process had no room, or no time, to write to its end."""
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        if not text.endswith("\n") and text:
            write_atomic(self.path, text[: text.rfind("\n") + 1])

    def _forget_from(self, step: int) -> None:
        """Take out what an earlier process logged of this step and later ones."""
        if not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if _step_of(line) < step]
        if len(kept) < len(lines):
            write_atomic(self.path, "".join(kept))

    def _mirror(self, what: str, call: Callable[[LoggerBackend], None]) -> None:
        if self.mirror is None:
            return
        try:
            call(self.mirror)
        except Exception as error:
            self.mirror = None
            self.warn(_gave_up(what, error, self.path))


def open_tracker(
    folder: Path,
    *,
    config: Mapping[str, Any],
    name: str,
    project: str | None = None,
    entity: str | None = None,
    mode: str = "auto",
    init_timeout: float = 30.0,
) -> RunLogger:
    """The tracker of a run; it never raises on account of the mirror.

    Args:
        folder: the run's folder; the log and all files of the mirror lie in it.
        config: the run's configuration, shown by the mirror (without anything secret).
        name: of the mirror: "none" or "wandb".
        project: where the mirror files the run.
        entity: whose project; None: the user's own.
        mode: "online", "offline", or "auto": offline without a key.
        init_timeout: seconds to wait for the service.
    """
    tracker = RunLogger(folder / "log.jsonl")
    if name != "wandb":
        return tracker
    try:
        tracker.mirror = WandbBackend.open(
            folder,
            config=without_secrets(config),
            project=project,
            entity=entity,
            offline=mode == "offline" or (mode == "auto" and not has_wandb_key()),
            init_timeout=init_timeout,
        )
    except Exception as error:
        tracker.warn(_gave_up("start", error, tracker.path))
    return tracker


class WandbBackend:
    """Weights & Biases as a mirror."""

    def __init__(self, run: Any) -> None:
        self._run = run

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        config: Mapping[str, Any],
        project: str | None,
        entity: str | None,
        offline: bool,
        init_timeout: float,
    ) -> WandbBackend:
        """Start a W&B run; its files lie in ``folder/wandb``."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        for place in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):  # where it prepares artifacts
            os.environ.setdefault(place, str(cache_folder() / "wandb"))
        import wandb

        settings = wandb.Settings(  # only what `log` and `summarise` say is sent
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
        run = wandb.init(
            project=project,
            entity=entity,
            name=folder.name,
            group=_sweep(),
            dir=str(folder),
            config=dict(config),
            mode="offline" if offline else "online",
            settings=settings,
        )
        return cls(run)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step."""
        self._run.log(dict(values), step=step)

    def summarise(self, values: Mapping[str, float]) -> None:
        """Numbers of the whole run."""
        self._run.summary.update(dict(values))

    def attach(self, folder: Path) -> None:
        """The report as an artifact, and its pictures, tables and page to be seen."""
        import pandas
        import wandb

        report = [folder / "report.html", folder / "report.md"]
        files = [*report, *folder.glob("tables/*.csv"), *folder.glob("figures/*.png")]
        artifact = wandb.Artifact(f"report-{folder.name}", type="report")
        shown: dict[str, Any] = {}
        for path in sorted(path for path in files if path.is_file()):
            artifact.add_file(str(path), name=str(path.relative_to(folder)))
            if path.suffix == ".png":
                shown[f"report/{path.stem}"] = wandb.Image(str(path))
            elif path.suffix == ".csv":
                table = pandas.read_csv(path, dtype=str, keep_default_na=False)
                shown[f"report/table_{path.stem}"] = wandb.Table(dataframe=table)
            elif path.suffix == ".html":
                shown["report/page"] = wandb.Html(path.read_text(encoding="utf-8"), inject=False)
        self._run.log_artifact(artifact)
        self._run.log(shown)

    def close(self, *, failed: bool) -> None:
        """Nothing more will come."""
        self._run.finish(exit_code=1 if failed else 0)


def _sweep() -> str | None:
    """The sweep that this run is a member of, by its folder's name; None: it stands alone."""
    place = os.environ.get("IMSM_SWEEP_DIR")
    return Path(place).name if place else None


def has_wandb_key() -> bool:
    """Whether there is a key for W&B in the environment or in the user's netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return netrc.netrc(str(path)).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without entries whose names say that they are secret."""
    kept = {}
    for key, value in values.items():
        if any(str(key).lower().split("_")[-1] == secret for secret in _SECRETS):
            continue
        kept[str(key)] = without_secrets(value) if isinstance(value, Mapping) else value
    return kept


def flat_scores(result: Mapping[str, Any]) -> dict[str, float]:
    """The scores of a result as ``task/metric`` to points."""
    tasks = result.get("evaluation", {}).get("tasks", {})
    return {f"{task}/{metric}": value for task, entry in tasks.items() for metric, value in entry["metrics"].items()}


def _step_of(line: str) -> float:
    """The step of a line; a line that a crash cut off is after all steps."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
    return math.inf if step is None else float(step)


def _gave_up(what: str, error: Exception, log: Path) -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"warning: tracker: {what} failed ({first}); going on with {log} alone"
