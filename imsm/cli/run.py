"""The command: `python -m imsm.run [group=option ...] [key=value ...]` (or `imsm ...`).

Check the whole command line, let Hydra compose each run, and carry each one out. Exit codes:
0 all went well, 1 a run went wrong, 2 the input was wrong, 130 stopped by hand.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import wrap
from typing import TYPE_CHECKING

from imsm.distributed.rendezvous import silence_other_ranks
from imsm.distributed.supervisor import exit_process
from imsm.pipeline.sweeps.job import SweepJob
from imsm.pipeline.sweeps.status import FOLDER, SweepDir, format_best_trial, mark_missing_failed, summary
from imsm.utils.errors import RunError, UserError
from imsm.utils.options import list_options
from imsm.utils.paths import conf_folder, runs_root

if TYPE_CHECKING:
    from imsm.config.compose import SweepSpec


GROUPS = {
    "backbone": "the language model",
    "peft": "how it is tuned",
    "data": "what it is tuned on, the target",
    "gate": "how IMSM interweaves the two memories",
    "method": "the arm: the original, plain PEFT, or IMSM",
    "trainer": "the recipe",
    "evaluation": "what is judged",
    "logger": "where the local log is mirrored to",
    "engine": "what carries the training out: one process, or DeepSpeed ZeRO over several",
    "sweep": "how the members of a sweep (-m) are chosen and started",
}

TEXT = """\
imsm: how much does fine-tuning teach a language model, how much does it make it forget,
and does interweaving the original model's memory (IMSM) give the better trade?

Usage: python -m imsm.run [group=option ...] [key=value ...] [-m for a sweep]

Groups and their options
{groups}

Keys (`--cfg job` prints all of them with their values)
  seed=1  mode=run|evaluate|plan|prepare  run_dir=FOLDER  gate.rank=4  peft.rank=8
  data.max_train_examples=512  data.prompt_style=corrected  data.mirror_dir=FOLDER  data.metric=NAME
  trainer.global_batch_size=16  trainer.num_epochs=2  trainer.learning_rate=3e-4
  evaluation.limit=300  evaluation.tasks=[target,webq]  evaluation.batch_size=16
{metrics}

Examples
  python -m imsm.run                                           the miniature, one run
  python -m imsm.run -m method=original,peft,imsm              three arms, side by side
  python -m imsm.run -m gate.rank=4,8,16                       a sweep of the gate's rank
  python -m imsm.run -m sweep=optuna                           a search for the best of them
  python -m imsm.run backbone=llama3 peft=lora data=gsm8k      the paper's scale
  python -m imsm.run backbone=llama3 mode=plan                 what it would take, in seconds
  python -m imsm.run backbone=llama3 mode=download              fetch all it reads, train offline
  python -m imsm.run backbone=llama3 backbone.name_or_path=FOLDER      any hub id or local folder
  python -m imsm.run data=jsonl data.local_dir=FOLDER data.metric=contain
  python -m imsm.run --config-dir MY_CONF data=my_data         options of one's own

Flags: -m (--multirun), --cfg job, --config-dir FOLDER, --info, --hydra-help

Runs lie in the folder runs/ of the checkout (without one: of the user's data folder),
or in IMSM_RUNS."""


def help_text(config_dir: Path | None = None) -> str:
    """The help, with the options of one's own folder among the shipped ones."""
    lines = []
    for group, meaning in GROUPS.items():
        names = ", ".join(list_options(group, config_dir=config_dir))
        lines += [f"  {group:<11} {meaning}"]
        lines += [f"  {'':<11} {line}" for line in wrap(names, width=80)]
    named = "metrics: " + ", ".join(list_options("metric", config_dir=config_dir))
    metrics = "\n".join(wrap(named, width=90, initial_indent="  ", subsequent_indent="           "))
    return TEXT.format(groups="\n".join(lines), metrics=metrics)


def main() -> None:
    """Run the command line and exit."""
    silence_other_ranks()
    _exit_on_help()
    from hydra._internal.utils import get_args_parser

    arguments = get_args_parser().parse_args()
    config_dir = _config_dir(arguments)
    plan = _exit_on_problems(arguments, config_dir)
    try:
        if plan.launcher.startswith("submitit_"):
            from imsm.pipeline.sweeps.launchers import register_launchers

            register_launchers(plan.launcher)
        with _folder_of(plan, config_dir) as sweep:
            code = _run_hydra(sweep, plan, config_dir=config_dir)
        exit_process(code)
    except UserError as error:
        print(f"imsm: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        exit_process(130)


def _run_hydra(sweep: SweepDir, plan: SweepSpec, *, config_dir: Path | None) -> int:
    """Let Hydra compose and start every member; returns the worst of their exit codes."""
    import hydra
    from hydra.core.utils import env_override

    if plan.searches:
        import optuna  # sets its logger up

        for library in (optuna.__name__, "hydra_plugins"):  # what became of a trial is told here
            logging.getLogger(library).setLevel(logging.CRITICAL)
    task = SweepJob(config_dir=config_dir, sweep=sweep, several=plan.several)
    run = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
    codes = [0]
    # with its full errors Hydra lets an exception through to here
    with env_override({FOLDER: str(sweep.folder), "HYDRA_FULL_ERROR": "1"}):
        try:
            run(task)()
        except (UserError, RunError) as error:
            print(f"imsm: {error}", file=sys.stderr)  # of the launcher: nothing was started
            return 2 if isinstance(error, UserError) else 1
        except Exception as error:
            codes.append(1)
            if not plan.searches or any(m.objective is not None for m in sweep.read_statuses().values()):
                traceback.print_exception(error)
    members = mark_missing_failed(sweep.read_statuses(), plan.members)
    if len(members) > 1 and "mode=plan" not in plan.overrides:
        print("\n" + "\n".join(summary(members, config_dir=config_dir)))
    if plan.searches:
        print(format_best_trial(sweep.folder))
    return max([*codes, *(member.exit_code for member in members)])


@contextmanager
def _folder_of(plan: SweepSpec, config_dir: Path | None) -> Iterator[SweepDir]:
    """Where the members of this command leave what became of them.

    Members in this process need it no longer than the command lasts. Other launchers' logs and a
    search's best values are kept.

    Raises:
        UserError: the same sweep is at work already.
    """
    if not plan.kept:
        with TemporaryDirectory(prefix="imsm-sweep-") as folder:
            yield SweepDir(folder=Path(folder))
        return
    from imsm.distributed.rendezvous import detect_process_group
    from imsm.pipeline.sweeps.status import new_attempt, sweep_dir
    from imsm.utils.files import file_lock

    if detect_process_group() is not None:
        raise UserError(
            f"sweep={plan.name}: is one command for all its members; give it once, not under torchrun or srun"
        )
    place = sweep_dir(runs_root(), name=plan.name, overrides=plan.overrides, config_dir=config_dir)
    with file_lock(place):
        sweep = new_attempt(place)
        print(f"sweep: its logs are in {sweep.folder}")
        yield sweep


def _exit_on_help() -> None:
    """Answer --help at once: Hydra takes a second to say the same."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--config-dir", "-cd", type=Path)
    arguments, _ = parser.parse_known_args()
    if arguments.help:
        from imsm.cli.run import help_text

        print(help_text(arguments.config_dir))
        sys.exit(0)


def _config_dir(arguments: Namespace) -> Path | None:
    """The folder of options of one's own; its yamls can name modules that lie beside them."""
    if arguments.config_dir is None:
        return None
    folder = Path(os.path.abspath(arguments.config_dir))
    if not folder.is_dir():
        _fail([f"--config-dir {arguments.config_dir}: there is no such folder"])
    sys.path.insert(0, str(folder))
    return folder


def _exit_on_problems(arguments: Namespace, config_dir: Path | None) -> SweepSpec:
    from imsm.config.compose import ConfigComposer, SweepSpec

    if arguments.hydra_help or arguments.shell_completion:
        return SweepSpec()

    conf = Path(arguments.config_path) if arguments.config_path else conf_folder()
    checks = ConfigComposer(conf=conf, config_dir=config_dir, config_name=arguments.config_name or "config")
    problems = checks.validate(
        arguments.overrides,
        sweep=arguments.multirun,
        composition_only=arguments.cfg is not None or arguments.info is not None,
    )
    if problems:
        _fail(problems)
    if arguments.cfg is not None or arguments.info is not None:
        return SweepSpec()
    return checks.sweep_spec(arguments.overrides, sweep=arguments.multirun)


def _fail(problems: list[str]) -> None:
    from imsm.utils.messages import format_errors

    print(f"imsm: {format_errors(problems)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
