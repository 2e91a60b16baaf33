"""The command `imsm`: select the subcommand's module, run it, map errors to exit codes.

Exit codes: 0 success, 1 a run failed, 2 bad input, 130 interrupted, 141 the reader of the output ended.
"""

import os
import select
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple

from imsm.utils.errors import RunError, UserError


class Command(NamedTuple):
    """A subcommand: its module in this package, one line of help, and arguments that it adds."""

    module: str
    summary: str
    extra: tuple[str, ...] = ()


COMMANDS = {
    "run": Command("run", "train, evaluate and report one run, or a sweep with -m"),
    "plan": Command("run", "print the cost of a run without running it (run mode=plan)", ("mode=plan",)),
    "download": Command("run", "download everything a run needs (run mode=download)", ("mode=download",)),
    "generate": Command("generate", "generate an answer to a prompt with a finished run"),
    "report": Command("report", "write a finished run's report again"),
    "compare": Command("compare", "show the runs of a sweep in one table"),
    "predictions": Command("predictions", "export the predictions of finished runs"),
    "baselines": Command("baselines", "evaluate training-free baselines on a finished run"),
    "continual": Command("continual", "show the tables of a finished task sequence"),
    "lm-eval": Command("lm_eval", "evaluate a finished run with lm-evaluation-harness"),
    "paper": Command("paper", "run or show the paper's tables and figures"),
    "cache": Command("cache", "list or clear the hidden-state caches"),
    "push": Command("push", "upload a finished run to the Hugging Face Hub"),
    "completion": Command("completion", "print a shell completion script"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the arguments after `imsm` (default: those of the process) and return the exit code."""
    try:
        try:
            function, arguments = _select((sys.argv[1:] if argv is None else argv) or ["--help"])
            code = function(arguments) or 0
        finally:
            sys.stdout.flush()  # a closed output raises here rather than at the interpreter's exit
    except (UserError, RunError) as error:
        print(f"imsm: {error}", file=sys.stderr)
        code = 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        print("imsm: interrupted; run the same command again to resume", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # A broken pipe to a worker or a server is an error; only that of `imsm ... | head` is expected.
        if not _output_is_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141  # 128 + SIGPIPE, as a shell reports it
    if argv is None and "torch" in sys.modules:
        from imsm.distributed.supervisor import exit_process

        exit_process(code)  # threads of torch and DeepSpeed may abort an orderly exit
    return code


def _select(argv: list[str]) -> tuple[Callable[[list[str]], int | None], list[str]]:
    """Return the function of a command and its arguments.

    Raises:
        UserError: the command is unknown.
    """
    name, *arguments = argv
    if name in ("-h", "--help"):
        return lambda _: print(help_text()), arguments
    if name == "--version":
        return lambda _: print(import_module("imsm").__version__), arguments
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        raise UserError(f"{name}: unknown command; " + (f"did you mean {near[0]}?" if near else "see imsm --help"))
    command = COMMANDS[name]
    return import_module(f"imsm.cli.{command.module}").main, [*arguments, *command.extra]


def _output_is_closed() -> bool:
    """Return whether the reader of standard output has ended."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return bool(output.poll(0))


def help_text() -> str:
    """Return the list of commands."""
    lines = [f"  {name:<12} {command.summary}" for name, command in COMMANDS.items()]
    return (
        "Usage: imsm COMMAND [ARGUMENTS]\n\n"
        "Interweave the hidden states of a fine-tuned language model with those of its original (IMSM).\n\n"
        "Commands (`imsm COMMAND --help` shows their arguments)\n" + "\n".join(lines)
    )
