"""The jobs of a command line: all combinations of the values of a sweep."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.override_parser.types import IntervalSweep, Override

from imsm.utils.errors import UserError
from imsm.utils.hashing import hash_text

GROUP = "IMSM_SWEEP_GROUP"
"""Environment variable with the name of the sweep that a run belongs to, for the logger."""


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """The jobs of a command line and how they are started."""

    name: str = "none"  # option of the group `sweep`, or Hydra's name of the launcher or sweeper
    launcher: str = "basic"  # hydra's name of the launcher; `basic` runs the jobs in this process
    sweeper: str = "basic"  # hydra's name of the sweeper; `basic` runs all combinations
    several: bool = False
    overrides: Sequence[str] = ()
    hydra_overrides: Sequence[str] = ()  # hydra's own overrides (`hydra.*`, `hydra/*`), which `overrides` lacks
    jobs: Sequence[Sequence[str]] = ()  # overrides of each job; for a search, the combinations that bound it

    @property
    def keeps_folder(self) -> bool:
        """Whether the sweep's folder is kept: for the logs of other processes, or for a search."""
        return self.several and (self.launcher, self.sweeper) != ("basic", "basic")

    @property
    def searches(self) -> bool:
        """Whether the sweeper selects each job from the results of the previous ones."""
        return self.several and self.sweeper == "optuna"

    @property
    def group(self) -> str:
        """Readable name of the sweep, equal for equal overrides, e.g. ``method-seed-3f2a91bc`` (its swept keys)."""
        values: dict[str, set[str]] = {}
        for key, _, value in (text.partition("=") for job in self.jobs for text in job):
            values.setdefault(key, set()).add(value)
        swept = sorted(key for key, found in values.items() if len(found) > 1)
        # the name is that of a group in a logger and may become a folder's
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(swept))
        return f"{name[:60].strip('._-') or 'sweep'}-{hash_text(json.dumps(sorted(self.overrides)))[:8]}"


def expand_jobs(overrides: Sequence[Override], *, sweep: bool, searches: bool) -> list[list[str]]:
    """Expand sweep overrides into the overrides of each job, in the order of Hydra's basic sweeper.

    Raises:
        UserError: several values without `-m`, or values that cannot be swept.
    """
    if not any(override.is_sweep_override() for override in overrides):
        return [[str(override.input_line) for override in overrides]]
    values: dict[str, list[str]] = {}
    for override in overrides:
        key, line = override.get_key_element(), override.input_line
        value = override.value()
        if not override.is_sweep_override():
            texts = [override.get_value_element_as_str()]
        elif override.key_or_group.split(".")[0] == "evaluation":
            # Evaluation settings are not part of a run's name.
            raise UserError(
                f"{line}: jobs that differ only in evaluation would overwrite each other's result; "
                "give one value, and evaluate again with mode=evaluate"
            )
        elif not sweep:
            raise UserError(f"{line}: several values need a sweep; add -m")
        elif isinstance(value, IntervalSweep):
            if not searches:
                raise UserError(f"{line}: an interval needs sweep=optuna; or list the values")
            # The ranges of the schema are intervals as well: valid endpoints imply valid values between them.
            texts = [str(value.start), str(value.end)]
        else:
            texts = list(override.sweep_string_iterator())
        # As in Hydra, the last override of a key wins.
        values[key] = [f"{key}={text}" for text in texts]
    jobs = [list(job) for job in itertools.product(*values.values())]
    if not jobs:
        raise UserError("the sweep has no jobs: a glob matches no option; see imsm run --help")
    return jobs


def shared_run_dir_errors(spec: SweepSpec) -> list[str]:
    """Return an error for each `run_dir` that several jobs would write to."""
    given = [text for job in spec.jobs for text in job if text.startswith("run_dir=") and text != "run_dir=null"]
    return [
        f"{text}: {given.count(text)} jobs of the sweep would share it; remove it, each job then has its own folder"
        for text in dict.fromkeys(given)
        if given.count(text) > 1
    ]
