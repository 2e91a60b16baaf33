"""The command `imsm`: select the subcommand's module, run it, map errors to exit codes.

Exit codes: 0 success, 1 a run failed or the output could not be written, 2 bad input, 3 and 4 the verdicts FAIL and
INSUFFICIENT_EVIDENCE of `imsm check`, 129, 130 or 143 interrupted by SIGHUP, SIGINT or SIGTERM, 141 the reader of the
output ended.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

from imsm.utils import stop_signals
from imsm.utils.control_characters import escape_controls
from imsm.utils.errors import RunError, UserError, file_error
from imsm.utils.streams import is_broken_pipe, output_error, protect_standard_streams


class Command(NamedTuple):
    """A subcommand: its module in this package, one line of help, and arguments that it adds."""

    module: str
    summary: str
    extra: tuple[str, ...] = ()


COMMANDS = {
    "run": Command("run", "train, evaluate and report one run, or a sweep with -m"),
    "plan": Command("run", "print the cost of a run without running it (run mode=plan)", ("mode=plan",)),
    "download": Command("run", "download everything a run needs (run mode=download)", ("mode=download",)),
    "fit-gate": Command("fit_gate", "fit a gate on a finished adapter, in seconds"),
    "evaluate": Command("evaluate", "evaluate an adapter that was trained elsewhere, or a finished run again"),
    "check": Command("check", "decide whether a run forgot more than a margin: exit code 0, 3 or 4"),
    "generate": Command("generate", "generate an answer to a prompt with a finished run"),
    "report": Command("report", "write a finished run's report again"),
    "compare": Command("compare", "show the runs of a sweep in one table"),
    "tradeoff": Command("tradeoff", "compare all runs on one target and recommend one under a constraint"),
    "predictions": Command("predictions", "export the predictions of finished runs"),
    "baselines": Command("baselines", "evaluate training-free baselines on a finished run"),
    "continual": Command("continual", "show the tables of a finished task sequence"),
    "lm-eval": Command("lm_eval", "evaluate a finished run with lm-evaluation-harness"),
    "paper": Command("paper", "run or show the paper's tables and figures"),
    "serve": Command("serve", "serve finished runs: OpenAI API and a page that shows which stream answers"),
    "cache": Command("cache", "list or clear the hidden-state caches and own answers of adapters"),
    "status": Command("status", "show the state of all runs"),
    "schema": Command("schema", "print the JSON schema of a run's configuration"),
    "export": Command("export", "write a finished run in a format of other programs, e.g. as one merged model"),
    "push": Command("push", "upload a finished run to the Hugging Face Hub"),
    "completion": Command("completion", "print a shell completion script"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the arguments after `imsm` (default: those of the process) and return the exit code."""
    own_process = argv is None
    if own_process:
        # before the imports of the command, which take seconds
        stop_signals.install()
        protect_standard_streams()
    try:
        function, arguments = _select((sys.argv[1:] if argv is None else argv) or ["--help"])
        code = function(arguments) or 0
    except (UserError, RunError, OSError) as error:
        if isinstance(error, OSError) and file_error(error) is None:
            raise
        known = file_error(error) or error
        print(escape_controls(f"imsm: {known}"), file=sys.stderr)
        code = 2 if isinstance(known, UserError) else 1
    except KeyboardInterrupt:
        print(stop_signals.message(), file=sys.stderr)
        code = stop_signals.exit_code()
    except SystemExit as end:  # of argparse
        if not own_process or not isinstance(end.code, int):
            raise
        code = end.code
    return _end_process(code) if own_process else code


def _end_process(code: int) -> int:
    """Report an output that could not be written; exit here if torch was imported."""
    error = output_error()
    if error is not None:
        code = code or (141 if is_broken_pipe(error) else 1)  # 141 is 128 + SIGPIPE, as in a shell
        if not is_broken_pipe(error):
            print(f"imsm: standard output: cannot be written ({error.strerror}); files are complete", file=sys.stderr)
    stop_signals.ignore()
    if "torch" in sys.modules:
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
        from difflib import get_close_matches

        if "=" in name or name.startswith("-"):
            raise UserError(f"{name}: unknown command; did you mean imsm run {' '.join(argv)}?")
        near = get_close_matches(name, COMMANDS, n=1)
        raise UserError(f"{name}: unknown command; " + (f"did you mean {near[0]}?" if near else "see imsm --help"))
    command = COMMANDS[name]
    return import_module(f"imsm.cli.{command.module}").main, [*arguments, *command.extra]


def help_text() -> str:
    """Return the list of commands."""
    lines = [f"  {name:<12} {command.summary}" for name, command in COMMANDS.items()]
    return (
        "Usage: imsm COMMAND [ARGUMENTS]\n\n"
        "Interweave the hidden states of a fine-tuned language model with those of its original (IMSM).\n\n"
        "Commands (`imsm COMMAND --help` shows their arguments)\n" + "\n".join(lines)
    )
