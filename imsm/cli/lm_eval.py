"""lm-evaluation-harness on a finished run: `imsm lm-eval RUN --stream S --tasks T`.

Any of the harness's tasks, few-shot too. Results are printed and left in the run's folder as
`harness-<stream>-<tasks>-<few-shot>.json`, of a part as `...-limit<N>.json`. Exit codes: 0 all went
well, 2 the input was wrong, 130 stopped by hand.
"""

from __future__ import annotations

import argparse
import errno
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsm.utils.errors import UserError
from imsm.utils.paths import resolve_run_dir

if TYPE_CHECKING:
    from imsm.models.siamese.model import SiameseForCausalLM

STREAMS = ("original", "tuned", "interwoven")


def main(argv: list[str] | None = None) -> int:
    """Ask the tasks, print the harness's table."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.batch_size < 1 or (arguments.num_fewshot or 0) < 0:
            raise UserError("--batch-size must be at least 1, --num-fewshot at least 0")
        if arguments.limit is not None and arguments.limit < 1:
            raise UserError(f"--limit {arguments.limit}: must be at least 1; leave it out for all")
        _carry_out(arguments)
    except UserError as error:
        print(f"imsm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="imsm lm-eval", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", required=True, help="a run's folder, or its name")
    parser.add_argument("--stream", choices=STREAMS, help="who answers (the run's own)")
    parser.add_argument("--tasks", required=True, help="the harness's names, with commas")
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="examples before a question")
    parser.add_argument("--limit", type=int, metavar="N", help="questions of each task")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--include-path", type=Path, help="a folder of tasks of one's own")
    parser.add_argument("--log-samples", action="store_true", help="keep every answer, too")
    parser.add_argument("--output", type=Path, help="where the results go")
    return parser


def _carry_out(arguments: argparse.Namespace) -> None:
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise UserError(f"lm-evaluation-harness is not installed ({error}): pip install 'imsm[harness]'") from error
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    from imsm.evaluation.lm_eval import SiameseLM

    if arguments.include_path is not None and not arguments.include_path.is_dir():
        raise UserError(f"--include-path {arguments.include_path}: there is no such folder")
    folder = _folder(arguments.run)
    _check_place(arguments.output or folder / "harness.json")
    include = None if arguments.include_path is None else str(arguments.include_path)
    tasks = TaskManager(include_path=include)
    named = [name.strip() for name in arguments.tasks.split(",") if name.strip()]
    known = tasks.match_tasks(named)
    unknown = [name for name in named if not tasks.match_tasks([name])]
    if unknown or not known:
        raise UserError(
            f"--tasks {', '.join(unknown) or arguments.tasks}: the harness has no such task; "
            "`lm-eval ls tasks` lists its own, --include-path adds a folder"
        )
    model = _model(folder, arguments)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
    longest = model.backbone.config.get_text_config(decoder=True).max_position_embeddings
    asked = SiameseLM(model, tokenizer, batch_size=arguments.batch_size, max_length=longest)
    try:
        found = lm_eval.simple_evaluate(
            model=asked,
            tasks=known,
            num_fewshot=arguments.num_fewshot,
            limit=arguments.limit,
            task_manager=tasks,
            log_samples=arguments.log_samples,
            bootstrap_iters=1000,
        )
    except (ConnectionError, FileNotFoundError, OSError) as error:
        raise UserError(f"--tasks {arguments.tasks}: its data cannot be had ({error})") from error
    except TemplateError as error:
        raise UserError(
            f"--tasks {arguments.tasks}: a template does not fit the data's columns ({error}); mend the task's yaml"
        ) from error
    assert found is not None
    print(_table(found))
    _keep(found, folder, model.stream, arguments)


def _folder(named: str) -> Path:
    folder = resolve_run_dir(named, option="--run")
    if not (folder / "model" / "config.json").is_file():
        raise UserError(f"--run {named}: holds no finished run")
    return folder


def _check_place(path: Path) -> None:
    """The results' folder is made, and can be written, before anything is asked."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder; give a file's name")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(_unwritable(path, error)) from error


def _unwritable(path: Path, error: OSError) -> str:
    return f"--output {path}: cannot be written ({error.strerror or error})"


def _model(folder: Path, arguments: argparse.Namespace) -> SiameseForCausalLM:
    from imsm.models.siamese.model import SiameseForCausalLM
    from imsm.training.engines.single_device import choose_device

    model = SiameseForCausalLM.from_pretrained(folder, device=choose_device(arguments.device))
    if arguments.stream is not None:
        available = model.available_streams()
        if arguments.stream not in available:
            raise UserError(f"--stream {arguments.stream}: {folder.name} has {', '.join(available)}")
        model.stream = arguments.stream
    return model.eval()


def _table(found: dict[str, Any]) -> str:
    """The harness's results as Markdown, a line per task and metric."""
    import pandas

    rows = []
    for task, metrics in found["results"].items():
        for key, value in metrics.items():
            metric, _, rest = key.partition(",")
            if not rest or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{rest}")
            known = isinstance(error, int | float)
            rows.append(
                {
                    "task": task,
                    "filter": rest,
                    "few-shot": str(found.get("n-shot", {}).get(task, "")),
                    "metric": metric,
                    "value": f"{value:.4f}",
                    "standard error": f"{error:.4f}" if known else "–",
                }
            )
    table: str = pandas.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    return table


def _keep(found: dict[str, Any], folder: Path, stream: str, arguments: argparse.Namespace) -> None:
    """Leave what came out, with what it rests on."""
    from lm_eval.utils import handle_non_serializable

    from imsm.evaluation.result import provenance
    from imsm.utils.files import write_atomic

    kept = {key: found[key] for key in ("results", "groups", "versions", "n-shot", "n-samples",
                                        "higher_is_better", "samples") if key in found}  # fmt: skip
    about = {"run": folder.name, "stream": stream, "limit": arguments.limit}
    tasks = re.sub(r"[^\w]+", "_", arguments.tasks)
    shots = "default" if arguments.num_fewshot is None else arguments.num_fewshot
    part = "" if arguments.limit is None else f"-limit{arguments.limit}"
    path = arguments.output or folder / f"harness-{stream}-{tasks}-{shots}{part}.json"
    text = json.dumps({**about, **provenance(), **kept}, indent=2, default=handle_non_serializable)
    try:
        write_atomic(path, text + "\n")
    except OSError as error:
        raise UserError(_unwritable(path, error)) from error
    print(f"written: {path}")


if __name__ == "__main__":
    sys.exit(main())
