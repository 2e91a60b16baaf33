"""What `python -m imsm.run --help` says: the groups and their options, common keys, examples."""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap

from imsm.options import list_options

GROUPS = {
    "backbone": "the language model",
    "peft": "how it is tuned",
    "data": "what it is tuned on, the target",
    "gate": "how IMSM interweaves the two memories",
    "method": "the arm: the original, plain PEFT, or IMSM",
    "trainer": "the recipe",
    "evaluation": "what is judged",
    "tracker": "where the local log is mirrored to",
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
