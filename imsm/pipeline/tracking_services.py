"""The services that can mirror the log of a run: Weights & Biases, Trackio and TensorBoard.

Any method may raise; `imsm.pipeline.tracking.RunLogger` then continues without the service.
"""

from __future__ import annotations

import json
import netrc
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import pandas

from imsm.config.schema import LoggerConfig
from imsm.config.sweep import GROUP
from imsm.utils.paths import cache_folder


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


class WandbBackend:
    """Log to Weights & Biases."""

    def __init__(self, folder: Path, config: Mapping[str, Any], settings: LoggerConfig) -> None:
        """Start a W&B run with its files in ``folder/wandb``; mode=auto is offline without an API key."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # set before the import: wandb may read its environment when it is imported
        for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):  # where artifacts are prepared
            os.environ.setdefault(variable, str(cache_folder() / "wandb"))
        import wandb

        offline = settings.mode == "offline" or (settings.mode == "auto" and not has_wandb_key())
        own = wandb.Settings(  # send nothing but what is logged explicitly
            init_timeout=settings.init_timeout,
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
            project=settings.project,
            entity=settings.entity,
            name=folder.name,
            group=os.environ.get(GROUP),
            dir=str(folder),
            config=dict(config),
            mode="offline" if offline else "online",
            settings=own,
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

        artifact = wandb.Artifact(f"report-{folder.name}", type="report")
        media: dict[str, Any] = {}
        for path in _report_files(folder):
            artifact.add_file(str(path), name=str(path.relative_to(folder)))
            if path.suffix == ".png":
                media[f"report/{path.stem}"] = wandb.Image(str(path))
            elif path.suffix == ".csv":
                media[f"report/table_{path.stem}"] = wandb.Table(dataframe=_read_table(path))
            elif path.suffix == ".html":
                media["report/page"] = wandb.Html(path.read_text(encoding="utf-8"), inject=False)
        self._run.log_artifact(artifact)
        self._run.log(media)

    def close(self, *, failed: bool) -> None:
        """End the W&B run."""
        self._run.finish(exit_code=1 if failed else 0)


class TrackioBackend:
    """Log to Trackio: to a database on this machine, or to the Hugging Face Space that the user named."""

    def __init__(self, folder: Path, config: Mapping[str, Any], settings: LoggerConfig) -> None:
        """Start a run, or continue the run of that name."""
        if settings.mode == "offline":
            for variable in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
                os.environ.pop(variable, None)
        import trackio

        self._trackio = trackio
        self._run = trackio.init(
            project=settings.project or "imsm",
            name=folder.name,
            group=os.environ.get(GROUP),
            space_id=None if settings.mode == "offline" else settings.space_id,
            private=True,
            config=dict(config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of one step."""
        self._run.log(dict(values), step=step)

    def log_summary(self, values: Mapping[str, float]) -> None:
        """Log metrics of the complete run, as one more step."""
        self._run.log(dict(values))

    def log_report(self, folder: Path) -> None:
        """Log the report's text, tables and figures."""
        media: dict[str, Any] = {}
        for path in _report_files(folder):
            if path.suffix == ".png":
                media[f"report/{path.stem}"] = self._trackio.Image(str(path))
            elif path.suffix == ".csv":
                media[f"report/table_{path.stem}"] = self._trackio.Table(dataframe=_read_table(path))
            elif path.suffix == ".md":
                media["report/text"] = self._trackio.Markdown(path.read_text(encoding="utf-8"))
        self._run.log(media)

    def close(self, *, failed: bool) -> None:
        """Write what is buffered; Trackio has no state of a failed run."""
        self._trackio.finish()


class TensorBoardBackend:
    """Write TensorBoard's event files to the run's folder."""

    def __init__(self, folder: Path, config: Mapping[str, Any], settings: LoggerConfig) -> None:
        """Import TensorBoard; the files in ``folder/tensorboard`` are created with the first value."""
        from torch.utils.tensorboard import SummaryWriter

        self._create: Callable[..., Any] = SummaryWriter
        self._folder, self._config = folder / "tensorboard", config
        self._writer: Any = None
        self._step = 0

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of one step; of a training that resumes, earlier values of this and later steps are hidden."""
        self._step = step
        self._write(values)

    def log_summary(self, values: Mapping[str, float]) -> None:
        """Log metrics of the complete run at its last step."""
        self._write(values)

    def log_report(self, folder: Path) -> None:
        """Log the report's text and figures."""
        from matplotlib.image import imread

        writer = self._open()
        for path in _report_files(folder):
            if path.suffix == ".png":
                image = imread(path)[..., :3]  # without transparency
                writer.add_image(f"report/{path.stem}", image, self._step, dataformats="HWC")
            elif path.suffix == ".md":
                writer.add_text("report", path.read_text(encoding="utf-8"), self._step)

    def close(self, *, failed: bool) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, values: Mapping[str, float]) -> None:
        writer = self._open()
        for name, value in values.items():
            writer.add_scalar(name, value, self._step)

    def _open(self) -> Any:
        if self._writer is None:
            self._writer = self._create(str(self._folder), purge_step=self._step or None)
            self._writer.add_text("config", f"```json\n{json.dumps(dict(self._config), indent=2)}\n```")
        return self._writer


Backend = Callable[[Path, Mapping[str, Any], LoggerConfig], LoggerBackend]
BACKENDS: dict[str, Backend] = {"wandb": WandbBackend, "trackio": TrackioBackend, "tensorboard": TensorBoardBackend}
"""Service -> function that starts it with the run's folder, its configuration and the section `logger`."""


def has_wandb_key() -> bool:
    """Return whether the environment or the user's netrc contains a W&B API key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return netrc.netrc(str(path)).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _report_files(folder: Path) -> list[Path]:
    """Return the page, text, tables and figures of a report that exist."""
    report = [folder / "report.html", folder / "report.md"]
    files = [*report, *folder.glob("tables/*.csv"), *folder.glob("figures/*.png")]
    return sorted(path for path in files if path.is_file())


def _read_table(path: Path) -> pandas.DataFrame:
    return pandas.read_csv(path, dtype=str, keep_default_na=False)
