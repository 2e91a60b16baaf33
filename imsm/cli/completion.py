"""`imsm completion bash|zsh|fish`: print a shell completion script.

Load it with `eval "$(imsm completion bash)"` (zsh likewise), or `imsm completion fish | source`.
"""

import argparse
from importlib import import_module


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(prog="imsm completion", description="Print a shell completion script.")
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    return parser


def main(arguments: list[str]) -> None:
    """Print the script for a shell."""
    import shtab

    shell = parser().parse_args(arguments).shell
    print(shtab.complete(full_parser(), shell))
    if shell == "bash":
        # readline must keep group=option together as one word
        print("COMP_WORDBREAKS=${COMP_WORDBREAKS//=}")


def full_parser() -> argparse.ArgumentParser:
    """Return one parser with all commands; the choices of overrides are `group=option` words."""
    from imsm.cli.main import COMMANDS
    from imsm.cli.run import GROUPS
    from imsm.utils.options import list_options

    words = [f"{group}={option}" for group in GROUPS for option in list_options(group)]
    parser = argparse.ArgumentParser(prog="imsm")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        module = import_module(f"imsm.cli.{command.module}")
        own = module.parser(words) if command.module in ("run", "compare") else module.parser()
        commands.add_parser(name, help=command.summary, parents=[own], add_help=False)
    return parser
