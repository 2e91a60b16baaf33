"""A sweep's folder: what became of each member, a file per member, and the lines about all of them.

A member may run in a process of its own, on another machine: each writes its own file there, and
the command that started the sweep reads them.

    sweeps/<name>-<hash of the overrides>/<time>/   members/<number>.json, and the launcher's own
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from imsm.utils.files import write_atomic
from imsm.utils.hashing import hash_text

FOLDER = "IMSM_SWEEP_DIR"
"""The environment variable that conf/config.yaml reads Hydra's own folder from."""


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """What became of a member.

    Attributes:
        number: its place in the sweep.
        overrides: what it was given.
        state: skipped stands for a member that was finished before the sweep began.
        exit_code: what its own command would have ended with.
        error: what went wrong, in one line.
        objective: what a search maximises.
    """

    number: int
    overrides: list[str]
    state: Literal["done", "skipped", "failed"]
    exit_code: int = 0
    error: str | None = None
    objective: float | None = None


@dataclass(frozen=True, kw_only=True)
class SweepDir:
    """One start of a sweep (or of a single run), and what its members left."""

    folder: Path

    def write_status(self, ended: JobOutcome) -> None:
        """Keep what became of a member."""
        path = self.folder / "members" / f"{ended.number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(asdict(ended), ensure_ascii=False) + "\n")

    def read_statuses(self) -> dict[int, JobOutcome]:
        """The members that ended, by number."""
        found = {}
        for path in (self.folder / "members").glob("*.json"):
            member = JobOutcome(**json.loads(path.read_text(encoding="utf-8")))
            found[member.number] = member
        return dict(sorted(found.items()))


def sweep_dir(runs_root: Path, *, name: str, overrides: Sequence[str], config_dir: Path | None) -> Path:
    """Where every start of the same sweep lies: its folder is the same for the same overrides."""
    text = json.dumps([sorted(overrides), str(config_dir)])
    return runs_root / "sweeps" / f"{name}-{hash_text(text)[:8]}"


def new_attempt(place: Path) -> SweepDir:
    """A folder for this start of a sweep."""
    folder = place / time.strftime("%Y-%m-%d_%H-%M-%S")
    (folder / "members").mkdir(parents=True, exist_ok=True)
    return SweepDir(folder=folder)


def latest_attempt(place: Path) -> SweepDir | None:
    """The last start of a sweep; None if it was never started."""
    folders = sorted(path.parent for path in place.glob("*/members"))
    return SweepDir(folder=folders[-1]) if folders else None


def member_command(overrides: Sequence[str], *, config_dir: Path | None) -> str:
    """What makes one member alone, after `python -m imsm.run`, quoted for a shell."""
    words = [] if config_dir is None else ["--config-dir", str(config_dir)]
    words += [text for text in overrides if text.partition("=")[0] != "sweep"]
    return " ".join(shlex.quote(word) for word in words)


def mark_missing_failed(ended: Mapping[int, JobOutcome], expected: Sequence[Sequence[str]]) -> list[JobOutcome]:
    """Every member; one that left nothing counts as failed.

    Args:
        ended: those that left something.
        expected: the overrides of each member, in order; empty where the sweep chose them itself.
    """
    word = "its process ended without a word"
    found = dict(ended)
    for number, overrides in enumerate(expected):
        lost = JobOutcome(number=number, overrides=list(overrides), state="failed", exit_code=1, error=word)
        found.setdefault(number, lost)
    return [found[number] for number in sorted(found)]


def summary(members: Sequence[JobOutcome], *, config_dir: Path | None) -> list[str]:
    """Lines about a sweep: how many members ended how, and each failed one with its command."""
    counts = {state: sum(m.state == state for m in members) for state in ("done", "failed")}
    skipped = len(members) - sum(counts.values())
    said = [f"{counts['done']} done", f"{counts['failed']} failed"]
    said += [f"{skipped} skipped (finished before)"] if skipped else []
    lines = [f"sweep of {len(members)}: {', '.join(said)}"]
    for member in members:
        if member.state == "failed":
            command = member_command(member.overrides, config_dir=config_dir)
            lines.append(f"  failed: python -m imsm.run {command}".rstrip())
            lines.append(f"          {member.error}")
    return lines


def format_best_trial(folder: Path) -> str:
    """What a search found, from the file that Hydra's Optuna sweeper leaves."""
    path = folder / "optimization_results.yaml"
    if not path.is_file():
        return "search: no trial was judged on its target task; there is no best one"
    import yaml

    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    values = " ".join(f"{key}={value}" for key, value in found["best_params"].items())
    return f"best: {values} gives {found['best_value']:.1f} points ({path})"
