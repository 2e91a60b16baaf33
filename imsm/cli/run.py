"""`imsm run [group=option ...] [key=value ...]`: one run, or a sweep with `-m`.

All overrides are validated before Hydra composes and starts the first run.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from textwrap import wrap
from typing import TYPE_CHECKING

from imsm.cli.common import add_config_dir, fast_imports, import_from_config_dir, print_without_effect
from imsm.distributed.rendezvous import detect_process_group, silence_other_ranks
from imsm.pipeline.sweeps.status import FOLDER, TEMPORARY, SweepDir, format_best_trial, mark_missing_failed, summary
from imsm.utils.errors import UserError
from imsm.utils.files import file_lock
from imsm.utils.leftovers import remove_folders, remove_temporaries
from imsm.utils.options import list_options
from imsm.utils.paths import conf_folder, runs_root
from imsm.utils.stop_signals import on_stop

if TYPE_CHECKING:
    from imsm.config.sweep import SweepSpec

GROUPS = {
    "backbone": "pretrained language model",
    "peft": "fine-tuning method",
    "data": "dataset to fine-tune on (the target)",
    "gate": "how IMSM interweaves the hidden states of the original and the tuned model",
    "method": "original: no training; peft: fine-tuning; imsm: fine-tuning with a gate",
    "trainer": "hyperparameters of the training",
    "rehearsal": "texts of the original model or of another dataset, added to each batch",
    "evaluation": "datasets and settings of the evaluation",
    "logger": "mirror of the local log",
    "engine": "one process, or DeepSpeed ZeRO over several",
    "sweep": "how the jobs of a sweep (-m) are selected and started",
}

HELP = """\
imsm run: train, evaluate and report one run, or a sweep.

Usage: imsm run [group=option ...] [key=value ...] [-m for a sweep]

Groups and their options
{groups}

Keys (`--cfg job` prints all of them with their values)
  seed=1  mode=run|evaluate|plan|download  run_dir=FOLDER  gate.rank=4  peft.r=8
  data.max_train_examples=512  data.prompt_style=corrected  data.mirror_dir=FOLDER  data.metric=NAME
  data.local_dir=FOLDER_OR_FILE  data.test_share=0.1
  trainer.global_batch_size=16  trainer.num_epochs=2  trainer.learning_rate=3e-4
  evaluation.limit=300  evaluation.tasks=[target,webq]  evaluation.batch_size=16
{metrics}

Examples
  imsm run                                           the bundled tiny model, one run
  imsm run -m method=original,peft,imsm              three methods, compared in one table
  imsm run -m gate.rank=4,8,16                       a sweep over the gate's rank
  imsm run -m sweep=optuna                           a hyperparameter search
  imsm run backbone=llama3 peft=lora data=gsm8k      the paper's scale
  imsm plan backbone=llama3                          memory, time and downloads, in seconds
  imsm download backbone=llama3                      download everything, to train offline
  imsm run backbone=llama3 backbone.name_or_path=FOLDER      any Hub id or local folder
  imsm run data=jsonl data.local_dir=FOLDER data.metric=contain
  imsm run --config-dir MY_CONF data=my_data         custom yamls and modules

Flags: -m (--multirun), --cfg job, --json (of a plan), --config-dir FOLDER, --info, --hydra-help

Runs are written to runs/ of the checkout (without one: to the user's data folder), or to IMSM_RUNS.
`python -m imsm.run ...` is the same as `imsm run ...`."""


def parser(words: Sequence[str] | None = None) -> ArgumentParser:
    """Return the parser of overrides and of the flags that are passed to Hydra; ``words`` for completion."""
    parser = ArgumentParser(prog="imsm run", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", choices=words, help="group=option or key=value")
    parser.add_argument("--help", "-h", action="store_true", help="show the groups, options and keys")
    parser.add_argument("--multirun", "-m", action="store_true", help="run all combinations of several values")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"), help="print the configuration")
    parser.add_argument("--resolve", action="store_true", help="resolve interpolations of --cfg")
    parser.add_argument("--package", "-p", help="print only this section of --cfg")
    info = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=info, help="print Hydra's information")
    parser.add_argument("--hydra-help", action="store_true", help="print Hydra's help")
    parser.add_argument("--json", action="store_true", help="with mode=plan: print each plan as one line of JSON")
    add_config_dir(parser)
    return parser


def help_text(config_dir: Path | None = None) -> str:
    """Return the help, with the options of the user's folder among the shipped ones."""
    lines = []
    for group, meaning in GROUPS.items():
        names = ", ".join(list_options(group, config_dir=config_dir))
        lines += [f"  {group:<11} {meaning}"]
        lines += [f"  {'':<11} {line}" for line in wrap(names, width=80)]
    metrics = "metrics: " + ", ".join(list_options("metric", config_dir=config_dir))
    metrics = "\n".join(wrap(metrics, width=90, initial_indent="  ", subsequent_indent="           "))
    return HELP.format(groups="\n".join(lines), metrics=metrics)


def main(arguments: list[str]) -> int:
    """Run what the overrides select; return the worst exit code of the jobs.

    Raises:
        UserError: the overrides are wrong, or the sweep cannot be started.
    """
    silence_other_ranks()
    options = parser().parse_intermixed_args(arguments)
    if options.help:  # Hydra and its plugins take a second to import
        print(help_text(options.config_dir))
        return 0
    if options.json and "mode=plan" not in options.overrides:
        raise UserError("--json: is for imsm plan; omit it, or read result.json in the run's folder")
    with fast_imports():
        config_dir = import_from_config_dir(options.config_dir)
        spec = _sweep_spec(options, config_dir)
        import hydra
        from hydra.core.utils import env_override

        from imsm.config.compose import CONFIG_DIR
        from imsm.config.sweep import GROUP

        if not _prints_only(options):
            import imsm.pipeline.sweeps.job  # noqa: F401  (used by _job)
    # hydra.main parses sys.argv and takes no argument list
    sys.argv = ["imsm run", *_hydra_arguments(options)]
    with _sweep_folder(spec, config_dir) as sweep:
        environment = {FOLDER: str(sweep.folder), "HYDRA_FULL_ERROR": "1"}  # Hydra then raises instead of exiting
        environment |= {GROUP: spec.group} if len(spec.jobs) > 1 else {}
        environment |= {} if config_dir is None else {CONFIG_DIR: str(config_dir)}
        job = _job(options, spec, sweep, config_dir)
        with env_override(environment), _hide_failed_search(spec, sweep):
            hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(job)()
        return _print_summary(spec, sweep, config_dir, as_json=options.json)


def _sweep_spec(options: Namespace, config_dir: Path | None) -> SweepSpec:
    """Validate all overrides and expand them into jobs.

    Raises:
        UserError: listing every error.
    """
    from imsm.config.compose import ConfigComposer
    from imsm.config.sweep import SweepSpec
    from imsm.utils.messages import format_errors

    if options.hydra_help:
        return SweepSpec()
    composer = ConfigComposer(config_dir)
    # validated before Hydra, which would report only the first error, and only of the first job
    errors = composer.validate(options.overrides, sweep=options.multirun, composition_only=_prints_only(options))
    if errors:
        raise UserError(format_errors(errors))
    if _prints_only(options):
        return SweepSpec()
    spec = composer.sweep_spec(options.overrides, sweep=options.multirun)
    # in a sweep over methods an override may be meant for one of them
    if not spec.several:
        print_without_effect(composer.without_effect(spec.overrides))
    if spec.launcher == "submitit_slurm" and shutil.which("sbatch") is None:
        raise UserError("sweep=slurm: no sbatch on this machine; start the sweep on a login node, or use sweep=local")
    if spec.keeps_folder and detect_process_group() is not None:
        raise UserError(f"sweep={spec.name}: starts all its jobs itself; run it once, not under torchrun or srun")
    return spec


def _job(
    options: Namespace, spec: SweepSpec, sweep: SweepDir, config_dir: Path | None
) -> Callable[..., float | list[float] | None]:
    """Return what Hydra calls for each job; nothing is called if Hydra only prints information."""
    if _prints_only(options):
        return lambda cfg: None
    from imsm.pipeline.sweeps.job import SweepJob

    return SweepJob(config_dir=config_dir, sweep=sweep, several=spec.several, plan_as_json=options.json)


def _prints_only(options: Namespace) -> bool:
    return bool(options.cfg or options.info or options.hydra_help)


def _hydra_arguments(options: Namespace) -> list[str]:
    """Return the command line for Hydra; the plugin in `hydra_plugins` handles --config-dir."""
    flags = {"multirun": "--multirun", "resolve": "--resolve", "hydra_help": "--hydra-help"}
    given = [flag for name, flag in flags.items() if getattr(options, name)]
    given += [f"--{name}={getattr(options, name)}" for name in ("cfg", "package", "info") if getattr(options, name)]
    return [*given, *options.overrides]


@contextmanager
def _sweep_folder(spec: SweepSpec, config_dir: Path | None) -> Iterator[SweepDir]:
    """Yield the folder for the status files of the jobs.

    It is temporary, unless it holds the logs of other processes or the values of a search.

    Raises:
        UserError: the same sweep is running already.
    """
    if not spec.keeps_folder:
        remove_folders(Path(gettempdir()), prefix=TEMPORARY)
        # the process id, so that another command can remove what a killed one left
        with TemporaryDirectory(prefix=f"{TEMPORARY}{os.getpid()}-") as name, on_stop(partial(shutil.rmtree, name)):
            yield SweepDir(folder=Path(name))
        return
    from imsm.pipeline.sweeps.status import new_attempt, sweep_dir

    folder = sweep_dir(runs_root(), name=spec.name, overrides=spec.overrides, config_dir=config_dir)
    # all attempts share the folder: two at once would start the same jobs
    with file_lock(folder):
        remove_temporaries(folder, older_than=0.0)
        sweep = new_attempt(folder)
        print(f"sweep: its logs are in {sweep.folder}")
        yield sweep


@contextmanager
def _hide_failed_search(spec: SweepSpec, sweep: SweepDir) -> Iterator[None]:
    """Hide Optuna's log and the error that it raises if every trial failed; the summary shows both."""
    if not spec.searches:
        yield
        return
    import optuna  # configures its logger when imported

    for library in (optuna.__name__, "hydra_plugins"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
        yield
    except ValueError as error:
        if isinstance(error, UserError) or any(job.objective is not None for job in sweep.read_statuses().values()):
            raise


def _print_sweep_time(spec: SweepSpec, config_dir: Path | None) -> None:
    """Print how long the jobs of a planned sweep take on the GPUs of this machine, if there are any."""
    from imsm.config.compose import ConfigComposer
    from imsm.config.validate import load_config
    from imsm.distributed.gpus import visible_gpus
    from imsm.pipeline.plan.placement import sweep_time

    gpus = visible_gpus()
    if not gpus:
        return
    composer = ConfigComposer(config_dir)
    configs = [load_config(composer.compose(job), config_dir=config_dir) for job in spec.jobs]
    text = sweep_time(configs, gpus=gpus)
    if text is not None:
        print(f"\nsweep=local: {text}")


def _print_summary(spec: SweepSpec, sweep: SweepDir, config_dir: Path | None, *, as_json: bool) -> int:
    """Print how the jobs of a sweep ended; return the worst exit code."""
    jobs = mark_missing_failed(sweep.read_statuses(), () if spec.searches else spec.jobs)
    if len(jobs) > 1 and "mode=plan" not in spec.overrides:
        print("\n" + "\n".join(summary(jobs, config_dir=config_dir)))
    elif len(jobs) > 1 and not as_json:
        _print_sweep_time(spec, config_dir)
    if spec.searches:
        print(format_best_trial(sweep.folder))
    # no jobs: Hydra only printed its configuration
    return max((job.exit_code for job in jobs), default=0)
