"""`imsm export RUN`: write a finished run in a format of other programs.

`--merged DIR` writes the tuned stream as a plain model folder of transformers, without imsm. `--vllm DIR` writes the
folder of all streams that `vllm serve` takes with imsm's plugin. `--llm-comparator FILE` writes the run's answers next
to the original's for PAIR's LLM Comparator, from its saved predictions.
"""

import argparse
import json
from pathlib import Path

from imsm.cli.check import read_pair
from imsm.cli.common import add_config_dir, find_run, import_from_config_dir, write_output
from imsm.utils.errors import UserError
from imsm.utils.paths import resolve_run_dir
from imsm.utils.run_dir import RunDir


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(prog="imsm export", description="Write a run in a format of other programs.")
    parser.add_argument("run", metavar="RUN", help="folder or name of a finished run")
    formats = parser.add_mutually_exclusive_group(required=True)
    formats.add_argument("--merged", type=Path, metavar="DIR", help="plain model folder with the adapter merged")
    formats.add_argument("--vllm", type=Path, metavar="DIR", help="folder of all streams for the vLLM plugin")
    formats.add_argument("--llm-comparator", type=Path, metavar="FILE", help="answers as JSON for LLM Comparator")
    parser.add_argument("--stream", choices=["tuned"], help="of a run with a gate: merge this stream alone")
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, help="type of the merged weights; default: the run's own")
    parser.add_argument("--link", action="store_true", help="with --vllm: link the backbone's weights, do not copy")
    add_config_dir(parser)
    return parser


def main(arguments: list[str]) -> None:
    """Write the export and print where it is.

    Raises:
        UserError: the run cannot be exported in this format, or the output exists.
    """
    options = parser().parse_args(arguments)
    import_from_config_dir(options.config_dir)
    if options.stream is not None and options.merged is None:
        raise UserError(f"--stream {options.stream}: is for --merged; omit it")
    if options.dtype is not None and options.merged is None:
        raise UserError(f"--dtype {options.dtype}: is for --merged; omit it")
    if options.link and options.vllm is None:
        raise UserError("--link: is for --vllm; omit it")
    output = (options.llm_comparator or options.vllm or options.merged).expanduser().absolute()
    find = resolve_run_dir if options.llm_comparator is not None else find_run
    run = RunDir(find(options.run))
    if output.resolve().is_relative_to(run.model.resolve()):
        raise UserError(f"{output}: is in the run's model folder, whose files are hashed; choose another folder")
    if options.llm_comparator is not None:
        _export_answers(run.path, output)
    elif options.vllm is not None:
        _export_vllm(run, output, link=options.link)
    else:
        _export_merged(run, output, stream=options.stream, dtype=options.dtype)


def _export_answers(run: Path, path: Path) -> None:
    from imsm.reporting.llm_comparator import llm_comparator

    values = llm_comparator(*read_pair(run))
    write_output(path, json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n", option="--llm-comparator")
    models = " and ".join(model["name"] for model in values["models"])
    print(
        f"{path}: {len(values['examples']):,} examples, {models}; open it at https://pair-code.github.io/llm-comparator"
    )


def _export_merged(run: RunDir, folder: Path, *, stream: str | None, dtype: str | None) -> None:
    from imsm.pipeline.export_merged import export_merged

    check = export_merged(run, folder, stream=stream, dtype=dtype)
    print(
        f"{folder}: the tuned stream of {run.path.name} in {check.dtype}; KL from it at most {check.kl:.1g} nats, "
        f"the most likely token equal at {check.equal} of {check.positions} positions of a test text"
    )


def _export_vllm(run: RunDir, folder: Path, *, link: bool) -> None:
    from imsm.pipeline.export_vllm import export_vllm

    kinds = ", ".join(f"{count} {kind}" for kind, count in export_vllm(run, folder, link=link).items() if count)
    print(f"{folder}: {run.path.name} for vLLM (changes of layers: {kinds}); vllm serve {folder}")
