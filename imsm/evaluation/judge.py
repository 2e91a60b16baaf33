"""Judging one stream on one task, in stages that each leave a file.

    prompts -> generations.jsonl -> answers.jsonl -> scores.jsonl

A later stage never repeats an earlier one: generations are made again only if the model, the
prompts or the way of generating changed; extracting and scoring are always done anew.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsm.data.sources import Source, load_examples
from imsm.data.task import Task, task_module
from imsm.data.tokenise import TokenisationReport, TokenisedExample, tokenise_prompts
from imsm.errors import RunError
from imsm.evaluation.generate import Generation, generate_answers
from imsm.evaluation.score import score_answers
from imsm.files import write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from imsm.data.example import Example
    from imsm.processes.world import World
    from imsm.siamese.model import SiameseForCausalLM

_KEY_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """A task's test items, ready to be asked."""

    task: Task
    examples: list[Example]
    prompts: list[TokenisedExample]
    report: TokenisationReport

    @property
    def fingerprint(self) -> str:
        """SHA-256 over prompts and accepted answers."""
        return examples_digest(self.examples)


def load_test_set(
    task: Task,
    *,
    source: Source,
    prompts: str,
    items: int | None,
    tokenizer: PreTrainedTokenizerBase,
    closed_vocabulary: bool,
    chat: bool,
) -> TestSet:
    """Load and tokenise a task's test items (a fixed random ``items`` of them; None: all).

    ``chat``: each prompt is a user turn in the tokenizer's template; its tokens are part of the
    answers' key.
    """
    examples = load_examples(task, "test", source=source, prompts=prompts, limit=items)
    tokenised, report = tokenise_prompts(
        examples,
        tokenizer,
        max_prompt_tokens=task.max_prompt_tokens,
        closed_vocabulary=closed_vocabulary,
        chat=chat,
    )
    return TestSet(task=task, examples=examples, prompts=tokenised, report=report)


@dataclass(kw_only=True)
class Judgement:
    """One stream's result on one task, as `result.json` keeps it.

    ``metrics`` in points (0 to 100), ``seconds`` and ``new_tokens`` of generating, ``unparsed``:
    answers that could not be extracted, ``truncated``: generations that hit the token limit.
    """

    items: int
    metrics: dict[str, float]
    headline: str
    seconds: float
    new_tokens: int
    unparsed: int
    truncated: int


def judge(
    test: TestSet,
    *,
    model: Callable[[], SiameseForCausalLM],
    stream: str,
    tokenizer: PreTrainedTokenizerBase,
    model_fingerprint: str,
    metrics: list[str],
    batch_size: int,
    folder: Path,
    label: str,
    world: World,
) -> Judgement:
    """Generate (or reuse), extract and score; every stage's file lies in ``folder``.

    Args:
        test: what is asked.
        model: gives the model; called only if something has to be generated.
        stream: who answers.
        tokenizer: the backbone's.
        model_fingerprint: identifies backbone, adapter, gate and stream.
        metrics: names; the first is the headline.
        batch_size: prompts in one pass.
        folder: of this stream and task.
        label: what the progress bar says.
        world: the processes that share the prompts out; the first one writes.
    """
    generations, seconds = _answered(
        test,
        model=model,
        stream=stream,
        tokenizer=tokenizer,
        key=generation_key(test, model_fingerprint=model_fingerprint),
        batch_size=batch_size,
        folder=folder,
        label=label,
        world=world,
    )
    module = task_module(test.task)
    answers = [module.extract(generation.text) for generation in generations]
    golds = [example.golds for example in test.examples]
    totals, per_item = score_answers(metrics, answers, golds)
    if world.leads:
        told = (
            {"id": e.id, "answer": answer, "golds": list(e.golds), "group": e.group}
            for e, answer in zip(test.examples, answers, strict=True)
        )
        _write_lines(folder / "answers.jsonl", told)
        scored = zip(test.examples, per_item, strict=True)
        _write_lines(folder / "scores.jsonl", ({"id": e.id, **scores} for e, scores in scored))
    return Judgement(
        items=len(generations),
        metrics=totals,
        headline=next(iter(totals)),
        seconds=seconds,
        new_tokens=sum(generation.tokens for generation in generations),
        unparsed=sum(not answer for answer in answers),
        truncated=sum(not generation.ended for generation in generations),
    )


def _answered(
    test: TestSet,
    *,
    model: Callable[[], SiameseForCausalLM],
    stream: str,
    tokenizer: PreTrainedTokenizerBase,
    key: str,
    batch_size: int,
    folder: Path,
    label: str,
    world: World,
) -> tuple[list[Generation], float]:
    """The generations of ``folder`` and the seconds they took; made if they are not there.

    The processes share the batches out, not the prompts: each batch is what it is in one process,
    and so are its answers.
    """
    if not world.first(lambda: read_generations(folder, key=key)[0] is not None):
        answering = model()
        answering.stream = stream  # type: ignore[assignment]
        started = time.monotonic()
        own = generate_answers(
            answering,
            tokenizer,
            test.prompts,
            batch_size=batch_size,
            max_new_tokens=test.task.max_new_tokens,
            stop=test.task.stop,
            label=label,
            rank=world.rank,
            processes=world.size,
        )
        told = world.gather(json.dumps({place: asdict(each) for place, each in own.items()}))
        found = {int(k): Generation(**v) for text in told for k, v in json.loads(text).items()}
        made = [found[place] for place in range(len(test.prompts))]
        took = time.monotonic() - started
        world.first(
            lambda: write_generations(folder, made, key=key, seconds=took, batch_size=batch_size)
        )
        return made, took
    generations, seconds = read_generations(folder, key=key)
    if generations is None:
        raise RunError(
            f"{folder}: process {world.rank} does not see the answers that process 0 sees; the "
            "runs' folder must be on a disk that all nodes share"
        )
    return generations, seconds


def generation_key(test: TestSet, *, model_fingerprint: str) -> str:
    """What a set of generations depends on: model, tokens asked, and how they were answered."""
    return digest(
        [
            _KEY_VERSION,
            model_fingerprint,
            [[p.id, list(p.prompt_ids)] for p in test.prompts],
            test.task.max_new_tokens,
            test.task.stop,
        ]
    )


def read_generations(folder: Path, *, key: str) -> tuple[list[Generation] | None, float]:
    """The generations of ``folder`` and the seconds they took, if they have this key."""
    try:
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        if settings["key"] != key:
            return None, 0.0
        lines = (folder / "generations.jsonl").read_text(encoding="utf-8").splitlines()
        generations = [Generation(**json.loads(line)) for line in lines]
    except (OSError, ValueError, KeyError, TypeError):
        return None, 0.0
    return (
        (generations, settings["seconds"]) if len(generations) == settings["items"] else (None, 0.0)
    )


def write_generations(
    folder: Path, generations: Sequence[Generation], *, key: str, seconds: float, batch_size: int
) -> None:
    """Keep raw generations; the settings, written last, say that they are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").unlink(missing_ok=True)
    _write_lines(folder / "generations.jsonl", map(asdict, generations))
    settings = {"key": key, "items": len(generations), "seconds": seconds, "batch_size": batch_size}
    write_whole(folder / "settings.json", json.dumps(settings))


def examples_digest(examples: Sequence[Example]) -> str:
    """SHA-256 over ids, prompts and accepted answers."""
    return digest([[e.id, e.prompt, list(e.golds)] for e in examples])


def digest(value: Any) -> str:
    """SHA-256 of a value's JSON."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(path, text)
