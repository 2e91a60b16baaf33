"""`imsm lm-eval RUN --tasks TASKS`: evaluate a finished run with lm-evaluation-harness.

Results are printed and written to `<run>/harness-<stream>-<tasks>-<few-shot>.json`; with `--limit`
to `...-limit<N>.json`.
"""

from __future__ import annotations

import argparse
import errno
import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsm.cli.common import add_config_dir, find_run, import_from_config_dir, write_output
from imsm.utils.errors import UserError
from imsm.utils.paths import check_links

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from imsm.models.siamese.model import SiameseForCausalLM

STREAMS = ("original", "tuned", "interwoven")
_DEFAULT_LENGTH = 2048
"""Length of sequences for a backbone without a limit, as in the harness."""
_WRITTEN = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better", "samples")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="imsm lm-eval", description="Evaluate a finished run with lm-evaluation-harness."
    )
    parser.add_argument("run", metavar="RUN", help="folder or name of a finished run")
    parser.add_argument("--tasks", required=True, help="comma-separated tasks of the harness")
    parser.add_argument("--stream", choices=STREAMS, help="default: the stream of the run's method")
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="examples in the prompt")
    parser.add_argument("--limit", type=int, metavar="N", help="examples of each task")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--include-path", type=Path, metavar="FOLDER", help="folder of custom tasks")
    parser.add_argument("--log-samples", action="store_true", help="also write every response")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file for the results")
    add_config_dir(parser)
    return parser


def main(arguments: list[str]) -> None:
    """Evaluate the tasks, print the results and write them.

    Raises:
        UserError: an argument is invalid, or a task cannot be evaluated.
    """
    options = parser().parse_args(arguments)
    if options.batch_size < 1 or (options.num_fewshot or 0) < 0:
        raise UserError("--batch-size must be at least 1, --num-fewshot at least 0")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit}: must be at least 1; leave it out for all")
    if options.include_path is not None and not options.include_path.is_dir():
        raise UserError(f"--include-path {options.include_path}: no such directory")
    import_from_config_dir(options.config_dir)
    folder = find_run(options.run).absolute()
    if options.output is None:
        check_links(folder)
    # an evaluation may take hours; a path that cannot be written is reported before it
    _check_writable(options.output or folder / "harness.json")
    task_manager, tasks = _find_tasks(options)
    model = _load_model(folder, options)
    results = _evaluate(model, folder, tasks, task_manager, options)
    print(_markdown(results))
    _write(results, folder, model.stream, options)


def _find_tasks(options: argparse.Namespace) -> tuple[TaskManager, list[str]]:
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise UserError(f"lm-evaluation-harness is not installed ({error}): pip install 'imsm[harness]'") from error
    include = None if options.include_path is None else str(options.include_path)
    task_manager = TaskManager(include_path=include)
    names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    unknown = [name for name in names if not task_manager.match_tasks([name])]
    if unknown or not names:
        raise UserError(
            f"--tasks {', '.join(unknown) or options.tasks}: no such task of the harness; "
            "`lm-eval ls tasks` lists them, --include-path adds custom ones"
        )
    return task_manager, task_manager.match_tasks(names)


def _load_model(folder: Path, options: argparse.Namespace) -> SiameseForCausalLM:
    from imsm.models.siamese.model import SiameseForCausalLM
    from imsm.training.engines.single_device import choose_device

    model = SiameseForCausalLM.from_pretrained(folder, device=choose_device(options.device))
    if options.stream is not None:
        available = model.available_streams()
        if options.stream not in available:
            raise UserError(f"--stream {options.stream}: {folder.name} has {', '.join(available)}")
        model.stream = options.stream
    return model.eval()


def _evaluate(
    model: SiameseForCausalLM, folder: Path, tasks: list[str], task_manager: TaskManager, options: argparse.Namespace
) -> dict[str, Any]:
    import lm_eval
    from jinja2 import TemplateError

    from imsm.evaluation.lm_eval import SiameseLM
    from imsm.models.backbones.loading import load_tokenizer

    tokenizer = load_tokenizer(name_or_path=str(folder / "model"))
    max_length = model.max_positions or _DEFAULT_LENGTH
    try:
        results = lm_eval.simple_evaluate(
            model=SiameseLM(model, tokenizer, batch_size=options.batch_size, max_length=max_length),
            tasks=tasks,
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            task_manager=task_manager,
            log_samples=options.log_samples,
            bootstrap_iters=1000,
        )
    except OSError as error:
        raise UserError(f"--tasks {options.tasks}: the dataset cannot be loaded ({error})") from error
    except TemplateError as error:
        raise UserError(
            f"--tasks {options.tasks}: a template does not match the dataset's columns ({error}); fix the task's yaml"
        ) from error
    assert results is not None
    return results


def _check_writable(path: Path) -> None:
    """Create the folder of the results and check before the evaluation that they can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a directory; give the name of a file")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written ({error.strerror or error})") from error


def _markdown(results: dict[str, Any]) -> str:
    """Return the results as a Markdown table with one row per task and metric."""
    import pandas

    rows = []
    for task, metrics in results["results"].items():
        for key, value in metrics.items():
            metric, _, filter_name = key.partition(",")
            if not filter_name or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{filter_name}")
            rows.append(
                {
                    "task": task,
                    "filter": filter_name,
                    "few-shot": str(results.get("n-shot", {}).get(task, "")),
                    "metric": metric,
                    "value": f"{value:.4f}",
                    "standard error": f"{error:.4f}" if isinstance(error, int | float) else "–",
                }
            )
    return str(pandas.DataFrame(rows).to_markdown(index=False, disable_numparse=True))


def _write(results: dict[str, Any], folder: Path, stream: str, options: argparse.Namespace) -> None:
    from lm_eval.utils import handle_non_serializable

    from imsm.evaluation.result import provenance

    tasks = re.sub(r"[^\w]+", "_", options.tasks)
    few_shot = "default" if options.num_fewshot is None else options.num_fewshot
    limit = "" if options.limit is None else f"-limit{options.limit}"
    path = options.output or folder / f"harness-{stream}-{tasks}-{few_shot}{limit}.json"
    record = {"run": folder.name, "stream": stream, "limit": options.limit, **provenance()}
    record |= {key: results[key] for key in _WRITTEN if key in results}
    write_output(path, json.dumps(record, indent=2, default=handle_non_serializable) + "\n")
    print(f"written: {path}")
